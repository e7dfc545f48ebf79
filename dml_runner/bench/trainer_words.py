"""The words of ``dml bench trainer``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dml_runner.bench.page import read_page
from dml_runner.bench.words import read_count, read_file, read_form, read_keys
from dml_runner.errors import ConfigError, Problem

NAME = "trainer"
KEYS = ("data", "eval", "recipe", "steps", "pairs", "accuracy", "to", "format")
RECIPE = "recipes/bert_sst2.yaml"


@dataclass(frozen=True)
class TrainerWords:
    """What ``dml bench trainer`` is asked.

    Attributes:
        data: labelled texts to train on.
        held_out: those to evaluate.
        recipe: the job of both sides.
        steps: updates timed in each turn of each side.
        pairs: turns of each side.
        accuracy: whether each side trains to the recipe's end too, and is evaluated.
        page: Markdown file that the table is written into as well.
        form: ``table`` or ``json``.
    """

    data: Path
    held_out: Path
    recipe: Path
    steps: int = 40
    pairs: int = 9
    accuracy: bool = False
    page: Path | None = None
    form: Literal["table", "json"] = "table"


def trainer_words(words: Sequence[str]) -> TrainerWords:
    """Read the words after ``dml bench trainer``.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    problems: list[Problem] = []
    given = read_keys(words, KEYS, problems)
    accuracy = given.get("accuracy", "false")
    if accuracy not in ("true", "false"):
        problems.append(Problem("accuracy", "is neither yes nor no", got=repr(accuracy), allowed="true, false"))
    asked = TrainerWords(
        data=read_file("data", given, None, problems),
        held_out=read_file("eval", given, None, problems),
        recipe=read_file("recipe", given, RECIPE, problems),
        steps=read_count("steps", given, TrainerWords.steps, 2, problems),
        pairs=read_count("pairs", given, TrainerWords.pairs, 2, problems),
        accuracy=accuracy == "true",
        page=read_page(given, NAME, problems),
        form=read_form(given, problems),
    )
    if problems:
        raise ConfigError(*problems)
    return asked
