"""The model families: plain modules that know no parallelism. ``name: gpt`` means models/gpt.py."""

from __future__ import annotations

import importlib

from dml_runner import plugins
from dml_runner.facts import DataFacts
from dml_runner.models.base import Model, freeze
from dml_runner.models.parts.unfilled import Unfilled
from dml_runner.schema.model import Model as ModelWords


def build(words: ModelWords, data: DataFacts) -> Model:
    """The module that ``words`` describe, with uninitialised weights on torch's current default device.

    Raises:
        ConfigError: the model cannot hold what the data brings (vocabulary, sequence length).
    """
    family = plugins.module("model", words.name) or importlib.import_module(f"dml_runner.models.{words.name}")
    with Unfilled():
        model: Model = family.build(words, data)
    freeze(model, words.frozen)
    return model
