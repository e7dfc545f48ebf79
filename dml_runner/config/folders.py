"""Where options are found: the package's conf/, a conf/ beside the job file, and one in the current folder."""

from __future__ import annotations

import re
from pathlib import Path

from dml_runner.errors import DmlError


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
    """The folders that are searched for options, first wins: the package's own, the job file's, the current one."""
    candidates = [conf_folder(), *([file.resolve().parent / "conf"] if file else []), Path.cwd() / "conf"]
    found: dict[Path, None] = {}
    for folder in candidates:
        if folder.is_dir():
            found.setdefault(folder.resolve())
    return list(found)


def groups(file: Path | None = None) -> list[str]:
    """The names of all groups that have options, by name."""
    return sorted({path.parent.name for folder in conf_folders(file) for path in folder.glob("*/*.yaml")})


def options(group: str, file: Path | None = None) -> dict[str, Path]:
    """Option -> its YAML file, by name; empty for a group that does not exist."""
    found: dict[str, Path] = {}
    if not re.fullmatch(r"[\w-]+(/[\w-]+)*", group):
        return found
    for folder in conf_folders(file):
        for path in (folder / group).glob("*.yaml"):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))
