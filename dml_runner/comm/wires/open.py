"""Wires by their names."""

from __future__ import annotations

from dml_runner.comm.wires.base import AllReduce, Wire
from dml_runner.comm.wires.codecs import Bf16, Fp16, Int8, OneBit
from dml_runner.comm.wires.coded import CodedWire
from dml_runner.comm.wires.half import HalfWire
from dml_runner.comm.wires.powersgd import PowerSGD


def open_wire(name: str, all_reduce: AllReduce, power_rank: int = 1, feedback: bool = True) -> Wire:
    """The wire called ``name``.

    Args:
        name: one of ``laws.WIRES``.
        all_reduce: what fp16, bf16 and powersgd sum their buffers with.
        power_rank: of powersgd's factors.
        feedback: False switches error feedback off, which is there to be compared with.
    """
    if name == "powersgd":
        return PowerSGD(power_rank, all_reduce, feedback)
    halves: dict[str, Fp16 | Bf16] = {"fp16": Fp16(), "bf16": Bf16()}
    return HalfWire(halves[name], all_reduce) if name in halves else CodedWire(Int8() if name == "int8" else OneBit(), feedback)
