"""BERT: a transformer encoder that sees a text as a whole, with post-norm blocks (Devlin et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu

from dml_runner.facts import DataFacts, TensorPlan
from dml_runner.models.base import Batch, Foreign, Guess, Model, Publication
from dml_runner.models.parts.attention import SelfAttention, qkv_rows
from dml_runner.models.parts.classifier import classes_of, guess_labels, label_loss
from dml_runner.models.parts.language import vocabulary_of
from dml_runner.models.parts.mlp import Mlp
from dml_runner.models.parts.norm import build_norm
from dml_runner.models.parts.publication import labels, place
from dml_runner.models.parts.scores import Scores
from dml_runner.schema.model import Bert as BertWords

INITIAL_STD = 0.02
EPSILON = 1e-12
QKV = "blocks.*.attention.qkv"


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, words: BertWords) -> None:
        super().__init__()
        self.attention = SelfAttention(words.hidden, words.heads, words.dropout, words.kv_heads)
        self.norm1 = build_norm("layer", words.hidden, epsilon=EPSILON)
        self.mlp = Mlp(words.hidden, words.ffn_hidden or 4 * words.hidden, words.dropout, approximate="none")
        self.norm2 = build_norm("layer", words.hidden, epsilon=EPSILON)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """(batch, length, hidden) -> the same shape."""
        x = self.norm1(x + self.attention(x, batch.get("mask")))
        out: Tensor = self.norm2(x + self.mlp(x))
        return out


class Decoder(nn.Module):
    """From a position to its token, by the token embedding and a bias a token, which is all there is here."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(vocabulary))


class Bert(Model):
    """Token ids to the logits of every position's token or, where there are ``classes``, to those of a text's labels."""

    def __init__(self, words: BertWords, vocabulary: int, classes: int | None = None) -> None:
        super().__init__()
        self.words = words
        self.classes = classes
        self.dropout = words.dropout
        self.scores = Scores()
        self.tokens = nn.Embedding(vocabulary, words.hidden)
        self.positions = nn.Embedding(words.context, words.hidden)
        self.segments = nn.Embedding(words.segments, words.hidden)
        self.norm = build_norm("layer", words.hidden, epsilon=EPSILON)
        self.blocks = nn.ModuleList(Block(words) for _ in range(words.layers))
        if classes:
            self.pooler = nn.Linear(words.hidden, words.hidden)
            self.classifier = nn.Linear(words.hidden, classes)
        else:
            self.transform = nn.Linear(words.hidden, words.hidden)
            self.transform_norm = build_norm("layer", words.hidden, epsilon=EPSILON)
            self.decoder = Decoder(vocabulary)

    def embed(self, batch: Batch) -> Tensor:
        """(batch, length, hidden): token, position and, by ``segments`` (batch, length), segment; without those, all are of segment 0."""
        inputs, segments = batch["inputs"], batch.get("segments")
        segment = self.segments.weight[0] if segments is None else self.segments(segments)
        x: Tensor = self.norm(self.tokens(inputs) + self.positions.weight[: inputs.shape[1]] + segment)
        return self._drop(x)

    def stem(self) -> Sequence[nn.Module]:
        """The embeddings and their norm."""
        return [self.tokens, self.positions, self.segments, self.norm]

    def finish(self, x: Tensor, batch: Batch) -> Tensor:
        """(batch, length, hidden) -> logits (batch, length, vocabulary), or from the first position (batch, classes)."""
        if self.classes:
            out: Tensor = self.classifier(self._drop(self.pooler(x[:, 0]).tanh()))
        else:
            out = self.scores.project(self.transform_norm(gelu(self.transform(x))), self.tokens.weight, self.decoder.bias)
        return out

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy of the hidden tokens or the label, summed over ``targets``, and their number."""
        return (label_loss if self.classes else self.scores.loss)(output, batch["targets"])

    def guess(self, output: Tensor, batch: Batch) -> Guess:
        """The likeliest tokens or labels, and the true ones."""
        return (guess_labels if self.classes else self.scores.guess)(output, batch["targets"])

    def example(self, samples: int) -> dict[str, Tensor]:
        """Texts of two tokens."""
        ids = torch.zeros(samples, 2, dtype=torch.int64)
        return {"inputs": ids, "targets": ids[:, 0] if self.classes else ids}

    def tensor_plan(self) -> TensorPlan:
        """Attention by heads, the MLP by columns, embedding and decoder by token."""
        small = dict.fromkeys(("pooler", "classifier"), "sees one position of a text, which is little to divide")
        return TensorPlan(
            column={QKV: self.words.hidden // self.words.heads, "blocks.*.mlp.up": 1},
            row=("blocks.*.attention.out", "blocks.*.mlp.down"),
            vocabulary=("tokens",) if self.classes else ("tokens", "decoder"),
            whole=small if self.classes else {"transform": "the norm behind it needs its whole output"},
            fused={QKV: qkv_rows(self.words.hidden, self.words.heads, self.words.kv_heads)},
        )

    def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Matrices N(0, 0.02), norms 1, biases 0, as in the code of Devlin et al. 2019."""
        if parameter.dim() == 1:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            parameter.normal_(0.0, INITIAL_STD, generator=generator)

    def head_parameters(self) -> int:
        """What the head adds to the published count, which is that of the encoder with its pooler.

        The classifier keeps the pooler. The head for hidden tokens has in its place a layer of the same size, and adds the rest.
        """
        added = (self.classifier,) if self.classes else (self.transform_norm, self.decoder)
        return sum(parameter.numel() for module in added for parameter in module.parameters())

    def publication(self) -> Publication | None:
        """BertForMaskedLM or BertForSequenceClassification; None where heads share keys and values, which transformers' BERT does not."""
        if self.words.kv_heads not in (None, self.words.heads):
            return None
        return as_bert(self.words, self.tokens.num_embeddings, self.classes)

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout) if self.training and self.dropout else x


