"""From texts to the facts of running text, and to its batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dml_runner.data.parts.store import Corpus, Store, store_tokens
from dml_runner.data.parts.tokenizer import AROUND
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts, Task
from dml_runner.schema.data import Texts

if TYPE_CHECKING:
    from dml_runner.data.base import Data

FEWEST_HELD_OUT = 2
"""Tokens that give one prediction; the last held-out sample may be short."""


def token_facts(name: str, corpus: Corpus, words: Texts, task: Task, cache: Path) -> DataFacts:
    """Store the tokens of the texts and say what they are.

    Args:
        name: of the option.
        corpus: the texts.
        words: tokenizer and longest sample.
        task: what the model wants.
        cache: folder that keeps prepared data.

    Raises:
        ConfigError: the task wants no running text, a text is malformed or too short, or the store cannot be written.
    """
    refuse_other_tasks(name, task)
    seq_len = words.seq_len or task.length
    assert seq_len is not None, "who reads text has a longest sequence"
    masked = task.objective == "masked"
    around = AROUND if masked else 0
    if seq_len <= around:
        raise ConfigError(Problem("data.seq_len", "no token fits between [CLS] and [SEP]", got=str(seq_len), allowed="at least 3"))
    store, digests = store_tokens(corpus, words, task, cache)
    _refuse_short(corpus, store, seq_len, around)
    own, spare = seq_len - around, 0 if around else 1
    return DataFacts(
        kind="tokens",
        train_samples=(store.counts["train"] - spare) // own,
        eval_samples=-(-(store.counts["eval"] - spare) // own),
        sample_weight=None if masked else seq_len,
        sample_tokens=seq_len,
        vocabulary=store.tokenizer.size,
        seq_len=seq_len,
        digests=digests,
        store=str(store.folder),
        skipped=store.skipped,
    )


def open_tokens(task: Task, facts: DataFacts, seed: int) -> Data:
    """Stored tokens as the batches that the task wants; what is hidden depends on ``seed``.

    Raises:
        ConfigError: they are gone, or their tokenizer cannot hide a token.
    """
    if task.objective == "masked":
        from dml_runner.data.parts.masked import MaskedData

        return MaskedData(facts, task.hidden_share, seed)
    if task.objective == "both_directions":
        from dml_runner.data.parts.neighbours import NeighbourData

        return NeighbourData(facts, task.word_length)
    from dml_runner.data.parts.tokens import TokenData

    return TokenData(facts, task.streams)


def refuse_other_tasks(name: str, task: Task) -> None:
    """Running text is there to be predicted.

    Raises:
        ConfigError: the model reads images or learns labels.
    """
    if task.reads == "images":
        raise ConfigError(Problem("data", "holds text, and the model reads images", got=f"data={name}", allowed="data=digits, data=idx"))
    if task.objective == "classify":
        hint = "data=labelled_text, or another model.head"
        raise ConfigError(Problem("data", "has no labels, and the model is a classifier", got=f"data={name}", hint=hint))


def _refuse_short(corpus: Corpus, store: Store, seq_len: int, around: int) -> None:
    train_tokens, eval_tokens = store.counts["train"], store.counts["eval"]
    needed = seq_len - around if around else seq_len + 1
    short = []
    if train_tokens < needed:
        share = " (the last 10 % are held out)" if corpus.held_out is None else ""
        what = "the two around it" if around else "the one that follows"
        hint = f"one sample is data.seq_len={seq_len} tokens and {what}{share}"
        short.append(_too_few(corpus, "train on", train_tokens, needed, hint))
    if eval_tokens < FEWEST_HELD_OUT:
        short.append(_too_few(corpus, "hold out", eval_tokens, FEWEST_HELD_OUT, None))
    if short:
        raise ConfigError(*short)


def _too_few(corpus: Corpus, purpose: str, tokens: int, needed: int, hint: str | None) -> Problem:
    sources = (corpus.held_out if purpose == "hold out" else None) or corpus.train
    names = sources[0].name + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")
    key = sources[0].key
    return Problem(key, f"too few tokens to {purpose} in {names}", got=f"{tokens} tokens", allowed=f"at least {needed}", hint=hint)
