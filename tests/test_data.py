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

from dml_runner.data import open_data, prepare
from dml_runner.data.parts import source, store
from dml_runner.data.parts.order import SampleOrder, eval_shares, permutation, slice_of
from dml_runner.data.parts.tokenizer import CharTokenizer, smallest_dtype
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts
from dml_runner.schema.data import StdlibText, Text

CONTEXT = 8
LINES = "".join(f"line {number}: the quick brown fox … ä€😀\n" for number in range(60))
UNSEEN = "prompt: character {} does not occur in the training text;"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(path: str | tuple[str, ...], eval_path: str | tuple[str, ...] | None = None, tokenizer: str = "char") -> Text:
    return Text.model_validate({"name": "text", "path": path, "eval_path": eval_path, "seq_len": None, "tokenizer": tokenizer})


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def prepared(path: str | tuple[str, ...], eval_path: str | tuple[str, ...] | None = None, tokenizer: str = "char") -> DataFacts:
    return prepare(words(path, eval_path, tokenizer), CONTEXT, Path("cache"))


def texts(facts: DataFacts) -> tuple[str, str]:
    """The training and the held-out text, read back from the batches."""
    data = open_data(facts)
    train = data.train_batch(np.arange(facts.train_samples))
    held_out = data.eval_batch(np.arange(facts.eval_samples))
    first = data.train_batch(np.array([0]))["inputs"][0, :1].tolist()
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
    monkeypatch.setattr(store, "IN_MEMORY", in_memory)
    data = open_data(prepared(write("a.txt", LINES)))
    batch = data.train_batch(np.array([3, 0]))
    ids = data.encode(LINES)
    assert batch["inputs"].tolist() == [ids[24:32], ids[0:8]]
    assert batch["targets"].tolist() == [ids[25:33], ids[1:9]]
    assert str(batch["inputs"].dtype) == str(batch["targets"].dtype) == "torch.int64"
    assert all(tensor.is_contiguous() for tensor in batch.values())
    with pytest.raises(IndexError):
        data.train_batch(np.array([data.facts.train_samples]))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_char_tokenizer_reads_back(text: str) -> None:
    tokenizer = CharTokenizer(sorted(map(ord, set(text))))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.array(text).tolist() == tokenizer.encode(text)


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_tokens_read_back(folder: Path, tokenizer: str) -> None:
    data = open_data(prepared(write("a.txt", LINES), tokenizer=tokenizer))
    assert data.decode(data.encode("the fox ä€😀\n")) == "the fox ä€😀\n"
    assert data.decode([100_000]) == "\ufffd"
    assert data.vocabulary == data.facts.vocabulary


@pytest.mark.parametrize(
    ("tokenizer", "text", "message"),
    [
        ("char", "the Zoo", f"{UNSEEN.format(5)} got 'Z' (U+005A); allowed the {len(set(LINES))} characters of that text"),
        ("char", "fox\tfox", rf"{UNSEEN.format(4)} got '\t' (U+0009); allowed"),
        ("byte", "ab\udc80", r"prompt: character 3 has no UTF-8 form; got '\udc80' (U+DC80); allowed UTF-8 text"),
    ],
)
def test_a_character_without_token_is_named(folder: Path, tokenizer: str, text: str, message: str) -> None:
    data = open_data(prepared(write("a.txt", LINES), tokenizer=tokenizer))
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
    facts = prepare(StdlibText(name="stdlib_text", seq_len=32, tokenizer="char"), CONTEXT, Path("cache"))
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

    def growing(self: source.FileSource):  # type: ignore[no-untyped-def]
        yield from clean(self)
        with Path(self.name).open("a") as file:
            file.write("\u4e00")

    monkeypatch.setattr(source.FileSource, "_clean", growing)
    assert refused("a.txt") == ["data.path: a file changed while it was read; start again when it is complete"]
    assert stores() == []


def test_a_store_that_cannot_be_written_is_named(folder: Path) -> None:
    write("a.txt", LINES)
    write("cache", "a file where a folder is needed")
    assert refused("a.txt")[0].startswith("data: cannot write the prepared tokens; got ")


# -- the store


