"""GPT: a decoder-only transformer with pre-norm blocks (Radford et al. 2019; Brown et al. 2020; Llama Team 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from dml_runner.facts import DataFacts, TensorPlan
from dml_runner.models.base import Batch, Foreign, Guess, Model, Publication
from dml_runner.models.parts.attention import CausalSelfAttention, qkv_rows
from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.models.parts.classifier import classes_of, guess_labels, label_loss
from dml_runner.models.parts.language import vocabulary_of
from dml_runner.models.parts.mlp import build_mlp
from dml_runner.models.parts.norm import EPSILON, build_norm
from dml_runner.models.parts.publication import labels, place
from dml_runner.models.parts.rotary import Rotary
from dml_runner.models.parts.scores import Scores
from dml_runner.schema.model import Gpt as GptWords

INITIAL_STD = 0.02
QKV = "blocks.*.attention.qkv"


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, words: GptWords, rotary: Rotary | None) -> None:
        super().__init__()
        self.norm1 = build_norm(words.norm, words.hidden, words.bias)
        self.attention = CausalSelfAttention(words.hidden, words.heads, words.dropout, words.kv_heads, words.bias, rotary)
        self.norm2 = build_norm(words.norm, words.hidden, words.bias)
        self.mlp = build_mlp(words.mlp, words.hidden, words.ffn_hidden or 4 * words.hidden, words.dropout, words.bias)

    def forward(self, x: Tensor, batch: Batch, cache: KeyValueCache | None = None) -> Tensor:
        """(batch, length, hidden) -> the same shape."""
        x = x + self.attention(self.norm1(x), cache)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Gpt(Model):
    """Token ids to next-token logits or, where there are ``classes``, to the logits of a text's labels."""

    def __init__(self, words: GptWords, vocabulary: int, classes: int | None = None) -> None:
        super().__init__()
        self.words = words
        self.dropout = words.dropout
        self.width = words.hidden // words.heads
        self.residual_std = INITIAL_STD / math.sqrt(2 * words.layers)
        rotary = Rotary(self.width, words.context, words.rope_theta) if words.positions == "rotary" else None
        self.tokens = nn.Embedding(vocabulary, words.hidden)
        self.positions = None if rotary else nn.Embedding(words.context, words.hidden)
        self.blocks = nn.ModuleList(Block(words, rotary) for _ in range(words.layers))
        self.norm = build_norm(words.norm, words.hidden, words.bias)
        self.output = None if words.tied or classes else nn.Linear(words.hidden, vocabulary, bias=False)
        self.classifier = nn.Linear(words.hidden, classes, bias=False) if classes else None
        self.scores = Scores()

    def forward(self, batch: Batch, cache: KeyValueCache | None = None) -> Tensor:
        """``inputs`` (batch, length) -> logits (batch, length, vocabulary), or (batch, classes).

        A text is read to its last token by ``mask``, where there is one: what stands behind that is padding, which no token before it
        sees. With a cache, ``inputs`` continue the tokens it holds (see ``CausalSelfAttention.forward``), and the logits are those of the
        last token alone: (batch, 1, vocabulary).
        """
        if cache is None:
            out: Tensor = super().forward(batch)
            return out
        x = self.embed(batch, cache.length)
        for block in self.blocks:
            x = block(x, batch, cache)
        cache.advance(batch["inputs"].shape[1])
        return self.scores.whole(self.finish(x[:, -1:], batch))

    def embed(self, batch: Batch, start: int = 0) -> Tensor:
        """(batch, length, hidden) of tokens the first of which stands at ``start``."""
        inputs = batch["inputs"]
        x: Tensor = self.tokens(inputs)
        if self.positions is not None:
            x = x + self.positions.weight[start : start + inputs.shape[1]]
        return dropout(x, self.dropout) if self.training and self.dropout else x

    def stem(self) -> Sequence[nn.Module]:
        """The embeddings."""
        return [self.tokens] if self.positions is None else [self.tokens, self.positions]

    def finish(self, x: Tensor, batch: Batch) -> Tensor:
        """Logits of (batch, length, hidden); of labels, from the last token, which has seen the whole text."""
        if self.classifier is not None:
            out: Tensor = self.classifier(self.norm(last_real(x, batch.get("mask"))))
            return out
        projection = self.tokens if self.output is None else self.output
        return self.scores.project(self.norm(x), projection.weight)

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy of the next token or the label, summed over ``targets``, and their number."""
        return (self.scores.loss if self.classifier is None else label_loss)(output, batch["targets"])

    def scores_of(self, output: Tensor) -> Tensor:
        """Of the whole vocabulary."""
        return self.scores.whole(output)

    def guess(self, output: Tensor, batch: Batch) -> Guess:
        """The likeliest next tokens or labels, and those that came."""
        return (self.scores.guess if self.classifier is None else guess_labels)(output, batch["targets"])

    def tensor_plan(self) -> TensorPlan:
        """Attention by heads, the MLP by columns, embedding and projection by token."""
        gate = {"blocks.*.mlp.gate": 1} if self.words.mlp == "swiglu" else {}
        return TensorPlan(
            column={QKV: self.width, "blocks.*.mlp.up": 1} | gate,
            row=("blocks.*.attention.out", "blocks.*.mlp.down"),
            vocabulary=("tokens",) if self.output is None else ("tokens", "output"),
            whole={} if self.classifier is None else {"classifier": "a row a class is little to divide"},
            fused={QKV: qkv_rows(self.words.hidden, self.words.heads, self.words.kv_heads)},
        )

    def head_parameters(self) -> int:
        """The classifier; an output projection belongs to the published count."""
        return 0 if self.classifier is None else self.classifier.weight.numel()

    def publication(self) -> Publication | None:
        """GPT-2 or Llama, where it is one of the two; of other shapes transformers has no model."""
        words, vocabulary = self.words, self.tokens.num_embeddings
        classes = None if self.classifier is None else self.classifier.out_features
        llama = (words.norm, words.mlp, words.positions, words.bias) == ("rms", "swiglu", "rotary", False)
        gpt2 = (words.norm, words.mlp, words.positions, words.bias) == ("layer", "gelu", "learned", True)
        if llama:
            return as_llama(words, vocabulary, classes)
        return as_gpt2(words, vocabulary, classes) if gpt2 and words.kv_heads in (None, words.heads) else None

    def example(self, samples: int) -> dict[str, Tensor]:
        """Texts of two tokens."""
        ids = torch.zeros(samples, 2, dtype=torch.int64)
        return {"inputs": ids, "targets": ids if self.classifier is None else ids[:, 0]}

    def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """GPT-2's start: matrices N(0, 0.02), what writes to the residual stream N(0, 0.02 / sqrt(2 x layers))."""
        if parameter.dim() == 1:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            return
        writes_residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
        parameter.normal_(0.0, self.residual_std if writes_residual else INITIAL_STD, generator=generator)


