"""Data: what is read is clean, stored once, cut into samples that are seen exactly once, whatever the world."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml_runner.data import prepare
from dml_runner.data.parts import folder as prepared_folder
from dml_runner.data.parts import source
from dml_runner.data.parts.order import eval_shares
from dml_runner.data.parts.plain_tokenizers import CharTokenizer, smallest_dtype
from dml_runner.data.parts.tokens import TokenData
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts, Task
from dml_runner.schema.data import StdlibText, Text

CONTEXT = 8
TASK = Task("next_token", length=CONTEXT)
REST = {"seq_len": None, "vocab_size": 100, "bad": "stop", "workers": 0}
LINES = "".join(f"line {number}: the quick brown fox … ä€😀\n" for number in range(60))
UNSEEN = "prompt: character {} does not occur in the training text;"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(path: str | tuple[str, ...], eval_path: str | tuple[str, ...] | None = None, tokenizer: str = "char") -> Text:
    return Text.model_validate({"name": "text", "path": path, "eval_path": eval_path, "tokenizer": tokenizer, **REST})


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def prepared(path: str | tuple[str, ...], eval_path: str | tuple[str, ...] | None = None, tokenizer: str = "char") -> DataFacts:
    return prepare(words(path, eval_path, tokenizer), TASK, Path("cache"))


def opened(facts: DataFacts) -> TokenData:
    """The prepared text, ready to give batches."""
    return TokenData(facts)


def picks(*samples: int) -> np.ndarray:
    """These samples of the first epoch."""
    return np.array([[sample, 0] for sample in samples])


def texts(facts: DataFacts) -> tuple[str, str]:
    """The training and the held-out text, read back from the batches."""
    data = opened(facts)
    train = data.train_batch(picks(*range(facts.train_samples)))
    held_out = data.eval_batch(np.arange(facts.eval_samples))
    first = data.train_batch(picks(0))["inputs"][0, :1].tolist()
    begin = held_out["inputs"][0, :1].tolist()
    seen = held_out["targets"].flatten()
    return data.decode(first + train["targets"].flatten().tolist()), data.decode(begin + seen[seen != -100].tolist())


def stores() -> list[str]:
    return [name for name in os.listdir("cache/tokens") if name != ".lock"]


def refused(path: str | tuple[str, ...], eval_path: str | tuple[str, ...] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        prepared(path, eval_path)
    return str(caught.value).splitlines()


# -- the text and its tokens


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_batches_read_back_as_the_text(folder: Path, tokenizer: str) -> None:
    facts = prepared(write("a.txt", LINES), tokenizer=tokenizer)
    units = LINES if tokenizer == "char" else LINES.encode()
    cut = len(units) * 9 // 10
    expected = [part if isinstance(part, str) else part.decode(errors="replace") for part in (units[:cut], units[cut:])]
    train, held_out = texts(facts)
    assert held_out == expected[1]
    assert expected[0].startswith(train.rstrip("\ufffd"))
    assert facts.vocabulary == (len(set(LINES)) if tokenizer == "char" else 256)
    assert facts.train_samples == (cut - 1) // CONTEXT
    assert facts.sample_weight == facts.sample_tokens == facts.seq_len == CONTEXT


@pytest.mark.parametrize("in_memory", [0, 1 << 30])
def test_targets_are_the_tokens_that_follow(folder: Path, in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_folder, "IN_MEMORY", in_memory)
    data = opened(prepared(write("a.txt", LINES)))
    batch = data.train_batch(picks(3, 0))
    ids = data.encode(LINES)
    assert batch["inputs"].tolist() == [ids[24:32], ids[0:8]]
    assert batch["targets"].tolist() == [ids[25:33], ids[1:9]]
    assert str(batch["inputs"].dtype) == str(batch["targets"].dtype) == "torch.int64"
    assert all(tensor.is_contiguous() for tensor in batch.values())
    with pytest.raises(IndexError):
        data.train_batch(picks(data.facts.train_samples))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_char_tokenizer_reads_back(text: str) -> None:
    tokenizer = CharTokenizer(sorted(map(ord, set(text))))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.array(text).tolist() == tokenizer.encode(text)


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_tokens_read_back(folder: Path, tokenizer: str) -> None:
    data = opened(prepared(write("a.txt", LINES), tokenizer=tokenizer))
    assert data.decode(data.encode("the fox ä€😀\n")) == "the fox ä€😀\n"
    assert data.decode([100_000]) == "\ufffd"


@pytest.mark.parametrize(
    ("tokenizer", "text", "message"),
    [
        ("char", "the Zoo", f"{UNSEEN.format(5)} got 'Z' (U+005A); allowed the {len(set(LINES))} characters of that text"),
        ("char", "fox\tfox", rf"{UNSEEN.format(4)} got '\t' (U+0009); allowed"),
        ("byte", "ab\udc80", r"prompt: character 3 has no UTF-8 form; got '\udc80' (U+DC80); allowed UTF-8 text"),
    ],
)
def test_a_character_without_token_is_named(folder: Path, tokenizer: str, text: str, message: str) -> None:
    data = opened(prepared(write("a.txt", LINES), tokenizer=tokenizer))
    with pytest.raises(ConfigError) as caught:
        data.encode(text)
    assert str(caught.value).startswith(message)


def test_ids_take_as_few_bytes_as_they_need(folder: Path) -> None:
    assert [smallest_dtype(size).str for size in (256, 257, 65536, 65537)] == ["|u1", "<u2", "<u2", "<u4"]
    many = "".join(chr(code) for code in range(0x4E00, 0x4E00 + 300))
    facts = prepared(write("a.txt", many))
    assert json.loads((Path(facts.store) / "store.json").read_text())["dtype"] == "<u2"
    assert texts(facts)[0] == many[:265]


@pytest.mark.parametrize("piece", [1, 2, 3, 1 << 22])
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_mark_and_line_ends_are_made_one(folder: Path, tokenizer: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PIECE", piece)
    plain = "one\ntwo\n\nthree €\n"
    odd = "\ufeff" + plain.replace("\n", "\r\n") + plain.replace("\n", "\r") + plain + "\r"
    facts = prepared(write("plain.txt", plain), write("odd.txt", odd), tokenizer)
    assert texts(facts)[1] == plain * 3 + "\n"


def test_lists_and_globs(folder: Path) -> None:
    Path("more/deep").mkdir(parents=True)
    for name, letter in {"b.txt": "b", "a.txt": "a", "more/c.txt": "c", "more/deep/d.txt": "d", "[1].txt": "1"}.items():
        write(name, letter * 20)
    facts = prepared(("b.txt", "[ac].txt", "more/**/*.txt", "[1].txt"), "a.txt")
    assert ("b" * 20 + "a" * 20 + "c" * 20 + "d" * 20 + "1" * 20).startswith(texts(facts)[0])
    assert list(facts.digests) == ["b.txt", "a.txt", "more/c.txt", "more/deep/d.txt", "[1].txt"]


def test_stdlib_text_needs_nothing(folder: Path) -> None:
    facts = prepare(StdlibText.model_validate({"name": "stdlib_text", "tokenizer": "char", **REST, "seq_len": 32}), TASK, Path("cache"))
    assert facts.seq_len == 32
    assert facts.train_samples > 10_000
    assert '"with" statement' in texts(facts)[1]


def test_preparing_needs_no_torch() -> None:
    code = "import sys, dml_runner.data, dml_runner.data.text, dml_runner.data.stdlib_text; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


# -- what is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "data.path: the file is empty; got bad.txt"),
        (b"\xef\xbb\xbf", "data.path: the file is empty; got bad.txt"),
        (b"good\r\n\xc3\xa4b\xff more", "data.path: not UTF-8 at bad.txt:2:3; got byte 0xff; allowed UTF-8 text"),
        (b"good\r\xff", "data.path: not UTF-8 at bad.txt:2:1; got byte 0xff; allowed UTF-8 text"),
        (b"\xef\xbb\xbfab\xed\xa0\x80", "data.path: not UTF-8 at bad.txt:1:3; got byte 0xed; allowed UTF-8 text"),
        (b"torn \xe2\x82", "data.path: not UTF-8 at bad.txt:1:6; got byte 0xe2; allowed UTF-8 text"),
        (b"a\n\nbc\0d\0", "data.path: NUL at bad.txt:3:3; got byte 0x00; allowed text; is this a binary file?"),
    ],
)
@pytest.mark.parametrize("piece", [1, 2, 1 << 22])
def test_a_bad_file_is_named_with_its_place(folder: Path, content: bytes, message: str, piece: int, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(source, "PIECE", piece)
    assert refused(write("bad.txt", content)) == [message]
    assert not list(Path("cache").glob("**/*.bin"))


def test_bad_words_are_all_named(folder: Path) -> None:
    Path("sub").mkdir()
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    lines = refused(("none.txt", "no*.txt", "sub", "pipe", "loop", "x" * 300, "a\0b"), ("gone.txt",))
    assert lines[0] == f"data.path: no such file; got none.txt; the current folder is {folder}"
    assert lines[1] == f"data.path: the glob matches no file; got no*.txt; the current folder is {folder}"
    assert lines[2] == "data.path: a folder, not a file; got sub; for all files in it: sub/*.txt"
    assert lines[3] == "data.path: not a plain file; got pipe; allowed text files"
    assert lines[4] == "data.path: cannot read the file; got 'loop' (Too many levels of symbolic links)"
    assert "File name too long" in lines[5]
    assert lines[6] == r"data.path: cannot read the file; got 'a\x00b' (embedded null byte)"
    assert lines[7].startswith("data.eval_path: no such file; got gone.txt")
    assert refused(()) == ["data.path: no file given; got an empty list"]


def test_bad_files_are_all_named(folder: Path) -> None:
    lines = refused((write("a.txt", b"\xff"), write("b.txt", "good")), write("c.txt", "x\0"))
    assert [line.split(";")[0] for line in lines] == ["data.path: not UTF-8 at a.txt:1:1", "data.eval_path: NUL at c.txt:1:2"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file at hand whose reading fails")
def test_a_file_that_fails_to_read_is_named(folder: Path) -> None:
    assert refused("/proc/self/mem") == ["data.path: cannot read the file; got /proc/self/mem (Input/output error)"]


def test_too_few_tokens_are_counted(folder: Path) -> None:
    write("short.txt", "abcdefgh")
    needs = "one sample is data.seq_len=8 tokens and the one that follows"
    train = "data.path: too few tokens to train on in short.txt; got {} tokens; allowed at least 9; " + needs
    hold = "too few tokens to hold out in {}; got 1 tokens; allowed at least 2"
    assert refused("short.txt", "short.txt") == [train.format(8)]
    assert refused(write("a.txt", LINES), write("b.txt", "l")) == [f"data.eval_path: {hold.format('b.txt')}"]
    assert refused("short.txt") == [train.format(7) + " (the last 10 % are held out)", f"data.path: {hold.format('short.txt')}"]
    assert prepared(write("enough.txt", "abcdefghi"), write("two.txt", "ab")).train_samples == 1


def test_a_file_that_changes_while_it_is_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.txt", LINES)
    clean = source.FileSource._clean

    def growing(self: source.FileSource, skipped: source.Skipped | None):  # type: ignore[no-untyped-def]
        yield from clean(self, skipped)
        with Path(self.name).open("a") as file:
            file.write("\u4e00")

    monkeypatch.setattr(source.FileSource, "_clean", growing)
    assert refused("a.txt") == ["data.path: a file changed while it was read; start again when it is complete"]
    assert stores() == []


def test_a_store_that_cannot_be_written_is_named(folder: Path) -> None:
    write("a.txt", LINES)
    write("cache", "a file where a folder is needed")
    assert refused("a.txt")[0].startswith("data: cannot write the prepared data; got ")


# -- the store


def test_the_store_is_used_again(folder: Path) -> None:
    facts = prepared(write("a.txt", LINES))
    before = {path.name: path.stat().st_mtime_ns for path in Path(facts.store).iterdir()}
    assert sorted(before) == ["eval.bin", "store.json", "tokenizer", "train.bin"]
    assert prepared("a.txt") == facts
    assert {path.name: path.stat().st_mtime_ns for path in Path(facts.store).iterdir()} == before
    assert Path(facts.store).is_absolute()


def test_another_text_tokenizer_or_split_is_another_store(folder: Path) -> None:
    write("a.txt", LINES)
    write("b.txt", LINES + "!")
    facts = [prepared("a.txt"), prepared("b.txt"), prepared("a.txt", tokenizer="byte"), prepared("a.txt", "a.txt")]
    assert sorted(Path(one.store).name for one in facts) == sorted(stores())
    assert len(stores()) == 4


@pytest.mark.parametrize(
    "tear",
    [
        lambda made: os.truncate(made / "train.bin", 100),
        lambda made: (made / "eval.bin").unlink(),
        lambda made: (made / "store.json").unlink(),
        lambda made: os.truncate(made / "store.json", 40),
        lambda made: (made / "store.json").write_text("[]"),
    ],
)
def test_a_torn_store_is_made_anew(folder: Path, tear) -> None:  # type: ignore[no-untyped-def]
    facts = prepared(write("a.txt", LINES))
    expected = texts(facts)
    tear(Path(facts.store))
    with pytest.raises(ConfigError, match="the prepared tokens are missing or damaged"):
        opened(facts)
    assert prepared("a.txt") == facts
    assert texts(facts) == expected
    assert stores() == [Path(facts.store).name]


@pytest.mark.parametrize("torn", [False, True])
def test_two_processes_may_prepare_at_once(folder: Path, torn: bool) -> None:
    facts = prepared(write("a.txt", LINES))
    expected = texts(facts)
    if torn:
        os.truncate(Path(facts.store) / "train.bin", 7)
    else:
        shutil.rmtree("cache")
    code = (
        "import sys; from pathlib import Path; from dml_runner.data import prepare\n"
        "from dml_runner.facts import Task; from dml_runner.schema.data import Text\n"
        "words = Text(name='text', path='a.txt', eval_path=None, tokenizer='char', seq_len=None, vocab_size=100, bad='stop', workers=0)\n"
        f"print('ready', flush=True); sys.stdin.readline()\n"
        f"print(prepare(words, Task('next_token', length={CONTEXT}), Path('cache')).store)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    runs = [subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True, env=environment) for _ in range(3)]
    assert [next(run.stdout or iter("")) for run in runs] == ["ready\n"] * 3
    for run in runs:
        print(file=run.stdin, flush=True)
    assert [run.communicate()[0] for run in runs] == [facts.store + "\n"] * 3
    assert texts(facts) == expected
    assert stores() == [Path(facts.store).name]


# -- held-out tokens


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [2, 8, 9, 10, 57])
def test_every_held_out_token_is_predicted_once(folder: Path, ranks: int, length: int) -> None:
    held_out = LINES[:length]
    facts = prepared(write("a.txt", LINES), write("b.txt", held_out))
    data = opened(facts)
    seen: list[tuple[int, list[int], list[int]]] = []
    for rank in range(ranks):
        for indices in eval_shares(facts.eval_samples, 2, rank, ranks):
            batch = data.eval_batch(indices)
            assert batch["inputs"].shape == batch["targets"].shape == (len(indices), CONTEXT)
            seen += zip(indices.tolist(), batch["inputs"].tolist(), batch["targets"].tolist(), strict=True)
    pairs = [(x, y) for _, inputs, targets in sorted(seen) for x, y in zip(inputs, targets, strict=True) if y != -100]
    ids = data.encode(held_out)
    assert pairs == list(pairwise(ids))
