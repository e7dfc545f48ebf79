"""`dml train`: from words to the end of a run, whoever starts the ranks. Torch is imported once the words are accepted."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from dml_runner.errors import DmlError
from dml_runner.launch.request import Request, may_have_ranks, preload, read_words
from dml_runner.loops.stop import Reason, StopRequest
from dml_runner.run_folder import RunFolder
from dml_runner.seat import given_by_launcher

if TYPE_CHECKING:
    from dml_runner.launch.given import Given
    from dml_runner.launch.prepare import Prepared


def train(words: Sequence[str], began: float) -> tuple[Reason, RunFolder]:
    """Train the job of ``words``; why it ended early, if it did, and its folder.

    Args:
        began: when the command began, in seconds since 1970.

    Raises:
        DmlError: the job was refused or failed.
    """
    if given_by_launcher(os.environ):
        from dml_runner.launch import outside

        return outside.join(lambda given: _prepare(read_words(words), began, given), words)
    request = read_words(words)
    if request.run.launcher.name == "torchrun":
        from dml_runner.launch import torchrun

        _say(*request.composed.notices)
        return torchrun.train(request, words, began)
    if may_have_ranks(request.run):
        preload()
    start = _prepare(request, began, None)
    if isinstance(start, RunFolder):
        return Reason.NONE, start
    folder = start.start.folder
    try:
        return execute(start), folder
    except DmlError as error:
        from dml_runner.summary import failed

        with suppress(OSError):  # a full disk may be why
            failed(folder, start.layout, time.time() - began, error)
        raise
    finally:
        start.start.lock.release()


def _prepare(request: Request, began: float, given: Given | None) -> Prepared | RunFolder:
    from dml_runner.launch.prepare import prepare
    from dml_runner.planning.table import headline

    _say(*request.composed.notices)
    start = prepare(request, began, given)
    if isinstance(start, RunFolder):
        _say(f"{start.path} is completed; add words (train.steps=...) to go on from it in a new run")
    else:
        _say(*start.start.notices, *start.plan.surprises, headline(start.run.name, start.plan), str(start.start.folder.path))
    return start


def execute(start: Prepared) -> Reason:
    """Have a start's ranks do their work, a single one in this process; returns why they ended early, if they did.

    Raises:
        DmlError: what ended them before their end.
    """
    if start.layout.world_size > 1:
        from dml_runner.launch import local

        return local.run_ranks(start)
    from dml_runner.launch.here import run_here

    return run_here(start, StopRequest()).reason


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)
