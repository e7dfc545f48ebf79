"""Bytes that a rank holds: weights, gradients and optimizer state. Activations are not counted yet."""

from __future__ import annotations

from dml_runner.comm.wires.laws import encoded_bytes
from dml_runner.facts import ModelFacts
from dml_runner.layout import Layout, Servers
from dml_runner.schema.optimizer import AdamW, Optimizer

FP32 = 4


def state_bytes(model: ModelFacts, optimizer: Optimizer, layout: Layout) -> dict[str, int]:
    """Bytes by kind on the fullest rank's device; weights are fp32 (mixed precision keeps fp32 weights too).

    A worker of servers has no optimizer state. A server lives in host memory: where that is also the workers' memory, a server in a
    worker's process (``server``) is part of what its rank holds, and a server of its own may be the fullest rank.
    """
    trained = _trained(model)
    worker = {"weights": FP32 * sum(t.size for t in model.tensors), "gradients": FP32 * trained}
    if layout.servers is None:
        return worker | {"optimizer": FP32 * trained * _moments(optimizer)}
    share = server_bytes(model, optimizer, layout, layout.servers)
    if layout.device != "cpu":
        return worker
    if not layout.servers.dedicated:
        return worker | {"server": sum(share.values())}
    return max(worker, share, key=lambda held: sum(held.values()))


def server_bytes(model: ModelFacts, optimizer: Optimizer, layout: Layout, servers: Servers) -> dict[str, int]:
    """Bytes by kind that one server holds in host memory.

    Its share of weights, their gradient and optimizer state; what all workers' pushes fill; and, where workers do not wait for each
    other, a copy of the weights on the way to each; with replicas, the last two copies of its own share and of another server's.
    """
    share, workers = -(-_trained(model) // servers.count), layout.mesh.data
    push = FP32 * share if layout.wire == "none" else encoded_bytes(layout.wire, share)
    answers = 0 if servers.consistency == "bsp" else FP32 * share
    held = {
        "weights": FP32 * share,
        "gradients": FP32 * share,
        "optimizer": FP32 * share * _moments(optimizer),
        "pushes": workers * (push + answers),
    }
    return held | ({"replicas": 4 * (held["weights"] + held["optimizer"])} if servers.replicas else {})


def _trained(model: ModelFacts) -> int:
    return sum(t.size for t in model.tensors if t.trained)


def _moments(optimizer: Optimizer) -> int:
    if isinstance(optimizer, AdamW):
        return 2
    return 1 if optimizer.momentum else 0
