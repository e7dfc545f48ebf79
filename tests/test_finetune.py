"""Fine-tuning: frozen weights stay as they are and cost nothing, and rates fall with the distance from the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import in_group, losses, on_ranks, read, rows, small, train
from resume_helpers import command, stop_at, weights

import dml_runner
from dml_runner import models, optim
from dml_runner.checkpoint.read import Committed, open_step
from dml_runner.comm.world import World
from dml_runner.config import compose
from dml_runner.engines.assemble import assemble
from dml_runner.engines.base import Weighed
from dml_runner.facts import DataFacts
from dml_runner.generation import read_generation_file
from dml_runner.job import read_job_file
from dml_runner.models.base import Model, distances, initialise

DATA = DataFacts("tokens", 64, 8, 16, 16, 50, 16, {}, "")
FROZEN = ("model.frozen=1", "optimizer.lr=1e-2")
"""The embeddings and the first of two blocks stay."""


def model_of(*words: str) -> Model:
    """A small model with its starting weights."""
    model = models.build(compose(["model=gpt_tiny", *words]).run.model, DATA)
    initialise(model, 0)
    return model


def split(model: Model) -> tuple[list[str], list[str]]:
    """Names of the parameters that stay, and of those that are trained."""
    named = list(model.named_parameters())
    return [name for name, p in named if not p.requires_grad], [name for name, p in named if p.requires_grad]


STAYING, TRAINED = split(model_of("model.frozen=1"))


def step_of(folder: Path, number: int) -> Committed:
    """A saved step of a run."""
    return open_step(folder / "checkpoints" / f"step-{number:08d}")


# --- what stays ----------------------------------------------------------------------------------------------------------


def test_the_stem_and_the_leading_blocks_stay() -> None:
    assert {name.split(".")[0] for name in STAYING} == {"tokens", "positions", "blocks"}
    assert {name.split(".")[1] for name in STAYING if name.startswith("blocks")} == {"0"}
    assert {name.split(".")[1] for name in TRAINED if name.startswith("blocks")} == {"1"}
    assert split(model_of("model.frozen=0"))[0] == ["tokens.weight", "positions.weight"]
    assert split(model_of("model.frozen=2"))[1] == ["norm.weight", "norm.bias"]
    assert split(model_of())[0] == []


def test_more_blocks_than_there_are_cannot_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "model.frozen: more blocks than the model has; got 3; allowed 0 to 2"
    assert command(capsys, *small(tmp_path, "model.frozen=3")) == (2, [line])


@pytest.mark.parametrize("ranks", [1, 2])
def test_frozen_weights_are_equal_bit_for_bit_after_a_run(tmp_path: Path, ranks: int) -> None:
    """And the optimizer remembers nothing of them."""
    folder = train(tmp_path, *FROZEN, *on_ranks(ranks), "checkpoint.every=1", "checkpoint.keep=99", "train.log_every=1")
    first, last = step_of(folder, 1), step_of(folder, 6)
    assert all(torch.equal(first.read(f"model/{name}"), last.read(f"model/{name}")) for name in STAYING)
    assert not any(torch.equal(first.read(f"model/{name}"), last.read(f"model/{name}")) for name in TRAINED)
    remembered = {name.split("/", 2)[2] for name in last.tensors if name.startswith("optimizer/")}
    assert remembered == set(TRAINED)
    assert losses(folder)[-1] < losses(folder)[0]


def starting_weights(world: World, folder: str) -> dict[str, torch.Tensor]:
    """The weights that a rank of the run begins with."""
    run = Path(folder)
    job = read_job_file(run / "job.yaml")
    engine: Any = assemble(job.run, job.data, read_generation_file(run / "generations" / "0.json").layout, world)
    return {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}


def test_frozen_weights_are_those_the_run_began_with(tmp_path: Path) -> None:
    folder = train(tmp_path, *FROZEN)
    (began,) = in_group(1, starting_weights, tmp_path, str(folder))
    assert all(torch.equal(began[name], step_of(folder, 6).read(f"model/{name}")) for name in STAYING)


def held_gradients(world: World, folder: str) -> list[str]:
    """Parameters that hold a gradient, or memory of the optimizer's, when a step is about to update."""
    run = Path(folder)
    job = read_job_file(run / "job.yaml")
    engine: Any = assemble(job.run, job.data, read_generation_file(run / "generations" / "0.json").layout, world)
    seen: list[str] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.extend(name for name, parameter in engine.model.named_parameters() if parameter.grad is not None)

    engine.optimizer.register_step_pre_hook(look)
    ids = torch.arange(16)[None].expand(4, 16)
    engine.step(1, [{"inputs": ids, "targets": ids}], Weighed(64.0 * world.size), 1e-3)
    remembered = [name for name, parameter in engine.model.named_parameters() if parameter in engine.optimizer.state]
    assert remembered == seen
    return seen


@pytest.mark.parametrize("ranks", [1, 2])
def test_frozen_weights_hold_no_gradient(tmp_path: Path, ranks: int) -> None:
    folder = train(tmp_path, *FROZEN, *on_ranks(ranks), "train.steps=1")
    assert in_group(ranks, held_gradients, tmp_path, str(folder)) == [TRAINED] * ranks


