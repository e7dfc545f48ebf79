"""Whole runs of a model that is divided: they start from other weights, stop, fail, go on, are evaluated and exported as any other."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from faults import last_step, meanwhile, strike, toy
from faults import train as train_words
from helpers import dml, evaluations, in_group, losses, marked_environment, read, small, started, wait_for
from rank_pool import Job, job
from safetensors.torch import load_file

import dml_runner
from dml_runner import cli
from dml_runner.bench.faults_evidence import evidence
from dml_runner.comm.world import World
from dml_runner.engines.assemble import assemble
from dml_runner.errors import CameApart
from dml_runner.loops.check import check_replicas

PIPELINE = ("strategy=pipeline", "hardware.devices_per_node=2")
PATIENT = "launcher.hang_floor_s=20"
"""On a busy machine the first evaluation, which imports metrics, takes longer than the two seconds of ``toy``."""
TENSOR = ("strategy=tensor", "hardware.devices_per_node=2")
STEPS = ("train.steps=6", "optimizer.lr=1e-3", "train.precision=fp32", "train.global_batch=8", "train.sample_tokens=20")
SPREAD = {"single": ("strategy=single",), "pipeline": PIPELINE, "tensor": (*TENSOR, "strategy.sequence_parallel=true")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same job, finished, in one process and on two ranks of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    for name, words in SPREAD.items():
        assert dml_runner.train(small(folder, *STEPS, *words, run=name)).status == "completed"
    return {name: folder / name for name in SPREAD}


# --- after training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pipeline", "tensor"])
def test_the_text_at_the_end_is_that_of_one_process(runs: dict[str, Path], name: str) -> None:
    texts = [read(runs[each], "summary.json")["sample"] for each in ("single", name)]
    assert texts[0] == texts[1] != ""
    assert losses(runs[name]) == pytest.approx(losses(runs["single"]), abs=1e-5)
    assert evaluations(runs[name])[-1] == pytest.approx(evaluations(runs["single"])[-1], abs=1e-5)


@pytest.mark.parametrize("name", ["pipeline", "tensor"])
def test_its_steps_are_evaluated_go_on_with_a_text_and_are_exported(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    def told(run: Path, *words: str) -> str:
        capsys.readouterr()
        assert cli.main(["eval", f"run={run}", *words]) == 0
        return capsys.readouterr().out

    def figures(run: Path, *words: str) -> list[float]:
        table = dict(line.split(maxsplit=1) for line in told(run, *words).splitlines())
        return [float(table[key].replace(",", "")) for key in ("loss", "accuracy", "samples")]

    alone = figures(runs["single"])
    assert figures(runs[name]) == pytest.approx(alone, abs=1e-4)
    assert figures(runs["single"], *SPREAD[name], "hardware=cpu") == pytest.approx(alone, abs=1e-4), "divided, of what one process saved"
    prompt = ("prompt=The ", "tokens=12", "temperature=0")
    assert told(runs[name], *prompt) == told(runs["single"], *prompt)
    for each in ("single", name):
        told(runs[each], "export=hf", f"to={tmp_path / each}")
    ours, theirs = (load_file(tmp_path / each / "model.safetensors") for each in (name, "single"))
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    apart = [key for key, value in ours.items() if not torch.allclose(value, theirs[key], atol=1e-4)]
    assert not [key for key in apart if "attn.c_attn.bias" not in key], "biases of keys have no gradient but rounding"


# --- other weights to start from ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pipeline", "tensor"])
def test_it_begins_with_the_weights_of_another_run(runs: dict[str, Path], tmp_path: Path, name: str) -> None:
    """A rate next to zero keeps the held-out loss of the run they are of."""
    other = {"pipeline": "tensor", "tensor": "pipeline"}[name]
    held = ("optimizer.lr=1e-30", "optimizer.weight_decay=0", "train.steps=1", "train.precision=fp32", f"model.pretrained={runs[other]}")
    assert dml_runner.train(small(tmp_path, *held, *SPREAD[name])).status == "completed"
    assert evaluations(tmp_path / "run")[-1]["eval_loss"] == pytest.approx(evaluations(runs[other])[-1]["eval_loss"], abs=1e-5)


# --- ranks that go wrong -----------------------------------------------------------------------------------------------------


def flipped_on(world: World, job: Job, faulty: int) -> str:
    """What the check of replicas says after one bit of the weights of a rank has flipped."""
    engine = assemble(job.run, job.facts, job.layout, world)
    if world.rank == faulty:
        weight = next(iter(engine.model.parameters()))  # type: ignore[attr-defined]
        weight.detach().view(torch.int32).view(-1)[0] ^= 1
    try:
        check_replicas(engine, world, job.layout.mesh, 7)
    except CameApart as error:
        return str(error)
    return "equal"


@pytest.mark.parametrize("faulty", [1, 3, 4])
def test_a_flipped_bit_of_a_replica_of_a_stage_is_named(tmp_path: Path, faulty: int) -> None:
    """Stages x replicas: ranks 0 and 1 hold the first stage. No rank 4: all are equal, though stages differ."""
    made = job(tmp_path, "strategy=pipeline", "strategy.stages=2", "hardware.devices_per_node=4", "train.global_batch=8")
    said = set(in_group(4, flipped_on, tmp_path, made, faulty))
    assert len(said) == 1
    line = said.pop()
    assert line == "equal" if faulty == 4 else line.startswith(f"rank {faulty}: its weights differ")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run of two stages that nobody disturbs leaves."""
    folder = tmp_path_factory.mktemp("alone")
    assert train_words(toy(folder, 2, *PIPELINE, PATIENT)) == 0
    return evidence(folder / "run")


@pytest.mark.slow
def test_sigterm_saves_a_row_of_stages_and_the_same_words_go_on(tmp_path: Path, alone: dict[str, str]) -> None:
    words, run = toy(tmp_path, 2, *PIPELINE, PATIENT), tmp_path / "run"
    environment, _ = marked_environment()
    with started("train", *words, env=environment) as process:
        wait_for(lambda: last_step(run) >= 30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert read(run, "summary.json")["status"] == "interrupted"
    assert os.readlink(run / "checkpoints" / "latest") == f"step-{last_step(run):08d}"
    done = dml("train", *words)
    assert done.returncode == 0, done.stderr
    assert evidence(run) == alone


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_stage_leaves_no_trace(tmp_path: Path, alone: dict[str, str], rank: int) -> None:
    run = tmp_path / "run"
    with meanwhile(strike(run, 50, rank, signal.SIGKILL)):
        assert train_words(toy(tmp_path, 2, *PIPELINE, PATIENT)) == 0
    assert evidence(run) == alone
    assert read(run, "summary.json")["restarts"] == 1


def test_the_start_of_a_run_tells_where_its_model_is_cut(runs: dict[str, Path]) -> None:
    layout = read(runs["pipeline"], "generations/0.json")["layout"]
    assert layout["mesh"] == {"pipeline": 2, "data": 1, "tensor": 1}
    assert layout["stages"]["boundaries"] == [1]
