"""Replicas: every rank holds the whole module, and gradients are summed while backward goes on."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dml_runner.comm import helped
from dml_runner.comm.background import Background
from dml_runner.comm.collectives import all_reduce
from dml_runner.comm.counter import Sent, all_reduce_bytes
from dml_runner.comm.links import Links
from dml_runner.comm.wires.base import AllReduce, Wire
from dml_runner.comm.wires.open import open_wire
from dml_runner.parallel.flat import batches
from dml_runner.schema.quantize import Wire as WireName
from dml_runner.schema.strategy import Algorithm

MB = 2**20


WISHES = 3
"""The highest number that can travel with gradients."""


class Sum:
    """How tensors are summed over ranks.

    Args:
        links: the ranks that train.
        algorithm: how they sum.
        node: ranks a node, for ``hierarchical``.
        wire: form of gradients on the way.
        rank: of the matrices a ``powersgd`` wire sends.
        helped: the same ranks and then helpers, which sum with them instead, in host memory; None: there are none.
    """

    def __init__(
        self, links: Links, algorithm: Algorithm, node: int, wire: WireName = "none", rank: int = 4, helped: Links | None = None
    ) -> None:
        self.links, self.helped = links, helped
        self._reduce: AllReduce = partial(all_reduce, algorithm=algorithm, node=node) if helped is None else self._with_helpers
        self.by_backend = algorithm == "backend" and wire == "none" and helped is None
        self.wire: Wire | None = None if wire == "none" else open_wire(wire, self._reduce, rank)

    def weights(self, flat: Tensor) -> None:
        """Sum weights, as they are, in place."""
        self._reduce(self.links, flat)

    def gradients(self, bucket: dist.GradBucket) -> None:
        """Sum a bucket of gradients in place."""
        buffer = bucket.buffer()
        flat = buffer if self.helped is None else buffer.cpu()  # helpers may have no GPU; of what is in host memory it is no copy
        if self.wire is None:
            self._reduce(self.links, flat)
        else:
            self.wire.all_reduce(self.links, bucket.index(), flat, bucket.gradients())
        if flat is not buffer:
            buffer.copy_(flat)

    def announce(self, buckets: Mapping[int, int]) -> None:
        """Tell helpers, if there are some, the elements of each bucket."""
        if self.helped is not None:
            helped.announce(self.helped, self.links.size, [size for _, size in sorted(buckets.items())])

    def _with_helpers(self, _: Links, flat: Tensor) -> None:
        assert self.helped is not None
        helped.all_reduce(self.helped, flat, self.links.size)


class _Worded(nn.Module):
    """A module, and beside its parameters a word whose gradient is what each rank tells the others: a 1 at the place of its wish."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.module = module
        self.word = nn.Parameter(torch.zeros(WISHES, device=device))
        self.wishes = torch.eye(WISHES + 1, WISHES, device=device).roll(1, 0)

    def forward(self, *arguments: object) -> object:
        """The module's output."""
        return self.module(*arguments)


