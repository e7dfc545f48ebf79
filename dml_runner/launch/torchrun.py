"""`launcher=torchrun`: torchrun on this machine or, through a remote shell, on every host of a hostfile."""

from __future__ import annotations

import os
import queue
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dml_runner.errors import ConfigError, Diverged, DmlError, LaunchError, PlanError, Problem, RunFailed
from dml_runner.generation import read_generation_file
from dml_runner.launch.failure import explain
from dml_runner.launch.hostfile import KEY
from dml_runner.launch.keeper import Order
from dml_runner.launch.line import Heard, Line
from dml_runner.launch.nodes import Node, arrange
from dml_runner.launch.request import Request
from dml_runner.launch.signals import Wish, handlers_kept
from dml_runner.loops.stop import Reason
from dml_runner.run_folder import RunFolder
from dml_runner.schema.launcher import Torchrun

SHELL = "DML_REMOTE_SHELL"
"""Variable with the words that run a command on another host when the host and the command are put after them."""
SSH = "ssh -o BatchMode=yes -o ServerAliveInterval=15"
"""It asks nothing, and notices within a minute that a host is gone."""
PORT = 29500
GRACE_S = 5.0
"""Seconds that the other hosts have to end by themselves once the ranks of one have failed, and again once they were killed."""
EARLY = {128 + signal.SIGTERM: Reason.TERMINATED, 128 + signal.SIGINT: Reason.INTERRUPTED}
"""Exit codes of ranks that saved because they were asked to."""
POLL_S, MOMENT_S = 0.1, 0.5
_REFERENCE = re.compile(r"\$\{oc\.env:\s*([A-Za-z_]\w*)")


def train(request: Request, words: Sequence[str], began: float) -> tuple[Reason, RunFolder]:
    """Train the job of ``words`` on the hosts of its launcher's words; why it ended early, if it did, and its folder.

    Args:
        request: what the words say.
        words: as they were typed: the ranks read them again.
        began: when the command began, in seconds since 1970.

    Raises:
        LaunchError: a host did not come, or the hosts are others than was typed.
        DmlError: the ranks were refused or failed; they have said why.
    """
    launcher = request.run.launcher
    assert isinstance(launcher, Torchrun)
    nodes = arrange(request.run, None if launcher.hostfile is None else Path(launcher.hostfile), request.composed.typed)
    orders = _orders(request, launcher, nodes, words)
    if launcher.print:
        print("\n".join(_shown(request, launcher, node, order) for node, order in zip(nodes, orders, strict=True)))
        return Reason.NONE, RunFolder(Path(request.run.outputs))
    hosts = Hosts(launcher, nodes, orders)
    try:
        with handlers_kept():
            return hosts.run()
    except DmlError as error:
        if error.exit_code >= RunFailed.exit_code:
            _note(hosts.folder, began, error)
        raise


def _note(folder: RunFolder, began: float, error: DmlError) -> None:
    """Write down that a run failed, where its folder is seen from here."""
    from dml_runner.summary import failed

    with suppress(OSError, ConfigError):
        last = read_generation_file(folder.generation(folder.next_generation() - 1))
        if last.began >= began:
            failed(folder, last.layout, time.time() - began, error)


