"""A model in stages on several ranks is the whole model: its losses, its gradients, and nothing but boundary tensors on the way."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import _member, in_group
from test_families import BERT, CLASSES, CLASSIFIER, DATA, ELMO, GPT, LLAMA, RNN
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dml_runner import models
from dml_runner.comm.counter import Sent
from dml_runner.comm.links import Links, PeerLost
from dml_runner.comm.world import World
from dml_runner.config import compose
from dml_runner.facts import DataFacts
from dml_runner.launch.request import main_left_out, preload
from dml_runner.layout import Stages
from dml_runner.models.base import Model, initialise
from dml_runner.parallel.pipeline.executor import Pipeline, measured
from dml_runner.parallel.stages import keep, users
from dml_runner.schedules import build
from dml_runner.schedules.in_flight import in_flight, peak

IMAGES = DataFacts("images", 8, 8, None, 1, 0, 0, {}, "", 10, image=(1, 8, 8))
FOUR = ("model.layers=4",)
FAMILIES = {
    "gpt": (*GPT, *FOUR),
    "llama": (*GPT, *LLAMA, *FOUR),
    "bert": (*BERT, *FOUR),
    "elmo": (*ELMO, *FOUR),
    "rnn": (*RNN, *FOUR),
    "gru": (*RNN, *FOUR, "model.cell=gru", "model.tied=false"),
    "resnet": ("model=resnet", "model.norm=group", "model.depths=[2,2]", "model.width=8", "model.groups=4", "data=digits"),
    "gpt classifier": (*GPT, *FOUR, *CLASSIFIER),
    "bert classifier": (*BERT, *FOUR, *CLASSIFIER),
    "elmo classifier": (*ELMO, *FOUR, *CLASSIFIER),
    "frozen gpt": (*GPT, *FOUR, "model.frozen=2", "model.tied=false"),
}
SCHEDULES = {"naive": 1, "gpipe": 1, "1f1b": 1, "interleaved_1f1b": 2, "zero_bubble": 1}
"""Each with its chunks, where it may have several."""
STEPS, MICROBATCHES, RATE = 3, 4, 0.1


# --- models and what they read -------------------------------------------------------------------------------------------


def made(family: str) -> Model:
    """A small model of four blocks, without memory."""
    with torch.device("meta"):
        return models.build(compose(list(FAMILIES[family])).run.model, IMAGES if family == "resnet" else DATA)


def filled(model: Model) -> Model:
    """Its starting weights, in fp64."""
    model.to_empty(device="cpu")
    initialise(model, 1)
    return model.double()


def batch_of(model: Model, samples: int, length: int, seed: int) -> dict[str, Tensor]:
    """A batch of texts of ``length`` tokens, the first sample shorter where the model heeds that, or of images."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, tensor in model.example(samples).items():
        shape = (samples, length, *tensor.shape[2:]) if tensor.dim() > 1 and name != "images" else tensor.shape
        if name == "images":
            found[name] = torch.rand(shape, generator=generator, dtype=torch.float64)
        else:
            few = CLASSES if tensor.dim() == 1 else DATA.vocabulary
            found[name] = torch.randint(0, few, shape, generator=generator)
    if type(model).__name__ in ("Bert", "Elmo"):
        found["mask"] = torch.ones(samples, length, dtype=torch.bool)
        found["mask"][0, length - 1 :] = False
    if model.state_shape() is not None:
        found["state"] = torch.rand(samples, *(model.state_shape() or ()), generator=generator, dtype=torch.float64)
        found["first"] = torch.arange(samples) % 2 == 0
    return found


def batches_of(model: Model, step: int, microbatches: int = MICROBATCHES) -> list[dict[str, Tensor]]:
    """A step's micro-batches; their lengths change, and come back."""
    return [batch_of(model, 2, 4 + (step + micro) % 3, 100 * step + micro) for micro in range(microbatches)]


