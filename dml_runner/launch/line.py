"""A line to a host: the remote shell's process, what is said into it and what is heard from it."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dml_runner.seat import die_with_parent

LEAVE_S = 5.0
"""Seconds that a host has to end its ranks once its line was hung up."""


@dataclass(frozen=True)
class Heard:
    """A word from host number ``node``; ``gone`` in it is the last that is heard: why the line ended."""

    node: int
    word: dict[str, Any]


class Line:
    """The way to one host's keeper.

    Attributes:
        number: of the host.
        came: whether anybody answered.
    """

    def __init__(self, number: int, command: Sequence[str], order: str, events: queue.Queue[Heard]) -> None:
        self.number, self.came = number, False
        self._events = events
        self._last: deque[str] = deque(maxlen=1)
        # Ctrl-C in the terminal is not for it: wishes go through the line, once
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            preexec_fn=die_with_parent,
        )
        self.say(order)
        self._showing = threading.Thread(target=self._show, daemon=True)
        self._showing.start()
        threading.Thread(target=self._listen, daemon=True).start()

    def say(self, text: str) -> None:
        """Send a line; nothing happens where nobody hears it."""
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):
            self._process.stdin.write(text.rstrip("\n").encode() + b"\n")
            self._process.stdin.flush()

    def hang_up(self) -> None:
        """Say no more, which ends the ranks there; where nobody has answered, there are none."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        if not self.came:
            self._process.kill()

    def end(self) -> None:
        """Wait until a line that was hung up has ended, but not for ever."""
        try:
            self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._showing.join(LEAVE_S)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                word = json.loads(line)
            except ValueError:  # what a login shell says for itself
                continue
            if isinstance(word, dict):
                self.came = self.came or "came" in word
                self._events.put(Heard(self.number, word))
        code = self._process.wait()
        self._showing.join(LEAVE_S)
        self._events.put(Heard(self.number, {"gone": self._last[-1] if self._last else f"exit code {code}, without a word"}))

    def _show(self) -> None:
        """What the host's ranks print goes to the screen as it comes; what comes before anybody answered is why nobody does."""
        assert self._process.stderr is not None
        while chunk := os.read(self._process.stderr.fileno(), 65536):
            lines = chunk.decode(errors="replace").strip().splitlines()
            self._last.extend(lines[-1:])
            if self.came:
                sys.stderr.write(chunk.decode(errors="replace"))
                sys.stderr.flush()
