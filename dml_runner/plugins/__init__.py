"""Options from outside: Python files named by ``plugins=``, and modules of installed packages, found by their entry points.

A module gives classes of keys, and beside them the functions that a file of ours would have: docs/plugins.md. What is loaded is kept
here, once a process, because it belongs to ``Run``, of which there is one: its classes are what help, errors and hints are read off.

To load a file is to run it. So a file is loaded only where somebody typed its path; a path that stands in a job.yaml is told, never
followed. A package is loaded by the name of an option, as our own files are: who installed it trusts it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Union

from dml_runner.errors import ConfigError, LaunchError, Problem, raise_all
from dml_runner.plugins.loading import FACES, METRICS, Option, Plugin, import_package, run_file
from dml_runner.run import Run
from dml_runner.schema.base import Section
from dml_runner.validation import keys

KEY = "plugins"
ENTRY_POINTS = "dml_runner.plugins"
"""The group of entry points. Each is named as an option or a metric is, and leads to the module that has it."""
PACKAGE = "package "
"""What the place of a module that is not a file begins with."""


@dataclass(frozen=True)
class Source:
    """Where options come from, as it is written down.

    Attributes:
        place: absolute path of a file, or ``package NAME VERSION``.
        sha256: of the module's text.
        options: what the job has of it, as typed: ``model=mine``.
    """

    place: str
    sha256: str
    options: tuple[str, ...]


_OURS = {group: tuple(keys.section_classes(Run.model_fields[group].annotation)) for group in FACES}
_loaded: dict[str, Plugin] = {}
"""By the name of the module."""


# --- loading -------------------------------------------------------------------------------------------------------------


def load(paths: Iterable[str], reserved: Collection[Option] = ()) -> None:
    """Run the Python files ``paths`` and learn their options; one that ran already, and has not changed since, does not run again.

    Args:
        paths: as typed.
        reserved: options beside ours that none of them may have.

    Raises:
        ConfigError: a file is missing, fails, or has no option or one whose name is taken; a line for each.
    """
    problems: list[Problem] = []
    for path in paths:
        try:
            _take_in(str(Path(path).expanduser().resolve()), _text_of(path), reserved)
        except ConfigError as error:
            problems += error.problems
    raise_all(problems)


def carry(run: Run) -> tuple[tuple[str, bytes], ...]:
    """The files that a job has options of, each with the text that ran here, for ``unpack`` in a process that this one starts."""
    return tuple((plugin.place, plugin.content) for plugin, _ in _used(run) if not plugin.place.startswith(PACKAGE))


def unpack(files: Iterable[tuple[str, bytes]]) -> None:
    """Run what ``carry`` gave, so that all ranks, at every start, run the same text, whatever has become of the file."""
    for place, content in files:
        _take_in(place, content)


def find(group: str, name: str) -> bool:
    """Whether (group, name) is an option of a module that is loaded, or of an installed package, which is loaded then.

    Args:
        group: model, data or strategy, or METRICS.
        name: of the option or metric.

    Raises:
        ConfigError: the package fails, or two packages have the name.
    """
    if _owner(group, name) is None and (group in FACES or group == METRICS):
        points = [point for point in _installed() if point.name == name]
        if len({point.module for point in points}) > 1:
            raise ConfigError(Problem(f"{group}={name}", "several installed packages have it", got=", ".join(map(_place, points))))
        for point in points[:1]:
            _import(point)
    return _owner(group, name) is not None


def find_all() -> list[Problem]:
    """Load every installed package that has options, for help; those that fail are left out and told."""
    problems: list[Problem] = []
    for point in _installed():
        try:
            _import(point)
        except ConfigError as error:
            problems += error.problems
    return list(dict.fromkeys(problems))


def _installed() -> Sequence[EntryPoint]:
    return tuple(entry_points(group=ENTRY_POINTS))


def _place(point: EntryPoint) -> str:
    return PACKAGE + (f"{point.dist.name} {point.dist.version}" if point.dist else point.module)


def _import(point: EntryPoint) -> None:
    if point.module not in _loaded:
        _learn(import_package(point.module, _place(point)))
    names = [name for _, name in _loaded[point.module].options]
    if point.name not in names:
        what = f"its entry point {point.name} leads to {point.module}, which has no option of that name"
        raise ConfigError(Problem(_place(point), what, allowed=", ".join(names)))


def _take_in(place: str, content: bytes, reserved: Collection[Option] = ()) -> None:
    if (place, content) not in [(plugin.place, plugin.content) for plugin in _loaded.values()]:
        _learn(run_file(place, content), reserved)


def _text_of(path: str) -> bytes:
    file = Path(path).expanduser()
    try:
        if not file.is_dir() and file.suffix == ".py":
            return file.read_bytes()
    except OSError as error:
        raise ConfigError(Problem(KEY, f"cannot be read: {error.strerror}", got=path)) from None
    raise ConfigError(Problem(KEY, "is no Python file", got=path, allowed="a .py file; a package is installed, and found by itself"))


def _learn(plugin: Plugin, reserved: Collection[Option] = ()) -> None:
    """Keep a module, and let ``Run`` know its classes; what its file had before, where it ran before, is forgotten."""
    own = plugin.module.__name__
    raise_all(_taken(plugin, [other for name, other in _loaded.items() if name != own], reserved))
    _loaded[own] = plugin
    extend_run()


def _taken(plugin: Plugin, others: Iterable[Plugin], reserved: Collection[Option]) -> Iterator[Problem]:
    ours = [*reserved, *((group, name) for group, classes in _OURS.items() for each in classes for name in keys.options_of(each))]
    for group, name in plugin.options:
        owner = next((other.place for other in others if (group, name) in other.options), None)
        owner = "dml_runner" if (group, name) in ours else owner
        if owner is not None:
            yield Problem(plugin.place, "the name of an option is taken", got=f"{group}={name}", hint=f"{owner} has it; choose another")


def extend_run() -> None:
    """Make the classes of ``Run`` those of ours and of everything that is loaded.

    What a section may be is a union of classes, told apart by ``name``, from which pydantic has built the validator of ``Run``. So the
    union is replaced, and the validator built again. Whatever else asks what there is looks at the fields of ``Run`` when it is asked.
    """
    for group, ours in _OURS.items():
        theirs = [section for plugin in _loaded.values() for option, section in plugin.classes.items() if option[0] == group]
        Run.model_fields[group].annotation = Union[(*ours, *theirs)]  # type: ignore[assignment]
    Run.model_rebuild(force=True)


# --- what is loaded ------------------------------------------------------------------------------------------------------


def options(group: str) -> dict[str, type[Section]]:
    """Option -> its class of keys, of what is loaded."""
    return {name: section for plugin in _loaded.values() for (own, name), section in plugin.classes.items() if own == group}


def module(group: str, name: str) -> ModuleType | None:
    """The module that has an option, with the functions that a file of ours would have; None: it is one of ours."""
    owner = _owner(group, name)
    return None if owner is None else owner.module


def metrics() -> dict[str, Callable[[int], Any]]:
    """Metrics by name, of what is loaded: from the number of classes to a new metric of torchmetrics."""
    return {name: build for plugin in _loaded.values() for name, build in plugin.metrics.items()}


def folders() -> list[Path]:
    """The conf/ folders beside files that are loaded, and inside packages that are."""
    found = [Path(plugin.module.__file__ or "").parent / "conf" for plugin in _loaded.values() if _has_folder(plugin)]
    return [folder for folder in found if folder.is_dir()]


def _has_folder(plugin: Plugin) -> bool:
    """What stands beside a package of a single file is others'."""
    return not plugin.place.startswith(PACKAGE) or hasattr(plugin.module, "__path__")


