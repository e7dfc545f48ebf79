"""The schema as dotted keys: which there are, what each may hold, and which is nearest to a misspelt one."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from dml_runner.run import Run
from dml_runner.schema.base import Section

_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def section_classes(annotation: Any) -> list[type[Section]]:
    """The section classes among a field's alternatives; none for a plain value."""
    return [part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, Section)]


def options_of(section: type[Section]) -> tuple[str, ...]:
    """The ``name`` values that choose this class, as far as the schema lists them."""
    field = section.model_fields.get("name")
    return tuple(str(value) for value in get_args(field.annotation)) if field and get_origin(field.annotation) is Literal else ()


def groups() -> dict[str, list[type[Section]]]:
    """Every section of a Run that has options, with its classes; ``train`` has none."""
    found = {name: section_classes(field.annotation) for name, field in Run.model_fields.items()}
    return {name: classes for name, classes in found.items() if classes and "name" in classes[0].model_fields}


def chosen(classes: list[type[Section]], section: object) -> type[Section] | None:
    """The class that a section's own ``name`` chooses; None where it chooses none."""
    if len(classes) == 1:
        return classes[0]
    name = section.get("name") if isinstance(section, Mapping) else None
    return next((each for each in classes if name in options_of(each)), None)


def fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo, type[Section]]]:
    """Every dotted key below one class, with its field and the class that owns it; sections inside are walked."""
    for name, field in section.model_fields.items():
        inner = section_classes(field.annotation)
        if len(inner) == 1 and "name" not in inner[0].model_fields:
            yield from fields(inner[0], f"{prefix}{name}.")
        elif not inner:
            yield prefix + name, field, section


def known(tree: Mapping[str, object]) -> list[str]:
    """Every dotted key of a job that chose the options ``tree`` chose, the options' ``name`` included."""
    found = [key for key, _, _ in fields(Run)]
    for group, classes in groups().items():
        option = chosen(classes, tree.get(group))
        found += [key for key, _, _ in fields(option, f"{group}.")] if option else []
    return found


def locate(location: tuple[int | str, ...]) -> tuple[str, FieldInfo | None]:
    """Pydantic's location as the dotted key a user types, with its field; no field: the key is unknown."""
    owner: type[Section] | None = Run
    path: list[str] = []
    field: FieldInfo | None = None
    rest = [part for part in location if isinstance(part, str)]
    while rest and owner is not None:
        path.append(rest.pop(0))
        field = owner.model_fields.get(path[-1])
        classes = section_classes(field.annotation) if field else []
        owner = classes[0] if classes else None
        if len(classes) > 1 and rest:
            tag = rest.pop(0)
            owner = next((each for each in classes if tag in options_of(each)), None)
    if field is not None and rest and any(get_origin(part) is dict for part in _parts(field.annotation)):
        path.append(rest[0])
    return ".".join(path), field


def annotation_of(field: FieldInfo) -> Any:
    """A field's annotation with its ranges put back."""
    return field.rebuild_annotation()


def kind(annotation: Any) -> str:
    """What a value must be, in words: ``a whole number or null``, ``a number``, ``text or a list of text``."""
    return " or ".join(dict.fromkeys(_kind(part) for part in _parts(annotation)))


def allowed(annotation: Any) -> str | None:
    """The values allowed within the type: ``>= 1 or null``, ``auto, fp32, bf16``; None where any will do."""
    found = [text for part in _alternatives(annotation) if (text := _allowed(part))]
    return " or ".join(found) if [text for text in found if text != "null"] else None


def describe(annotation: Any) -> str:
    """Type and range together, for help: ``a whole number >= 1, or null``; ``auto, fp32, or null``."""
    texts = []
    for part in _alternatives(annotation):
        limits = _allowed(part)
        texts.append(limits or kind(part) if kind(part) in ("null", "one of the words") else " ".join(filter(None, [kind(part), limits])))
    return ", or ".join(dict.fromkeys(texts))


def nearest(key: str, tree: Mapping[str, object]) -> str | None:
    """A hint for an unknown key: where it belongs, or the known key it resembles."""
    group, _, leaf = key.rpartition(".")
    candidates = [each for each in known(tree) if not each.endswith(".name")]
    owners = [name for each in groups().get(group, ()) if leaf in each.model_fields for name in options_of(each)]
    if owners:
        return f"a key of {group}={'|'.join(owners)}"
    beside = {each.rpartition(".")[2]: each for each in candidates if each.rpartition(".")[0] == group}
    if near := difflib.get_close_matches(leaf, list(beside), n=1, cutoff=0.6):
        return f"did you mean {beside[near[0]]}?"
    words = [*candidates, *groups(), "train"]
    if near := [each for each in words if each.rpartition(".")[2] == leaf]:
        return f"did you mean {near[0]}?"
    if not (group and beside) and (near := difflib.get_close_matches(key, words, n=1, cutoff=0.75)):
        return f"did you mean {near[0]}?"
    leaves = {each.rpartition(".")[2]: each for each in candidates}
    near = difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.8)
    return f"did you mean {leaves[near[0]]}?" if near else None


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for part in get_args(annotation) for inner in _alternatives(part)]
    if get_origin(annotation) is Annotated and get_origin(get_args(annotation)[0]) in (Union, types.UnionType):
        return _alternatives(get_args(annotation)[0])
    return [annotation]


def _parts(annotation: Any) -> list[Any]:
    return [get_args(part)[0] if get_origin(part) is Annotated else part for part in _alternatives(annotation)]


def _kind(part: Any) -> str:
    origin = get_origin(part)
    if origin is Literal:
        return "one of the words"
    if origin in (tuple, list):
        return f"a list of {kind(get_args(part)[0]).removeprefix('a ')}"
    if origin is dict or (isinstance(part, type) and issubclass(part, Section)):
        return "a mapping of keys"
    return _KINDS.get(part, "something else")


def _allowed(part: Any) -> str | None:
    if part is type(None):
        return "null"
    if get_origin(part) is Literal:
        return ", ".join(str(value) for value in get_args(part))
    if get_origin(part) is not Annotated:
        return None
    limits = []
    for data in get_args(part)[1:]:
        for limit in data.metadata if isinstance(data, FieldInfo) else [data]:
            limits += [f"{sign} {getattr(limit, name):g}" for name, sign in _SIGNS.items() if hasattr(limit, name)]
    return " and ".join(limits) or _allowed(get_args(part)[0])
