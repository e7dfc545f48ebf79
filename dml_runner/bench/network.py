"""Hosts with real links on one machine: a network namespace each, joined by a switch, at a rate we set.

A host's link is a veth pair: ``eth0`` in the host, a port of a bridge at the other end. A token bucket (``tc`` tbf) stands at both
ends, so a host sends at the rate and receives at the rate, both at once. The bridge has a namespace to itself: the machine's own
network never sees any of it. Needs root, and ``ip`` and ``tc`` (Debian: iproute2).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from dml_runner.bench.processes import ended_by_sigterm
from dml_runner.errors import LaunchError, Problem

INTERFACE = "eth0"
"""A host's link, by its name inside the host."""
SUBNET = "198.18.0"
"""Of the addresses set apart for measurements of networks (RFC 2544, section C.2.2)."""
MOST_HOSTS = 250
BURST_S, QUEUE_S = 0.002, 0.05
"""Seconds of the rate that may pass at once after a silence, and that a port holds before it drops."""
LEAST_BURST, LEAST_QUEUE = 16_000, 1_000_000
"""The same in bytes, at least: a few packets, and the windows of several senders to one host."""
ETHERNET_MTU, JUMBO_MTU = 1500, 9000
"""Bytes of the largest IP packet: of Ethernet as it comes, and as clusters set it, the most a link here takes."""
PREFIX = "dml-"
_labs = count()


@dataclass(frozen=True)
class Traffic:
    """Bytes that a host's link carried since it was made, Ethernet headers included.

    Attributes:
        sent: by the host.
        received: by the host.
    """

    sent: int
    received: int

    def since(self, before: Traffic) -> Traffic:
        """What came after ``before``."""
        return Traffic(self.sent - before.sent, self.received - before.received)


@dataclass(frozen=True)
class Host:
    """One host of a laboratory.

    Attributes:
        number: 0 to hosts - 1.
        namespace: its network namespace.
        address: IPv4 address of its link.
    """

    number: int
    namespace: str
    address: str

    def command(self, argv: Sequence[str]) -> list[str]:
        """``argv``, to run on this host. The process keeps its id, so a signal to it reaches the program itself."""
        return ["ip", "netns", "exec", self.namespace, *argv]

    def traffic(self) -> Traffic:
        """What its link carried."""
        found: list[dict[str, Any]] = json.loads(_run("ip", "-n", self.namespace, "-s", "-j", "link", "show", INTERFACE))
        counted = found[0]["stats64"]
        return Traffic(counted["tx"]["bytes"], counted["rx"]["bytes"])


@dataclass(frozen=True)
class Lab:
    """Hosts on one switch.

    Attributes:
        mbit: rate of every link in each direction, in 10^6 bits a second; headers use a share of it (about 4 % of full packets).
        hosts: in order.
    """

    mbit: float
    hosts: tuple[Host, ...]
    _switch: str = field(repr=False)

    @property
    def bytes_per_s(self) -> float:
        """Rate of a link in bytes a second."""
        return self.mbit * 1e6 / 8

    def cut(self, host: Host) -> None:
        """Pull the cable of a host: what it sends and what is sent to it is lost, and nobody is told."""
        _run("ip", "-n", self._switch, "link", "set", _port(host.number), "down")

    def mend(self, host: Host) -> None:
        """Put the cable back."""
        _run("ip", "-n", self._switch, "link", "set", _port(host.number), "up")

    def traffic(self) -> list[Traffic]:
        """What the link of each host carried."""
        return [host.traffic() for host in self.hosts]


@cache
def possible() -> str | None:
    """Why this machine and user cannot have hosts; None: they can. The answer is found by making one link."""
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not installed; on Debian: apt-get install iproute2"
    if os.geteuid() != 0:
        return "needs root, which network namespaces are made with; try again with sudo"
    name = f"{_mine()}probe"
    try:
        _build(name, f"{name}-switch", 0, 100.0, ETHERNET_MTU, fresh_switch=True)
    except LaunchError as error:
        return f"this kernel or container refuses: {error.problems[0].what}"
    finally:
        _remove([name, f"{name}-switch"])
    return None


