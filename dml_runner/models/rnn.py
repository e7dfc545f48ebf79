"""A recurrent model of text, LSTM or GRU, that reads on where it stopped (Mikolov et al. 2010; Zaremba et al. 2014)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from dml_runner.facts import DataFacts, TensorPlan
from dml_runner.models.base import Batch, Guess, Model
from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.models.parts.classifier import classes_of, guess_labels, label_loss, last_real
from dml_runner.models.parts.decoder import TiedDecoder
from dml_runner.models.parts.language import vocabulary_of
from dml_runner.models.parts.lstm import initialise_recurrent
from dml_runner.models.parts.scores import Scores
from dml_runner.schema.model import Rnn as RnnWords

PARTS = {"lstm": 2, "gru": 1}
"""Vectors of a layer's state: output and memory of an LSTM's cells, output of a GRU's."""


class Output(NamedTuple):
    """What a language model puts out.

    Attributes:
        logits: of every position's next token, (batch, length, vocabulary).
        state: after the last position, (batch, layers, parts, hidden), without a gradient.
    """

    logits: Tensor
    state: Tensor


class Layer(nn.Module):
    """A recurrent layer. It takes and returns a sequence with the states of all layers behind it as further positions.

    So the state of a layer travels as part of the one tensor that blocks hand on: nothing stays in a module between two calls.

    Args:
        words: the model's.
        number: of the layer, from 0.
    """

    def __init__(self, words: RnnWords, number: int) -> None:
        super().__init__()
        self.dropout = words.dropout
        self.parts = PARTS[words.cell]
        self.states = words.layers * self.parts
        self.own = slice(number * self.parts, (number + 1) * self.parts)
        kind = nn.LSTM if words.cell == "lstm" else nn.GRU
        self.cell = kind(words.hidden, words.hidden, batch_first=True)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """(batch, length + layers x parts, hidden) -> the same shape, with the layer's own state moved on."""
        sequence, states = parted(x, self.states)
        if self.training and self.dropout:
            sequence = dropout(sequence, self.dropout)
        start = states[:, self.own].transpose(0, 1).contiguous()
        if self.parts == 2:
            out, end = self.cell(sequence, (start[:1], start[1:]))
            end = torch.cat(end)
        else:
            out, end = self.cell(sequence, start)
        return torch.cat((out, states[:, : self.own.start], end.transpose(0, 1), states[:, self.own.stop :]), dim=1)


