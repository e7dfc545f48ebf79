"""Whether the weights that a job starts from go with its model, told before a rank is started and without reading them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dml_runner import models
from dml_runner.engines.pretrained import Weights, open_weights, resolve, what_starts_anew
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts
from dml_runner.job import read_job_file
from dml_runner.models.base import Model
from dml_runner.pretrained import CONFIG, KEY, locate, run_of
from dml_runner.run import Run

LISTED = 8
"""Names that a notice lists."""
FREE = frozenset(
    (
        *("pretrained", "frozen", "classes", "dropout", "head", "task", "mask_rate"),
        *("vocab_size", "context", "bptt", "tied", "synchronise", "segments"),
    )
)
"""Keys of a model that may be others than those of the run whose weights it starts from, as far as shapes allow."""
WORDS = {
    "hidden_size": "hidden",
    "n_embd": "hidden",
    "num_hidden_layers": "layers",
    "n_layer": "layers",
    "num_attention_heads": "heads",
    "n_head": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "ffn_hidden",
    "n_inner": "ffn_hidden",
    "rope_theta": "rope_theta",
    "depths": "depths",
    "layer_type": "block",
}
"""Key of a model by its name in config.json."""
COMPUTING = ("activation_function", "hidden_act", "layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", "position_embedding_type")
"""Names in config.json of what no shape shows, and which a model computes in one way alone."""
SAME = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new"}
"""Other names of the same function."""


@dataclass(frozen=True)
class Found:
    """Weights that go with the model.

    Attributes:
        path: where they are read from: a folder or file, or the step of a run.
        notice: a line that says so, and what starts anew.
    """

    path: Path
    notice: str


def check_pretrained(run: Run, data: DataFacts) -> Found | None:
    """What the job's model starts from; None where that is nothing but its seed.

    Raises:
        ConfigError: there are no such weights, or they are not of such a model; the words that would fit are named.
    """
    word = run.model.pretrained
    if word is None:
        return None
    path = locate(word)
    with torch.device("meta"):
        model = models.build(run.model, data)
    path = resolve(path)
    weights = open_weights(path)
    family = next(_other_family(run, model, path, weights), None)
    if family is not None:
        raise ConfigError(family)
    problems = [*_other_words(run, path), *_other_config(run, model, weights.config)]
    try:
        anew = what_starts_anew(model, weights)
    except ConfigError as error:
        raise ConfigError(*problems, *error.problems) from None
    if problems:
        raise ConfigError(*problems)
    return Found(path, f"weights from {path}" + _listed(anew))


def _listed(anew: tuple[str, ...]) -> str:
    if not anew:
        return ""
    more = f" and {len(anew) - LISTED} more" if len(anew) > LISTED else ""
    return f"; what they lack starts anew: {', '.join(anew[:LISTED])}{more}"


def _other_family(run: Run, model: Model, path: Path, weights: Weights) -> Iterator[Problem]:
    """Weights of quite another kind of model."""
    origin, publication = run_of(path), model.publication()
    if origin is not None:
        there, here = read_job_file(origin / "job.yaml").run.model.name, run.model.name
    elif publication is not None and "model_type" in weights.config:
        there, here = weights.config["model_type"], publication.config["model_type"]
    else:
        return
    if there != here:
        yield Problem(KEY, "weights of another kind of model", got=f"{path}: {there}", allowed=here)


def _other_words(run: Run, path: Path) -> Iterator[Problem]:
    """Keys of the model that were others in the run whose weights these are."""
    origin = run_of(path)
    if origin is None:
        return
    before, now = read_job_file(origin / "job.yaml").run.model.model_dump(), run.model.model_dump()
    for key in now:
        if key not in FREE and None not in (before[key], now[key]) and before[key] != now[key]:
            yield _misfit(key, now[key], before[key])


def _other_config(run: Run, model: Model, config: Mapping[str, Any]) -> Iterator[Problem]:
    """What config.json says of the model that the job's is not; what either leaves open is not compared."""
    publication = model.publication()
    ours = {} if publication is None else publication.config
    known = {key: name for name, key in WORDS.items() if hasattr(run.model, key) and None not in (ours.get(name), config.get(name))}
    differing = {key: name for key, name in known.items() if ours[name] != config[name]}
    if "hidden" in differing and all(_is_four_wide(each, differing) for each in (ours, config)):
        del differing["ffn_hidden"]
    for key, name in differing.items():
        yield _misfit(key, ours[name], config[name])
    for name in COMPUTING:
        here, there = (SAME.get(str(each.get(name)), each.get(name)) for each in (ours, config))
        if None not in (here, there) and here != there:
            yield Problem(KEY, f"{CONFIG} says {name}, in which the model is another", got=str(there), allowed=str(here))
    scaled = config.get("rope_scaling") or config.get("rope_parameters")
    if isinstance(scaled, dict) and "rope_theta" in ours:
        kind = scaled.get("rope_type", scaled.get("type", "default"))
        theta = scaled.get("rope_theta", ours["rope_theta"])
        if kind != "default":
            yield Problem(KEY, f"{CONFIG} scales rotary positions, which the model does not", got=str(kind), allowed="default")
        elif theta != ours["rope_theta"] and "rope_theta" not in config:
            yield _misfit("rope_theta", ours["rope_theta"], theta)


def _is_four_wide(config: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    """Whether the MLP has the width that follows from the model's, which is then set right with it."""
    return "ffn_hidden" in names and bool(config[names["ffn_hidden"]] == 4 * config[names["hidden"]])


def _misfit(key: str, ours: Any, theirs: Any) -> Problem:
    return Problem(
        f"model.{key}", "differs from that of the weights it starts from", got=_word(ours), hint=f"set model.{key}={_word(theirs)}"
    )


def _word(value: Any) -> str:
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, list | tuple) else str(value)
