"""Background: work on tensors that others wait for, one piece after the other, in a thread beside the one that computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import torch
from torch import Tensor
from torch.futures import Future


class Background:
    """A thread that does what it is given in the order it is given it, so that all ranks reduce in one order.

    Args:
        device: where the tensors live. On a GPU the work runs in a stream of its own, after what computed the tensor.

    Attributes:
        failure: what a piece of work failed of last; None: none did.
    """

    def __init__(self, device: torch.device) -> None:
        self.failure: Exception | None = None
        self._device = device
        self._waiting: queue.SimpleQueue[tuple[Future[Tensor], Tensor, Callable[[], None], torch.cuda.Event | None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="reduce", daemon=True).start()

    def submit(self, tensor: Tensor, work: Callable[[], None]) -> Future[Tensor]:
        """``tensor`` once ``work`` has changed it in place; what it raises is raised by who waits."""
        cuda = self._device.type == "cuda"
        future: Future[Tensor] = Future(devices=[self._device] if cuda else None)
        ready = torch.cuda.current_stream(self._device).record_event() if cuda else None
        self._waiting.put((future, tensor, work, ready))
        return future

    def _run(self) -> None:
        if self._device.type != "cuda":
            while True:
                self._do(*self._waiting.get()[:3])
        torch.cuda.set_device(self._device)
        stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(stream):
            while True:
                future, tensor, work, ready = self._waiting.get()
                if ready is not None:
                    stream.wait_event(ready)
                self._do(future, tensor, work)

    def _do(self, future: Future[Tensor], tensor: Tensor, work: Callable[[], None]) -> None:
        try:
            with torch.no_grad():
                work()
        except Exception as error:
            self.failure = error
            future.set_exception(error)  # type: ignore[arg-type]  # its stub wants a value
        else:
            future.set_result(tensor)
