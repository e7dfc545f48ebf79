"""What was measured or is declared before a layout is chosen: frozen ints and words, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DataFacts:
    """What the rest of the runner needs to know of prepared data.

    Attributes:
        kind: what a sample is: ``tokens``.
        train_samples: samples of one epoch.
        eval_samples: samples held out.
        sample_weight: what every training sample weighs in the mean loss (predicted tokens of a sequence).
        sample_tokens: tokens of a sample, for throughput.
        vocabulary: token ids that occur or can occur.
        seq_len: tokens of a sample the model sees.
        digests: SHA-256 of each source, by the name it was read under.
        store: folder of the prepared data, as an absolute path.
    """

    kind: str
    train_samples: int
    eval_samples: int
    sample_weight: int
    sample_tokens: int
    vocabulary: int
    seq_len: int
    digests: Mapping[str, str]
    store: str


@dataclass(frozen=True)
class TensorFact:
    """One parameter of a model: its name and shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for dimension in self.shape:
            size *= dimension
        return size


@dataclass(frozen=True)
class ModelFacts:
    """What a model consists of, measured on the meta device.

    Attributes:
        tensors: every parameter once, in the order the model registers them (a tied one under its first name).
        head_parameters: elements that the head adds to the published count.
    """

    tensors: tuple[TensorFact, ...]
    head_parameters: int

    @property
    def parameters(self) -> int:
        """Elements of the model as it is published, the head's own apart."""
        return sum(t.size for t in self.tensors) - self.head_parameters
