"""A model's first weights from files that others published, or from a step of one of our runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dml_runner.checkpoint.dtypes import CODES
from dml_runner.checkpoint.newest import newest
from dml_runner.checkpoint.read import open_step
from dml_runner.checkpoint.strict_json import NotAsWritten, as_object, as_text, parse, read_text
from dml_runner.errors import ConfigError, Problem
from dml_runner.models.base import Foreign, Model, Publication
from dml_runner.models.parts.publication import from_foreign
from dml_runner.parallel.held import Held
from dml_runner.pretrained import CONFIG, INDEX, KEY, locate, run_of

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
"""Formats of numbers that are read; those of quantised weights say nothing without their scales."""
OF_A_STEP = "model/"
"""What the names of weights in a checkpoint begin with."""


@dataclass(frozen=True)
class Weights:
    """Tensors that can be read one by one.

    Attributes:
        forms: shape and format of the numbers of each, by its name in the file.
        config: what config.json beside them says; empty: there is none.
        own: whether they are of one of our runs, and so by our names.
    """

    forms: Mapping[str, tuple[tuple[int, ...], str]]
    config: Mapping[str, Any]
    own: bool
    _read: Callable[[str], Tensor]

    def read(self, name: str) -> Tensor:
        """The tensor ``name``, mapped from its file.

        Raises:
            ConfigError: it is quantised.
        """
        self._dtype(name)
        return self._read(name)

    def imagine(self, name: str) -> Tensor:
        """The same without its content, on the meta device."""
        return torch.empty(self.forms[name][0], dtype=self._dtype(name), device="meta")

    def _dtype(self, name: str) -> torch.dtype:
        code = self.forms[name][1]
        if code not in DTYPES:
            raise ConfigError(Problem(KEY, f"{name} is quantised, or is no weight", got=code, allowed=", ".join(DTYPES)))
        return DTYPES[code]


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...


class _File(Protocol):
    def keys(self) -> list[str]: ...
    def get_slice(self, name: str) -> _Slice: ...
    def get_tensor(self, name: str) -> Tensor: ...


def load_pretrained(model: Model, word: str, whole: Model | None = None, held: Mapping[str, Held] | None = None) -> tuple[str, ...]:
    """Give ``model`` the weights called ``word``; those that they lack (the head's) stay as they are, and their names are returned.

    Files are mapped, and read tensor by tensor. A position table longer than the model's is cut to it.

    Args:
        model: with memory.
        word: of the weights.
        whole: where ``model`` is a part, all of it, on the meta device.
        held: what of each tensor the part has.

    Raises:
        ConfigError: there are no such weights, they are damaged, or they are not of such a model.
    """
    path = locate(word)
    weights = open_weights(resolve(path), hashing=False)
    found, anew = _fitted(whole or model, weights, weights.read)
    state = model.state_dict(keep_vars=False)
    with torch.no_grad():
        for name, tensor in found.items():
            if held is None:
                state[name].copy_(tensor)
            elif name in state:
                held[name].fill(state[name], tensor)
    return tuple(anew)


def what_starts_anew(model: Model, weights: Weights) -> tuple[str, ...]:
    """What ``load_pretrained`` would return or raise, from the headers of the files alone; ``model`` may be on the meta device."""
    return tuple(_fitted(model, weights, weights.imagine)[1])


def resolve(path: Path) -> Path:
    """The step that weights of a run folder are read from, its newest sound one; any other path as it is.

    Raises:
        ConfigError: nothing was saved there, or nothing of it is sound.
    """
    if run_of(path) is None:
        return path
    if run_of(path) != path:
        return path.resolve()
    committed, _ = newest(path / "checkpoints")
    if committed is None:
        raise ConfigError(Problem(KEY, "no step was saved there", got=str(path)))
    return committed.folder


def open_weights(path: Path, hashing: bool = True) -> Weights:
    """The weights at ``path``: a step of a run, a folder of safetensors, or such a file.

    Args:
        path: as ``resolve`` gives it.
        hashing: False leaves the SHA-256 of a step out, which somebody has just compared.

    Raises:
        ConfigError: they are damaged, or of a kind that cannot be read.
    """
    if run_of(path) is not None:
        return _of_step(path, hashing)
    folder = path if path.is_dir() else path.parent
    files = _files(path)
    place = {name: file for file in files.values() for name in file.keys()}  # noqa: SIM118
    headers = {name: file.get_slice(name) for name, file in place.items()}
    forms = {name: (tuple(header.get_shape()), header.get_dtype()) for name, header in headers.items()}
    config = _json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return Weights(forms, config, False, lambda name: place[name].get_tensor(name))


def _of_step(path: Path, hashing: bool) -> Weights:
    step = open_step(path, hashing)
    forms = {
        name.removeprefix(OF_A_STEP): (shape, CODES[dtype]) for name, (shape, dtype) in step.tensors.items() if name.startswith(OF_A_STEP)
    }
    return Weights(forms, {}, True, lambda name: step.read(OF_A_STEP + name))


# --- safetensors ---------------------------------------------------------------------------------------------------------


def _files(path: Path) -> dict[str, _File]:
    """The open files of the weights at ``path``, by name."""
    if path.is_file():
        return {path.name: _open(path)}
    whole = path / "model.safetensors"
    if whole.is_file():
        return {whole.name: _open(whole)}
    if (path / INDEX).is_file():
        return _indexed(path)
    there = sorted(path.glob("*.safetensors"))
    if len(there) != 1:
        names = ", ".join(file.name for file in there)
        raise ConfigError(Problem(KEY, f"holds several files, and no {INDEX}", got=f"{path}: {names}", allowed="the path of one of them"))
    return {there[0].name: _open(there[0])}


def _indexed(folder: Path) -> dict[str, _File]:
    """The files that an index names, each of which holds what the index says."""
    index = folder / INDEX
    try:
        listed = {name: as_text(file) for name, file in as_object(_json(index).get("weight_map")).items()}
    except NotAsWritten as error:
        raise ConfigError(Problem(KEY, f"weight_map: {error}", got=str(index))) from None
    for name in sorted(set(listed.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ConfigError(Problem(KEY, "names a file outside its folder, or of another kind", got=f"{index}: {name!r}"))
        if not (folder / name).is_file():
            raise ConfigError(Problem(KEY, f"{name} is missing", got=str(folder), hint=f"{INDEX} names it"))
    files = {name: _open(folder / name) for name in sorted(set(listed.values()))}
    held = {name: set(file.keys()) for name, file in files.items()}
    for tensor, name in listed.items():
        if tensor not in held[name]:
            raise ConfigError(Problem(KEY, f"{name} lacks {tensor}", got=str(folder), hint=f"{INDEX} says it is there"))
    return files


def _open(path: Path) -> _File:
    try:
        return cast(_File, safe_open(path, framework="pt"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(Problem(KEY, f"not a whole safetensors file ({error})", got=str(path))) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        return parse(read_text(path.resolve()))  # a snapshot of the hub is a folder of links
    except NotAsWritten as error:
        raise ConfigError(Problem(KEY, str(error), got=str(path))) from None


# --- fitting -------------------------------------------------------------------------------------------------------------


def _fitted(model: Model, weights: Weights, read: Callable[[str], Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of ``model`` among ``weights``, by our names, and the names of those it lacks."""
    state = model.state_dict(keep_vars=True)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    publication = model.publication()
    if weights.own:
        head = _behind_blocks(model) if publication is None else publication.head
        publication = Publication({}, {name: Foreign((name,)) for name in state}, frozenset(head))
        other = {name for name in head if name in weights.forms and weights.forms[name][0] != tuple(shapes[name])}
        return from_foreign(publication, weights.forms.keys() - other, read, shapes)
    if publication is None:
        raise ConfigError(Problem(KEY, "nobody publishes weights of such a model", allowed="a run folder of ours"))
    return from_foreign(publication, weights.forms.keys(), read, shapes)


def _behind_blocks(model: Model) -> frozenset[str]:
    """Names of what only ``finish`` uses."""
    before = {id(t) for module in (*model.stem(), *model.blocks) for t in (*module.parameters(), *module.buffers())}
    return frozenset(name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in before)