@dataclass(frozen=True)
class Case:
    """One job of some ranks."""

    family: str
    schedule: str
    ranks: int
    chunks: int = 1
    boundaries: tuple[int, ...] | None = None
    microbatches: int = MICROBATCHES
    recomputes: bool = False

    @property
    def stages(self) -> Stages:
        """How the model is cut: evenly, unless told."""
        count = self.ranks * self.chunks
        return Stages(self.schedule, self.chunks, self.boundaries or tuple(4 * stage // count for stage in range(1, count)))  # type: ignore[arg-type]

    def blocks(self) -> list[range]:
        """Of each virtual stage."""
        edges = [0, *self.stages.boundaries, 4]
        return [range(start, stop) for start, stop in pairwise(edges)]


@dataclass
class Came:
    """What a rank came to."""

    losses: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    sent: int = 0
    headers: list[int] = field(default_factory=list)
    done: list[list[int]] = field(default_factory=list)
    most: dict[int, int] = field(default_factory=dict)
    output: Tensor | None = None


def update(model: nn.Module) -> None:
    """One step of gradient descent."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=RATE)
                parameter.grad = None


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """By name, copied."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def logits(output: Any) -> Tensor:
    """The first tensor of a model's output."""
    return output if isinstance(output, Tensor) else output[0]


def whole(family: str, microbatches: int = MICROBATCHES) -> Came:
    """The same on one rank, without stages."""
    model, came = filled(made(family)), Came()
    for step in range(STEPS):
        losses = []
        for batch in batches_of(model, step, microbatches):
            total, _ = model.loss(model(batch), batch)
            total.backward(torch.tensor(1 / 16, dtype=torch.float64))
            losses.append(total.detach())
        came.losses.append(float(sum(losses)))
        came.gradients = came.gradients or gradients(model)
        update(model)
    came.weights = dict(model.state_dict())
    with torch.no_grad():
        came.output = logits(model.eval()(batch_of(model, 3, 5, 7)))
    return came


# --- ranks ---------------------------------------------------------------------------------------------------------------


def joined(world: World, case: Case, sent: Sent, headers: Sent) -> Pipeline:
    """This rank's pipeline; its links carry tags of their own."""
    group = torch.distributed.group.WORLD
    rising, falling, control = (Links(group, count, tag=tag) for tag, count in ((1, sent), (2, sent), (3, headers)))
    schedule = build(case.stages, case.ranks, case.microbatches)
    return Pipeline(schedule, world.rank, rising, falling, control, world.device, recomputes=case.recomputes, record=True)


def computed(model: Model, case: Case, batches: list[dict[str, Tensor]], x: Tensor | None, stage: int, micro: int) -> Any:
    """What a stage puts out; the last one its output."""
    batch, blocks = batches[micro], case.blocks()[stage]
    x = model.embed(batch) if x is None else x
    x = checkpoint(model.through, x, batch, blocks, use_reentrant=False) if case.recomputes else model.through(x, batch, blocks)
    return model.finish(x, batch) if stage == len(case.blocks()) - 1 else x


def trained(world: World, case: Case) -> Came:
    """Three steps on this rank."""
    model, last, came = made(case.family), len(case.blocks()) - 1, Came()
    mine = [blocks for stage, blocks in enumerate(case.blocks()) if stage % case.ranks == world.rank]
    shapes = {name: model.get_parameter(name).shape for name in sorted(users(model).shared)}
    keep(model, users(model), mine, world.rank == 0, world.rank == case.ranks - 1)
    filled(model)
    sent, headers = Sent(), Sent()
    pipeline = joined(world, case, sent, headers)
    for step in range(STEPS):
        batches = batches_of(model, step, case.microbatches)
        done: list[int] = []

        def forward(stage: int, x: Tensor | None, micro: int, batches: list[dict[str, Tensor]] = batches) -> Tensor:
            out = computed(model, case, batches, x, stage, micro)
            came.most |= {at: max(came.most.get(at, 0), count + (at == stage)) for at, count in pipeline.in_flight.items()}
            return model.loss(out, batches[micro])[0] if stage == last else out

        loss = pipeline.step(batches, forward, lambda: torch.tensor(1 / 16, dtype=torch.float64), done.append)
        came.losses += [] if loss is None else [float(loss)]
        came.done.append(done)
        came.headers.append(headers.take())
        for name, shape in shapes.items():
            parameter = dict(model.named_parameters()).get(name)
            both = torch.zeros(shape, dtype=torch.float64) if parameter is None else parameter.grad
            torch.distributed.all_reduce(both)
        came.gradients = came.gradients or gradients(model)
        update(model)
    came.weights, came.sent = dict(model.state_dict()), sent.take()
    model.eval()
    with torch.no_grad():
        once = [batch_of(model, 3, 5, 7)]
        for _ in range(6):
            came.output = pipeline.forward_only(once[0], lambda stage, x, micro: computed(model, case, once, x, stage, micro))
    pipeline.settle()
    came.output = None if came.output is None else logits(came.output)
    return came


def all_trained(world: World, cases: list[Case]) -> list[Came]:
    """The cases one after the other; groups that were opened for one are used for all."""
    return [trained(world, case) for case in cases]


EVERY = [name for name in FAMILIES if "frozen" not in name]
CASES = [
    Case("gpt", "interleaved_1f1b", 1, chunks=2),
    *(Case(family, schedule, 2) for family in EVERY for schedule in ("1f1b", "zero_bubble")),
    *(Case("gpt", schedule, 2, chunks) for schedule, chunks in SCHEDULES.items() if schedule not in ("1f1b", "zero_bubble")),
    *(Case(family, "interleaved_1f1b", 2, chunks=2) for family in ("bert", "elmo", "rnn", "resnet")),
    *(Case("frozen gpt", schedule, 2, boundaries=(at,)) for schedule in ("1f1b", "zero_bubble") for at in (1, 2, 3)),
    *(Case(family, schedule, 2, recomputes=True) for family in ("gpt", "rnn") for schedule in ("1f1b", "zero_bubble")),
    *(Case("elmo", schedule, 2, boundaries=(3,), microbatches=count) for schedule in ("gpipe", "1f1b") for count in (1, 7)),
    *(Case(family, schedule, 3) for family in ("gpt", "rnn", "resnet") for schedule in ("naive", "gpipe", "1f1b", "zero_bubble")),
    *(Case("bert", schedule, 4) for schedule in ("naive", "gpipe", "1f1b", "zero_bubble")),
    Case("gpt", "1f1b", 4, microbatches=9),
    Case("gpt", "zero_bubble", 2, chunks=2),
    Case("elmo", "zero_bubble", 2, chunks=2, microbatches=6),
]


@pytest.fixture(scope="module")
def came(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, list[Came]]:
    """For each case what every rank came to."""
    found: dict[Case, list[Came]] = {}
    for ranks in sorted({case.ranks for case in CASES}):
        cases = [case for case in CASES if case.ranks == ranks]
        rows = in_group(ranks, all_trained, tmp_path_factory.mktemp("ranks"), cases)
        found |= dict(zip(cases, map(list, zip(*rows, strict=True)), strict=True))
    return found


@pytest.fixture(scope="module")
def wholes() -> Callable[[str, int], Came]:
    """What each family comes to on one rank."""
    return cache(whole)


every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
def test_stages_are_the_whole_model(case: Case, came: dict[Case, list[Came]], wholes: Callable[[str, int], Came]) -> None:
    ranks, one = came[case], wholes(case.family, case.microbatches)
    assert ranks[-1].losses == pytest.approx(one.losses, rel=1e-12)
    assert not any(rank.losses for rank in ranks[:-1])
    for theirs, ours in (("gradients", one.gradients), ("weights", one.weights)):
        named = [getattr(rank, theirs) for rank in ranks]
        assert set().union(*named) == set(ours)
        for each in named:
            for name, tensor in each.items():
                torch.testing.assert_close(tensor, ours[name], rtol=1e-10, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
    assert [rank.output is None for rank in ranks] == [True] * (case.ranks - 1) + [False]
    torch.testing.assert_close(ranks[-1].output, one.output, rtol=1e-10, atol=1e-12)


@every_case
def test_only_boundary_tensors_travel(case: Case, came: dict[Case, list[Came]]) -> None:
    model = filled(made(case.family))
    forward, back = [0] * case.ranks, [0] * case.ranks
    forms: set[Any] = set()
    for step in range(STEPS):
        for batch in batches_of(model, step, case.microbatches):
            x = model.embed(batch)
            for stage, blocks in enumerate(case.blocks()[:-1]):
                x = model.through(x, batch, blocks)
                if case.ranks > 1:
                    forward[stage % case.ranks] += x.nbytes
                    back[(stage + 1) % case.ranks] += x.nbytes * x.requires_grad
                    forms.add((stage, tuple(x.shape)))
    assert [rank.sent for rank in came[case]] == [there + again for there, again in zip(forward, back, strict=True)]
    assert sum(sum(rank.headers) for rank in came[case]) == len(forms) * 11 * 8


@every_case
def test_a_rank_keeps_what_the_schedule_says(case: Case, came: dict[Case, list[Came]]) -> None:
    schedule = build(case.stages, case.ranks, case.microbatches)
    for rank, law in zip(came[case], in_flight(schedule), strict=True):
        assert all(rank.most[stage] <= most for stage, most in law.items())
        assert case.recomputes or "frozen" in case.family or rank.most == law
        assert [sorted(stages) for stages in rank.done] == [sorted(law)] * STEPS


# --- memory, order and the end of a neighbour ----------------------------------------------------------------------------


def kept_by(world: World, schedule: str, chunks: int, microbatches: int) -> tuple[int, Any]:
    """The most tensors from inside stages that were alive at a time, and when the actions ran."""
    case = Case("gpt", schedule, world.size, chunks, microbatches=microbatches)
    pipeline = joined(world, case, Sent(), Sent())
    weight = torch.ones(6, 6, requires_grad=True)
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def forward(stage: int, x: Tensor | None, micro: int) -> Tensor:
        nonlocal most
        inside = torch.ones(6, 6) if x is None else x * 2
        alive.append(weakref.ref(inside))
        out = inside @ weight  # whose gradient needs what is inside
        del inside
        gc.collect()
        most = max(most, sum(each() is not None for each in alive))
        return out.sum() if stage == world.size * chunks - 1 else out

    batches = [{"inputs": torch.zeros(1)}] * microbatches
    for _ in range(2):
        pipeline.step(batches, forward, lambda: torch.tensor(1.0), lambda stage: None)
    return most, pipeline.times.tolist()


@pytest.mark.parametrize(("schedule", "chunks"), [*SCHEDULES.items(), ("zero_bubble", 2)])
def test_activations_are_freed_with_their_backward(tmp_path: Path, schedule: str, chunks: int) -> None:
    plan = build(Stages(schedule, chunks, ()), 2, 6)  # type: ignore[arg-type]
    came = in_group(2, kept_by, tmp_path, schedule, chunks, 6)
    assert [most for most, _ in came] == list(map(int, peak(plan, [1] * plan.stages)))
    line = measured(plan, [torch.tensor(times, dtype=torch.float64) for _, times in came])
    assert all(0 <= idle < 1 for idle in line.idle)
    for rank, actions in zip(line.ranks, plan.ranks, strict=True):
        assert tuple(timed.action for timed in rank) == actions
        assert all(before.end <= after.start for before, after in pairwise(rank))


def left_alone(world: World, dies: int, told: str) -> None:
    """Rank ``dies`` ends in the middle of a step; the others write down what they felt, and after how long."""
    case = Case("gpt", "1f1b", world.size, microbatches=8)
    pipeline = joined(world, case, Sent(), Sent())

    def forward(stage: int, x: Tensor | None, micro: int) -> Tensor:
        if world.rank == dies and micro == 3:
            os._exit(9)
        out = torch.ones(4, requires_grad=True) * 2 if x is None else x * 2
        return out.sum() if stage == world.size - 1 else out

    started = time.monotonic()
    with pytest.raises(PeerLost) as lost:
        pipeline.step([{"inputs": torch.zeros(1)}] * 8, forward, lambda: torch.tensor(1.0), lambda stage: None)
    Path(told, str(world.rank)).write_text(f"{time.monotonic() - started} {lost.value}")
    os._exit(0)  # as a rank does that lost another


@pytest.mark.parametrize("dies", [0, 1, 2])
def test_the_end_of_a_rank_is_felt_at_once(tmp_path: Path, dies: int) -> None:
    told = tmp_path / "told"
    told.mkdir()
    preload()
    store, context = str(tmp_path / "store"), multiprocessing.get_context("forkserver")
    with main_left_out():
        ranks = [context.Process(target=_member, args=(left_alone, rank, 3, store, (dies, str(told)))) for rank in range(3)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(30)
    assert [process.exitcode for process in ranks] == [9 * (rank == dies) for rank in range(3)]
    heard = {path.name: path.read_text() for path in told.iterdir()}
    assert set(heard) == {str(rank) for rank in range(3) if rank != dies}
    assert all(float(text.split()[0]) < 10 and "no more word" in text for text in heard.values())
