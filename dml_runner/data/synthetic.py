"""``data=synthetic``: made-up samples of the kind the model needs, for trying a layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import DataFacts, Task
from dml_runner.schema.data import Synthetic

if TYPE_CHECKING:
    from dml_runner.data.base import Data

HELD_OUT = 10
"""One held-out sample for so many training samples."""


def prepare(words: Synthetic, task: Task, cache: Path) -> DataFacts:
    """What the samples will be; nothing is stored.

    Raises:
        ConfigError: the words leave no token to hide others behind.
    """
    images, labels = task.reads == "images", task.objective == "classify"
    if task.objective == "masked" and words.vocabulary < 2:
        what = "the model learns hidden tokens, and there is none to hide others behind"
        raise ConfigError(Problem("data.vocabulary", what, got=str(words.vocabulary), allowed="at least 2"))
    seq_len = 0 if images else words.seq_len or task.length
    assert seq_len is not None, "who reads text has a longest sequence"
    return DataFacts(
        kind="images" if images else "labelled_text" if labels else "tokens",
        train_samples=words.samples,
        eval_samples=max(1, words.samples // HELD_OUT),
        sample_weight=1 if labels else None if task.objective == "masked" else seq_len,
        sample_tokens=seq_len,
        vocabulary=0 if images else words.vocabulary,
        seq_len=seq_len,
        digests={},
        store="",
        classes=words.classes if labels else 0,
        image=(words.channels, words.size, words.size) if images else (),
    )


def open_data(words: Synthetic, task: Task, facts: DataFacts, seed: int) -> Data:
    """The samples; what is hidden of them depends on ``seed``."""
    from dml_runner.data.parts.made_up import MadeUpImages, MadeUpText, MadeUpTexts

    if facts.kind == "images":
        return MadeUpImages(facts)
    return MadeUpTexts(facts, task) if facts.kind == "labelled_text" else MadeUpText(facts, task, seed)
