"""What the process that ranks are forked from imports: all that a rank needs, once, and a way to outlive what is meant for the ranks.

A signal to a whole process group or control group (a closed terminal, systemd, a batch system) reaches that process too. If
it died of it, the ranks would die with it, unsaved.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

import omegaconf  # noqa: F401
import torch._dynamo  # noqa: F401  DistributedDataParallel wants it: a second that no rank spends now

import dml_runner.launch.rank  # noqa: F401

_OUTLIVED = (signal.SIGTERM, signal.SIGHUP)


def outlive() -> None:
    """Ignore SIGTERM and SIGHUP in this process; those it forks start with the dispositions that stood before."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _OUTLIVED}

    def as_before() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    os.register_at_fork(after_in_child=as_before)


if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    outlive()
    gc.freeze()  # what stands now is never garbage: looking through it would copy its pages into every rank
