"""The words of ``dml bench finetune``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dml_runner.bench.page import read_page
from dml_runner.bench.words import read_count, read_file, read_form, read_keys
from dml_runner.errors import ConfigError, Problem, did_you_mean
from dml_runner.job import read_job_file
from dml_runner.pretrained import run_of
from dml_runner.run_folder import RunFolder
from dml_runner.summary import read_summary

NAME = "finetune"
FAMILIES = ("bert", "elmo", "gpt")
KEYS = ("data", "eval", "only", *FAMILIES, "recipes", "steps", "batch", "resume", "outputs", "to", "format")


@dataclass(frozen=True)
class FinetuneWords:
    """What ``dml bench finetune`` is asked.

    Attributes:
        data: labelled texts to train on.
        held_out: those to evaluate.
        only: families, in this order.
        runs: finished runs of pre-training, by family; those that are not here are made.
        recipes: folder of ``<family>_pretrain.yaml``.
        steps: updates of fine-tuning, and from scratch.
        batch: texts of an update.
        resume: folder of an earlier measurement whose runs count.
        outputs: folder under which a new measurement is kept.
        page: Markdown file that the table is written into as well.
        form: ``table`` or ``json``.
    """

    data: Path
    held_out: Path
    only: tuple[str, ...]
    runs: Mapping[str, Path]
    recipes: Path
    steps: int = 500
    batch: int = 32
    resume: Path | None = None
    outputs: Path = Path("outputs")
    page: Path | None = None
    form: Literal["table", "json"] = "table"

    def recipe(self, family: str) -> Path:
        """The job of a family's pre-training."""
        return self.recipes / f"{family}_pretrain.yaml"


def finetune_words(words: Sequence[str]) -> FinetuneWords:
    """Read the words after ``dml bench finetune``.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    problems: list[Problem] = []
    given = read_keys(words, KEYS, problems)
    only = _families(given, problems)
    asked = FinetuneWords(
        data=read_file("data", given, None, problems),
        held_out=read_file("eval", given, None, problems),
        only=only,
        runs={family: _run(family, given, problems) for family in FAMILIES if family in given},
        recipes=Path(given.get("recipes", "recipes")).absolute(),
        steps=read_count("steps", given, FinetuneWords.steps, 1, problems),
        batch=read_count("batch", given, FinetuneWords.batch, 1, problems),
        resume=read_file("resume", given, None, problems) if "resume" in given else None,
        outputs=Path(given.get("outputs", "outputs")).absolute(),
        page=read_page(given, NAME, problems),
        form=read_form(given, problems),
    )
    for family in asked.only:
        if family not in asked.runs and not asked.recipe(family).is_file():
            hint = f"{family}=RUN takes a finished run instead"
            problems.append(Problem("recipes", f"there is no {family}_pretrain.yaml", got=str(asked.recipes), hint=hint))
    if problems:
        raise ConfigError(*problems)
    return asked


def _families(given: dict[str, str], problems: list[Problem]) -> tuple[str, ...]:
    only = tuple(name for name in given.get("only", ",".join(FAMILIES)).split(",") if name)
    for name in only:
        if name not in FAMILIES:
            hint = did_you_mean(name, FAMILIES)
            problems.append(Problem("only", "no such family", got=repr(name), allowed=", ".join(FAMILIES), hint=hint))
    if not only:
        problems.append(Problem("only", "leaves no family", got=repr(given["only"]), allowed=", ".join(FAMILIES)))
    return tuple(name for name in only if name in FAMILIES)


def _run(family: str, given: dict[str, str], problems: list[Problem]) -> Path:
    path = Path(given[family]).absolute()
    summary = read_summary(RunFolder(path)) if run_of(path) == path else None
    if summary is None or summary.status != "completed":
        problems.append(Problem(family, "is no run folder that came to its end", got=given[family]))
    elif (name := read_job_file(path / "job.yaml").run.model.name) != family:
        problems.append(Problem(family, "is a run of another model", got=f"{given[family]}: {name}"))
    return path
