"""One model twice, as ours and as transformers', with the same weights: do outputs and gradients agree, and does a folder carry it over?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dml_runner import models
from dml_runner.config import compose
from dml_runner.facts import DataFacts
from dml_runner.models.base import Model, Publication
from dml_runner.models.parts.publication import from_foreign, to_foreign

VOCABULARY, CONTEXT, CLASSES, PAD = 97, 32, 5, 96
DATA = DataFacts("labelled_text", 8, 8, None, CONTEXT, VOCABULARY, CONTEXT, {}, "", CLASSES)
SHAPE = ("model.layers=3", "model.hidden=48", "model.heads=4", f"model.context={CONTEXT}", "model.dropout=0")
PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-5)]
"""Number types, and how near results must be: in fp64 absolute, in fp32 as a share of the largest value."""


def ours(*words: str, dtype: torch.dtype = torch.float32) -> Model:
    """Our model with weights large enough that every part shows in the output."""
    model = models.build(compose([*SHAPE, *words]).run.model, DATA).to(dtype)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return model.train()


def published(model: Model) -> Publication:
    """How the model is published."""
    publication = model.publication()
    assert publication is not None
    return publication


def theirs(model: Model, dtype: torch.dtype, attention: str = "eager") -> Any:
    """An untrained model of transformers' of the same shape."""
    config = dict(published(model).config) | {"pad_token_id": None}  # an embedding holds back the gradient of the padding it is made with
    (name,) = config["architectures"]
    kind = getattr(transformers, name)
    other = kind._from_config(kind.config_class(**config), attn_implementation=attention).to(dtype).train()
    other.config.pad_token_id = PAD
    return other


def texts() -> tuple[Tensor, Tensor]:
    """(ids, mask): three texts of 32, 7 and 20 tokens, padded."""
    lengths = torch.tensor([CONTEXT, 7, 20])
    mask = torch.arange(CONTEXT) < lengths[:, None]
    return torch.randint(0, PAD, mask.shape, generator=torch.Generator().manual_seed(5)).masked_fill(~mask, PAD), mask


def assert_agree(mine: Model, other: Any, within: float, batch: dict[str, Tensor], **asked: Any) -> None:
    """Give ``other`` the weights of ``mine``; its answer to ``asked``, and all gradients, are those of ``mine`` for ``batch``."""
    publication, weights = published(mine), dict(other.named_parameters())
    renamed = to_foreign(publication, dict(mine.named_parameters()))
    assert set(renamed) == set(weights)
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(renamed[name])
    outputs = [mine(batch), other(**asked).logits]
    weight = torch.randn(outputs[0].shape, dtype=outputs[0].dtype)
    for output in outputs:
        (output * weight).sum().backward()
    gradients = to_foreign(publication, {name: p.grad for name, p in mine.named_parameters() if p.grad is not None})
    pairs = {name: (gradients[name], parameter.grad) for name, parameter in weights.items()}
    exact = outputs[0].dtype == torch.float64
    scale = 1.0 if exact else float(outputs[0].abs().max())
    assert float((outputs[0] - outputs[1]).abs().max()) <= within * scale
    scale = 1.0 if exact else max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, (here, there) in pairs.items():
        assert float((here - there).abs().max()) <= within * scale, name


def assert_round_trip(mine: Model, folder: Path, auto: Any, batch: dict[str, Tensor], **asked: Any) -> None:
    """transformers loads what we write, whole, and agrees; what it writes we read, with its head and without."""
    publication = published(mine)
    save_file(to_foreign(publication, mine.state_dict()), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(publication.config))
    other, told = auto.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert type(other).__name__ == publication.config["architectures"][0]
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), told
    other.config.pad_token_id = PAD
    torch.testing.assert_close(mine.eval()(batch), other.eval()(**asked).logits, atol=2e-5, rtol=1e-4)
    for part, absent in ((other, set()), (other.base_model, publication.head)):
        part.save_pretrained(folder / "theirs")
        with safe_open(folder / "theirs" / "model.safetensors", framework="pt") as file:
            shapes = {name: p.shape for name, p in mine.named_parameters()}
            tensors, lacking = from_foreign(publication, file.keys(), file.get_tensor, shapes)
        pooled = {name for name in absent if name.startswith("pooler.")}  # part of the base model
        assert set(lacking) == absent - pooled
        assert all(torch.equal(tensor, mine.state_dict()[name]) for name, tensor in tensors.items())
        assert set(tensors) | set(lacking) == set(mine.state_dict())