@contextmanager
def lab(hosts: int, mbit: float, delay_s: float = 0.0, mtu: int = ETHERNET_MTU) -> Iterator[Lab]:
    """``hosts`` hosts with links of ``mbit``, whose switch holds each packet ``delay_s``; all of it is gone afterwards, processes too.

    So it is after an error, Ctrl-C or SIGTERM (which ends the command with code 143). What processes that are dead left behind is
    removed on the way in.

    Raises:
        LaunchError: this machine or user cannot have hosts.
    """
    if reason := possible():
        raise LaunchError(Problem("network", "hosts cannot be made on this machine", hint=reason))
    assert 1 <= hosts <= MOST_HOSTS
    assert mbit > 0
    assert mtu <= JUMBO_MTU
    sweep()
    mine = f"{_mine()}{next(_labs)}"
    switch = f"{mine}-switch"
    names = [f"{mine}-h{number}" for number in range(hosts)]
    holding: list[subprocess.Popen[bytes]] = []
    with ended_by_sigterm():
        try:
            for number, name in enumerate(names):
                _build(name, switch, number, mbit, mtu, fresh_switch=number == 0)
            if delay_s:
                holding.append(_hold(switch, hosts, delay_s))
            made = tuple(Host(number, name, _address(number)) for number, name in enumerate(names))
            yield Lab(mbit, made, switch)
        finally:
            with _undisturbed():
                _remove([*names, switch])
                for process in holding:
                    process.wait()


def sweep() -> None:
    """Remove the hosts of commands that are dead."""
    left = []
    for name in _namespaces():
        parts = name.split("-")
        if name.startswith(PREFIX) and len(parts) > 3 and parts[1].isdigit() and _started(int(parts[1])) != parts[2]:
            left.append(name)
    _remove(left)


def _build(name: str, switch: str, number: int, mbit: float, mtu: int, fresh_switch: bool) -> None:
    """Make one host and its link, and before the first one the switch."""
    port, rate = _port(number), mbit * 1e6 / 8
    burst, queue = max(LEAST_BURST, int(rate * BURST_S)), max(LEAST_QUEUE, int(rate * QUEUE_S))
    shape = ["root", "tbf", "rate", f"{mbit}mbit", "burst", str(burst), "limit", str(queue)]
    if fresh_switch:
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "switch", "up")
    _run("ip", "netns", "add", name)
    _run("ip", "-n", name, "link", "set", "lo", "up")
    size = ["mtu", str(mtu)]
    _run("ip", "-n", name, "link", "add", INTERFACE, *size, "type", "veth", "peer", "name", port, *size, "netns", switch)
    _run("ip", "-n", name, "addr", "add", f"{_address(number)}/24", "dev", INTERFACE)
    _run("tc", "-n", name, "qdisc", "add", "dev", INTERFACE, *shape)
    _run("tc", "-n", switch, "qdisc", "add", "dev", port, *shape)
    _run("ip", "-n", switch, "link", "set", port, "master", "switch", "up")
    _run("ip", "-n", name, "link", "set", INTERFACE, "up")


def headers(mtu: int) -> float:
    """The part of a full packet that is headers: 14 bytes of Ethernet, 20 of IPv4, 20 of TCP and 12 of its timestamps."""
    return 66 / (mtu + 14)


def _hold(switch: str, hosts: int, delay_s: float) -> subprocess.Popen[bytes]:
    """Have a process switch the packets of ``hosts`` ports instead of the bridge; it ends with its namespace, or with this process.

    Raises:
        LaunchError: it does not start.
    """
    ports = [_port(number) for number in range(hosts)]
    for port in ports:
        _run("ip", "-n", switch, "link", "set", port, "nomaster")
    words = [sys.executable, "-m", "dml_runner.bench.delay", str(os.getpid()), str(delay_s), *ports]
    command = ["ip", "netns", "exec", switch, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        if process.stdout.readline() == b"ready\n":
            return process
        said = process.stderr.read().decode(errors="replace").strip().splitlines()
    process.wait()
    raise LaunchError(Problem("network", f"the switch that holds packets did not start: {said[-1] if said else 'no word'}"))


def _remove(names: Sequence[str]) -> None:
    """End the processes in namespaces and remove those; what is gone already is no error."""
    standing = set(_namespaces())
    for name in (name for name in names if name in standing):
        with suppress(LaunchError):
            for pid in _run("ip", "netns", "pids", name).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _run("ip", "netns", "del", name)


def _namespaces() -> list[str]:
    folder = Path("/run/netns")
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _mine() -> str:
    """How the names of this process's namespaces begin: its id, and when it started, as ids are used again."""
    return f"{PREFIX}{os.getpid()}-{_started(os.getpid())}-"


def _started(pid: int) -> str | None:
    """When a process started, in ticks since the machine did (proc(5), stat, field 22); None: there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _port(number: int) -> str:
    return f"h{number}"


def _address(number: int) -> str:
    return f"{SUBNET}.{number + 1}"


def _run(*argv: str) -> str:
    """What a command prints.

    Raises:
        LaunchError: it fails.
    """
    # a session of its own: Ctrl-C in the terminal is not for it
    done = subprocess.run(argv, capture_output=True, text=True, start_new_session=True)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        raise LaunchError(Problem("network", f"{' '.join(argv)}: {said}"))
    return done.stdout


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
