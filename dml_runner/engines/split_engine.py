"""The engine of a rank that holds a part of the model, or of its optimizer's state: stages, split layers, and replicas of both."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dml_runner.checkpoint.pieces import Piece
from dml_runner.checkpoint.read import Committed
from dml_runner.comm.axes import Axes
from dml_runner.comm.links import Links
from dml_runner.comm.world import World
from dml_runner.engines.base import StepReport, Weigh
from dml_runner.engines.device import autocast, bits_of, on_device, seed_random
from dml_runner.engines.part_state import fill, pieces
from dml_runner.engines.streams import Streams
from dml_runner.errors import ConfigError, Problem
from dml_runner.layout import Layout
from dml_runner.models.base import Batch, Guess, Model
from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.optim.parts.clip import UNCHANGED, clip, diverged, norm
from dml_runner.optim.parts.step import drop
from dml_runner.parallel.held import Held
from dml_runner.parallel.pipeline.executor import Pipeline
from dml_runner.parallel.shards import Span
from dml_runner.parallel.shared import add_up, tell
from dml_runner.parallel.updates import Update


@dataclass(frozen=True)
class Part:
    """What a rank holds of the model.

    Attributes:
        names: every parameter of the whole model.
        held: what this rank holds of each tensor it has, by name.
        stages: names of the trained parameters of each virtual stage here, last ones first, without those of ``late``.
        late: trained parameters whose gradients other ranks of the replica have a share of, so that they are summed at the end.
        tied: those that the first and the last stage both hold.
        partial: those of which each rank of the tensor axis has a part of the gradient.
        counted: parameters and buffers that this rank answers for among the ranks of its replica.
        cut: number of the first block of each virtual stage, and the number of blocks.
    """

    names: Sequence[str]
    held: Mapping[str, Held]
    stages: Mapping[int, Sequence[str]]
    late: Sequence[str]
    tied: Sequence[str]
    partial: Sequence[str]
    counted: frozenset[str]
    cut: Sequence[int]


class SplitEngine:
    """One rank of a mesh of pipeline x data x tensor ranks."""

    def __init__(
        self,
        model: Model,
        part: Part,
        pipeline: Pipeline,
        update: Update,
        axes: Axes,
        layout: Layout,
        world: World,
        seed: int,
        clip_norm: float | None,
    ) -> None:
        self.model = model
        self._part, self._pipeline, self._update, self._axes = part, pipeline, update, axes
        self._layout, self._world, self._seed, self._clip_norm = layout, world, seed, clip_norm
        self._last = len(part.cut) - 2
        self._parameters = dict(model.named_parameters())
        self._trained = {name for name, parameter in self._parameters.items() if parameter.requires_grad}
        mesh = layout.mesh
        self._tells = mesh.pipeline_rank(world.rank) == mesh.pipeline - 1 and mesh.tensor_rank(world.rank) == 0
        shape = model.state_shape()
        self._data_rank = mesh.data_rank(world.rank)
        self._streams = None if shape is None else Streams(shape, layout.batch, self._data_rank, world.device)
        self._step, self._began = 0, 0.0
        self._batches: Sequence[Batch] = ()
        self._none = torch.zeros((), device=world.device)

    # --- a step ----------------------------------------------------------------------------------------------------------

    def step(self, number: int, batches: Sequence[Batch], weight: Weigh, rate: float) -> StepReport:
        """One update; see ``Engine.step``."""
        started = time.perf_counter()
        weight.ask()
        scale = torch.tensor(1.0 / weight(), device=self._world.device)  # before any message: who ends here leaves nobody waiting
        if not self.model.training:
            self.model.train()
        self._began = time.perf_counter()
        self._step, self._batches = number, [on_device(batch, self._world.device) for batch in batches]
        loss_sum = self._pipeline.step(self._batches, self._forward, lambda: scale, self._done)
        computed = time.perf_counter()
        self._sum()
        summed = time.perf_counter()
        length = self._norm()
        if not math.isfinite(length):
            drop(self._parameters.values())
            raise diverged(length, UNCHANGED)
        if self._clip_norm is not None:
            clip([gradient for _, gradient in self._update.gradients()], length, self._clip_norm)
        self._update.step(rate)
        if self._streams:
            self._hand_on(self._streams)
        self._batches = ()
        waited = self._pipeline.waited
        return StepReport(
            loss_sum if self._tells and loss_sum is not None else self._none,
            lambda: length,
            computed - started - waited,
            waited + summed - computed,
            time.perf_counter() - summed,
        )

    def _forward(self, stage: int, x: Tensor | None, micro: int) -> Tensor:
        """A virtual stage's output for a micro-batch; of the last one, the summed loss."""
        batch = self._batches[micro]
        self._seed_dropout(stage, micro)
        with autocast(self._world.device, self._layout.precision):
            output = self._through(stage, x, batch if self._streams is None else {**batch, "state": self._streams.state(micro)})
            if stage < self._last:
                return output  # type: ignore[no-any-return]  # what the last one puts out is the model's own
            total, _ = self.model.loss(output, batch)
        if self._streams:
            self._streams.keep(micro, self.model.state_of(output))
        return total

    def _through(self, stage: int, x: Tensor | None, batch: Batch) -> Any:
        """A virtual stage's output; of the last one, the model's."""
        if not self._last:
            return self.model(batch)
        if x is None:
            x = self.model.embed(batch)
        x = self.model.through(x, batch, range(*self._part.cut[stage : stage + 2]))
        return x if stage < self._last else self.model.finish(x, batch)

    def _seed_dropout(self, stage: int, micro: int) -> None:
        """Random numbers depend on the seed, the step, the data rank, the virtual stage and the micro-batch: not on the schedule."""
        key = (self._seed, self._step, self._data_rank, stage, micro)
        seed = 0
        for number, factor in zip(key, (1_000_003, 7_919, 1, 104_729, 15_485_863), strict=True):
            seed += number * factor
        seed_random(seed, self._world.device)

    def _done(self, stage: int) -> None:
        """The last backward of a virtual stage is done."""
        self._update.start(self._part.stages[stage])

    def _sum(self) -> None:
        """Complete every gradient: over the stages that hold one parameter, over the tensor axis, over the data axis."""
        with torch.no_grad():
            ends = self._ends()
            if ends is not None:
                add_up(ends, [self._parameters[name] for name in self._part.tied], "ring")
            if self._axes.tensor is not None:
                add_up(self._axes.tensor, [self._parameters[name] for name in self._part.partial], "backend")
            self._update.start(self._part.late)
            self._update.finish()

    def _norm(self) -> float:
        """Of the whole gradient, each element of it counted by one rank."""
        mine = [gradient for name, gradient in self._update.gradients() if name in self._part.counted]
        length = norm(mine) if mine else 0.0
        if self._world.size == 1:
            return length
        mesh, told = self._layout.mesh, self._world.gather([length])[:, 0].tolist()
        return math.hypot(*(told[rank] for rank in range(mesh.size) if self._layout.zero_stage or mesh.data_rank(rank) == self._data_rank))

    def _ends(self) -> Links | None:
        """The first and the last stage, of which this rank is one; None: it is neither, or both."""
        rising = self._axes.rising
        return None if rising is None else rising.part([0, rising.size - 1])

    def _hand_on(self, streams: Streams) -> None:
        """Streams end in the last stage, and the first goes on from there."""
        ends = self._ends()
        if ends is None:
            return
        for micro in range(self._layout.batch.accumulation):
            state = streams.state(micro).float().contiguous()
            (ends.send if ends.rank else ends.receive)(state, 1 - ends.rank).wait()
            streams.keep(micro, state)

    # --- without gradients -----------------------------------------------------------------------------------------------

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor, Guess]:
        """(summed loss, weight, what was guessed) of a held-out batch that all ranks of a replica have; all but one tell nothing."""
        batch = on_device(batch, self._world.device)
        with self._looking():
            output = self._pipeline.forward_only(batch, lambda stage, x, _: self._through(stage, x, batch))
            if self._last not in self._part.stages:
                return self._nothing()
            loss, weight = self.model.loss(output, batch)
            guess = self.model.guess(output, batch)
        return (loss, weight, guess) if self._tells else self._nothing()

    def forward(self, batch: Batch, cache: KeyValueCache | None = None) -> Tensor:
        """The model's scores for a batch that all ranks of a replica have, on all of them; see ``Engine.forward``.

        A row of stages keeps nothing in the cache.
        """
        batch = on_device(batch, self._world.device)
        with self._looking():
            if self._axes.words is None:
                scores: Tensor = self.model.scores_of(self.model(batch)) if cache is None else self.model(batch, cache)
                return scores
            output = self._pipeline.forward_only(batch, lambda stage, x, _: self._through(stage, x, batch), kind="writing")
            told = None if self._last not in self._part.stages else self.model.scores_of(output)
            return tell(self._axes.words, told).to(self._world.device)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        if self.model.training:
            self.model.eval()
        with torch.no_grad(), autocast(self._world.device, self._layout.precision):
            yield
        self._world.sent.take()  # no step's

    def _nothing(self) -> tuple[Tensor, Tensor, Guess]:
        none = torch.empty(0, dtype=torch.int64, device=self._world.device)
        return self._none, self._none, Guess(none, none)

    # --- checkpoints -----------------------------------------------------------------------------------------------------

    def state(self) -> Iterator[Piece]:
        """This rank's boxes of weights, buffers and optimizer state; what several ranks hold is dealt to them: each writes a share."""
        dealt = [0] * self._layout.mesh.data
        for name, held, tensor, span, parameter in self._named_state():
            if parameter not in self._part.counted:
                continue
            if span is None:
                writer = dealt.index(min(dealt))
                dealt[writer] += tensor.nbytes
                if writer != self._data_rank:
                    continue
            yield from pieces(name, held, tensor, span)
        if self._streams and self._layout.speaks(self._world.rank):
            yield from self._streams.pieces()

    def restore(self, step: Committed) -> None:
        """Take every tensor of ``state`` from a verified checkpoint; a rank reads what it holds."""
        self._update.materialise()
        self.load_weights(step)
        with torch.no_grad():
            for name, held, tensor, span, parameter in self._named_state():
                if name != f"model/{parameter}":
                    fill(step, name, held, tensor, span)
        if self._streams:
            self._streams.restore(step)

    def load_weights(self, step: Committed) -> None:
        """Take weights and buffers alone from a verified checkpoint; see ``Engine.load_weights``."""
        with torch.no_grad():
            for name, tensor in self.model.state_dict(keep_vars=False).items():
                held = self._part.held[name]
                saved = step.tensors.get(f"model/{name}", (held.shape, None))[0]
                if tuple(saved) != held.shape:
                    what = f"step {step.step}: {name} has another shape than the model"
                    raise ConfigError(Problem("run", what, got=str(list(saved)), allowed=str(list(held.shape))))
                fill(step, f"model/{name}", held, tensor, None)

    def _named_state(self) -> Iterator[tuple[str, Held, Tensor, Span | None, str]]:
        """Every tensor this rank could save: canonical name, what it holds of it, the tensor, which elements, and whose it is."""
        for kept in self._update.kept():
            name = f"model/{kept.parameter}" if kept.key is None else f"optimizer/{kept.key}/{kept.parameter}"
            yield name, self._part.held[kept.parameter], kept.tensor, kept.span, kept.parameter
        for name, tensor in self.model.state_dict(keep_vars=False).items():
            if name not in self._trained:
                yield f"model/{name}", self._part.held[name], tensor, None, name

    def times(self) -> tuple[Tensor, float]:
        """See ``Engine.times``."""
        return self._pipeline.times, self._began

    def fingerprint(self) -> tuple[list[str], Tensor]:
        """See ``Engine.fingerprint``."""
        bits = {name: bits_of(p).cpu() for name, p in self._parameters.items()}
        nothing = torch.zeros((), dtype=torch.int64)
        return list(self._part.names), torch.stack([bits.get(name, nothing) for name in self._part.names])

    def close(self) -> None:
        """Wait until others have what this rank sent last."""
        self._pipeline.settle()
