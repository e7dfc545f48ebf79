"""Generation: one start of a run. What changes from start to start stands here; job.yaml stays as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dml_runner.errors import ConfigError, Problem
from dml_runner.layout import Batch, Layout, Mesh, Recomputed, Servers, Stages

Purpose = Literal["train", "evaluate"]
"""What the ranks of a start are for."""


@dataclass(frozen=True)
class Generation:
    """One start of a run.

    Attributes:
        number: 0 for the first start.
        layout: how it is executed.
        plan: what was predicted for it.
        hosts: where it runs.
        began: when the command that made this start began, in seconds since 1970.
        resume: the step folder it continues from; None: from the beginning.
        config: the words it was started with, written as in job.yaml.
        purpose: whether its ranks train, or evaluate the step that ``resume`` names.
        pretrained: where ``model.pretrained`` led, so that all ranks read the same; None: to nothing, or to weights that ``resume`` has.
    """

    number: int
    layout: Layout
    plan: Mapping[str, Any]
    hosts: tuple[str, ...]
    began: float
    resume: str | None
    config: Mapping[str, Any]
    purpose: Purpose = "train"
    pretrained: str | None = None


def generation_text(generation: Generation) -> str:
    """The text of generations/N.json."""
    return json.dumps(asdict(generation), indent=2) + "\n"


def read_generation(text: str) -> Generation:
    """The generation that ``generation_text`` wrote."""
    content = json.loads(text)
    layout = content["layout"]
    servers = None if layout.get("servers") is None else Servers(**layout["servers"])
    stages = layout.get("stages")
    parts = {
        "mesh": Mesh(**layout["mesh"]),
        "batch": Batch(**layout["batch"]),
        "servers": servers,
        "stages": None if stages is None else Stages(**{**stages, "boundaries": tuple(stages["boundaries"])}),
        "recompute": Recomputed(**layout.get("recompute", {"kept": "none"})),
    }
    content["layout"] = Layout(**{**layout, **parts})
    return Generation(**{**content, "hosts": tuple(content["hosts"])})


def read_generation_file(path: Path) -> Generation:
    """The generation of a run folder's generations/N.json.

    Raises:
        ConfigError: it is missing or damaged.
    """
    try:
        return read_generation(path.read_text())
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(Problem(str(path), "missing or damaged", hint="it says how a start of the run was laid out")) from error
