"""Made-up samples: of the kind the model needs, a function of their number, in the shape of real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dml_runner.data import open_data, prepare
from dml_runner.data.base import Data
from dml_runner.data.parts.made_up import below, characters_of, scrambled
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts, Task
from dml_runner.models.parts.characters import BEGIN_WORD, END_WORD, PADDING
from dml_runner.models.parts.language import IGNORED
from dml_runner.schema.data import Synthetic

TASKS = {
    "next_token": Task("next_token", length=16),
    "streams": Task("next_token", length=16, streams=True),
    "masked": Task("masked", length=16, hidden_share=0.25),
    "both_directions": Task("both_directions", "characters", length=16, word_length=10),
    "texts": Task("classify", length=16),
    "words": Task("classify", "characters", length=16, word_length=10),
    "images": Task("classify", "images"),
}


def words(**others: Any) -> Synthetic:
    keys = {"samples": 50, "seq_len": None, "vocabulary": 40, "classes": 3, "size": 6, "channels": 2, "workers": 0}
    return Synthetic.model_validate({"name": "synthetic", **keys, **others})


def opened(task: Task, seed: int = 0, **others: Any) -> Data:
    return open_data(words(**others), task, prepare(words(**others), task, Path("nowhere")), seed)


def picks(*samples: int, epoch: int = 0) -> np.ndarray:
    return np.array([[sample, epoch] for sample in samples])


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("next_token", DataFacts("tokens", 50, 5, 16, 16, 40, 16, {}, "")),
        ("masked", DataFacts("tokens", 50, 5, None, 16, 40, 16, {}, "")),
        ("both_directions", DataFacts("tokens", 50, 5, 16, 16, 40, 16, {}, "")),
        ("texts", DataFacts("labelled_text", 50, 5, 1, 16, 40, 16, {}, "", classes=3)),
        ("images", DataFacts("images", 50, 5, 1, 0, 0, 0, {}, "", classes=3, image=(2, 6, 6))),
    ],
)
def test_the_facts_are_those_of_real_data(name: str, facts: DataFacts) -> None:
    assert prepare(words(), TASKS[name], Path("nowhere")) == facts
    assert not Path("nowhere").exists()


LONG, BOOL = torch.int64, torch.bool
SHAPES: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {
    "next_token": {"inputs": (LONG, (4, 16)), "targets": (LONG, (4, 16))},
    "streams": {"inputs": (LONG, (4, 16)), "targets": (LONG, (4, 16)), "first": (BOOL, (4,))},
    "masked": {"inputs": (LONG, (4, 16)), "targets": (LONG, (4, 16))},
    "both_directions": {"characters": (LONG, (4, 16, 10)), "targets": (LONG, (4, 16)), "before": (LONG, (4, 16))},
    "texts": {"inputs": (LONG, (4, 16)), "mask": (BOOL, (4, 16)), "targets": (LONG, (4,))},
    "words": {"characters": (LONG, (4, 16, 10)), "mask": (BOOL, (4, 16)), "targets": (LONG, (4,))},
    "images": {"images": (torch.float32, (4, 2, 6, 6)), "targets": (LONG, (4,))},
}


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_is_one_of_the_task(name: str) -> None:
    data = opened(TASKS[name])
    batch = data.train_batch(data.order(0).step(1, 4))
    assert {key: (values.dtype, tuple(values.shape)) for key, values in batch.items()} == SHAPES[name]
    highest = 3 if TASKS[name].objective == "classify" else 40
    assert int(batch["targets"].max()) < highest
    assert data.eval_batch(np.arange(5))["targets"].shape[0] == 5
    with pytest.raises(IndexError, match="there are 50 samples"):
        data.train_batch(picks(50))


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_is_the_same_whoever_asks_and_with_whom(name: str) -> None:
    one, other = opened(TASKS[name], seed=1), opened(TASKS[name], seed=1)
    batch = one.train_batch(picks(3, 7, 20))
    assert same(batch, other.train_batch(picks(3, 7, 20)))
    assert same({key: values[1:2] for key, values in batch.items()}, other.train_batch(picks(7)))
    assert same(one.eval_batch(np.arange(2)), opened(TASKS[name], seed=2).eval_batch(np.arange(2)))
    assert not same(one.train_batch(picks(0, 1, 2)), one.train_batch(picks(2, 1, 0)))
    train, held_out = one.train_batch(picks(*range(5))), one.eval_batch(np.arange(5))
    assert not any(torch.equal(train[key], held_out[key]) for key in ("inputs", "characters", "images") if key in train)


def test_each_token_predicts_the_next() -> None:
    batch = opened(TASKS["next_token"]).train_batch(picks(0, 1))
    assert torch.equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
    assert batch["targets"][0, -1] == batch["inputs"][1, 0]


def test_streams_read_on_and_begin_anew() -> None:
    data = opened(TASKS["streams"])
    order = data.order(0)
    first, second = data.train_batch(order.step(1, 2)), data.train_batch(order.step(2, 2))
    assert torch.equal(first["targets"][:, -1], second["inputs"][:, 0])
    assert first["first"].tolist() == [True, False]
    held_out = data.eval_batch(np.array([0, 3]))
    assert held_out["inputs"].shape == (2, 32)
    assert int(held_out["inputs"].min()) >= 0
    assert (held_out["targets"][:, :16] == IGNORED).all()
    assert (held_out["targets"][:, 16:] != IGNORED).all()


def test_hidden_tokens_are_the_share_and_depend_on_seed_and_epoch() -> None:
    data = opened(TASKS["masked"])
    batch = data.train_batch(picks(4, 5))
    hidden = batch["targets"] != IGNORED
    assert hidden.sum(dim=1).tolist() == [4, 4]
    assert (batch["inputs"][hidden] == 39).all()
    assert int(batch["inputs"][~hidden].max()) < 39
    others = [data.train_batch(picks(4, 5, epoch=1)), opened(TASKS["masked"], seed=1).train_batch(picks(4, 5))]
    assert not any(torch.equal(other["targets"], batch["targets"]) for other in others)
    found = torch.where(hidden, batch["targets"], batch["inputs"])
    assert torch.equal(found, torch.where(others[0]["targets"] != IGNORED, others[0]["targets"], others[0]["inputs"]))


def test_words_have_neighbours_and_a_spelling() -> None:
    batch = opened(TASKS["both_directions"]).train_batch(picks(0, 1))
    assert int(batch["before"][0, 0]) == IGNORED
    assert torch.equal(batch["before"][0, 2:], batch["targets"][0, :-2])
    assert characters_of(np.array([0, 27]), 8).tolist() == [
        [BEGIN_WORD, *b"aaaaaa", END_WORD],
        [BEGIN_WORD, *b"bbaaaa", END_WORD],
    ]
    assert characters_of(np.array([1]), 9)[0, -1] == PADDING
    assert characters_of(np.array([1]), 3).tolist() == [[BEGIN_WORD, ord("b"), END_WORD]]
    assert characters_of(np.array([1]), 1).tolist() == [[BEGIN_WORD]]


def test_numbers_are_spread_evenly_and_stay_what_they_are() -> None:
    numbers = below(10, 1, np.arange(20_000))
    assert np.abs(np.bincount(numbers) / 2000 - 1).max() < 0.08
    assert [int(number) for number in scrambled(1, np.arange(2))] == [6791897765849424158, 16860738450190168606]
    images = opened(TASKS["images"], size=64).train_batch(picks(*range(50)))["images"]
    assert abs(float(images.mean())) < 0.02
    assert abs(float(images.std()) - 1) < 0.02


def test_data_too_small_to_hide_anything_behind() -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(words(vocabulary=1), TASKS["masked"], Path("nowhere"))
    assert str(caught.value) == (
        "data.vocabulary: the model learns hidden tokens, and there is none to hide others behind; got 1; allowed at least 2"
    )


def test_at_least_one_sample_is_held_out() -> None:
    assert prepare(words(samples=3, seq_len=5), TASKS["texts"], Path("nowhere")) == DataFacts(
        "labelled_text", 3, 1, 1, 5, 40, 5, {}, "", classes=3
    )
