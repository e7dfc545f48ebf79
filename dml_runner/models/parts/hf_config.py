"""What config.json of a model of the transformers library says, and what a job changes in it. Code of its author never runs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dml_runner.errors import ConfigError, Problem, raise_all
from dml_runner.facts import DataFacts
from dml_runner.models.parts.classifier import classes_of
from dml_runner.pretrained import CONFIG, locate_config
from dml_runner.schema.model import Huggingface

AUTO = {
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "image_classification": "AutoModelForImageClassification",
}
"""Task -> the class that builds its model."""
SOURCE = "model.source"
ATTENTION = (None, "eager", "sdpa")
"""Ways to compute attention that a config.json may ask for; by others it can have the library fetch kernels from the hub and run them."""


def read_config(words: Huggingface, data: DataFacts) -> Any:
    """The library's configuration of ``words.source``, with the job's labels and dropout.

    Raises:
        ConfigError: the library is not installed, it has no such model, or the model cannot hold what the data brings.
    """
    folder = _folder(words.source)
    with _library() as library:
        try:
            config = library.AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except Exception as error:  # it has as many kinds as files can be wrong
            raise ConfigError(Problem(SOURCE, f"transformers cannot read its {CONFIG} ({_first(error)})", got=str(folder))) from None
        raise_all(_problems(words, config, data))
        for key, value in config.to_dict().items():
            if "drop" in key and type(value) in (int, float):  # whole layers are not dropped: ranks would not agree on which
                setattr(config, key, 0.0 if "layer" in key or "path" in key else words.dropout)
        attention = config._attn_implementation
        config._attn_implementation = attention if attention in ATTENTION else None  # of the configurations inside it too
        if words.objective == "classify" and config.num_labels != (classes := classes_of(words.classes, data)):
            config.num_labels = classes
        return config


def construct(words: Huggingface, config: Any) -> nn.Module:
    """The library's module, in fp32, on torch's default device.

    Raises:
        ConfigError: it has none for this task, or cannot build it.
    """
    own = copy.deepcopy(config)
    own.use_cache = False
    with _library() as library:
        try:
            module: nn.Module = getattr(library, AUTO[words.task]).from_config(own, dtype=torch.float32, trust_remote_code=False)
        except Exception as error:
            if str(error).startswith("Unrecognized configuration class"):
                what = f"transformers has no {AUTO[words.task]} of the kind {config.model_type}"
                raise ConfigError(Problem("model.task", what, got=words.task, allowed=", ".join(AUTO))) from None
            raise ConfigError(Problem(SOURCE, f"transformers cannot build it ({_first(error)})", got=words.source)) from None
    return module


def published_names(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    """The name in a file of weights of each tensor of ``state``, where that is not the module's own: the library has renamed many.

    Tensors that it has put together of several keep the module's name.
    """
    from transformers.core_model_loading import revert_weight_conversion

    marks = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in state.items()}
    there = {id(mark): name for name, mark in revert_weight_conversion(module, dict(marks)).items()}  # type: ignore[arg-type]
    return {name: there.get(id(mark), name) for name, mark in marks.items()}


def check_positions(words: Huggingface, module: nn.Module) -> None:
    """Refuse a context that the model has no positions for.

    Raises:
        ConfigError: it is too long.
    """
    limit = getattr(module.config, "max_position_embeddings", None)
    for name, table in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding) and table.padding_idx is not None:
            limit = table.num_embeddings - table.padding_idx - 1  # the first rows stand for padding
    if words.length is not None and isinstance(limit, int) and 0 < limit < words.length:
        raise ConfigError(Problem("model.context", "longer than the model can see", got=str(words.context), allowed=f"1 to {limit}"))


def _folder(source: str) -> Path:
    try:
        return locate_config(source)
    except ConfigError as error:
        raise ConfigError(*(replace(problem, key=SOURCE) for problem in error.problems)) from None


@contextmanager
def _library() -> Iterator[Any]:
    """The transformers library, which keeps its remarks to itself inside."""
    try:
        import transformers
    except ImportError:
        hint = "pip install 'dml_runner[huggingface]'"
        raise ConfigError(Problem("model", "needs the transformers library", got="huggingface", hint=hint)) from None
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        yield transformers
    finally:
        transformers.logging.set_verbosity(before)


def _first(error: Exception) -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _problems(words: Huggingface, config: Any, data: DataFacts) -> Iterator[Problem]:
    """What of the data the model cannot hold."""
    if config.is_encoder_decoder:
        yield Problem(SOURCE, "it is an encoder with a decoder, which is none of model.task", got=config.model_type)
    if getattr(config, "quantization_config", None) is not None:
        yield Problem(SOURCE, "its weights are quantised, and cannot be trained", got=words.source)
    vocabulary, channels, size = (getattr(config, key, None) for key in ("vocab_size", "num_channels", "image_size"))
    if words.reads == "tokens" and isinstance(vocabulary, int) and vocabulary < data.vocabulary:
        hint = "data.tokenizer=null takes the one that comes with its weights"
        yield Problem(
            SOURCE, "its vocabulary is smaller than the data's", got=str(vocabulary), allowed=f"at least {data.vocabulary}", hint=hint
        )
    if words.reads == "images":
        if isinstance(channels, int) and channels != data.image[0]:
            yield Problem(SOURCE, "it sees images of another number of channels", got=str(channels), allowed=str(data.image[0]))
        sides = [size, size] if isinstance(size, int) else list(size or data.image[1:])
        if sides != list(data.image[1:]):
            got, allowed = (" x ".join(map(str, each)) for each in (data.image[1:], sides))
            yield Problem("data.size", "images of another size than the model sees", got=got, allowed=allowed)
