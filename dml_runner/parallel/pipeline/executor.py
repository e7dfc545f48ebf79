"""The executor of a schedule: forward and backward of this rank's stages in the order that the schedule says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from dml_runner.comm.links import Links
from dml_runner.parallel.pipeline.halves import input_half, whole
from dml_runner.parallel.pipeline.post import Letter, Post, Signature
from dml_runner.schedules.base import Action, Schedule
from dml_runner.schedules.timeline import Timed, Timeline

Batch = Mapping[str, Tensor]
Forward = Callable[[int, Tensor | None, int], Any]
"""(virtual stage, its input, micro-batch) -> what it puts out; the first stage's input is None."""


@dataclass(frozen=True, slots=True)
class _Held:
    """What is kept of a stage's forward for its backward; ``output`` None: nothing in it is trained."""

    x: Tensor | None
    output: GradientEdge | None


class Pipeline:
    """One pipeline rank.

    Between two ranks nothing travels but boundary activations, their gradients, and once for every form of a micro-batch a header. After
    a ``PeerLost`` it cannot be used again.

    Args:
        schedule: of all ranks; every rank has the same.
        rank: this one's number on the pipeline axis, and in all three Links.
        rising: to ranks of higher numbers and from lower ones. On NCCL its group must not be that of ``falling``.
        falling: the other way.
        control: for headers, on the CPU; under a tag of its own, or of a group of its own.
        device: where stages compute.
        recomputes: whether a stage computes in backward again what it did not keep. Then a backward in two halves would do so twice, and
            all of it is done where the schedule has the first half.
        record: whether to note when each action runs.

    Attributes:
        waited: seconds of the last step in which this rank waited for messages.
        times: of the last step, if recorded: start and end of each action by this host's monotonic clock, in seconds, (actions, 2), fp64.
    """

    def __init__(
        self,
        schedule: Schedule,
        rank: int,
        rising: Links,
        falling: Links,
        control: Links,
        device: torch.device,
        *,
        recomputes: bool = False,
        record: bool = False,
    ) -> None:
        self.schedule, self.rank, self.record = schedule, rank, record
        self.waited = 0.0
        self.times = torch.empty(0, 2, dtype=torch.float64)
        self._post = Post(schedule, rank, rising, falling, control, device)
        self._recomputes = recomputes
        self._actions = schedule.ranks[rank]
        self._last = schedule.stages - 1
        done = {action.stage: place for place, action in enumerate(self._actions) if action.kind in ("B", "I" if recomputes else "W")}
        self._done = {place: stage for stage, place in done.items()}
        self._held: dict[tuple[int, int], _Held] = {}
        self._halves: dict[tuple[int, int], Callable[[], None]] = {}

    @property
    def in_flight(self) -> dict[int, int]:
        """For each virtual stage of this rank, the micro-batches it keeps something of for a backward."""
        kept = [stage for stage, _ in (*self._held, *self._halves)]
        return {stage: kept.count(stage) for stage in self.schedule.stages_of(self.rank)}

    def step(
        self, batches: Sequence[Batch], forward: Forward, scale: Callable[[], Tensor], backward_done: Callable[[int], None]
    ) -> Tensor | None:
        """Forward and backward of all micro-batches; gradients are added to those of the parameters.

        Args:
            batches: the step's micro-batches, the same on every rank.
            forward: computes a stage: the last one to its summed loss, a scalar.
            scale: the scalar that the summed loss counts in the gradients; asked for behind the last stage's first forward.
            backward_done: told a virtual stage once its parameters have all of the step's gradients.

        Returns:
            The sum of all losses on the rank that has the last stage; None elsewhere.

        Raises:
            PeerLost: a neighbour is gone.
        """
        assert len(batches) == self.schedule.microbatches, "a schedule is made for a number of micro-batches"
        self.waited, total = 0.0, None
        times: list[tuple[float, float]] = []
        self._post.begin([signature(batch) for batch in batches])
        for place, action in enumerate(self._actions):
            stage, micro = action.stage, action.micro
            arrived = self._take(action) if action.kind != "W" else None
            started = time.perf_counter()
            if action.kind == "F":
                loss = self._forward(stage, arrived, micro, forward)
                total = loss if total is None else total if loss is None else total + loss
            elif action.kind == "W":
                self._weights(stage, micro)
            else:
                self._backward(action, scale() if stage == self._last else arrived)
            times.append((started, time.perf_counter()))
            if place in self._done:
                backward_done(stage)
        started = time.perf_counter()
        self._post.end()
        self.waited += time.perf_counter() - started
        if self.record:
            self.times = torch.tensor(times, dtype=torch.float64)
        return total

    def forward_only(self, batch: Batch, forward: Forward, kind: str = "evaluation") -> Any:
        """Pass one micro-batch through all stages, keeping nothing; ranks whose stages are early may be some calls ahead (see ``settle``).

        Args:
            batch: the same on every rank.
            forward: computes a stage, without a gradient; it gets micro-batch 0.
            kind: tells batches apart whose boundary tensors differ although they are alike: of another number format.

        Returns:
            What the last stage put out, on its rank; None elsewhere.

        Raises:
            PeerLost: a neighbour is gone.
        """
        self._post.pass_by((kind, *signature(batch)))
        out = None
        for stage in self.schedule.stages_of(self.rank):
            x = self._post.take_now(stage) if stage else None
            out = forward(stage, x, 0)
            if stage < self._last:
                self._post.send_now(stage + 1, out)
                out = None
        return out

    def settle(self) -> None:
        """Return when all that this rank sent is received: to be called before it leaves.

        Raises:
            PeerLost: a neighbour is gone.
        """
        self._post.end()

    def _take(self, action: Action) -> Tensor | None:
        """Wait for what ``action`` starts from."""
        back = action.kind != "F"
        if action.stage == (self._last if back else 0):
            return None
        started = time.perf_counter()
        arrived = self._post.take(Letter(back, action.stage, action.micro))
        self.waited += time.perf_counter() - started
        return arrived

    def _forward(self, stage: int, x: Tensor | None, micro: int, forward: Forward) -> Tensor | None:
        """Compute a stage; returns the loss, if it is the last one."""
        out: Tensor = forward(stage, x, micro)
        self._held[stage, micro] = _Held(x, get_gradient_edge(out) if out.requires_grad else None)
        if stage == self._last:
            return out.detach()
        self._post.send(Letter(False, stage + 1, micro), out, out.requires_grad)
        return None

    def _backward(self, action: Action, gradient: Tensor | None) -> None:
        """All of an action's backward, or its first half; the gradient of its input is sent."""
        stage, micro = action.stage, action.micro
        held = self._held.pop((stage, micro))
        x = held.x if held.x is not None and held.x.requires_grad else None
        if held.output is not None:
            if action.kind == "B" or self._recomputes:
                whole(held.output, gradient)
            elif x is None:
                output = held.output
                self._halves[stage, micro] = lambda: whole(output, gradient)
            else:
                self._halves[stage, micro] = input_half(held.output, gradient, x)
        if x is not None:
            self._post.send(Letter(True, stage - 1, micro), torch.zeros_like(x) if x.grad is None else x.grad)

    def _weights(self, stage: int, micro: int) -> None:
        half = self._halves.pop((stage, micro), None)
        if half is not None:
            half()


def signature(batch: Batch) -> Signature:
    """What the forms of a batch's boundary tensors depend on: names, shapes and types of its tensors."""
    return tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(batch.items()))


def measured(schedule: Schedule, times: Sequence[Tensor]) -> Timeline:
    """A step as it ran, from the ``times`` of every rank."""
    rows = [zip(actions, rank.tolist(), strict=True) for actions, rank in zip(schedule.ranks, times, strict=True)]
    return Timeline(tuple(tuple(Timed(action, start, end) for action, (start, end) in row) for row in rows))