def as_bert(words: BertWords, vocabulary: int, classes: int | None) -> Publication:
    """BertForMaskedLM, or BertForSequenceClassification; queries, keys and values are stored apart."""
    config: dict[str, Any] = {
        "architectures": ["BertForSequenceClassification" if classes else "BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": words.hidden,
        "num_hidden_layers": words.layers,
        "num_attention_heads": words.heads,
        "intermediate_size": words.ffn_hidden or 4 * words.hidden,
        "hidden_act": "gelu",
        "hidden_dropout_prob": words.dropout,
        "attention_probs_dropout_prob": words.dropout,
        "max_position_embeddings": words.context,
        "type_vocab_size": words.segments,
        "position_embedding_type": "absolute",
        "layer_norm_eps": EPSILON,
        "initializer_range": INITIAL_STD,
        "tie_word_embeddings": True,
    }
    tensors = place("tokens", "bert.embeddings.word_embeddings", bias=False)
    tensors |= place("positions", "bert.embeddings.position_embeddings", bias=False)
    tensors |= place("segments", "bert.embeddings.token_type_embeddings", bias=False)
    tensors |= place("norm", "bert.embeddings.LayerNorm")
    rows = qkv_rows(words.hidden, words.heads, words.kv_heads)
    for layer in range(words.layers):
        block, theirs = f"blocks.{layer}", f"bert.encoder.layer.{layer}"
        projections = [f"{theirs}.attention.self.{kind}" for kind in ("query", "key", "value")]
        tensors |= place(f"{block}.attention.qkv", *projections, rows=rows)
        tensors |= place(f"{block}.attention.out", f"{theirs}.attention.output.dense")
        tensors |= place(f"{block}.norm1", f"{theirs}.attention.output.LayerNorm")
        tensors |= place(f"{block}.mlp.up", f"{theirs}.intermediate.dense")
        tensors |= place(f"{block}.mlp.down", f"{theirs}.output.dense")
        tensors |= place(f"{block}.norm2", f"{theirs}.output.LayerNorm")
    if classes:
        head = place("pooler", "bert.pooler.dense") | place("classifier", "classifier")
        config |= labels(classes)
    else:
        head = place("transform", "cls.predictions.transform.dense")
        head |= place("transform_norm", "cls.predictions.transform.LayerNorm")
        head |= {"decoder.bias": Foreign(("cls.predictions.bias",))}
    return Publication(config, tensors | head, frozenset(head), "bert.")


def build(words: BertWords, data: DataFacts) -> Bert:
    """A BERT whose vocabulary and labels are its own or, where they are open, the data's.

    Raises:
        ConfigError: the data has more token ids or labels than the model, or no labels where it is a classifier.
    """
    classes = classes_of(words.classes, data) if words.head == "classifier" else None
    return Bert(words, vocabulary_of(words.vocab_size, data), classes)
