"""The command line: verbs, flags, and how errors leave the program. Only this file exits."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dml_runner.loops.stop import Reason

USAGE = """dml: say what to train, how to spread it and on which machine

  dml plan  [FILE.yaml] [words]        what it will cost, before anything runs
  dml train [FILE.yaml] [words] [-m]   train it; -m trains every combination of key=a,b
  dml eval  run=PATH [words]           its loss and metrics on held-out data; prompt="..." has it write
  dml bench NAME [words]               what training costs and pre-training is worth, what the network
                                       carries, what a run survives

  dml VERB --help                      every word of a verb, with its meaning and default
  dml train strategy=help              the options of a group

  First steps: dml train model=gpt_tiny train.steps=200
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    words = _without_local_rank(list(sys.argv[1:] if arguments is None else arguments))
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        return _report(error)


def _without_local_rank(words: list[str]) -> list[str]:
    """Take the rank that the deepspeed launcher writes among the words, before the verb too."""
    kept = []
    for word in words:
        name, _, value = word.partition("=")
        if name in ("--local_rank", "--local-rank") and value.isdigit():
            os.environ.setdefault("LOCAL_RANK", value)
        else:
            kept.append(word)
    return kept


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if words[0] == "--version":
        from dml_runner import __version__

        print(__version__)
        return 0
    verbs: dict[str, Callable[[list[str]], int]] = {"train": _train, "plan": _plan, "eval": _eval, "bench": _bench}
    verb, rest = words[0], words[1:]
    if verb not in verbs:
        from dml_runner.errors import ConfigError, Problem, did_you_mean

        raise ConfigError(Problem("verb", "no such verb", got=repr(verb), allowed=", ".join(verbs), hint=did_you_mean(verb, list(verbs))))
    if "--help" in rest or "-h" in rest:
        from dml_runner import config

        config.load_plugins(rest)
        print(config.verb_help(verb), end="")
        return 0
    return verbs[verb](rest)


def _train(words: list[str]) -> int:
    began = time.time()
    if _show(words):
        return 0
    if "-m" in words or "--multirun" in words:
        from dml_runner.launch.sweep import run_sweep

        print(run_sweep([word for word in words if word not in ("-m", "--multirun")]))
        return 0
    from dml_runner.launch.command import train

    reason, _ = train(words, began)
    return _code(reason)


def _eval(words: list[str]) -> int:
    began = time.time()
    from dml_runner.launch.evaluate import evaluate

    return _code(evaluate(words, began))


def _code(reason: Reason) -> int:
    """What a command that ended early exits with."""
    return {"TERMINATED": 143, "INTERRUPTED": 130}.get(reason.name, 0)


def _show(words: list[str]) -> bool:
    """Answer --cfg job, --info defaults and group=help; whether one of them was asked."""
    from dml_runner import config

    for flag, topic, answer in (("--cfg", "job", config.show_job), ("--info", "defaults", config.show_defaults)):
        if flag in words:
            position = words.index(flag)
            if words[position + 1 : position + 2] != [topic]:
                from dml_runner.errors import ConfigError, Problem

                raise ConfigError(
                    Problem(flag, "says what to show", got=" ".join(words[position + 1 : position + 2]) or "nothing", allowed=topic)
                )
            print(answer(words[:position] + words[position + 2 :]), end="")
            return True
    config.load_plugins(words)
    asked = [word.removesuffix("=help") for word in words if word.endswith("=help")]
    for group in asked:
        print(config.group_help(group), end="")
    return bool(asked)


def _plan(words: list[str]) -> int:
    if _show(words):
        return 0
    from dml_runner.errors import ConfigError, Problem

    form = next((word.removeprefix("format=") for word in words if word.startswith("format=")), "table")
    if form not in ("table", "json"):
        raise ConfigError(Problem("format", "no such form", got=repr(form), allowed="table, json"))
    words = [word for word in words if not word.startswith("format=")]
    from dml_runner.launch.request import read_words

    request = read_words(words)
    from dml_runner.launch.prepare import plan_job

    plan, profile = plan_job(request.run)
    if form == "json":
        import json

        print(json.dumps(plan.as_json(), indent=2))
    else:
        from dml_runner.planning.table import render

        print(render(plan, profile))
    return 0 if plan.fits else 3


def _bench(words: list[str]) -> int:
    from dml_runner.bench import run_bench

    return run_bench(words)


def _report(error: Exception) -> int:
    """Print an error as one line a problem; the traceback only when asked, or when the fault is ours."""
    from dml_runner.errors import DmlError

    if os.environ.get("DML_TRACEBACK") == "1" or not isinstance(error, DmlError):
        traceback.print_exception(error)
    if not isinstance(error, DmlError):
        print(f"dml: this should not have happened: {type(error).__name__}: {error}", file=sys.stderr)
        return 5
    for problem in error.problems:
        print(problem, file=sys.stderr)
    return error.exit_code
