"""Bytes that a rank holds: weights, gradients, optimizer state and, where the model's pieces were measured, activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dml_runner.comm.wires.laws import encoded_bytes
from dml_runner.facts import ModelFacts, Piece, TensorFact
from dml_runner.layout import Layout, Servers
from dml_runner.planning.activations import FP32, are_known, pieces_of, rank_activations
from dml_runner.schema.optimizer import AdamW, Optimizer
from dml_runner.tensor_rules import part_of


def rank_bytes(model: ModelFacts, optimizer: Optimizer, layout: Layout) -> tuple[dict[str, int], ...]:
    """Bytes by kind on the fullest device of each pipeline rank: ``state_bytes``, and a worker's ``activations`` where they are known."""
    states = [devices_of(model, optimizer, layout, rank) for rank in range(layout.mesh.pipeline)]
    if are_known(model, layout):
        for (worker, *_), most in zip(states, rank_activations(model, layout), strict=True):
            worker["activations"] = most
    return tuple(map(_fullest, states))


def state_bytes(model: ModelFacts, optimizer: Optimizer, layout: Layout) -> dict[str, int]:
    """Bytes by kind on the fullest rank's device; weights are fp32 (mixed precision keeps fp32 weights too).

    A stage has its own pieces' tensors, and the last one those that the head borrows from the stem (tied embeddings); a rank of a tensor
    split has its part of what that divides; under ``zero_stage`` 1 the optimizer's state is divided over the replicas (Rajbhandari et al.
    2020). A worker of servers has no optimizer state. A server lives in host memory: where that is also the workers' memory, a server in
    a worker's process (``server``) is part of what its rank holds, and a server of its own may be the fullest rank.
    """
    return _fullest(_fullest(devices_of(model, optimizer, layout, rank)) for rank in range(layout.mesh.pipeline))


def _fullest(devices: Iterable[dict[str, int]]) -> dict[str, int]:
    return max(devices, key=lambda held: sum(held.values()))


def devices_of(model: ModelFacts, optimizer: Optimizer, layout: Layout, pipeline_rank: int) -> list[dict[str, int]]:
    """What a worker holds without activations, and behind it what a server does that may be fuller."""
    tensors = [(tensor, _elements(model, layout, tensor)) for tensor in _tensors_of(model, layout, pipeline_rank)]
    trained = sum(count for tensor, count in tensors if tensor.trained)
    worker = {"weights": FP32 * sum(count for _, count in tensors), "gradients": FP32 * trained}
    if layout.servers is None:
        shares = layout.mesh.data if layout.zero_stage else 1
        return [worker | {"optimizer": FP32 * -(-trained // shares) * _moments(optimizer)}]
    share = server_bytes(model, optimizer, layout, layout.servers)
    if layout.device != "cpu":
        return [worker]
    return [worker, share] if layout.servers.dedicated else [worker | {"server": sum(share.values())}]


def _tensors_of(model: ModelFacts, layout: Layout, pipeline_rank: int) -> Iterable[TensorFact]:
    """Of the stages on a pipeline rank; of an undivided model or one whose pieces were not measured, all."""
    if layout.stages is None or not model.pieces or model.undivided is not None:
        return model.tensors
    mine = pieces_of(model, layout)[pipeline_rank :: layout.mesh.pipeline]
    names = {name for pieces in mine for piece in pieces for name in _names(piece)}
    return [tensor for tensor in model.tensors if tensor.name in names]


def _names(piece: Piece) -> Iterator[str]:
    yield from piece.tensors
    yield from piece.borrowed


def _elements(model: ModelFacts, layout: Layout, tensor: TensorFact) -> int:
    """Of a tensor, on the last rank of the tensor axis, which has no less than any other."""
    ranks = layout.mesh.tensor
    part = part_of(model.plan, tensor.name, tensor.shape, ranks - 1, ranks) if ranks > 1 else None
    return tensor.size if part is None else TensorFact(tensor.name, part.shape(tensor.shape)).size


def server_bytes(model: ModelFacts, optimizer: Optimizer, layout: Layout, servers: Servers) -> dict[str, int]:
    """Bytes by kind that one server holds in host memory.

    Its share of weights, their gradient and optimizer state; what all workers' pushes fill; and, where workers do not wait for each
    other, a copy of the weights on the way to each; with replicas, the last two copies of its own share and of another server's.
    """
    trained = sum(tensor.size for tensor in model.tensors if tensor.trained)
    share, workers = -(-trained // servers.count), layout.mesh.data
    push = FP32 * share if layout.wire == "none" else encoded_bytes(layout.wire, share)
    answers = 0 if servers.consistency == "bsp" else FP32 * share
    held = {
        "weights": FP32 * share,
        "gradients": FP32 * share,
        "optimizer": FP32 * share * _moments(optimizer),
        "pushes": workers * (push + answers),
    }
    return held | ({"replicas": 4 * (held["weights"] + held["optimizer"])} if servers.replicas else {})


def _moments(optimizer: Optimizer) -> int:
    if isinstance(optimizer, AdamW):
        return 2
    return 1 if optimizer.momentum else 0
