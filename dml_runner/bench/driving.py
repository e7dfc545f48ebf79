"""The runner's own loop inside a benchmark: as in a rank, without a launcher and a run folder."""

from __future__ import annotations

import io
from pathlib import Path

from dml_runner import pulse
from dml_runner.checkpoint.saver import Saver
from dml_runner.comm.world import World
from dml_runner.data.base import Data
from dml_runner.engines.base import Engine
from dml_runner.facts import DataFacts
from dml_runner.layout import Layout
from dml_runner.loops.progress import Progress
from dml_runner.loops.session import Session
from dml_runner.loops.stop import StopRequest
from dml_runner.loops.train import Outcome, TrainLoop
from dml_runner.pulse import Pulse
from dml_runner.run import Run
from dml_runner.tracking import Console, Jsonl, Trackers
from dml_runner.tracking.base import Tracker


class Terminal(io.StringIO):
    """A terminal that nobody looks at."""

    def isatty(self) -> bool:
        """It says it is one."""
        return True


def live(run: Run, layout: Layout, folder: Path) -> Trackers:
    """What ``dml train`` shows and writes of a job: a live console, and metrics.jsonl in ``folder``."""
    return Trackers([Console(Terminal(), run.name, layout.steps, layout.world_size), Jsonl(folder / "metrics.jsonl")])


def drive(
    run: Run,
    layout: Layout,
    facts: DataFacts,
    data: Data,
    engine: Engine,
    world: World,
    folder: Path,
    tracker: Tracker | None,
    saver: Saver | None = None,
) -> Outcome:
    """Run ``TrainLoop`` from the first step to the last on this rank; its pulse beats into ``folder``, which is this rank's own."""
    pulse.create(folder / "pulse", world.size)
    session = Session(
        run=run,
        layout=layout,
        facts=facts,
        data=data,
        engine=engine,
        world=world,
        tracker=tracker,
        saver=saver,
        stop=StopRequest(),
        pulse=Pulse(folder / "pulse", world.rank, run.launcher.hang_floor_s),
    )
    return TrainLoop(session, Progress()).run()
