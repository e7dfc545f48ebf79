"""The training loop of workers that do not wait for each other: they meet at borders, and between them each goes its own way."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field

from dml_runner.data.base import weight_of
from dml_runner.engines.asynchronous_worker import FreeWorker
from dml_runner.engines.base import StepReport, Weighed
from dml_runner.engines.server_engine import FreeServer
from dml_runner.errors import Diverged
from dml_runner.loops.progress import Progress
from dml_runner.loops.session import Session
from dml_runner.loops.stop import Reason
from dml_runner.loops.train import TrainLoop, diverged
from dml_runner.loops.window import memory_bytes
from dml_runner.optim.parts.schedule import learning_rate
from dml_runner.pulse import START_ALLOWANCE_S


@dataclass
class Tally:
    """One worker's pushes since all met.

    Attributes:
        loss: summed loss by step.
        weight: what it weighs, by step.
        last: the step all stop after.
        norm: of the last gradient.
        waited_s: seconds waiting for data.
        computing_s: forward and backward.
        comm_s: waiting for servers.
    """

    loss: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    weight: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    last: int = 0
    norm: float = 0.0
    waited_s: float = 0.0
    computing_s: float = 0.0
    comm_s: float = 0.0

    def add(self, step: int, weight: float, report: StepReport, waited_s: float, comm_s: float) -> None:
        """Take in one push."""
        self.loss[step] += float(report.loss_sum)
        self.weight[step] += weight
        self.waited_s += waited_s
        self.computing_s += report.forward_backward_s
        self.comm_s += report.comm_wait_s + comm_s


class AsynchronousLoop(TrainLoop):
    """Stretches of steps between borders. Within one, workers take slices of steps as fast as each can; at a border all meet."""

    def __init__(self, session: Session, progress: Progress) -> None:
        super().__init__(session, progress)
        if session.world.meeting is not None and isinstance(session.engine, FreeServer):
            session.world.meeting.look = session.engine.check

    def _steps(self) -> Reason:
        reason, done = self._border(self.progress.step) if self.progress.step else (Reason.NONE, False)
        while self.progress.step < self._last and not done and reason is Reason.NONE:
            reason = self.session.agreed()
            if reason is not Reason.NONE:
                break
            self._stretch(self._next_border())
            reason, done = self._border(self.progress.step)
        return reason

    def _next_border(self) -> int:
        """The next step after which something is due."""
        rhythms = (
            self._train.log_every,
            self._train.eval_every,
            self._train.check_every,
            self.session.run.checkpoint.every,
            self._copy_every,
        )
        return min(self._last, *((self.progress.step // every + 1) * every for every in rhythms if every is not None))

    def _stretch(self, until: int) -> None:
        started, begun = time.perf_counter(), self.progress.step
        self.session.pulse.begin(begun + 1)
        tally = Tally(last=until)
        engine = self.session.engine
        if isinstance(engine, FreeWorker):
            self._work(engine, until, tally)
        self.session.pulse.allow(START_ALLOWANCE_S)  # for the slowest worker
        sent = self.session.world.sent.take()
        last = self.session.world.highest(tally.last if isinstance(engine, FreeWorker) else 0)
        gap = engine.clock_gap if isinstance(engine, FreeWorker | FreeServer) else 0
        mine = [tally.waited_s, tally.computing_s, tally.comm_s, sent, memory_bytes(self.session.world.device), gap]
        rows = self.session.world.gather([tally.loss[last], tally.weight[last], *mine])
        self.session.pulse.beat()
        self.progress.step = last
        steps, wall_s = max(1, last - begun), time.perf_counter() - started
        self._step_times += [wall_s / steps] * (last - begun)
        if last > begun:
            self._log_stretch(last, tally.norm, wall_s / steps, (rows / rows.new_tensor([1, 1, steps, steps, steps, steps, 1, 1])).tolist())

    def _work(self, engine: FreeWorker, until: int, tally: Tally) -> None:
        """Take slices until there are none before the next border."""
        while True:
            started = time.perf_counter()
            step, part, tally.last = engine.take(until, self.session.stop.reason is not Reason.NONE)
            if step == 0:
                break
            self.session.pulse.begin(step)
            taken = time.perf_counter()
            batches = self._slice(step, part)
            fetched = time.perf_counter()
            weight = max(1.0, float(sum(map(weight_of, batches))))
            rate = learning_rate(self.session.run.lr_schedule, self._peak, step, self._last)
            try:
                report = engine.step(step, batches, Weighed(weight), rate)
            except Diverged as error:
                raise diverged(step, error.problems[0]) from None
            tally.add(step, weight, report, fetched - taken, taken - started)
            self.session.pulse.done(time.perf_counter() - started)
        try:
            engine.settle()
        except Diverged as error:
            raise diverged(max(tally.loss, default=tally.last), error.problems[0]) from None
        tally.norm = report.grad_norm() if tally.loss else 0.0

    def _log_stretch(self, number: int, norm: float, step_s: float, rows: list[list[float]]) -> None:
        losses, weights, *slowest = zip(*rows, strict=True)
        waited_s, computing_s, comm_s, sent, memory, gap = map(max, slowest)
        self.progress.loss = sum(losses) / max(1.0, sum(weights))
        row = self._window.told(
            step=number,
            loss=self.progress.loss,
            lr=learning_rate(self.session.run.lr_schedule, self._peak, number, self._last),
            grad_norm=norm,
            step_time_s=step_s,
            data_wait_s=waited_s,
            forward_backward_s=computing_s,
            comm_wait_s=comm_s,
            update_s=0.0,
            comm_bytes=int(sent),
            memory_bytes=int(memory),
        )
        self.session.log({**row, "clock_gap": int(gap)})
