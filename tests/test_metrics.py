"""Metrics: counts that are right, that add up over ranks, and names that are refused before anything starts."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import in_group, small
from torch import Tensor

from dml_runner import cli, metrics
from dml_runner.comm.world import World

CLASSES = 7


def samples(count: int, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Guesses, half of them right, and what they should have been."""
    numbers = torch.Generator().manual_seed(count)
    targets = torch.randint(classes, (count,), generator=numbers)
    wrong = torch.randint(classes, (count,), generator=numbers)
    return torch.where(torch.rand(count, generator=numbers) < 0.5, targets, wrong), targets


@pytest.mark.parametrize("name", metrics.known())
def test_every_metric_comes_to_one_number_from_0_to_1(name: str) -> None:
    metric = metrics.build(name, CLASSES)
    metric.update(*samples(50))
    assert 0 < float(metric.compute()) < 1
    perfect = metrics.build(name, CLASSES)
    perfect.update(*[samples(50)[1]] * 2)
    assert float(perfect.compute()) == 1


@pytest.mark.parametrize("batches", [1, 5])
def test_they_are_those_of_scikit_learn(batches: int) -> None:
    reference = pytest.importorskip("sklearn.metrics")
    predicted, targets = samples(200)
    found = {}
    for name in ("accuracy", "f1"):
        metric = metrics.build(name, CLASSES)
        for piece in zip(predicted.chunk(batches), targets.chunk(batches), strict=True):
            metric.update(*piece)
        found[name] = float(metric.compute())
    assert found["accuracy"] == reference.accuracy_score(targets, predicted)
    assert found["f1"] == pytest.approx(reference.f1_score(targets, predicted, average="macro"), abs=1e-12)


def test_f1_leaves_out_classes_that_never_occur_and_counts_what_lies_above() -> None:
    metric = metrics.build("f1", 100)
    metric.update(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]))
    assert float(metric.compute()) == 1
    metric = metrics.build("f1", 2)
    metric.update(torch.tensor([0, 1, 5]), torch.tensor([0, 1, 1]))
    assert float(metric.compute()) == pytest.approx((1 + 2 / 3 + 0) / 3), "one class more, never right"


def test_a_vocabulary_is_no_burden() -> None:
    states = metrics.build("f1", 50_257).state_dict() or metrics.build("f1", 50_257)._defaults
    assert sum(state.numel() for state in states.values()) < 4 * 50_257


def _share(world: World, pieces: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    from dml_runner.loops.evaluate import _figure

    warnings.simplefilter("error")
    found = {}
    for name in metrics.known():
        metric = metrics.build(name, CLASSES)
        for piece in pieces[world.rank :: world.size]:
            metric.update(*piece)
        found[name] = _figure(name, metric)
    return found


def test_ranks_come_to_the_figures_of_one_process_though_one_of_them_has_nothing(tmp_path: Path) -> None:
    predicted, targets = samples(90)
    pieces = list(zip(predicted.split(45), targets.split(45), strict=True))
    alone = _share(World(0, 1, torch.device("cpu")), pieces)
    assert in_group(3, _share, tmp_path, pieces) == [alone] * 3, "to the last bit, and without a warning"


@pytest.mark.parametrize("verb", ["plan", "train"])
def test_a_metric_that_does_not_exist_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    words = small(tmp_path, "train.metrics=[acuracy,f1]", "train.eval_every=2", "checkpoint.best=eval_accuracy")
    assert cli.main([verb, *words]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "train.metrics: no such metric; got 'acuracy'; allowed accuracy, f1; did you mean accuracy?",
        "checkpoint.best: is not evaluated; got eval_accuracy; allowed eval_loss; or add accuracy to train.metrics",
    ]
    assert not (tmp_path / "run").exists()


def test_the_best_accuracy_and_early_stopping_follow_it(tmp_path: Path) -> None:
    import dml_runner
    from dml_runner.loops.progress import is_better

    draws = random.Random(1)
    assert all(is_better("eval_accuracy", value + 0.1, value) for value in [draws.random() for _ in range(10)])
    words = ["train.steps=60", "train.eval_every=2", "train.stop.metric=eval_accuracy", "train.stop.patience=2", "optimizer.lr=1e-9"]
    summary = dml_runner.train(small(tmp_path, *words, "checkpoint.best=eval_accuracy", "checkpoint.keep=1"))
    assert summary.steps == 6, "nothing is learned: the first evaluation stays the best, and two more end the run"
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")) == ["step-00000002", "step-00000006"]
