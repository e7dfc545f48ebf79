"""ELMo: an LSTM language model in both directions over the characters of words (Peters et al. 2018; Jozefowicz et al. 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from dml_runner.facts import DataFacts, TensorPlan
from dml_runner.models.base import Batch, Guess, Model
from dml_runner.models.parts.character_cnn import CharacterCnn
from dml_runner.models.parts.classifier import classes_of, guess_labels, label_loss
from dml_runner.models.parts.lstm import ProjectedLstm, initialise_recurrent, turned
from dml_runner.models.parts.scores import Scores
from dml_runner.schema.model import Elmo as ElmoWords

CARRIED = -2.0
"""Where the bias of a highway's gate starts: at first it mostly hands on what it got (Srivastava et al. 2015, section 2.1)."""

UNKNOWN = 0
"""Stands for every word that is not predicted; the others come by their frequency, so that a smaller vocabulary leaves out the rarest."""


class Output(NamedTuple):
    """Logits of every word's neighbours, (batch, length, vocabulary) each.

    Attributes:
        after: of the word behind it, from what stands up to it.
        before: of the word before it, from what stands from it on.
    """

    after: Tensor
    before: Tensor


class Layer(nn.Module):
    """An LSTM in each direction; from the second on, each adds what it took in (Peters et al. 2018, section 3.3)."""

    def __init__(self, words: ElmoWords, residual: bool) -> None:
        super().__init__()
        self.dropout = words.dropout
        self.residual = residual
        self.keeps = words.head == "classifier"
        self.onward = ProjectedLstm(words.projection, words.hidden, words.projection)
        self.back = ProjectedLstm(words.projection, words.hidden, words.projection)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """(batch, layers so far, length, 2 x projection) -> the same and this layer or, where the last alone counts, this layer alone."""
        last, mask = x[:, -1], batch.get("mask")
        if self.training and self.dropout:
            last = dropout(last, self.dropout)
        onward, back = last.chunk(2, dim=-1)
        out = torch.cat((self.onward.sequence(onward), turned(self.back.sequence(turned(back, mask)), mask)), dim=-1)
        if self.residual:
            out = out + last
        return torch.cat((x, out[:, None]), dim=1) if self.keeps else out[:, None]


class Mix(nn.Module):
    """scale x the mean of the layers by learned weights, softmax(weights) (Peters et al. 2018, equation 1)."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(layers))
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, layers, length, width) -> (batch, length, width)."""
        return torch.einsum("n,bnlw->blw", self.scale * self.weights.softmax(dim=0), x)


