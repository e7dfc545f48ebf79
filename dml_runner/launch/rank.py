"""A process that this machine's agent started: from here on it is a rank."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from torch.distributed import PrefixStore, TCPStore

from dml_runner.errors import DmlError
from dml_runner.generation import read_generation
from dml_runner.launch.failure import record
from dml_runner.loops.stop import StopRequest
from dml_runner.loops.train import Outcome
from dml_runner.run_folder import RunFolder
from dml_runner.seat import die_with, die_with_parent, print_to, seat_from_environment
from dml_runner.worker import Ticket, run_rank

STORE_TIMEOUT = timedelta(seconds=60)


def be_rank(ticket: Ticket) -> int:
    """Train as the rank the environment names; returns the reason it ended early (0: it did not)."""
    stop = StopRequest()
    stop.on_signals(interrupts=False)
    die_with_parent()
    die_with(ticket.launcher)
    number = read_generation(ticket.generation).number
    seat = seat_from_environment(os.environ, number)
    folder = RunFolder(Path(ticket.folder))
    screen = print_to(folder.log(seat.rank), stack_file(folder, seat.rank))
    try:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        shared = TCPStore(host, port, is_master=False, timeout=STORE_TIMEOUT, use_libuv=False)
        store = PrefixStore(f"g{number}/ranks", shared)
        with os.fdopen(screen, "w") as console:
            outcome: Outcome = run_rank(ticket, seat, store, console, stop)
    except Exception as error:
        known = record(folder, seat.rank, error, spare=Path(ticket.pulse).parent)
        with suppress(OSError):  # the log may be on a full disk
            if not isinstance(error, DmlError):
                traceback.print_exc()
            sys.stderr.write(f"{error}\n")
        sys.exit(known.exit_code)
    return int(outcome.reason)


def stack_file(folder: RunFolder, rank: int) -> Path:
    """Where a rank writes its stack when it is asked for it."""
    return folder.path / "logs" / f"rank-{rank}.stack"
