"""What every strategy fills in the same way."""

from __future__ import annotations

import math

from dml_runner.facts import DataFacts
from dml_runner.hardware.profile import Profile
from dml_runner.layout import Batch, Layout, Mesh, Precision, Recomputed, Synchronisation, divide_batch
from dml_runner.run import Run
from dml_runner.schema.recompute import AutoRecompute, FullRecompute, SelectiveRecompute


def data_parallel(run: Run, data: DataFacts, profile: Profile, ranks: int, synchronisation: Synchronisation, bucket_mb: float) -> Layout:
    """A layout in which each of ``ranks`` devices holds the whole model and a share of the batch.

    Raises:
        PlanError: the batch words contradict each other or the number of ranks.
    """
    train = run.train
    batch = divide_batch(train.global_batch, train.micro_batch, train.accumulation, ranks)
    return spread(run, data, profile, Mesh(data=ranks), batch, synchronisation, bucket_mb)


def spread(
    run: Run, data: DataFacts, profile: Profile, mesh: Mesh, batch: Batch, synchronisation: Synchronisation, bucket_mb: float
) -> Layout:
    """What any layout on ``mesh`` takes from the words and the machine."""
    return Layout(
        strategy=run.strategy.name,
        engine=run.engine.name,
        mesh=mesh,
        nodes=min(profile.nodes, mesh.size),
        device=profile.device,
        backend=profile.backend,
        batch=batch,
        synchronisation=synchronisation,
        bucket_mb=bucket_mb,
        precision=precision(run, profile),
        steps=last_step(run, data, batch.global_batch),
        wire=run.quantize.gradients,
        wire_rank=run.quantize.rank,
        recompute=recomputed(run),
    )


def recomputed(run: Run) -> Recomputed:
    """What the words of ``recompute`` ask for; ``auto`` is decided once the model is known."""
    words = run.recompute
    if isinstance(words, FullRecompute):
        return Recomputed("inputs", words.every, words.offload)
    if isinstance(words, SelectiveRecompute):
        return Recomputed("products", offload=words.offload)
    if isinstance(words, AutoRecompute):
        return Recomputed("open", offload=words.offload, budget_gb=words.budget_gb)
    return Recomputed("none", offload=words.offload)


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
