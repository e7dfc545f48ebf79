"""A text written by a language model."""

from __future__ import annotations

from dml_runner.data.base import Written
from dml_runner.engines.base import Engine
from dml_runner.errors import ConfigError
from dml_runner.models.base import keyed_generator
from dml_runner.models.parts.generation import generate

TEMPERATURE = 0.8


def write_text(engine: Engine, data: Written, vocabulary: int, context: int | None, tokens: int, seed: int) -> str:
    """``tokens`` tokens that follow a line break, each drawn from the model's distribution sharpened by ``TEMPERATURE``."""
    try:
        prompt = data.encode("\n")
    except ConfigError:
        prompt = [0]
    ids = generate(
        engine.forward,
        prompt,
        tokens,
        context=context,
        vocabulary=vocabulary,
        generator=keyed_generator(seed, "sample"),
        temperature=TEMPERATURE,
    )
    return data.decode(ids).strip("\n")
