"""What tests of published weights share: small models, their weights in Hugging Face's form, what is said of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dml_runner.config import compose
from dml_runner.engines.assemble import build_model
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts
from dml_runner.launch.pretrained import check_pretrained
from dml_runner.models.base import Model
from dml_runner.models.parts.publication import to_foreign

DATA = DataFacts("labelled_text", 8, 8, None, 16, 50, 16, {}, "", 3)
SHAPES = {
    "gpt": ("model=gpt_tiny", "model.context=16"),
    "llama": (
        *("model=gpt_tiny", "model.context=16", "model.norm=rms", "model.mlp=swiglu", "model.positions=rotary"),
        *("model.bias=false", "model.tied=false", "model.heads=4", "model.kv_heads=2"),
    ),
    "bert": ("model=bert", "model.layers=2", "model.hidden=32", "model.heads=4", "model.context=16"),
}
CLASSIFIER = ("data=labelled_text", "data.path=texts.tsv", "model.head=classifier")
ALLOWED = "allowed a folder of safetensors, package:NAME, a run folder, or an id on the hub"


def made(*words: str, seed: int = 1) -> Model:
    """A model as a rank makes it, without weights to start from."""
    return build_model(compose([*words, f"seed={seed}"]).run, DATA, torch.device("cpu"))


def publish(folder: Path, model: Model, **changed: Any) -> Path:
    """Write a model in Hugging Face's form; ``changed`` are keys of config.json."""
    publication = model.publication()
    assert publication is not None
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**publication.config, **changed}))
    tensors = {name: tensor.clone() for name, tensor in to_foreign(publication, model.state_dict()).items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def rewrite(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Other weights in the place of the published ones."""
    save_file(dict(tensors), folder / "model.safetensors")


def lines(error: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    """The lines of an error."""
    return [str(problem) for problem in error.value.problems]


def checked(folder: Path | str, *words: str) -> str:
    """The notice of weights that go with the model of ``words``."""
    found = check_pretrained(compose([*words, f"model.pretrained={folder}"]).run, DATA)
    assert found is not None
    return found.notice


def refused(folder: Path | str, *words: str) -> list[str]:
    """Why they do not go with it."""
    with pytest.raises(ConfigError) as error:
        checked(folder, *words)
    return lines(error)


def same(one: Model, other: Model, names: set[str]) -> bool:
    """Whether the tensors ``names`` are equal bit for bit."""
    return all(torch.equal(one.state_dict()[name], other.state_dict()[name]) for name in names)
