"""From the bytes of an image file to pixels, and what is measured of them; no torch."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from dml_runner.data.parts.rows import BadRow
from dml_runner.errors import ConfigError, Problem

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are read; others of its formats start programs, or need libraries."""
MOST_PIXELS = 1 << 26
"""Of one image. A file of some kB can hold a thousand times as many, and would fill the memory."""
THREADS, ITEMS_EACH = 8, 4
"""That examine images, at most, and the images that wait for each."""
GREY = ("1", "L", "LA", "La")
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of images with one channel: of 8 bits or less, and of 16 bits."""
DEEPEST = 65535
PALETTE = ("P", "PA")

T = TypeVar("T")
U = TypeVar("U")


class Unreadable(Exception):
    """The bytes are no image that can be used; the message says why."""


@dataclass(frozen=True)
class Picture:
    """An image that can be read, and its label.

    Attributes:
        place: its name, or the number of its row.
        label: the word of its label.
        kept: what it is stored by: its name in its folder, or its file's bytes.
        shape: channels (1 or 3), height and width.
        mean: of each channel, whose values are 0 to 1.
        square: mean of the squares of each channel.
    """

    place: int | str
    label: str
    kept: bytes
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    square: tuple[float, ...]


def require_pillow() -> None:
    """Have the library that decodes, and its formats, ready for any thread.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import PIL.Image
    except ImportError:
        problem = Problem("data", "images are decoded by Pillow", got="it is not installed", hint="pip install 'dml_runner[images]'")
        raise ConfigError(problem) from None
    PIL.Image.init()


def examined(place: int | str, label: str, kept: bytes, content: bytes) -> Picture | BadRow:
    """The image of the file ``content``, measured, or what is wrong with it."""
    try:
        pixels = pixels_of(content)
    except Unreadable as wrong:
        return BadRow(place, str(wrong))
    channels, height, width = pixels.shape
    sums = pixels.sum((1, 2), dtype=np.int64) / (255 * height * width)
    squares = np.einsum("chw,chw->c", pixels, pixels, dtype=np.int64) / (255**2 * height * width)
    return Picture(place, label, kept, (channels, height, width), tuple(sums.tolist()), tuple(squares.tolist()))


def in_threads(look: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """What ``look`` says of each item, in their order; a few items are taken at a time, and decoding keeps several cores busy."""
    threads, waiting = min(THREADS, len(os.sched_getaffinity(0))), iter(items)
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(waiting, ITEMS_EACH * threads)):
            yield from pool.map(look, some)


def pixels_of(content: bytes) -> np.ndarray:
    """The pixels of an image file, uint8 (channels, height, width).

    One channel where the file holds greys, else red, green and blue. Transparency is left out, of several images in a file the
    first is taken, 16 bits are rounded to 8, and floats are taken as 0 to 1.

    Raises:
        Unreadable: the file is empty, torn, too large, of no known format, or its numbers are no pixels.
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise Unreadable("the file is empty")
    too_large = f"an image of more than {MOST_PIXELS:,} pixels"
    try:
        with Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN]) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise Unreadable(too_large)
            picture.load()
            return _channels(picture)
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable(too_large) from None
    except UnidentifiedImageError:
        raise Unreadable(f"no image of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # a decoder raises whatever its format makes it
        lines = str(error).splitlines() or [type(error).__name__]
        raise Unreadable(f"no whole image ({lines[0]})") from None


def _channels(picture: Any) -> np.ndarray:
    if picture.mode == "F":
        return _of_floats(np.asarray(picture))
    if picture.mode in DEEP:
        return _of_integers(np.asarray(picture))
    if picture.mode in GREY:
        return np.asarray(picture.convert("L"))[None]
    if picture.mode in PALETTE:
        picture = picture.convert("RGBA")
    return np.ascontiguousarray(np.asarray(picture.convert("RGB")).transpose(2, 0, 1))


def _of_floats(values: np.ndarray) -> np.ndarray:
    wrong = int(values.size - np.isfinite(values).sum())
    if wrong:
        raise Unreadable(f"{wrong} of {values.size} pixels are NaN or infinite")
    if values.min() < 0 or values.max() > 1:
        raise Unreadable(f"float pixels are 0 to 1; these are {values.min():g} to {values.max():g}")
    return np.round(values * 255).astype(np.uint8)[None]


def _of_integers(values: np.ndarray) -> np.ndarray:
    if values.min() < 0 or values.max() > DEEPEST:
        raise Unreadable(f"pixels are 0 to {DEEPEST}; these are {values.min()} to {values.max()}")
    return np.round(values / (DEEPEST / 255)).astype(np.uint8)[None]
