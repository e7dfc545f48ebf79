"""Data sets of the datasets library, from files: as running text, as labelled texts and as labelled images."""

from __future__ import annotations

import gc
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from dml_runner.data import open_data, prepare
from dml_runner.data.parts.masked import MaskedData
from dml_runner.data.parts.tokens import TokenData
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts, Task
from dml_runner.schema.data import HuggingfaceData

# the library leaves the files of its .csv reader to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

LANGUAGE = Task("next_token", length=4)
CLASSIFIER = Task("classify", length=8)
PICTURES = Task("classify", reads="images")
ROWS = [{"sentence": f"row {number} é", "more": 0.5, "label": number % 2} for number in range(40)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
    gc.collect()


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def write_rows(name: str = "rows.jsonl", rows: list[dict[str, Any]] = ROWS) -> str:
    """The rows in the form that the name tells; a name without ending is a folder of ``save_to_disk``."""
    table = datasets.Dataset.from_list(rows)
    if name.endswith(".parquet"):
        table.to_parquet(name)
    elif name.endswith(".csv"):
        table.to_csv(name)
    elif name.endswith(".jsonl"):
        write(name, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        table.cast_column("label", datasets.ClassLabel(names=["no", "yes"])).save_to_disk(name)
    return name


def words(path: str, **others: Any) -> HuggingfaceData:
    keys: dict[str, Any] = {"subset": None, "split": "train", "eval_split": None, "streaming": False}
    keys |= {"text_column": "sentence", "label_column": None, "seq_len": None, "tokenizer": "char"}
    keys |= {"vocab_size": 100, "bad": "stop", "workers": 0}
    keys |= {"image_column": None, "size": None, "pad": 0, "flip": False, "crop": 1.0, "mean": None, "std": None}
    return HuggingfaceData.model_validate({"name": "huggingface", "path": path, **keys, **others})


def prepared(path: str, task: Task = LANGUAGE, **others: Any) -> DataFacts:
    if task.objective == "classify":
        others = {"label_column": "label", **others}
    return prepare(words(path, **others), task, Path("cache"))


def refused(path: str, task: Task = LANGUAGE, **others: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        prepared(path, task, **others)
    return str(caught.value).splitlines()


def text_of(facts: DataFacts) -> str:
    """The training text, as far as it is samples."""
    data = open_data(words("any"), LANGUAGE, facts, 0)
    assert isinstance(data, TokenData)
    batch = data.train_batch(np.array([[sample, 0] for sample in range(facts.train_samples)]))
    return data.decode(batch["inputs"].flatten().tolist())


FORMS = ("rows.jsonl", "rows.csv", "rows.parquet", "saved")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_texts_are_joined_by_line_ends(name: str, streaming: bool) -> None:
    facts = prepared(write_rows(name), streaming=streaming)
    text = "".join(row["sentence"] + "\n" for row in ROWS)
    assert facts.kind == "tokens"
    assert text_of(facts) == text[: facts.train_samples * 4]
    assert list(facts.digests) == [f"{name}[train]"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_texts_with_labels(name: str, streaming: bool) -> None:
    facts = prepared(write_rows(name), CLASSIFIER, streaming=streaming)
    assert (facts.kind, facts.train_samples, facts.eval_samples, facts.classes) == ("labelled_text", 36, 4, 2)
    batch = open_data(words("any"), CLASSIFIER, facts, 0).train_batch(np.array([[0, 0], [1, 0], [9, 0]]))
    assert batch["targets"].tolist() == [0, 1, 0]
    assert batch["mask"].sum(dim=1).tolist() == [7, 7, 8]


def test_splits_of_a_saved_folder_and_of_a_folder_of_files() -> None:
    train, test = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:10])
    datasets.DatasetDict(train=train, test=test).save_to_disk("saved")
    Path("files").mkdir()
    train.to_parquet("files/train-0.parquet")
    test.to_parquet("files/test-0.parquet")
    for name in ("saved", "files"):
        facts = prepared(name, CLASSIFIER, eval_split="test")
        assert (facts.train_samples, facts.eval_samples) == (40, 10)
        assert list(facts.digests) == [f"{name}[train]", f"{name}[test]"]
        assert refused(name, split="tset") == [f"data.split: {name} has no such split; got tset; allowed train, test; did you mean test?"]


def test_several_files_by_a_glob() -> None:
    write_rows("part-0.jsonl", ROWS[:20])
    write_rows("part-1.jsonl", ROWS[20:])
    assert text_of(prepared("part-*.jsonl")) == text_of(prepared(write_rows("rows.jsonl")))


def test_hidden_tokens_are_learned_of_it_too() -> None:
    task = Task("masked", length=8, hidden_share=0.15)
    facts = prepared(write_rows(), task, tokenizer="wordpiece")
    assert isinstance(open_data(words("any"), task, facts, 0), MaskedData)


def test_what_is_stored_is_used_again_and_changed_files_are_read_again() -> None:
    facts = prepared(write_rows(), CLASSIFIER)
    assert prepared("rows.jsonl", CLASSIFIER) == facts
    assert prepared(write_rows(rows=ROWS[:20]), CLASSIFIER).train_samples == 18


def test_words_that_another_reader_takes_for_nothing_are_words() -> None:
    write("rows.csv", "sentence,label\n" + "NA,None\nnull,nan\n" * 10)
    assert prepared("rows.csv", CLASSIFIER).classes == 2


def test_a_class_of_minus_one_is_no_label() -> None:
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = [{"sentence": "x", "label": number % 3 - 1} for number in range(30)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk("saved")
    assert refused("saved", CLASSIFIER)[0] == "data.path: the label is missing at saved[train]:1"
    facts = prepared("saved", CLASSIFIER, bad="skip")
    assert (facts.classes, facts.skipped) == (2, 10)


@pytest.mark.parametrize("streaming", [False, True])
def test_malformed_rows_are_named_or_skipped(streaming: bool) -> None:
    rows = [*ROWS[:5], {**ROWS[5], "sentence": None}, *ROWS[6:20], {**ROWS[20], "sentence": "a\0"}, *ROWS[21:]]
    path = write_rows(rows=rows)
    assert refused(path, streaming=streaming) == [
        f"data.path: the text is missing at {path}[train]:6; the first of 2 such rows; data.bad=skip leaves them out"
    ]
    assert prepared(path, streaming=streaming, bad="skip").skipped == 2
    lines = refused(path, CLASSIFIER, streaming=streaming)
    assert lines[0] == f"data.path: the text is missing at {path}[train]:6"
    assert lines[-1].startswith("data.bad: 2 of 40 rows are malformed;")
    assert prepared(path, CLASSIFIER, streaming=streaming, bad="skip").skipped == 2


def test_columns_that_are_not_there_or_not_named() -> None:
    path = write_rows()
    there = "sentence, more, label"
    assert refused(path, text_column="sentense") == [
        f"data.text_column: {path}[train] has no such column; got 'sentense'; allowed {there}; did you mean sentence?"
    ]
    assert refused(path, CLASSIFIER, label_column="y") == [f"data.label_column: {path}[train] has no such column; got 'y'; allowed {there}"]
    assert refused(path, CLASSIFIER, text_column=None, label_column=None) == [
        f"data.text_column: the model reads texts, and their column is not named; got null; allowed {there}",
        f"data.label_column: the model is a classifier, and the column of labels is not named; got null; allowed {there}",
    ]
    assert refused(path, label_column="label") == ["data.label_column: the model learns no labels; got label; allowed null"]


def test_words_that_fit_no_files() -> None:
    path = write_rows()
    assert refused(path, split="test", eval_split="dev") == [
        f"data.split: {path} has no such split; got test; allowed train",
        f"data.eval_split: {path} has no such split; got dev; allowed train",
    ]
    assert refused(path, subset="en") == ["data.subset: files have no subsets; got en; allowed null"]
    assert refused("none.csv")[0].startswith("data.path: no such file; got none.csv; the current folder is ")
    write_rows("rows.parquet")
    assert refused("rows.*") == ["data.path: files of one known kind are needed; got .jsonl, .parquet; allowed .parquet, .jsonl, .csv"]
    assert refused(write("rows.txt", "x")) == ["data.path: files of one known kind are needed; got .txt; allowed .parquet, .jsonl, .csv"]


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", '{"sentence": "x"}\n{"sent\n'), ("a.parquet", "PAR1 no more"), ("a.csv", "")])
def test_files_that_the_library_cannot_read(name: str, content: str, capfd: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(write(name, content))
    assert line.startswith(f"data.path: the datasets library cannot read it; got {name}")
    assert capfd.readouterr() == ("", "")


def test_tables_without_rows() -> None:
    assert refused(write("a.jsonl", ""))[0].startswith("data.path: ")
    datasets.Dataset.from_dict({"sentence": [], "label": []}).to_parquet("a.parquet")
    assert refused("a.parquet") == ["data.path: the table has no rows; got a.parquet[train]"]


def test_a_folder_of_which_the_library_knows_nothing() -> None:
    Path("empty").mkdir()
    assert refused("empty")[0].startswith("data.path: the datasets library cannot read it; got empty (")
    Path("files").mkdir()
    write_rows("files/train.parquet")
    assert refused("files", subset="en")[0].startswith(
        "data.subset: the datasets library cannot read it; got files (BuilderConfig 'en' not"
    )


def test_a_script_in_a_folder_is_not_run() -> None:
    Path("scripted").mkdir()
    write("scripted/scripted.py", "open('ran', 'w')\n")
    assert refused("scripted")[0].startswith("data.path: the datasets library cannot read it; got scripted (")
    assert not Path("ran").exists()


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (line,) = refused("nobody/nothing")
    assert line.startswith("data.path: the datasets library cannot read it; got nobody/nothing (Couldn't reach 'nobody/nothing' on the Hub")


def test_a_name_that_the_hub_does_not_know() -> None:
    (line,) = refused("no such name at all")
    assert line == (
        "data.path: no file or folder of this name, and the hub did not give it (HFValidationError); got no such name at all; "
        "HF_HUB_OFFLINE=1 takes what was fetched before"
    )


# --- images --------------------------------------------------------------------------------------------------------------


def picture(number: int, size: tuple[int, int] = (5, 4)) -> bytes:
    """A PNG file of random pixels."""
    width, height = size
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def write_images(name: str, cells: list[Any], labels: list[int] | None = None) -> str:
    """A table of images in the form that the name tells; ``plain`` in it means that nothing in the file says which column they are."""
    found = {"image": cells, "label": labels or [number % 2 for number in range(len(cells))]}
    if "plain" in name:
        datasets.Dataset.from_dict(found).to_parquet(name)
        return name
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict(found, features=features)
    if name.endswith(".parquet"):
        table.to_parquet(name)
    else:
        table.save_to_disk(name)
    return name


def prepared_images(path: str, **others: Any) -> DataFacts:
    return prepare(
        words(path, **{"text_column": None, "image_column": "image", "label_column": "label", **others}), PICTURES, Path("cache")
    )


def refused_images(path: str, **others: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        prepared_images(path, **others)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["images.parquet", "plain.parquet", "saved"])
def test_images_with_labels(name: str, streaming: bool) -> None:
    cells = [{"bytes": picture(number), "path": None} for number in range(40)]
    facts = prepared_images(write_images(name, cells), streaming=streaming)
    assert (facts.kind, facts.train_samples, facts.eval_samples, facts.classes, facts.image) == ("images", 36, 4, 2, (3, 4, 5))
    assert list(facts.digests) == [f"{name}[train]"]
    for path in [Path(name)] if Path(name).is_file() else list(Path(name).iterdir()):
        path.unlink()
    data = open_data(words("any", mean=(0, 0, 0), std=(1, 1, 1)), PICTURES, facts, 0)
    batch = data.train_batch(np.array([[9, 0], [0, 0]]))
    for image, number in zip(batch["images"], (10, 0), strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(picture(number))))
        assert torch.equal((image * 255).round().byte(), torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    assert batch["targets"].tolist() == [0, 0]
    assert data.eval_batch(np.arange(4))["targets"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_without_an_image_that_can_be_read_are_named_or_skipped(streaming: bool) -> None:
    good = [{"bytes": picture(number), "path": None} for number in range(20)]
    Path("beside.png").write_bytes(picture(3))
    good[3] = {"bytes": None, "path": str(Path("beside.png").absolute())}
    bad: list[Any] = [{"bytes": picture(0)[:60], "path": None}, {"bytes": None, "path": "gone.png"}, None, {"bytes": b"", "path": None}]
    path = write_images("plain.parquet", [*good[:10], *bad, *good[10:]])
    lines = refused_images(path, streaming=streaming)
    assert lines[0].startswith("data.path: no whole image (")
    told = ("the image's file gone.png is missing", "the image is missing", "the file is empty")
    assert lines[1:4] == [f"data.path: {what} at {path}[train]:{row}" for row, what in enumerate(told, 12)]
    hint = "data.bad=skip passes over such images and counts them"
    assert lines[4] == f"data.bad: 4 of 24 images are malformed; got stop; {hint}"
    facts = prepared_images(path, streaming=streaming, bad="skip")
    assert (facts.skipped, facts.train_samples, facts.eval_samples) == (4, 18, 2)
    texts = [{"sentence": "a", "label": number % 2} for number in range(20)]
    lines = refused_images(write_rows("texts.jsonl", texts), image_column="sentence", streaming=streaming)
    assert lines[0] == "data.path: the cell holds no image (str) at texts.jsonl[train]:1"


def test_images_of_another_size_and_a_split_that_is_held_out() -> None:
    cells = [{"bytes": picture(number, (5 + number % 2, 4)), "path": None} for number in range(20)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"image": cells, "label": [0, 1] * 10}, features=features)
    datasets.DatasetDict(train=table, test=table.select(range(6))).save_to_disk("saved")
    (line,) = refused_images("saved", eval_split="test")
    assert line.startswith(
        "data.size: null leaves images as they are stored, and these differ in size; got row 2 (6 x 4) and row 1 (5 x 4);"
    )
    facts = prepared_images("saved", eval_split="test", size=4, flip=True)
    assert (facts.train_samples, facts.eval_samples, facts.image) == (20, 6, (3, 4, 4))


def test_a_folder_of_image_files_as_the_library_reads_it() -> None:
    for number in range(20):
        place = Path("files") / "train" / ("no", "yes")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(picture(number))
    facts = prepared_images("files")
    assert (facts.train_samples, facts.eval_samples, facts.classes) == (18, 2, 2)


def test_a_column_of_texts_and_one_of_images() -> None:
    path = write_images("images.parquet", [{"bytes": picture(number), "path": None} for number in range(20)])
    both = "data.image_column: a column of texts and one of images are named, and one is read; got text_column=label, image_column=image; "
    assert refused_images(path, text_column="label") == [both + "the model reads images: data.text_column=null"]
    assert refused(path, text_column="label", image_column="image") == [both + "the model reads tokens: data.image_column=null"]
    assert refused_images(path, image_column=None, label_column=None) == [
        "data.image_column: the model reads images, and their column is not named; got null; allowed image, label",
        "data.label_column: the model is a classifier, and the column of labels is not named; got null; allowed image, label",
    ]
    assert refused_images(path, image_column=None, text_column="label") == [
        "data.image_column: the model reads images, and their column is not named; got null; allowed image, label",
        "data.text_column: the model reads no texts; got label; allowed null",
    ]
    assert refused(path, text_column=None, image_column="image") == [
        "data.text_column: the model reads texts, and their column is not named; got null; allowed image, label",
        "data.image_column: the model reads no images; got image; allowed null",
    ]
    assert refused_images(path, image_column="imag") == [
        "data.image_column: images.parquet[train] has no such column; got 'imag'; allowed image, label; did you mean image?"
    ]
