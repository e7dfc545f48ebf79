"""The names of the contract: what a run leaves behind, what a plan prints, which code a command ends with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import dml, evaluations, on_ranks, read, rows, small, train

from dml_runner import cli
from dml_runner.errors import ConfigError

ROW = ["step", "loss", "lr", "grad_norm", "step_time_s", "data_wait_s", "forward_backward_s", "comm_wait_s", "update_s"]
ROW += ["comm_bytes", "samples_per_s", "tokens_per_s", "memory_bytes"]
PLAN = ["parameters", "head_parameters", "world_size", "fits", "memory_per_device_bytes", "memory", "layout", "warnings"]
SUMMARY = ["status", "steps", "final_loss", "eval", "layout", "measured", "resumed_from", "restarts", "wall_s"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    words = small(folder, *on_ranks(2), "train.global_batch=8", "train.eval_every=2", "checkpoint.every=3", "name=contract")
    done = dml("train", *(word for word in words if not word.startswith("run=")))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    (found,) = (folder / "outputs" / "train").glob("*-contract")
    assert str(found) in done.stderr
    return found


def test_a_run_folder_holds_what_is_promised(run: Path) -> None:
    files = "job.yaml metrics.jsonl summary.json ranks.json logs/rank-0.log logs/rank-1.log generations/0.json tracker"
    for name in (*files.split(), "checkpoints/step-00000003", "checkpoints/step-00000006", "checkpoints/latest"):
        assert (run / name).exists(), name
    assert (run / "checkpoints" / "latest").resolve().name == "step-00000006"


def test_every_step_stands_once_with_every_figure(run: Path) -> None:
    found = rows(run)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    for row in found:
        assert set(row) == set(ROW)
        assert row["comm_bytes"] > 0
        assert row["memory_bytes"] > 1e6
        phases = [row["data_wait_s"], row["forward_backward_s"], row["comm_wait_s"], row["update_s"]]
        assert max(phases) <= row["step_time_s"]
        assert sum(phases) >= 0.5 * row["step_time_s"], "each is the slowest rank's, so together they may be more"
        assert row["samples_per_s"] == pytest.approx(8 / row["step_time_s"])
        assert row["tokens_per_s"] == pytest.approx(8 * 16 / row["step_time_s"])
    told = {"step", "eval_loss", "eval_samples", "eval_accuracy"}
    assert [(row["step"], set(row)) for row in evaluations(run)] == [(step, told) for step in (2, 4, 6)]


def test_the_summary_tells_how_it_ended(run: Path) -> None:
    summary = read(run, "summary.json")
    assert set(SUMMARY) <= set(summary)
    assert (summary["status"], summary["steps"], summary["restarts"], summary["resumed_from"]) == ("completed", 6, 0, None)
    assert summary["final_loss"] == rows(run)[-1]["loss"]
    assert summary["eval"] == {key: value for key, value in evaluations(run)[-1].items() if key != "step"}
    assert summary["layout"]["mesh"] == {"pipeline": 1, "data": 2, "tensor": 1}
    assert {"step_time_s", "samples_per_s", "tokens_per_s", "memory_bytes"} <= set(summary["measured"])


def test_ranks_and_generation_say_who_ran_what(run: Path) -> None:
    ranks = read(run, "ranks.json")
    assert [(each["rank"], each["generation"], each["role"]) for each in ranks] == [(0, 0, "worker"), (1, 0, "worker")]
    assert len({each["pid"] for each in ranks}) == 2
    assert all(each["host"] == os.uname().nodename for each in ranks)
    generation = read(run, "generations/0.json")
    assert {"hosts", "layout", "plan"} <= set(generation)
    assert generation["plan"]["world_size"] == 2


def test_the_job_keeps_the_intent_with_the_facts_it_rests_on(run: Path) -> None:
    job: dict[str, Any] = yaml.safe_load((run / "job.yaml").read_text())
    assert job["config"]["train"]["global_batch"] == 8
    assert job["config"]["strategy"]["name"] == "all_reduce"
    assert job["data"]["digests"]
    assert {"python", "torch", "dml_runner"} <= set(job["versions"])


def run_cli(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command that runs in this process."""
    code = cli.main(words)
    return code, *capsys.readouterr()


@pytest.mark.parametrize(("more", "code"), [([], 0), (["hardware.memory_gb=0.0001"], 3)])
def test_a_plan_is_one_json_object_whether_it_fits_or_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int
) -> None:
    found, out, _ = run_cli(capsys, "plan", *small(tmp_path, *on_ranks(4), "train.global_batch=16", *more), "format=json")
    assert found == code
    plan = json.loads(out)
    assert set(PLAN) <= set(plan)
    assert (plan["fits"], plan["world_size"]) == (code == 0, 4)
    assert plan["memory_per_device_bytes"] == sum(plan["memory"].values())
    assert plan["memory"]["optimizer"] == 2 * plan["memory"]["weights"] == 2 * 4 * plan["parameters"]
    assert plan["layout"]["batch"] == {"global_batch": 16, "micro_batch": 4, "accumulation": 1, "data_ranks": 4}
    assert not (tmp_path / "run").exists()


def test_a_plan_as_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_cli(capsys, "plan", *small(tmp_path, *on_ranks(2)), "format=table")
    assert code == 0
    assert "pipeline 1 x data 2 x tensor 1" in out
    assert "16 = micro 8 x accumulation 1 x data ranks 2" in out
    assert "{" not in out
    code, _, err = run_cli(capsys, "plan", "format=yaml")
    assert (code, err) == (2, "format: no such form; got 'yaml'; allowed table, json\n")


def test_idle_devices_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run_cli(capsys, "plan", *small(tmp_path, "strategy=single", "hardware.devices_per_node=4"), "format=json")
    plan = json.loads(out)
    assert plan["world_size"] == 1
    assert any("leaves 3 of 4 devices idle" in warning for warning in plan["warnings"])


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["train.stepz=3"], 2),
        (["no_such_file.yaml"], 2),
        (["data=text", "data.path=/no/such/text"], 2),
        (["train.global_batch=10", "train.micro_batch=4"], 3),
        (["hardware.memory_gb=0.0001"], 3),
    ],
)
def test_refusals_have_their_code_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = run_cli(capsys, "train", *words, "model=gpt_tiny", "hardware=cpu")
    assert (found, out, len(err.splitlines())) == (code, "", 1), err
    assert not list((tmp_path / "outputs").glob("train/*"))


def test_a_model_that_does_not_fit_is_refused_with_both_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_cli(capsys, "train", *small(tmp_path, "model=gpt3_175b", "hardware.memory_gb=80"))
    assert code == 3
    assert err.startswith(
        "hardware.memory_gb: weights, gradients and optimizer state do not fit a device; got 80.0 GB; allowed at least 27"
    )


def test_a_failed_run_says_so_in_its_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_cli(capsys, "train", *small(tmp_path, "optimizer=sgd", "optimizer.lr=1e30", "train.steps=20"))
    assert code == 6
    assert "gradient is not finite" in err
    summary = read(tmp_path / "run", "summary.json")
    assert summary["status"] == "failed"
    assert "not finite" in summary["error"]


def test_a_completed_run_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(tmp_path, "train.steps=3")
    before = (folder / "metrics.jsonl").read_text()
    assert cli.main(["train", str(folder)]) == 0
    assert "completed" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="completed"):
        train(tmp_path, "train.steps=4")
    assert (folder / "metrics.jsonl").read_text() == before
