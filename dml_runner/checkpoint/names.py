"""The names of folders and files in a run's ``checkpoints`` folder."""

from __future__ import annotations

import re
from pathlib import Path

MANIFEST = "manifest.json"
INDEX = "index.json"
STATE = "state.json"
LATEST = "latest"
BEST = "best"

_STEP = re.compile(r"step-(\d{8,})")
_STAGING = re.compile(r"\.staging-step-\d{8,}-g(\d+)-\d+")
_REMOVED = re.compile(r"\.removed-step-\d{8,}")
_REPLACED = re.compile(r"\.replaced-(step-\d{8,})")
_LINK = re.compile(r"\.(latest|best)-link")
_SHARD = re.compile(r"rank-\d{5,}\.safetensors")


def step_name(step: int) -> str:
    """Folder of a committed step."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step a committed folder's name says, or None for any other name."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match and step_name(int(match[1])) == name else None


def staging_name(step: int, generation: int, save: int) -> str:
    """Folder in which the ``save``-th save of a generation is put together."""
    return f".staging-{step_name(step)}-g{generation}-{save}"


def staging_generation(name: str) -> int | None:
    """The generation that writes into a staging folder, or None for any other name."""
    match = _STAGING.fullmatch(name)
    return int(match[1]) if match else None


def removed_name(name: str) -> str:
    """Name of a step folder while it is being deleted."""
    return f".removed-{name}"


def is_removed(name: str) -> bool:
    """Whether a folder was being deleted."""
    return _REMOVED.fullmatch(name) is not None


def replaced_name(name: str) -> str:
    """Name of a step folder while another takes its place."""
    return f".replaced-{name}"


def replaced_of(name: str) -> str | None:
    """The name of the step folder that was being replaced, or None for any other name."""
    match = _REPLACED.fullmatch(name)
    return match[1] if match and step_of(match[1]) is not None else None


def link_name(name: str) -> str:
    """Name of a new ``latest`` or ``best`` link before it takes the old one's place."""
    return f".{name}-link"


def is_link(name: str) -> bool:
    """Whether a name is that of a link which never took its place."""
    return _LINK.fullmatch(name) is not None


def shard_name(rank: int) -> str:
    """File with the tensors of one rank."""
    return f"rank-{rank:05d}.safetensors"


def is_content(name: str) -> bool:
    """Whether a manifest may list a file of this name."""
    return name in (INDEX, STATE) or _SHARD.fullmatch(name) is not None


def done_name(rank: int) -> str:
    """Mark of a rank whose share is on disk."""
    return f"part-{rank:05d}.json"


def failed_name(rank: int) -> str:
    """Mark of a rank that could not write its share."""
    return f"failed-{rank:05d}.json"


def label(folder: Path) -> str:
    """What a step folder is called in a message: ``step 300``, or its path if its name is another."""
    name = folder.name
    step = step_of(replaced_of(name) or name)
    return f"step {step}" if step is not None else str(folder)
