"""What was measured or is declared before a layout is chosen: frozen ints and words, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dml_runner.schema.model import Elmo, Model, Objective, Reads

Kind = Literal["tokens", "labelled_text", "images"]


@dataclass(frozen=True)
class Task:
    """What a model wants of its data.

    Attributes:
        objective: what is learned of a sample.
        reads: what is seen of it.
        length: longest sequence, in tokens (words, where ``reads`` is characters); None: there are none.
        streams: whether a sample continues where the one in its place ended a step before.
        hidden_share: share of the tokens that are hidden, where the objective is ``masked``.
        word_length: characters of a word that are seen, where ``reads`` is characters; else 0.
        tokenizer: folder or file of the tokenizer that comes with the weights the model starts from; None: there is none.
    """

    objective: Objective
    reads: Reads = "tokens"
    length: int | None = None
    streams: bool = False
    hidden_share: float = 0.0
    word_length: int = 0
    tokenizer: str | None = None


def task_of(words: Model, tokenizer: str | None = None) -> Task:
    """The task of the model that ``words`` describe, whose weights come with ``tokenizer``."""
    word_length = words.word_length if isinstance(words, Elmo) else 0
    return Task(words.objective, words.reads, words.length, words.streams, words.hidden_share, word_length, tokenizer)


@dataclass(frozen=True)
class DataFacts:
    """What the rest of the runner needs to know of prepared data.

    Attributes:
        kind: what a sample is: a piece of running text (``tokens``), a labelled text or a labelled image.
        train_samples: samples of one epoch.
        eval_samples: samples held out.
        sample_weight: what every training sample weighs in the mean loss (predicted tokens of a sequence, or one label);
            None: it varies, and each step counts.
        sample_tokens: tokens of a sample, in the mean, for throughput; 0 for images.
        vocabulary: token ids that occur or can occur; 0 for images.
        seq_len: tokens of the longest sample the model sees; 0 for images.
        classes: labels; 0 where there are none.
        image: channels, height and width of an image; empty for texts.
        skipped: malformed samples that were passed over, as the words asked.
        digests: SHA-256 of each source, by the name it was read under.
        store: folder of the prepared data, as an absolute path; empty where there is none.
        labels: the words of the labels in the order of their numbers; empty where they are numbers alone, or too many to be listed.
    """

    kind: Kind
    train_samples: int
    eval_samples: int
    sample_weight: int | None
    sample_tokens: int
    vocabulary: int
    seq_len: int
    digests: Mapping[str, str]
    store: str
    classes: int = 0
    image: tuple[int, ...] = ()
    skipped: int = 0
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorPlan:
    """How a model's modules may be divided over ranks, by name as in ``named_modules``; ``*`` stands for a block's number.

    Attributes:
        column: linear layers whose outputs may be divided, each with how many rows stay together (a head's, or 1).
        row: linear layers whose inputs may be divided, as the columns before them were: outputs are added over the ranks, and a bias
            counts once.
        vocabulary: embeddings and output projections that may be divided by token id, the first dimension of all they hold.
        tied: pairs of parameters that are one: (the one that holds the values, the one that borrows them).
        whole: modules that stay as they are on every rank, each with the reason.
        fused: those of ``column`` that are several matrices one below the other: the rows of each. Each is divided by itself, in groups
            of ``column``'s size, and a rank's shares are put one below the other again; so a rank's rows of queries, keys and
            values belong to the same heads. A rank gets consecutive groups, as many as every other; a number of ranks that does not
            divide the groups of one of the matrices is refused.
    """

    column: Mapping[str, int] = field(default_factory=dict)
    row: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    whole: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorFact:
    """One parameter of a model: its name, its shape, and whether it is trained."""

    name: str
    shape: tuple[int, ...]
    trained: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for dimension in self.shape:
            size *= dimension
        return size


@dataclass(frozen=True)
class Size:
    """Bytes of what is held for a micro-batch, in what grows with its samples and what does not.

    Attributes:
        fixed: whatever the micro-batch is, such as weights in the form that matrix products take.
        sample: of each sample.
        split_fixed: the part of ``fixed`` that a tensor split divides.
        split_sample: the part of ``sample`` that a tensor split divides: what is computed between columns and rows, or by token.
    """

    fixed: int = 0
    sample: int = 0
    split_fixed: int = 0
    split_sample: int = 0

    def of(self, samples: int, tensor: int = 1, sequence_parallel: bool = False) -> int:
        """Bytes for a micro-batch of ``samples`` on one of ``tensor`` ranks, which divide all of a sample's under ``sequence_parallel``
        (Korthikanti et al. 2022, equations 2 and 4)."""
        split = self.split_fixed + samples * (self.sample if sequence_parallel else self.split_sample)
        return self.fixed + samples * self.sample - split + -(-split // tensor)


@dataclass(frozen=True)
class Piece:
    """What comes before a model's blocks, one of them, or what comes behind them, measured on samples of the data's full length.

    Attributes:
        name: ``stem``, ``blocks.7``, ``head``, or ``model`` where that runs as a whole only.
        tensors: names of its parameters.
        borrowed: names of parameters that it uses and another piece has: tied ones.
        forward_flops: of matrix products and convolutions, a sample; a multiplication with its addition is two.
        backward_flops: of backward, a sample, both to inputs and to weights.
        weight_flops: the part of ``backward_flops`` that gradients of weights take.
        boundary_bytes: what the next piece gets of a sample; 0: nothing follows.
        kept: what backward needs, input and output left out.
        keeps_input: whether backward needs what it gets.
        keeps_output: whether backward needs what it gives.
        products: results of its matrix products, convolutions and attention.
        kept_products: the part of ``products`` that backward needs.
        peak: the most it holds at a time while it runs forward or backward, what it gets left out.
        output: of the head, what the model puts out, unless backward needs it: a caller may hold it until backward has run.
    """

    name: str
    tensors: tuple[str, ...]
    borrowed: tuple[str, ...]
    forward_flops: int
    backward_flops: int
    weight_flops: int
    boundary_bytes: int
    kept: Size
    keeps_input: bool
    keeps_output: bool
    products: Size
    kept_products: Size
    peak: Size
    output: Size = Size()


@dataclass(frozen=True)
class ModelFacts:
    """What a model consists of, measured without memory.

    Attributes:
        tensors: every parameter once, in the order the model registers them (a tied one under its first name).
        head_parameters: elements that the head adds to the published count.
        blocks: how many repeated pieces it has.
        undivided: why it cannot be cut between them; None: it can.
        plan: how its modules may be divided over ranks.
        pieces: its stem, each of its blocks and its head, or all of it as one; empty: they were not measured.
    """

    tensors: tuple[TensorFact, ...]
    head_parameters: int
    blocks: int = 0
    undivided: str | None = None
    plan: TensorPlan = field(default_factory=TensorPlan)
    pieces: tuple[Piece, ...] = ()

    @property
    def parameters(self) -> int:
        """Elements of the model as it is published, the head's own apart."""
        return sum(t.size for t in self.tensors) - self.head_parameters
