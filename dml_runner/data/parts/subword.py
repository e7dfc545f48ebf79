"""Tokenizers of the tokenizers library: from a tokenizer.json or a vocab.txt."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_runner.data.parts.plain_tokenizers import REPLACEMENT, smallest_dtype, utf8
from dml_runner.errors import ConfigError, Problem
from dml_runner.files import write_atomically

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

SUBWORD_FILE, VOCABULARY_FILE = "tokenizer.json", "vocab.txt"
UNKNOWN, PAD, FIRST, LAST, MASK = "[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"
PAD_NAMES, MASK_NAMES = (PAD, "<pad>", "<|pad|>"), (MASK, "<mask>")
CONTINUING = "##"
CHUNK = 1 << 14
"""Characters that are encoded at once by one thread; many of them at once by all."""
UNBROKEN = 64
"""Chunks without a blank after which text is cut all the same."""
BORDER = re.compile(r"[ \n](?=\S)")
"""Where text may be cut and still give the same tokens: before the blank that goes with a word."""


class SubwordTokenizer:
    """Pieces of words, as a tokenizer of the tokenizers library cuts them.

    Args:
        library: the tokenizer; what it says of truncation and padding is dropped.
        key: the key that named it.
        name: what the user calls it.

    Raises:
        ConfigError: it has no tokens, or gives ids past its vocabulary.
    """

    kind = "subword"

    def __init__(self, library: Library, key: str = "data.tokenizer", name: str = SUBWORD_FILE) -> None:
        library.no_truncation()
        library.no_padding()
        self._library = library
        self._tokens: dict[str, int] = library.get_vocab(with_added_tokens=True)
        self.size = len(set(self._tokens.values()))
        if not self.size:
            raise ConfigError(Problem(key, "the tokenizer has no tokens", got=name))
        token, highest = max(self._tokens.items(), key=lambda item: item[1])
        if highest >= self.size:
            what = f"the tokenizer has {self.size} tokens, but ids past them"
            raise ConfigError(Problem(key, what, got=f"id {highest} of {token!r} in {name}", allowed=f"0 to {self.size - 1}"))
        self.dtype = smallest_dtype(self.size)
        self.mask = self._named(MASK_NAMES)
        self.pad = self._named(PAD_NAMES) or 0
        self.first, self.last = self._borders()

    def _named(self, names: tuple[str, ...]) -> int | None:
        return next((self._tokens[name] for name in names if name in self._tokens), None)

    def _borders(self) -> tuple[int | None, int | None]:
        """What the tokenizer itself puts around a text, or where it puts nothing, [CLS] and [SEP] where it has both."""
        bare, whole = (self._library.encode("a", add_special_tokens=special).ids for special in (False, True))
        before = next((start for start in range(len(whole) - len(bare) + 1) if whole[start : start + len(bare)] == bare), 0)
        around = whole[:before], whole[before + len(bare) :]
        if len(whole) == len(bare) and FIRST in self._tokens and LAST in self._tokens:
            return self._tokens[FIRST], self._tokens[LAST]
        return around[0][0] if around[0] else None, around[1][-1] if around[1] else None

    def array(self, text: str) -> np.ndarray:
        """Ids of running ``text`` as ``dtype``, without special tokens; all cores take part."""
        parts = self._library.encode_batch_fast(list(chunks(text)), add_special_tokens=False)
        return np.concatenate([np.asarray(part.ids, self.dtype) for part in parts]) if parts else np.zeros(0, self.dtype)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without special tokens.

        Raises:
            ConfigError: a character has no UTF-8 form (a lone surrogate); the first such is named.
        """
        utf8(text)
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``; what is not UTF-8, or no token at all, shows as the replacement character."""
        shown = ""
        for known, run in groupby(ids, lambda token: 0 <= token < self.size):
            part = list(run)
            shown += self._library.decode(part, skip_special_tokens=False) if known else REPLACEMENT * len(part)
        return shown

    def sample(self, text: str, length: int) -> list[int]:
        """The ids of one text between the special tokens that the model expects around it, cut to ``length``; never none."""
        around = [self.first is not None, self.last is not None]
        ids = self._library.encode(text, add_special_tokens=False).ids[: max(length - sum(around), 0)]
        first = [] if self.first is None else [self.first]
        last = [] if self.last is None else [self.last]
        return [*first, *ids, *last][:length] or [self.pad]

    def starts_word(self) -> np.ndarray:
        """Which tokens begin a word, bool (size,): by the marks of WordPiece, byte-level BPE or SentencePiece; special tokens do not.

        The token for unknown words begins one. Where there are no such marks, every other token does.
        """
        about: dict[str, Any] = json.loads(self._library.to_str())
        cutting = json.dumps([about["pre_tokenizer"], about["decoder"]])
        special = {self.mask, self.first, self.last, self._named(PAD_NAMES)}
        prefix = about["model"].get("continuing_subword_prefix") or ""
        starts = np.zeros(self.size, bool)
        for token, number in self._tokens.items():
            if prefix:
                begins = not token.startswith(prefix)
            elif '"ByteLevel"' in cutting:
                begins = token.startswith(("\u0120", "\u010a"))
            else:
                begins = '"Metaspace"' not in cutting or token.startswith("\u2581")
            starts[number] = begins and number not in special
        return starts

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json``, in the library's form."""
        write_atomically(folder / SUBWORD_FILE, self._library.to_str(pretty=True) + "\n")


