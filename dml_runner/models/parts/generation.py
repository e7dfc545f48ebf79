"""Texts from a language model: token after token, each drawn from what the model expects next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dml_runner.facts import DataFacts
from dml_runner.models.base import Batch
from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.schema.model import ModelWords

Forward = Callable[[Batch, KeyValueCache], Tensor]
"""Continues what the cache holds by ``inputs`` (batch, new) and returns logits, those of the last token last."""


def context_of(words: ModelWords, data: DataFacts) -> int | None:
    """What ``generate`` takes as the context of a trained model: the longest sequence it can see; of a recurrent one None."""
    return None if words.streams else words.length or data.seq_len


def generate(
    forward: Forward,
    prompt: Sequence[int],
    tokens: int,
    *,
    context: int | None,
    vocabulary: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> list[int]:
    """The ``tokens`` ids that follow ``prompt`` (at least one id); the same for the same generator.

    Args:
        forward: a model, or an engine's ``forward``.
        context: tokens the model can see; of longer texts it sees ``ids[window_start(len(ids), context):]``. None: a recurrent model,
            which reads every token once and has them all behind it.
        vocabulary: only ids below this are drawn.
        generator: on the CPU.
        temperature: divides the logits: below 1 the likely gets likelier; 0 takes the likeliest.
        top_k: draw from the likeliest ``top_k`` only; None: from all.
    """
    ids, first, cache = list(prompt), 0, KeyValueCache(context)
    for _ in range(tokens):
        if window_start(len(ids), context) != first:
            first = window_start(len(ids), context)
            cache.clear()
        with torch.no_grad():
            logits = forward({"inputs": torch.tensor([ids[first + cache.length :]])}, cache)[0, -1]
        ids.append(draw(logits[:vocabulary].float().cpu(), generator, temperature, top_k))
    return ids[len(prompt) :]


def window_start(length: int, context: int | None) -> int:
    """The first token that the model still sees of a text of ``length``; where there is no ``context``, the first of all.

    Where the window moves, every token gets another position and what was kept of it is void. So it moves by a quarter of the context
    at a time: the model sees at least three quarters of what it could, and keys and values are worked out anew once a quarter.
    """
    if context is None:
        return 0
    stride = max(1, context // 4)
    return max(0, -(-(length - context) // stride)) * stride


def draw(logits: Tensor, generator: torch.Generator, temperature: float = 1.0, top_k: int | None = None) -> int:
    """One id, drawn by its logit (vocabulary,); see ``generate``."""
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        logits, ids = logits.topk(top_k)
        return int(ids[draw(logits, generator, temperature)])
    return int(torch.multinomial((logits / temperature).softmax(dim=0), 1, generator=generator))
