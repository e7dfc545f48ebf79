"""Labelled texts: rows are read clean, stored once, and come as padded batches of like length."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from dml_runner.data import open_data, prepare
from dml_runner.data.parts.labelled import LabelledData
from dml_runner.data.parts.labels import label_ids
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts, Task
from dml_runner.models.parts.characters import BEGIN_WORD, END_WORD, PADDING
from dml_runner.schema.data import LabelledText

TASK = Task("classify", length=12)
ROWS = [(f"text {number} " + "ab " * (number % 5), str(number % 3)) for number in range(30)]
TSV = "".join(f"{text}\t{label}\n" for text, label in ROWS)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def words(path: str | tuple[str, ...], **others: Any) -> LabelledText:
    keys = {"eval_path": None, "text_column": "0", "label_column": "1", "seq_len": None, "tokenizer": "char", "vocab_size": 100}
    return LabelledText.model_validate({"name": "labelled_text", "path": path, **keys, "bad": "stop", "workers": 0, **others})


def prepared(path: str | tuple[str, ...], task: Task = TASK, **others: Any) -> DataFacts:
    return prepare(words(path, **others), task, Path("cache"))


def opened(facts: DataFacts, task: Task = TASK) -> LabelledData:
    data = open_data(words("any"), task, facts, 0)
    assert isinstance(data, LabelledData)
    return data


def refused(path: str | tuple[str, ...], task: Task = TASK, **others: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        prepared(path, task, **others)
    return str(caught.value).splitlines()


def picks(*samples: int) -> np.ndarray:
    return np.array([[sample, 0] for sample in samples])


def texts(facts: DataFacts) -> list[tuple[str, int]]:
    """Each training text, as far as it is kept, and the number of its label."""
    data = opened(facts)
    batch = data.train_batch(picks(*range(facts.train_samples)))
    rows = zip(batch["inputs"], batch["mask"], batch["targets"], strict=True)
    return [(data.decode(ids[mask].tolist()), int(target)) for ids, mask, target in rows]


# --- what is read ------------------------------------------------------------------------------------------------------


def test_the_facts_say_what_was_read() -> None:
    facts = prepared(write("a.tsv", TSV))
    assert (facts.kind, facts.train_samples, facts.eval_samples, facts.classes, facts.skipped) == ("labelled_text", 27, 3, 3, 0)
    assert (facts.sample_weight, facts.seq_len, facts.sample_tokens) == (1, 12, 11)
    assert facts.vocabulary == len(set("".join(text for text, _ in ROWS)))
    assert list(facts.digests) == ["a.tsv"]
    assert Path(facts.store).parent == Path("cache/labelled").absolute()
    assert (Path(facts.store) / "tokenizer").is_dir()


def test_every_tenth_row_is_held_out() -> None:
    facts = prepared(write("a.tsv", TSV))
    kept = [row for number, row in enumerate(ROWS, 1) if number % 10]
    assert texts(facts) == [(text[:12], int(label)) for text, label in kept]
    held_out = opened(facts).eval_batch(np.arange(3))
    assert held_out["targets"].tolist() == [int(ROWS[number][1]) for number in (9, 19, 29)]


def as_csv(header: bool) -> str:
    return ("text,label\n" if header else "") + "".join(f'"{text}",{label}\n' for text, label in ROWS)


def write_parquet(name: str) -> str:
    parquet.write_table(pyarrow.table({"text": [text for text, _ in ROWS], "label": [int(label) for _, label in ROWS]}), name)
    return name


def test_every_format_gives_the_same_samples() -> None:
    named = {"text_column": "text", "label_column": "label"}
    write("a.jsonl", "".join(json.dumps({"label": int(label), "more": [1], "text": text}) + "\n\n" for text, label in ROWS))
    found = [
        texts(prepared(write("a.tsv", TSV))),
        texts(prepared(write("b.tsv", "\ufefflabel\ttext\r\n" + "".join(f"{label}\t{text}\r\n" for text, label in ROWS)), **named)),
        texts(prepared(write("c.tsv", "".join(f"{label}\tx\t{text}\n" for text, label in ROWS)), text_column="2", label_column="0")),
        texts(prepared(write("a.csv", as_csv(header=False)))),
        texts(prepared(write("b.csv", as_csv(header=True)), **named)),
        texts(prepared("a.jsonl", **named)),
        texts(prepared(write_parquet("a.parquet"), **named)),
    ]
    assert all(samples == found[0] for samples in found)


def test_quotes_mean_something_in_csv_only() -> None:
    cells = ['"one\ntwo, ""three""",a', "four,b"] * 6
    assert texts(prepared(write("a.csv", "\n".join(cells)), seq_len=40))[:2] == [('one\ntwo, "three"', 0), ("four", 1)]
    assert texts(prepared(write("a.tsv", '"one"\ta\n"two\tb\n' * 6)))[:2] == [('"one"', 0), ('"two', 1)]


