"""The words of ``dml bench split``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dml_runner.bench.page import read_page
from dml_runner.bench.words import read_count, read_form, read_keys
from dml_runner.errors import ConfigError, Problem, did_you_mean

What = Literal["pipeline", "tensor"]
WHAT: tuple[What, ...] = ("pipeline", "tensor")
KEYS = ("what", "layers", "hidden", "vocabulary", "length", "batch", "microbatches", "steps", "pairs", "to", "format")
RANKS = 2
WARM_UP = 3
"""Updates of each turn before the clock starts."""
HEAD_WIDTH = 64


@dataclass(frozen=True)
class SplitWords:
    """What ``dml bench split`` is asked.

    Attributes:
        what: how the model is split.
        layers, hidden, vocabulary: of the gpt.
        length: tokens of a sample.
        batch: samples of an update.
        microbatches: of an update, where it is a pipeline.
        steps: updates timed in each turn of each side.
        pairs: turns of each side.
        page: Markdown file that the table is written into as well.
        form: ``table`` or ``json``.
    """

    what: What
    layers: int
    hidden: int
    vocabulary: int
    length: int
    batch: int
    microbatches: int
    steps: int
    pairs: int
    page: Path | None
    form: Literal["table", "json"]

    @property
    def mark(self) -> str:
        """The table's place in a page."""
        return f"split_{self.what}"

    def job(self, *more: str, steps: int, log_every: int) -> list[str]:
        """Words of the job that both sides do, of so many updates."""
        words = ["name=bench", "hardware=cpu", f"hardware.devices_per_node={RANKS}", "model=gpt", "model.tied=false"]
        words += [f"model.layers={self.layers}", f"model.hidden={self.hidden}", f"model.heads={self.hidden // HEAD_WIDTH}"]
        words += [f"model.context={self.length}", "data=synthetic", f"data.vocabulary={self.vocabulary}", f"data.samples={10 * self.batch}"]
        words += [f"strategy={self.what}", f"train.global_batch={self.batch}", f"train.steps={steps}", f"train.log_every={log_every}"]
        if self.what == "pipeline":
            words += [f"strategy.microbatches={self.microbatches}", f"strategy.boundaries=[{self.layers // RANKS}]"]
        return [*words, "checkpoint.every=null", *more]


def split_words(words: Sequence[str]) -> SplitWords:
    """Read the words after ``dml bench split``.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    problems: list[Problem] = []
    given = read_keys(words, KEYS, problems)
    what = _what(given, problems)
    asked = SplitWords(
        what=what,
        layers=read_count("layers", given, 6, RANKS, problems),
        hidden=read_count("hidden", given, 256, 2, problems),
        vocabulary=read_count("vocabulary", given, 2048, 2, problems),
        length=read_count("length", given, 64, 1, problems),
        batch=read_count("batch", given, 8, 1, problems),
        microbatches=read_count("microbatches", given, 4, 1, problems),
        steps=read_count("steps", given, 8, 2, problems),
        pairs=read_count("pairs", given, 9, 2, problems),
        page=read_page(given, f"split_{what}", problems),
        form=read_form(given, problems),
    )
    unit = RANKS * HEAD_WIDTH
    if asked.hidden % unit:
        problems.append(
            Problem("hidden", f"no whole heads of {HEAD_WIDTH} for each rank", got=str(asked.hidden), allowed=f"multiples of {unit}")
        )
    if problems:
        raise ConfigError(*problems)
    return asked


def _what(given: dict[str, str], problems: list[Problem]) -> What:
    asked = given.get("what", "pipeline")
    for what in WHAT:
        if asked == what:
            return what
    problems.append(Problem("what", "no such split", got=repr(asked), allowed=", ".join(WHAT), hint=did_you_mean(asked, WHAT)))
    return "pipeline"
