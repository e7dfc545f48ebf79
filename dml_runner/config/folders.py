"""Where options are found: in the package's conf/, in one beside the job file, in the current folder's, and in what is loaded."""

from __future__ import annotations

import re
from pathlib import Path

from dml_runner import plugins
from dml_runner.errors import DmlError
from dml_runner.schema.base import Section


def conf_folder() -> Path:
    """The conf/ that ships with dml_runner: beside the package in a checkout, inside it once installed.

    Raises:
        DmlError: the installation has none.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise DmlError(f"the installation is incomplete: no conf/config.yaml in {package} or beside it")


def conf_folders(file: Path | None = None) -> list[Path]:
    """The folders that are searched for options, first wins: the package's own, the job file's, the current one, those of plugins."""
    candidates = [conf_folder(), *([file.resolve().parent / "conf"] if file else []), Path.cwd() / "conf", *plugins.folders()]
    found: dict[Path, None] = {}
    for folder in candidates:
        if folder.is_dir():
            found.setdefault(folder.resolve())
    return list(found)


def groups(file: Path | None = None) -> list[str]:
    """The names of all groups that have options, by name."""
    return sorted({path.parent.name for folder in conf_folders(file) for path in folder.glob("*/*.yaml")})


def options(group: str, file: Path | None = None) -> dict[str, Path | type[Section]]:
    """Option -> its YAML file, or the class of keys of a plugin that has none; by name, and empty for a group that does not exist."""
    found: dict[str, Path | type[Section]] = {}
    if not re.fullmatch(r"[\w-]+(/[\w-]+)*", group):
        return found
    for folder in conf_folders(file):
        for path in (folder / group).glob("*.yaml"):
            found.setdefault(path.stem, path)
    return dict(sorted((plugins.options(group) | found).items()))


def has(group: str, option: object, file: Path | None = None) -> bool:
    """Whether a group has an option, be it that of an installed package, which is loaded then.

    Raises:
        ConfigError: the package fails.
    """
    return isinstance(option, str) and (option in options(group, file) or plugins.find(group, option))