def last_real(x: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, length, hidden) -> (batch, hidden) of the last position of each sample where ``mask`` is true; padding stands behind it."""
    if mask is None:
        return x[:, -1]
    last = (mask.sum(dim=1) - 1).clamp(min=0)
    return x[torch.arange(len(x), device=x.device), last]


def as_gpt2(words: GptWords, vocabulary: int, classes: int | None) -> Publication:
    """GPT2LMHeadModel, or GPT2ForSequenceClassification; its matrices are stored (in, out)."""
    config = {
        "architectures": ["GPT2ForSequenceClassification" if classes else "GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocabulary,
        "n_positions": words.context,
        "n_embd": words.hidden,
        "n_layer": words.layers,
        "n_head": words.heads,
        "n_inner": words.ffn_hidden,
        "activation_function": "gelu_new",
        "resid_pdrop": words.dropout,
        "embd_pdrop": words.dropout,
        "attn_pdrop": words.dropout,
        "layer_norm_epsilon": EPSILON,
        "initializer_range": INITIAL_STD,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": words.tied,
    }
    tensors = place("tokens", "transformer.wte", bias=False) | place("positions", "transformer.wpe", bias=False)
    for layer in range(words.layers):
        block, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        tensors |= place(f"{block}.norm1", f"{theirs}.ln_1") | place(f"{block}.norm2", f"{theirs}.ln_2")
        tensors |= place(f"{block}.attention.qkv", f"{theirs}.attn.c_attn", transposed=True)
        tensors |= place(f"{block}.attention.out", f"{theirs}.attn.c_proj", transposed=True)
        tensors |= place(f"{block}.mlp.up", f"{theirs}.mlp.c_fc", transposed=True)
        tensors |= place(f"{block}.mlp.down", f"{theirs}.mlp.c_proj", transposed=True)
    tensors |= place("norm", "transformer.ln_f")
    return _with_head(words, config, tensors, classes, "transformer.")


def as_llama(words: GptWords, vocabulary: int, classes: int | None) -> Publication:
    """LlamaForCausalLM, or LlamaForSequenceClassification; queries, keys and values are stored apart."""
    config = {
        "architectures": ["LlamaForSequenceClassification" if classes else "LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": words.hidden,
        "intermediate_size": words.ffn_hidden or 4 * words.hidden,
        "num_hidden_layers": words.layers,
        "num_attention_heads": words.heads,
        "num_key_value_heads": words.kv_heads or words.heads,
        "head_dim": words.hidden // words.heads,
        "hidden_act": "silu",
        "max_position_embeddings": words.context,
        "rms_norm_eps": EPSILON,
        "rope_theta": words.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": words.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": words.dropout,
        "initializer_range": INITIAL_STD,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": words.tied,
    }
    tensors = place("tokens", "model.embed_tokens", bias=False)
    for layer in range(words.layers):
        block, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        projections = [f"{theirs}.self_attn.{kind}_proj" for kind in "qkv"]
        tensors |= place(f"{block}.norm1", f"{theirs}.input_layernorm", bias=False)
        tensors |= place(f"{block}.attention.qkv", *projections, rows=qkv_rows(words.hidden, words.heads, words.kv_heads), bias=False)
        tensors |= place(f"{block}.attention.out", f"{theirs}.self_attn.o_proj", bias=False)
        tensors |= place(f"{block}.norm2", f"{theirs}.post_attention_layernorm", bias=False)
        for kind in ("gate", "up", "down"):
            tensors |= place(f"{block}.mlp.{kind}", f"{theirs}.mlp.{kind}_proj", bias=False)
    tensors |= place("norm", "model.norm", bias=False)
    return _with_head(words, config, tensors, classes, "model.")


def _with_head(words: GptWords, config: dict[str, Any], tensors: dict[str, Foreign], classes: int | None, prefix: str) -> Publication:
    if classes:
        head = place("classifier", "score", bias=False)
        config |= labels(classes)
    else:
        head = {} if words.tied else place("output", "lm_head", bias=False)
    return Publication(config, tensors | head, frozenset(head), prefix)


def build(words: GptWords, data: DataFacts) -> Gpt:
    """A GPT whose vocabulary and labels are its own or, where they are open, the data's.

    Raises:
        ConfigError: the data has more token ids or labels than the model, or no labels where it is a classifier.
    """
    classes = classes_of(words.classes, data) if words.head == "classifier" else None
    return Gpt(words, vocabulary_of(words.vocab_size, data), classes)
