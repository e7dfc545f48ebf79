"""What the runner costs, measured on this machine: ``dml bench NAME``. ``loop`` means bench/loop.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dml_runner.errors import ConfigError, Problem, did_you_mean


def run_bench(words: Sequence[str]) -> int:
    """Measure what ``words`` ask for, print the result and return the exit code.

    Raises:
        ConfigError: there is no such measurement, or a word of it is wrong.
    """
    known = _measurements()
    name = words[0] if words else ""
    if name not in known:
        raise ConfigError(
            Problem(
                "bench",
                "what to measure",
                got=repr(name) if name else "nothing",
                allowed=", ".join(known),
                hint=did_you_mean(name, list(known)),
            )
        )
    print(known[name](words[1:]), end="")
    return 0


def _measurements() -> dict[str, Callable[[Sequence[str]], str]]:
    from dml_runner.bench import faults, loop

    return {"loop": loop.measure, "faults": faults.measure}
