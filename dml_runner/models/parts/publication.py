"""Weights in Hugging Face's naming, both ways: which tensors of such a file make up which of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dml_runner.errors import Problem, raise_all
from dml_runner.models.base import Foreign, Publication

SHOWN = 10
"""Problems of one file that are listed; the rest is counted."""
KEY = "model.pretrained"
NO_TENSOR = "are they weights of such a model?"
CLASSIFIER = ("classifier.", "theirs.classifier.", "theirs.score.")
"""What the names of layers that end in a row a class begin with: in every family, and in models of transformers."""
POSITIONS = "positions.weight"
"""Our name of a table of learned positions."""
KEYS = {
    "tokens.weight": "model.vocab_size",
    "output.weight": "model.vocab_size",
    "decoder.bias": "model.vocab_size",
    POSITIONS: "model.context",
    "segments.weight": "model.segments",
}
"""The key that sets the rows of a table, by our name."""
EARLIER = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
"""How the first BERT files, bert-base-uncased among them, call what later ones call otherwise."""


def to_foreign(publication: Publication, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state``, a model's tensors by our names, as a file of weights holds them: contiguous, each under its published name."""
    file = {}
    for ours, foreign in publication.tensors.items():
        parts = state[ours].detach().split(foreign.rows) if foreign.rows else (state[ours].detach(),)
        for name, part in zip(foreign.names, parts, strict=True):
            file[name] = (part.T if foreign.transposed else part).contiguous()
    return file


def from_foreign(
    publication: Publication, names: Collection[str], read: Callable[[str], Tensor], shapes: Mapping[str, torch.Size]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a model from a file of weights, by our names, and our names of what the file lacks: tensors of the head.

    Names in the file may lack the prefix of the publication, and of layer norms have their earlier spelling; what the model has no
    use for (a pooler, a decoder tied to the embedding, position ids) is not read. A position table longer than ours is cut to ours: of
    what was learned, the first positions are used. A classifier of another number of classes counts as absent, and starts anew. The
    tensors keep the file's dtype.

    Args:
        publication: of the model.
        names: of the tensors in the file.
        read: gives a tensor of the file by its name.
        shapes: of the model's tensors, by our names.

    Raises:
        ConfigError: a tensor that is not of the head is missing or has another shape, or the file has more layers than the model.
    """
    known, used = frozenset(names), set[str]()
    tensors: dict[str, Tensor] = {}
    absent: list[str] = []
    problems: list[Problem] = []
    for ours, foreign in publication.tensors.items():
        found = {name: _find(name, publication.prefix, known) for name in foreign.names}
        there = [name for name in found.values() if name is not None]
        used.update(there)
        if len(there) < len(found) and ours in publication.head:
            absent.append(ours)
            continue
        problems += [Problem(KEY, f"has no tensor {name}", hint=NO_TENSOR) for name, its in found.items() if its is None]
        if len(there) < len(found):
            continue
        allowed = _shapes_there(foreign, shapes[ours])
        parts = [_cut(ours, read(name), shape) for name, shape in zip(there, allowed, strict=True)]
        wrong = [_misfit(ours, *each) for each in zip(there, parts, allowed, strict=True) if each[1].shape != each[2]]
        if wrong and ours in publication.head and ours.startswith(CLASSIFIER):
            absent.append(ours)
        elif wrong:
            problems += wrong
        else:
            tensors[ours] = _join(parts, foreign)
    problems += _left_over(known, used)
    rest = [Problem(KEY, f"and {len(problems) - SHOWN} more, {len(problems)} in all")] if len(problems) > SHOWN else []
    raise_all(problems[:SHOWN] + rest)
    return tensors, absent


def _find(name: str, prefix: str, names: Collection[str]) -> str | None:
    """``name`` as the file has it; None: it does not."""
    spellings = [name] + [name.removesuffix(new) + old for new, old in EARLIER.items() if name.endswith(new)]
    return next((s for spelling in spellings for s in (spelling, spelling.removeprefix(prefix)) if s in names), None)


def _shapes_there(foreign: Foreign, shape: torch.Size) -> list[torch.Size]:
    """The shape that each part of a parameter of ``shape`` has in the file."""
    parts = [torch.Size((rows, *shape[1:])) for rows in foreign.rows] or [shape]
    return [torch.Size(reversed(part)) for part in parts] if foreign.transposed else parts


def _cut(ours: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """A position table, no longer than ours; anything else as it is."""
    return tensor[: shape[0]] if ours == POSITIONS and tensor.dim() else tensor


def _join(parts: list[Tensor], foreign: Foreign) -> Tensor:
    turned = [part.T if foreign.transposed else part for part in parts]
    if len(turned) == 1:
        return turned[0]
    if turned[0].is_meta:  # where torch.cat would load sympy, which takes longer than all else
        return turned[0].new_empty(sum(len(part) for part in turned), *turned[0].shape[1:])
    return torch.cat(turned)


def _misfit(ours: str, name: str, tensor: Tensor, shape: torch.Size) -> Problem:
    key = KEYS.get(ours)
    hint = f"set {key}={tensor.shape[0]}" if key and tensor.dim() == len(shape) and tensor.shape[1:] == shape[1:] else None
    return Problem(KEY, f"{name} has another shape", got=_words(tensor.shape), allowed=_words(shape), hint=hint)


def _left_over(names: Collection[str], used: set[str]) -> Iterator[Problem]:
    """Tensors of the file like those that were used but for a number: of layers that the model does not have."""
    kinds = {_kind(name) for name in used}
    extra = sorted(name for name in names if name not in used and _kind(name) in kinds)
    if extra:
        what = f"has {len(extra)} tensors of layers that the model lacks, {extra[0]} among them"
        yield Problem(KEY, what, hint="set model.layers to as many as it has")


def _kind(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _words(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "a single number"


# --- what families say of themselves -------------------------------------------------------------------------------------


def place(ours: str, *theirs: str, rows: tuple[int, ...] = (), transposed: bool = False, bias: bool = True) -> dict[str, Foreign]:
    """Where the weight and, with ``bias``, the bias of a module stand.

    Args:
        ours: the module's name.
        theirs: its name in the file; several where it is several matrices there.
        rows: of each of several.
        transposed: whether the file holds the weight as (in, out).
        bias: whether there is one.
    """
    places = {f"{ours}.weight": Foreign(tuple(f"{name}.weight" for name in theirs), rows, transposed)}
    if bias:
        places[f"{ours}.bias"] = Foreign(tuple(f"{name}.bias" for name in theirs), rows)
    return places


def labels(classes: int, words: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of config.json that tell a classifier's labels: their words, and behind them, or where there are none, numbers."""
    names = [*words, *(f"LABEL_{label}" for label in range(len(words), classes))]
    by_name = {name: label for label, name in enumerate(names)}
    return {
        "id2label": {str(label): name for name, label in by_name.items()},
        "label2id": by_name,
        "problem_type": "single_label_classification",
    }
