"""The words after a verb: at most one job file, options of groups, and keys with values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dml_runner import plugins
from dml_runner.config import folders
from dml_runner.config.yaml_file import YamlFile, read
from dml_runner.errors import ConfigError, Problem, did_you_mean, raise_all
from dml_runner.plugins.loading import METRICS

EXAMPLE = "begin it with: defaults: [config, override strategy: all_reduce, override model: gpt, _self_]"
_ALLOWED = "FILE.yaml, group=option, key=value, +key=value, ~key"


@dataclass
class Words:
    """What was typed, sorted."""

    file: YamlFile | None = None
    """The job file, checked."""
    choices: dict[str, Any] = field(default_factory=dict)
    """Group -> Hydra's override that picks an option of it (or, with ``~``, none)."""
    plugins: tuple[str, ...] = ()
    """Files with options of the user's own; they are loaded."""
    values: list[Any] = field(default_factory=list)
    """Hydra's overrides of single keys, in the order typed."""
    problems: list[Problem] = field(default_factory=list)
    """What is wrong with the words themselves."""
    refused: set[str] = field(default_factory=set)
    """Groups whose option does not exist: nothing more is said about their keys."""

    @property
    def path(self) -> Path | None:
        """The job file's path."""
        return self.file.path if self.file else None

    @property
    def hydra_words(self) -> list[str]:
        """The chosen options, as Hydra wants them."""
        from dml_runner.validation.keys import groups

        return [word.input_line.lstrip("+") if name in groups() else word.input_line for name, word in self.choices.items()]


def sort(words: Sequence[str]) -> Words:
    """Read the job file and sort the other words; problems are kept, to be raised with those of the tree.

    Raises:
        ConfigError: the job file cannot be read or is not a job file.
    """
    found = Words()
    found.plugins, words = load_plugins(words)
    path, overrides = split(words, found.problems)
    if path is not None:
        found.file = read(path)
        raise_all([*found.problems, *_job_problems(found.file)])
    for override in parse(overrides, found.problems):
        _place(found, override)
    return found