def test_the_store_is_used_again(folder: Path) -> None:
    facts = prepared(write("a.txt", LINES))
    before = {path.name: path.stat().st_mtime_ns for path in Path(facts.store).iterdir()}
    assert sorted(before) == ["eval.bin", "store.json", "train.bin"]
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
        open_data(facts)
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
        "import sys; from pathlib import Path; from dml_runner.data import prepare; from dml_runner.schema.data import Text\n"
        "words = Text(name='text', path='a.txt', eval_path=None, seq_len=None, tokenizer='char')\n"
        f"print('ready', flush=True); sys.stdin.readline(); print(prepare(words, {CONTEXT}, Path('cache')).store)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    runs = [subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True, env=environment) for _ in range(3)]
    assert [next(run.stdout or iter("")) for run in runs] == ["ready\n"] * 3
    for run in runs:
        print(file=run.stdin, flush=True)
    assert [run.communicate()[0] for run in runs] == [facts.store + "\n"] * 3
    assert texts(facts) == expected
    assert stores() == [Path(facts.store).name]


# -- which samples form step k

counts = st.integers(1, 50)


@given(samples=counts, batch=counts, seed=st.integers(0, 2**70), epochs=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_each_epoch_is_exactly_the_data(samples: int, batch: int, seed: int, epochs: int) -> None:
    order = SampleOrder(samples, seed)
    steps = -(-samples * epochs // batch)
    row = np.concatenate([order.step(k, batch) for k in range(1, steps + 1)])
    assert row.dtype == np.int64
    for epoch in range(epochs):
        assert sorted(row[epoch * samples : (epoch + 1) * samples]) == list(range(samples))
    assert order.epoch_of(steps, batch) >= epochs


@given(samples=counts, batch=counts, k=st.integers(1, 200), history=st.lists(st.integers(1, 200), max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_step_does_not_depend_on_what_was_asked_before(samples: int, batch: int, k: int, history: list[int]) -> None:
    order = SampleOrder(samples, 7)
    for earlier in history:
        order.step(earlier, batch)
    assert order.step(k, batch).tolist() == SampleOrder(samples, 7).step(k, batch).tolist()


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = [permutation(100, seed, epoch).tolist() for seed in (0, 1, 2) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 6
    assert permutation(8, 1, 0).tolist() == [3, 5, 2, 7, 0, 6, 1, 4]


def test_a_caller_cannot_change_the_order() -> None:
    order = SampleOrder(10, 1)
    first = order.step(1, 5)
    kept = first.tolist()
    first[:] = 0
    assert order.step(1, 5).tolist() == kept


@given(ranks=st.integers(1, 4), micro=st.integers(1, 5), accumulation=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_every_world_shares_out_the_same_step(ranks: int, micro: int, accumulation: int) -> None:
    indices = SampleOrder(37, 3).step(2, ranks * micro * accumulation)
    shares = [slice_of(indices, rank, ranks, micro, accumulation) for rank in range(ranks)]
    assert all(len(share) == accumulation and all(len(batch) == micro for batch in share) for share in shares)
    together = np.concatenate([share[a] for a in range(accumulation) for share in shares])
    assert together.tolist() == indices.tolist()
    with pytest.raises(ValueError):
        slice_of(indices[1:], 0, ranks, micro, accumulation)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_global_batch_is_the_same_samples_in_any_world(ranks: int) -> None:
    step = SampleOrder(100, 5).step(4, 24)
    shares = [slice_of(step, rank, ranks, 24 // ranks // 2, 2) for rank in range(ranks)]
    assert sorted(np.concatenate([np.concatenate(share) for share in shares])) == sorted(step)


@given(samples=st.integers(0, 60), micro=st.integers(1, 9), ranks=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_held_out_samples_are_shared_out_once(samples: int, micro: int, ranks: int) -> None:
    shares = [eval_shares(samples, micro, rank, ranks) for rank in range(ranks)]
    assert sorted(index for share in shares for batch in share for index in batch.tolist()) == list(range(samples))
    assert all(1 <= len(batch) <= micro for share in shares for batch in share)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [2, 8, 9, 10, 57])
def test_every_held_out_token_is_predicted_once(folder: Path, ranks: int, length: int) -> None:
    held_out = LINES[:length]
    facts = prepared(write("a.txt", LINES), write("b.txt", held_out))
    data = open_data(facts)
    seen: list[tuple[int, list[int], list[int]]] = []
    for rank in range(ranks):
        for indices in eval_shares(facts.eval_samples, 2, rank, ranks):
            batch = data.eval_batch(indices)
            assert batch["inputs"].shape == batch["targets"].shape == (len(indices), CONTEXT)
            seen += zip(indices.tolist(), batch["inputs"].tolist(), batch["targets"].tolist(), strict=True)
    pairs = [(x, y) for _, inputs, targets in sorted(seen) for x, y in zip(inputs, targets, strict=True) if y != -100]
    ids = data.encode(held_out)
    assert pairs == list(pairwise(ids))
