"""One rank's tensors as a safetensors file, hashed while it is written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dml_runner.checkpoint.buffers import Held
from dml_runner.checkpoint.dtypes import CODES

CHUNK = 4 * 2**20
"""Bytes hashed and written at a time; between two chunks the save can be cancelled."""


@dataclass(frozen=True)
class FileFact:
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


def write_shard(path: Path, held: Sequence[Held], pause: Callable[[], None]) -> FileFact:
    """Write ``held`` to ``path`` and make it durable.

    Args:
        path: a new file.
        held: tensors in host memory.
        pause: called between chunks; may raise to stop.

    Raises:
        OSError: the file cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    hasher, size = hashlib.sha256(), 0
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        for chunk in _chunks(held):
            pause()
            hasher.update(chunk)
            size += file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileFact(size, hasher.hexdigest())


def _chunks(held: Sequence[Held]) -> Iterator[bytes | memoryview]:
    ordered = sorted(held, key=lambda piece: (-piece.data.itemsize, piece.key))
    yield _header(ordered)
    for piece in ordered:
        data = piece.data.reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]


def _header(ordered: Sequence[Held]) -> bytes:
    """Length and JSON header of the format; widest numbers come first, so every tensor is aligned."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for piece in ordered:
        end = position + piece.data.nbytes
        shape = list(piece.data.shape)
        entries[piece.key] = {"dtype": CODES[piece.data.dtype], "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
