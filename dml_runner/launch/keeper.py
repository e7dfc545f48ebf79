"""Keeper: runs torchrun on one host for a `dml train` somewhere else, and ends with it.

It is started through a remote shell, which passes no signals on. So it hears what to do as lines on its standard input: first an
``Order``, then wishes. When that input ends, whoever gave the order is gone, and the ranks are killed. It tells how far it is as
lines of JSON on its standard output; what the ranks print goes to the standard error.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from dml_runner.errors import LaunchError, Problem, RunFailed
from dml_runner.launch import interface

KEPT = "DML_KEEPER"
"""Variable of ranks that a keeper has started: the file in which rank 0 leaves the run folder's path."""
WISHES = {"TERM": signal.SIGTERM, "INT": signal.SIGINT, "KILL": signal.SIGKILL}
RETRY_S, CONNECT_S = 0.2, 2.0


@dataclass(frozen=True)
class Order:
    """What a keeper shall do.

    Attributes:
        host: what this host is called where the order comes from.
        folder: where the ranks run.
        environment: variables of the ranks, beside this host's own.
        torchrun: torchrun's words.
        node: number of this host.
        first: address and port of the first host.
        towards: address of another host, to which the interface leads that is chosen where none is named.
        interface: the one that is named.
    """

    host: str
    folder: str
    environment: dict[str, str]
    torchrun: tuple[str, ...]
    node: int
    first: tuple[str, int]
    towards: str
    interface: str | None

    def text(self) -> str:
        """As one line."""
        return json.dumps(asdict(self)) + "\n"


def read_order(line: str) -> Order:
    """The other way of ``Order.text``."""
    found: dict[str, Any] = json.loads(line)
    host, port = found.pop("first")
    return Order(**{**found, "torchrun": tuple(found.pop("torchrun"))}, first=(host, port))


class Keeper:
    """Torchrun on this host, with a line to whoever ordered it."""

    def __init__(self, heard: IO[str], told: IO[str]) -> None:
        self._heard, self._told = heard, told
        self._wished: signal.Signals | None = None
        self._running = False

    def keep(self) -> int:
        """Obey the order that comes first; returns the exit code of the ranks, that of the first one that failed."""
        self._say(came=socket.gethostname())
        order = read_order(self._heard.readline())
        threading.Thread(target=self._listen, name="wishes", daemon=True).start()
        try:
            _enter(order)
            if order.node == 0:
                _refuse_taken_port(order)
            else:
                self._reach(order.first)
            self._say(reached=True)
            code = self._run(order)
        except LaunchError as error:
            self._say(problems=[asdict(problem) for problem in error.problems])
            code = error.exit_code
        self._say(ended=code)
        return code

    def _reach(self, first: tuple[str, int]) -> None:
        """Wait until the first host listens, for as long as this is wished, and tell why it is not reached yet."""
        told = ""
        while True:
            try:
                socket.create_connection(first, timeout=CONNECT_S).close()
                return
            except OSError as error:
                reason = error.strerror or str(error)
            if reason != told:
                self._say(unreached=reason)
                told = reason
            time.sleep(RETRY_S)

    def _run(self, order: Order) -> int:
        from torch.distributed import run
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        for noisy in ("torch.distributed.run", "torch.distributed.elastic"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        with tempfile.TemporaryDirectory(prefix="dml-") as spare:
            found = Path(spare) / "folder"
            os.environ[KEPT] = str(found)
            try:
                self._running = True
                run.run(run.parse_args(order.torchrun))
                return 0
            except ChildFailedError as error:
                rank, failure = error.get_first_failure()
                return self._code(order, rank, failure.exitcode)
            except (RuntimeError, OSError) as error:  # torch's errors of its network are RuntimeErrors
                raise LaunchError(Problem("launcher", f"torchrun failed on host {order.host}: {_line(error)}")) from error
            finally:
                if found.exists():
                    self._say(folder=found.read_text())

    def _code(self, order: Order, rank: int, code: int) -> int:
        """What the command ends with when ``rank`` was the first to end with ``code`` (negative: killed by that signal)."""
        if code >= 0:
            return code
        if self._wished in (signal.SIGTERM, signal.SIGINT):
            return 128 + self._wished
        if self._wished is not None:
            return RunFailed.exit_code
        self._say(problems=[asdict(Problem("", f"rank {rank}, on host {order.host}, was killed by {signal.Signals(-code).name}"))])
        return RunFailed.exit_code

    def _listen(self) -> None:
        """Pass wishes on to the ranks themselves: torchrun would give them half a minute to save, and lose how they ended."""
        for line in self._heard:
            wish = WISHES.get(line.strip())
            if wish is None:
                continue
            self._wished = wish
            if not self._running:
                self._say(ended=128 + wish)
                os._exit(128 + wish)
            threading.Thread(target=_pass_on, args=(wish,), daemon=True).start()
        _send(signal.SIGKILL)
        os._exit(1)

    def _say(self, **word: Any) -> None:
        with suppress(OSError):
            self._told.write(json.dumps(word) + "\n")
            self._told.flush()


def _pass_on(wish: signal.Signals) -> None:
    """Send a wish to the ranks, which may be about to start."""
    while not _send(wish):
        time.sleep(RETRY_S)


def _send(number: signal.Signals) -> bool:
    """Whether there are ranks, which a signal was sent to."""
    ranks = list(children(os.getpid()))
    for pid in ranks:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return bool(ranks)


def children(pid: int) -> Iterator[int]:
    """The processes that ``pid`` started and that have not ended (proc(5), stat, field 4)."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                yield int(folder.name)


def _enter(order: Order) -> None:
    """Stand where the order says, with its environment and its interface.

    Raises:
        LaunchError: there is no such folder or interface.
    """
    try:
        os.chdir(order.folder)
    except OSError as error:
        what = f"host {order.host} does not see the folder that the command was given in: {error.strerror}"
        raise LaunchError(Problem("launcher.hostfile", what, got=order.folder, hint="all hosts must share it")) from error
    os.environ.update(order.environment)
    there = interface.names()
    if order.interface is not None and order.interface not in there:
        what = f"host {order.host} has no such interface"
        raise LaunchError(Problem("launcher.interface", what, got=order.interface, allowed=", ".join(there)))
    found = order.interface or interface.leading_to(order.towards)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if found is not None and (order.interface is not None or name not in os.environ):
            os.environ[name] = found


def _refuse_taken_port(order: Order) -> None:
    try:
        socket.create_server(("", order.first[1])).close()
    except OSError as error:
        what = f"host {order.host} cannot listen there: {os.strerror(error.errno or 0)}"
        raise LaunchError(Problem("launcher.port", what, got=str(order.first[1]), hint="another job may be using it")) from error


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main() -> int:
    """Keep, away from the streams that the ranks inherit."""
    heard, told = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return Keeper(heard, told).keep()


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # the thread that listens would hold the interpreter
