"""Small checkpoints to test with, and ways to spoil them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dml_runner.checkpoint.manifest import Manifest, parse_manifest
from dml_runner.checkpoint.pieces import Piece
from dml_runner.checkpoint.saver import Saver
from dml_runner.checkpoint.shard import FileFact
from dml_runner.files import digest


def tensors(seed: int) -> dict[str, Tensor]:
    """One tensor of every kind a model and its optimizer hold."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 10, generator=generator)
    return {
        "model/weight": weight,
        "model/half": weight[:3].bfloat16(),
        "model/counts": torch.arange(seed, seed + 7),
        "model/bytes": torch.arange(5, dtype=torch.uint8),
        "model/mask": torch.tensor([True, False, True]),
        "model/nothing": torch.empty(0, 4),
        "optimizer/step/weight": torch.tensor(float(seed)),
        "optimizer/exp_avg/weight": weight.t().contiguous() / 3,
    }


def pieces(whole: Mapping[str, Tensor], rank: int = 0, ranks: int = 1) -> Iterator[Piece]:
    """What one of ``ranks`` writes: matrices split along their last dimension, unevenly; others dealt out whole."""
    for number, (name, tensor) in enumerate(whole.items()):
        if tensor.dim() == 2:
            widths = [len(part) for part in torch.arange(tensor.shape[1]).tensor_split(ranks)]
            start = sum(widths[:rank])
            yield Piece(name, tuple(tensor.shape), (0, start), tensor[:, start : start + widths[rank]])
        elif number % ranks == rank:
            yield Piece(name, tuple(tensor.shape), (0,) * tensor.dim(), tensor)


def save(folder: Path, step: int, ranks: int = 1, generation: int = 1, keep: int = 9, best: bool = False, seed: int | None = None) -> None:
    """Save ``tensors(seed or step)`` from ``ranks`` threads."""
    whole, errors = tensors(step if seed is None else seed), []

    def one(rank: int) -> None:
        try:
            with Saver(folder, rank, ranks, generation, keep, timeout_s=20) as saver:
                saver.save(step, pieces(whole, rank, ranks), {"step": step, "name": "job"}, best)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def step_folder(folder: Path, step: int) -> Path:
    """Where a step stands."""
    return folder / f"step-{step:08d}"


def sign(folder: Path, **changes: Any) -> None:
    """Write the manifest anew for the files that are there, so that only what they say can be wrong."""
    old = parse_manifest((folder / "manifest.json").read_text())
    files = {p.name: FileFact(p.stat().st_size, digest(p)) for p in folder.iterdir() if p.name != "manifest.json" and p.is_file()}
    manifest = Manifest(changes.get("step", old.step), old.generation, old.save, changes.get("files", files))
    (folder / "manifest.json").write_text(manifest.text())


def edit(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    """Change a JSON file of a step and sign it."""
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))
    sign(folder)


class Canary:
    """Unpickling it makes the file ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))
