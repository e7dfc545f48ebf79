"""`dml eval`: the same figures on any number of ranks, texts that go on, lines for what is wrong, and a run folder left alone."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import dml, evaluations, marked_environment, on_ranks, small, started, train, wait_for, write_text
from resume_helpers import tree_of
from test_run_torchrun import torchrun

from dml_runner import cli
from dml_runner.checkpoint.pieces import Piece
from dml_runner.checkpoint.read import open_step
from dml_runner.checkpoint.saver import Saver

STEPS = ("train.steps=6", "checkpoint.every=2", "train.metrics=[accuracy,f1]", "train.micro_batch=16")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody may change."""
    return train(tmp_path_factory.mktemp("trained"), *STEPS)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


def evaluate(capsys: pytest.CaptureFixture[str], run: Path, *words: str) -> tuple[int, dict[str, str], list[str]]:
    """Exit code, printed table and error lines of ``dml eval``."""
    capsys.readouterr()
    code = cli.main(["eval", f"run={run}", *words])
    out, err = capsys.readouterr()
    return code, dict(line.split(maxsplit=1) for line in out.splitlines()), err.splitlines()


def results(run: Path) -> list[dict[str, Any]]:
    """What was written, in order."""
    return [json.loads(path.read_text()) for path in sorted((run / "eval").iterdir(), key=lambda path: path.stat().st_mtime_ns)]


def without_eval(run: Path) -> dict[str, tuple[int, str]]:
    """The run folder's files but those of evaluations."""
    return {name: fact for name, fact in tree_of(run).items() if not name.startswith("eval/")}


def test_any_number_of_ranks_comes_to_the_figures_of_the_runs_own_last_evaluation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = without_eval(run)
    for ranks in (1, 2, 3):
        code, table, err = evaluate(capsys, run, *on_ranks(ranks), "hardware=cpu")
        assert (code, len(err)) == (0, 2), err
        assert err[0] == f"{run}: step 6 on {ranks} rank{'s' * (ranks > 1)} (cpu, fp32)"
        assert list(table) == ["step", "loss", "perplexity", "accuracy", "f1", "samples", "seconds"]
    own = {key: value for key, value in evaluations(run)[-1].items() if key != "step"}
    first, second, third = results(run)
    assert first["figures"] == second["figures"] == third["figures"], "bit for bit"
    assert first["figures"] == own | {"perplexity": math.exp(own["eval_loss"])}
    assert [each["layout"]["mesh"]["data"] for each in (first, second, third)] == [1, 2, 3]
    assert first["step"] == 6
    assert list(first["data"]["digests"]) == [first["data"]["config"]["path"]]
    assert without_eval(run) == before


