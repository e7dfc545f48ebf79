"""Running text: malformed lines, what models that look both ways see, and text that is larger than memory."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from dml_runner.data import open_data, prepare
from dml_runner.data.base import Data, Written, weight_of
from dml_runner.data.parts import folder as prepared_folder
from dml_runner.data.parts import source
from dml_runner.data.parts.masked import MaskedData, chosen_words
from dml_runner.data.parts.order import eval_shares, slice_of
from dml_runner.data.parts.store import load_store
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts, Task
from dml_runner.models.parts.characters import BEGIN_WORD, END_WORD, PADDING
from dml_runner.models.parts.language import IGNORED
from dml_runner.schema.data import StdlibText, Text

LENGTH, SHARE = 32, 0.15
NEXT = Task("next_token", length=LENGTH)
MASKED = Task("masked", length=LENGTH, hidden_share=SHARE)
WORDS = Task("both_directions", "characters", length=5, word_length=6)
STDLIB = StdlibText.model_validate(
    {"name": "stdlib_text", "tokenizer": None, "vocab_size": 600, "seq_len": None, "bad": "stop", "workers": 0}
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> DataFacts:
    return prepare(STDLIB, MASKED, tmp_path_factory.mktemp("cache"))


def text_words(tokenizer: str | None = "char", bad: str = "stop", path: str = "a.txt", eval_path: str | None = None) -> Text:
    keys = {"name": "text", "path": path, "eval_path": eval_path, "tokenizer": tokenizer, "vocab_size": 300, "seq_len": None}
    return Text.model_validate({**keys, "bad": bad, "workers": 0})


def kept(facts: DataFacts) -> str:
    """The whole text, read back from the store."""
    store = load_store(Path(facts.store))
    assert store is not None
    return store.tokenizer.decode([*store.tokens("train").tolist(), *store.tokens("eval").tolist()])


def picks(samples: list[int], epoch: int = 0) -> np.ndarray:
    return np.array([[sample, epoch] for sample in samples])


# -- malformed lines

LINES = [f"line {number} äöü €".encode() for number in range(40)]
BAD = {3: b"torn \xe2\x82", 4: b"nul \0 nul", 11: b"\xff", 39: b"end \xed\xa0\x80"}


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("piece", [1, 5, 64, 1 << 22])
def test_malformed_lines_are_left_out_and_counted(here: Path, end: bytes, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PIECE", piece)
    Path("a.txt").write_bytes(end.join(BAD.get(number, line) for number, line in enumerate(LINES)))
    facts = prepare(text_words(bad="skip"), NEXT, Path("cache"))
    good = [line for number, line in enumerate(LINES) if number not in BAD]
    assert kept(facts) == (b"\n".join(good) + b"\n").decode()
    assert facts.skipped == 4
    assert prepare(text_words(bad="skip"), NEXT, Path("cache")) == facts


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word", "bpe"])
def test_malformed_lines_of_every_file_stop_with_their_place_and_number(here: Path, tokenizer: str) -> None:
    Path("a.txt").write_bytes(b"\n".join(BAD.get(number, line) for number, line in enumerate(LINES)))
    Path("b.txt").write_bytes(b"\n".join([*LINES, b"x\0"]))
    with pytest.raises(ConfigError) as caught:
        prepare(text_words(tokenizer, eval_path="b.txt"), NEXT, Path("cache"))
    assert str(caught.value).splitlines() == [
        "data.path: not UTF-8 at a.txt:4:6; got byte 0xe2; allowed UTF-8 text; the first of 4 such lines; data.bad=skip leaves them out",
        "data.eval_path: NUL at b.txt:41:2; got byte 0x00; allowed text; is this a binary file?",
    ]


def test_nothing_but_malformed_lines_is_too_short(here: Path) -> None:
    Path("a.txt").write_bytes(b"\xff\n" * 40)
    with pytest.raises(ConfigError, match=r"data.path: too few tokens to train on in a.txt; got 0 tokens; allowed at least 33"):
        prepare(text_words("byte", bad="skip"), NEXT, Path("cache"))


@pytest.mark.parametrize("text", ["x" * 1000, "ä€😀 " * 300, "😀" * 300])
def test_a_line_that_never_ends_is_read_in_parts(here: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PIECE", 10)
    monkeypatch.setattr(source, "LONGEST", 50)
    Path("a.txt").write_text(text)
    pieces = list(source.FileSource("a.txt", "data.path").pieces())
    assert "".join(pieces) == text
    assert len(pieces) > 10


# -- the store


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word", "bpe", "wordpiece"])
def test_pieces_and_mapping_make_no_difference(here: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"Line {n}, the quick\n\n   brown fox ä€\n" for n in range(300))
    Path("a.txt").write_text(text)
    whole = prepare(text_words(tokenizer), NEXT, Path("cache"))
    monkeypatch.setattr(source, "PIECE", 50)
    pieces = prepare(text_words(tokenizer), NEXT, Path("other"))
    assert [Path(whole.store, name).read_bytes() for name in ("train.bin", "eval.bin")] == [
        Path(pieces.store, name).read_bytes() for name in ("train.bin", "eval.bin")
    ]
    in_memory = open_data(text_words(tokenizer), NEXT, whole, 0).train_batch(picks([0, 3]))
    monkeypatch.setattr(prepared_folder, "IN_MEMORY", 0)
    mapped = open_data(text_words(tokenizer), NEXT, whole, 0).train_batch(picks([0, 3]))
    assert all(torch.equal(in_memory[name], mapped[name]) for name in in_memory)


@pytest.mark.parametrize("in_memory", [0, 1 << 30])
@pytest.mark.parametrize("task", [NEXT, MASKED, WORDS])
def test_an_id_past_the_vocabulary_is_named(here: Path, task: Task, in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_folder, "IN_MEMORY", in_memory)
    facts = prepare(STDLIB, task, Path("cache"))
    store = load_store(Path(facts.store))
    assert store is not None
    size, dtype = store.tokenizer.size, store.tokenizer.dtype
    with Path(facts.store, "train.bin").open("r+b") as file:
        file.write(np.array([size], dtype).tobytes())
    with pytest.raises(ConfigError) as caught:
        open_data(STDLIB, task, facts, 0).train_batch(picks([0]))
    what = f"data: the prepared tokens are damaged: an id is past the vocabulary; got {size}; allowed 0 to {size - 1}; remove "
    assert str(caught.value) == f"{what}{facts.store} and start again"


def test_a_store_with_another_tokenizer_is_made_anew(here: Path) -> None:
    facts = prepare(STDLIB, NEXT, Path("cache"))
    kept_tokenizer = Path(facts.store, "tokenizer/characters.json")
    whole = kept_tokenizer.read_text()
    kept_tokenizer.write_text('{"characters": [97, 98]}')
    with pytest.raises(ConfigError, match="the prepared tokens are missing or damaged"):
        open_data(STDLIB, NEXT, facts, 0)
    assert prepare(STDLIB, NEXT, Path("cache")) == facts
    assert kept_tokenizer.read_text() == whole


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task("classify", "images"), "data: holds text, and the model reads images; got data=stdlib_text; "),
        (Task("classify", length=8), "data: has no labels, and the model is a classifier; got data=stdlib_text; "),
        (Task("masked", length=2), "data.seq_len: no token fits between [CLS] and [SEP]; got 2; allowed at least 3"),
    ],
)
def test_what_running_text_cannot_give_is_refused(here: Path, task: Task, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(STDLIB, task, Path("cache"))
    assert str(caught.value).startswith(message)


# -- hidden words


def opened(facts: DataFacts, seed: int = 0, share: float = SHARE) -> MaskedData:
    return MaskedData(facts, share, seed)


def rows(batch: dict[str, Tensor]) -> Iterator[tuple[list[int], list[int]]]:
    yield from zip(batch["inputs"].tolist(), batch["targets"].tolist(), strict=True)


def test_a_masked_sample_is_the_text_but_for_what_is_hidden(masked: DataFacts) -> None:
    data, store = opened(masked), load_store(Path(masked.store))
    assert store is not None
    assert (masked.sample_weight, masked.sample_tokens, masked.seq_len) == (None, LENGTH, LENGTH)
    assert masked.train_samples == store.counts["train"] // (LENGTH - 2)
    tokens, ends = store.tokens("train").tolist(), (store.tokenizer.first, store.tokenizer.last)
    batch = data.train_batch(picks([0, 7, masked.train_samples - 1]))
    assert sorted(batch) == ["inputs", "targets"]
    for (inputs, targets), sample in zip(rows(batch), (0, 7, masked.train_samples - 1), strict=True):
        text = tokens[sample * (LENGTH - 2) : (sample + 1) * (LENGTH - 2)]
        assert (inputs[0], inputs[-1], targets[0], targets[-1]) == (*ends, IGNORED, IGNORED)
        assert [x if y == IGNORED else y for x, y in zip(inputs, targets, strict=True)][1:-1] == text
    with pytest.raises(IndexError):
        data.train_batch(picks([masked.train_samples]))


def test_shares_are_those_of_the_paper(masked: DataFacts) -> None:
    data, store = opened(masked), load_store(Path(masked.store))
    assert store is not None
    batch = data.train_batch(picks(list(range(masked.train_samples))))
    sought = batch["targets"] != IGNORED
    inputs, targets = batch["inputs"][sought], batch["targets"][sought]
    hidden, same = inputs == store.tokenizer.mask, inputs == targets
    other = inputs[~hidden & ~same]
    spread = 4 * (0.25 / len(inputs)) ** 0.5
    assert sought.sum(dim=1).min() >= round(SHARE * (LENGTH - 2))
    assert sought.sum() / sought.numel() * LENGTH / (LENGTH - 2) == pytest.approx(SHARE, abs=0.03)
    assert [float(share.float().mean()) for share in (hidden, same)] == pytest.approx([0.8, 0.1], abs=spread)
    assert not set(other.tolist()) & {0, 2, 3, 4}, "special tokens are no words"
    assert len(other.unique()) > 300


def test_hidden_words_depend_on_seed_sample_and_epoch_alone(masked: DataFacts) -> None:
    samples = list(range(24))
    whole = opened(masked).train_batch(picks(samples, epoch=3))
    for ranks in (1, 2, 3, 4):
        for rank in range(ranks):
            for share in slice_of(picks(samples, epoch=3), rank, ranks, 2, 12 // ranks):
                part = opened(masked).train_batch(share)
                assert all(torch.equal(part[name], whole[name][torch.from_numpy(share[:, 0])]) for name in whole)
    for other in (opened(masked, seed=1).train_batch(picks(samples, 3)), opened(masked).train_batch(picks(samples, 4))):
        assert all(not torch.equal(one, two) for one, two in zip(other["targets"], whole["targets"], strict=True))


def test_evaluation_hides_the_same_every_time_and_covers_the_text(masked: DataFacts) -> None:
    whole = opened(masked).eval_batch(np.arange(masked.eval_samples))
    for indices in eval_shares(masked.eval_samples, 5, 1, 3):
        part = opened(masked, seed=9).eval_batch(indices)
        assert all(torch.equal(part[name], whole[name][torch.from_numpy(indices)]) for name in whole)
    store = load_store(Path(masked.store))
    assert store is not None
    found = torch.where(whole["targets"] == IGNORED, whole["inputs"], whole["targets"])
    lengths = whole["mask"].sum(dim=1).tolist()
    text = [token for row, length in zip(found.tolist(), lengths, strict=True) for token in row[1 : length - 1]]
    assert text == store.tokens("eval").tolist()
    assert lengths[:-1] == [LENGTH] * (masked.eval_samples - 1)
    assert lengths[-1] < LENGTH, "the test needs a short last sample"
    assert found[-1, lengths[-1] - 1] == store.tokenizer.last
    assert set(found[-1, lengths[-1] :].tolist()) == {store.tokenizer.pad}
    assert weight_of(whole) >= masked.eval_samples


@given(st.data(), st.integers(1, 5), st.integers(1, 20), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_words_are_hidden_whole_and_no_more_than_needed(data: st.DataObject, samples: int, length: int, share: float) -> None:
    starts = data.draw(arrays(bool, (samples, length)))
    text = np.arange(length) < data.draw(arrays(np.int64, (samples, 1), elements=st.integers(1, length)))
    keys = data.draw(arrays(np.uint64, (samples, length)))
    chosen = chosen_words(starts, text, keys, share)
    assert not chosen[~text].any()
    for begins, there, hidden in zip(starts, text, chosen, strict=True):
        tokens = int(there.sum())
        borders = [0, *(i for i in range(1, tokens) if begins[i]), tokens]
        words = [hidden[a:b] for a, b in itertools.pairwise(borders)]
        assert all(word.all() or not word.any() for word in words)
        sizes = [len(word) for word in words if word.all()]
        wanted = max(1, int(np.rint(share * tokens)))
        assert sizes
        assert wanted <= sum(sizes) < wanted + max(sizes)


# -- words on either side


def test_words_come_as_characters_with_their_neighbours(here: Path) -> None:
    text = " ".join(["one", "two", "threefold", "ä"] * 40)
    Path("a.txt").write_text(text)
    Path("b.txt").write_text("two unseen one two ä one two")
    words = text_words(None, eval_path="b.txt")
    facts = prepare(words, WORDS, Path("cache"))
    data = open_data(words, WORDS, facts, 0)
    assert (facts.seq_len, facts.sample_weight, facts.sample_tokens, facts.train_samples) == (5, 5, 5, 31)
    batch = data.train_batch(picks([0, 1]))
    assert isinstance(data, Written)
    ids = data.encode(text)
    assert batch["targets"].tolist() == [ids[1:6], ids[6:11]]
    assert batch["before"].tolist() == [[IGNORED, *ids[:4]], ids[4:9]]
    assert batch["characters"].shape == (2, 5, 6)
    assert batch["characters"].dtype == batch["before"].dtype == torch.int64
    assert batch["characters"][0, [0, 2, 3]].tolist() == [
        [BEGIN_WORD, *b"one", END_WORD, PADDING],
        [BEGIN_WORD, *b"thre", END_WORD],
        [BEGIN_WORD, *"ä".encode(), END_WORD, PADDING, PADDING],
    ]
    with pytest.raises(IndexError):
        data.train_batch(picks([facts.train_samples]))


def test_the_ends_of_held_out_words_have_no_neighbour(here: Path) -> None:
    Path("a.txt").write_text("one two three " * 40)
    Path("b.txt").write_text("one two three one two three one")
    words = text_words(None, eval_path="b.txt")
    facts = prepare(words, WORDS, Path("cache"))
    data: Data = open_data(words, WORDS, facts, 0)
    batch = data.eval_batch(np.arange(facts.eval_samples))
    one, two, three = 1, 3, 2
    assert facts.eval_samples == 2
    assert batch["targets"].tolist() == [[two, three, one, two, three], [one, *[IGNORED] * 4]]
    assert batch["before"].tolist() == [[IGNORED, one, two, three, one], [two, *[IGNORED] * 4]]
    assert batch["mask"].tolist() == [[True] * 5, [True, True, False, False, False]]
    assert batch["characters"][1, 2:].eq(PADDING).all()


# -- text larger than memory

MEASURE = """
import resource, sys, time
from pathlib import Path
from dml_runner.data import prepare
from dml_runner.facts import Task
from dml_runner.schema.data import Text
words = Text(name="text", path="a.txt", eval_path=None, tokenizer=sys.argv[1], seq_len=None, vocab_size=8192, bad="stop", workers=0)
began = time.perf_counter()
facts = prepare(words, Task("next_token", length=1), Path("cache"))
seconds = time.perf_counter() - began
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, facts.train_samples + facts.eval_samples, seconds)
"""


def write_big(path: Path, size: int) -> None:
    """Made-up words, the i-th of them 1 / i as frequent as the first."""
    dice = random.Random(0)
    words = ["".join(dice.choices("etaoinshrdlucmfwypvbgk", k=dice.randint(1, 10))) for _ in range(200_000)]
    weights = list(itertools.accumulate(1 / (place + 1) for place in range(len(words))))
    with path.open("w") as file:
        while file.tell() < size:
            drawn = dice.choices(words, cum_weights=weights, k=200_000)
            text = "".join(word + (".\n" if place % 13 == 12 else " ") for place, word in enumerate(drawn))
            for _ in range(10):
                cut = dice.randrange(len(text))
                file.write(f"{text[cut:]}{text[:cut]}\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_a_gigabyte_of_text_needs_less_memory(here: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_big(here / "a.txt", 1_000_000_000)
    command = [sys.executable, "-c", MEASURE, tokenizer]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(Path(__file__).parents[1])})
    peak, tokens, seconds = map(float, found.stdout.split())
    (here / "a.txt").unlink()
    with capsys.disabled():
        print(
            f"\n{tokenizer}: {tokens / 1e6:.0f} M tokens in {seconds:.0f} s, {tokens / seconds / 1e6:.2f} M/s, at most {peak / 1e6:.0f} MB"
        )
    assert peak < 1e9
    assert tokens > 1e8
