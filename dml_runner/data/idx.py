"""``data=idx``: images and labels in the format of MNIST."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dml_runner.data.parts.pixels import Pixels, every_tenth, image_facts
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts, Task
from dml_runner.files import digest
from dml_runner.schema.data import Idx

if TYPE_CHECKING:
    from dml_runner.data.base import Data

IMAGES, LABELS = "-images-idx3-ubyte", "-labels-idx1-ubyte"
UBYTE = 0x08
"""The code of unsigned bytes in the third byte of an idx file; the fourth is the number of dimensions."""


def prepare(words: Idx, task: Task, cache: Path) -> DataFacts:
    """Read and check the four files.

    Raises:
        ConfigError: a file is missing, torn or of another format, or the model reads no images.
    """
    files = _files(words)
    digests = {str(path): digest(path) for pair in files for path in (pair.images, pair.labels)}
    return image_facts(words.name, _pixels(files), words, task, digests)


def open_data(words: Idx, task: Task, facts: DataFacts, seed: int) -> Data:
    """The images, ready to give batches.

    Raises:
        ConfigError: they are gone or torn.
    """
    from dml_runner.data.parts.images import ImageData

    return ImageData(facts, words, _pixels(_files(words)), seed)


@dataclass(frozen=True)
class _Pair:
    """A file of images and the file of their labels; ``key`` is that of the folder they are in."""

    images: Path
    labels: Path
    key: str


def _files(words: Idx) -> list[_Pair]:
    """The files to train on, and those held out where there are any."""
    train = _pair(words.path, "train", "data.path")
    if train is None:
        raise ConfigError(Problem("data.path", f"holds no train{IMAGES}, .gz or not", got=words.path))
    held_out = _pair(words.eval_path or words.path, "t10k", "data.path" if words.eval_path is None else "data.eval_path")
    if held_out is None and words.eval_path is not None:
        raise ConfigError(Problem("data.eval_path", f"holds no t10k{IMAGES}, .gz or not", got=words.eval_path))
    return [train] if held_out is None else [train, held_out]


def _pair(folder: str, part: str, key: str) -> _Pair | None:
    images, labels = (
        next((path for end in ("", ".gz") if (path := Path(folder).expanduser() / f"{part}{kind}{end}").is_file()), None)
        for kind in (IMAGES, LABELS)
    )
    if images is None:
        return None
    if labels is None:
        raise ConfigError(Problem(key, f"the labels of {images} are missing", got=folder, allowed=f"{part}{LABELS}, .gz or not"))
    return _Pair(images, labels, key)


def _pixels(files: list[_Pair]) -> Pixels:
    parts = [_read(pair) for pair in files]
    if len(parts) == 1:
        return every_tenth(*parts[0])
    sizes = [" x ".join(map(str, images.shape[2:])) for images, _ in parts]
    if sizes[0] != sizes[1]:
        raise ConfigError(Problem(files[1].key, f"images of another size than {files[0].images}", got=sizes[1], allowed=sizes[0]))
    return Pixels(*parts[0], *parts[1])


def _read(pair: _Pair) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (n, 1, height, width), and their labels, (n,)."""
    pixels, numbers = read_idx(pair.images, 3, pair.key), read_idx(pair.labels, 1, pair.key)
    if len(pixels) != len(numbers):
        what = f"{pair.images} and {pair.labels} do not go together"
        raise ConfigError(Problem(pair.key, what, got=f"{len(pixels)} images, {len(numbers)} labels"))
    return pixels[:, None], numbers


def read_idx(path: Path, dimensions: int, key: str) -> np.ndarray:
    """The bytes of an idx file, uint8 of ``dimensions`` dimensions, which was found by the word under ``key``.

    Raises:
        ConfigError: it cannot be read, is torn, has bytes behind its end, or holds something else.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(Problem(key, "cannot be read whole", got=f"{path} ({error})")) from None
    if not content:
        raise ConfigError(Problem(key, "the file is empty", got=str(path)))
    head = 4 + 4 * dimensions
    if len(content) < head or content[:4] != bytes((0, 0, UBYTE, dimensions)):
        what = f"not an idx file of bytes in {dimensions} dimension(s)"
        raise ConfigError(Problem(key, what, got=f"{path} begins with {content[:4].hex()}", allowed=f"00000{UBYTE}0{dimensions}"))
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, offset=4))
    if len(content) - head != int(np.prod(shape, dtype=np.int64)) or 0 in shape:
        got = f"{len(content) - head} bytes in {path}"
        raise ConfigError(Problem(key, f"torn, or no whole file: it should hold {' x '.join(map(str, shape))} bytes", got=got))
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)
