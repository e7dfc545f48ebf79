"""The model families: plain modules that know no parallelism. ``name: gpt`` means models/gpt.py."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from dml_runner.facts import DataFacts
from dml_runner.models.base import Model, freeze
from dml_runner.schema.model import Model as ModelWords


def build(words: ModelWords, data: DataFacts) -> Model:
    """The module that ``words`` describe, with uninitialised weights on torch's current default device.

    Raises:
        ConfigError: the model cannot hold what the data brings (vocabulary, sequence length).
    """
    family = importlib.import_module(f"dml_runner.models.{words.name}")
    with _Unfilled():
        model: Model = family.build(words, data)
    freeze(model, words.frozen)
    return model


class _Unfilled(TorchFunctionMode):
    """Inside, modules do not draw starting values of their own: ``initialise`` will, and on the meta device drawing loads the compiler."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)
