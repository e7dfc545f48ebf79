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
import yaml
from helpers import dml, evaluations, marked_environment, on_ranks, small, started, train, wait_for, write_text
from resume_helpers import tree_of
from test_run_torchrun import torchrun

from dml_runner import cli
from dml_runner.checkpoint.pieces import Piece
from dml_runner.checkpoint.read import open_step
from dml_runner.checkpoint.saver import Saver
from dml_runner.data.parts.labels import listed
from dml_runner.launch.same_job import labels_told

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


@pytest.mark.slow
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


TEXTS = ("model=bert", "model.head=classifier", "model.layers=1", "model.hidden=16", "model.heads=2", "data=labelled_text")


def test_other_labels_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many of them, but other words; the run's own are written down, and a run of before they were is asked for their number."""

    def table(name: str, *labels: str) -> str:
        rows = [f"{labels[n % len(labels)]}\tnumber {n} of them" for n in range(60)]
        (tmp_path / name).write_text("\n".join(rows) + "\n")
        return str(tmp_path / name)

    own = [f"data.path={table('own.tsv', 'yes', '1', 'no')}", "data.text_column='1'", "data.label_column='0'"]
    run = train(tmp_path, *TEXTS, *own, "data.seq_len=null", "train.steps=2")
    assert yaml.safe_load((run / "job.yaml").read_text())["data"]["labels"] == ["1", "no", "yes"]
    assert evaluate(capsys, run, f"data.path={table('same.tsv', 'no', '1', 'yes')}")[0] == 0
    names = "other labels than the run's, or in another order"
    for labels, got in ((("no", "yes", "maybe"), "'maybe', 'no', 'yes'"), (("no", "1"), "'1', 'no'"), ("abcd", "'a', 'b', 'c', 'd'")):
        code, _, err = evaluate(capsys, run, f"data.path={table('other.tsv', *labels)}")
        assert (code, err) == (2, [f"data: {names}; got {got}; allowed '1', 'no', 'yes'"])
    assert evaluate(capsys, run, "data=synthetic", "data.classes=2", "data.vocabulary=20")[0] == 0
    assert not list((run / "eval").glob("*/")), "nothing is left of what was refused"
    text = (run / "job.yaml").read_text()
    (run / "job.yaml").write_text(text.replace("  labels:\n  - '1'\n  - 'no'\n  - 'yes'\n", ""))
    assert evaluate(capsys, run, f"data.path={table('other.tsv', 'no', 'yes', 'maybe')}")[0] == 0
    line = "data: other labels than the run's; got 4; allowed 3"
    assert evaluate(capsys, run, f"data.path={table('other.tsv', *'abcd')}") == (2, {}, [line])


def test_labels_that_are_many_are_told_from_where_they_differ() -> None:
    many = [f"{number:04}" for number in range(1000)]
    assert labels_told(many, [*many[:40], "x"]).startswith("from number 40 on '0040', '0041', ")
    assert labels_told(many, [*many[:40], "x"]).endswith("'0049' and 950 more")
    assert labels_told(["a, b", "c"], many) == "'a, b', 'c'"
    assert listed(many) == tuple(many)
    assert listed(["x" * 300] * 400) == (), "a column of texts is no list of labels"


@pytest.mark.slow
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


def test_a_run_has_all_that_a_prompt_needs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the text it was trained on nor what was made of it; no more does an export."""
    assert cli.main(["eval", f"run={run}", "prompt=The cat", "tokens=30"]) == 0
    written = capsys.readouterr().out
    job = yaml.safe_load((run / "job.yaml").read_text())
    (run / "job.yaml").write_text(
        (run / "job.yaml").read_text().replace(job["data"]["store"], "/gone").replace("text-20000.txt", "gone.txt")
    )
    assert cli.main(["eval", f"run={run}", "prompt=The cat", "tokens=30"]) == 0
    assert capsys.readouterr().out == written
    assert cli.main(["eval", f"run={run}", "export=hf", f"to={tmp_path / 'hf'}"]) == 0
    shutil.rmtree(run / "tokenizer")
    line = "data: the prepared tokens are missing or damaged; got /gone; prepare the data again"
    assert evaluate(capsys, run, "prompt=The cat") == (2, {}, [line])
    made_up = tmp_path / "made-up"
    words = [word for word in small(tmp_path, "data=synthetic", "train.steps=1", run="made-up") if not word.startswith("data.path")]
    assert cli.main(["train", *words]) == 0
    line = f"prompt: the tokens of the run's data=synthetic stand for no text; got {made_up}; allowed a run that was trained on text"
    assert evaluate(capsys, made_up, "prompt=The cat") == (2, {}, [line])


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


def test_a_job_yaml_of_a_version_with_other_keys_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which keys, where, and what to do; when that is done the run goes on."""
    job, text = run / "job.yaml", (run / "job.yaml").read_text()
    older = text.replace("    bad: stop\n", "").replace("    accumulation: null\n", "")
    lacks = f"{job}: written by a version with other keys: it lacks data.bad, train.accumulation"
    line = f"{lacks}; under config, add what it lacks as it was (dml train --cfg job shows what it is now)"
    for content, more in ((older, []), (older.replace("seed: 1", "seed: -1\n  seeed: 1"), ["seed: out of range; got -1; allowed >= 0"])):
        job.write_text(content)
        code, _, err = evaluate(capsys, run)
        assert (code, err[0]) == (2, line)
        assert set(more) <= set(err[1:])
        assert len(err) == 1 + 2 * len(more)
    generation = run / "generations" / "0.json"
    generation.write_text(generation.read_text().replace('"bad": "stop",', ""))
    job.write_text(older)
    assert cli.main(["train", str(run), "train.steps=7", f"run={run}-more"]) == 2
    assert capsys.readouterr().err.startswith(lacks)
    job.write_text(text)
    assert cli.main(["train", str(run), "train.steps=7", f"run={run}-more"]) == 0


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