@pytest.mark.parametrize(("ranks", "accumulation"), [(2, 1), (2, 3), (3, 1)])
def test_no_bytes_are_sent_for_frozen_weights(tmp_path: Path, ranks: int, accumulation: int) -> None:
    folder = train(tmp_path, *FROZEN, *on_ranks(ranks), "train.micro_batch=1", f"train.accumulation={accumulation}", "train.steps=3")
    plan = read(folder, "generations/0.json")["plan"]
    last = step_of(folder, 3)
    gradients = 4 * sum(last.read(f"model/{name}").numel() for name in TRAINED)
    assert plan["memory"] == {"weights": 4 * plan["parameters"], "gradients": gradients, "optimizer": 2 * gradients}
    assert gradients < 0.5 * plan["memory"]["weights"]
    for row in rows(folder):
        assert row["comm_bytes"] == pytest.approx(2 * (ranks - 1) / ranks * gradients, abs=64)


# --- resuming ------------------------------------------------------------------------------------------------------------

LONG = (*FROZEN, "train.steps=40", "checkpoint.every=4", "train.precision=fp32", "train.global_batch=8")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_with_frozen_weights_resumes_exactly(tmp_path: Path, ranks: int) -> None:
    through = train(tmp_path, *LONG, *on_ranks(ranks), run="through")
    words, folder = small(tmp_path, *LONG, *on_ranks(ranks)), tmp_path / "run"
    stop_at(folder, 10, words)
    assert dml_runner.train(words).status == "completed"
    assert weights(folder) == weights(through)
    assert losses(folder) == losses(through)


def test_it_resumes_on_another_number_of_ranks(tmp_path: Path) -> None:
    through = train(tmp_path, *LONG, run="through")
    words, folder = small(tmp_path, *LONG), tmp_path / "run"
    stop_at(folder, 10, [*words, *on_ranks(2)])
    assert dml_runner.train([*words, *on_ranks(1)]).status == "completed"
    assert losses(folder) == pytest.approx(losses(through), abs=1e-5)
    assert all(torch.equal(step_of(folder, 40).read(f"model/{name}"), step_of(through, 40).read(f"model/{name}")) for name in STAYING)


def test_with_other_blocks_frozen_it_is_another_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, folder = small(tmp_path, *LONG), tmp_path / "run"
    stop_at(folder, 10, words)
    differs = "model.frozen: differs from the run's; got {}; allowed 1"
    head = f"checkpoint.resume: {folder} is another job; the first differences follow; to start from it: checkpoint.resume={folder}"
    assert command(capsys, *words, "model.frozen=2") == (2, [head, differs.format(2)])
    code, said = command(capsys, *words, "model.frozen=null", f"checkpoint.resume={folder}", f"run={tmp_path / 'fork'}")
    assert (code, said[1:]) == (2, [differs.format(None)])


# --- rates by layer ------------------------------------------------------------------------------------------------------


def test_the_rate_falls_with_the_distance_from_the_head() -> None:
    """1 behind the last block, a share of it in each block before, once more in the embeddings; vectors are not decayed."""
    model = model_of("model.layers=3")
    words = compose(["optimizer=adamw", "optimizer.layer_decay=0.5", "optimizer.weight_decay=0.1"]).run.optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group for group in optim.build(words, distances(model)).param_groups for p in group["params"]}
    assert set(found) == set(names.values())
    for name, group in found.items():
        parts = name.split(".")
        distance = 3 - int(parts[1]) if parts[0] == "blocks" else 0 if parts[0] == "norm" else 4
        assert group["share"] == 0.5**distance
        assert group["weight_decay"] == (0.1 if dict(model.named_parameters())[name].dim() >= 2 else 0.0)


def changes(world: World, folder: str) -> list[tuple[str, float]]:
    """Of each parameter, by how much of its gradient a step changed it."""
    run = Path(folder)
    job = read_job_file(run / "job.yaml")
    engine: Any = assemble(job.run, job.data, read_generation_file(run / "generations" / "0.json").layout, world)
    parameters = dict(engine.model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    gradients: dict[str, torch.Tensor] = {}

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients.update({name: p.grad.clone() for name, p in parameters.items() if p.grad is not None})

    engine.optimizer.register_step_pre_hook(look)
    ids = torch.arange(16)[None].expand(4, 16)
    engine.step(1, [{"inputs": ids, "targets": ids.roll(-1, dims=1)}], Weighed(64.0 * world.size), 1.0)
    moved = {name: (before[name] - parameters[name].detach()) for name in gradients}
    return [(name, float((moved[name] * gradients[name]).sum() / gradients[name].square().sum())) for name in gradients]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_changes_a_block_by_its_share_of_the_gradient(tmp_path: Path, ranks: int) -> None:
    sgd = ("optimizer=sgd", "optimizer.lr=1", "optimizer.layer_decay=0.5", "train.clip_norm=null", "train.precision=fp32")
    folder = train(tmp_path, *sgd, "model.frozen=0", "train.steps=1", *on_ranks(ranks))
    shares = {"blocks.1": 0.5, "blocks.0": 0.25, "norm.wei": 1.0, "norm.bia": 1.0}
    for found in in_group(ranks, changes, tmp_path, str(folder)):
        assert {name[:8] for name, _ in found} == set(shares)
        for name, share in found:
            assert share == pytest.approx(shares[name[:8]], rel=1e-3), name
