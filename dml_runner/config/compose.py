"""One job's words to its Run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dml_runner import validation
from dml_runner.config import words as words_
from dml_runner.config.words import Words
from dml_runner.errors import ConfigError, Problem, did_you_mean, raise_all
from dml_runner.run import Run
from dml_runner.validation import keys


@dataclass(frozen=True)
class Composed:
    """What the words of one job come to."""

    run: Run
    """The job, validated."""
    tree: dict[str, object]
    """Every key with its value; what comes from the environment is still a ``${oc.env:...}`` reference."""
    notices: tuple[str, ...]
    """What the user should hear: keys of the file that another option does not have."""
    file: Path | None
    """The job file."""
    typed: frozenset[str]
    """Dotted keys that the user set, on the command line or in the job file."""


def compose(words: Sequence[str]) -> Composed:
    """Compose and validate ``[FILE.yaml] [group=option] [key=value] [+key=value] [~key]``.

    Raises:
        ConfigError: everything that is wrong, one line each.
    """
    typed, config, notices, problems = _tree(words)
    run, kept = _validated(config, problems, typed.refused)
    return Composed(run, kept, notices, typed.path, _typed_keys(typed))


def recompose(tree: Mapping[str, object], words: Sequence[str]) -> Composed:
    """Change the tree of an earlier run: a group's new option brings that option's defaults, other keys stay.

    Raises:
        ConfigError: a job file among the words, or as ``compose``.
    """
    from omegaconf import OmegaConf

    words_.reject_file(words)
    typed = words_.sort(words)
    config = OmegaConf.create(dict(tree))
    if typed.choices:
        fresh = _compose(typed, typed.hydra_words)
        for group in typed.choices:
            if group in fresh:
                config[group] = fresh[group]
            else:
                config.pop(group, None)
    problems = [*typed.problems, *_apply(config, typed.values)]
    run, kept = _validated(config, problems, typed.refused)
    return Composed(run, kept, (), None, _typed_keys(typed))


def show_job(words: Sequence[str]) -> str:
    """The composed tree with all defaults as YAML; ``???`` and interpolations as they are, values not checked.

    Raises:
        ConfigError: an option or a key does not exist, or a file is refused.
    """
    from omegaconf import OmegaConf

    typed, config, _, problems = _tree(words)
    unknown = validation.unknown_keys(_plain(config))
    raise_all([*problems, *(each for each in unknown if each.key.split(".")[0] not in typed.refused)])
    if typed.plugins:
        config.plugins = list(typed.plugins)
    return OmegaConf.to_yaml(config, resolve=False)


def show_defaults(words: Sequence[str]) -> str:
    """The chosen option of every group with the file it comes from, in the order they are merged.

    Raises:
        ConfigError: an option does not exist, or a file is refused.
    """
    from dml_runner.config.source import JOB, Loader

    typed = words_.sort(words)
    raise_all(typed.problems)
    rows = []
    for group, option, file in Loader(typed.path).defaults(typed.hydra_words):
        rows.append((group or "-", "job" if option == JOB else option, file))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{group:<{widths[0]}}  {option:<{widths[1]}}  {file}" for group, option, file in rows) + "\n"


def _typed_keys(typed: Words) -> frozenset[str]:
    found = {str(override.key_or_group) for override in typed.values}
    for group, section in (typed.file.content if typed.file else {}).items():
        found |= {f"{group}.{key}" for key in section} if isinstance(section, dict) else {str(group)}
    return frozenset(found)


def _tree(words: Sequence[str]) -> tuple[Words, Any, tuple[str, ...], list[Problem]]:
    """The composed tree before it is resolved, with notices and the problems so far."""
    typed = words_.sort(words)
    config = _compose(typed, typed.hydra_words)
    notices = _drop(typed, config)
    return typed, config, notices, [*typed.problems, *_apply(config, typed.values)]


def _plain(config: Any) -> dict[str, object]:
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _compose(typed: Words, choices: Sequence[str]) -> Any:
    from dml_runner.config.source import Loader

    try:
        return Loader(typed.path).compose(choices)
    except ConfigError as error:
        raise ConfigError(*typed.problems, *error.problems) from None


def _validated(config: Any, problems: list[Problem], refused: set[str]) -> tuple[Run, dict[str, object]]:
    resolved = validation.resolve(config)
    run, found = validation.run_or_problems(resolved.values, resolved.secret_keys, {*refused, *resolved.broken})
    raise_all([*problems, *resolved.problems, *found])
    assert run is not None
    return run, resolved.kept


def _drop(typed: Words, config: Any) -> tuple[str, ...]:
    """Remove the file's keys that another option, picked on the command line, does not have."""
    content = typed.file.content if typed.file else {}
    notices = []
    before: Any = None
    for group, classes in keys.groups().items():
        section = content.get(group)
        if group not in typed.choices or not isinstance(section, dict) or group not in config or config[group] is None:
            continue
        new = keys.chosen(classes, config[group])
        extra = [key for key in section if new is not None and key not in new.model_fields]
        if not extra:
            continue
        before = before if before is not None else _compose(typed, [])
        old = keys.chosen(classes, before[group])
        dropped = [key for key in extra if old is not None and key in old.model_fields]
        for key in dropped:
            config[group].pop(key)
        if dropped:
            notices.append(f"{group}={typed.choices[group].value()}: dropped {', '.join(dropped)} (of {before[group]['name']})")
    return tuple(notices)


def _apply(config: Any, overrides: Sequence[Any]) -> list[Problem]:
    """Set and remove single keys; unknown ones are set too, and found by validation with all the others."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    problems = []
    for override in overrides:
        key = override.key_or_group
        parent, _, leaf = key.rpartition(".")
        try:
            if not override.is_delete():
                OmegaConf.update(config, key, override.value(), merge=True, force_add=True)
                continue
            node = OmegaConf.select(config, parent) if parent else config
            if OmegaConf.is_dict(node) and leaf in node:
                node.pop(leaf)
            else:
                hint = did_you_mean(key, keys.known(_plain(config)))
                problems.append(Problem(key, "no such key to remove", hint=hint))
        except OmegaConfBaseException:
            problems.append(Problem(key, "cannot be set", got=repr(override.input_line), hint="see a key's place with --cfg job"))
    return problems