def test_several_files_and_held_out_ones() -> None:
    for number in range(2):
        write(f"part{number}.tsv", "".join(f"{text}\t{label}\n" for text, label in ROWS[number * 15 : number * 15 + 15]))
    facts = prepared("part*.tsv", eval_path=write("dev.tsv", "seen\t2\nseen too\t0\n"))
    assert [text for text, _ in texts(facts)] == [text[:12] for text, _ in ROWS]
    assert opened(facts).eval_batch(np.arange(2))["targets"].tolist() == [2, 0]
    assert list(facts.digests) == ["part0.tsv", "part1.tsv", "dev.tsv"]


def test_labels_are_numbered_in_sorted_order() -> None:
    assert label_ids(["10", "9", "-1"]) == {"-1": 0, "9": 1, "10": 2}
    assert label_ids(["10", "9", "x"]) == {"10": 0, "9": 1, "x": 2}
    assert [label for _, label in texts(prepared(write("a.tsv", "a\tpos\nb\tneg \nc\tpos\n" * 4)))][:3] == [1, 0, 1]


# --- the store ---------------------------------------------------------------------------------------------------------


def test_what_is_stored_is_used_again_and_a_damaged_store_is_made_anew() -> None:
    facts = prepared(write("a.tsv", TSV))
    file = Path(facts.store) / "train.bin"
    written = file.stat().st_mtime_ns
    assert prepared("a.tsv") == facts
    assert file.stat().st_mtime_ns == written
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert prepared("a.tsv") == facts
    assert file.read_bytes() == whole
    assert [name for name in os.listdir("cache/labelled") if name != ".lock"] == [Path(facts.store).name]


def test_another_length_column_tokenizer_or_file_is_another_store() -> None:
    write("a.tsv", TSV)
    facts = [prepared("a.tsv"), prepared("a.tsv", seq_len=5), prepared("a.tsv", tokenizer="byte"), prepared("a.tsv", bad="skip")]
    facts += [prepared(write("a.tsv", TSV + "more\t1\n"))]
    assert len({each.store for each in facts}) == 5
    assert facts[1].seq_len == 5


def test_a_store_that_is_gone_or_holds_wild_ids_is_no_crash() -> None:
    facts = prepared(write("a.tsv", TSV))
    (Path(facts.store) / "train.bin").write_bytes(b"\xff" * (Path(facts.store) / "train.bin").stat().st_size)
    with pytest.raises(ConfigError, match=r"damaged: a token id is too high; got 255; allowed 0 to \d+; remove"):
        opened(facts).train_batch(picks(0))
    shutil.rmtree(facts.store)
    with pytest.raises(ConfigError, match="data: the prepared texts are missing or damaged"):
        opened(facts)


# --- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_padded_to_its_longest_text() -> None:
    facts = prepared(write("a.tsv", "ab\t0\nabcd\t1\n" * 5 + "a" * 21 + "\t0\n"), seq_len=20)
    batch = opened(facts).train_batch(picks(0, 1))
    assert {name: (str(values.dtype), tuple(values.shape)) for name, values in batch.items()} == {
        "inputs": ("torch.int64", (2, 8)),
        "mask": ("torch.bool", (2, 8)),
        "targets": ("torch.int64", (2,)),
    }
    assert batch["mask"].sum(dim=1).tolist() == [2, 4]
    assert not batch["inputs"][~batch["mask"]].any()
    assert opened(facts).train_batch(picks(0, 9))["inputs"].shape == (2, 20)
    with pytest.raises(IndexError):
        opened(facts).train_batch(picks(facts.train_samples))


def test_special_tokens_stand_around_what_is_cut() -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    write("vocab.txt", "\n".join(vocabulary) + "\n")
    facts = prepared(
        write("a.tsv", "good film\t1\nbad film film film\t0\n" * 5), Task("classify", length=4, tokenizer="vocab.txt"), tokenizer=None
    )
    batch = opened(facts).train_batch(picks(0, 1))
    assert batch["inputs"].tolist() == [[2, 5, 7, 3], [2, 6, 7, 3]]
    assert facts.vocabulary == 8