class Elmo(Model):
    """Characters of words to the logits of the words around each or, where there are ``classes``, to those of a text's labels."""

    def __init__(self, words: ElmoWords, outputs: int) -> None:
        super().__init__()
        self.shape = words
        self.outputs = outputs
        self.scores = Scores()
        self.words = CharacterCnn(words.characters, words.filters, words.highways, words.projection)
        self.blocks = nn.ModuleList(Layer(words, residual=number > 0) for number in range(words.layers))
        self.mix = Mix(words.layers + 1) if words.head == "classifier" else None
        if self.mix is None:
            self.output = nn.Linear(words.projection, outputs)
        else:
            self.classifier = nn.Linear(2 * words.projection, outputs)

    def embed(self, batch: Batch) -> Tensor:
        """(batch, 1, length, 2 x projection): a word's embedding, once for each direction."""
        x = self.words(batch["characters"])
        return torch.cat((x, x), dim=-1)[:, None]

    def stem(self) -> Sequence[nn.Module]:
        """What makes a word of its characters."""
        return [self.words]

    def finish(self, x: Tensor, batch: Batch) -> Output | Tensor:
        """Logits of the words around each from the last layer, or (batch, classes) from the mean over a text's words of all layers' mix."""
        if self.mix is None:
            after, before = self._drop(x[:, -1]).chunk(2, dim=-1)
            weight, bias = self.output.weight, self.output.bias
            return Output(self.scores.project(after, weight, bias), self.scores.project(before, weight, bias))
        out: Tensor = self.classifier(self._drop(mean_of(self.mix(x), batch.get("mask"))))
        return out

    def loss(self, output: Output | Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy of the word behind and the word before, their mean, summed over the words, and their number; or of the label."""
        if not isinstance(output, Output):
            return label_loss(output, batch["targets"])
        after, words = self.scores.loss(output.after, self._known(batch["targets"]))
        before, _ = self.scores.loss(output.before, self._known(batch["before"]))
        return (after + before) / 2, words

    def guess(self, output: Output | Tensor, batch: Batch) -> Guess:
        """The likeliest words behind and then those before, or labels, and the true ones."""
        if not isinstance(output, Output):
            return guess_labels(output, batch["targets"])
        after = self.scores.guess(output.after, self._known(batch["targets"]))
        before = self.scores.guess(output.before, self._known(batch["before"]))
        return Guess(torch.cat((after.predicted, before.predicted)), torch.cat((after.targets, before.targets)))

    def example(self, samples: int) -> dict[str, Tensor]:
        """Texts of two words."""
        characters = torch.zeros(samples, 2, self.shape.word_length, dtype=torch.int64)
        targets = characters[:, :, 0]
        if self.mix is not None:
            return {"characters": characters, "targets": targets[:, 0]}
        return {"characters": characters, "targets": targets, "before": targets}

    def tensor_plan(self) -> TensorPlan:
        """The output projection by word; the rest stays whole."""
        cells = "a step needs the whole output of the step before, so ranks would talk once a word"
        whole = {"words": "makes a word of few numbers, and all of them enter every highway layer"}
        whole |= dict.fromkeys(("blocks.*.onward", "blocks.*.back"), cells)
        if self.mix is None:
            return TensorPlan(vocabulary=("output",), whole=whole)
        return TensorPlan(whole=whole | {"mix": "is a number a layer", "classifier": "a row a class is little to divide"})

    def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """LSTMs by ``initialise_recurrent``, characters U(-1, 1), other matrices N(0, 1 / inputs), the gates of highways mostly closed."""
        if name.startswith("blocks."):
            initialise_recurrent(name, parameter, self.shape.hidden, 4, generator)
        elif name == "words.characters.weight":
            parameter.uniform_(-1.0, 1.0, generator=generator)
        elif parameter.dim() > 1:
            parameter.normal_(0.0, 1 / math.sqrt(parameter[0].numel()), generator=generator)
        else:
            parameter.fill_(1.0 if name == "mix.scale" else 0.0)
            if name.startswith("words.highways."):
                parameter[len(parameter) // 2 :] = CARRIED

    def initialise_buffers(self) -> None:
        """Zero the biases of the LSTMs that are not learned."""
        for module in self.modules():
            if isinstance(module, ProjectedLstm):
                module.fill_buffer()

    def head_parameters(self) -> int:
        """The output projection, or the mix and the classifier; the published count is that of what makes the representations."""
        added: tuple[nn.Module, ...] = (self.output,) if self.mix is None else (self.mix, self.classifier)
        return sum(parameter.numel() for module in added for parameter in module.parameters())

    def _known(self, words: Tensor) -> Tensor:
        return words.where(words < self.outputs, UNKNOWN)

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.shape.dropout) if self.training and self.shape.dropout else x


def mean_of(x: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, length, width) -> (batch, width), the mean over the positions where ``mask`` (batch, length) is true; of none, 0."""
    if mask is None:
        return x.mean(dim=1)
    return (x * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def build(words: ElmoWords, data: DataFacts) -> Elmo:
    """An ELMo whose vocabulary or labels are its own or, where they are open, the data's; rarer words than its own are unknown to it.

    Raises:
        ConfigError: the data has more labels than the model, or no labels where it is a classifier.
    """
    if words.head == "classifier":
        return Elmo(words, classes_of(words.classes, data))
    return Elmo(words, words.vocab_size or data.vocabulary)