def _owner(group: str, name: str) -> Plugin | None:
    return next((plugin for plugin in _loaded.values() if (group, name) in plugin.options), None)


# --- what a job has of it ------------------------------------------------------------------------------------------------


def used(run: Run) -> tuple[Source, ...]:
    """Where the options of a job come from that are not ours."""
    return tuple(Source(plugin.place, plugin.sha256, tuple(chosen)) for plugin, chosen in _used(run))


def _used(run: Run) -> list[tuple[Plugin, list[str]]]:
    wanted = [(group, getattr(run, group).name) for group in FACES] + [(METRICS, name) for name in run.train.metrics or ()]
    found: list[tuple[Plugin, list[str]]] = []
    for plugin in _loaded.values():
        chosen = [f"{group}={name}" for group, name in wanted if (group, name) in plugin.options]
        if chosen:
            found.append((plugin, chosen))
    return found


def require(sources: Iterable[Source]) -> None:
    """Refuse a job that has options of files or packages which are not there; none of them is loaded by its path.

    Raises:
        ConfigError: a line for each, with the words that would do.
    """
    problems = []
    for source in sources:
        lacking = [option for option in source.options if not find(*_split(option))]
        if lacking:
            name, is_package = source.place.removeprefix(PACKAGE), source.place.startswith(PACKAGE)
            what = f"{', '.join(lacking)} comes from {source.place}, which is not {'installed' if is_package else 'loaded'}"
            problems.append(Problem(KEY, what, hint=f"install {name}" if is_package else f"add plugins={name}"))
    raise_all(problems)


def agree(sources: Iterable[Source]) -> None:
    """Refuse to be a rank beside one that has the job's options from ``sources``, where this process has others.

    Raises:
        LaunchError: a line for each.
    """
    problems = []
    for source in sources:
        for group, name in map(_split, source.options):
            own = _owner(group, name) if find(group, name) else None
            if own is None or own.sha256 != source.sha256:
                got = "none" if own is None else f"SHA-256 {own.sha256[:12]}"
                what = f"{group}={name} is not what rank 0 has of {source.place}"
                problems.append(Problem(KEY, what, got, f"SHA-256 {source.sha256[:12]}", "start all ranks with the same words and files"))
    raise_all(problems, LaunchError)


def changes(sources: Iterable[Source]) -> list[str]:
    """A line for each module whose text is another than ``sources`` say, or which another has taken the place of."""
    lines = {}
    for source in sources:
        for option in source.options:
            owner = _owner(*_split(option))
            if owner is not None and owner.sha256 != source.sha256:
                digests = f"was SHA-256 {source.sha256[:12]}, is {owner.sha256[:12]}"
                lines[owner.place, source.place] = f"{option} is not what it was when the run began: {owner.place} ({digests})"
    return list(lines.values())


def _split(option: str) -> tuple[str, str]:
    group, _, name = option.partition("=")
    return group, name


def meet(tree: Mapping[str, object]) -> None:
    """Load the installed packages whose options a tree of words has chosen.

    Raises:
        ConfigError: as ``find``.
    """
    for group in FACES:
        section = tree.get(group)
        name = section.get("name") if isinstance(section, Mapping) else None
        if isinstance(name, str) and all(name not in keys.options_of(ours) for ours in _OURS[group]):
            find(group, name)
