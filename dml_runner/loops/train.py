"""The training loop: one for every engine and strategy."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from dml_runner.data.base import weight_of
from dml_runner.data.parts.order import slice_of
from dml_runner.engines.base import StepReport
from dml_runner.errors import Diverged, Problem
from dml_runner.loops.border import Border, Stopped
from dml_runner.loops.check import check_replicas
from dml_runner.loops.evaluate import evaluate
from dml_runner.loops.prefetch import Prefetch
from dml_runner.loops.progress import Progress
from dml_runner.loops.session import Session
from dml_runner.loops.stop import Reason
from dml_runner.loops.straggler import Stragglers
from dml_runner.loops.window import Window
from dml_runner.optim.parts.schedule import batch_factor, learning_rate

SAVE_ALLOWANCE_S = 1800.0
"""Seconds a rank may wait for a save to be durable."""


@dataclass(frozen=True)
class Outcome:
    """How the loop ended, the same on every rank.

    Attributes:
        reason: why it ended before its last step; NONE when it did not, or stopped early by its own rule.
        progress: how far it came.
        evaluation: of the whole held-out set, when it completed.
        step_times_s: seconds of each update in this process, in order.
    """

    reason: Reason
    progress: Progress
    evaluation: dict[str, Any] | None
    step_times_s: list[float]


class TrainLoop:
    """Steps, rows, evaluations, checks and saves of one rank, in step with all others."""

    def __init__(self, session: Session, progress: Progress) -> None:
        self.session = session
        self.progress = progress
        self._train = session.run.train
        self._batch = session.layout.batch
        self._last = session.layout.steps
        self._peak = session.run.optimizer.lr * batch_factor(session.run.lr_schedule, self._batch.global_batch)
        self._data_rank = session.layout.data_rank(session.world.rank)
        self._window = Window(session.world, self._batch.global_batch, self._batch.global_batch * session.facts.sample_tokens)
        self._stragglers = Stragglers(session.layout.mesh)
        self._order = session.data.order(session.run.seed)
        self._prefetch = Prefetch(self._fetch, session.run.data.workers, self._last)
        servers = session.layout.servers
        self._copy_every = None if servers is None or session.rescue is None else servers.replicate_every
        self._step_times: list[float] = []
        self._saved = progress.step
        self._settled = progress.step

    def run(self) -> Outcome:
        """Train from ``progress.step`` to the last step, an early stop, or a wish to stop that all ranks agree on.

        Raises:
            Diverged: the gradient is no longer finite; the weights are those of the step before.
            RunFailed: the ranks' weights differ, or a save failed.
        """
        try:
            reason, evaluation = self._steps(), None
        except Diverged as error:  # servers tell of a gradient when its norm or its weights are asked for
            raise diverged(self.progress.step, error.problems[0]) if error.problems[0].key == "loss" else error from None
        finally:
            self._prefetch.close()
        self._save()
        if reason is Reason.NONE:
            reason, evaluation = self._evaluate(None)
            if evaluation is not None:
                self.session.log({"step": self.progress.step, **evaluation})
        if evaluation is not None and self.progress.is_new_best(evaluation, self.session.run.checkpoint.best):
            self._save(best=True)
        if self.session.saver is not None:
            self.session.pulse.allow(SAVE_ALLOWANCE_S)
            self.session.saver.wait()
        return Outcome(reason, self.progress, evaluation, self._step_times)

    def _steps(self) -> Reason:
        reason, done = self._border(self.progress.step) if self.progress.step else (Reason.NONE, False)
        before: list[dict[str, Tensor]] | None = None
        for number in range(self.progress.step + 1, self._last + 1):
            together = self.session.layout.agreed(number - 1)
            if together and (done or reason is not Reason.NONE):
                return reason
            started = time.perf_counter()
            self.session.pulse.begin(number)
            take = partial(self._prefetch.take, number)
            batches = self.session.stop.breakable(take) if together else take()
            fetched = time.perf_counter()
            border = self._meet(batches or [], final=together, first=before is None)
            try:
                before = batches if batches is not None else before
                if before is None:
                    border()
                else:  # a rank without batches computes with those of the step before, for the others wait for it: this step will not be
                    self._update(number, before, started, fetched, border)
            except Stopped:
                return border.reason
            reason = max(reason, border.reason)
            if self.session.layout.agreed(number):
                found, done = self._border(number)
                reason = max(reason, found)
        return reason

    def _fetch(self, number: int) -> list[dict[str, Tensor]]:
        return [] if self._data_rank is None else self._slice(number, self._data_rank)

    def _slice(self, number: int, part: int) -> list[dict[str, Tensor]]:
        """The micro-batches that are one data rank's of a step."""
        picks = self._order.step(number, self._batch.global_batch)
        mine = slice_of(picks, part, self._batch.data_ranks, self._batch.micro_batch, self._batch.accumulation)
        return [self.session.data.train_batch(picks) for picks in mine]

    def _meet(self, batches: list[dict[str, Tensor]], final: bool, first: bool) -> Border:
        """Begin to tell the other ranks what this one brings to a step."""
        session, each = self.session, self.session.facts.sample_weight
        counts = each is None and session.layout.speaks(session.world.rank)
        share = float(sum(map(weight_of, batches))) if counts else 0.0
        whole = None if each is None else float(self._batch.global_batch * each)
        return Border(session.world, session.stop.reason, share, whole, final, first)

    def _update(self, number: int, batches: list[dict[str, Tensor]], started: float, fetched: float, border: Border) -> None:
        session = self.session
        rate = learning_rate(session.run.lr_schedule, self._peak, number, self._last)
        try:
            report = session.engine.step(number, batches, border, rate)
        except Diverged as error:
            raise diverged(number, error.problems[0]) from None
        self.progress.step = number
        step_s = time.perf_counter() - started
        self._step_times.append(step_s)
        session.pulse.done(step_s)
        self._window.add(report, step_s, fetched - started, border.waited_s)
        if number % self._train.log_every == 0 or number == self._last:
            self._log(number, report, rate, border.weight)

    def _log(self, number: int, report: StepReport, rate: float, weight: float) -> None:
        steps = self._window.steps
        row, computing_s = self._window.row(number, report, rate, weight)
        self.progress.loss = row["loss"]
        self.session.log(row)
        slow = self._stragglers.see(computing_s[: self.session.layout.mesh.size], steps)
        if slow is not None:
            self.session.note(slow)

    def _border(self, number: int) -> tuple[Reason, bool]:
        """What is due after step ``number``, with what waited for it: (a wish to stop, whether early stopping ends the run)."""
        session = self.session
        if session.saver is not None:
            session.saver.check()
        if self._is_due(self._train.check_every, number):
            check_replicas(session.engine, session.world, session.layout.mesh, number)
        reason, done, best = Reason.NONE, False, False
        if self._evaluation_is_due(number):
            reason, row = self._evaluate(self._train.eval_batches)
            if row is not None:
                done = self.progress.out_of_patience(row, self._train.stop)
                best = self.progress.is_new_best(row, session.run.checkpoint.best)
                if not done:  # else the evaluation at the end stands for this step
                    self.progress.evaluated = number
                    session.log({"step": number, **row})
        if best or self._is_due(session.run.checkpoint.every, number):
            self._save(best)
        if self._is_due(self._copy_every, number):
            self._copy(number)
        self._settled = number
        return reason, done

    def _is_due(self, every: int | None, number: int) -> bool:
        """Whether a multiple of ``every`` lies after the last border, up to ``number``."""
        return every is not None and number // every > min(self._settled, number - 1) // every

    def _evaluation_is_due(self, number: int) -> bool:
        return self._is_due(self._train.eval_every, number) and self.progress.evaluated < number < self._last

    def _evaluate(self, batches: int | None) -> tuple[Reason, dict[str, Any] | None]:
        found = evaluate(self.session, batches)
        return (found, None) if isinstance(found, Reason) else (Reason.NONE, found)

    def _save(self, best: bool = False) -> None:
        """Save the present step, once; again only to keep it as the best."""
        saver, step = self.session.saver, self.progress.step
        if saver is None or step == 0 or (step == self._saved and not best):
            return
        self.session.pulse.allow(SAVE_ALLOWANCE_S)
        saver.save(step, self.session.engine.state(), self.progress.as_json(), best)
        self.session.pulse.beat()
        self._saved = step

    def _copy(self, number: int) -> None:
        """Copy the present step to where it outlives a server."""
        if self.session.rescue is not None:
            self.session.pulse.allow(SAVE_ALLOWANCE_S)
            self.session.rescue.copy(number, self.progress.as_json())
            self.session.pulse.beat()


def diverged(step: int, problem: Problem) -> Diverged:
    """The error that ends a run whose numbers are no longer finite."""
    hint = f"{problem.hint}; try a lower optimizer.lr, more lr_schedule.warmup_steps or train.clip_norm"
    return Diverged(Problem(f"step {step}", problem.what, got=problem.got, hint=hint))
