"""Numbers and rows in the words a person reads."""

from __future__ import annotations

from collections.abc import Mapping


def number(row: Mapping[str, object], key: str) -> float | None:
    """The number under ``key``, or None where there is none."""
    value = row.get(key)
    return value if isinstance(value, int | float) else None


def short(value: float) -> str:
    """A quantity in three digits: 950, 12.3k, 4.56M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}" if value < 999.5 * limit else f"{value / limit:.0f}{unit}"
    return f"{value:.3g}"


def loss_text(value: float | None) -> str:
    """A loss: four decimals, or scientific where those would be zeros."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value != value or abs(value) >= 1e-3 or value == 0 else f"{value:.2e}"


def duration(seconds: float) -> str:
    """A time: 0:42, 1:02:03, 2d 03:04:05."""
    whole = round(max(seconds, 0.0))
    days, hours, minutes, rest = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    if days:
        return f"{days}d {hours:02}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def evaluation(row: Mapping[str, object]) -> str:
    """Loss and metrics of an evaluation row or of ``summary["eval"]``."""
    text = f"eval loss {loss_text(number(row, 'eval_loss'))}"
    for key in row:
        value = number(row, key) if key.startswith("eval_") and key not in ("eval_loss", "eval_samples") else None
        if value is not None:
            text += f"  {key.removeprefix('eval_')} {value:.4f}"
    return text


def ending(summary: Mapping[str, object]) -> str:
    """How a run ended, in one line."""
    steps, wall, loss = (number(summary, key) for key in ("steps", "wall_s", "final_loss"))
    text = str(summary.get("status", "ended"))
    if steps is not None:
        text += f" after {steps:,.0f} steps"
    if wall is not None:
        text += f" in {duration(wall)}"
    if loss is not None:
        text += f"  loss {loss_text(loss)}"
    held_out = summary.get("eval")
    return f"{text}  {evaluation(held_out)}" if isinstance(held_out, Mapping) and held_out else text