def test_rare_words_keep_their_characters() -> None:
    task = Task("classify", "characters", length=4, word_length=6)
    facts = prepared(write("a.tsv", "go é\t1\nabcdefg\t0\n" * 5), task, tokenizer=None, eval_path=write("b.tsv", "unseen\t1\n"))
    batch = opened(facts, task).train_batch(picks(0, 1))
    rows = {
        "go": [BEGIN_WORD, *b"go", END_WORD, PADDING, PADDING],
        "é": [BEGIN_WORD, *"é".encode(), END_WORD, PADDING, PADDING],
        "abcdefg": [BEGIN_WORD, *b"abcd", END_WORD],
        "": [PADDING] * 6,
    }
    assert batch["characters"].tolist() == [[rows["go"], rows["é"]], [rows["abcdefg"], rows[""]]]
    assert batch["mask"].tolist() == [[True, True], [True, False]]
    assert opened(facts, task).eval_batch(np.array([0]))["characters"][0, 0].tolist() == [BEGIN_WORD, *b"unse", END_WORD]


def test_threads_get_the_same_batches() -> None:
    data = opened(prepared(write("a.tsv", TSV)))
    alone = [data.train_batch(picks(number, number + 1)) for number in range(20)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda number: data.train_batch(picks(number, number + 1)), range(20)))
    for one, other in zip(alone, together, strict=True):
        assert all((one[name] == other[name]).all() for name in one)


# --- what is refused ---------------------------------------------------------------------------------------------------


GOOD = "fine\t0\nalso fine\t1\n"
NAMED = {"text_column": "text", "label_column": "label"}
BAD = {
    "a.tsv": {
        "one cell\n": "1 cell where the first row has 2",
        "one\ttwo\tthree\n": "3 cells where the first row has 2",
        " \t1\n": "the text is empty",
        "text\t \n": "the label is missing",
        b"caf\xe9\t1\n": "the text is not UTF-8: byte 0xe9",
        "nul\0\t1\n": "the text holds a NUL",
        "text\t\0\n": "the label holds a NUL",
    },
    "a.csv": {
        '"open "quote",1\n': "not CSV: ',' expected after '\"'",
        b"caf\xe9,1\n": "the text is not UTF-8: byte 0xe9",
        "x,y,z\n": "3 cells",
    },
    "a.jsonl": {
        '{"text": "x", "label"\n': "not JSON: Expecting ':' delimiter in column 22",
        "[1]\n": "not a JSON object",
        '"text"\n': "not a JSON object",
        "[" * 100_000 + "\n": "not JSON: nested too deeply",
        '{"text": 3, "label": 1}\n': "the text is a number",
        '{"label": 1}\n': "the text is missing",
        '{"text": "x", "label": null}\n': "the label is missing",
        '{"text": "x", "label": NaN}\n': "the label is missing",
        '{"text": "x", "label": [1]}\n': "the label is a list",
        '{"text": "\\ud800", "label": 1}\n': "the text holds half a character: U+D800",
        b'{"text": "\xff", "label": 1}\n': "the line is not UTF-8: byte 0xff",
    },
}
CASES = [(name, line, message) for name, lines in BAD.items() for line, message in lines.items()]


@pytest.mark.parametrize(("name", "line", "message"), CASES, ids=[f"{name}-{number}" for number, (name, _, _) in enumerate(CASES)])
def test_a_malformed_row_is_named_or_skipped(name: str, line: str | bytes, message: str) -> None:
    good = {"a.tsv": GOOD, "a.csv": GOOD.replace("\t", ","), "a.jsonl": '{"text": "x", "label": 0}\n{"text": "y", "label": 1}\n'}[name]
    columns = NAMED if name == "a.jsonl" else {}
    write(name, good.encode() * 5 + (line if isinstance(line, bytes) else line.encode()) + good.encode())
    first, second = refused(name, **columns)
    assert first.startswith(f"data.path: {message}")
    assert first.endswith(f" at {name}:11")
    assert second == "data.bad: 1 of 13 rows are malformed; got stop; data.bad=skip passes over such rows and counts them"
    facts = prepared(name, bad="skip", **columns)
    assert (facts.train_samples, facts.eval_samples, facts.skipped) == (11, 1, 1)


