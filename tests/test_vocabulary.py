"""The vocabulary holds: conf/ and the schema agree key by key, the folder is the registry, every key is explained and read."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from pydantic import ValidationError

from dml_runner.run import Run
from dml_runner.schema.base import Section, meanings

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dml_runner"
CONF = ROOT / "conf"
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())
OPTIONS = sorted(CONF.glob("*/*.yaml"))
REGISTRIES = {"strategy": "strategies", "model": "models", "data": "data", "optimizer": "optim"}


def composed(path: Path) -> dict[str, Any]:
    """An option's keys, with those it inherits through ``defaults: [parent, _self_]``."""
    own = yaml.safe_load(path.read_text())
    keys: dict[str, Any] = {}
    for parent in own.pop("defaults", ["_self_"]):
        keys |= own if parent == "_self_" else composed(path.with_name(f"{parent}.yaml"))
    return keys


def sections(annotation: Any) -> list[type[Section]]:
    """The section classes an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return [section for part in get_args(annotation) for section in sections(part)]
    return []


def names(section: type[Section]) -> set[str]:
    """The words a group's section answers to."""
    field = section.model_fields.get("name")
    return set(get_args(field.annotation)) if field and get_origin(field.annotation) is Literal else set()


def every_section() -> list[type[Section]]:
    """Run, the sections of its fields, and theirs."""
    found: list[type[Section]] = []
    waiting: list[type[Section]] = [Run]
    while waiting:
        section = waiting.pop()
        if section not in found:
            found.append(section)
            waiting += [inner for field in section.model_fields.values() for inner in sections(field.annotation)]
    return found


def section_for(group: str, option: dict[str, Any]) -> type[Section]:
    """The class that describes an option of a group."""
    (found,) = [section for section in sections(Run.model_fields[group].annotation) if option["name"] in names(section)]
    return found


def check_keys(section: type[Section], keys: dict[str, Any], place: str) -> None:
    """``keys`` are exactly those of ``section``, in nested sections too."""
    assert set(keys) == set(section.model_fields), f"{place}: keys differ from {section.__name__}"
    for key, value in keys.items():
        for inner in sections(section.model_fields[key].annotation) if isinstance(value, dict) else ():
            check_keys(inner, value, f"{place}: {key}")


def refused(section: type[Section], keys: dict[str, Any]) -> list[Any]:
    """The defaults a section does not allow; those the user must give are no defaults."""
    try:
        section.model_validate_json(json.dumps(keys))
    except ValidationError as error:
        return [problem for problem in error.errors() if problem["input"] != "???"]
    return []


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_an_option_lists_every_key_with_a_default_that_is_allowed(path: Path) -> None:
    text, keys, group = path.read_text(), composed(path), path.parent.name
    assert text.startswith("# "), "the first line says what the option is; strategy=help prints it"
    section = section_for(group, keys)
    check_keys(section, keys, path.name)
    assert refused(section, keys) == []


def test_the_root_lists_every_key_and_every_group() -> None:
    root = yaml.safe_load((CONF / "config.yaml").read_text())
    chosen = {group: option for line in root.pop("defaults") if isinstance(line, dict) for group, option in line.items()}
    assert sorted(chosen) == GROUPS
    assert all((CONF / group / f"{option}.yaml").exists() for group, option in chosen.items())
    assert sorted(root) == sorted(set(Run.model_fields) - set(GROUPS))
    for key in (key for key, value in root.items() if isinstance(value, dict)):
        (section,) = sections(Run.model_fields[key].annotation)
        check_keys(section, root[key], f"config.yaml: {key}")


@pytest.mark.parametrize("group", GROUPS)
def test_every_name_of_the_schema_has_an_option(group: str) -> None:
    known = {name for section in sections(Run.model_fields[group].annotation) for name in names(section)}
    assert known == {composed(path)["name"] for path in OPTIONS if path.parent.name == group}


@pytest.mark.parametrize("group", REGISTRIES)
def test_the_folder_is_the_registry(group: str) -> None:
    room = PACKAGE / REGISTRIES[group]
    files = {path.stem for path in room.glob("*.py")} - {"__init__", "base"}
    assert files == {composed(path)["name"] for path in OPTIONS if path.parent.name == group} - {"auto"}


def test_a_key_has_a_meaning_and_no_default() -> None:
    wrong = [f"{s.__name__}.{key}: no line of meaning" for s in every_section() for key in s.model_fields if not meanings(s).get(key)]
    wrong += [f"{s.__name__}.{key}: has a default" for s in every_section() for key, f in s.model_fields.items() if not f.is_required()]
    assert not wrong, "\n".join(wrong)


def test_every_schema_class_is_part_of_a_job() -> None:
    defined = set()
    for path in (PACKAGE / "schema").glob("[!_]*.py"):
        found = vars(importlib.import_module(f"dml_runner.schema.{path.stem}")).values()
        defined |= {c for c in found if isinstance(c, type) and issubclass(c, Section) and not c.__subclasses__()}
    assert defined <= set(every_section())


def test_every_key_is_read_by_someone() -> None:
    read = set()
    for path in PACKAGE.rglob("*.py"):
        read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    unread = [f"{section.__name__}.{key}" for section in every_section() for key in section.model_fields if key not in read]
    assert not unread, "nobody reads " + ", ".join(unread)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_opens_with_command_hardware_and_result(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    shape = rf"# dml train \S*{re.escape(path.name)}( \S+=\S+)* {{2,}}[^,]+, .*\d"
    assert re.match(shape, first), f"say it as: # dml train {path.name}   2 CPU cores, about 1 min, validation loss 1.9; got: {first}"