class Rnn(Model):
    """Token ids to next-token logits and the state to read on from or, where there are ``classes``, to the logits of a text's labels."""

    def __init__(self, words: RnnWords, vocabulary: int, classes: int | None = None) -> None:
        super().__init__()
        self.words = words
        self.scores = Scores()
        self.state = (words.layers, PARTS[words.cell], words.hidden)
        self.tokens = nn.Embedding(vocabulary, words.hidden)
        self.blocks = nn.ModuleList(Layer(words, number) for number in range(words.layers))
        self.classifier = nn.Linear(words.hidden, classes) if classes else None
        self.decoder = TiedDecoder(vocabulary) if words.tied and not classes else None
        self.output = None if words.tied or classes else nn.Linear(words.hidden, vocabulary)

    def forward(self, batch: Batch, cache: KeyValueCache | None = None) -> Output | Tensor:
        """``inputs`` (batch, length) -> an ``Output``, or of a classifier logits (batch, classes).

        ``state`` (batch, layers, parts, hidden) is where the reading goes on from, but for samples whose ``first`` (batch,) is true;
        without it, everything starts from zeros. With a cache, the reading goes on from what that keeps, and what is returned are the
        logits of the last token alone: (batch, 1, vocabulary).
        """
        if cache is None:
            out: Output | Tensor = super().forward(batch)
            return out
        kept = cache.kept(self)
        output: Output = super().forward(batch if kept is None else {**batch, "state": kept})
        cache.keep(self, output.state)
        cache.advance(batch["inputs"].shape[1])
        return self.scores.whole(output.logits[:, -1:])

    def embed(self, batch: Batch) -> Tensor:
        """(batch, length + layers x parts, hidden): the tokens, and behind them the state of every layer."""
        x: Tensor = self.tokens(batch["inputs"])
        state, first = batch.get("state"), batch.get("first")
        if state is None:
            state = x.new_zeros(len(x), *self.state)
        elif first is not None:
            state = state.masked_fill(first[:, None, None, None], 0.0)
        return torch.cat((x, state.flatten(1, 2).type_as(x)), dim=1)

    def stem(self) -> Sequence[nn.Module]:
        """The embedding."""
        return [self.tokens]

    def finish(self, x: Tensor, batch: Batch) -> Output | Tensor:
        """Logits of every position and the state, or (batch, classes) from where a text's last real token was read."""
        layers, parts, _ = self.state
        sequence, states = parted(x, layers * parts)
        if self.classifier is not None:
            labels: Tensor = self.classifier(self._drop(last_real(sequence, batch.get("mask"))))
            return labels
        sequence = self._drop(sequence)
        if self.decoder is not None:
            logits = self.scores.project(sequence, self.tokens.weight, self.decoder.bias)
        else:
            assert self.output is not None
            logits = self.scores.project(sequence, self.output.weight, self.output.bias)
        return Output(logits, states.detach().unflatten(1, (layers, parts)))

    def loss(self, output: Output | Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy of the next token or the label, summed over ``targets``, and their number."""
        if isinstance(output, Output):
            return self.scores.loss(output.logits, batch["targets"])
        return label_loss(output, batch["targets"])

    def scores_of(self, output: Output) -> Tensor:
        """Of the whole vocabulary."""
        return self.scores.whole(output.logits)

    def guess(self, output: Output | Tensor, batch: Batch) -> Guess:
        """The likeliest next tokens or labels, and those that came."""
        if isinstance(output, Output):
            return self.scores.guess(output.logits, batch["targets"])
        return guess_labels(output, batch["targets"])

    def state_shape(self) -> tuple[int, ...] | None:
        """(layers, parts, hidden) of a language model; a classifier reads a text from its beginning to its end."""
        return self.state if self.classifier is None else None

    def state_of(self, output: Output) -> Tensor:
        """What the reading goes on from, without a gradient: none flows from one step back into the one before."""
        return output.state

    def example(self, samples: int) -> dict[str, Tensor]:
        """Texts of two tokens."""
        ids = torch.zeros(samples, 2, dtype=torch.int64)
        return {"inputs": ids, "targets": ids if self.classifier is None else ids[:, 0]}

    def tensor_plan(self) -> TensorPlan:
        """Embedding and projection by token; cells stay whole."""
        cells = "a step needs the whole output of the step before, so ranks would talk once a token"
        whole = {"blocks.*.cell": cells}
        if self.classifier is not None:
            return TensorPlan(vocabulary=("tokens",), whole=whole | {"classifier": "a row a class is little to divide"})
        return TensorPlan(vocabulary=("tokens", "output" if self.decoder is None else "decoder"), whole=whole)

    def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Cells by ``initialise_recurrent``, the embedding U(-1, 1), what projects uniform within 1 / sqrt(hidden), its bias 0.

        An embedding within 0.1, as in Zaremba et al. 2014, hardly moves a cell at first: a model of characters needed twice the steps.
        """
        if name.startswith("blocks."):
            initialise_recurrent(name, parameter, self.words.hidden, 4 if self.words.cell == "lstm" else 3, generator)
        elif parameter.dim() > 1:
            bound = 1.0 if name == "tokens.weight" else 1 / math.sqrt(self.words.hidden)
            parameter.uniform_(-bound, bound, generator=generator)
        else:
            parameter.zero_()

    def head_parameters(self) -> int:
        """What is there beside embedding and cells; the published count leaves the projection out."""
        added = (module for module in (self.classifier, self.decoder, self.output) if module is not None)
        return sum(parameter.numel() for module in added for parameter in module.parameters())

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.words.dropout) if self.training and self.words.dropout else x


def parted(x: Tensor, states: int) -> tuple[Tensor, Tensor]:
    """(batch, length + states, hidden) -> the sequence and the states behind it."""
    length = x.shape[1] - states
    return x[:, :length], x[:, length:]


def build(words: RnnWords, data: DataFacts) -> Rnn:
    """A recurrent model whose vocabulary and labels are its own or, where they are open, the data's.

    Raises:
        ConfigError: the data has more token ids or labels than the model, or no labels where it is a classifier.
    """
    classes = classes_of(words.classes, data) if words.head == "classifier" else None
    return Rnn(words, vocabulary_of(words.vocab_size, data), classes)
