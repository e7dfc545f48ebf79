"""Replicas: every rank holds the whole module, and gradients are summed while backward goes on."""

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dml_runner.comm.counter import Sent, all_reduce_bytes


class Replicas:
    """A module whose gradients are summed over all ranks, bucket by bucket, in the last backward of a step.

    torch's DistributedDataParallel moves the buckets. It settles their order after the first backward it sees; ``settle``
    brings that about before the first step, so that a resumed run reduces in the same order as one that never stopped.
    """

    def __init__(self, module: nn.Module, device: torch.device, bucket_mb: float, sent: Sent) -> None:
        self._sent = sent
        self._ranks = dist.get_world_size()
        self.handed_over_at = 0.0
        with warnings.catch_warnings():
            # the name that torch 2.13 asks for instead does not exist in 2.11, and moves buffers at the start
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            self.module = DistributedDataParallel(
                module,
                device_ids=[device] if device.type == "cuda" else None,
                bucket_cap_mb=bucket_mb,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                init_sync=False,
            )
        self.module.register_comm_hook(None, self._sum)

    def accumulate(self) -> AbstractContextManager[None]:
        """Inside, backward adds to this rank's gradients and sends nothing."""
        quiet: AbstractContextManager[None] = self.module.no_sync()
        return quiet

    def settle(self, backward: Callable[[nn.Module], None]) -> None:
        """Fix the order of buckets by two runs of ``backward`` through the module, whose gradients are dropped.

        The order comes from the first; the ranks agree on it at the beginning of the second, so that no step has to.
        """
        for _ in range(2):
            backward(self.module)
        self.module.zero_grad(set_to_none=True)
        self._sent.take()

    def _sum(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer()
        self._sent.add(all_reduce_bytes(buffer.nbytes, self._ranks))
        work = dist.all_reduce(buffer, async_op=True)
        self.handed_over_at = time.perf_counter()
        reduced: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
        return reduced
