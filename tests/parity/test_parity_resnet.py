"""Against transformers with the same weights: outputs, gradients and running statistics of ResNet. Skipped where it is not installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dml_runner import models
from dml_runner.config import compose
from dml_runner.facts import DataFacts
from dml_runner.models.base import Model, Publication
from dml_runner.models.parts.publication import from_foreign, to_foreign

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")
DATA = DataFacts("images", 8, 8, 1, 0, 0, 0, {}, "", 5, (3, 40, 40))
SMALL = ("model=resnet", "model.stem=imagenet", "model.width=8", "data=synthetic")
BLOCKS = {
    "basic": (*SMALL, "model.block=basic", "model.depths=[2,1,2]"),
    "bottleneck": (*SMALL, "model.block=bottleneck", "model.depths=[1,2]"),
}
PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-5)]
"""Number types, and how near results must be: as a share of the largest value."""
every_block = pytest.mark.parametrize("words", BLOCKS.values(), ids=BLOCKS.keys())


def ours(*words: str, dtype: torch.dtype = torch.float32) -> Model:
    """Our model with weights and running statistics unlike those it starts with."""
    model = models.build(compose(list(words)).run.model, DATA).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            about, spread = (1.0, 0.2) if "norm" in name and name.endswith(("weight", "var")) else (0.0, 0.3)
            tensor.copy_(about + spread * torch.randn(tensor.shape, generator=generator, dtype=torch.float64).clamp(-3, 3))
    return model


def published(model: Model) -> Publication:
    """How the model is published."""
    publication = model.publication()
    assert publication is not None
    return publication


def theirs(model: Model, dtype: torch.dtype) -> Any:
    """transformers' model with the same weights and statistics."""
    publication = published(model)
    other = transformers.ResNetForImageClassification(transformers.ResNetConfig(**publication.config)).to(dtype)
    other.load_state_dict(to_foreign(publication, model.state_dict()), strict=True)
    return other


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    """Six images of 40 x 40."""
    return torch.randn(6, 3, 40, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def assert_near(here: Tensor, there: Tensor, within: float, scale: float, name: str = "") -> None:
    """Nowhere further apart than ``within`` x ``scale``."""
    assert float((here - there).detach().abs().max()) <= within * scale, name


def largest(tensors: Any) -> float:
    """The largest value of several tensors."""
    return max(float(tensor.detach().abs().max()) for tensor in tensors)


@every_block
def test_outputs_agree_with_running_statistics(words: tuple[str, ...]) -> None:
    for dtype, within in PRECISIONS:
        mine = ours(*words, dtype=dtype).eval()
        out, other = mine({"images": images(dtype)}), theirs(mine, dtype).eval()(images(dtype)).logits
        assert_near(out, other, within, largest([other]))


@pytest.mark.parametrize(("dtype", "within"), PRECISIONS, ids=["fp64", "fp32"])
@every_block
def test_training_agrees(words: tuple[str, ...], dtype: torch.dtype, within: float) -> None:
    """Outputs, gradients and the statistics that one training batch leaves behind."""
    mine = ours(*words, dtype=dtype).train()
    other = theirs(mine, dtype).train()
    outputs = [mine({"images": images(dtype)}), other(images(dtype)).logits]
    weight = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
    for output in outputs:
        (output * weight).sum().backward()
    assert_near(*outputs, within, largest(outputs))
    publication = published(mine)
    gradients = to_foreign(
        publication, {name: p.grad for name, p in mine.named_parameters() if p.grad is not None} | dict(mine.named_buffers())
    )
    there = {name: p.grad for name, p in other.named_parameters()} | dict(other.named_buffers())
    for name, gradient in gradients.items():
        assert_near(gradient, there[name], within, largest(gradients.values()), name)


@every_block
def test_a_written_folder_loads_and_reads_back(words: tuple[str, ...], tmp_path: Path) -> None:
    """transformers loads what we write, whole, and agrees; what it writes we read, with its head and without."""
    mine = ours(*words).eval()
    publication = published(mine)
    save_file(to_foreign(publication, mine.state_dict()), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(publication.config))
    other, told = transformers.AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(other).__name__ == publication.config["architectures"][0]
    assert not any(told.values()), told
    assert_near(mine({"images": images()}), other.eval()(images()).logits, 1e-5, largest([other(images()).logits]))
    shapes = {name: tensor.shape for name, tensor in mine.state_dict().items()}
    for part, absent in ((other, frozenset()), (other.base_model, publication.head)):
        part.save_pretrained(tmp_path / "theirs")
        with safe_open(tmp_path / "theirs" / "model.safetensors", framework="pt") as file:
            tensors, lacking = from_foreign(publication, file.keys(), file.get_tensor, shapes)
        assert set(lacking) == absent
        assert set(tensors) | absent == set(shapes)
        assert all(torch.equal(tensor, mine.state_dict()[name]) for name, tensor in tensors.items())


def test_a_shape_that_transformers_lacks_is_not_published() -> None:
    assert [ours(*SMALL, word).publication() for word in ("model.stem=small", "model.norm=group")] == [None, None]
