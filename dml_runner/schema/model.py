"""Which model is trained, and its shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from dml_runner.errors import Problem
from dml_runner.schema.base import Count, CountOrZero, Fraction, Name, Positive, Section

Objective = Literal["next_token", "masked", "both_directions", "classify"]
"""What a model learns of a sample: the token that follows, hidden tokens, the words on either side, or a label."""
Reads = Literal["tokens", "characters", "images"]
"""What a model sees of a sample: token ids, the characters of its words, or pixels."""


class ModelWords(Section):
    """What every family has, and what it asks of its data."""

    pretrained: Name | None
    """Weights to start from: a folder or hub id in Hugging Face's naming, ``package:NAME`` for the folder of an installed package, or a
    run folder; null: none. A head that is not among them starts anew."""
    frozen: CountOrZero | None
    """Leading blocks that keep their weights, and with them what comes before the first: no gradients, no bytes sent; null: all learn."""
    classes: Count | None
    """Labels a classifier tells apart; null: as many as the data has."""
    dropout: Fraction
    """Probability of zeroing an activation, while training."""

    @property
    def objective(self) -> Objective:
        """What is learned of a sample."""
        raise NotImplementedError

    @property
    def reads(self) -> Reads:
        """What is seen of a sample."""
        return "tokens"

    @property
    def length(self) -> int | None:
        """Longest sequence, in tokens; None: there are none."""
        return None

    @property
    def streams(self) -> bool:
        """Whether a sample continues where the one in its place ended a step before."""
        return False

    @property
    def hidden_share(self) -> float:
        """Share of the tokens that are hidden, where the objective is ``masked``."""
        return 0.0

    def contradictions(self) -> Iterator[Problem]:
        """What its keys say against each other."""
        yield from ()


class Attending(ModelWords):
    """A stack of transformer blocks."""

    layers: Count
    """Transformer blocks."""
    hidden: Count
    """Width of the residual stream; a multiple of ``heads``."""
    heads: Count
    """Attention heads of a block."""
    kv_heads: Count | None
    """Heads of keys and values, each shared by ``heads`` / ``kv_heads`` heads; a divisor of ``heads``; null: ``heads``."""
    ffn_hidden: Count | None
    """Width inside the MLP of a block; null: 4 x ``hidden``."""
    vocab_size: Count | None
    """Token ids the embedding knows; null: as many as the data has."""
    context: Count
    """Longest sequence, in tokens."""

    @property
    def length(self) -> int | None:
        """Longest sequence, in tokens."""
        return self.context

    def contradictions(self) -> Iterator[Problem]:
        """Heads that do not divide what they must."""
        if self.hidden % self.heads:
            yield Problem(
                "model.heads",
                f"does not divide model.hidden: {self.hidden} / {self.heads} = {self.hidden / self.heads:.2f}",
                got=str(self.heads),
                allowed="a divisor of model.hidden",
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            yield Problem("model.kv_heads", "does not divide model.heads", got=str(self.kv_heads), allowed=f"a divisor of {self.heads}")


class Gpt(Attending):
    """A decoder-only transformer language model, in GPT-2's shape or, by ``kv_heads`` to ``tied``, in that of Llama."""

    name: Literal["gpt"]
    """The model family."""
    head: Literal["lm", "classifier"]
    """What it is for: the next token, or the label of a text."""
    norm: Literal["layer", "rms"]
    """Normalisation before each half of a block: layer norm, or RMS norm, which leaves the mean alone."""
    mlp: Literal["gelu", "swiglu"]
    """The MLP of a block: two matrices around GELU, or three, one of which gates another (SwiGLU)."""
    positions: Literal["learned", "rotary"]
    """Where a token stands: a learned vector added to its embedding, or a rotation of queries and keys."""
    rope_theta: Positive
    """Base of the wavelengths of rotary positions; the longest is about 2 pi x this many tokens."""
    bias: bool
    """Whether linear layers and layer norms add a bias."""
    tied: bool
    """Whether the output projection is the token embedding, or a matrix of its own."""

    @property
    def objective(self) -> Objective:
        """What is learned of a sample."""
        return "classify" if self.head == "classifier" else "next_token"

    def contradictions(self) -> Iterator[Problem]:
        """Heads that do not divide what they must, or whose width has no pairs to turn."""
        yield from super().contradictions()
        width, rest = divmod(self.hidden, self.heads)
        if not rest and self.positions == "rotary" and width % 2:
            yield Problem(
                "model.positions",
                f"rotary positions turn pairs, and a head is {width} wide: model.hidden {self.hidden} / model.heads {self.heads}",
                got="rotary",
                allowed="learned, or heads of an even width",
            )


class Bert(Attending):
    """A transformer encoder that sees a text as a whole (Devlin et al. 2019)."""

    name: Literal["bert"]
    """The model family."""
    head: Literal["mlm", "classifier"]
    """What it is for: hidden tokens, or the label of a text."""
    segments: Count
    """Parts of a text that have an embedding of their own (sentence A and B)."""
    mask_rate: Fraction
    """Share of the tokens that are hidden for ``head: mlm``, by whole words."""

    @property
    def objective(self) -> Objective:
        """What is learned of a sample."""
        return "classify" if self.head == "classifier" else "masked"

    @property
    def hidden_share(self) -> float:
        """Share of the tokens that are hidden."""
        return self.mask_rate