class Hosts:
    """A line to each host; hears how far each is, and passes on what the user wishes.

    Attributes:
        folder: the run's, once a host has told.
    """

    def __init__(self, launcher: Torchrun, nodes: Sequence[Node], orders: Sequence[Order]) -> None:
        self._launcher, self._nodes, self._orders = launcher, nodes, orders
        self._events: queue.Queue[Heard] = queue.Queue()
        self._lines: list[Line] = []
        self._reached: set[int] = set()
        self._unreached: dict[int, str] = {}
        self._codes: dict[int, int] = {}
        self._problems: list[Problem] = []
        self.folder = RunFolder(Path(os.devnull))
        self._wish = Wish()
        self._asked = Reason.NONE

    def run(self) -> tuple[Reason, RunFolder]:
        """Until all hosts have ended, or one failed and the others had their time."""
        self._wish.install()
        began = time.monotonic()
        try:
            for number, node in enumerate(self._nodes):
                self._lines.append(Line(number, _remote(node), self._orders[number].text(), self._events))
            while len(self._reached) < len(self._nodes):
                self._look()
                if self._asked is not Reason.NONE:  # no rank starts before all hosts are there
                    return self._asked, self.folder
                if self._problems or time.monotonic() > began + self._launcher.wait_s:
                    raise self._missing()
            self._wait()
        finally:
            for line in self._lines:
                line.hang_up()
            for line in self._lines:
                line.end()
        return self._ending(), self.folder

    def _wait(self) -> None:
        """Until all hosts have ended; where the ranks of one fail, those of the others are killed a moment later."""
        failed: float | None = None
        killed = False
        while len(self._codes) < len(self._nodes):
            self._look()
            now = time.monotonic()
            if failed is None and any(code and code not in EARLY for code in self._codes.values()):
                failed = now
            if failed is not None and not killed and now > failed + GRACE_S:
                killed = True
                for line in self._lines:
                    line.say("KILL")
            if failed is not None and now > failed + 2 * GRACE_S:
                return

    def _look(self) -> None:
        """Hear one word, if there is one, and pass a new wish on."""
        if self._wish.reason > self._asked:
            self._asked = self._wish.reason
            for line in self._lines:
                line.say("INT" if self._asked is Reason.INTERRUPTED else "TERM")
        try:
            heard = self._events.get(timeout=POLL_S)
        except queue.Empty:
            return
        word = heard.word
        if word.get("reached"):
            self._reached.add(heard.node)
        if "unreached" in word:
            self._unreached[heard.node] = str(word["unreached"])
        self._problems += [Problem(**each) for each in word.get("problems", ())]
        if "folder" in word:
            self.folder = RunFolder(Path(word["folder"]))
        if "ended" in word:
            self._codes.setdefault(heard.node, int(word["ended"]))
            self._reached.update([heard.node] if word["ended"] != LaunchError.exit_code else [])
        if "gone" in word and heard.node not in self._codes:
            self._lost(heard.node, str(word["gone"]))

    def _lost(self, number: int, said: str) -> None:
        """The line to a host broke."""
        name = self._nodes[number].name
        self._codes[number] = RunFailed.exit_code if number in self._reached else LaunchError.exit_code
        what = f"the line to host {name} broke" if number in self._reached else f"host {name} did not come"
        self._problems.append(Problem(KEY, f"{what}: {said}"))

    def _missing(self) -> LaunchError:
        """Who is not there, by name."""
        if self._problems:  # others may have their own, a moment later
            ends = time.monotonic() + MOMENT_S
            while time.monotonic() < ends:
                self._look()
            return LaunchError(*self._problems)
        within = f"within {self._launcher.wait_s:g} s (launcher.wait_s)"
        away = [self._nodes[line.number].name for line in self._lines if not line.came]
        if away:
            return LaunchError(*(Problem(KEY, f"host {name} did not come {within}") for name in away))
        host, port = self._orders[0].first
        found = []
        for number, node in enumerate(self._nodes):
            if number not in self._reached:
                what = f"host {node.name} does not reach {host}:{port}, where the first host listens, {within}"
                found.append(Problem(KEY, f"{what}: {self._unreached.get(number, 'no answer')}"))
        return LaunchError(*found)

    def _ending(self) -> Reason:
        """Why the run ended early, if it did.

        Raises:
            DmlError: it failed.
        """
        code = next((code for code in self._codes.values() if code and code not in EARLY), 0)
        if code:
            kind = next((kind for kind in (ConfigError, PlanError, LaunchError, Diverged) if kind.exit_code == code), RunFailed)
            raise kind(*self._problems, *self._lost_peers())
        return max((EARLY[code] for code in self._codes.values() if code), default=Reason.NONE)

    def _lost_peers(self) -> list[Problem]:
        """What ranks recorded and did not say, where it is all that is known: that they lost others."""
        if self._problems or not self.folder.path.is_dir():
            return []
        ranks = sum(node.ranks for node in self._nodes)
        causes = explain(self.folder, ranks, {}, [0] * ranks, self.folder.path)
        if not causes or not causes[0].lost_peer:
            return []
        return [Problem("", f"rank {cause.rank}: {cause.text.splitlines()[0]}") for cause in causes]


def _orders(request: Request, launcher: Torchrun, nodes: Sequence[Node], words: Sequence[str]) -> list[Order]:
    first = nodes[0].address
    port = launcher.port or (_free_port() if len(nodes) == 1 else PORT)
    own = [word for word in words if not word.startswith("launcher.print=")]
    environment = {**_referenced(request.composed.tree), **launcher.env}
    orders = []
    for number, node in enumerate(nodes):
        torchrun = [f"--nnodes={len(nodes)}", f"--node-rank={number}", f"--nproc-per-node={node.ranks}"]
        torchrun += [f"--master-addr={first}", f"--master-port={port}", f"--rdzv-conf=timeout={max(1, round(launcher.wait_s))}"]
        towards = nodes[1].address if number == 0 and len(nodes) > 1 else first
        orders.append(
            Order(
                host=node.name,
                folder=os.getcwd(),
                environment=environment,
                torchrun=(*torchrun, "-m", "dml_runner", "train", *own),
                node=number,
                first=(first, port),
                towards=towards,
                interface=launcher.interface,
            )
        )
    return orders


def _referenced(tree: Mapping[str, object]) -> dict[str, str]:
    """The variables that a job's words refer to: every rank reads them again."""
    return {name: os.environ[name] for name in _REFERENCE.findall(repr(tree)) if name in os.environ}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _remote(node: Node) -> list[str]:
    """The command that starts a keeper on a host."""
    keeper = [sys.executable, "-m", "dml_runner.launch.keeper"]
    return keeper if node.is_here else [*_shell(), node.name, *keeper]


def _shell() -> list[str]:
    return shlex.split(os.environ.get(SHELL, SSH))


def _shown(request: Request, launcher: Torchrun, node: Node, order: Order) -> str:
    """A host's command, for people: what comes from the environment stays the name of its variable."""
    kept = request.composed.tree["launcher"]
    assert isinstance(kept, dict)
    variables = [f"{name}={_safe(str(kept['env'][name]), value)}" for name, value in launcher.env.items()]
    if launcher.interface is not None:
        variables += [f"{name}={shlex.quote(launcher.interface)}" for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")]
    environment = f"env {' '.join(variables)} " if variables else ""
    command = environment + shlex.join([sys.executable, "-m", "torch.distributed.run", *order.torchrun])
    if node.is_here:
        return command
    return shlex.join([*_shell(), node.name, f"cd {shlex.quote(order.folder)} && {command}"])


def _safe(kept: str, value: str) -> str:
    if "${" not in kept:
        return shlex.quote(value)
    whole = re.fullmatch(r"\$\{oc\.env:\s*([A-Za-z_]\w*)\s*\}", kept)
    return f'"${whole[1]}"' if whole else shlex.quote(kept)
