"""Against transformers with the same weights: outputs and gradients of GPT-2 and Llama. Skipped where transformers is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from comparing import PRECISIONS, assert_agree, assert_round_trip, ours, texts, theirs  # noqa: E402  # it imports transformers

LLAMA = (
    *("model=gpt", "model.kv_heads=2", "model.ffn_hidden=80", "model.norm=rms", "model.mlp=swiglu", "model.positions=rotary"),
    *("model.rope_theta=5e5", "model.bias=false", "model.tied=false"),
)
CLASSIFIER = ("data=labelled_text", "data.path=texts.tsv", "model.head=classifier")
FAMILIES = {
    "gpt2": ("model=gpt",),
    "gpt2 untied": ("model=gpt", "model.tied=false"),
    "gpt2 wide": ("model=gpt", "model.ffn_hidden=100", "model.kv_heads=4"),
    "gpt2 classifier": ("model=gpt", *CLASSIFIER),
    "llama": LLAMA,
    "llama tied": (*LLAMA, "model.tied=true"),
    "llama classifier": (*LLAMA, *CLASSIFIER),
}
pytestmark = pytest.mark.filterwarnings("ignore")
every_family = pytest.mark.parametrize("words", FAMILIES.values(), ids=FAMILIES.keys())


def with_exact_norms(llama: Any) -> Any:
    """Llama's norm computes in fp32 whatever it is given."""
    for module in (*llama.model.layers, llama.model):
        for name, norm in list(module.named_children()):
            if name.endswith("norm"):
                setattr(module, name, nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon, dtype=torch.float64))
    return llama


@pytest.mark.parametrize(("dtype", "within"), PRECISIONS, ids=["fp64", "fp32"])
@every_family
def test_outputs_and_gradients_agree(words: tuple[str, ...], dtype: torch.dtype, within: float) -> None:
    """fp64: within 1e-9; fp32: within 1e-5 of the largest value."""
    mine = ours(*words, dtype=dtype)
    exact = "model.norm=rms" in words and dtype == torch.float64
    other = with_exact_norms(theirs(mine, dtype, "sdpa")) if exact else theirs(mine, dtype)  # Llama's eager attention uses fp32, too
    ids, mask = texts()
    padded = {"mask": mask} if "model.head=classifier" in words else {}
    asked = {"attention_mask": mask.long()} if padded else {}
    assert_agree(mine, other, within, {"inputs": ids} | padded, input_ids=ids, use_cache=False, **asked)


@every_family
def test_a_written_folder_loads_and_reads_back(words: tuple[str, ...], tmp_path: Path) -> None:
    classifier = "model.head=classifier" in words
    auto = transformers.AutoModelForSequenceClassification if classifier else transformers.AutoModelForCausalLM
    ids, mask = texts()
    batch, asked = ({"inputs": ids, "mask": mask}, {"attention_mask": mask.long()}) if classifier else ({"inputs": ids}, {})
    assert_round_trip(ours(*words), tmp_path, auto, batch, input_ids=ids, **asked)
