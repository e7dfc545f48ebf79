"""The words of ``dml eval``: which run, and what to do with it. No torch is imported here, so that a typo is refused at once."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dml_runner import config
from dml_runner.errors import ConfigError, Problem, did_you_mean, raise_all

GROUPS = ("data", "hardware", "strategy")
"""Groups of the job that an evaluation may choose anew, with all their keys."""
KEYS = ("train.metrics", "train.micro_batch", "train.precision", "outputs")
"""Other keys of the job that it may set."""
WRITING = ("tokens", "temperature", "top_k", "seed")
"""Words that go with ``prompt``."""
JOB_WORDS = (*GROUPS, *(f"{group}.KEY" for group in GROUPS), *KEYS, "plugins")


@dataclass(frozen=True)
class Prompt:
    """A text to go on with.

    Attributes:
        text: its beginning.
        tokens: how many more.
        temperature: below 1 the likely gets likelier; 0: the likeliest.
        top_k: drawn from the likeliest so many; None: from all.
        seed: of the draws.
    """

    text: str
    tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = None
    seed: int = 1


@dataclass(frozen=True)
class EvalWords:
    """What ``dml eval`` is asked.

    Attributes:
        run: a run folder, or a step folder in one.
        job: words of the job, where its held-out data is evaluated.
        prompt: a text to go on with instead.
        export: folder to write the model to instead.
    """

    run: Path
    job: tuple[str, ...] = ()
    prompt: Prompt | None = None
    export: Path | None = None


def eval_words(words: Sequence[str]) -> EvalWords:
    """Read the words after ``dml eval``, and load the files of ``plugins=``.

    Raises:
        ConfigError: everything that is wrong with them, apart from the values of the job's own words.
    """
    _, words = config.load_plugins(words)
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    problems: list[Problem] = []
    if not given.get("run"):
        problems.append(Problem("run", "which run to evaluate", got="nothing", allowed="run=PATH of a run folder, or of a step in it"))
    if "prompt" in given and "export" in given:
        raise ConfigError(*problems, Problem("export", "one thing at a time", got="prompt= and export=", allowed="one of them"))
    mode = next((each for each in ("prompt", "export") if each in given), "")
    allowed = {"prompt": ("run", "prompt", *WRITING), "export": ("run", "export", "to")}.get(mode, ("run", "prompt", "export", *JOB_WORDS))
    job = []
    for word in words:
        key = word.partition("=")[0].lstrip("+~")
        if key == "data.tokenizer" and not mode:
            problems.append(Problem(key, "an evaluation reads with the run's own tokens", got=word.partition("=")[2], allowed="left out"))
        elif not mode and "=" in word and _is_job_word(key):
            job.append(word)
        elif "=" not in word or key not in allowed:
            problems.append(_unknown(word, key, mode, allowed))
    prompt = _prompt(given, problems) if mode == "prompt" else None
    export = _export(given, problems) if mode == "export" else None
    raise_all(problems)
    return EvalWords(Path(given["run"]), tuple(job), prompt, export)


def run_folder_of(path: Path) -> Path:
    """The run folder that ``path`` is, or that it is a step folder of, as an absolute path."""
    whole = Path(os.path.abspath(path))
    return whole.parent.parent if whole.parent.name == "checkpoints" else whole


def _is_job_word(key: str) -> bool:
    return key in KEYS or key.split(".")[0] in GROUPS


def _unknown(word: str, key: str, mode: str, allowed: Sequence[str]) -> Problem:
    if "=" not in word:
        hint = f"run={word}" if Path(word).exists() else None
        return Problem(word, "not understood", allowed="run=PATH key=value ...", hint=hint)
    what = f"no word of dml eval {mode}=" if mode else "no word of dml eval"
    return Problem(key, what, allowed=", ".join(allowed), hint=did_you_mean(key, allowed))


def _prompt(given: dict[str, str], problems: list[Problem]) -> Prompt:
    text = given["prompt"]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":  # as the other words of a command may be quoted
        text = text[1:-1]
    if not text:
        problems.append(Problem("prompt", "is empty", allowed="a text to go on with"))
    return Prompt(
        text,
        tokens=_count(given, "tokens", Prompt.tokens, problems) or 0,
        temperature=_temperature(given, problems),
        top_k=_count(given, "top_k", Prompt.top_k, problems),
        seed=_count(given, "seed", Prompt.seed, problems, least=0) or 0,
    )


def _count(given: dict[str, str], key: str, default: int | None, problems: list[Problem], least: int = 1) -> int | None:
    value = given.get(key)
    if value is None:
        return default
    if not (value.isascii() and value.isdecimal() and least <= int(value) < 2**63):
        problems.append(Problem(key, "not a count", got=repr(value), allowed=f"{least} or more"))
        return default
    return int(value)


def _temperature(given: dict[str, str], problems: list[Problem]) -> float:
    value = given.get("temperature")
    if value is None:
        return Prompt.temperature
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        problems.append(Problem("temperature", "not a temperature", got=repr(value), allowed="a number from 0"))
    return number


def _export(given: dict[str, str], problems: list[Problem]) -> Path:
    if given["export"] != "hf":
        problems.append(Problem("export", "no such form", got=repr(given["export"]), allowed="hf"))
    if not given.get("to"):
        problems.append(Problem("to", "where to write the model", got="nothing", allowed="to=DIR"))
    return Path(given.get("to", ""))
