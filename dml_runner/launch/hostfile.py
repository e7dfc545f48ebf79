"""The hosts of a job: a file with a line for each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dml_runner.errors import ConfigError, Problem, raise_all

KEY = "launcher.hostfile"
LINE = "HOST slots=N"
_HOST = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9:][A-Za-z0-9:._-]*")
"""A name or an address, with the user there if need be; never what a remote shell could take for an option of its own."""


@dataclass(frozen=True)
class Host:
    """One line.

    Attributes:
        name: what the remote shell is told: a name or an address, with ``user@`` where that was written.
        slots: ranks that it shall have; None: not said.
        line: number of the line.
    """

    name: str
    slots: int | None
    line: int

    @property
    def address(self) -> str:
        """By which the other hosts reach it."""
        return self.name.rpartition("@")[2]


def read_hosts(path: Path) -> tuple[Host, ...]:
    """The hosts of a file: ``HOST slots=N`` a line, ``slots=N`` as one likes, ``#`` before a comment.

    Raises:
        ConfigError: it cannot be read, or every line that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(Problem(KEY, f"cannot be read: {error.strerror}", got=str(path))) from None
    except UnicodeDecodeError:
        raise ConfigError(Problem(KEY, "not a text", got=str(path), allowed=f"lines of {LINE}")) from None
    hosts: dict[str, Host] = {}
    problems: list[Problem] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        found = _host(words, number) if words else None
        if isinstance(found, Host) and found.address in hosts:
            found = f"{found.address} stands in line {hosts[found.address].line} already"
        if isinstance(found, Host):
            hosts[found.address] = found
        elif found is not None:
            problems.append(Problem(f"{path}:{number}", found, got=line.strip(), allowed=LINE))
    if not hosts and not problems:
        problems.append(Problem(KEY, "names no host", got=str(path), allowed=f"lines of {LINE}"))
    raise_all(problems)
    return tuple(hosts.values())


def _host(words: list[str], number: int) -> Host | str:
    """The host of a line, or what is wrong with it."""
    name, slots = words[0], None
    if not _HOST.fullmatch(name):
        return "not the name of a host"
    for word in words[1:]:
        key, _, value = word.partition("=")
        if key != "slots" or slots is not None:
            return f"{word} is not understood"
        if not re.fullmatch(r"[1-9][0-9]{0,5}", value):
            return "slots must be a whole number >= 1"
        slots = int(value)
    return Host(name, slots, number)
