"""``dml bench split``: the runner's loop with a split model beside a script written by hand on the same pieces of torch, on two ranks.

Both take turns in the same processes, from the same weights and with the same samples; turns of one pair are compared. Before that
their losses are, and what a step sends is counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dml_runner.bench.machine import machine, told
from dml_runner.bench.page import write_page
from dml_runner.bench.ranks import here, run_module
from dml_runner.bench.split_words import RANKS, WARM_UP, SplitWords, split_words
from dml_runner.bench.statistics import Estimate, estimate
from dml_runner.errors import RunFailed

CHECKED = 5
"""Updates whose losses are compared, and whose bytes are counted."""
CLOSE = 1e-4
"""By how much the losses of the two sides may differ."""
FP32 = 4
AGAINST = {
    "pipeline": "torch.distributed.pipelining: PipelineStage and Schedule1F1B",
    "tensor": "autograd functions about dist.all_reduce, as in Megatron-LM",
}


@dataclass(frozen=True)
class Traffic:
    """What a step sends.

    Attributes:
        layout: in words.
        counted: bytes of the rank that sends most, counted where they are sent.
        law: what they must be.
        why: the law, in words.
    """

    layout: str
    counted: int
    law: int
    why: str


def measure(words: Sequence[str]) -> str:
    """Both sides as text that ends with a newline: a table, or JSON.

    Raises:
        ConfigError: a word is wrong.
        RunFailed: a rank failed, or the two sides do not train the same.
    """
    asked = split_words(words)
    ask = {
        "what": asked.what,
        "job": asked.job(steps=WARM_UP + asked.steps, log_every=10),
        "check": asked.job(steps=CHECKED, log_every=1),
        "counted": [asked.job(*more, steps=CHECKED, log_every=1) for more in variants(asked.what).values()],
        "pairs": asked.pairs,
        "interface": None,
    }
    found: dict[str, Any] = run_module("dml_runner.bench.split_rank", ask, [here] * RANKS, "lo")
    difference = max(abs(mine - plain) for mine, plain in zip(*found["losses"].values(), strict=True))
    if not difference <= CLOSE:
        raise RunFailed(f"the two sides do not train the same: their losses are {found['losses']}")
    counted = zip(variants(asked.what), found["counted"], strict=True)
    traffic = [Traffic(layout, max(each["bytes"]), *law(asked, layout)) for layout, each in counted]
    turns: dict[str, list[float]] = found["turns"]
    ratio = estimate([mine / plain for mine, plain in zip(*turns.values(), strict=True)])
    sides = {name: estimate(values) for name, values in turns.items()}
    table = _table(asked, sides, ratio, difference, traffic)
    if asked.page is not None:
        write_page(asked.page, asked.mark, f"```\n{table}```\n")
    if asked.form == "table":
        return table
    figures = {"sides": {name: asdict(side) for name, side in sides.items()}, "ratio": asdict(ratio), "losses": found["losses"]}
    known = {name: value for name, value in asdict(asked).items() if name not in ("page", "form")}
    return json.dumps({**known, **figures, "traffic": [asdict(each) for each in traffic], "machine": machine()}, indent=2) + "\n"


def variants(what: str) -> dict[str, list[str]]:
    """Layouts whose bytes are counted: in words, and the words that make them of the job."""
    if what == "pipeline":
        return {"pipeline": [], "pipeline, tied": ["model.tied=true"]}
    return {"tensor": [], "tensor, by position": ["strategy.sequence_parallel=true"]}


def law(asked: SplitWords, layout: str) -> tuple[int, str]:
    """Bytes that the rank which sends most must send in a step of a ``layout`` on two ranks, and what they are.

    With S = batch x length x hidden in fp32: a pipeline sends S of activations forward and S of their gradients back, and the gradient
    of a tied embedding round a ring of two. Split layers (Shoeybi et al. 2019, section 3) all-reduce S, of which each rank sends
    2 (n - 1) / n, twice each way in a block, once for the embedding and once for the projection's input, and gather two numbers a
    position for the loss. By position (Korthikanti et al. 2022, section 4.2) each all-reduce is a reduce-scatter and an all-gather of
    the same bytes; there is one all-gather more each way, and the gradients of norms and row biases are summed.
    """
    positions = asked.batch * asked.length
    boundary = positions * asked.hidden * FP32
    if asked.what == "pipeline":
        tied = asked.vocabulary * asked.hidden * FP32 if "tied" in layout else 0
        return boundary + tied, "boundary activations, or their gradients" + (", and the embedding's gradient" if tied else "")
    summed = 2 * (RANKS - 1) * boundary // RANKS
    blocks, loss = 4 * asked.layers * summed, 2 * FP32 * (RANKS - 1) * positions
    if "position" not in layout:
        return blocks + 2 * summed + loss, "two all-reduces a block each way, two for the tokens, and the loss"
    vectors = 2 * (RANKS - 1) * (6 * asked.hidden * asked.layers * FP32) // RANKS
    return blocks + 3 * summed + loss + vectors, "the same, one all-gather each way, and vectors' gradients"


def _table(asked: SplitWords, sides: dict[str, Estimate], ratio: Estimate, difference: float, traffic: Sequence[Traffic]) -> str:
    lines = [f"{'loop':<14} {'ms a step':>9}   95 % interval"]
    lines += [f"{name:<14} {took.median * 1e3:>9.1f}   {took.low * 1e3:.1f} to {took.high * 1e3:.1f}" for name, took in sides.items()]
    lines += [f"{'dml / by hand':<14} {ratio.median:>9.3f}   {ratio.low:.3f} to {ratio.high:.3f}", ""]
    lines.append(f"{'sent a step':<20} {'bytes':>12} {'by law':>12}   what")
    lines += [f"{each.layout:<20} {each.counted:>12,} {each.law:>12,}   {each.why}" for each in traffic]
    micro = f" in {asked.microbatches} micro-batches" if asked.what == "pipeline" else ""
    lines += [
        "",
        f"by hand: {AGAINST[asked.what]}",
        f"{RANKS} ranks, 1 thread each, over the loopback; median of {asked.pairs} alternating pairs of {asked.steps} updates",
        f"gpt, {asked.layers} blocks of {asked.hidden}, {asked.vocabulary} tokens, untied; {asked.batch} texts of {asked.length}{micro}",
        f"losses of the first {CHECKED} updates differ by {difference:.1e} at most; bytes are those of the rank that sends most",
        told(machine()),
    ]
    return "".join(f"{line}\n" for line in lines)