def chunks(text: str) -> Iterator[str]:
    """``text`` in parts of about ``CHUNK`` characters, cut where it makes no difference to the tokens, if there is such a place."""
    start = 0
    while start < len(text):
        farthest = min(start + UNBROKEN * CHUNK, len(text))
        border = BORDER.search(text, start + CHUNK, farthest)
        end = border.start() if border else farthest
        yield text[start:end]
        start = end


def recut(pieces: Iterable[str]) -> Iterator[str]:
    """The same text, every piece but the last ending where ``BORDER`` says that it makes no difference to the tokens."""
    held = ""
    for piece in pieces:
        text = held + piece
        end = len(text.rstrip())
        while (border := max(text.rfind(" ", 0, end), text.rfind("\n", 0, end))) > 0 and text[border + 1].isspace():
            end = border
        if border <= 0:
            border = len(text) if len(text) > UNBROKEN * CHUNK else 0
        held = text[border:]
        if border:
            yield text[:border]
    if held:
        yield held


def read_subword(path: Path, key: str) -> SubwordTokenizer:
    """The tokenizer of a tokenizer.json.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    from tokenizers import Tokenizer as Library

    text = _read(path, key)
    try:
        library = Library.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(Problem(key, "not a file of the tokenizers library", got=f"{path} ({error})")) from None
    return SubwordTokenizer(library, key, str(path))


def read_vocabulary(path: Path, key: str) -> SubwordTokenizer:
    """BERT's WordPiece over the tokens of a vocab.txt, a line each; ``do_lower_case`` is as in tokenizer_config.json, else true.

    Raises:
        ConfigError: it cannot be read, lacks the unknown token, or names a token twice.
    """
    lines = _read(path, key).splitlines()
    vocabulary = {token: number for number, token in enumerate(lines)}
    if UNKNOWN not in vocabulary:
        hint = "a tokenizer.json says itself which token is unknown"
        raise ConfigError(Problem(key, f"the vocabulary has no {UNKNOWN}", got=str(path), hint=hint))
    if len(vocabulary) < len(lines):
        twice = next(number for number, token in enumerate(lines) if vocabulary[token] != number)
        raise ConfigError(Problem(key, f"a token stands twice in {path}:{twice + 1}", got=repr(lines[twice])))
    return SubwordTokenizer(wordpiece(vocabulary, lowers_case(path)), key, str(path))


def lowers_case(vocabulary: Path) -> bool:
    """Whether a vocab.txt is of lower-cased text, by the tokenizer_config.json or config.json beside it; true where they are silent."""
    for name in ("tokenizer_config.json", "config.json"):
        try:
            about = json.loads((vocabulary.parent / name).read_text())
        except (OSError, ValueError):
            continue
        if isinstance(about, dict) and isinstance(about.get("do_lower_case"), bool):
            return bool(about["do_lower_case"])
    return True


def wordpiece(vocabulary: dict[str, int], lower: bool) -> Library:
    """BERT's tokenizer over ``vocabulary``: clean, cut at blanks and punctuation, then the longest known pieces (Devlin et al. 2019)."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    library = Library(models.WordPiece(vocabulary, unk_token=UNKNOWN, continuing_subword_prefix=CONTINUING))
    library.normalizer = normalizers.BertNormalizer(lowercase=lower)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix=CONTINUING)
    library.add_special_tokens([token for token in (PAD, UNKNOWN, FIRST, LAST, MASK) if token in vocabulary])
    if FIRST in vocabulary and LAST in vocabulary:
        library.post_processor = processors.BertProcessing((LAST, vocabulary[LAST]), (FIRST, vocabulary[FIRST]))
    return library


def _read(path: Path, key: str) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(Problem(key, "cannot read the tokenizer", got=f"{path} ({error.strerror})")) from None
    except UnicodeDecodeError as error:
        raise ConfigError(Problem(key, "the tokenizer is not UTF-8", got=f"{path}, byte {error.start + 1}")) from None
