"""What a run left behind."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from dml_runner import models
from dml_runner.checkpoint.newest import newest
from dml_runner.checkpoint.read import Committed, open_step
from dml_runner.errors import ConfigError, Problem
from dml_runner.job import read_job_file
from dml_runner.run_folder import RunFolder


def load_model(path: Path) -> nn.Module:
    """The model of a run folder's newest sound step, or of the very step folder named.

    Raises:
        ConfigError: nothing was saved there, or it is damaged.
    """
    path = Path(os.path.abspath(path))
    in_run = path.parent.name == "checkpoints"
    folder = RunFolder(path.parent.parent if in_run else path)
    job = read_job_file(folder.job)
    committed = open_step(path) if in_run else _newest(folder)
    with torch.device("meta"):
        model = models.build(job.run.model, job.data)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            saved = committed.read(f"model/{name}")
            if saved.shape != tensor.shape:
                what = f"step {committed.step}: {name} has another shape than the model"
                raise ConfigError(Problem("run", what, got=str(list(saved.shape)), allowed=str(list(tensor.shape))))
            tensor.copy_(saved)
    return model.eval()


def _newest(folder: RunFolder) -> Committed:
    committed, _ = newest(folder.checkpoints)
    if committed is None:
        raise ConfigError(Problem("run", "no step was saved there", got=str(folder.path)))
    return committed
