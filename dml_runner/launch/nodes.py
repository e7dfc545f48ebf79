"""Which hosts a job under torchrun runs on, and how many ranks each has."""

from __future__ import annotations

import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from dml_runner.errors import LaunchError, Problem, raise_all
from dml_runner.hardware.detect import detect
from dml_runner.launch.given import Beside, ranks_beside
from dml_runner.launch.hostfile import KEY, Host, read_hosts
from dml_runner.run import Run

LOOPBACK = "127.0.0.1"
HERE = ("localhost", LOOPBACK, "::1")


@dataclass(frozen=True)
class Node:
    """One host of a job.

    Attributes:
        name: what the remote shell is told.
        address: by which the other hosts reach it.
        ranks: how many it has.
    """

    name: str
    address: str
    ranks: int

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, which needs no remote shell."""
        return self.name in (*HERE, socket.gethostname())


def arrange(run: Run, hostfile: Path | None, typed: Collection[str]) -> tuple[Node, ...]:
    """The hosts of a job in the order of their ranks: workers' first, then those of servers or helpers; one host alone has all.

    Args:
        run: the job.
        hostfile: its hosts; None: this machine.
        typed: dotted keys that the user set; what the hosts say wins over keys that were not.

    Raises:
        ConfigError: the hostfile is wrong.
        LaunchError: the hosts are others than was typed, or cannot be shared out.
    """
    beside = ranks_beside(run.strategy)
    if hostfile is None:
        if run.hardware.nodes != 1:
            what = "launcher=torchrun without a hostfile has this machine alone"
            raise LaunchError(Problem("hardware.nodes", what, got=str(run.hardware.nodes), allowed="1", hint=f"name the hosts: {KEY}=FILE"))
        return (Node(socket.gethostname(), LOOPBACK, _devices(run) + beside.ranks),)
    hosts = read_hosts(hostfile)
    if len(hosts) == 1:
        workers = _devices(run) if hosts[0].slots is None or run.strategy.name == "single" else hosts[0].slots - beside.ranks
        if workers < 1:
            what = f"{beside.ranks} {beside.called} leave no worker"
            raise LaunchError(Problem(beside.key, what, got=f"slots={hosts[0].slots} in {hostfile}"))
        _agree(run, typed, 1, workers, hostfile)
        return (Node(hosts[0].name, hosts[0].address, workers + beside.ranks),)
    return _several(run, hosts, hostfile, typed, beside)


def _several(run: Run, hosts: Sequence[Host], hostfile: Path, typed: Collection[str], beside: Beside) -> tuple[Node, ...]:
    if run.strategy.name == "single":
        what = f"strategy=single has 1 rank, and {hostfile} {len(hosts)} hosts"
        raise LaunchError(Problem("strategy", what, hint="choose a strategy that uses them (strategy=all_reduce)"))
    first = _first_beside(hosts, hostfile, beside)
    workers, others = hosts[:first], hosts[first:]
    slots = {_devices(run) if host.slots is None else host.slots for host in workers}
    if len(slots) > 1:
        said = ", ".join(f"{host.name} {_devices(run) if host.slots is None else host.slots}" for host in workers)
        raise LaunchError(Problem(str(hostfile), "hosts of workers must have as many slots each", got=said))
    (each,) = slots
    _agree(run, typed, len(workers), each, hostfile)
    nodes = [Node(host.name, host.address, each) for host in workers]
    return (*nodes, *(Node(host.name, host.address, host.slots or 1) for host in others))


def _first_beside(hosts: Sequence[Host], hostfile: Path, beside: Beside) -> int:
    """Number of the first host beside those of workers: the last lines, whose slots add up; a host that says nothing has one."""
    first, slots = len(hosts), 0
    while slots < beside.ranks and first > 1:
        first -= 1
        slots += hosts[first].slots or 1
    if slots != beside.ranks:
        what = f"{beside.ranks} {beside.called} need hosts of their own: the last lines, whose slots add up to {beside.ranks}"
        hint = "or strategy.placement=colocated" if beside.key == "strategy.servers" else None
        raise LaunchError(Problem(beside.key, what, got=f"{len(hosts)} hosts in {hostfile}", hint=hint))
    return first


def _devices(run: Run) -> int:
    """Workers of a host that says nothing of slots: as many as was typed, or as this machine has devices."""
    return 1 if run.strategy.name == "single" else detect(run.hardware).devices_per_node


def _agree(run: Run, typed: Collection[str], nodes: int, per_node: int, hostfile: Path) -> None:
    """Hosts win over what was not typed; ``strategy=single`` uses one device whatever was typed."""
    problems = []
    if "hardware.nodes" in typed and run.hardware.nodes != nodes:
        what = f"{hostfile} has {nodes} host(s) of workers"
        problems.append(Problem("hardware.nodes", what, got=str(run.hardware.nodes), hint="leave it out, or name as many"))
    asked = run.hardware.devices_per_node
    if "hardware.devices_per_node" in typed and asked is not None and asked != per_node and run.strategy.name != "single":
        what = f"{hostfile} gives each host {per_node}"
        problems.append(Problem("hardware.devices_per_node", what, got=str(asked), hint="leave it out, or give slots=N as many"))
    raise_all(problems, LaunchError)
