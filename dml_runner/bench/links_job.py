"""Any job on shaped hosts: ``dml bench links hosts=4 mbit=400 -- train FILE.yaml words``, a rank a host, as torchrun would start them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from dml_runner.bench.comm_words import job_words
from dml_runner.bench.network import INTERFACE, Lab, Traffic, lab
from dml_runner.bench.processes import end, unplaced
from dml_runner.bench.units import size
from dml_runner.seat import die_with_parent

PORT = 29500
"""Where rank 0 listens, on a host that nobody else has."""
GRACE_S = 10.0
"""Seconds that the others have to end by themselves after a rank failed, and again once they were told to."""
SAVE_S = 60.0
"""Seconds that ranks have to save and end after Ctrl-C or SIGTERM; a second Ctrl-C ends them at once."""


@dataclass(frozen=True)
class JobOnLinks:
    """How a job on shaped hosts ended.

    Attributes:
        codes: exit code of each rank; negative: the signal that ended it.
        traffic: what each host's link carried.
        seconds: from the first rank's start to the last one's end.
    """

    codes: tuple[int, ...]
    traffic: tuple[Traffic, ...]
    seconds: float

    @property
    def code(self) -> int:
        """The job's exit code: rank 0's, or that of the first rank that failed where it did not; 128 + n for signal n."""
        code = next((each for each in self.codes if each), 0)
        return code if code >= 0 else 128 - code


def run_job(words: Sequence[str]) -> int:
    """Run the job behind ``--``, print the bytes of each interface and return the job's exit code.

    Raises:
        ConfigError: a word is wrong.
        LaunchError: this machine or user cannot have hosts.
    """
    asked = job_words(words)
    if asked.to is not None:
        asked.to.mkdir(parents=True, exist_ok=True)
    kept = tempfile.TemporaryDirectory(prefix="dml-") if asked.to is None else nullcontext(str(asked.to))
    with kept as folder, lab(asked.hosts, asked.mbit, asked.delay_ms / 1000) as made:
        command = [sys.executable, "-m", "dml_runner", *asked.command]
        done = run_on(made, command, Path(folder), go_on=asked.lost == "go_on", aside=asked.form == "json")
        for rank, code in enumerate(done.codes):
            if rank and code:
                print(f"rank {rank} ended with code {code}{_last_line(Path(folder), rank)}", file=sys.stderr)
    told = {"hosts": asked.hosts, "mbit": asked.mbit, "delay_ms": asked.delay_ms, **asdict(done), "code": done.code}
    if asked.to is not None:
        (asked.to / "links.json").write_text(json.dumps(told, indent=2) + "\n")
    print(json.dumps(told, indent=2) if asked.form == "json" else _table(asked.mbit, done))
    return done.code


def run_on(
    made: Lab, command: Sequence[str], logs: Path, go_on: bool = False, aside: bool = False, more: Mapping[str, str] | None = None
) -> JobOnLinks:
    """Run ``command`` once on every host of a laboratory, as the ranks of one world, and wait for all.

    Args:
        made: the hosts; rank r is on host r.
        command: of every rank.
        logs: folder for what the ranks other than 0 print: ``rank-1.log``.
        go_on: let the others go on when one fails; otherwise they are ended with it, as under torchrun.
        aside: what rank 0 prints goes to the standard error.
        more: environment of every rank, beside this process's.
    """
    processes: list[subprocess.Popen[bytes]] = []
    before, began = made.traffic(), time.monotonic()
    try:
        for host in made.hosts:
            environment = _environment(made, host.number) | dict(more or {})
            with (logs / f"rank-{host.number}.log").open("wb") if host.number else nullcontext(sys.stderr if aside else None) as out:
                said = subprocess.STDOUT if host.number else None
                processes.append(_start(host.command(command), environment, out, said))
        _wait(processes, go_on)
    except BaseException as error:
        _tell(processes, signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
        end(processes, SAVE_S)
        raise
    seconds = time.monotonic() - began
    carried = tuple(now.since(then) for now, then in zip(made.traffic(), before, strict=True))
    return JobOnLinks(tuple(process.returncode for process in processes), carried, seconds)


def _start(command: list[str], environment: dict[str, str], out: IO[Any] | None, said: int | None) -> subprocess.Popen[bytes]:
    """In a process group of its own, so that Ctrl-C comes to it from here, once."""
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=said,
        process_group=0,
        preexec_fn=die_with_parent,
    )


def _environment(made: Lab, rank: int) -> dict[str, str]:
    """What torchrun would tell a rank, and the interface by which hosts reach each other."""
    place = {"RANK": rank, "WORLD_SIZE": len(made.hosts), "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    meeting = {"MASTER_ADDR": made.hosts[0].address, "MASTER_PORT": str(PORT), "GLOO_SOCKET_IFNAME": INTERFACE}
    # hosts here have no names, of which torch would warn once a connection
    quiet = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return {**quiet, **unplaced(), **{key: str(value) for key, value in place.items()}, **meeting}


def _wait(processes: Sequence[subprocess.Popen[bytes]], go_on: bool) -> None:
    while any(process.poll() is None for process in processes):
        if not go_on and any(process.poll() for process in processes):
            limit = time.monotonic() + GRACE_S
            while time.monotonic() < limit and any(process.poll() is None for process in processes):
                time.sleep(0.02)
            _tell(processes, signal.SIGTERM)
            end(processes, GRACE_S)
            return
        time.sleep(0.02)


def _tell(processes: Sequence[subprocess.Popen[bytes]], wish: signal.Signals) -> None:
    """Ask those that run to end."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(wish)


def _last_line(logs: Path, rank: int) -> str:
    lines = (logs / f"rank-{rank}.log").read_text(errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""


def _table(mbit: int, done: JobOnLinks) -> str:
    lines = [f"{'host':<6} {'code':>4} {'sent':>10} {'received':>10}"]
    for rank, (code, carried) in enumerate(zip(done.codes, done.traffic, strict=True)):
        lines.append(f"{rank:<6} {code:>4} {size(carried.sent):>10} {size(carried.received):>10}")
    lines.append(
        f"{len(done.codes)} hosts at {mbit} Mbit/s each way, {done.seconds:.1f} s; bytes counted at the interfaces, headers included"
    )
    return "\n".join(lines)
