"""The index of a step: every tensor's shape and number format, and which file holds which part of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dml_runner.checkpoint.buffers import Held
from dml_runner.checkpoint.dtypes import CODES, DTYPES
from dml_runner.checkpoint.pieces import Region, Shape, overlap
from dml_runner.checkpoint.strict_json import NotAsWritten, as_object, as_shape, as_text, fields


@dataclass(frozen=True)
class Part:
    """A box of a tensor, and the file and key that hold it."""

    file: str
    key: str
    region: Region


@dataclass(frozen=True)
class Entry:
    """One tensor: shape, number format and the parts that make it up."""

    shape: Shape
    dtype: torch.dtype
    parts: tuple[Part, ...]


Index = Mapping[str, Entry]
"""Canonical name -> Entry."""


def describe(file: str, held: Iterable[Held]) -> dict[str, Any]:
    """The JSON form of an index over the tensors of one rank's file."""
    tensors: dict[str, Any] = {}
    for piece in held:
        entry = tensors.setdefault(piece.name, {"shape": list(piece.shape), "dtype": CODES[piece.data.dtype], "parts": []})
        part = {"file": file, "key": piece.key, "offsets": list(piece.offsets), "shape": list(piece.data.shape)}
        entry["parts"].append(part)
    return tensors


def merge(shares: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One JSON index out of the ranks' shares of it.

    Raises:
        NotAsWritten: two ranks disagree on a shape or a number format.
    """
    whole: dict[str, Any] = {}
    for share in shares:
        for name, entry in share.items():
            known = whole.setdefault(name, {**entry, "parts": []})
            if (known["shape"], known["dtype"]) != (entry["shape"], entry["dtype"]):
                raise NotAsWritten(f"{name!r}: ranks disagree on its shape or dtype")
            known["parts"] += entry["parts"]
    return dict(sorted(whole.items()))


def parse_index(tensors: Any) -> Index:
    """The index of its JSON form, checked: parts inside their tensor, none overlapping, nothing uncovered.

    Raises:
        NotAsWritten: the first tensor that is not described so, by name.
    """
    index = {}
    for name, value in as_object(tensors).items():
        try:
            index[name] = _entry(value)
        except NotAsWritten as error:
            raise NotAsWritten(f"{name!r}: {error}") from None
    return index


def _entry(value: Any) -> Entry:
    shape, code, parts = fields(value, "shape", "dtype", "parts")
    dtype = DTYPES.get(as_text(code))
    if dtype is None:
        raise NotAsWritten(f"unknown dtype {code!r}")
    if not isinstance(parts, list):
        raise NotAsWritten("parts are not a list")
    entry = Entry(as_shape(shape), dtype, tuple(_part(part) for part in parts))
    _check_cover(entry.shape, [part.region for part in entry.parts])
    return entry


def _part(value: Any) -> Part:
    file, key, offsets, shape = fields(value, "file", "key", "offsets", "shape")
    return Part(as_text(file), as_text(key), Region(as_shape(offsets), as_shape(shape)))


def _check_cover(shape: Shape, regions: Sequence[Region]) -> None:
    if any(not region.fits(shape) for region in regions):
        raise NotAsWritten("a part lies outside the tensor")
    if overlap(list(regions)):
        raise NotAsWritten("two parts overlap")
    size, covered = math.prod(shape), sum(region.size for region in regions)
    if covered != size or not regions:
        raise NotAsWritten(f"parts cover {covered} of {size} elements")
