"""What the model is trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dml_runner.schema.base import Count, CountOrZero, Name, Positive, Section, Share

Bad = Literal["stop", "skip"]


class DataWords(Section):
    """What all data has."""

    workers: CountOrZero
    """Threads of a rank that make coming batches while a step computes; 0: batches are made between the steps."""


class Texts(DataWords):
    """What all texts have."""

    seq_len: Count | None
    """Longest sample, in tokens; null: what the model can see."""
    tokenizer: Name | None
    """``char`` or ``byte``: one token a character that occurs, or a UTF-8 byte; ``word``: words and punctuation marks; ``bpe`` or
    ``wordpiece``: trained on the text; a tokenizer.json or vocab.txt; null: the one of ``model.pretrained``, else what the model needs."""
    vocab_size: Count
    """Tokens of a trained tokenizer (bpe, wordpiece), at most."""
    bad: Bad
    """What a malformed line or row does: stop before anything runs, or be skipped and counted."""


class Images(DataWords):
    """What all images have."""

    size: Count | None
    """Side of the square the model sees, in pixels: the shorter side is scaled to it and the middle cut out; null: as they are stored."""
    pad: CountOrZero
    """Training: pixels added on each side before a square of the old size is cut out at random."""
    flip: bool
    """Training: every second image is mirrored left to right."""
    crop: Share
    """Training: smallest share of the area that a random part, scaled to ``size``, covers; 1: no such part is cut."""
    mean: tuple[float, ...] | None
    """Subtracted from each channel, whose values are 0 to 1; null: the mean of the training images."""
    std: tuple[Positive, ...] | None
    """Divides each channel; null: the standard deviation of the training images."""


class StdlibText(Texts):
    """460 kB of English that ships with Python itself (the help topics of pydoc): nothing to download."""

    name: Literal["stdlib_text"]
    """The data."""


class Text(Texts):
    """Plain UTF-8 text files, cut into sequences; they may be larger than memory."""

    name: Literal["text"]
    """The data."""
    path: Name | tuple[Name, ...]
    """A text file, a glob, or a list of them, read in the order given (a glob's files by name)."""
    eval_path: Name | tuple[Name, ...] | None
    """Held-out text, in the same forms; null: the last 10 % of ``path``."""


class LabelledText(Texts):
    """Texts with a label each, a row a sample: .tsv, .csv, .jsonl or .parquet."""

    name: Literal["labelled_text"]
    """The data."""
    path: Name | tuple[Name, ...]
    """A file, a glob, or a list of them; the name's ending tells the format."""
    eval_path: Name | tuple[Name, ...] | None
    """Held-out rows, in the same forms; null: every tenth row of ``path``."""
    text_column: Name
    """Column of the text: its name in the first row, or in a file without such a row its number, from 0."""
    label_column: Name
    """Column of the label, named alike; labels are the words that occur in the training rows, in sorted order."""


class Digits(Images):
    """1,797 handwritten digits of 8 x 8 pixels that ship with scikit-learn; needs ``dml_runner[images]``."""

    name: Literal["digits"]
    """The data."""


class Idx(Images):
    """Images and labels in the format of MNIST: idx files, gzipped or not."""

    name: Literal["idx"]
    """The data."""
    path: Name
    """A folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same of ``t10k``, ``.gz`` or not."""
    eval_path: Name | None
    """Another folder whose ``t10k`` files are held out; null: those in ``path``, or where it has none every tenth image."""


class ImageFolder(Images):
    """A folder of image files for each class; needs ``dml_runner[images]``."""

    name: Literal["image_folder"]
    """The data."""
    path: Name
    """A folder of folders, whose names are the classes: every file in one, at any depth, is an image, unless its name begins with a dot."""
    eval_path: Name | None
    """Held-out images, in the same form; null: every tenth image of ``path``."""
    bad: Bad
    """What an image that cannot be read does: stop before anything runs, or be skipped and counted."""


class HuggingfaceData(Texts, Images):
    """A data set of texts or images of the datasets library: one on the hub, or files on disk; needs ``dml_runner[huggingface]``."""

    name: Literal["huggingface"]
    """The data."""
    path: Name
    """Id of a data set, a folder that ``save_to_disk`` wrote, or files (.parquet, .jsonl, .csv) as a path or glob."""
    subset: Name | None
    """Its configuration, where it has several."""
    split: Name
    """The split that is trained on."""
    eval_split: Name | None
    """The split that is held out; null: every tenth row, or of running text the last 10 %."""
    streaming: bool
    """Read the rows of a data set on the hub once, as they come, without storing it first; files are always read as they are."""
    text_column: Name | None
    """Column of the text; null: there is none."""
    label_column: Name | None
    """Column of the label; null: there is none."""
    image_column: Name | None
    """Column of the image; null: there is none."""


class Synthetic(DataWords):
    """Made-up samples of the kind the model needs, the same for the same seed: for trying a layout, not for learning."""

    name: Literal["synthetic"]
    """The data."""
    samples: Count
    """Training samples; a tenth as many are held out."""
    seq_len: Count | None
    """Tokens of a sample; null: what the model can see."""
    vocabulary: Count
    """Token ids."""
    classes: Count
    """Labels."""
    size: Count
    """Side of an image, in pixels."""
    channels: Count
    """Channels of an image."""


Data = Annotated[StdlibText | Text | LabelledText | Digits | Idx | ImageFolder | HuggingfaceData | Synthetic, Field(discriminator="name")]
"""What the model is trained on."""
