"""Training a tokenizer on text: byte-level BPE or WordPiece, the same for the same text, however many threads take part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from dml_runner.data.parts.plain_tokenizers import CODE_POINTS, code_points
from dml_runner.data.parts.subword import CONTINUING, FIRST, LAST, MASK, PAD, UNKNOWN, SubwordTokenizer, chunks, wordpiece
from dml_runner.errors import ConfigError, Problem

TRAINED_ON = 1 << 26
"""Characters at the beginning of the text that a tokenizer is trained on: enough for its statistics, and the library keeps every
word it meets in memory."""
SPECIAL = (PAD, UNKNOWN, FIRST, LAST, MASK)
BYTES = 256


def train_bpe(pieces: Iterable[str], vocab_size: int) -> SubwordTokenizer:
    """Byte-level BPE (Radford et al. 2019, section 2.2) without special tokens: it reads back every text as it was.

    Args:
        pieces: the text; its first ``TRAINED_ON`` characters are read.
        vocab_size: tokens at most; fewer where the text has nothing left to join.

    Raises:
        ConfigError: ``vocab_size`` is smaller than the number of bytes.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < BYTES:
        raise ConfigError(Problem("data.vocab_size", "bpe has a token for every byte", got=str(vocab_size), allowed=f"at least {BYTES}"))
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(_beginning(pieces), trainer)
    return SubwordTokenizer(library)


def train_wordpiece(pieces: Iterable[str], vocab_size: int) -> SubwordTokenizer:
    """WordPiece over lower-cased text as in BERT (Devlin et al. 2019), with [PAD] [UNK] [CLS] [SEP] [MASK] as ids 0 to 4.

    Characters too rare for the vocabulary, where it would be filled by them, have no token and make their word unknown.

    Args:
        pieces: the text; its first ``TRAINED_ON`` characters are read.
        vocab_size: tokens at most; fewer where the text has nothing left to join.

    Raises:
        ConfigError: ``vocab_size`` leaves no room for characters.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import models, normalizers, trainers

    fewest = len(SPECIAL) + 2
    if vocab_size < fewest:
        what = "wordpiece has five special tokens and two for every character"
        raise ConfigError(Problem("data.vocab_size", what, got=str(vocab_size), allowed=f"at least {fewest}"))
    texts = list(_beginning(pieces))
    letters, rare = _alphabet(texts, (vocab_size - len(SPECIAL)) // 2)
    # The library numbers the continuing letters as its threads meet them, unless they are there before.
    fixed = [*SPECIAL, *letters, *(CONTINUING + letter for letter in letters)]
    library = wordpiece({UNKNOWN: 0}, lower=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=fixed, show_progress=False, continuing_subword_prefix=CONTINUING
    )
    table = str.maketrans(dict.fromkeys(rare, " "))
    raw = Library(models.WordPiece({UNKNOWN: 0}, unk_token=UNKNOWN))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), library.pre_tokenizer
    raw.train_from_iterator((text.translate(table) if rare else text for text in texts), trainer)
    vocabulary = raw.get_vocab(with_added_tokens=False)
    return SubwordTokenizer(wordpiece(vocabulary, lower=True))


def _alphabet(texts: Iterable[str], most: int) -> tuple[list[str], list[str]]:
    """The most frequent letters that occur once the text is normalised, sorted; and the characters that give any other letter."""
    from tokenizers import normalizers

    normalizer = normalizers.BertNormalizer(lowercase=True)
    counts = np.zeros(CODE_POINTS, np.int64)
    for text in texts:
        found = np.bincount(code_points(text))
        counts[: len(found)] += found
    forms = {chr(code): normalizer.normalize_str(chr(code)).replace(" ", "") for code in np.flatnonzero(counts)}
    letters: Counter[str] = Counter()
    for character, form in forms.items():
        for letter in form:
            letters[letter] += int(counts[ord(character)])
    kept = sorted(letters, key=lambda letter: (-letters[letter], letter))[:most]
    return sorted(kept), [character for character, form in forms.items() if not set(form) <= set(kept)]


def _beginning(pieces: Iterable[str]) -> Iterator[str]:
    """The first ``TRAINED_ON`` characters, in parts so small that those the library reads ahead are few bytes."""
    left = TRAINED_ON
    for piece in pieces:
        yield from chunks(piece[:left])
        left -= len(piece)
        if left <= 0:
            return
