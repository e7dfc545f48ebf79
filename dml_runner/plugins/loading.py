"""One module from outside: how its text is run, and whether it offers what a file of ours would."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import linecache
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import SourceLoader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from dml_runner.errors import ConfigError, Problem, raise_all
from dml_runner.schema.base import Section, meanings
from dml_runner.schema.data import DataWords
from dml_runner.schema.model import ModelWords
from dml_runner.schema.strategy import StrategyWords
from dml_runner.validation import keys

FACES: Mapping[str, tuple[type[Section], tuple[str, ...]]] = {
    "model": (ModelWords, ("build",)),
    "data": (DataWords, ("prepare", "open_data")),
    "strategy": (StrategyWords, ("layout",)),
}
"""Group -> what its classes of keys descend from, and the functions that stand beside them."""
METRICS = "train.metrics"
"""Stands for the group, where a metric is meant."""
NAME = re.compile(r"(?!help$)[a-z][a-z0-9_]*")
OFFERS = "a class of keys below ModelWords, DataWords or StrategyWords, or METRICS = {name: build}"
Option = tuple[str, str]
"""(group, name)."""


@dataclass(frozen=True)
class Plugin:
    """A module that ran.

    Attributes:
        place: the absolute path of its file, or ``package NAME VERSION``.
        sha256: of its text.
        content: its text, where it is a file; empty for a package's.
        module: what came of it.
        classes: its classes of keys, by (group, option).
        metrics: by name: from a number of classes to a new metric of torchmetrics.
    """

    place: str
    sha256: str
    content: bytes
    module: ModuleType
    classes: Mapping[Option, type[Section]]
    metrics: Mapping[str, Callable[[int], Any]]

    @property
    def options(self) -> tuple[Option, ...]:
        """All it offers."""
        return (*self.classes, *((METRICS, name) for name in self.metrics))


def run_file(path: str, content: bytes) -> Plugin:
    """Run ``content``, the text of the file ``path`` (absolute); it does not matter what stands in the file by now.

    Raises:
        ConfigError: it fails, with the line where it does, or does not offer what it should.
    """
    name = f"dml_runner_plugin_{Path(path).stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    spec = ModuleSpec(name, _Text(path, content), origin=path)
    spec.has_location = True
    module, before = importlib.util.module_from_spec(spec), sys.modules.get(name)
    sys.modules[name] = module  # pydantic looks up there what annotations mean
    text = content.decode(errors="replace")
    linecache.cache[path] = len(text), None, text.splitlines(keepends=True), path  # what ran, not what the file holds by now
    try:
        with _one_line(path):
            assert spec.loader is not None
            spec.loader.exec_module(module)
        return _plugin(path, content, content, module)
    except BaseException:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        raise


def import_package(name: str, place: str) -> Plugin:
    """Import the installed module ``name``.

    Raises:
        ConfigError: as ``run_file``.
    """
    with _one_line(place):
        module = importlib.import_module(name)
    return _plugin(place, Path(module.__file__ or "").read_bytes() if module.__file__ else b"", b"", module)


class _Text(SourceLoader):
    """Runs a text that was read before, so that what a digest is taken of is what runs; it keeps no bytecode beside the file."""

    def __init__(self, path: str, content: bytes) -> None:
        self._path = path
        self._content = content

    def get_filename(self, fullname: str) -> str:
        """The file, for tracebacks."""
        return self._path

    def get_data(self, path: str | bytes) -> bytes:
        """The text."""
        if path != self._path:
            raise OSError("there is no bytecode")
        return self._content


@contextmanager
def _one_line(place: str) -> Iterator[None]:
    """Tell what goes wrong in a module's text in one line, with the file and line of it."""
    problem = None
    try:
        yield
    except (Exception, SystemExit) as error:
        problem = Problem(_where(place, error), "cannot be loaded", got=_said(error))
    if problem is not None:
        raise ConfigError(problem)


def _where(place: str, error: BaseException) -> str:
    ours = ("<frozen", __file__, importlib.__file__ or "")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    own = [frame for frame in frames if frame.filename == place] or frames
    if isinstance(error, SyntaxError) and (error.filename == place or not own):
        return f"{error.filename or place}:{error.lineno or 1}"
    return f"{own[-1].filename}:{own[-1].lineno}" if own else place


def _said(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# --- what it offers ------------------------------------------------------------------------------------------------------


def _plugin(place: str, text: bytes, content: bytes, module: ModuleType) -> Plugin:
    problems: list[Problem] = []
    classes: dict[Option, type[Section]] = {}
    own = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Section) and _is_own(each, module)]
    for section in dict.fromkeys(own):
        group = next((group for group, (base, _) in FACES.items() if issubclass(section, base)), None)
        if group is None or _is_shared(section, own):
            continue  # a section inside another, or what several classes have in common
        found = list(_faults(place, group, section, module))
        twice = [name for name in keys.options_of(section) if (group, name) in classes]
        found += [Problem(place, "two classes have one name", got=f"{group}={name}") for name in twice]
        problems += found
        classes |= {(group, name): section for name in keys.options_of(section) if not found}
    metrics = getattr(module, "METRICS", {})
    if not isinstance(metrics, dict) or not all(isinstance(name, str) and callable(build) for name, build in metrics.items()):
        problems.append(Problem(place, "METRICS is no mapping of names to functions"))
        metrics = {}
    names = [*(name for _, name in classes), *metrics]
    problems += [
        Problem(place, "no name for an option", got=repr(name), allowed="a-z, 0-9, _") for name in names if not NAME.fullmatch(name)
    ]
    if not (classes or metrics or problems):
        problems.append(Problem(place, "has no option", allowed=OFFERS))
    raise_all(problems)
    return Plugin(place, hashlib.sha256(text).hexdigest(), content, module, classes, metrics)


def _is_own(section: type[Section], module: ModuleType) -> bool:
    """Whether the module, or another of its package, defines a class."""
    return section.__module__.split(".")[0] == module.__name__.split(".")[0]


def _is_shared(section: type[Section], own: Sequence[type[Section]]) -> bool:
    """Whether a class is there for others to descend from: it has no name that its own parents, or those of others, lack."""
    inherited = next((keys.options_of(base) for base in section.__mro__[1:] if issubclass(base, Section) and base not in own), ())
    return keys.options_of(section) in ((), inherited) and any(section is not other and issubclass(other, section) for other in own)


def _faults(place: str, group: str, section: type[Section], module: ModuleType) -> Iterator[Problem]:
    """What keeps a class of keys from being an option."""
    shown = f"{place}: {section.__name__}"
    try:
        section.model_rebuild()
        meanings(section)
    except (Exception, SystemExit) as error:
        yield Problem(shown, "is no class of keys", got=_said(error))
        return
    if not keys.options_of(section):
        yield Problem(shown, "has no name", hint=f'give it: name: Literal["{section.__name__.lower()}"]')
    if issubclass(section, ModelWords) and section.objective is ModelWords.objective:
        yield Problem(shown, "does not say what the model learns", hint="give it a property objective: next_token, masked or classify")
    for function in FACES[group][1]:
        if not callable(getattr(module, function, None)):
            yield Problem(place, f"has {section.__name__}, and no function {function}", hint=f"as those of {group}=... have")
