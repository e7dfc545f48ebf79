"""What the keys of an option start as, before anything is typed: the values of its YAML, or those that a plugin's class gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from dml_runner.config import folders
from dml_runner.schema.base import Section
from dml_runner.validation import keys

OPEN = "???"
"""Stands for a value that must be given."""


def read(path: Path) -> dict[str, Any]:
    """A YAML file that ships with us or passed every check before."""
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def chosen() -> dict[str, str]:
    """Group -> the option that a job has unless another is chosen."""
    root = read(folders.conf_folder() / "config.yaml")
    return {group: option for entry in root["defaults"] if isinstance(entry, dict) for group, option in entry.items()}


def values(group: str, option: str) -> dict[str, Any]:
    """An option's keys with those it inherits through ``defaults: [parent, _self_]``."""
    place = folders.options(group)[option]
    if not isinstance(place, Path):
        return of_class(group, option, place)
    own = read(place)
    merged: dict[str, Any] = {}
    for parent in own.pop("defaults", []):
        if isinstance(parent, str) and parent != "_self_" and parent in folders.options(group):
            merged |= values(group, parent)
    return merged | own


def of_class(group: str, option: str, section: type[Section]) -> dict[str, Any]:
    """The keys of a plugin's class: those with a default have it; those it takes over from a class of ours start as ours do."""
    inherited = _inherited(group, section)
    found: dict[str, Any] = {"name": option}
    for key, field in section.model_fields.items():
        if key != "name":
            given = not field.is_required()
            found[key] = to_jsonable_python(field.get_default(call_default_factory=True)) if given else inherited.get(key, OPEN)
    return found


def _inherited(group: str, section: type[Section]) -> dict[str, Any]:
    """Values of the keys that a class has from one of ours: as in the first option that has them too, the one chosen by default first."""
    first = chosen()[group]
    names = [first, *(path.stem for path in sorted((folders.conf_folder() / group).glob("*.yaml")) if path.stem != first)]
    found: dict[str, Any] = {}
    for name in names:
        start = values(group, name)
        other = keys.chosen(keys.groups()[group], start)
        for key in start if other else ():
            if other and key in section.model_fields and _definer(section, key) is _definer(other, key):
                found.setdefault(key, start[key])
    return found


def _definer(section: type[Section], key: str) -> type:
    """The class that defines a key which ``section`` has."""
    return next(base for base in reversed(section.__mro__) if issubclass(base, Section) and key in base.model_fields)
