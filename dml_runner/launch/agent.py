"""The elastic agent that starts one generation of ranks on this machine and ends it as a whole."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

from dml_runner.errors import RunFailed
from dml_runner.launch.hang import Hang, Hangs
from dml_runner.launch.rendezvous import LoopbackStore, OneGeneration
from dml_runner.launch.signals import Wish
from dml_runner.loops.rescue import RESCUE_S
from dml_runner.loops.stop import Reason
from dml_runner.pulse import Listener

POLL_S = 0.05
LATE_S = 5.0
"""Seconds the living get to save what they hold once another one has died meanwhile, for whose part they may be waiting."""
os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "none"  # torch would end the ranks on a signal; ours are asked to save


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
    """What an agent watches beside its processes.

    Attributes:
        wish: what the user wished.
        listener: the ranks' pulse.
        stacks: files the ranks' stacks go to.
        floor_s: seconds a rank may stand still whatever its steps take.
        spare: ranks that may die while the others go on.
        tell: told of each spare rank that died: (rank, exit code, its last step, the hang it was killed for or None).
        rescue: told of the ranks that are dead, so that the others save what they hold of a step; None: they hold nothing.
    """

    wish: Wish
    listener: Listener
    stacks: tuple[Path, ...]
    floor_s: float
    spare: frozenset[int] = frozenset()
    tell: Callable[[int, int, int, Hang | None], None] = lambda *_: None
    rescue: Callable[[Collection[int]], None] | None = None


class Agent(LocalElasticAgent):
    """Torch's agent, with habits of its own.

    Survivors of a dead rank are killed at once, or after ``RESCUE_S`` seconds where they have something to save: SIGTERM is the
    user's word, which is passed on once. A rank that leaves early without an error counts as dead. A spare rank may die, or be
    killed because it hangs, and the others go on. Silence is noticed by the ranks' pulse. Ranks that are done need not know how to
    leave: who is still there after ``floor_s`` seconds is killed, and the run has succeeded.
    """

    def __init__(self, spec: WorkerSpec, watch: Watch) -> None:
        super().__init__(spec, DefaultLogsSpecs(), start_method="forkserver", exit_barrier_timeout=0)
        self.ending = Ending()
        self._wish = watch.wish
        self._listener = watch.listener
        self._floor_s = watch.floor_s
        self._hangs = Hangs(watch.listener, watch.stacks, watch.floor_s)
        self._spare = watch.spare
        self._tell = watch.tell
        self._rescue = watch.rescue
        self._buried: set[int] = set()
        self._killed: dict[int, Hang] = {}
        self._asked = False
        self._over = False

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._over:
            ended: RunResult = super()._monitor_workers(worker_group)
            return ended
        returned = self._returned()
        if len(returned) + len(self._buried) == len(worker_group.workers):
            self._let_go()
            return RunResult(WorkerState.SUCCEEDED, returned)
        self._look()
        return RunResult(WorkerState.HEALTHY)

    def _returned(self) -> dict[int, int]:
        """What the ranks that are done returned; each waits then, until all are."""
        context: Any = self._pcontext
        for rank, queue in context._ret_vals.items():
            if rank not in context._return_values and not queue.empty():
                context._return_values[rank] = queue.get()
        return dict(context._return_values)

    def _let_go(self) -> None:
        context: Any = self._pcontext
        context._worker_finished_event.set()
        ends = time.monotonic() + self._floor_s
        for process in self._processes():
            process.join(max(0.0, ends - time.monotonic()))
        self._send(signal.SIGKILL)

    def _look(self) -> None:
        """Pass a wish on; end all ranks when one died or hangs."""
        if self._wish.reason is not Reason.NONE and not self._asked:
            self._asked = True
            self._send(signal.SIGTERM)
        dead = self._dead()
        # an error that a rank ended of by itself may be the next one's too
        needed = {rank: code for rank, code in dead.items() if rank not in self._spare or code > 0}
        if needed:
            self._end(dead)
            return
        self._bury(dead)
        self._look_for_hangs()
        if self.ending.hang:
            self._end({})

    def _look_for_hangs(self) -> None:
        hang = self._hangs.find([process.pid for process in self._processes()], self._buried)
        if hang is None or hang.rank not in self._spare:
            self.ending.hang = hang
        elif hang.rank not in self._killed:
            self._killed[hang.rank] = hang
            os.kill(self._processes()[hang.rank].pid, signal.SIGKILL)

    def _bury(self, dead: dict[int, int]) -> None:
        """Go on without spare ranks that died."""
        for rank in set(dead) - self._buried:
            self._buried.add(rank)
            self._tell(rank, dead[rank], self._listener.beats()[rank].step, self._killed.get(rank))

    def _end(self, dead: dict[int, int]) -> None:
        """Remember who ended first, and where everyone was; kill the others."""
        self._over = True
        self.ending.exits = dead
        self.ending.steps = [beat.step for beat in self._listener.beats()]
        if self._rescue is not None and min(self.ending.steps) > 0:
            self._give_time(self._rescue)
        self._send(signal.SIGKILL)

    def _give_time(self, rescue: Callable[[Collection[int]], None]) -> None:
        """Have the living save what they hold, after which they end."""
        hang = self.ending.hang
        if hang is not None:
            if hang.rank is None:
                return
            os.kill(self._processes()[hang.rank].pid, signal.SIGKILL)
            self._processes()[hang.rank].join()
        dead = self._dead()
        if not all(_says_nothing_final(code) for code in dead.values()):
            return
        rescue(dead)
        ends = time.monotonic() + RESCUE_S
        while time.monotonic() < ends and len(self._dead()) < len(self._processes()):
            late = {rank for rank, code in self._dead().items() if code < 0} - set(dead)
            if late:
                rescue(late)
                dead |= dict.fromkeys(late, 0)
                ends = min(ends, time.monotonic() + LATE_S)
            time.sleep(POLL_S)

    def _dead(self) -> dict[int, int]:
        """Exit codes of the ranks that have ended."""
        return {rank: process.exitcode for rank, process in enumerate(self._processes()) if process.exitcode is not None}

    def _processes(self) -> list[Any]:
        context = getattr(self._pcontext, "_pc", None)
        return list(context.processes) if context is not None else []

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes():
            if process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def _record_worker_events(self, result: RunResult) -> None:
        """Torch's own records have no word for a rank that died while the others went on; the run folder tells of ends."""

    def _exit_barrier(self) -> None:
        """There is no other agent to wait for."""

    def _shutdown(self, death_sig: signal.Signals = signal.SIGKILL, timeout: int = 5) -> None:
        super()._shutdown(signal.SIGKILL, timeout)


def _says_nothing_final(code: int) -> bool:
    """Whether a rank that ended so may be followed by another start: it was killed, left, or failed of what may not come again."""
    return code <= 0 or code == RunFailed.exit_code


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