def load_plugins(words: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Load the files that ``plugins=FILE`` or ``plugins=[FILE,FILE]`` names; those files, and the other words.

    Raises:
        ConfigError: the word is no list of paths, or as ``plugins.load``.
    """
    named = [word for word in words if word.partition("=")[0].lstrip("+") == plugins.KEY]
    if not named:
        return (), list(words)
    problems: list[Problem] = []
    paths: list[str] = []
    for override in parse(named, problems):
        several, value = override.is_sweep_override(), None if override.is_sweep_override() else override.value()
        listed = [] if value is None else value if isinstance(value, list) else [value]
        if several or not all(isinstance(path, str) and "${" not in path for path in listed):
            typed = override.input_line.partition("=")[2]
            problems.append(Problem(plugins.KEY, "expected paths, as they are", got=typed, allowed="FILE.py, [a.py,b.py]"))
        else:
            paths += listed
    raise_all(problems)
    if paths:
        from dml_runner import metrics

        ours = [(folder.parent.name, folder.stem) for folder in folders.conf_folder().glob("*/*.yaml")]
        plugins.load(paths, [*ours, *((METRICS, name) for name in metrics.OURS)])
    return tuple(paths), [word for word in words if word not in named]


def split(words: Sequence[str], problems: list[Problem]) -> tuple[Path | None, list[str]]:
    """The job file among the words, if any, and the others."""
    path: Path | None = None
    others = []
    for word in words:
        if word.endswith((".yaml", ".yml")) and ("=" not in word or Path(word).is_file()):
            if path is not None:
                problems.append(Problem(word, "a second job file", allowed="one", hint=f"{path} comes first"))
            path = path or Path(word)
        elif "=" in word.lstrip("=") or word.startswith("~"):
            others.append(word)
        else:
            here = [path.name for path in Path.cwd().glob("*.yaml")]
            hint = "a job file ends in .yaml" if Path(word).exists() else did_you_mean(word, here)
            problems.append(Problem(word, "not understood", allowed=_ALLOWED, hint=hint))
    return path, others


def parse(words: Sequence[str], problems: list[Problem]) -> list[Any]:
    """Each word as Hydra's Override; malformed ones become problems."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    found = []
    for word in words:
        key = word.partition("=")[0].lstrip("+~")
        try:
            override = parser.parse_overrides([word])[0]
        except HydraException:
            problems.append(Problem(key, "cannot be read", got=repr(word), hint="quote text with special characters: key='\"a, b\"'"))
            continue
        name = override.key_or_group
        if override.package is not None:
            problems.append(Problem(key, "@ has no place here", got=repr(word), allowed=_ALLOWED))
        elif name.split(".")[0].split("/")[0] == "hydra":
            problems.append(Problem(key, "configures Hydra itself", got=repr(word), hint="remove it: such a node can run code"))
        else:
            found.append(override)
    return found


def _place(found: Words, override: Any) -> None:
    name = override.key_or_group
    if override.is_sweep_override():
        _, _, typed = override.input_line.partition("=")
        found.problems.append(Problem(name, "several values", got=typed, hint="add -m to train each, or write [a,b] for a list"))
        found.refused.add(name)
        return
    value = override.value()
    known = folders.has(name, value, found.path)
    options = folders.options(name, found.path) if "." not in name else {}
    if not options or isinstance(value, dict):
        group, _, leaf = name.rpartition(".")
        if leaf == "name" and "." not in group and folders.options(group, found.path):
            found.problems.append(_name_problem(group, value, f"{group}={value}"))
        else:
            found.values.append(override)
    elif override.is_delete() or known:
        found.choices[name] = override
    else:
        found.problems.append(_no_such_option(name, value, list(options)))
        found.refused.add(name)


def _no_such_option(group: str, option: object, options: list[str]) -> Problem:
    from dml_runner.validation.problems import shown

    return Problem(
        group, "no such option", got=shown(group, option, ()), allowed=", ".join(options), hint=did_you_mean(str(option), options)
    )


def _name_problem(group: str, value: object, plainly: str) -> Problem:
    return Problem(f"{group}.name", "an option is chosen by its group", got=repr(value), hint=f"write {plainly}")


def _job_problems(file: YamlFile) -> list[Problem]:
    from dml_runner.config.source import hydra_problems
    from dml_runner.validation.keys import groups

    shown, defaults = str(file.path), file.content.get("defaults")
    problems = list(hydra_problems(file))
    if file.content.get(plugins.KEY) is not None:
        hint = f"type {plugins.KEY}=... on the command line"
        problems.append(Problem(shown, "plugins stand on the command line only: a file never loads code", hint=hint))
    if defaults is not None and not isinstance(defaults, list):
        return [*problems, Problem(shown, "defaults must be a list", hint=EXAMPLE)]
    if "config" not in (defaults or []):
        return [*problems, Problem(shown, "a job file needs config in its defaults", hint=EXAMPLE)]
    for entry in defaults or []:
        for key, option in entry.items() if isinstance(entry, dict) else ():
            *_, group = key.split()
            known = folders.has(group, option, file.path)
            options = folders.options(group, file.path)
            if group in groups() and "override" not in key.split():
                got = f"{group}: {option}"
                problems.append(Problem(shown, "config has this group already", got=got, hint=f"write - override {got}"))
            elif options and "${" not in str(option) and not known:
                problems.append(_no_such_option(group, option, list(options)))
    for group in groups():
        section = file.content.get(group)
        if isinstance(section, dict) and "name" in section:
            problems.append(_name_problem(group, section["name"], f"- override {group}: {section['name']} in defaults"))
    return problems


def reject_file(words: Sequence[str]) -> None:
    """Refuse a job file where there is one already (a run's own job).

    Raises:
        ConfigError: a word names a YAML file.
    """
    path, _ = split(words, [])
    if path is not None:
        raise ConfigError(Problem(str(path), "a job file besides a run folder", allowed="group=option, key=value"))
