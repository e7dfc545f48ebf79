"""What each wire sends and remembers, as whole numbers of bytes; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from dml_runner.comm.laws import Traffic, share_sizes
from dml_runner.comm.laws import traffic as law

WIRES = ("fp16", "bf16", "int8", "onebit", "powersgd")
"""The names of all wires; gradients that travel as they are have none."""

FP32 = 4
BLOCKS = {"int8": 256, "onebit": 1024}
"""Values that share one fp32 scale: 1/64 of an int8 message, 1/33 of a onebit one."""

HEADER = {"fp16": FP32, "bf16": 0}
"""Bytes of a message before its halves: fp16 says by which power of two it was scaled."""


def encoded_bytes(wire: str, values: int) -> int:
    """Bytes of the message that ``values`` fp32 numbers become on fp16, bf16, int8 or onebit; ``values`` may be 0."""
    if wire in HEADER:
        return HEADER[wire] + 2 * values
    scales = FP32 * -(-values // BLOCKS[wire])
    return scales + (values if wire == "int8" else -(-values // 8))


def travels_as_factors(shape: Sequence[int], power_rank: int) -> bool:
    """Whether powersgd sends a gradient as two factors: it has two dimensions or more, and its factors are half its size or less."""
    rows, columns = _matrix(shape)
    return len(shape) > 1 and 2 * power_rank * (rows + columns) <= rows * columns


def traffic(
    wire: str, shapes: Sequence[Sequence[int]], ranks: int, algorithm: str = "ring", node: int | None = None, power_rank: int = 1
) -> Traffic:
    """What each rank moves to sum one bucket of gradients.

    int8 and onebit: a share's message to each owner, then the own sum's to everyone. fp16 first tells everyone its largest value.

    Args:
        wire: one of ``WIRES``.
        shapes: the bucket's gradients.
        algorithm, node: of the all-reduces that fp16, bf16 and powersgd use (``comm.laws.traffic``).
        power_rank: of powersgd's factors.
    """
    if ranks == 1:
        return Traffic((0,), (0,))
    values = sum(map(prod, shapes))
    if wire in BLOCKS:
        sizes = [encoded_bytes(wire, share) for share in share_sizes(values, ranks)]
        dealt, spread = [sum(sizes) - size for size in sizes], [(ranks - 1) * size for size in sizes]
        moved = tuple(map(sum, zip(dealt, spread, strict=True)))
        return Traffic(moved, moved)
    if wire in HEADER:
        reduced = [law("all_reduce", algorithm, values, 2, ranks, node=node)]
    else:
        reduced = [law("all_reduce", algorithm, buffer, FP32, ranks, node=node) for buffer in _buffers(shapes, power_rank)]
    largest = (ranks - 1) * HEADER.get(wire, 0)
    sent = zip(*(each.sent for each in reduced), strict=True)
    received = zip(*(each.received for each in reduced), strict=True)
    return Traffic(tuple(largest + sum(each) for each in sent), tuple(largest + sum(each) for each in received))


def memory_bytes(wire: str, shapes: Sequence[Sequence[int]], ranks: int, power_rank: int = 1) -> int:
    """Bytes a rank keeps from one step to the next for one bucket: errors in fp32, and powersgd's right factors."""
    if wire in HEADER or ranks == 1:
        return 0
    if wire in BLOCKS:
        return FP32 * sum(map(prod, shapes))
    factored = [_matrix(shape) for shape in shapes if travels_as_factors(shape, power_rank)]
    return FP32 * sum(columns * (rows + power_rank) for rows, columns in factored)


def _buffers(shapes: Sequence[Sequence[int]], power_rank: int) -> tuple[int, int]:
    """Values in powersgd's two all-reduces: left factors and what travels whole, then right factors."""
    factored = [_matrix(shape) for shape in shapes if travels_as_factors(shape, power_rank)]
    whole = sum(map(prod, shapes)) - sum(rows * columns for rows, columns in factored)
    return whole + power_rank * sum(rows for rows, _ in factored), power_rank * sum(columns for _, columns in factored)


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a gradient: its first dimension, and all others together."""
    return (shape[0], prod(shape[1:])) if shape else (1, 1)
