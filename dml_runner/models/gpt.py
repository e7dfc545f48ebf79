"""GPT: a decoder-only transformer with pre-norm blocks (Radford et al. 2019; Brown et al. 2020; Llama Team 2024)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts
from dml_runner.models.base import Batch, Model
from dml_runner.models.parts.attention import CausalSelfAttention
from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.models.parts.language import token_loss
from dml_runner.models.parts.mlp import build_mlp
from dml_runner.models.parts.norm import build_norm
from dml_runner.models.parts.rotary import Rotary
from dml_runner.schema.model import Gpt as GptWords

INITIAL_STD = 0.02


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, words: GptWords, rotary: Rotary | None) -> None:
        super().__init__()
        self.norm1 = build_norm(words.norm, words.hidden, words.bias)
        self.attention = CausalSelfAttention(words.hidden, words.heads, words.dropout, words.kv_heads, words.bias, rotary)
        self.norm2 = build_norm(words.norm, words.hidden, words.bias)
        self.mlp = build_mlp(words.mlp, words.hidden, words.ffn_hidden or 4 * words.hidden, words.dropout, words.bias)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(batch, length, hidden) -> the same shape."""
        x = x + self.attention(self.norm1(x), cache)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Gpt(Model):
    """Token ids to next-token logits."""

    def __init__(self, words: GptWords, vocabulary: int) -> None:
        super().__init__()
        self.dropout = words.dropout
        self.residual_std = INITIAL_STD / math.sqrt(2 * words.layers)
        rotary = Rotary(words.hidden // words.heads, words.context, words.rope_theta) if words.positions == "rotary" else None
        self.tokens = nn.Embedding(vocabulary, words.hidden)
        self.positions = None if rotary else nn.Embedding(words.context, words.hidden)
        self.blocks = nn.ModuleList(Block(words, rotary) for _ in range(words.layers))
        self.norm = build_norm(words.norm, words.hidden, words.bias)
        self.output = None if words.tied else nn.Linear(words.hidden, vocabulary, bias=False)

    def forward(self, batch: Batch, cache: KeyValueCache | None = None) -> Tensor:
        """``inputs`` (batch, length) -> logits (batch, length, vocabulary).

        With a cache, ``inputs`` continue the tokens it holds (see ``CausalSelfAttention.forward``), and the logits are those of the
        last token alone: (batch, 1, vocabulary).
        """
        inputs = batch["inputs"]
        x = self._embed(inputs, 0 if cache is None else cache.length)
        for block in self.blocks:
            x = block(x, cache)
        if cache is not None:
            cache.advance(inputs.shape[1])
            x = x[:, -1:]
        projection = self.tokens if self.output is None else self.output
        return linear(self.norm(x), projection.weight)

    def _embed(self, inputs: Tensor, start: int) -> Tensor:
        x: Tensor = self.tokens(inputs)
        if self.positions is not None:
            x = x + self.positions.weight[start : start + inputs.shape[1]]
        return dropout(x, self.dropout) if self.training and self.dropout else x

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy of the next token, summed over ``targets``, and their number."""
        return token_loss(output, batch["targets"])

    def example(self, samples: int) -> dict[str, Tensor]:
        """Sequences of two tokens."""
        ids = torch.zeros(samples, 2, dtype=torch.int64)
        return {"inputs": ids, "targets": ids}

    def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """GPT-2's start: matrices N(0, 0.02), what writes to the residual stream N(0, 0.02 / sqrt(2 x layers))."""
        if parameter.dim() == 1:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            return
        writes_residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
        parameter.normal_(0.0, self.residual_std if writes_residual else INITIAL_STD, generator=generator)


def build(words: GptWords, data: DataFacts) -> Gpt:
    """A GPT whose vocabulary is its own or, where that is open, the data's.

    Raises:
        ConfigError: the data has more token ids than the model, or longer sequences.
    """
    vocabulary = words.vocab_size or data.vocabulary
    if data.vocabulary > vocabulary:
        raise ConfigError(
            Problem(
                "model.vocab_size",
                "smaller than the data's vocabulary",
                got=str(vocabulary),
                allowed=f"null, or at least {data.vocabulary}",
            )
        )
    return Gpt(words, vocabulary)
