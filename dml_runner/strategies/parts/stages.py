"""What the strategies that divide a model share: micro-batches for stages, and what does not go with a divided model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dml_runner.errors import PlanError, Problem
from dml_runner.layout import Batch, Stages, divide_batch
from dml_runner.run import Run
from dml_runner.schema.model import Resnet
from dml_runner.schema.strategy import Schedule


def stages_of(schedule: Schedule, chunks: int | None, boundaries: Sequence[int] | None, ranks: int) -> Stages:
    """The stages that the words describe, the cut open where they name none.

    Raises:
        PlanError: the boundaries are not as many as the stages need, in rising order.
    """
    each = chunks or (2 if schedule == "interleaved_1f1b" else 1)
    cut = tuple(boundaries or ())
    if cut and (len(cut) != ranks * each - 1 or list(cut) != sorted(set(cut))):
        what = f"{ranks} stages x {each} chunks have {ranks * each - 1} boundaries, each higher than the one before"
        raise PlanError(Problem("strategy.boundaries", what, got=str(list(cut)), hint="null cuts by cost"))
    return Stages(schedule, each, cut)


def staged_batch(run: Run, microbatches: int | None, stages: int, data_ranks: int) -> Batch:
    """The batch of a replica that is a row of stages: micro-batches in the place of accumulation.

    Raises:
        PlanError: the numbers contradict each other, or the data ranks do not divide the global batch.
    """
    train = run.train
    if microbatches is not None and train.accumulation not in (None, microbatches):
        what = "with stages strategy.microbatches takes its place"
        raise PlanError(Problem("train.accumulation", what, got=str(train.accumulation), allowed=f"null, {microbatches}"))
    times = microbatches or train.accumulation
    batch = divide_batch(train.global_batch, train.micro_batch, times, data_ranks)
    if times is not None or (train.micro_batch is not None and train.global_batch is not None):
        return batch
    share = batch.micro_batch * batch.accumulation
    count = next((number for number in range(2 * stages, share + 1) if share % number == 0), share)
    return Batch(batch.global_batch, share // count, count, data_ranks)


def not_divided(run: Run) -> Iterator[Problem]:
    """What of the words does not go with a model that is divided over ranks."""
    if run.quantize.gradients != "none":
        what = f"strategy={run.strategy.name} sends gradients as they are"
        yield Problem("quantize.gradients", what, got=run.quantize.gradients, allowed="none", hint="or strategy=all_reduce")


def not_staged(run: Run, batch: Batch) -> Iterator[Problem]:
    """What of the words does not go with stages."""
    if isinstance(run.model, Resnet) and run.model.norm == "batch" and batch.accumulation > 1:
        what = f"batch norm would see {batch.accumulation} micro-batches where one device sees one batch"
        yield Problem("model.norm", what, got="batch", allowed="group", hint="or strategy.microbatches=1")


def not_filled(key: str, degree: int, devices: int, beside: str = "") -> PlanError:
    """The error where an axis's degree, times what stands ``beside`` it, does not divide the devices."""
    hint = "devices = hardware.nodes x hardware.devices_per_node"
    return PlanError(Problem(key, f"does not divide the {devices} device(s)", got=f"{degree}{beside}", allowed="a divisor", hint=hint))