class Replicas:
    """A module whose gradients are summed over the ranks that train, bucket by bucket, in the last backward of a step.

    torch's DistributedDataParallel moves the buckets. It settles their order after the first backward it sees; ``settle``
    brings that about before the first step, so that a resumed run reduces in the same order as one that never stopped.

    Attributes:
        module: what is called in place of the module.
        handed_over_at: when the last bucket was given away, by ``time.perf_counter``.
        buckets: elements of each bucket, once settled.
        wish: number from 0 to WISHES that this rank tells the others with the gradients of a step.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        bucket_mb: float,
        sent: Sent,
        how: Sum,
        group: dist.ProcessGroup | None = None,
        carrying: bool = False,
    ) -> None:
        """``group`` is that of the ranks that train; None: all do. ``carrying``: wishes travel with gradients, if ``how`` allows it."""
        self._sent = sent
        self._group, self._ranks = group, dist.get_world_size(group)
        self._how = how
        self._bucket = max(1, int(bucket_mb * MB) // 4)
        self._trained = [p for p in module.parameters() if p.requires_grad]
        self._background = None if how.by_backend else Background(device)
        self._settling = False
        self._worded = _Worded(module, device) if carrying and how.by_backend else None
        self.wish = 0
        self.handed_over_at = 0.0
        self.buckets: dict[int, int] = {}
        with warnings.catch_warnings():
            # the name that torch 2.13 asks for instead does not exist in 2.11, and moves buffers at the start
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            self.module = DistributedDataParallel(
                module if self._worded is None else self._worded,
                device_ids=[device] if device.type == "cuda" else None,
                process_group=group,
                bucket_cap_mb=bucket_mb,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                init_sync=False,
            )
        self.module.register_comm_hook(None, self._sum)

    @property
    def carries(self) -> bool:
        """Whether a wish travels with the gradients: one message less, where the backend sums them as they are."""
        return self._worded is not None

    def backward(self, total: Tensor, scale: Tensor | None = None) -> None:
        """Gradients of ``total``, times ``scale``; in the last backward of a step with this rank's wish, if it travels so."""
        if self._worded is None or not self.module.require_backward_grad_sync:
            total.backward(scale)
        else:
            worded = self._worded
            worded.word.grad = None
            torch.autograd.backward((total, worded.word), (scale, worded.wishes[self.wish]))

    def wished(self) -> int:
        """The highest wish of all ranks, after the last backward of a step."""
        assert self._worded is not None, "no wish travels here"
        assert self._worded.word.grad is not None, "no gradients were summed"
        told = self._worded.word.grad.tolist()
        return max((number for number, count in enumerate(told, start=1) if count), default=0)

    def accumulate(self) -> AbstractContextManager[None]:
        """Inside, backward adds to this rank's gradients and sends nothing."""
        quiet: AbstractContextManager[None] = self.module.no_sync()
        return quiet

    def settle(self, backward: Callable[[nn.Module], None]) -> None:
        """Fix the order of buckets by two runs of ``backward`` through the module, whose gradients are dropped.

        The order comes from the first; the ranks agree on it at the beginning of the second, so that no step has to.
        """
        self._settling = True
        for _ in range(2):
            self.buckets.clear()
            backward(self.module)
            self.restore({})
        self._settling = False
        self.module.zero_grad(set_to_none=True)
        self._how.announce(self.buckets)
        self._sent.take()

    def average(self) -> None:
        """Give every rank the mean of all ranks' weights (local SGD: Stich 2019, algorithm 1)."""
        with torch.no_grad():
            for parameters in batches(self._trained, self._bucket):
                flat = torch.cat([p.flatten() for p in parameters])
                self._how.weights(flat)
                flat /= self._ranks
                for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                    parameter.copy_(mean.view_as(parameter))

    def check(self) -> None:
        """Raise what a sum failed of, if one did: torch's own error of it would not say."""
        if self._background is not None and self._background.failure is not None:
            raise self._background.failure

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """What the wire remembers on this rank, by name."""
        if self._how.wire is not None:
            yield from self._how.wire.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Have the wire remember ``state``."""
        if self._how.wire is not None:
            self._how.wire.restore(state)

    def _sum(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer()
        if self._worded is None:
            self.buckets[bucket.index()] = buffer.numel()
        elif self._settling:
            self.buckets[bucket.index()] = sum(p.numel() for p in bucket.parameters() if p is not self._worded.word)
        if self._settling and self._how.helped is not None:  # helpers do not know the buckets yet
            kept: torch.futures.Future[Tensor] = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else None)
            kept.set_result(buffer)
            return kept
        if self._background is not None:
            summed = self._background.submit(buffer, partial(self._how.gradients, bucket))
            self.handed_over_at = time.perf_counter()
            return summed
        self._sent.add(all_reduce_bytes(self.buckets[bucket.index()] * buffer.element_size(), self._ranks))
        work = dist.all_reduce(buffer, group=self._group, async_op=True)
        self.handed_over_at = time.perf_counter()
        reduced: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
        return reduced
