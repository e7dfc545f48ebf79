"""ResNet: convolutions around which the image also passes unchanged (He et al. 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, max_pool2d, relu

from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts, TensorPlan
from dml_runner.models.base import Batch, Guess, Model
from dml_runner.models.parts.classifier import classes_of, guess_labels, label_loss
from dml_runner.parallel.batch_norm import BatchNorm
from dml_runner.schema.model import Resnet as ResnetWords

BOTTLENECK = 4
"""Channels a bottleneck block puts out for each it computes in."""


def build_norm(words: ResnetWords, channels: int) -> nn.Module:
    """The normalisation of ``channels`` that the words name."""
    return nn.GroupNorm(words.groups, channels) if words.norm == "group" else BatchNorm(channels, words.synchronise)


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A square convolution that keeps the image's size but for its stride."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """relu(x + convolutions(x)); where the shape changes, x passes a 1x1 convolution (He et al. 2016, figure 5).

    The stride is that of the 3x3 convolution, as in the weights published with PyTorch.
    """

    def __init__(self, words: ResnetWords, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width if words.block == "basic" else BOTTLENECK * width
        if words.block == "basic":
            sizes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        else:
            sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        self.convolutions = nn.ModuleList(convolution(*size) for size in sizes)
        self.norms = nn.ModuleList(build_norm(words, size[1]) for size in sizes)
        changes = stride > 1 or inputs != outputs
        self.shortcut = convolution(inputs, outputs, 1, stride) if changes else None
        self.shortcut_norm = build_norm(words, outputs) if changes else None
        self.outputs = outputs

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """(batch, channels, height, width) -> the same, or half as high and wide."""
        passed = x if self.shortcut is None or self.shortcut_norm is None else self.shortcut_norm(self.shortcut(x))
        for number, (convolve, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(convolve(x if number == 0 else relu(x)))
        return relu(x + passed)


class Resnet(Model):
    """Images to the logits of their labels."""

    def __init__(self, words: ResnetWords, image: Sequence[int], classes: int) -> None:
        super().__init__()
        self.words = words
        self.image = tuple(image)
        large = words.stem == "imagenet"
        self.first = convolution(image[0], words.width, 7 if large else 3, 2 if large else 1)
        self.norm = build_norm(words, words.width)
        blocks, channels = [], words.width
        for stage, depth in enumerate(words.depths):
            for number in range(depth):
                blocks.append(Block(words, channels, words.width << stage, 2 if stage and number == 0 else 1))
                channels = blocks[-1].outputs
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.Linear(channels, classes)

    def embed(self, batch: Batch) -> Tensor:
        """``images`` (batch, channels, height, width), through the stem."""
        x = relu(self.norm(self.first(batch["images"])))
        return max_pool2d(x, 3, 2, 1) if self.words.stem == "imagenet" else x

    def stem(self) -> Sequence[nn.Module]:
        """The first convolution and its norm."""
        return [self.first, self.norm]

    def finish(self, x: Tensor, batch: Batch) -> Tensor:
        """Logits (batch, classes), from the mean over the image."""
        x = x.mean(dim=(2, 3))
        out: Tensor = self.classifier(dropout(x, self.words.dropout) if self.training and self.words.dropout else x)
        return out

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy of the label, summed over the images, and their number."""
        return label_loss(output, batch["targets"])

    def guess(self, output: Tensor, batch: Batch) -> Guess:
        """The likeliest labels, and the true ones."""
        return guess_labels(output, batch["targets"])

    def example(self, samples: int) -> dict[str, Tensor]:
        """Black images, of the data's size, and one at least: batch norm needs two values a channel."""
        return {"images": torch.zeros(samples, *self.image), "targets": torch.zeros(samples, dtype=torch.int64)}

    def tensor_plan(self) -> TensorPlan:
        """All of it stays whole."""
        reason = "its channels meet in every norm and every sum, so ranks would talk at each convolution"
        return TensorPlan(whole={"first": reason, "blocks.*": reason, "classifier": "a row a class is little to divide"})

    def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Convolutions N(0, 2 / (outputs x area)) (He et al. 2015), norms 1 and 0, the classifier N(0, 1 / inputs)."""
        if parameter.dim() == 4:
            parameter.normal_(0.0, math.sqrt(2 / (parameter.shape[0] * parameter[0, 0].numel())), generator=generator)
        elif parameter.dim() == 2:
            parameter.normal_(0.0, 1 / math.sqrt(parameter.shape[1]), generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)

    def initialise_buffers(self) -> None:
        """Running statistics as before the first batch."""
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.fill_buffers()


def build(words: ResnetWords, data: DataFacts) -> Resnet:
    """A ResNet whose labels are its own or, where they are open, the data's.

    Raises:
        ConfigError: the data has more labels than the model, or no images.
    """
    if not data.image:
        raise ConfigError(Problem("data", "has no images, and the model reads them", hint="data=digits or data=idx"))
    return Resnet(words, data.image, classes_of(words.classes, data))
