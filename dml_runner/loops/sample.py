"""A text written by a language model."""

from __future__ import annotations

import torch

from dml_runner.data.base import TokenData
from dml_runner.engines.base import Engine
from dml_runner.errors import ConfigError
from dml_runner.models.base import keyed_generator

TEMPERATURE = 0.8


def write_text(engine: Engine, data: TokenData, context: int, tokens: int, seed: int) -> str:
    """``tokens`` tokens that follow a line break, each drawn from the model's distribution sharpened by ``TEMPERATURE``."""
    generator = keyed_generator(seed, "sample")
    try:
        ids = data.encode("\n")
    except ConfigError:
        ids = [0]
    for _ in range(tokens):
        logits = engine.forward({"inputs": torch.tensor([ids[-context:]])})[0, -1].float().cpu()
        logits = logits[: data.vocabulary] / TEMPERATURE
        ids.append(int(torch.multinomial(logits.softmax(dim=0), 1, generator=generator)))
    return data.decode(ids[1:]).strip("\n")
