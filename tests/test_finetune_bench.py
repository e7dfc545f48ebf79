"""The measurement of what pre-training is worth: its words, its page, and one small measurement from recipes to table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import one_core, read, write_text

from dml_runner.bench import finetune, finetune_runs, page
from dml_runner.bench.finetune_words import FAMILIES, FinetuneWords, finetune_words
from dml_runner.cli import main
from dml_runner.errors import ConfigError, Terminated
from dml_runner.loops.stop import Reason

MARKS = page.marks("finetune")
SHAPES = {
    "bert": ("layers: 1, hidden: 16, heads: 2, context: 16", ", vocab_size: 200"),
    "elmo": ("hidden: 16, projection: 8, characters: 4, filters: [4, 4], context: 8, vocab_size: 100", ""),
    "gpt": ("layers: 1, hidden: 16, heads: 2, context: 16", ", tokenizer: bpe, vocab_size: 300"),
}


def write_labelled(path: Path, rows: int) -> Path:
    """Short reviews and whether they are kind."""
    words = [("a fine film", 1), ("a dull film", 0), ("such a moving story", 1), ("no story at all , and no end", 0)]
    path.write_text("".join(f"{words[row % 4][0]}\t{words[row % 4][1]}\n" for row in range(rows)))
    return path


def write_recipes(folder: Path) -> Path:
    """Recipes of pre-training that take a second."""
    text = write_text(folder)
    for family, (shape, data) in SHAPES.items():
        chosen = ["config", f"override model: {family}", "override data: text", "override hardware: cpu", "_self_"]
        lines = [f"name: {family}", f"model: {{{shape}}}", f"data: {{path: {text}{data}}}"]
        lines += ["train: {steps: 2, global_batch: 4, log_every: 1}"]
        recipe = "\n".join(["defaults:", *(f"  - {each}" for each in chosen), *lines])
        (folder / f"{family}_pretrain.yaml").write_text(recipe + "\n")
    return folder


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """The words that are needed."""
    files = [write_labelled(tmp_path / f"{name}.tsv", rows) for name, rows in (("train", 40), ("dev", 12))]
    return [f"data={files[0]}", f"eval={files[1]}", f"recipes={write_recipes(tmp_path)}", f"outputs={tmp_path / 'outputs'}"]


# --- words ---------------------------------------------------------------------------------------------------------------


def test_words_and_their_defaults(given: list[str], tmp_path: Path) -> None:
    asked = finetune_words(given)
    assert asked == FinetuneWords(tmp_path / "train.tsv", tmp_path / "dev.tsv", FAMILIES, {}, tmp_path, outputs=tmp_path / "outputs")
    asked = finetune_words([*given, "only=gpt,bert", "steps=7", "batch=3", f"to={tmp_path / 'new.md'}", "format=json"])
    assert (asked.only, asked.steps, asked.batch, asked.page, asked.form) == (("gpt", "bert"), 7, 3, tmp_path / "new.md", "json")


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").write_text("no marks\n")
    words = ["data=none.tsv", "only=bart,elmo", "bert=here", "steps=0", "resume=gone", "to=page.md", "form=json"]
    assert main(["bench", "finetune", *words]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "form: no such word; allowed data=, eval=, only=, bert=, elmo=, gpt=, recipes=, steps=, batch=, resume=, outputs=, to=, format=; "
        "did you mean format?",
        "only: no such family; got 'bart'; allowed bert, elmo, gpt; did you mean bert?",
        "data: nothing is there; got none.tsv",
        "eval: is needed; got nothing; allowed eval=FILE",
        "bert: is no run folder that came to its end; got here",
        "steps: not a count; got '0'; allowed 1 or more",
        "resume: nothing is there; got gone",
        f"to: is no page with a place for the table; got page.md; allowed a line {MARKS[0]}, later a line {MARKS[1]}",
        f"recipes: there is no elmo_pretrain.yaml; got {tmp_path / 'recipes'}; elmo=RUN takes a finished run instead",
    ]


# --- the page ------------------------------------------------------------------------------------------------------------


def test_a_page_keeps_what_stands_around_its_table(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    page.write_page(path, "finetune", "| one |\n")
    assert path.read_text() == f"{MARKS[0]}\n| one |\n{MARKS[1]}\n"
    path.write_text(f"# Head\n\n{MARKS[0]}\nold\n{MARKS[1]}\n\nFoot\n")
    page.write_page(path, "finetune", "| two |\n")
    assert path.read_text() == f"# Head\n\n{MARKS[0]}\n| two |\n{MARKS[1]}\n\nFoot\n"


@pytest.mark.parametrize("text", ["", f"{MARKS[0]}\n", f"{MARKS[1]}\n{MARKS[0]}\n", f"{MARKS[0]}\n{MARKS[0]}\n{MARKS[1]}\n"])
def test_a_page_without_its_marks_is_not_touched(tmp_path: Path, text: str) -> None:
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is no page with a place for the table"):
        page.write_page(path, "finetune", "| one |\n")
    assert path.read_text() == text


# --- a measurement -------------------------------------------------------------------------------------------------------


def test_from_recipes_to_the_table(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every run once: what was measured before is read, by ``resume`` and by a family's own word."""
    with one_core():
        assert main(["bench", "finetune", *given, "steps=3", "batch=8", "format=json"]) == 0
    result = json.loads(capsys.readouterr().out)
    folder = Path(result["folder"])
    assert json.loads((folder / "result.json").read_text()) == result
    assert [row["family"] for row in result["families"]] == list(FAMILIES)
    assert (result["eval_samples"], result["most_frequent"]) == (12, 0.5)
    for row in result["families"]:
        runs = {kind: folder / f"{row['family']}-{kind}" for kind in ("pretrained", "finetuned", "scratch")}
        assert row["accuracy"] == read(runs["finetuned"], "summary.json")["eval"]["eval_accuracy"]
        assert row["scratch_accuracy"] == read(runs["scratch"], "summary.json")["eval"]["eval_accuracy"]
        starts = [read(runs[kind], "generations/0.json") for kind in ("finetuned", "scratch")]
        assert [start["pretrained"] for start in starts] == [str(runs["pretrained"] / "checkpoints" / "step-00000002"), None]
        assert starts[0]["plan"]["parameters"] == starts[1]["plan"]["parameters"] < row["parameters"]
        assert min(row["pretrain_s"], row["finetune_s"], row["scratch_s"]) > 0

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("summary.json")}
    own, target = f"gpt={folder / 'gpt-pretrained'}", tmp_path / "page.md"
    with one_core():
        assert main(["bench", "finetune", *given, "steps=3", "batch=8", f"resume={folder}", own, f"to={target}"]) == 0
    table = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("summary.json")} == before
    assert target.read_text() == f"{MARKS[0]}\n{table}{MARKS[1]}\n"
    assert [line.split("|")[1].strip() for line in table.splitlines()[:5]] == ["Family", "---", *FAMILIES]
    assert "3 updates of 8 texts" in table
    assert main(["bench", "finetune", *given, f"bert={folder / 'gpt-pretrained'}", "only="]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "only: leaves no family; got ''; allowed bert, elmo, gpt",
        f"bert: is a run of another model; got {folder / 'gpt-pretrained'}: gpt",
    ]


def test_a_run_that_is_ended_from_outside_ends_the_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is made anew, as one of other words is."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "left").touch()
    monkeypatch.setattr(finetune_runs.command, "train", lambda words, began: (Reason.TERMINATED, None))
    with pytest.raises(Terminated, match=f"run: was ended from outside; resume={tmp_path} goes on"):
        finetune_runs.trained(tmp_path, "run", ["train.steps=1"])
    assert not folder.exists()


def test_help_tells_the_defaults(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    part = capsys.readouterr().out.partition("Words of finetune:")[2].partition("Words of")[0]
    shown = dict(word.split("=", 1) for word in part.split() if "=" in word)
    asked = finetune_words([*given, f"steps={shown['steps']}", f"batch={shown['batch']}", f"only={shown['only']}"])
    assert asked == finetune_words(given)
    assert set(finetune.RATES) == set(FAMILIES)
