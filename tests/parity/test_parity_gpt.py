"""Against transformers with the same weights: outputs and gradients of GPT-2 and Llama. Skipped where transformers is not installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dml_runner import models
from dml_runner.config import compose
from dml_runner.facts import DataFacts

transformers = pytest.importorskip("transformers")

SHAPE = ["model=gpt", "model.layers=3", "model.hidden=48", "model.heads=4", "model.context=32", "model.vocab_size=97"]
LLAMA = [
    *("model.kv_heads=2", "model.ffn_hidden=80", "model.norm=rms", "model.mlp=swiglu", "model.positions=rotary"),
    *("model.rope_theta=5e5", "model.bias=false", "model.tied=false"),
]
DATA = DataFacts("tokens", 8, 8, 32, 32, 97, 32, {}, "")


def ours(words: list[str], dtype: torch.dtype) -> nn.Module:
    """Our model with weights large enough that every part shows in the output."""
    model = models.build(compose([*SHAPE, *words]).run.model, DATA).to(dtype)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return model


def as_gpt2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under GPT-2's names; its matrices are stored (in, out)."""
    named = {"transformer.wte.weight": tensors["tokens.weight"], "transformer.wpe.weight": tensors["positions.weight"]}
    named |= {f"transformer.ln_f.{kind}": tensors[f"norm.{kind}"] for kind in ("weight", "bias")}
    for layer in range(3):
        for name, theirs in {"norm1": "ln_1", "norm2": "ln_2"}.items():
            named |= {f"transformer.h.{layer}.{theirs}.{kind}": tensors[f"blocks.{layer}.{name}.{kind}"] for kind in ("weight", "bias")}
        pairs = {"attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
        for name, theirs in pairs.items():
            named[f"transformer.h.{layer}.{theirs}.weight"] = tensors[f"blocks.{layer}.{name}.weight"].T
            named[f"transformer.h.{layer}.{theirs}.bias"] = tensors[f"blocks.{layer}.{name}.bias"]
    return named


def as_llama(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under Llama's names; queries, keys and values apart."""
    named = {"model.embed_tokens.weight": tensors["tokens.weight"], "model.norm.weight": tensors["norm.weight"]}
    named["lm_head.weight"] = tensors["output.weight"]
    for layer in range(3):
        block, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        qkv = tensors[f"{block}.attention.qkv.weight"].split((48, 24, 24))
        named |= {f"{theirs}.self_attn.{name}_proj.weight": part for name, part in zip("qkv", qkv, strict=True)}
        named[f"{theirs}.self_attn.o_proj.weight"] = tensors[f"{block}.attention.out.weight"]
        named |= {f"{theirs}.mlp.{name}_proj.weight": tensors[f"{block}.mlp.{name}.weight"] for name in ("gate", "up", "down")}
        named[f"{theirs}.input_layernorm.weight"] = tensors[f"{block}.norm1.weight"]
        named[f"{theirs}.post_attention_layernorm.weight"] = tensors[f"{block}.norm2.weight"]
    return named


def their_gpt2(dtype: torch.dtype) -> Any:
    """An untrained GPT2LMHeadModel."""
    shape = transformers.GPT2Config(
        vocab_size=97, n_positions=32, n_embd=48, n_layer=3, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return transformers.GPT2LMHeadModel._from_config(shape, attn_implementation="eager").to(dtype)


def their_llama(dtype: torch.dtype) -> Any:
    """An untrained LlamaForCausalLM; in fp64 without its norm and eager attention, which compute in fp32 whatever they are given."""
    shape = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    exact = dtype == torch.float64
    model = transformers.LlamaForCausalLM._from_config(shape, attn_implementation="sdpa" if exact else "eager")
    for layer in model.model.layers if exact else ():
        layer.input_layernorm, layer.post_attention_layernorm = nn.RMSNorm(48, eps=1e-5), nn.RMSNorm(48, eps=1e-5)
    if exact:
        model.model.norm = nn.RMSNorm(48, eps=1e-5)
    return model.to(dtype)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
@pytest.mark.parametrize(("words", "rename", "theirs"), [([], as_gpt2, their_gpt2), (LLAMA, as_llama, their_llama)], ids=["gpt2", "llama"])
def test_outputs_and_gradients_agree(words: list[str], rename: Any, theirs: Any, dtype: torch.dtype, within: float) -> None:
    """fp64: within 1e-9; fp32: within 1e-5 of the largest value."""
    mine, other = ours(words, dtype).train(), theirs(dtype).train()
    weights = dict(other.named_parameters())
    with torch.no_grad():
        renamed = rename(dict(mine.named_parameters()))
        assert set(renamed) == set(weights)
        for name, parameter in weights.items():
            parameter.copy_(renamed[name])
    ids = torch.randint(0, 97, (3, 33))
    outputs = [mine({"inputs": ids[:, :-1]}), other(input_ids=ids[:, :-1], use_cache=False).logits]
    for output in outputs:
        cross_entropy(output.flatten(0, 1), ids[:, 1:].flatten()).backward()
    gradients = rename({name: parameter.grad for name, parameter in mine.named_parameters()})
    scale = 1.0 if dtype == torch.float64 else float(outputs[0].abs().max())
    assert float((outputs[0] - outputs[1]).abs().max()) <= within * scale
    scale = 1.0 if dtype == torch.float64 else max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in weights.items():
        assert float((gradients[name] - parameter.grad).abs().max()) <= within * scale, name
