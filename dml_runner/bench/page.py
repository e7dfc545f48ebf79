"""A table of a measurement in a page of Markdown, between two marks, so that one command renews it and the text around it stays."""

from __future__ import annotations

from pathlib import Path

from dml_runner.errors import ConfigError, Problem
from dml_runner.files import write_atomically


def marks(name: str) -> tuple[str, str]:
    """The lines before and behind the table of the measurement ``name``."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def read_page(given: dict[str, str], name: str, problems: list[Problem]) -> Path | None:
    """The page that the word ``to`` names; one that is there without the marks of ``name`` is a problem. None: no page is asked for."""
    if "to" not in given:
        return None
    page = Path(given["to"]).absolute()
    if not page.parent.is_dir():
        problems.append(Problem("to", "its folder is not there", got=given["to"]))
    elif page.is_dir() or (page.exists() and _divided(page, name) is None):
        problems.append(_without_a_place(given["to"], name))
    return page


def write_page(page: Path, name: str, table: str) -> None:
    """Put ``table`` between the marks of ``name``; a page that is not there is made of it alone.

    Raises:
        ConfigError: the page lost its marks meanwhile.
    """
    begin, end = marks(name)
    around = _divided(page, name) if page.exists() else ("", "")
    if around is None:
        raise ConfigError(
            Problem("to", "is no page with a place for the table", got=str(page), allowed=f"a line {begin}, later a line {end}")
        )
    write_atomically(page, f"{around[0]}{begin}\n{table}{end}\n{around[1]}")


def _without_a_place(page: str, name: str) -> Problem:
    begin, end = marks(name)
    return Problem("to", "is no page with a place for the table", got=page, allowed=f"a line {begin}, later a line {end}")


def _divided(page: Path, name: str) -> tuple[str, str] | None:
    """What stands before and behind the marks; None: they are not there, each once and in order."""
    lines = page.read_text().splitlines(keepends=True)
    places = [[number for number, line in enumerate(lines) if line.strip() == mark] for mark in marks(name)]
    if [len(found) for found in places] != [1, 1] or places[0] > places[1]:
        return None
    return "".join(lines[: places[0][0]]), "".join(lines[places[1][0] + 1 :])
