"""The elastic agent that starts one generation of ranks on this machine and ends it as a whole."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

from dml_runner.launch.hang import Hang, find_hang
from dml_runner.launch.rendezvous import LoopbackStore, OneGeneration
from dml_runner.launch.signals import Wish
from dml_runner.pulse import Listener

POLL_S = 0.05


@dataclass
class Ending:
    """How a generation ended.

    Attributes:
        succeeded: every rank came to its end.
        reason: what the ranks returned then, the highest.
        exits: exit code of each rank that ended by itself otherwise (negative: killed by that signal).
        hang: the hang that the generation was ended for, if it was.
        steps: the step each rank began last.
    """

    succeeded: bool = False
    reason: int = 0
    exits: dict[int, int] = field(default_factory=dict)
    hang: Hang | None = None
    steps: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Watch:
    """What an agent watches beside its processes: the user's wish, the ranks' pulse, and the files their stacks go to."""

    wish: Wish
    listener: Listener
    stacks: tuple[Path, ...]


class Agent(LocalElasticAgent):
    """Torch's agent, with three habits of its own.

    Survivors of a dead rank are killed at once: they have nothing to save, and SIGTERM is the user's word. A rank that
    leaves early without an error counts as dead. Silence is noticed by the ranks' pulse.
    """

    def __init__(self, spec: WorkerSpec, watch: Watch) -> None:
        super().__init__(spec, DefaultLogsSpecs(), start_method="forkserver", exit_barrier_timeout=0)
        self.ending = Ending()
        self._wish = watch.wish
        self._listener = watch.listener
        self._stacks = watch.stacks

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        started: dict[int, Any] = super()._start_workers(worker_group)
        self._wish.pids = self._live_pids
        self._wish.install()
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        dead = {rank: code for rank, code in enumerate(self._exit_codes()) if code is not None}
        if not dead:
            self.ending.hang = find_hang(self._listener, self._pids_by_rank(), self._stacks)
        if dead or self.ending.hang:
            self.ending.exits = dead
            self._kill_all()
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    def _processes(self) -> list[Any]:
        context = getattr(self._pcontext, "_pc", None)
        return list(context.processes) if context is not None else []

    def _exit_codes(self) -> list[int | None]:
        return [process.exitcode for process in self._processes()]

    def _live_pids(self) -> list[int]:
        return [process.pid for process in self._processes() if process.exitcode is None]

    def _pids_by_rank(self) -> list[int]:
        return [process.pid for process in self._processes()]

    def _kill_all(self) -> None:
        self.ending.steps = [beat.step for beat in self._listener.beats()]
        for pid in self._live_pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _exit_barrier(self) -> None:
        """There is no other agent to wait for."""

    def _shutdown(self, death_sig: signal.Signals = signal.SIGKILL, timeout: int = 5) -> None:
        super()._shutdown(signal.SIGKILL, timeout)


def run_generation(entry: Callable[[Any], int], ticket: Any, ranks: int, number: int, meeting: LoopbackStore, watch: Watch) -> Ending:
    """Start ``ranks`` processes that call ``entry(ticket)``, and wait until all have ended."""
    for noisy in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    spec = WorkerSpec(
        role="worker",
        local_world_size=ranks,
        entrypoint=entry,
        args=(ticket,),
        rdzv_handler=OneGeneration(meeting, number),
        max_restarts=0,
        monitor_interval=POLL_S,
    )
    agent = Agent(spec, watch)
    result = agent.run()
    agent.ending.succeeded = not result.is_failed()
    agent.ending.reason = max(result.return_values.values(), default=0)
    return agent.ending
