"""Saves that are killed at their n-th disk operation, for every n: ``python killer.py FOLDER RANKS {new,again}``.

Prints one JSON object a kill: where it struck, which step is found afterwards, whether its content is right, and what
is left over once the next generation has started.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from making import save, tensors

from dml_runner.checkpoint.newest import newest
from dml_runner.checkpoint.saver import Saver

CALLS = ("mkdir", "open", "fsync", "rename", "replace", "symlink", "unlink", "rmdir")


def arm(number: int) -> None:
    """Make this process kill itself at the start of the ``number``-th of CALLS (or between two chunks of tensors)."""
    ticks = itertools.count(1)

    def watched(call: Any, word: str) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if next(ticks) == number:
                os.write(1, json.dumps({"call": word}).encode())
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    for word in CALLS:
        setattr(os, word, watched(getattr(os, word), word))
    Saver._pause = watched(Saver._pause, "chunk")  # type: ignore[method-assign]


def killed_save(folder: Path, ranks: int, step: int, number: int) -> str | None:
    """Save in a child that dies at operation ``number``; the operation's name, or None if it finished before."""
    ends = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(ends[1], 1)
        arm(number)
        save(folder, step, ranks, generation=2, keep=2, best=True, seed=77)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    os.close(ends[1])
    with os.fdopen(ends[0], "rb") as pipe:
        word = pipe.read()
    if os.WIFSIGNALED(status):
        return str(json.loads(word)["call"])
    if status:
        sys.exit("the child failed")
    return None


def right(folder: Path) -> tuple[int, bool]:
    """The newest step and whether it holds what was saved as such."""
    committed, _ = newest(folder)
    if committed is None:
        return 0, False
    wanted = (tensors(committed.step), tensors(77))
    same = [all(torch.equal(committed.read(name), tensor) for name, tensor in whole.items()) for whole in wanted]
    return committed.step, any(same)


def main(root: Path, ranks: int, step: int) -> None:
    """Kill at operation 1, 2, 3 ... until a save lives through."""
    torch.set_num_threads(1)
    for number in itertools.count(1):
        folder = root / str(number)
        for earlier in (1, 2):
            save(folder, earlier, ranks)
        word = killed_save(folder, ranks, step, number)
        found, same = right(folder)
        Saver(folder, 0, ranks, generation=3, keep=2).close()
        after = right(folder)
        save(folder, 4, ranks, generation=4, keep=2)
        last = right(folder)
        left = sorted(p.name for p in folder.iterdir() if p.name.startswith("."))
        print(json.dumps({"call": word, "step": found, "right": same, "after": after, "last": last, "left": left}), flush=True)
        shutil.rmtree(folder)
        if word is None:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), {"new": 3, "again": 2}[sys.argv[3]])
