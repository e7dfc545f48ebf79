"""Who starts the ranks."""

from __future__ import annotations

from typing import Literal

from dml_runner.schema.base import Positive, Section


class Launcher(Section):
    """`dml train` starts the ranks itself, on this machine; under torchrun or deepspeed it joins the ranks it finds."""

    name: Literal["local"]
    """The launcher."""
    hang_floor_s: Positive
    """Seconds without progress, beside three times the median step, after which a rank counts as hanging and is restarted."""