def test_more_ranks_than_batches(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(capsys, run, "train.micro_batch=100")[0] == 0
    assert evaluate(capsys, run, "train.micro_batch=100", *on_ranks(3))[0] == 0
    first, second = results(run)
    assert first["figures"] == second["figures"]


def test_under_torchrun(run: Path) -> None:
    done = torchrun(2, "eval", f"run={run}", "strategy=all_reduce")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["step", "6"]
    (found,) = results(run)
    assert found["layout"]["mesh"]["data"] == 2
    assert found["figures"]["eval_loss"] == evaluations(run)[-1]["eval_loss"]
    done = torchrun(2, "eval", f"run={run}", "prompt=The")
    assert done.stderr.count("prompt: is the work of one process; start it without a launcher") == 1
    assert "exitcode  : 4" in done.stderr


def test_a_torn_newest_step_falls_back_with_a_notice_and_a_named_one_never(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = next((run / "checkpoints" / "step-00000006").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    code, table, err = evaluate(capsys, run)
    assert (code, table["step"]) == (0, "4")
    assert "step 6 is damaged" in err[0]
    assert err[0].endswith("; using step 4")
    code, table, err = evaluate(capsys, run / "checkpoints" / "step-00000006")
    assert (code, table, len(err)) == (2, {}, 1)
    assert err[0].startswith("run: ")
    code, table, _ = evaluate(capsys, run / "checkpoints" / "step-00000002")
    assert (code, table["step"]) == (0, "2")


def test_other_data_is_read_in_the_runs_own_tokens(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_text(tmp_path, 1000)
    code, table, err = evaluate(capsys, run, f"data.eval_path={text}")
    assert (code, table["samples"], len(err)) == (0, "63", 2)
    assert list(results(run)[0]["data"]["digests"])[1] == str(text)
    assert evaluate(capsys, run, "data=text", f"data.path={text}")[0] == 0


def test_the_runs_own_data_is_missed_when_it_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, *STEPS)
    text = tmp_path / "text-20000.txt"
    text.write_text(text.read_text()[::-1])
    code, _, err = evaluate(capsys, run)
    assert code == 0
    assert err[0].startswith(f"the data is no longer what the run was trained on: data {text}: differs from the run's; got SHA-256 ")
    text.unlink()
    code, table, err = evaluate(capsys, run)
    assert (code, table, err) == (2, {}, [f"data.path: no such file; got {text}; the current folder is {Path.cwd()}"])


def test_it_may_still_train(tmp_path: Path) -> None:
    words = ["train.steps=100000", "train.eval_every=null", "checkpoint.every=10", "checkpoint.keep=1", "train.log_every=100"]
    environment, _ = marked_environment()
    with started("train", *small(tmp_path, *words), env=environment) as process:
        wait_for((tmp_path / "run" / "checkpoints" / "latest").exists)
        for _ in range(2):
            done = dml("eval", f"run={tmp_path / 'run'}", "strategy=all_reduce", "hardware.devices_per_node=2")
            assert done.returncode == 0, done.stderr
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    assert len(results(tmp_path / "run")) == 2


# --- a text that goes on -------------------------------------------------------------------------------------------------


def test_a_prompt_goes_on_the_same_for_the_same_seed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def written(*words: str) -> str:
        assert cli.main(["eval", f"run={run}", *words]) == 0
        return capsys.readouterr().out

    first = written("prompt=The cat", "tokens=30")
    assert first.startswith("The cat")
    assert len(first) == len("The cat") + 30 + 1
    assert written('prompt="The cat"', "tokens=30") == first, "quotes are optional"
    assert written("prompt=The cat", "tokens=30", "seed=2") != first
    likeliest = written("prompt=The cat", "tokens=30", "temperature=0")
    assert written("prompt=The cat", "tokens=30", "top_k=1", "seed=9") == likeliest
    assert not (run / "eval").exists()


def test_a_model_that_does_not_write_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = run / "job.yaml"
    job.write_text(job.read_text().replace("head: lm", "head: classifier"))
    line = "prompt: the run's model=gpt does not go on with a text; got objective classify; allowed a language model of the next token"
    assert evaluate(capsys, run, "prompt=The cat") == (2, {}, [line])


# --- lines ---------------------------------------------------------------------------------------------------------------

KNOWN = "run, prompt, export, data, hardware, strategy, data.KEY, hardware.KEY, strategy.KEY, train.metrics, train.micro_batch, "
KNOWN += "train.precision, outputs, plugins"


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["train.metrics=[acuracy]"], ["train.metrics: no such metric; got 'acuracy'; allowed accuracy, f1; did you mean accuracy?"]),
        (["promt=x"], [f"promt: no word of dml eval; allowed {KNOWN}; did you mean prompt?"]),
        (["model.layers=3"], [f"model.layers: no word of dml eval; allowed {KNOWN}"]),
        (["data.tokenizer=byte"], ["data.tokenizer: an evaluation reads with the run's own tokens; got byte; allowed left out"]),
        (["something"], ["something: not understood; allowed run=PATH key=value ..."]),
        (
            ["prompt=a", "export=hf", "to=x"],
            [
                "export: one thing at a time; got prompt= and export=; allowed one of them",
            ],
        ),
        (["prompt="], ["prompt: is empty; allowed a text to go on with"]),
        (
            ["prompt=a", "tokens=0", "top_k=x", "temperature=-1", "seed=-1"],
            [
                "tokens: not a count; got '0'; allowed 1 or more",
                "temperature: not a temperature; got '-1'; allowed a number from 0",
                "top_k: not a count; got 'x'; allowed 1 or more",
                "seed: not a count; got '-1'; allowed 0 or more",
            ],
        ),
        (
            ["prompt=a", "train.metrics=[f1]"],
            ["train.metrics: no word of dml eval prompt=; allowed run, prompt, tokens, temperature, top_k, seed"],
        ),
        (["export=onnx"], ["export: no such form; got 'onnx'; allowed hf", "to: where to write the model; got nothing; allowed to=DIR"]),
        (
            ["prompt=The \u732b"],
            ["prompt: character 5 does not occur in the training text; got '\u732b' (U+732B); allowed the 86 characters of that text"],
        ),
        (["data.eval_path=/nowhere.txt"], ["data.eval_path: no such file; got /nowhere.txt; the current folder is HERE"]),
        (
            ["data.eval_path=OTHER"],
            [
                "data.eval_path: 1 character has no token in the text the run was trained on; "
                "got '\u732b' (U+732B); allowed its 86 characters"
            ],
        ),
    ],
    ids=lambda value: value[0][:30],
)
def test_what_is_wrong_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: Sequence[str], lines: Sequence[str]
) -> None:
    (tmp_path / "other.txt").write_text("\u732b" * 100)
    words = [word.replace("OTHER", str(tmp_path / "other.txt")) for word in words]
    expected = [line.replace("HERE", str(Path.cwd())) for line in lines]
    assert evaluate(capsys, run, *words) == (2, {}, expected)
    assert not list(run.glob("eval/*"))


def test_what_is_no_run(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = f"{tmp_path}/job.yaml: cannot be read: No such file or directory; a run folder holds a job.yaml"
    assert evaluate(capsys, tmp_path) == (2, {}, [missing])
    assert cli.main(["eval"]) == 2
    line = "run: which run to evaluate; got nothing; allowed run=PATH of a run folder, or of a step in it\n"
    assert capsys.readouterr() == ("", line)
    shutil.rmtree(run / "checkpoints")
    assert evaluate(capsys, run) == (2, {}, [f"run: no step was saved there; got {run}"])


def test_weights_that_are_no_numbers_are_told_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "eval_loss: is not a finite number; got nan; the weights are worth nothing"
    assert cli.main(["train", *small(tmp_path, "train.steps=1", "optimizer.lr=1e30", run="other")]) == 6
    assert capsys.readouterr().err.splitlines()[-1] == line
    step = open_step(run / "checkpoints" / "latest")
    pieces = [Piece(name, shape, (0,) * len(shape), step.read(name) * math.nan) for name, (shape, _) in step.tensors.items()]
    with Saver(run / "checkpoints", 0, 1, 1, 3) as saver:
        saver.save(7, iter(pieces), step.state, False)
        saver.wait()
    code, table, err = evaluate(capsys, run)
    assert (code, table, err[-1]) == (6, {}, line)
    assert not list((run / "eval").glob("*.json"))


def test_help_lists_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "--help"]) == 0
    out, _ = capsys.readouterr()
    for word in ("run=PATH", "data.eval_path=", "strategy=", "train.metrics=", "train.micro_batch=", "prompt=", "tokens=", "export=hf to="):
        assert f"\n  {word}" in out or f" {word}" in out
    assert max(map(len, out.splitlines())) <= 110