def test_the_first_malformed_rows_are_shown_and_all_are_counted() -> None:
    lines = refused(write("a.tsv", GOOD + "alone\n" * 40))
    assert lines[0] == "data.path: 1 cell where the first row has 2 at a.tsv:3"
    assert len(lines) == 6
    assert lines[-1].startswith("data.bad: 40 of 42 rows are malformed;")


def test_a_held_out_label_that_nothing_is_learned_of() -> None:
    write("a.tsv", GOOD * 5)
    write("b.tsv", "x\t0\ny\t7\nz\t7\n")
    assert refused("a.tsv", eval_path="b.tsv") == [
        "data.eval_path: the label '7' is in no training row at b.tsv:2 (held out)",
        "data.bad: 2 of 13 rows are malformed; got stop; data.bad=skip passes over such rows and counts them",
    ]
    facts = prepared("a.tsv", eval_path="b.tsv", bad="skip")
    assert (facts.eval_samples, facts.classes, facts.skipped) == (1, 2, 2)


def test_a_column_that_is_not_there() -> None:
    write("a.tsv", "text\tlabel\n" + GOOD)
    assert refused("a.tsv", text_column="2", label_column="0") == ["data.text_column: a.tsv has no such column; got '2'; allowed 0, 1"]
    assert refused("a.tsv", text_column="test", label_column="label") == [
        "data.text_column: a.tsv has no such column; got 'test'; allowed text, label; did you mean text?"
    ]
    write("a.jsonl", '{"text": "x", "label": 0}\n')
    assert [line.split(";")[0] for line in refused("a.jsonl")] == [
        "data.text_column: a.jsonl has no such column",
        "data.label_column: a.jsonl has no such column",
    ]
    assert refused(write_parquet("a.parquet"), text_column="text", label_column="2")[0].endswith("got '2'; allowed text, label")


def test_files_that_are_no_tables() -> None:
    assert refused(write("a.tsv", "")) == ["data.path: the file is empty; got a.tsv"]
    assert refused(write("a.tsv", "\n\n")) == ["data.path: the file has no rows; got a.tsv"]
    assert refused(write("a.tsv", "text\tlabel\n"), **NAMED) == ["data.path: the file has no rows; got a.tsv"]
    assert refused(write("a.txt", GOOD)) == [
        "data.path: the name's ending tells no format; got a.txt; allowed .tsv, .csv, .jsonl, .parquet"
    ]
    assert refused("none.tsv")[0].startswith("data.path: no such file; got none.tsv")
    assert refused(write("a.parquet", "PAR1 and no more"))[0].startswith("data.path: not a whole Parquet file; got a.parquet (")
    whole = Path(write_parquet("b.parquet")).read_bytes()
    write("b.parquet", whole[: len(whole) // 2])
    assert refused("b.parquet", **NAMED)[0].startswith("data.path: not a whole Parquet file; got b.parquet (")


def test_too_few_rows_or_labels() -> None:
    assert refused(write("a.tsv", "x\t1\n" * 20)) == [
        "data.path: every training row has the same label; got '1'; allowed at least 2 labels"
    ]
    hint = "every tenth row is held out; or name others by data.eval_path"
    assert refused(write("a.tsv", GOOD)) == [f"data.path: too few good rows; got 2; allowed at least 10; {hint}"]
    write("b.tsv", "\tone\n\ttwo\n")
    assert refused("a.tsv", eval_path="b.tsv", bad="skip") == ["data.eval_path: no good row to hold out; 2 malformed ones were passed over"]
    assert refused("b.tsv", bad="skip") == ["data.path: no good row to train on; 2 malformed ones were passed over"]


NO_LABELS = "the model learns none of their labels; got data=labelled_text; model.head=classifier, or data=text"
NO_IMAGES = "the model reads images; got data=labelled_text; data=idx or data=digits"


@pytest.mark.parametrize(
    ("task", "message"),
    [(Task("next_token", length=8), NO_LABELS), (Task("masked", length=8), NO_LABELS), (Task("classify", "images"), NO_IMAGES)],
)
def test_a_model_that_wants_something_else(task: Task, message: str) -> None:
    assert refused(write("a.tsv", TSV), task) == [f"data: holds labelled texts, and {message}"]


def test_a_cache_that_cannot_be_written() -> None:
    write("cache", "a file")
    assert refused(write("a.tsv", TSV))[0].startswith("data: cannot write the prepared data; got ")
