"""Ranks that a launcher from outside started (torchrun, the deepspeed launcher, srun): this process is one of them."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import astuple
from datetime import timedelta
from pathlib import Path

from torch.distributed import PrefixStore, Store, TCPStore

from dml_runner import config, plugins, pulse
from dml_runner.comm.roll_call import roll_call
from dml_runner.errors import DmlError, LaunchError, Problem
from dml_runner.generation import generation_text, read_generation
from dml_runner.launch.failure import forget, record
from dml_runner.launch.given import Given
from dml_runner.launch.keeper import KEPT
from dml_runner.launch.prepare import Prepared
from dml_runner.launch.standstill import ended_at_a_standstill
from dml_runner.loops.stop import Reason, StopRequest
from dml_runner.run_folder import RunFolder
from dml_runner.seat import Seat, die_with_parent, print_to, seat_from_environment
from dml_runner.worker import Ticket, run_rank

STORE_TIMEOUT = timedelta(minutes=10)
SIGHT_S = 5.0
"""Seconds that a network disk may take to show on one host what was written on another."""
LEAVING_S = 0.05
"""Seconds for gloo's threads to let go of the last tensors, which takes the interpreter: one that is leaving would abort the process."""
Prepare = Callable[[Given], "Prepared | RunFolder"]
"""From the ranks that there are to a start, in rank 0 alone."""


def join(prepare: Prepare, words: Sequence[str]) -> tuple[Reason, RunFolder]:
    """Train as the rank the launcher made of this process; rank 0 composes the job and sends its text to the others.

    Code is never sent: what ``plugins=`` names among the ``words`` each rank loads for itself, and it must be what rank 0 loaded.

    Raises:
        DmlError: what ended the run; where rank 0 refused the words, on all ranks.
    """
    stop = StopRequest()
    stop.on_signals(interrupts=True)
    if KEPT in os.environ:
        die_with_parent()
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    seat = seat_from_environment(os.environ, attempt)
    store = PrefixStore(f"dml/{attempt}", _store(seat))
    message = _lead(prepare, seat, store) if seat.rank == 0 else json.loads(store.get("papers"))
    folder = RunFolder(Path(message["folder"]))
    if "refused" in message:
        raise _refused(message, seat)
    if "generation" not in message:
        return Reason.NONE, folder
    if seat.rank != 0:
        config.load_plugins(words)
        plugins.agree([plugins.Source(place, sha256, tuple(options)) for place, sha256, options in json.loads(message["plugins"])])
    _see(message, folder, seat, store)
    reason = _train(message, folder, seat, store, stop)
    time.sleep(LEAVING_S)
    return reason, folder


def _refused(message: Mapping[str, str], seat: Seat) -> LaunchError:
    """Rank 0's refusal, on another rank: told again only where rank 0's words are not seen, once a host."""
    here = seat.local_rank == 0 and KEPT not in os.environ
    error = LaunchError(*([f"rank 0 refused the job: {message['refused']}"] if here else []))
    error.exit_code = int(message["exit_code"])
    return error


def _see(message: Mapping[str, str], folder: RunFolder, seat: Seat, store: Store) -> None:
    """All hosts must see what rank 0 has written into the run folder.

    Raises:
        LaunchError: one does not, on all ranks; each such host says so, and rank 0 where it has another screen.
    """
    own = folder.generation(read_generation(message["generation"]).number)
    here = {"host": socket.gethostname(), "sees": _appears(own, message["generation"]), "first": seat.local_rank == 0}
    ranks = roll_call(PrefixStore("sight", store), seat.rank, seat.size, here)
    blind = list(dict.fromkeys(each["host"] for each in ranks if not each["sees"]))
    if not blind:
        return
    hint = "all hosts must share it: put outputs= or run= on a disk that all have"
    if not here["sees"] and seat.local_rank == 0:
        raise LaunchError(Problem("run", f"host {here['host']} does not see what rank 0 wrote", got=str(folder.path), hint=hint))
    if seat.rank == 0 and KEPT not in os.environ:
        raise LaunchError(Problem("run", f"not seen by {', '.join(blind)}", got=str(folder.path), hint=hint))
    raise LaunchError()


def _appears(path: Path, text: str) -> bool:
    """Whether a file has the text, or comes to have it: a network disk may be late."""
    ends = time.monotonic() + SIGHT_S
    while True:
        with suppress(OSError, UnicodeDecodeError):
            if path.read_text() == text:
                return True
        if time.monotonic() > ends:
            return False
        time.sleep(0.1)


def _store(seat: Seat) -> Store:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(host, port, is_master=not served and seat.rank == 0, timeout=STORE_TIMEOUT)


def _lead(prepare: Prepare, seat: Seat, store: Store) -> dict[str, str]:
    """Rank 0: prepare the start and send it; a refusal is sent too, so that nobody waits."""
    try:
        start = prepare(Given(seat.size, seat.local_size))
    except DmlError as error:
        store.set("papers", json.dumps({"folder": "", "refused": str(error), "exit_code": error.exit_code}))
        raise
    if isinstance(start, RunFolder):
        message = {"folder": str(start.path)}
    else:
        folder = str(start.start.folder.path.resolve())
        if KEPT in os.environ:
            forget(start.start.folder, seat.size, start.start.folder.path)  # what starts before this one recorded
        message = {"folder": folder, "job": start.job, "generation": generation_text(start.generation)}
        message["plugins"] = json.dumps([astuple(source) for source in plugins.used(start.run)])
    if KEPT in os.environ:
        Path(os.environ[KEPT]).write_text(message["folder"])
    store.set("papers", json.dumps(message))
    return message


def _train(message: Mapping[str, str], folder: RunFolder, seat: Seat, store: Store, stop: StopRequest) -> Reason:
    screen = print_to(folder.log(seat.rank), folder.path / "logs" / f"rank-{seat.rank}.stack")
    with tempfile.TemporaryDirectory(prefix="dml-") as shared, os.fdopen(screen, "w") as console:
        beats = Path(shared) / "pulse"
        pulse.create(beats, seat.size)
        watched = ended_at_a_standstill(folder, seat.rank, seat.size, beats, console) if KEPT in os.environ else nullcontext()
        ticket = Ticket(str(folder.path), message["job"], message["generation"], str(beats), os.getpid())
        try:
            with watched:
                return run_rank(ticket, seat, PrefixStore("ranks", store), console, stop).reason
        except Exception as error:
            known = record(folder, seat.rank, error)
            sys.stderr.write(f"{error}\n")
            if not known.lost_peer:
                console.write(f"rank {seat.rank}: {known.text}\n")
            raise
