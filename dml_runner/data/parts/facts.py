"""From texts to the facts of token data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dml_runner.data.parts.source import Source
from dml_runner.data.parts.store import store_tokens
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts

FEWEST_HELD_OUT = 2
"""Tokens that give one prediction; the last held-out sample may be short."""


def token_facts(train: Sequence[Source], held_out: Sequence[Source] | None, tokenizer: str, seq_len: int, cache: Path) -> DataFacts:
    """Store the tokens of the texts and say what they are.

    Args:
        train: texts to train on.
        held_out: texts held out; None: the last 10 % of the tokens of ``train``.
        tokenizer: ``char`` or ``byte``.
        seq_len: tokens of a sample.
        cache: folder that keeps prepared data.

    Raises:
        ConfigError: a text is malformed or too short, or the store cannot be written.
    """
    store, digests = store_tokens(train, held_out, tokenizer, cache)
    train_tokens, eval_tokens = store.counts["train"], store.counts["eval"]
    short = []
    if train_tokens < seq_len + 1:
        share = " (the last 10 % are held out)" if held_out is None else ""
        hint = f"one sample is data.seq_len={seq_len} tokens and the one that follows{share}"
        short.append(_too_few(train, "train on", train_tokens, seq_len + 1, hint))
    if eval_tokens < FEWEST_HELD_OUT:
        short.append(_too_few(held_out or train, "hold out", eval_tokens, FEWEST_HELD_OUT, None))
    if short:
        raise ConfigError(*short)
    return DataFacts(
        kind="tokens",
        train_samples=(train_tokens - 1) // seq_len,
        eval_samples=-(-(eval_tokens - 1) // seq_len),
        sample_weight=seq_len,
        sample_tokens=seq_len,
        vocabulary=store.size,
        seq_len=seq_len,
        digests=digests,
        store=str(store.folder),
    )


def _too_few(sources: Sequence[Source], purpose: str, tokens: int, needed: int, hint: str | None) -> Problem:
    names = sources[0].name + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")
    key = sources[0].key
    return Problem(key, f"too few tokens to {purpose} in {names}", got=f"{tokens} tokens", allowed=f"at least {needed}", hint=hint)