class Elmo(ModelWords):
    """A language model in both directions over the characters of words (Peters et al. 2018)."""

    name: Literal["elmo"]
    """The model family."""
    head: Literal["lm", "classifier"]
    """What it is for: the words on either side, or the label of a text from a learned mix of the layers."""
    layers: Count
    """LSTM layers of each direction."""
    hidden: Count
    """Width of an LSTM's cell."""
    projection: Count
    """Width of what an LSTM layer puts out, and of a word's embedding."""
    characters: Count
    """Width of a character's embedding."""
    filters: tuple[Count, ...]
    """Filters of the character convolution by their width: the first number are 1 character wide, the second 2, and so on."""
    highways: CountOrZero
    """Highway layers between the convolution and a word's embedding."""
    word_length: Count
    """Characters of a word that are read, its borders included; longer words are cut."""
    vocab_size: Count | None
    """Words it predicts, the most frequent ones; rarer ones count as one unknown word. null: all that occur."""
    context: Count
    """Longest sequence, in words."""

    @property
    def objective(self) -> Objective:
        """What is learned of a sample."""
        return "classify" if self.head == "classifier" else "both_directions"

    @property
    def reads(self) -> Reads:
        """Characters."""
        return "characters"

    @property
    def length(self) -> int | None:
        """Longest sequence, in words."""
        return self.context

    def contradictions(self) -> Iterator[Problem]:
        """Words too short for the widest filter, or a projection that does not narrow."""
        widest = len(self.filters)
        if not widest:
            yield Problem("model.filters", "none, and a word is made of what they find", got="[]", allowed="a number for each width")
        if self.word_length < widest:
            what = "shorter than the widest of model.filters"
            yield Problem("model.word_length", what, got=str(self.word_length), allowed=f"at least {widest}")
        if self.projection >= self.hidden:
            what = "does not narrow what a cell puts out"
            yield Problem("model.projection", what, got=str(self.projection), allowed=f"below model.hidden, {self.hidden}")


class Rnn(ModelWords):
    """A recurrent language model (Mikolov et al. 2010; Zaremba et al. 2014)."""

    name: Literal["rnn"]
    """The model family."""
    head: Literal["lm", "classifier"]
    """What it is for: the next token, or the label of a text."""
    cell: Literal["lstm", "gru"]
    """The recurrent cell."""
    layers: Count
    """Recurrent layers."""
    hidden: Count
    """Width of the state of a layer, and of a token's embedding."""
    bptt: Count
    """Tokens a gradient flows back through; the state goes on from one such piece of the text to the next."""
    vocab_size: Count | None
    """Token ids the embedding knows; null: as many as the data has."""
    tied: bool
    """Whether the output projection is the token embedding, or a matrix of its own."""

    @property
    def objective(self) -> Objective:
        """What is learned of a sample."""
        return "classify" if self.head == "classifier" else "next_token"

    @property
    def length(self) -> int | None:
        """Tokens of one step of a stream."""
        return self.bptt

    @property
    def streams(self) -> bool:
        """A language model reads on where it stopped; a classifier does not."""
        return self.head == "lm"


class Resnet(ModelWords):
    """A residual convolutional network (He et al. 2016)."""

    name: Literal["resnet"]
    """The model family."""
    head: Literal["classifier"]
    """What it is for: the label of an image."""
    block: Literal["basic", "bottleneck"]
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 around a quarter of the width."""
    depths: tuple[Count, ...]
    """Blocks of each stage; a stage halves the image and doubles the width."""
    width: Count
    """Channels of the first stage."""
    stem: Literal["imagenet", "small"]
    """What meets the image: a 7x7 convolution that, with a pooling, quarters it, or a 3x3 one that keeps small images large."""
    norm: Literal["batch", "group"]
    """Normalisation over a micro-batch, or over groups of channels of one image."""
    groups: Count
    """Groups of channels, where ``norm`` is group; they divide ``width``."""
    synchronise: bool
    """Whether batch norm takes its statistics over the micro-batches of all ranks."""

    @property
    def objective(self) -> Objective:
        """The label."""
        return "classify"

    @property
    def reads(self) -> Reads:
        """Pixels."""
        return "images"

    def contradictions(self) -> Iterator[Problem]:
        """Groups that do not divide the channels."""
        if self.norm == "group" and self.width % self.groups:
            yield Problem("model.groups", "does not divide model.width", got=str(self.groups), allowed=f"a divisor of {self.width}")


class Huggingface(ModelWords):
    """Any model of the transformers library, as its AutoModel classes build it; needs ``dml_runner[huggingface]``."""

    name: Literal["huggingface"]
    """The model family."""
    source: Name
    """Whose architecture: a folder with a config.json, a hub id, or ``package:NAME`` for the folder of an installed package."""
    task: Literal["causal_lm", "masked_lm", "sequence_classification", "image_classification"]
    """What it is for, and so which AutoModel class builds it."""
    context: Count
    """Longest sequence, in tokens; for images it is not read."""
    mask_rate: Fraction
    """Share of the tokens that are hidden for ``task: masked_lm``, by whole words."""

    @property
    def objective(self) -> Objective:
        """What is learned of a sample."""
        objectives: dict[str, Objective] = {"causal_lm": "next_token", "masked_lm": "masked"}
        return objectives.get(self.task, "classify")

    @property
    def reads(self) -> Reads:
        """Tokens or pixels."""
        return "images" if self.task == "image_classification" else "tokens"

    @property
    def length(self) -> int | None:
        """Longest sequence, in tokens; None for images."""
        return None if self.reads == "images" else self.context

    @property
    def hidden_share(self) -> float:
        """Share of the tokens that are hidden."""
        return self.mask_rate


Model = Annotated[Gpt | Bert | Elmo | Rnn | Resnet | Huggingface, Field(discriminator="name")]
"""What is trained."""
