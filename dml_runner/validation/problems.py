"""Pydantic's findings as one line a problem; a value that came from the environment is never shown."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from dml_runner.errors import Problem, did_you_mean, raise_all
from dml_runner.run import Run, contradictions
from dml_runner.schema.base import meanings
from dml_runner.validation import keys

HIDDEN = "a value from the environment"
_RANGES = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def validate(tree: Mapping[str, object], secret_keys: Collection[str] = ()) -> Run:
    """Turn a fully resolved tree into a Run.

    Args:
        tree: every key of a job; ``???`` marks one that has no value yet.
        secret_keys: dotted keys whose values came from the environment: no error shows them.

    Raises:
        ConfigError: all problems of the tree, one line each.
    """
    run, problems = run_or_problems(tree, secret_keys)
    raise_all(problems)
    assert run is not None
    return run


def run_or_problems(
    tree: Mapping[str, object], secret_keys: Collection[str] = (), skip: Collection[str] = ()
) -> tuple[Run | None, list[Problem]]:
    """The Run, or every reason why there is none; nothing is said about the keys in ``skip`` and below them."""
    if tree.get("plugins") is not None:
        got = shown("plugins", tree["plugins"], secret_keys)
        refused = Problem("plugins", "a file sets it, and no file makes this program run code", got, "null", "type it on the command line")
        return None, [refused, *run_or_problems({**tree, "plugins": None}, secret_keys, skip)[1]]
    missing = list(_missing(tree, ""))
    silent = {*skip, *missing}
    run: Run | None = None
    errors: list[Any] = []
    try:
        run = Run.model_validate(_frozen(tree))
    except ValidationError as error:
        errors = error.errors(include_url=False)
    if run is not None and not missing:
        found = [_censored(problem, tree, secret_keys) for problem in contradictions(run)]
        return (None if found else run), [problem for problem in found if not _below(problem.key, skip)]
    translated: dict[str, Problem] = {}
    for each in errors:
        problem = _problem(each, tree, secret_keys)
        if problem.key not in translated or translated[problem.key].what.startswith("expected"):
            translated[problem.key] = problem
    problems = [_missing_problem(key, tree) for key in missing if not _below(key, skip)]
    problems += [problem for key, problem in translated.items() if not _below(key, silent)]
    return None, problems


def unknown_keys(tree: Mapping[str, object]) -> list[Problem]:
    """The keys of a tree that no section has; values are not looked at, and may be missing."""
    return [problem for problem in run_or_problems(tree)[1] if problem.what == "unknown key"]


def _problem(error: Mapping[str, Any], tree: Mapping[str, object], secret_keys: Collection[str]) -> Problem:
    kind, value = error["type"], error["input"]
    key, field = keys.locate(error["loc"])
    if kind == "extra_forbidden" or field is None:
        return Problem(key, "unknown key", hint=keys.nearest(key, tree))
    if kind == "missing":
        return _missing_problem(key, tree)
    if kind == "union_tag_not_found" and isinstance(value, Mapping):
        return _missing_problem(f"{key}.name", tree)
    if kind == "union_tag_invalid":
        options = [name for each in keys.section_classes(field.annotation) for name in keys.options_of(each)]
        key, value = f"{key}.name", value["name"]
        hint = None if _below(key, secret_keys) else did_you_mean(str(value), options)
        return Problem(key, "no such option", shown(key, value, secret_keys), ", ".join(options), hint)
    value = _value(tree, key)
    got = shown(key, value, secret_keys)
    annotation = keys.annotation_of(field)
    if kind == "literal_error" or (isinstance(value, str) and keys.kind(annotation).startswith("one of")):
        choices = keys.allowed(annotation) or ""
        hint = None if _below(key, secret_keys) else did_you_mean(str(value), choices.replace(" or ", ", ").split(", "))
        return Problem(key, "no such choice", got, choices, hint)
    if kind in _RANGES:
        return Problem(key, "out of range", got, keys.allowed(annotation))
    if kind == "finite_number":
        return Problem(key, "not a finite number", got, keys.allowed(annotation))
    if kind == "string_too_short":
        return Problem(key, "is empty", got)
    if kind == "value_error":
        what = "not allowed" if _below(key, secret_keys) else str(error["msg"]).removeprefix("Value error, ")
        return Problem(key, what, got)
    return Problem(key, f"expected {keys.kind(annotation)}", got, hint=_type_hint(key, value, annotation, secret_keys))


def _type_hint(key: str, value: object, annotation: Any, secret_keys: Collection[str]) -> str | None:
    wanted = keys.kind(annotation)
    if _below(key, secret_keys):
        return "an environment value is text; write ${oc.decode:${oc.env:VARIABLE}}" if "number" in wanted or "true" in wanted else None
    if isinstance(value, float) and "whole number" in wanted and value.is_integer():
        return f"write {value:.0f}"
    if isinstance(value, str) and "number" in wanted and re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", value):
        return "write it plainly, without quotes or leading zeros"
    if isinstance(value, str) and "true or false" in wanted and value.lower() in ("yes", "no", "on", "off", "1", "0"):
        return f"write {'true' if value.lower() in ('yes', 'on', '1') else 'false'}"
    return None


def shown(key: str, value: object, secret_keys: Collection[str]) -> str:
    """A value as an error may print it: short, in YAML's words, and never one from the environment."""
    if _below(key, secret_keys) or any(_below(secret, [key]) for secret in secret_keys):
        return HIDDEN
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping of keys"
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def _censored(problem: Problem, tree: Mapping[str, object], secret_keys: Collection[str]) -> Problem:
    values = [str(value) for key in secret_keys if isinstance(value := _value(tree, key), (str, int, float))]
    pattern = "|".join(rf"(?<!\w){re.escape(value)}(?!\w)" for value in values if value)
    if not pattern:
        return problem
    texts = (problem.what, problem.got, problem.allowed, problem.hint)
    what, got, allowed, hint = (text and re.sub(pattern, f"({HIDDEN})", text) for text in texts)
    return Problem(problem.key, what or "", got, allowed, hint)


def _missing(tree: object, prefix: str) -> Iterator[str]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _missing(value, f"{prefix}.{key}" if prefix else str(key))
    elif tree == "???":
        yield prefix


def _missing_problem(key: str, tree: Mapping[str, object]) -> Problem:
    group, _, leaf = key.partition(".")
    classes = keys.groups().get(group)
    if classes and leaf in ("", "name"):
        return Problem(group, "missing", hint=f"add {group}=OPTION, one of those that {group}=help lists")
    field = Run.model_fields.get(group)
    owner = keys.chosen(keys.section_classes(field.annotation), tree.get(group)) if field and leaf else Run
    meaning = meanings(owner).get(leaf or key, "") if owner else ""
    return Problem(key, "missing", hint=f"add {key}=...  {' '.join(meaning.replace('``', '').split())}".rstrip())


def _below(key: str, parents: Collection[str]) -> bool:
    return any(key == parent or key.startswith((f"{parent}.", f"{parent}[")) for parent in parents)


def _frozen(value: object) -> Any:
    """Lists as tuples, at any depth: the schema's sequences are tuples."""
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _value(tree: Mapping[str, object], key: str) -> object:
    node: object = tree
    for part in re.split(r"[.\[]", key.replace("]", "")):
        if isinstance(node, Mapping):
            node = node.get(part)
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            return None
    return node
