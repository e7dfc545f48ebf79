"""Say what to train, how to spread it and on which machine; the runner checks it, plans it and runs it.

The command line is ``dml``. In a notebook the same words make a list:

    import dml_runner

    words = ["recipes/quickstart.yaml", "train.steps=200"]
    plan = dml_runner.plan(words)        # what it will cost; nothing runs
    summary = dml_runner.train(words)    # the run
    model = dml_runner.load("outputs/train/20260101-120000-quickstart")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dml_runner.api import load, plan, train

__version__ = "0.1.0"
__all__ = ["__version__", "load", "plan", "train"]


def __getattr__(name: str) -> Any:
    """``plan``, ``train`` and ``load``, imported when first asked for: importing the package alone costs nothing."""
    if name in ("load", "plan", "train"):
        from dml_runner import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
