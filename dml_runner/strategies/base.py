"""What every strategy fills in the same way."""

from __future__ import annotations

import math

from dml_runner.facts import DataFacts
from dml_runner.hardware.profile import Profile
from dml_runner.layout import Layout, Mesh, Precision, Synchronisation, divide_batch
from dml_runner.run import Run


def data_parallel(run: Run, data: DataFacts, profile: Profile, ranks: int, synchronisation: Synchronisation, bucket_mb: float) -> Layout:
    """A layout in which each of ``ranks`` devices holds the whole model and a share of the batch.

    Raises:
        PlanError: the batch words contradict each other or the number of ranks.
    """
    train = run.train
    batch = divide_batch(train.global_batch, train.micro_batch, train.accumulation, ranks)
    return Layout(
        strategy=run.strategy.name,
        engine=run.engine.name,
        mesh=Mesh(data=ranks),
        nodes=min(profile.nodes, ranks),
        device=profile.device,
        backend=profile.backend,
        batch=batch,
        synchronisation=synchronisation,
        bucket_mb=bucket_mb,
        precision=precision(run, profile),
        steps=last_step(run, data, batch.global_batch),
        wire=run.quantize.gradients,
        wire_rank=run.quantize.rank,
    )


def precision(run: Run, profile: Profile) -> Precision:
    """The number format, ``auto`` decided by the profile."""
    asked = run.train.precision
    if asked == "auto":
        return "bf16" if profile.bf16 else "fp32"
    return asked


def last_step(run: Run, data: DataFacts, global_batch: int) -> int:
    """Number of the last update: ``train.steps``, or as many as ``train.epochs`` passes need."""
    if run.train.epochs is None:
        return run.train.steps
    return max(1, math.ceil(run.train.epochs * data.train_samples / global_batch))
