"""What a start continues: checkpoint.resume, run=, a run folder before the words; and which jobs are the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import SMALL, read, rows, write_text
from resume_helpers import command, curve, held_out, tree_of, weights

import dml_runner
from dml_runner.run_folder import Lock, RunFolder

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and one run, saved at steps 2, 4 and 6, that was killed before it could say that it is done."""
    root = tmp_path_factory.mktemp("made")
    write_text(root)
    dml_runner.train(words(root))
    run_of(root).joinpath("summary.json").unlink()
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy whose run has always been there."""
    copy = tmp_path / "root"
    shutil.copytree(made, copy, symlinks=True)
    for file in (run_of(copy) / "job.yaml", run_of(copy) / "generations" / "0.json"):
        file.write_text(file.read_text().replace(str(made), str(copy)))
    return copy


def words(root: Path, *more: str) -> list[str]:
    """A job without run=."""
    return [*SMALL, f"data.path={root / 'text-20000.txt'}", f"outputs={root / 'outputs'}", "checkpoint.every=2", *more]


def runs(root: Path) -> list[Path]:
    return sorted((root / "outputs" / "train").iterdir())


def run_of(root: Path) -> Path:
    (run,) = runs(root)
    return run


def finish(folder: Path) -> None:
    dml_runner.train([str(folder)])
    assert read(folder, "summary.json")["status"] == "completed"


def refused(capsys: Capture, code: int, *typed: str) -> list[str]:
    """The lines of a refusal that leaves every run as it was, and makes none."""
    outputs = next((Path(word.removeprefix("outputs=")) / "train" for word in typed if word.startswith("outputs=")), Path(typed[0]).parent)
    before = unlocked(outputs)
    found, lines = command(capsys, *typed)
    assert found == code, lines
    assert unlocked(outputs) == before
    return lines


def unlocked(folder: Path) -> dict[str, tuple[int, str]]:
    """``tree_of`` but for locks: an unfinished run is locked to look at it."""
    return {name: fact for name, fact in tree_of(folder).items() if not name.endswith("lock")}


# --- auto, must, never -----------------------------------------------------------------------------------------------------


def test_auto_begins_anew_where_there_is_nothing(made: Path, tmp_path: Path, capsys: Capture) -> None:
    write_text(tmp_path)
    code, lines = command(capsys, *words(tmp_path))
    assert code == 0
    assert not [line for line in lines if "continuing" in line or "starting at" in line]
    assert len(runs(tmp_path)) == 1


def test_auto_continues_the_unfinished_run_of_the_same_job(root: Path, capsys: Capture) -> None:
    """Length, rhythm, tracker and machine are not the job."""
    run = run_of(root)
    code, lines = command(capsys, *words(root, "train.steps=8", "train.eval_every=4", "checkpoint.keep=1", "strategy=all_reduce"))
    assert code == 0
    assert lines[0] == f"continuing {run} from step 6"
    assert runs(root) == [run]
    assert [row["step"] for row in rows(run)] == list(range(1, 9))
    assert [path.name for path in sorted((run / "checkpoints").glob("step-*"))] == ["step-00000008"]
    assert read(run, "generations/1.json")["config"]["checkpoint"]["keep"] == 1
    assert "keep: 3" in (run / "job.yaml").read_text()


def test_auto_leaves_another_job_and_says_so(root: Path, capsys: Capture) -> None:
    run = run_of(root)
    before = unlocked(run)
    code, lines = command(capsys, *words(root, "optimizer.lr=0.002", "train.steps=2"))
    assert code == 0
    reason = "optimizer.lr: differs from the run's; got 0.002; allowed 0.001"
    assert lines[0] == f"starting at step 0: the unfinished run {run} is another job ({reason})"
    assert len(runs(root)) == 2
    assert unlocked(run) == before


def test_auto_looks_behind_another_job(root: Path, capsys: Capture) -> None:
    """A newer unfinished run of another job does not hide the one that can be continued."""
    run = run_of(root)
    command(capsys, *words(root, "optimizer.lr=0.002", "train.steps=2"))
    (newer,) = set(runs(root)) - {run}
    (newer / "summary.json").unlink()
    code, lines = command(capsys, *words(root))
    assert (code, lines[0]) == (0, f"continuing {run} from step 6")


def test_auto_never_touches_a_completed_run(root: Path, capsys: Capture) -> None:
    run = run_of(root)
    finish(run)
    before = tree_of(run)
    assert command(capsys, *words(root, "train.steps=7"))[0] == 0
    (newer,) = set(runs(root)) - {run}
    assert [row["step"] for row in rows(newer)] == list(range(1, 8))
    assert tree_of(run) == before


def test_auto_passes_by_a_run_in_use(root: Path, capsys: Capture) -> None:
    run = run_of(root)
    lock = Lock(RunFolder(run))
    assert lock.take()
    try:
        code, lines = command(capsys, *words(root, "train.steps=2"))
        assert (code, lines[0]) == (0, f"starting at step 0: the unfinished run {run} is in use by another process")
        assert len(runs(root)) == 2
        assert "another job is using this folder" in refused(capsys, 2, str(run))[0]
        assert "another job is using this folder" in refused(capsys, 2, *words(root, f"run={run}"))[0]
    finally:
        lock.release()


def test_auto_passes_by_a_run_that_cannot_be_read(root: Path, capsys: Capture) -> None:
    (run_of(root) / "job.yaml").write_text("format: [")
    code, lines = command(capsys, *words(root, "train.steps=2"))
    assert code == 0
    assert "is another job (" in lines[0]
    assert "not a job.yaml" in lines[0]


def test_must_refuses_to_begin_anew(root: Path, tmp_path: Path, capsys: Capture) -> None:
    run = run_of(root)
    place = f"in {root / 'outputs' / 'train'}; got must; allowed auto, to start anew"
    (line,) = refused(capsys, 2, *words(root, "name=other", "checkpoint.resume=must"))
    assert line == f"checkpoint.resume: no unfinished run named 'other' of this job {place}"
    (line,) = refused(capsys, 2, *words(root, "seed=2", "checkpoint.resume=must"))
    assert line.endswith(f"{place}; {run} is another job (seed: differs from the run's; got 2; allowed 1)")
    (line,) = refused(capsys, 2, *words(root, f"run={tmp_path / 'none'}", "checkpoint.resume=must"))
    assert line == f"checkpoint.resume: there is no run to continue; got {tmp_path / 'none'}; allowed auto, to start it"
    code, lines = command(capsys, *words(root, "checkpoint.resume=must"))
    assert (code, lines[0]) == (0, f"continuing {run} from step 6")


def test_never_begins_anew_beside_what_is_there(root: Path, capsys: Capture) -> None:
    run = run_of(root)
    before = tree_of(run)
    assert command(capsys, *words(root, "checkpoint.resume=never", "train.steps=2"))[0] == 0
    (newer,) = set(runs(root)) - {run}
    assert [row["step"] for row in rows(newer)] == [1, 2]
    assert tree_of(run) == before


# --- run= ------------------------------------------------------------------------------------------------------------------


def test_a_named_folder_is_made_then_continued_then_left_alone(root: Path, tmp_path: Path, capsys: Capture) -> None:
    named = tmp_path / "deep" / "er"
    assert command(capsys, *words(root, f"run={named}", "train.steps=4"))[0] == 0
    assert read(named, "summary.json")["status"] == "completed"
    (named / "summary.json").unlink()
    (line,) = refused(capsys, 2, *words(root, f"run={named}", "checkpoint.resume=never"))
    assert line == f"run: the folder holds a run; got {named}; allowed a new folder, or checkpoint.resume=auto to continue it"
    code, lines = command(capsys, *words(root, f"run={named}"))
    assert (code, lines[0]) == (0, f"continuing {named} from step 4")
    before = tree_of(named)
    (line,) = refused(capsys, 2, *words(root, f"run={named}", "train.steps=9"))
    assert line.startswith(f"run: the run is completed and is never touched; got {named}; ")
    assert tree_of(named) == before


def test_a_named_folder_of_another_job_is_refused_with_the_differences(root: Path, capsys: Capture) -> None:
    run = run_of(root)
    changed = ("model.layers=3", "seed=7", "optimizer=sgd", "train.global_batch=4")
    first, *others = refused(capsys, 2, *words(root, f"run={run}", *changed))
    hint = f"to start from it: checkpoint.resume={run}"
    assert first == f"checkpoint.resume: {run} is another job; the first differences follow; {hint}"
    assert "model.layers: differs from the run's; got 3; allowed 2" in others
    assert "optimizer.name: differs from the run's; got sgd; allowed adamw" in others
    assert "seed: differs from the run's; got 7; allowed 1" in others
    assert "train.global_batch: differs from the run's; got 4; allowed 8" in others


def test_a_foreign_folder_is_refused(root: Path, tmp_path: Path, capsys: Capture) -> None:
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    (line,) = refused(capsys, 2, *words(root, f"run={foreign}"))
    assert line == f"run: the folder is not empty and holds no run; got {foreign}; allowed a new folder, or one of our runs"
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]


# --- forks -----------------------------------------------------------------------------------------------------------------


def test_a_fork_begins_from_the_newest_step_and_names_it(root: Path, capsys: Capture) -> None:
    run = run_of(root)
    before = tree_of(run)
    code, lines = command(capsys, *words(root, f"checkpoint.resume={run}", "optimizer.lr=0.01", "train.steps=8"))
    assert (code, lines[0]) == (0, f"continuing from step 6 of {run}, in a new run")
    (fork,) = set(runs(root)) - {run}
    summary = read(fork, "summary.json")
    assert summary["resumed_from"] == str((run / "checkpoints" / "step-00000006").resolve())
    assert (summary["status"], summary["restarts"]) == ("completed", 0)
    assert [row["step"] for row in rows(fork)] == [7, 8]
    assert tree_of(run) == before


def test_a_fork_of_a_step_begins_from_exactly_that_one(root: Path, capsys: Capture) -> None:
    run = run_of(root)
    step = run / "checkpoints" / "step-00000002"
    code, lines = command(capsys, *words(root, f"checkpoint.resume={step}"))
    assert (code, lines[0]) == (0, f"continuing from step 2 of {run}, in a new run")
    (fork,) = set(runs(root)) - {run}
    assert curve(fork) == curve(run, after=2)
    assert weights(fork, 6) == weights(run, 6)
    latest = run / "checkpoints" / "latest"
    assert command(capsys, *words(root, f"checkpoint.resume={latest}", "train.steps=7"))[1][0].startswith("continuing from step 6 of")


def test_a_fork_that_dies_before_its_first_save_goes_back_to_its_origin(root: Path, capsys: Capture) -> None:
    run, named = run_of(root), root / "fork"
    typed = words(root, f"run={named}", f"checkpoint.resume={run / 'checkpoints' / 'step-00000004'}", "checkpoint.every=null")
    assert command(capsys, *typed)[0] == 0
    shutil.rmtree(named / "checkpoints")
    (named / "summary.json").unlink()
    code, lines = command(capsys, str(named))
    assert (code, lines[0]) == (0, f"continuing {named} from step 4")
    assert curve(named) == curve(run, after=4)
    assert read(named, "summary.json")["resumed_from"] == str((run / "checkpoints" / "step-00000004").resolve())


def test_a_named_fork_goes_on_with_the_same_words(root: Path, capsys: Capture) -> None:
    run, named = run_of(root), root / "fork"
    typed = words(root, f"run={named}", f"checkpoint.resume={run}", "train.steps=8")
    assert command(capsys, *typed)[0] == 0
    (named / "summary.json").unlink()
    code, lines = command(capsys, *typed)
    assert (code, lines[0]) == (0, f"continuing {named} from step 8")
    (named / "summary.json").unlink()
    other = run / "checkpoints" / "step-00000002"
    (line,) = refused(capsys, 2, *words(root, f"run={named}", f"checkpoint.resume={other}"))
    assert line == f"run: the folder holds a run that did not begin from {other}; got {named}"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (
            "nowhere",
            "checkpoint.resume: no run folder and no step of one; got {where}; allowed auto, must, never, a run folder, or a step in it",
        ),
        ("run/checkpoints/step-00000005", "checkpoint.resume: no such step folder; got {where}"),
        (
            "run/checkpoints",
            "checkpoint.resume: no run folder and no step of one; got {where}; allowed auto, must, never, a run folder, or a step in it",
        ),
        ("empty", "checkpoint.resume: no step was saved there; got {where}"),
    ],
)
def test_a_fork_of_nothing_is_refused(root: Path, capsys: Capture, where: str, said: str) -> None:
    run_of(root).rename(root / "run")
    shutil.copytree(root / "run", root / "empty")
    shutil.rmtree(root / "empty" / "checkpoints")
    assert refused(capsys, 2, *words(root, f"checkpoint.resume={root / where}")) == [said.format(where=root / where)]


def test_a_fork_has_the_parents_model_data_and_kind_of_optimizer(root: Path, capsys: Capture) -> None:
    run = run_of(root)
    head, line, *_ = refused(capsys, 2, *words(root, f"checkpoint.resume={run}", "model.hidden=16"))
    assert head == f"checkpoint.resume: {run} has another model, optimizer or other data; the first differences follow"
    assert line == "model.hidden: differs from the run's; got 16; allowed 32"
    _, line, *_ = refused(capsys, 2, *words(root, f"checkpoint.resume={run}", "optimizer=sgd"))
    assert line.startswith("checkpoint.resume: step 6 is of another model: tensors ")
    assert "unexpected" in line
    (line,) = refused(capsys, 2, *words(root, f"checkpoint.resume={run}", "train.steps=6"))
    assert line == "train.steps: step 6, which it continues from, is not before its last; got 6; allowed at least 7"


# --- a run folder before the words -----------------------------------------------------------------------------------------


def test_a_completed_run_without_words_is_left_as_it_is(root: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(root)
    finish(run)
    before = tree_of(root)
    said = "is completed; add words (train.steps=...) to go on from it in a new run"
    assert command(capsys, str(run)) == (0, [f"{run} {said}"])
    assert command(capsys, str(run), "train.steps=6") == (0, [f"{run} {said}"])
    monkeypatch.chdir(run)
    assert command(capsys, ".") == (0, [f"{run} {said}"])
    assert tree_of(root) == before


def test_more_steps_fork_a_completed_run(root: Path, capsys: Capture) -> None:
    run = run_of(root)
    finish(run)
    before = tree_of(run)
    code, lines = command(capsys, str(run), "train.steps=9")
    assert (code, lines[0]) == (0, f"continuing from step 6 of {run}, in a new run")
    (fork,) = set(runs(root)) - {run}
    assert [row["step"] for row in rows(fork)] == [7, 8, 9]
    assert [step for step, _ in held_out(fork)] == [9]
    assert f"resume: {run}" in (fork / "job.yaml").read_text()
    assert tree_of(run) == before
    assert command(capsys, str(fork))[1] == [f"{fork} is completed; add words (train.steps=...) to go on from it in a new run"]


def test_an_unfinished_run_takes_words_that_are_not_the_job(root: Path, capsys: Capture) -> None:
    """They hold for that start: job.yaml stays."""
    run = run_of(root)
    job = (run / "job.yaml").read_text()
    code, _ = command(capsys, str(run), "train.steps=10", "train.log_every=2", "checkpoint.every=5")
    assert code == 0
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4, 5, 6, 8, 10]
    assert (run / "checkpoints" / "step-00000010").is_dir()
    assert (run / "job.yaml").read_text() == job
    assert command(capsys, str(run), "train.steps=10", "train.log_every=2", "checkpoint.every=5")[0] == 0
    (run / "summary.json").unlink()
    (line,) = refused(capsys, 2, str(run))
    assert line == "train.steps: step 10, which it continues from, is not before its last; got 6; allowed at least 10"


def test_an_unfinished_run_refuses_another_job(root: Path, capsys: Capture) -> None:
    run = run_of(root)
    hint = f"to start from it: checkpoint.resume={run}"
    assert refused(capsys, 2, str(run), "optimizer.lr=0.01", "optimizer.beta1=0.8") == [
        f"checkpoint.resume: {run} is another job; the first differences follow; {hint}",
        "optimizer.beta1: differs from the run's; got 0.8; allowed 0.9",
        "optimizer.lr: differs from the run's; got 0.01; allowed 0.001",
    ]
    code, lines = command(capsys, str(run), "optimizer.lr=0.01", "train.steps=8", f"checkpoint.resume={run}")
    assert (code, lines[0]) == (0, f"continuing from step 6 of {run}, in a new run")
    assert len(runs(root)) == 2


def test_a_step_before_the_words_is_refused_with_what_to_type(root: Path, capsys: Capture) -> None:
    step = run_of(root) / "checkpoints" / "step-00000004"
    (line,) = refused(capsys, 2, str(step))
    assert line.startswith(f"{step}: is a step, not a run; allowed a run folder; dml train {run_of(root).resolve()} continues the run")


# --- the data ----------------------------------------------------------------------------------------------------------------


def test_the_same_data_elsewhere_is_the_same_job(root: Path, capsys: Capture) -> None:
    run, moved = run_of(root), root / "elsewhere.txt"
    (root / "text-20000.txt").rename(moved)
    shutil.rmtree(root / "outputs" / "cache")
    code, lines = command(capsys, str(run), f"data.path={moved}", "train.steps=8")
    assert (code, lines[0]) == (0, f"continuing {run} from step 6")
    assert [row["step"] for row in rows(run)] == list(range(1, 9))


def test_changed_data_is_refused_with_the_first_differences(root: Path, capsys: Capture) -> None:
    run, text = run_of(root), root / "text-20000.txt"
    text.write_text(text.read_text() + "Zürich\n" * 10)
    expected = [f"data {text}: differs from the run's; got SHA-256 ", "vocabulary: differs from the run's; got "]
    hint = "put the data back, or start anew with checkpoint.resume=never"
    head, *lines = refused(capsys, 2, *words(root))
    assert head == f"checkpoint.resume: the data of the unfinished run {run} has changed; the first differences follow; {hint}"
    assert [line for line, start in zip(lines, expected, strict=False) if line.startswith(start)] == lines[:2]
    head, *lines = refused(capsys, 2, str(run))
    assert head.startswith(f"checkpoint.resume: {run} is another job; the first differences follow")
    assert [line for line, start in zip(lines, expected, strict=False) if line.startswith(start)] == lines[:2]
    head, *lines = refused(capsys, 2, *words(root, f"checkpoint.resume={run}", "train.steps=9"))
    assert head == f"checkpoint.resume: {run} has another model, optimizer or other data; the first differences follow"
    assert lines[0].startswith(expected[0])


def test_the_order_of_files_is_part_of_the_data(root: Path, capsys: Capture) -> None:
    halves = [root / "a.txt", root / "b.txt"]
    text = (root / "text-20000.txt").read_text()
    halves[0].write_text(text[:9000])
    halves[1].write_text(text[9000:])
    named = root / "named"
    typed = [word for word in words(root, f"run={named}") if not word.startswith("data.path=")]
    assert command(capsys, *typed, f"data.path=[{halves[0]},{halves[1]}]")[0] == 0
    (named / "summary.json").unlink()
    _, line = refused(capsys, 2, *typed, f"data.path=[{halves[1]},{halves[0]}]")
    assert line == f"data: differs from the run's; got read as {halves[1]}, {halves[0]}; allowed read as {halves[0]}, {halves[1]}"
