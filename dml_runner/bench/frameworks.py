"""Accelerate's and Lightning's loops over the same task, set as the runner's: a row every ten updates in a file, a progress line."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset

from dml_runner.bench.task import LOG_EVERY, Task


def installed(name: str) -> bool:
    """Whether a framework can be imported."""
    return importlib.util.find_spec(name) is not None


def _import(name: str) -> Any:
    return importlib.import_module(name)


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """The task's batches, ready made: no loop pays for collecting samples."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._task.samples.batches(self._task.run.seed)


def by_accelerate(task: Task) -> nn.Module:
    """A training script as Accelerate's documentation writes it, with its tracker and its progress line."""
    accelerate, tracking = _import("accelerate"), _import("accelerate.tracking")

    class JsonLines(tracking.GeneralTracker):  # type: ignore[misc, name-defined]
        name, requires_logging_directory = "jsonl", False

        def __init__(self, path: Path) -> None:
            super().__init__()
            self.file = path.open("w", buffering=1)

        @property
        def tracker(self) -> Any:
            return self.file

        def log(self, values: dict[str, Any], step: int | None, **_: Any) -> None:
            self.file.write(json.dumps({"step": step, **values}) + "\n")

        def finish(self) -> None:
            self.file.close()

    with tempfile.TemporaryDirectory(prefix="dml-") as folder:
        accelerator = accelerate.Accelerator(cpu=True, log_with=JsonLines(Path(folder) / "metrics.jsonl"))
        accelerator.init_trackers("bench")
        model = task.model().layers
        prepared, optimizer, loader = accelerator.prepare(model, task.optimizer(model), DataLoader(Batches(task), batch_size=None))
        progress = accelerate.utils.tqdm(loader, total=task.steps, miniters=LOG_EVERY, file=io.StringIO())
        for number, (inputs, targets) in enumerate(progress, 1):
            loss = cross_entropy(prepared(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if number % LOG_EVERY == 0:
                accelerator.log({"loss": loss.item(), "lr": optimizer.param_groups[0]["lr"]}, step=number)
        accelerator.end_training()
    return model


def by_lightning(task: Task) -> nn.Module:
    """A LightningModule and a Trainer with its CSV logger and its progress bar; no checkpoints, no validation."""
    with _quiet():
        pl = _import("lightning.pytorch")

        class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.layers = task.model().layers

            def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
                inputs, targets = batch
                loss = cross_entropy(self.layers(inputs), targets)
                self.log("loss", loss, prog_bar=True)
                return loss

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return task.optimizer(self.layers)

        with tempfile.TemporaryDirectory(prefix="dml-") as folder:
            module = Module()
            trainer = pl.Trainer(
                accelerator="cpu",
                devices=1,
                max_steps=task.steps,
                max_epochs=-1,
                logger=pl.loggers.CSVLogger(folder, flush_logs_every_n_steps=LOG_EVERY),
                log_every_n_steps=LOG_EVERY,
                callbacks=[pl.callbacks.TQDMProgressBar(refresh_rate=LOG_EVERY)],
                enable_checkpointing=False,
                enable_model_summary=False,
            )
            trainer.fit(module, DataLoader(Batches(task), batch_size=None))
        layers: nn.Module = module.layers
        return layers


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what a framework says of itself off the result."""
    logging.getLogger("lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
