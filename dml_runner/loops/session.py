"""Session: all that one rank's loop works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dml_runner.checkpoint.saver import Saver
from dml_runner.comm.world import World
from dml_runner.data.base import Data
from dml_runner.engines.base import Engine
from dml_runner.facts import DataFacts
from dml_runner.layout import Layout
from dml_runner.loops.rescue import Rescue
from dml_runner.loops.stop import Reason, StopRequest
from dml_runner.pulse import Pulse
from dml_runner.run import Run
from dml_runner.tracking.base import Tracker


@dataclass(frozen=True)
class Session:
    """One rank's parts.

    ``tracker`` is where rows go; rank 0 alone has one. ``saver`` is None where nothing is kept (a benchmark), ``rescue`` where servers
    have no replicas.
    """

    run: Run
    layout: Layout
    facts: DataFacts
    data: Data
    engine: Engine
    world: World
    tracker: Tracker | None
    saver: Saver | None
    stop: StopRequest
    pulse: Pulse
    rescue: Rescue | None = None

    def log(self, row: dict[str, Any]) -> None:
        """Hand a row to the tracker, if this rank has one."""
        if self.tracker is not None:
            self.tracker.log(row)

    def note(self, text: str) -> None:
        """Show a line to people, from rank 0."""
        if self.tracker is not None:
            self.tracker.note(text)

    def agreed(self) -> Reason:
        """Why all ranks end here, at this step border; called by all together."""
        return Reason(self.world.highest(self.stop.reason))
