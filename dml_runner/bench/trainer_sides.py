"""The two sides of ``dml bench trainer``: the same fine-tuning job by the runner, and by the Trainer of the transformers library.

Both start from the same weights and train on the same samples in the same batches, padded alike to a multiple of eight tokens.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dml_runner import data as data_room
from dml_runner.bench.driving import drive, live
from dml_runner.comm.world import World
from dml_runner.data.base import Data
from dml_runner.data.parts.labelled import MULTIPLE
from dml_runner.data.parts.labelled_store import load_labelled
from dml_runner.data.parts.labels import Part
from dml_runner.engines.assemble import assemble
from dml_runner.engines.torch_engine import TorchEngine
from dml_runner.facts import DataFacts
from dml_runner.layout import Layout
from dml_runner.pretrained import task_for
from dml_runner.run import Run

WARM_UP = 5
"""Updates of each turn before the clock starts."""
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
"""Name of a schedule in the transformers library by ours."""


class Clock:
    """Times updates, each from the end of one optimizer step to the end of the next, which is what both sides have in common."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def __call__(self, *_: object) -> None:
        """An optimizer made its step; a hook of ``torch.optim.Optimizer``."""
        self._ends.append(time.perf_counter())

    @property
    def step_ms(self) -> float:
        """Milliseconds an update took, on average over all behind the warm-up."""
        return (self._ends[-1] - self._ends[WARM_UP - 1]) / (len(self._ends) - WARM_UP) * 1e3


@dataclass(frozen=True)
class Job:
    """What both sides do.

    Attributes:
        run: the words.
        facts: the prepared texts.
        layout: one rank, and how many updates.
        weights: where the weights to start from are.
    """

    run: Run
    facts: DataFacts
    layout: Layout
    weights: Path

    def shortened(self, steps: int) -> Job:
        """The same with ``steps`` updates behind the warm-up, and as good as nothing to evaluate."""
        facts = replace(self.facts, eval_samples=min(self.facts.eval_samples, self.layout.batch.micro_batch))
        return replace(self, facts=facts, layout=replace(self.layout, steps=WARM_UP + steps))

    def open(self) -> Data:
        """The texts as batches."""
        return data_room.open_data(self.run.data, task_for(self.run), self.facts, self.run.seed)


def by_runner(job: Job, clock: Clock) -> float:
    """``TrainLoop`` and ``TorchEngine`` as ``dml train`` uses them on one rank; the held-out accuracy at the end."""
    run, world = job.run, World(0, 1, torch.device("cpu"))
    engine = assemble(run, job.facts, job.layout, world, str(job.weights))
    assert isinstance(engine, TorchEngine)
    engine.optimizer.register_step_post_hook(clock)
    with tempfile.TemporaryDirectory(prefix="dml-") as name:
        folder = Path(name)
        tracker = live(run, job.layout, folder)
        outcome = drive(run, job.layout, job.facts, job.open(), engine, world, folder, tracker)
        tracker.finish({})
    assert outcome.evaluation is not None, "nobody asks it to stop"
    return float(outcome.evaluation["eval_accuracy"])


def by_trainer(job: Job, clock: Clock) -> float:
    """The library's ``Trainer`` with its own fused AdamW, schedule, clipping and collator; the held-out accuracy at the end."""
    with _quiet() as folder:
        transformers = _import("transformers")
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            job.weights,
            num_labels=job.facts.classes,
            hidden_dropout_prob=job.run.model.dropout,
            attention_probs_dropout_prob=job.run.model.dropout,
            dtype=torch.float32,
        )
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(**_arguments(job, folder)),
            train_dataset=training_samples(job),
            eval_dataset=_samples(job, "eval", np.arange(job.facts.eval_samples)),
            data_collator=transformers.DataCollatorWithPadding(
                transformers.AutoTokenizer.from_pretrained(job.weights), pad_to_multiple_of=MULTIPLE
            ),
            compute_metrics=_accuracy,
        )
        trainer.create_optimizer().register_step_post_hook(clock)
        trainer.train()
        return float(trainer.evaluate()["eval_accuracy"])


def training_samples(job: Job) -> list[dict[str, Any]]:
    """The samples of every update in the runner's own order; a sample that comes again stands there again."""
    order, batch = job.open().order(job.run.seed), job.layout.batch.global_batch
    picks = np.concatenate([order.step(step, batch)[:, 0] for step in range(1, job.layout.steps + 1)])
    return _samples(job, "train", picks)


def _samples(job: Job, part: Part, picks: np.ndarray) -> list[dict[str, Any]]:
    store = load_labelled(Path(job.facts.store))
    assert store is not None, "it was prepared a moment ago"
    tokens, ends, labels = store.tokens(part), store.ends(part), store.numbers(part)
    return [{"input_ids": tokens[ends[pick] : ends[pick + 1]].tolist(), "labels": int(labels[pick])} for pick in picks]


def _arguments(job: Job, folder: str) -> dict[str, Any]:
    """The job's words as those of ``TrainingArguments``."""
    run, optimizer = job.run, job.run.optimizer
    return {
        "output_dir": folder,
        "max_steps": job.layout.steps,
        "per_device_train_batch_size": job.layout.batch.micro_batch,
        "per_device_eval_batch_size": job.layout.batch.micro_batch,
        "gradient_accumulation_steps": job.layout.batch.accumulation,
        "train_sampling_strategy": "sequential",
        "learning_rate": optimizer.lr,
        "weight_decay": getattr(optimizer, "weight_decay", 0.0),
        "adam_beta1": getattr(optimizer, "beta1", 0.9),
        "adam_beta2": getattr(optimizer, "beta2", 0.999),
        "adam_epsilon": getattr(optimizer, "eps", 1e-8),
        "max_grad_norm": run.train.clip_norm or 0.0,
        "lr_scheduler_type": SCHEDULES[run.lr_schedule.name],
        "warmup_steps": run.lr_schedule.warmup_steps,
        "logging_steps": run.train.log_every,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": run.seed,
    }


def _accuracy(found: Any) -> dict[str, float]:
    return {"accuracy": float((found.predictions.argmax(axis=-1) == found.label_ids).mean())}


def _import(name: str) -> Any:
    return importlib.import_module(name)


@contextlib.contextmanager
def _quiet() -> Iterator[str]:
    """A folder to work in; what the library says of itself stays off the result."""
    with (
        tempfile.TemporaryDirectory(prefix="dml-") as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield folder
