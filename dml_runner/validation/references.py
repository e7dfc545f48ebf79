"""Interpolations: resolved once, except that what comes from the environment stays a reference in what is kept."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dml_runner.errors import Problem, raise_all
from dml_runner.run import Run
from dml_runner.validation.problems import run_or_problems

_LOCK = threading.Lock()


@dataclass
class Resolved:
    """One tree, twice: with every value, and as it may be written down."""

    values: dict[str, Any]
    """Everything resolved; for use in memory only."""
    kept: dict[str, Any]
    """The same, but what comes from the environment is still its ``${...}`` text."""
    secret_keys: set[str] = field(default_factory=set)
    """Dotted keys whose values came from the environment, on their own or through other keys."""
    problems: list[Problem] = field(default_factory=list)
    """Interpolations that lead nowhere."""
    broken: set[str] = field(default_factory=set)
    """Dotted keys without a value because an interpolation failed."""


def restore(tree: Mapping[str, object]) -> Run:
    """The Run of a tree that was written down: references to the environment are read again, then all is validated.

    Raises:
        ConfigError: a variable is no longer set, or the tree is not that of a job.
    """
    resolved = resolve(tree)
    run, problems = run_or_problems(resolved.values, resolved.secret_keys, resolved.broken)
    raise_all([*resolved.problems, *problems])
    assert run is not None
    return run


def resolve(tree: Any) -> Resolved:
    """Resolve a mapping (or an OmegaConf node) that may hold ``${key}`` and ``${oc.env:VARIABLE}``.

    Nothing is raised: what cannot be resolved stands in ``problems``, by key and variable, never by value.
    """
    from omegaconf import OmegaConf

    config = tree if OmegaConf.is_config(tree) else OmegaConf.create(dict(tree))
    raw = OmegaConf.to_container(config, resolve=False)
    found = Resolved({}, {})
    with _watched_environment() as seen:
        walk = _Walk(found, seen, names=set(re.findall(r"oc\.env:\s*'?\"?([A-Za-z_][A-Za-z0-9_]*)", repr(raw))))
        found.values, found.kept = walk.container(config, raw, "")
    return found


@dataclass
class _Seen:
    read: bool = False
    unset: str | None = None


@contextmanager
def _watched_environment() -> Iterator[_Seen]:
    """Tell whether resolving a value looked at the environment, directly or through other keys."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    seen = _Seen()

    def env(key: str, *default: Any) -> str | None:
        seen.read = True
        try:
            return oc.env(key, *default)
        except KeyError:
            seen.unset = key
            raise

    with _LOCK:
        OmegaConf.register_new_resolver("oc.env", env, replace=True)
        try:
            yield seen
        finally:
            OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


@dataclass
class _Walk:
    found: Resolved
    seen: _Seen
    names: set[str]
    """Environment variables the tree names literally; another name was itself computed, and is not shown."""

    def container(self, node: Any, raw: Any, prefix: str) -> tuple[Any, Any]:
        if isinstance(raw, Mapping):
            pairs = {key: self.item(node, key, raw[key], f"{prefix}.{key}" if prefix else str(key)) for key in raw}
            return {key: pair[0] for key, pair in pairs.items()}, {key: pair[1] for key, pair in pairs.items()}
        items = [self.item(node, index, each, f"{prefix}[{index}]") for index, each in enumerate(raw)]
        return [pair[0] for pair in items], [pair[1] for pair in items]

    def item(self, node: Any, key: Any, raw: Any, dotted: str) -> tuple[Any, Any]:
        from omegaconf import OmegaConf

        if isinstance(raw, (Mapping, list)):
            return self.container(node[key], raw, dotted)
        if not OmegaConf.is_interpolation(node, key):
            return raw, raw
        self.seen.read, self.seen.unset = False, None
        try:
            value = node[key]
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        except Exception as error:
            self.found.broken.add(dotted)
            if type(error).__name__ not in ("InterpolationToMissingValueError", "MissingMandatoryValue"):
                self.found.problems.append(self.problem(dotted, str(raw), error))
            return raw, raw
        if self.seen.read:
            self.found.secret_keys.add(dotted)
        return value, raw if self.seen.read or (isinstance(value, str) and "${" in value) else value

    def problem(self, key: str, raw: str, error: BaseException | None) -> Problem:
        if self.seen.unset is not None:
            name = f"environment variable {self.seen.unset}" if self.seen.unset in self.names else "an environment variable"
            return Problem(key, f"{name} is not set", got=raw, hint="set it, or give a default: ${oc.env:VARIABLE,default}")
        kinds = {"RecursionError"} if "Recursive interpolation" in str(error) else set()
        while error is not None:
            kinds.add(type(error).__name__)
            error = error.__cause__ or error.__context__
        if "RecursionError" in kinds:
            return Problem(key, "interpolations lead back to themselves", got=raw)
        if "UnsupportedInterpolationType" in kinds:
            return Problem(key, "unknown kind of interpolation", got=raw, allowed="${KEY}, ${oc.env:VARIABLE}")
        if "InterpolationKeyError" in kinds:
            return Problem(key, "interpolates a key that does not exist", got=raw)
        return Problem(key, "cannot be interpolated", got=raw)
