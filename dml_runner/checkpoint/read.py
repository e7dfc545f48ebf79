"""Reading a committed step: verified whole first, then any slice of any tensor, whatever layout wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dml_runner.checkpoint.dtypes import CODES
from dml_runner.checkpoint.index import Entry, Index, parse_index
from dml_runner.checkpoint.manifest import NewerFormat, check_format
from dml_runner.checkpoint.names import INDEX, STATE
from dml_runner.checkpoint.pieces import Region, Shape
from dml_runner.checkpoint.strict_json import NotAsWritten, as_object, fields, parse, read_text
from dml_runner.checkpoint.verify import KEY, Verified, damaged, newer, verify
from dml_runner.errors import ConfigError, Problem


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...
    def __getitem__(self, where: tuple[slice, ...]) -> Tensor: ...


class _Shard(Protocol):
    """An open safetensors file."""

    def keys(self) -> list[str]: ...
    def get_slice(self, name: str) -> _Slice: ...
    def get_tensor(self, name: str) -> Tensor: ...


class Committed:
    """A verified step: its state, and its tensors by canonical name.

    Attributes:
        folder: where it stands.
        step: number of the update after which it was saved.
        state: the plain values saved beside the tensors.
        tensors: shape and number format of every tensor, by canonical name.
        verified: what was hashed, and how fast.
    """

    def __init__(self, folder: Path, verified: Verified, state: dict[str, Any], index: Index, shards: Mapping[str, _Shard]) -> None:
        self.folder = folder
        self.step = verified.manifest.step
        self.state = state
        self.tensors = {name: (entry.shape, entry.dtype) for name, entry in index.items()}
        self.verified = verified
        self._index = index
        self._shards = shards

    def read(self, name: str, offsets: Shape | None = None, shape: Shape | None = None) -> Tensor:
        """A tensor, or the slice of ``shape`` at ``offsets`` of it, in host memory of its own; only those bytes are read.

        Raises:
            ConfigError: the step has no such tensor, or the slice leaves it.
        """
        entry = self._entry(name)
        start = offsets if offsets is not None else (0,) * len(entry.shape)
        wanted = Region(start, shape if shape is not None else tuple(w - o for w, o in zip(entry.shape, start, strict=True)))
        if not wanted.fits(entry.shape):
            what = f"step {self.step}: a slice of {name} leaves the tensor"
            raise ConfigError(Problem(KEY, what, got=f"shape {wanted.shape} at {wanted.offsets}", allowed=f"inside {entry.shape}"))
        result = torch.empty(wanted.shape, dtype=entry.dtype)
        for part in entry.parts if wanted.size else ():
            common = part.region.common(wanted)
            if common is not None:
                result[common.within(wanted)] = self._bytes(part.file, part.key, part.region, common)
        return result

    def _entry(self, name: str) -> Entry:
        try:
            return self._index[name]
        except KeyError:
            raise ConfigError(Problem(KEY, f"step {self.step} has no tensor {name!r}")) from None

    def _bytes(self, file: str, key: str, held: Region, wanted: Region) -> Tensor:
        shard = self._shards[file]
        try:
            return shard.get_tensor(key) if wanted == held else shard.get_slice(key)[wanted.within(held)]
        except (SafetensorError, OSError) as error:
            raise damaged(self.folder, f"{file}: {error}") from None


def open_step(path: Path, hashing: bool = True) -> Committed:
    """The step in ``path``, verified in full; never another one instead.

    Args:
        path: of the step folder.
        hashing: False checks everything but the SHA-256, for a rank whose peer has just opened the same step.

    Raises:
        ConfigError: one line that says what is wrong with it.
    """
    folder = path.resolve()
    verified = verify(folder, hashing)
    state = as_state(folder, _json(folder, STATE, verified, "state"))
    try:
        index = parse_index(_json(folder, INDEX, verified, "tensors"))
    except NotAsWritten as error:
        raise damaged(folder, f"{INDEX}: {error}") from None
    shards = {name: _open_shard(folder, name) for name in verified.manifest.files if name.endswith(".safetensors")}
    _check_shards(folder, index, shards)
    return Committed(folder, verified, state, index, shards)


def as_state(folder: Path, value: Any) -> dict[str, Any]:
    """``value`` if it is an object.

    Raises:
        ConfigError: it is not.
    """
    try:
        return as_object(value)
    except NotAsWritten as error:
        raise damaged(folder, f"{STATE}: {error}") from None


def _json(folder: Path, name: str, verified: Verified, field: str) -> Any:
    """The field ``field`` of one of the step's JSON files, whose format and step are checked."""
    try:
        value = parse(read_text(folder / name))
        check_format(value)
        _, step, content = fields(value, "format", "step", field)
        if step != verified.manifest.step:
            raise NotAsWritten(f"it is of step {step}")
    except NewerFormat as error:
        raise newer(folder, str(error)) from None
    except NotAsWritten as error:
        raise damaged(folder, f"{name}: {error}") from None
    return content


def _open_shard(folder: Path, name: str) -> _Shard:
    try:
        return cast(_Shard, safe_open(folder / name, framework="pt"))
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(folder, f"{name}: not a safetensors file ({error})") from None


def _check_shards(folder: Path, index: Index, shards: Mapping[str, _Shard]) -> None:
    """Every part of the index stands in its file as described, and no file holds anything else."""
    left = {(name, key) for name, shard in shards.items() for key in shard.keys()}  # noqa: SIM118
    for tensor, entry in index.items():
        for part in entry.parts:
            place = (part.file, part.key)
            if place not in left:
                raise damaged(folder, f"{INDEX}: {tensor!r}: {part.file!r} has no part {part.key!r} for it alone")
            left.remove(place)
            found = shards[part.file].get_slice(part.key)
            if (tuple(found.get_shape()), found.get_dtype()) != (part.region.shape, CODES[entry.dtype]):
                raise damaged(folder, f"{INDEX}: {tensor!r}: {part.file!r} holds another shape or dtype")
    for file, key in sorted(left):
        raise damaged(folder, f"{INDEX}: {key!r} of {file} is not in it")
