"""The store of labelled images as they are found: the bytes each is known by, one after the other, and its label.

``train.bin`` holds names of files or the files themselves, ``train.spans`` int64 (images, 2), where each begins and ends there,
``train.labels`` int64 numbers; and the same of ``eval``. Images are decoded when they are wanted, so memory does not grow with them.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from dml_runner.data.parts.folder import make_once, numbers, settle
from dml_runner.data.parts.labels import Labels, Part, Split, find_labels, listed
from dml_runner.data.parts.pictures import Picture, require_pillow
from dml_runner.data.parts.pixels import Channels, wrong_normalisation
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts
from dml_runner.files import write_json
from dml_runner.schema.data import Images

FORMAT = 1
PARTS: tuple[Part, Part] = ("train", "eval")
FLATTEST = 1e-6
"""A standard deviation that can be divided by, where every image is of one colour."""


@dataclass(frozen=True)
class PictureStore:
    """A complete store of labelled images.

    Attributes:
        folder: where it is.
        counts: images of ``train`` and ``eval``.
        sizes: bytes of ``train.bin`` and ``eval.bin``.
        channels: 1 where all images hold greys, else 3.
        shape: height and width of the first image.
        differing: the first image of another size, and the first image, each with its size; empty where all have one size.
        labels: the words of the labels, in the order of their numbers.
        skipped: images that were passed over.
        mean: of each channel of the training images, whose values are 0 to 1; every image counts alike, whatever its size.
        std: the standard deviation of each.
        digests: SHA-256 of each source, in their order.
    """

    folder: Path
    counts: dict[str, int]
    sizes: dict[str, int]
    channels: int
    shape: tuple[int, int]
    differing: tuple[str, ...]
    labels: tuple[str, ...]
    skipped: int
    mean: Channels
    std: Channels
    digests: tuple[str, ...]

    def kept(self, part: Part) -> np.ndarray:
        """The bytes that the images of one part are known by, uint8."""
        return numbers(self.folder / f"{part}.bin", "u1")

    def spans(self, part: Part) -> np.ndarray:
        """Where those of each image begin and end, int64 (images, 2)."""
        return numbers(self.folder / f"{part}.spans", "<i8").reshape(-1, 2)

    def numbers(self, part: Part) -> np.ndarray:
        """The label of each image, int64."""
        return numbers(self.folder / f"{part}.labels", "<i8")


def load_pictures(folder: Path) -> PictureStore | None:
    """The store in ``folder``; None if there is none or a file of it is missing, torn or of another size."""
    try:
        about = json.loads((folder / "store.json").read_text())
        found: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in about.items()}
        store = PictureStore(folder, **found)
        whole = all(
            (folder / f"{part}.bin").stat().st_size == store.sizes[part]
            and (folder / f"{part}.spans").stat().st_size == 16 * store.counts[part]
            and (folder / f"{part}.labels").stat().st_size == 8 * store.counts[part]
            for part in PARTS
        )
        return store if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store_pictures(split: Split[Picture], stamps: list[str], skip: bool, cache: Path) -> PictureStore:
    """The store of the given images, made unless it is there.

    Args:
        split: the images.
        stamps: what tells them from others.
        skip: whether images that cannot be used are passed over.
        cache: folder that keeps stores, under ``images/``.

    Raises:
        ConfigError: Pillow is missing, images cannot be used, there are too few of them or of labels, or the store cannot be written.
    """
    require_pillow()
    key = hashlib.sha256(json.dumps([FORMAT, skip, split.held_out is None, stamps]).encode()).hexdigest()[:32]
    return make_once(cache.absolute() / "images" / key, load_pictures, partial(_build, split, skip))


def picture_facts(name: str, names: list[str], store: PictureStore, words: Images) -> DataFacts:
    """What stored images are.

    Args:
        name: of the option.
        names: of the sources.
        store: the images.
        words: how they are cut and normalised.

    Raises:
        ConfigError: the words do not go with the images, or these differ in size and no size is given.
    """
    problems = wrong_normalisation(words, store.channels)
    if words.size is None and store.differing:
        what = "null leaves images as they are stored, and these differ in size"
        hint = "data.size=N scales each and cuts the middle out"
        problems.append(Problem("data.size", what, got=" and ".join(store.differing), hint=hint))
    if problems:
        raise ConfigError(*problems)
    height, width = store.shape
    return DataFacts(
        kind="images",
        train_samples=store.counts["train"],
        eval_samples=store.counts["eval"],
        sample_weight=1,
        sample_tokens=0,
        vocabulary=0,
        seq_len=0,
        digests=dict(zip(names, store.digests, strict=True)),
        store=str(store.folder),
        classes=len(store.labels),
        image=(store.channels, words.size or height, words.size or width),
        skipped=store.skipped,
        labels=listed(store.labels),
    )


def _build(split: Split[Picture], skip: bool, folder: Path) -> None:
    with warnings.catch_warnings(), _Writer(folder) as writer:
        warnings.simplefilter("ignore")  # of Pillow, about files that can be read all the same
        labels = find_labels(split, skip, writer.add)
    for part in PARTS:
        writer.name_labels(part, labels.ids)
    write_json(folder / "store.json", writer.about(labels) | {"digests": [source.digest() for source in split.tables]})


@dataclass
class _Writer:
    """Writes images as they come, and sums up what was measured of them."""

    folder: Path
    words: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    first: Picture | None = None
    other: Picture | None = None
    channels: int = 1
    mean: np.ndarray = field(default_factory=lambda: np.zeros(3))
    square: np.ndarray = field(default_factory=lambda: np.zeros(3))
    trained: int = 0
    _files: dict[str, IO[bytes]] = field(default_factory=dict)

    def __enter__(self) -> _Writer:
        self._files = {f"{part}.{kind}": self._path(part, kind).open("wb") for part in PARTS for kind in ("bin", "spans", "labels")}
        return self

    def __exit__(self, *raised: object) -> None:
        for file in self._files.values():
            settle(file)
            file.close()

    def add(self, part: Part, picture: Picture) -> None:
        """Write one image, under a number for its label in the order in which labels come."""
        begin = self.sizes[part]
        self.sizes[part] = end = begin + len(picture.kept)
        number = self.words.setdefault(picture.label, len(self.words))
        self._files[f"{part}.bin"].write(picture.kept)
        self._files[f"{part}.spans"].write(np.array([begin, end], "<i8").tobytes())
        self._files[f"{part}.labels"].write(np.array(number, "<i8").tobytes())
        self.first = self.first or picture
        if self.other is None and picture.shape[1:] != self.first.shape[1:]:
            self.other = picture
        self.channels = max(self.channels, picture.shape[0])
        if part == "train":
            self.mean += picture.mean
            self.square += picture.square
            self.trained += 1

    def name_labels(self, part: Part, ids: Mapping[str, int]) -> None:
        """Write the numbers of the labels as they are known in the end, without the images whose label cannot be learned."""
        found = np.fromfile(self._path(part, "labels"), "<i8")
        learned = np.array([ids.get(word, -1) for word in self.words], "<i8")[found]
        spans = np.fromfile(self._path(part, "spans"), "<i8").reshape(-1, 2)
        for kind, values in (("labels", learned), ("spans", spans)):
            with self._path(part, kind).open("wb") as file:
                file.write(np.ascontiguousarray(values[learned >= 0]).data)
                settle(file)

    def about(self, labels: Labels) -> dict[str, Any]:
        """What is to be known of the store."""
        assert self.first is not None, "there are labels"
        mean = (self.mean / self.trained)[: self.channels].tolist()
        squares = (self.square / self.trained)[: self.channels].tolist()
        std = [math.sqrt(max(square - middle**2, FLATTEST**2)) for middle, square in zip(mean, squares, strict=True)]
        differing = [] if self.other is None else [_sized(self.other), _sized(self.first)]
        found: dict[str, Any] = {"counts": dict(labels.counts), "sizes": self.sizes, "channels": self.channels}
        found |= {"shape": list(self.first.shape[1:]), "differing": differing, "labels": list(labels.ids), "skipped": labels.skipped}
        return found | {"mean": mean, "std": std}

    def _path(self, part: Part, kind: str) -> Path:
        return self.folder / f"{part}.{kind}"


def _sized(picture: Picture) -> str:
    _, height, width = picture.shape
    name = picture.place if isinstance(picture.place, str) else f"row {picture.place}"
    return f"{name} ({width} x {height})"
