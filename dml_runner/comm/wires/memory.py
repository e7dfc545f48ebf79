"""Error feedback: what a codec lost is remembered and added to what is sent next (Seide et al. 2014; Karimireddy et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from dml_runner.comm.wires.buffers import Buffers
from dml_runner.comm.wires.codecs import Codec


class Memory:
    """Tensors by name that outlive a step. Whoever resumes with the same tensors under the same names goes on bit by bit.

    What is remembered has the unit of what was encoded: a loss scale that changes has to be divided out before.

    Args:
        feedback: False forgets every error: what is sent is then wrong in the same way again and again. It is there to be
            compared with.
    """

    def __init__(self, feedback: bool = True) -> None:
        self._feedback = feedback
        self._tensors: dict[str, Tensor] = {}
        self._buffers = Buffers()

    def encode(self, codec: Codec, name: str, flat: Tensor, out: Tensor | None = None) -> Tensor:
        """The message for ``flat`` plus what is remembered under ``name``; remembers what it leaves out. ``flat`` stays as it is.

        ``out`` is as in Codec.encode. One thread at a time.

        Errors that are not finite are forgotten: a step that overflowed must not spoil those after it.
        """
        if not self._feedback:
            return codec.encode(flat, out)
        lost = self.recall(name, flat.shape, flat.device).add_(flat)
        message = codec.encode(lost, out)
        (room,) = self._buffers.pieces([flat.nbytes], flat.device)
        lost.sub_(codec.decode(message, flat.numel(), room.view(torch.float32)))
        forget_non_finite(lost)
        return message

    def recall(self, name: str, shape: Sequence[int], device: torch.device, first: Callable[[], Tensor] | None = None) -> Tensor:
        """What is remembered under ``name``, to be changed in place; at first what ``first`` makes, or zeros (fp32)."""
        found = self._tensors.get(name)
        if found is None:
            found = torch.zeros(*shape) if first is None else first()
        assert found.shape == torch.Size(shape), f"{name} was remembered as {tuple(found.shape)} and is {tuple(shape)}: another layout"
        self._tensors[name] = found = found.to(device)
        return found

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Everything remembered, by name: the tensors themselves, which the next step changes."""
        yield from self._tensors.items()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Remember copies of ``state`` and nothing else; the layout must be that of the run they come from."""
        self._tensors = {name: tensor.clone() for name, tensor in state.items()}


def forget_non_finite(errors: Tensor) -> None:
    """Zero in place of what is not finite."""
    errors.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
