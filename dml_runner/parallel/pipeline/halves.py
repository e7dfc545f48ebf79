"""A backward pass in two halves: first the gradient of the input, that of most weights later (Qi et al. 2024, zero bubble).

In the graph of a stage, the way back to the input is computed at once. A weight meets that way at one operation, mostly: the gradient that
arrived there is kept, and enough to find the weight's own. A weight that meets it at several (a recurrent cell) would cost the whole way a
second time, so its gradient is computed in the first half.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

ACCUMULATES = "torch::autograd::AccumulateGrad"
"""Name of the node that adds to a leaf's gradient."""

Reverse = dict[Node, list[Node]]


@dataclass(frozen=True)
class _Meeting:
    """Where weights meet the way back to the input, and the gradients that arrived there."""

    node: Node
    gradients: tuple[Tensor | None, ...]
    weights: list[Tensor]


def whole(output: GradientEdge, gradient: Tensor | None) -> None:
    """Add to the gradients of all leaves behind ``output``; the graph's memory is freed."""
    torch.autograd.backward((output,), (gradient,))


def input_half(output: GradientEdge, gradient: Tensor | None, x: Tensor) -> Callable[[], None]:
    """Fill ``x.grad``; returns what adds to the gradients of the weights, once, and frees the graph.

    Together they do what ``whole`` does. The graph must not compute anything again in backward: each half would.

    Args:
        output: what the graph leads to.
        gradient: of it; None: it is a scalar, and 1.
        x: a leaf that wants a gradient.
    """
    root, start = output.node, get_gradient_edge(x).node
    above, leaves = _explored(root)
    way = _climb([start], above, frozenset())[0]
    meeting: dict[Node, list[Tensor]] = defaultdict(list)
    at_once = [x]
    for leaf in leaves:
        if leaf is not start:
            met = _climb([leaf], above, way)[1]
            (meeting[met.pop()] if len(met) == 1 else at_once).append(_weight(leaf))
    arrived: dict[Node, tuple[Tensor | None, ...]] = {}
    hooks = [node.register_prehook(partial(arrived.__setitem__, node)) for node in meeting]
    torch.autograd.backward((output,), (gradient,), retain_graph=True, inputs=at_once)
    for hook in hooks:
        hook.remove()
    return partial(_weights_half, [_Meeting(node, arrived[node], weights) for node, weights in meeting.items()])


def _weights_half(meetings: list[_Meeting]) -> None:
    while meetings:
        met = meetings.pop()
        there = [(GradientEdge(met.node, place), g) for place, g in enumerate(met.gradients) if g is not None]
        torch.autograd.backward([edge for edge, _ in there], [gradient for _, gradient in there], inputs=met.weights)


def _explored(root: Node) -> tuple[Reverse, list[Node]]:
    """For every node below ``root`` those that lead to it, and the nodes of leaves."""
    above: Reverse = {root: []}
    leaves, waiting = [], [root]
    while waiting:
        node = waiting.pop()
        below = node.next_functions
        if not below and node.name() == ACCUMULATES:
            leaves.append(node)
        for each, _ in below:
            if each is None:
                continue
            if each not in above:
                above[each] = []
                waiting.append(each)
            above[each].append(node)
    return above, leaves


def _climb(nodes: list[Node], above: Reverse, until: frozenset[Node] | set[Node]) -> tuple[set[Node], set[Node]]:
    """All nodes from which ``nodes`` are reached without passing one of ``until``, and those of ``until`` that were met."""
    passed, met = set(nodes), set()
    waiting = list(nodes)
    while waiting:
        for node in above.get(waiting.pop(), ()):
            if node in until:
                met.add(node)
            elif node not in passed:
                passed.add(node)
                waiting.append(node)
    return passed, met


def _weight(leaf: Any) -> Tensor:
    weight: Tensor = leaf.variable
    return weight
