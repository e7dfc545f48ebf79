"""What a run left behind."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from dml_runner import models
from dml_runner.checkpoint.newest import newest
from dml_runner.checkpoint.read import Committed, open_step
from dml_runner.checkpoint.verify import KEY
from dml_runner.checkpoint.weights import fill
from dml_runner.errors import ConfigError, Problem
from dml_runner.job import Job, read_job_file
from dml_runner.launch.eval_words import run_folder_of
from dml_runner.models.base import Model
from dml_runner.run_folder import RunFolder


@dataclass(frozen=True)
class Trained:
    """A saved step of a run.

    Attributes:
        folder: the run folder.
        job: what the run set out to do.
        step: the step, verified.
        notices: what was passed over on the way to it.
    """

    folder: RunFolder
    job: Job
    step: Committed
    notices: tuple[str, ...]


def find(path: Path) -> Trained:
    """The newest sound step of a run folder, or the very step folder named.

    Raises:
        ConfigError: it is no run folder and no step of one, nothing was saved there, or it is damaged.
    """
    folder = RunFolder(run_folder_of(path))
    job = read_job_file(folder.job)
    try:
        named = folder.path != Path(os.path.abspath(path))
        committed, notices = (open_step(path), []) if named else newest(folder.checkpoints)
    except ConfigError as error:
        raise ConfigError(*(replace(each, key="run") if each.key == KEY else each for each in error.problems)) from None
    if committed is None:
        raise ConfigError(Problem("run", "no step was saved there", got=str(folder.path)))
    return Trained(folder, job, committed, tuple(notices))


def model_of(trained: Trained) -> Model:
    """The model with the step's weights, on the CPU, ready to evaluate.

    Raises:
        ConfigError: the weights are of another model.
    """
    with torch.device("meta"):
        model = models.build(trained.job.run.model, trained.job.data)
    model.to_empty(device="cpu")
    model.initialise_buffers()
    fill(model.state_dict(), trained.step)
    return model.eval()


def load_model(path: Path) -> nn.Module:
    """The model of a run folder's newest sound step, or of the very step folder named.

    Raises:
        ConfigError: nothing was saved there, or it is damaged.
    """
    return model_of(find(path))
