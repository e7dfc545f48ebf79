"""Window: the steps since the last row of metrics.jsonl, and the row they become."""

from __future__ import annotations

import resource
from typing import Any

import torch

from dml_runner.comm.world import World
from dml_runner.engines.base import StepReport


class Window:
    """Sums of times over the steps since the last row; a row holds their means over steps, and the slowest rank's.

    ``steps`` is how many there are.
    """

    def __init__(self, world: World, samples: int, tokens: int) -> None:
        """``samples`` and ``tokens`` are those of one update over all ranks."""
        self._world = world
        self._samples = samples
        self._tokens = tokens
        self._clear()

    def _clear(self) -> None:
        self.steps = 0
        self._step_s = self._data_wait_s = self._forward_backward_s = self._comm_wait_s = self._update_s = 0.0
        self._sent = 0

    def add(self, report: StepReport, step_s: float, data_wait_s: float, border_s: float) -> None:
        """Take in one update.

        Args:
            report: of the engine.
            step_s: seconds of the whole step.
            data_wait_s: those waiting for its batch.
            border_s: those waiting for the other ranks at its border, which the report counts as computing.
        """
        self.steps += 1
        self._step_s += step_s
        self._data_wait_s += data_wait_s
        self._forward_backward_s += report.forward_backward_s - border_s
        self._comm_wait_s += report.comm_wait_s + border_s
        self._update_s += report.update_s
        self._sent = self._world.sent.take()

    def row(self, step: int, report: StepReport, rate: float, weight: float) -> tuple[dict[str, Any], list[float]]:
        """The row of ``step`` and each rank's own mean computing time in seconds; called by all ranks together."""
        n = self.steps
        mine = [float(report.loss_sum), self._step_s / n, self._data_wait_s / n, self._forward_backward_s / n]
        mine += [self._comm_wait_s / n, self._update_s / n, self._sent, memory_bytes(self._world.device)]
        ranks = self._world.gather(mine).tolist()
        self._clear()
        losses, *slowest = zip(*ranks, strict=True)
        step_s, data_wait_s, forward_backward_s, comm_wait_s, update_s, sent, memory = map(max, slowest)
        row = self.told(
            step=step,
            loss=sum(losses) / weight,
            lr=rate,
            grad_norm=report.grad_norm(),
            step_time_s=step_s,
            data_wait_s=data_wait_s,
            forward_backward_s=forward_backward_s,
            comm_wait_s=comm_wait_s,
            update_s=update_s,
            comm_bytes=int(sent),
            memory_bytes=int(memory),
        )
        return row, [waiting + computing for _, _, waiting, computing, *_ in ranks]

    def told(
        self,
        *,
        step: int,
        loss: float,
        lr: float,
        grad_norm: float,
        step_time_s: float,
        data_wait_s: float,
        forward_backward_s: float,
        comm_wait_s: float,
        update_s: float,
        comm_bytes: int,
        memory_bytes: int,
    ) -> dict[str, Any]:
        """A row of metrics.jsonl: what all rows of training have, in their order."""
        return {
            "step": step,
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "step_time_s": step_time_s,
            "data_wait_s": data_wait_s,
            "forward_backward_s": forward_backward_s,
            "comm_wait_s": comm_wait_s,
            "update_s": update_s,
            "comm_bytes": comm_bytes,
            "samples_per_s": self._samples / step_time_s,
            "tokens_per_s": self._tokens / step_time_s,
            "memory_bytes": memory_bytes,
        }


def memory_bytes(device: torch.device) -> int:
    """Most memory this process has held: reserved on the GPU, or resident in the host, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
