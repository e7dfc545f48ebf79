"""Who starts the ranks."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from dml_runner.schema.base import Name, Positive, Section

Port = Annotated[int, Field(ge=1, le=65535)]
_OURS = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE|WORLD_NAME|NAME)|MASTER_(ADDR|PORT)|(GLOO|NCCL)_SOCKET_IFNAME|(TORCHELASTIC|DML)_.*"
)
_CODE = re.compile(r"(LD|DYLD|GIT|PYTHON)_?.*|PATH|HOME|SHELL|ENV|BASH_ENV|CC|CXX|.*_PLUGIN")


def _variables(value: Any) -> Any:
    """Texts by the name of their variable; a whole number is as good as its text.

    Raises:
        ValueError: a name is none, is set by the launcher itself, or decides which code runs, which no job file may; or a value is no text.
    """
    if not isinstance(value, dict):
        return value
    for name, text in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise ValueError(f"{name!r} is no name of an environment variable")
        if _OURS.fullmatch(name):
            raise ValueError(f"{name} is set by the launcher itself")
        if _CODE.fullmatch(name):
            raise ValueError(f"{name} decides which code runs, so no job can set it: export it where the ranks start")
        if isinstance(text, bool) or not isinstance(text, str | int) or "\0" in str(text):
            raise ValueError(f"{name} must be text or a whole number")
    return {name: str(text) for name, text in value.items()}


class LauncherWords(Section):
    """Keys that every launcher has; under torchrun or deepspeed started by hand, `dml train` joins the ranks it finds."""

    hang_floor_s: Positive
    """Seconds without progress, beside three times the median step, after which a rank hangs; ``local`` starts all again then."""


class Local(LauncherWords):
    """`dml train` starts the ranks itself, on this machine."""

    name: Literal["local"]
    """The launcher."""


class Torchrun(LauncherWords):
    """`dml train` has torchrun start the ranks, on this machine or on every host of a hostfile; they share the run folder."""

    name: Literal["torchrun"]
    """The launcher."""
    print: bool
    """Print the command of each host, and do nothing."""
    hostfile: Name | None
    """File with a line ``HOST slots=N`` for each host, rank 0's first, that ssh reaches without a question; null: this machine alone."""
    interface: Name | None
    """Network interface the ranks talk over, by its name on every host; null: on each, the one that leads to the first host."""
    env: Annotated[dict[str, str], BeforeValidator(_variables)]
    """Environment variables of all ranks; a value ``${oc.env:NAME}`` is read here and sent, and is written down nowhere."""
    port: Port | None
    """Where the first host listens; null: 29500, or a free one where there is but one host."""
    wait_s: Positive
    """Seconds within which every host must have come and have reached the first one; those that have not are named."""


Launcher = Annotated[Local | Torchrun, Field(discriminator="name")]
