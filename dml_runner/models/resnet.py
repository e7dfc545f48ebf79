"""ResNet: convolutions around which the image also passes unchanged (He et al. 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, max_pool2d, relu

from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts, TensorPlan
from dml_runner.models.base import Batch, Foreign, Guess, Model, Publication
from dml_runner.models.parts.classifier import classes_of, guess_labels, label_loss
from dml_runner.models.parts.publication import labels, place
from dml_runner.parallel.batch_norm import BatchNorm
from dml_runner.schema.model import Resnet as ResnetWords

BOTTLENECK = 4
"""Channels a bottleneck block puts out for each it computes in."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""The buffers of a batch norm."""


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

    def publication(self) -> Publication | None:
        """ResNetForImageClassification, which has the large stem and batch norm; of others transformers has no model."""
        words = self.words
        return as_resnet(words, self) if (words.stem, words.norm) == ("imagenet", "batch") else None

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


def as_resnet(words: ResnetWords, model: Resnet) -> Publication:
    """ResNetForImageClassification, whose blocks are numbered within their stage."""
    expansion = 1 if words.block == "basic" else BOTTLENECK
    config = {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": model.image[0],
        "embedding_size": words.width,
        "hidden_sizes": [expansion * words.width << stage for stage in range(len(words.depths))],
        "depths": list(words.depths),
        "layer_type": words.block,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        **labels(model.classifier.out_features),
    }
    tensors = place_normed("first", "norm", "resnet.embedder.embedder")
    places = [(stage, number) for stage, depth in enumerate(words.depths) for number in range(depth)]
    for index, (stage, number) in enumerate(places):
        ours, theirs = f"blocks.{index}", f"resnet.encoder.stages.{stage}.layers.{number}"
        for k in range(2 if words.block == "basic" else 3):
            tensors |= place_normed(f"{ours}.convolutions.{k}", f"{ours}.norms.{k}", f"{theirs}.layer.{k}")
        block = model.blocks[index]
        if isinstance(block, Block) and block.shortcut is not None:
            tensors |= place_normed(f"{ours}.shortcut", f"{ours}.shortcut_norm", f"{theirs}.shortcut")
    head = place("classifier", "classifier.1")
    return Publication(config, tensors | head, frozenset(head), "resnet.")


def place_normed(convolve: str, norm: str, theirs: str) -> dict[str, Foreign]:
    """Where a convolution and the batch norm behind it stand, running statistics included."""
    statistics = {f"{norm}.{name}": Foreign((f"{theirs}.normalization.{name}",)) for name in STATISTICS}
    return place(convolve, f"{theirs}.convolution", bias=False) | place(norm, f"{theirs}.normalization") | statistics


def build(words: ResnetWords, data: DataFacts) -> Resnet:
    """A ResNet whose labels are its own or, where they are open, the data's.

    Raises:
        ConfigError: the data has more labels than the model, or no images.
    """
    if not data.image:
        raise ConfigError(Problem("data", "has no images, and the model reads them", hint="data=digits or data=idx"))
    return Resnet(words, data.image, classes_of(words.classes, data))
