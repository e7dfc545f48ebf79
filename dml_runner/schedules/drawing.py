"""Timelines as one SVG: what each rank does and when, predicted above measured, on one scale of time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from xml.sax.saxutils import escape

from dml_runner.schedules.base import MEANING, Kind
from dml_runner.schedules.timeline import Timed, Timeline

# Okabe and Ito's colours, which the colour-blind can tell apart and on all of which black can be read.
_COLOURS: dict[Kind, tuple[int, int, int]] = {"F": (86, 180, 233), "B": (230, 159, 0), "I": (240, 228, 66), "W": (0, 158, 115)}
_WAITING = "#ececec"
_ROW, _BAR, _BASE, _HEAD, _AXIS = 24, 20, 14, 26, 34
_LEFT, _RIGHT, _TOP = 70, 84, 58
_DIGIT = 6.6
_NARROWEST, _WIDEST = 720, 3600


@dataclass(frozen=True)
class _Scale:
    """Seconds to pixels, and to the unit that is written."""

    pixels_per_second: float
    unit: str
    per_second: float

    def pixels(self, seconds: float) -> float:
        return seconds * self.pixels_per_second

    def written(self, seconds: float) -> str:
        return f"{seconds * self.per_second:.4g}"


def as_svg(panels: Mapping[str, Timeline], title: str = "") -> str:
    """One SVG document with a panel for each timeline, under its name.

    Each row is a rank, each bar an action with its micro-batch where there is room, and more of it when pointed at; grey is waiting, paler
    colours are a rank's later stages. Every bar and row is told in words too, for readers that do not see.

    Args:
        panels: timelines by the name that stands above each, such as ``predicted`` and ``measured``; at least one.
        title: what stands above all.
    """
    longest = max(timeline.makespan for timeline in panels.values())
    width = _width(longest, panels)
    unit, per_second = next(((unit, per) for unit, per in (("s", 1.0), ("ms", 1e3)) if longest * per >= 1), ("us", 1e6))
    scale = _Scale(width / longest if longest else 0.0, unit, per_second)
    body: list[str] = []
    top = float(_TOP)
    for name, timeline in panels.items():
        body += _panel(name, timeline, scale, top)
        top += _HEAD + _ROW * len(timeline.ranks) + _AXIS
    whole = _LEFT + width + _RIGHT
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole:.0f} {top:.0f}" width="{whole:.0f}" height="{top:.0f}" '
        f'font-family="sans-serif" font-size="12" role="img">'
    )
    lines = [head, f"<title>{escape(title)}</title>", f'<rect width="{whole:.0f}" height="{top:.0f}" fill="#fff"/>']
    lines += [f'<text x="{_LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>', *_legend(panels), *body, "</svg>"]
    return "\n".join(lines) + "\n"


def _width(longest: float, panels: Mapping[str, Timeline]) -> float:
    """Pixels of the longest timeline: with room for the numbers in usual bars, within reason."""
    shortest = min(timeline.shortest for timeline in panels.values())
    digits = max(len(str(timed.action.micro)) for timeline in panels.values() for rank in timeline.ranks for timed in rank)
    wanted = longest / shortest * (digits * _DIGIT + 3) if shortest > 0 else _WIDEST
    return min(max(wanted, _NARROWEST), _WIDEST)


def _panel(name: str, timeline: Timeline, scale: _Scale, top: float) -> Iterator[str]:
    whole = f"{scale.written(timeline.makespan)} {scale.unit}, {100 * timeline.idle_share:.1f} % idle"
    yield f'<text x="{_LEFT}" y="{top + 17:.0f}"><tspan font-weight="bold">{escape(name)}</tspan>  {whole}</text>'
    rows = top + _HEAD
    edge = min(1.0, scale.pixels(timeline.shortest) / 6)
    for rank, (actions, idle) in enumerate(zip(timeline.ranks, timeline.idle, strict=True)):
        y = rows + _ROW * rank
        end = scale.pixels(timeline.makespan)
        yield f'<g transform="translate({_LEFT} {y:.0f})"><text x="-8" y="{_BASE}" text-anchor="end">rank {rank}</text>'
        yield f'<rect width="{end:.1f}" height="{_BAR}" fill="{_WAITING}"/><g stroke="#fff" stroke-width="{edge:.2f}">'
        yield from _bars(actions, timeline, scale)
        yield f'</g><text x="{end + 8:.0f}" y="{_BASE}">idle {100 * idle:.1f} %</text></g>'
    yield from _axis(timeline.makespan, scale, rows + _ROW * len(timeline.ranks))


def _bars(actions: tuple[Timed, ...], timeline: Timeline, scale: _Scale) -> Iterator[str]:
    """The bars of a rank and their numbers, from the row's upper left corner on."""
    ranks = len(timeline.ranks)
    numbers: list[str] = []
    for timed in actions:
        action, start, end = timed.action, timed.start - timeline.start, timed.end - timeline.start
        x, width = scale.pixels(start), scale.pixels(end - start)
        told = f"{MEANING[action.kind]} {action.micro}, stage {action.stage}, {scale.written(start)} to {scale.written(end)} {scale.unit}"
        fill = _colour(action.kind, action.stage // ranks, timeline.chunks)
        yield f'<rect x="{x:.1f}" width="{width:.1f}" height="{_BAR}" fill="{fill}"><title>{told}</title></rect>'
        if width >= len(str(action.micro)) * _DIGIT + 1:
            numbers.append(f'<text x="{x + width / 2:.1f}" y="{_BASE}">{action.micro}</text>')
    yield '<g font-size="11" text-anchor="middle" stroke="none" pointer-events="none">' + "".join(numbers) + "</g>"


def _colour(kind: Kind, chunk: int = 0, chunks: int = 1) -> str:
    """The colour of a kind, paler in later chunks."""
    white = 0.6 * chunk / max(1, chunks - 1)
    return "#" + "".join(f"{round(part + (255 - part) * white):02x}" for part in _COLOURS[kind])


def _axis(makespan: float, scale: _Scale, y: float) -> Iterator[str]:
    """Marks of time below the rows, at round numbers."""
    step = _round_step(makespan / 8)
    yield '<g font-size="11" text-anchor="middle" fill="#555" stroke="none">'
    for mark in range(math.floor(makespan / step + 1e-9) + 1 if step else 1):
        x = _LEFT + scale.pixels(mark * step)
        yield f'<path d="M{x:.1f} {y:.0f}v4" stroke="#555"/><text x="{x:.1f}" y="{y + 16:.0f}">{scale.written(mark * step)}</text>'
    yield "</g>"
    yield f'<text x="{_LEFT - 8}" y="{y + 16:.0f}" text-anchor="end" font-size="11" fill="#555">{scale.unit}</text>'


def _round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below ``least``."""
    if least <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= least * (1 - 1e-9))


def _legend(panels: Mapping[str, Timeline]) -> Iterator[str]:
    """What the colours mean, of those that occur."""
    used = {timed.action.kind for timeline in panels.values() for rank in timeline.ranks for timed in rank}
    entries = [(_colour(kind), meaning) for kind, meaning in MEANING.items() if kind in used]
    if any(timeline.chunks > 1 for timeline in panels.values()):
        entries.append((_colour("F", 1, 2), "paler: a rank's later stages"))
    entries.append((_WAITING, "waiting"))
    x = float(_LEFT)
    for fill, meaning in entries:
        yield f'<rect x="{x:.0f}" y="34" width="14" height="14" fill="{fill}"/><text x="{x + 20:.0f}" y="45">{meaning}</text>'
        x += 44 + 6.2 * len(meaning)
