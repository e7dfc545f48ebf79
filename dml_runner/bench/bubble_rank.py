"""One rank of ``dml bench bubble``: the executor with stages that sleep, and real messages between them."""

from __future__ import annotations

import gc
import sys
from typing import Any

import torch
from torch import Tensor

from dml_runner.bench.bubble_stages import Kept, Sleep, Stage
from dml_runner.bench.ranks import Place, be_rank
from dml_runner.comm.counter import Sent
from dml_runner.comm.links import Links
from dml_runner.layout import Stages
from dml_runner.parallel.pipeline.executor import Pipeline
from dml_runner.schedules import build


def work(told: Any, place: Place) -> Any:
    """For each job: start and end of every action of every rank in every step, and what each rank kept at most."""
    found = []
    for job in told["jobs"]:
        rank = Rank(job["schedule"], job["chunks"], job["microbatches"], told["seconds"], place)
        rank.step()  # the first tells what boundary tensors look like
        steps = [rank.step() for _ in range(told["rounds"])]
        found.append({"times": [times for times, _ in steps], "kept": steps[-1][1]})
        rank.pipeline.settle()
        place.barrier()
    return found


class Rank:
    """A rank's stages, and the executor that runs them.

    Args:
        schedule: its name.
        chunks: virtual stages a rank; together they take as long as one would.
        microbatches: of a step.
        seconds: of a forward of a whole rank.
        place: this rank among all.
    """

    def __init__(self, schedule: str, chunks: int, microbatches: int, seconds: float, place: Place) -> None:
        self._place, self._kept = place, Kept()
        self._batches = [{"number": torch.tensor([0])}] * microbatches
        sent, cpu = Sent(), torch.device("cpu")
        rising, falling, control = (Links(place.group, sent, tag=tag) for tag in (1, 2, 3))
        made = build(Stages(schedule, chunks, tuple(range(1, place.size * chunks))), place.size, microbatches)  # type: ignore[arg-type]
        self.pipeline = Pipeline(made, place.rank, rising, falling, control, cpu, record=True)
        sleep = Sleep(seconds / chunks)
        self._stages = {stage: Stage(sleep, stage == 0) for stage in made.stages_of(place.rank)}
        self._last, self._scale = made.stages - 1, torch.tensor(1.0)

    def step(self) -> tuple[list[list[list[float]]], list[int]]:
        """One step: of each rank its times, and the activations that it kept at most."""
        gc.collect()
        self._kept.clear()
        self._place.barrier()
        self.pipeline.step(self._batches, self._forward, lambda: self._scale, lambda stage: None)
        times = self._place.gather(self.pipeline.times)
        kept = self._place.gather(torch.tensor([self._kept.most]))
        return times.tolist(), kept.flatten().tolist()

    def _forward(self, stage: int, x: Tensor | None, micro: int) -> Tensor:
        with self._kept.watch():
            out: Tensor = self._stages[stage](x)
        return out.sum() if stage == self._last else out


if __name__ == "__main__":
    be_rank(sys.argv[1:], work)
