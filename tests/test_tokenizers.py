"""Tokenizers: which one is used, that ids are the same everywhere, that text reads back, and that what is wrong is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml_runner.data.parts import subword, training
from dml_runner.data.parts.plain_tokenizers import ByteTokenizer, CharTokenizer, WordTokenizer
from dml_runner.data.parts.tokenizer import Tokenizer, choose, load_tokenizer, tokenizer_for
from dml_runner.errors import ConfigError
from dml_runner.facts import Task
from dml_runner.schema.data import StdlibText

TEXT = "".join(f"Line {n}: the quick brown fox jumps, doesn't it? naïve ÄÖ 你好 😀\n\n  indented\ttab\n" for n in range(50))
NEXT, MASKED, CLASSES = Task("next_token", length=8), Task("masked", length=8), Task("classify", length=8)
CHARACTERS = Task("both_directions", "characters", length=8, word_length=10)
SIZE = 400


def words(tokenizer: str | None, vocab_size: int = SIZE) -> StdlibText:
    keys = {"name": "stdlib_text", "tokenizer": tokenizer, "vocab_size": vocab_size, "seq_len": None, "bad": "stop", "workers": 0}
    return StdlibText.model_validate(keys)


def made(tokenizer: str | None, task: Task = NEXT, text: str = TEXT, vocab_size: int = SIZE) -> Tokenizer:
    return tokenizer_for(words(tokenizer, vocab_size), task, lambda: iter([text]))


def none_needed() -> Iterator[str]:
    raise AssertionError("a tokenizer from a file needs no text")


def refused(tokenizer: str | None, task: Task = NEXT, vocab_size: int = SIZE) -> str:
    with pytest.raises(ConfigError) as caught:
        made(tokenizer, task, vocab_size=vocab_size)
    (line,) = str(caught.value).splitlines()
    return line


def bert_vocabulary(folder: Path, *more: str) -> Path:
    path = folder / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "jump", "##s", "The", *more]) + "\n")
    return path


# -- which one


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        (NEXT, "char"),
        (MASKED, "wordpiece"),
        (CHARACTERS, "word"),
        (Task("classify", "characters", 8), "word"),
        (CLASSES, "wordpiece"),
    ],
)
def test_what_the_model_needs_is_chosen(task: Task, kind: str) -> None:
    assert choose(words(None), task).name == kind


def test_pretrained_weights_bring_theirs_and_words_overrule(tmp_path: Path) -> None:
    bert_vocabulary(tmp_path)
    task = Task("classify", length=8, tokenizer=str(tmp_path))
    assert tokenizer_for(words(None), task, none_needed).size == 10
    assert made("byte", task).size == 256


@pytest.mark.parametrize("where", ["vocab.txt", "", "package:some-words"])
def test_a_file_a_folder_and_a_package_hold_one(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_words"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    bert_vocabulary(package)
    monkeypatch.syspath_prepend(str(tmp_path))
    tokenizer = tokenizer_for(words(where if ":" in where else str(package / where)), NEXT, none_needed)
    assert tokenizer.encode("The foxes jumps") == [5, 1, 7, 8]
    assert tokenizer.sample("the fox the fox", 5) == [2, 5, 6, 5, 3]
    assert tokenizer.sample("", 5) == [2, 3]
    assert tokenizer.sample("the", 1) == [2]
    assert (tokenizer.mask, tokenizer.first, tokenizer.last, tokenizer.pad) == (4, 2, 3, 0)
    assert np.flatnonzero(~tokenizer.starts_word()).tolist() == [0, 2, 3, 4, 8]
    assert tokenizer.decode([5, 7, 8, 99]) == "the jumps\ufffd"


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_case_is_kept_where_the_file_beside_says_so(tmp_path: Path, name: str) -> None:
    path = bert_vocabulary(tmp_path)
    (tmp_path / name).write_text(json.dumps({"do_lower_case": False}))
    assert load_tokenizer(path).encode("The the") == [9, 5]


# -- ids


@pytest.mark.parametrize("kind", ["char", "byte", "word", "bpe", "wordpiece"])
def test_a_kept_one_is_the_same(tmp_path: Path, kind: str) -> None:
    tokenizer = made(kind)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.array(TEXT).tolist() == tokenizer.array(TEXT).tolist()
    assert (again.size, again.dtype, again.kind) == (tokenizer.size, tokenizer.dtype, tokenizer.kind)
    assert again.starts_word().tolist() == tokenizer.starts_word().tolist()
    assert (again.mask, again.first, again.last, again.pad) == (tokenizer.mask, tokenizer.first, tokenizer.last, tokenizer.pad)
    assert tokenizer.array(TEXT).dtype == tokenizer.dtype
    assert int(tokenizer.array(TEXT).max()) < tokenizer.size
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
@pytest.mark.parametrize("vocab_size", [300, 8192])
def test_training_is_the_same_however_many_threads(tmp_path: Path, kind: str, vocab_size: int) -> None:
    code = (
        "import sys; from pathlib import Path; from pydoc_data.topics import topics\n"
        "from dml_runner.data.parts import training\n"
        "text = ''.join(topics[name] for name in sorted(topics))[:200000] + 'Ωμέγα 你好吗 ñandú ' * 3\n"
        f"tokenizer = training.train_{kind}(iter([text]), {vocab_size}); assert tokenizer.size <= {vocab_size}\n"
        "tokenizer.save(Path(sys.argv[1]))"
    )
    files = []
    for threads in ("1", "2", "5"):
        folder = tmp_path / threads
        folder.mkdir()
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, check=True)
        files.append((folder / "tokenizer.json").read_bytes())
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_ids_do_not_depend_on_where_text_is_cut(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = made(kind)
    whole = tokenizer.encode(TEXT)
    monkeypatch.setattr(subword, "CHUNK", chunk)
    pieces = [TEXT[start : start + 3 * chunk] for start in range(0, len(TEXT), 3 * chunk)]
    recut = list(subword.recut(pieces))
    assert "".join(recut) == TEXT
    assert np.concatenate([tokenizer.array(piece) for piece in recut]).tolist() == whole
    assert len(list(subword.chunks(TEXT))) > 1


def test_text_without_blanks_is_cut_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subword, "CHUNK", 2)
    text = "x" * 1000
    for parts in (list(subword.chunks(text)), list(subword.recut(iter(text)))):
        assert "".join(parts) == text
        assert max(map(len, parts)) <= 2 * subword.UNBROKEN + 1


def test_words_are_numbered_by_how_often_they_occur() -> None:
    tokenizer = made("word", text="b a, c c a's c\nb")
    assert isinstance(tokenizer, WordTokenizer)
    assert tokenizer.words == ["c", "a", "b", "'", ",", "s"]
    assert tokenizer.encode("a new c") == [2, 0, 1]
    assert tokenizer.decode([2, 0, 1, 99]) == "a \ufffd c \ufffd"
    assert tokenizer.sample("", 4) == [0]


def test_no_more_tokens_than_asked_for() -> None:
    many = " ".join(chr(code) for code in range(0x4E00, 0x4E00 + 500)) + " the fox" * 100
    tokenizer = made("wordpiece", text=many, vocab_size=60)
    assert tokenizer.size <= 60
    assert tokenizer.encode("\u4e80") == [1]
    assert 1 not in tokenizer.encode("the FOX")
    assert made("bpe", text=many, vocab_size=256).size == 256


def test_training_reads_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "TRAINED_ON", 8)
    assert made("wordpiece", text="aaaa bbb" + "zz" * 40).encode("a z")[1] == 1


# -- text reads back

CLEAN = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
BPE = training.train_bpe(iter([TEXT]), SIZE)


@given(CLEAN)
@settings(max_examples=200, deadline=None)
def test_bytes_and_byte_level_bpe_read_back_every_text(text: str) -> None:
    for tokenizer in (BPE, ByteTokenizer()):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.array(text).tolist() == tokenizer.encode(text)


@given(CLEAN, st.integers(1, 70))
@settings(max_examples=100, deadline=None)
def test_samples_are_cut_and_never_empty(text: str, length: int) -> None:
    for tokenizer in (BPE, ByteTokenizer(), CharTokenizer(sorted(map(ord, set(text)))), WordTokenizer(["a"])):
        assert tokenizer.sample(text, length) == (tokenizer.array(text).tolist()[:length] or [0])


@pytest.mark.parametrize("kind", ["byte", "word", "bpe", "wordpiece"])
def test_a_prompt_that_is_no_text_is_named(kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(kind).encode("ab\udc80")
    assert str(caught.value) == r"prompt: character 3 has no UTF-8 form; got '\udc80' (U+DC80); allowed UTF-8 text"


def test_a_character_that_training_text_lacked_is_read_as_a_space() -> None:
    assert made("char", text="a b").array("aßb").tolist() == [1, 0, 2]


# -- what is refused


@pytest.mark.parametrize(
    ("tokenizer", "task", "message"),
    [
        (
            "wordpeice",
            NEXT,
            "no such tokenizer; got wordpeice; allowed char, byte, word, bpe, wordpiece, or a tokenizer.json or vocab.txt; ",
        ),
        ("gone/vocab.txt", NEXT, "no such tokenizer; got gone/vocab.txt; allowed char, byte, word"),
        ("x" * 300, NEXT, "no such tokenizer; got xxx"),
        ("a\0b", NEXT, "no such tokenizer; got a"),
        (".", NEXT, "the folder holds no tokenizer; got .; allowed a tokenizer.json or vocab.txt in it"),
        ("package:not-there", NEXT, "no such package is installed; got package:not-there; pip install not-there"),
        ("package:..", NEXT, "no such package is installed; got package:.."),
        ("package:json", NEXT, "the package holds no tokenizer; got package:json; allowed a tokenizer.json or vocab.txt in it"),
        ("char", MASKED, "the model learns hidden tokens, and this tokenizer lacks a token that hides others"),
        ("bpe", CHARACTERS, "the model reads the characters of words; got bpe; allowed word, or null"),
    ],
)
def test_a_wrong_word_is_named(tmp_path: Path, tokenizer: str, task: Task, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(tokenizer, task).startswith(f"data.tokenizer: {message}")
    assert refused("wordpeice").endswith("did you mean wordpiece?")


@pytest.mark.parametrize(("tokenizer", "fewest"), [("bpe", 256), ("wordpiece", 7)])
def test_a_vocabulary_without_room_is_refused(tokenizer: str, fewest: int) -> None:
    assert refused(tokenizer, vocab_size=fewest - 1).endswith(f"got {fewest - 1}; allowed at least {fewest}")
    assert made(tokenizer, vocab_size=fewest).size <= fewest


def whole_json() -> dict[str, object]:
    content: dict[str, object] = json.loads(BPE._library.to_str())
    return content


def past(content: dict[str, object]) -> dict[str, object]:
    content["model"]["vocab"]["~"] = 5000  # type: ignore[index]
    return content


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "not a file of the tokenizers library; got "),
        ("tokenizer.json", b"\xff", "the tokenizer is not UTF-8; got "),
        (
            "tokenizer.json",
            json.dumps(past(whole_json())),
            f"the tokenizer has {BPE.size} tokens, but ids past them; got id 5000 of '~' in ",
        ),
        ("vocab.txt", "the\nfox\n", "the vocabulary has no [UNK]; got "),
        ("vocab.txt", "[UNK]\nfox\nfox\n", "a token stands twice in "),
        ("characters.json", '{"characters": [98, 97]}', "the tokenizer is damaged; got "),
        ("characters.json", '{"characters": [97, 1114112]}', "the tokenizer is damaged; got "),
        ("characters.json", '{"characters": []}', "the tokenizer is damaged; got "),
        ("words.json", '{"words": ["a", 1]}', "the tokenizer is damaged; got "),
        ("words.json", "[]", "the tokenizer is damaged; got "),
        ("bytes.json", "", "the tokenizer is damaged; got "),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(f"data.tokenizer: {message}")
    assert name in str(caught.value)


def test_a_file_that_cannot_hide_tokens_is_refused_for_such_a_model(tmp_path: Path) -> None:
    BPE.save(tmp_path)
    task = Task("masked", length=8, tokenizer=str(tmp_path))
    assert refused(None, task).startswith("model.pretrained: the model learns hidden tokens, and this tokenizer lacks a token that hides")
