"""Where a model is cut, what a layout leaves open and how it is closed, and what each rank of a pipeline is said to hold."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from test_planning import LLAMA, TEXT, data_of, profile

from dml_runner.config import compose
from dml_runner.errors import PlanError
from dml_runner.facts import ModelFacts
from dml_runner.hardware.profile import Profile
from dml_runner.layout import Layout, Recomputed
from dml_runner.planning.activations import rank_activations, stage_activations
from dml_runner.planning.close import close
from dml_runner.planning.cut import Loads, cut, loads_of
from dml_runner.planning.memory import rank_bytes
from dml_runner.planning.plan import NOT_COUNTED, Plan, lay_out, make_plan
from dml_runner.planning.shape import measure
from dml_runner.planning.table import render

GPT = ("model=gpt_tiny", "model.layers=8", "train.micro_batch=4", "strategy=pipeline", "strategy.microbatches=8")
FOUR = profile(4)


@cache
def opened(*words: str, machine: Profile = FOUR) -> tuple[Any, Layout, ModelFacts]:
    """The job of ``words``, its layout as the strategy leaves it, and its measured model."""
    run, data = compose(list(words)).run, data_of(words)
    layout = lay_out(run, data, machine)
    return run, layout, measure(run, data, layout)


def closed(*words: str, machine: Profile = FOUR) -> Layout:
    """The layout with nothing open."""
    run, layout, model = opened(*words, machine=machine)
    return close(run, layout, model, machine)


def plan(*words: str, machine: Profile = FOUR) -> Plan:
    """What the job will cost."""
    run, layout, model = opened(*words, machine=machine)
    return make_plan(run, model, close(run, layout, model, machine), machine)


def refused(*words: str, machine: Profile = FOUR) -> str:
    """The line with which it is refused."""
    with pytest.raises(PlanError) as error:
        closed(*words, machine=machine)
    return str(error.value)


# --- the cut -------------------------------------------------------------------------------------------------------------

COST = some.integers(0, 100)


@some.composite
def cases(draw: some.DrawFn) -> tuple[Loads, int]:
    """Up to 12 blocks of any cost, and as many stages as they can have."""
    blocks = draw(some.lists(COST, min_size=1, max_size=12))
    travels = draw(some.lists(some.integers(0, 5), min_size=len(blocks) - 1, max_size=len(blocks) - 1))
    return Loads(tuple(blocks), draw(COST), draw(COST), tuple(travels)), draw(some.integers(1, len(blocks)))


def judged(loads: Loads, stages: int, boundaries: tuple[int, ...]) -> tuple[int, int, int]:
    """(the costliest stage, bytes that travel, the sum of squares) of a cut: less is better, from left to right."""
    costs = [sum(loads.blocks[first:end]) for first, end in pairwise((0, *boundaries, len(loads.blocks)))]
    costs[0] += loads.stem
    costs[-1] += loads.head
    assert len(costs) == stages
    return max(costs), sum(loads.boundaries[place - 1] for place in boundaries), sum(cost**2 for cost in costs)


@given(cases())
def test_no_cut_is_better(case: tuple[Loads, int]) -> None:
    """Against all cuts there are, of up to 12 blocks."""
    loads, stages = case
    found = cut(loads, stages)
    assert found is not None
    every = combinations(range(1, len(loads.blocks)), stages - 1)
    assert judged(loads, stages, found) == min(judged(loads, stages, each) for each in every)


@given(cases(), some.integers(1, 6))
def test_no_cut_that_is_allowed_is_better(case: tuple[Loads, int], most: int) -> None:
    """Where a stage may have ``most`` blocks; there may be no such cut."""
    loads, stages = case
    found = cut(loads, stages, lambda stage, first, end: end - first <= most)
    ends = len(loads.blocks)
    every = [each for each in combinations(range(1, ends), stages - 1) if all(b - a <= most for a, b in pairwise((0, *each, ends)))]
    assert (found is None) == (not every)
    if found is not None:
        assert judged(loads, stages, found) == min(judged(loads, stages, each) for each in every)


def test_a_costly_head_gets_fewer_blocks() -> None:
    wide = closed(*GPT, "model.vocab_size=2000")
    assert wide.stages is not None
    assert wide.stages.boundaries != closed(*GPT).stages.boundaries  # type: ignore[union-attr]
    _, layout, model = opened(*GPT, "model.vocab_size=2000")
    loads = loads_of(model, layout.recompute)
    sizes = [end - first for first, end in pairwise((0, *wide.stages.boundaries, 8))]
    assert loads.head > loads.blocks[0]
    assert sizes[-1] < sizes[0]


@pytest.mark.parametrize(
    "words", [("model=resnet", "model.norm=group"), ("model=elmo", "model.layers=3"), ("model=bert", "model.layers=3")]
)
def test_every_family_can_be_cut(words: tuple[str, ...]) -> None:
    words = (*words, "strategy=pipeline", "strategy.microbatches=2", "train.micro_batch=2")
    two = profile(2)
    found = closed(*words, machine=two).stages
    assert found is not None
    assert len(found.boundaries) == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("model.layers=3",), "strategy.stages: the model has 3 block(s) for 4 stages; got 4; allowed 1 to 3"),
        (("strategy.schedule=interleaved_1f1b", "strategy.chunks=3"), "8 block(s) for 4 stages x 3 chunks = 12 virtual stages"),
        (("strategy.boundaries=[2,4,8]",), "strategy.boundaries: a boundary is the number of a block"),
    ],
)
def test_a_cut_that_cannot_be_is_refused(words: tuple[str, ...], line: str) -> None:
    assert line in refused(*GPT, *words)


def test_boundaries_that_were_typed_are_kept() -> None:
    assert closed(*GPT, "strategy.boundaries=[1,2,3]").stages.boundaries == (1, 2, 3)  # type: ignore[union-attr]


def test_a_cut_by_cost_gives_way_to_one_that_fits() -> None:
    """The first stage holds most micro-batches; with little memory it gets fewer blocks, and costs are less equal."""
    words = (*GPT, "train.micro_batch=32")
    plain = plan(*words)
    held = [sum(memory.values()) for memory in plain.ranks]
    tight = replace(FOUR, memory_bytes=max(held) - 1)
    other = plan(*words, machine=tight)
    assert other.fits
    assert other.stages != plain.stages
    assert max(stage.share for stage in other.stages) >= max(stage.share for stage in plain.stages)


# --- recomputation -------------------------------------------------------------------------------------------------------

ALONE = ("model=gpt_tiny", "model.layers=16", "train.micro_batch=16", "recompute=auto")
ORDER = [Recomputed("none"), Recomputed("products"), *(Recomputed("inputs", every=every) for every in range(1, 17))]


def needed(way: Recomputed) -> int:
    """Bytes of the job ``ALONE`` recomputed so."""
    run, layout, model = opened(*ALONE, machine=profile())
    return sum(rank_bytes(model, run.optimizer, replace(layout, recompute=way))[0].values())


def test_auto_takes_the_cheapest_way_that_fits() -> None:
    """At the edge of each way's memory: that one or a cheaper one; a byte below, a dearer one or none."""
    sizes = {way: needed(way) for way in ORDER}
    run, layout, model = opened(*ALONE, machine=profile())
    assert sizes[ORDER[2]] < sizes[ORDER[1]] < sizes[ORDER[0]]
    for budget in (size + more for size in sizes.values() for more in (0, -1)):
        fitting = [way for way in ORDER if sizes[way] <= budget]
        machine = replace(profile(), memory_bytes=budget)
        if fitting:
            assert close(run, layout, model, machine).recompute == fitting[0]
        else:
            with pytest.raises(PlanError, match="no way to recompute fits; the smallest is recompute=full"):
                close(run, layout, model, machine)


def test_auto_keeps_to_a_budget() -> None:
    run, layout, model = opened(*ALONE, f"recompute.budget_gb={needed(Recomputed('inputs')) / 1e9}", machine=profile())
    assert close(run, layout, model, profile()).recompute.kept == "inputs"
    run, layout, model = opened(*ALONE, "recompute.budget_gb=0.0001", machine=profile())
    with pytest.raises(PlanError, match=r"recompute\.budget_gb: no way to recompute fits"):
        close(run, layout, model, profile())


def test_stretches_of_about_the_root_of_the_blocks_hold_least() -> None:
    """Chen et al. 2016: n / k inputs of stretches and the k blocks of one are least together where k is about sqrt(n x input / block)."""
    sizes = [needed(Recomputed("inputs", every=every)) for every in range(1, 17)]
    best = 1 + sizes.index(min(sizes))
    assert 1 <= best <= 4
    assert sizes[-1] > sizes[best - 1]


# --- who holds what ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "most"),
    [("naive", [1, 1, 1, 1]), ("gpipe", [8, 8, 8, 8]), ("1f1b", [4, 3, 2, 1]), ("zero_bubble", [4, 4, 4, 4])],
)
def test_a_schedule_holds_as_many_micro_batches_as_its_law_says(schedule: str, most: list[int]) -> None:
    """Huang et al. 2019; Narayanan et al. 2021; Qi et al. 2023: of M = 8 and K = 4."""
    found = plan(*GPT, f"strategy.schedule={schedule}")
    assert [stage.in_flight for stage in found.stages] == most
    run, layout, model = opened(*GPT, f"strategy.schedule={schedule}")
    layout = close(run, layout, model, FOUR)
    each = stage_activations(model, layout)
    assert list(rank_activations(model, layout)) == [n * one.held + one.working for n, one in zip(most, each, strict=True)]


@pytest.mark.parametrize(("schedule", "law"), [("naive", 3 / 4), ("gpipe", 3 / 11), ("1f1b", 3 / 11)])
def test_the_bubble_of_equal_stages_is_that_of_the_law(schedule: str, law: float) -> None:
    """(K - 1) / K, and (K - 1) / (M + K - 1); the head makes the last stage a little longer."""
    found = plan(*GPT, f"strategy.schedule={schedule}", "model.vocab_size=50", "model.hidden=256", "model.heads=4")
    assert found.bubble == pytest.approx(law, abs=0.01)


def test_interleaved_and_zero_bubble_wait_less() -> None:
    bubbles = {name: plan(*GPT, f"strategy.schedule={name}").bubble for name in ("1f1b", "interleaved_1f1b", "zero_bubble")}
    assert bubbles["interleaved_1f1b"] < bubbles["1f1b"]
    assert bubbles["zero_bubble"] < bubbles["1f1b"]


def test_ranks_share_the_weights_and_both_ends_have_what_is_tied() -> None:
    found, whole = plan(*GPT), plan("model=gpt_tiny", "model.layers=8", machine=profile())
    tied = 4 * 50 * compose(["model=gpt_tiny"]).run.model.hidden
    assert sum(memory["weights"] for memory in found.ranks) == whole.memory["weights"] + tied
    assert all(memory["optimizer"] == 2 * memory["weights"] for memory in found.ranks)


def test_replicas_share_the_optimizer_state() -> None:
    words = ("model=gpt_tiny", "train.micro_batch=4", "strategy=hybrid", "strategy.data=4")
    whole, shared = plan(*words).memory, plan(*words, "strategy.zero_stage=1").memory
    assert shared["optimizer"] == -(-whole["optimizer"] // 8) * 2
    assert {**shared, "optimizer": 0} == {**whole, "optimizer": 0}


@pytest.mark.parametrize("words", [(), LLAMA[1:]], ids=["gpt2", "llama"])
def test_a_tensor_split_divides_what_it_divides(words: tuple[str, ...]) -> None:
    """Korthikanti et al. 2022, equations 2 and 4: of s b h (10 + 24 / t) bytes and attention, all is divided by t in parts of texts."""
    words = ("model=gpt_tiny", *words, "model.heads=4", "train.micro_batch=4", "strategy=tensor")
    alone = plan("model=gpt_tiny", *words[1:-2], "train.micro_batch=4", machine=profile())
    split = plan(*words, machine=profile(2))
    parts = plan(*words, "strategy.sequence_parallel=true", machine=profile(2))
    assert parts.memory["activations"] < split.memory["activations"] < alone.memory["activations"]
    __, _, model = opened(*words, machine=profile(2))
    block = model.pieces[1].kept
    assert 0 < block.split_sample < block.sample
    assert block.of(3, 2) == 3 * (block.sample - block.split_sample) + 3 * block.split_sample // 2
    assert block.of(3, 2, sequence_parallel=True) == 3 * block.sample // 2


def test_the_share_of_a_block_that_a_tensor_split_divides() -> None:
    """fp32, no dropout, fused attention, in units of s b h x 4 bytes, by what backward needs.

    Whole: the two norms' inputs (one of them what enters) and the two column layers' inputs. Divided: queries, keys and values, what
    attention gives (and a logarithm a head and position), and what is 4 h wide before and behind the activation.
    """
    _, _, model = opened("model=gpt_tiny", "model.heads=4", machine=profile())
    block, hidden, length = model.pieces[1], compose(["model=gpt_tiny"]).run.model.hidden, TEXT.seq_len
    unit = 4 * length * hidden
    statistics = 2 * 2 * 4 * length
    assert block.boundary_bytes == unit
    assert block.keeps_input
    assert block.kept.split_sample == (3 + 1 + 4 + 4) * unit + 4 * 4 * length
    assert block.kept.sample - block.kept.split_sample == 3 * unit + statistics


# --- the plan ------------------------------------------------------------------------------------------------------------


def test_a_plan_of_stages_is_json_and_a_table() -> None:
    found = plan(*GPT)
    tree = json.loads(json.dumps(found.as_json()))
    assert tree["bubble"] == found.bubble > 0
    assert [stage["end"] for stage in tree["stages"]] == [2, 4, 6, 8]
    assert sum(stage["share"] for stage in tree["stages"]) == pytest.approx(1)
    assert max(sum(memory.values()) for memory in tree["ranks"]) == tree["memory_per_device_bytes"]
    table = render(found, FOUR)
    assert "stage 0          rank 0: stem, blocks 0 to 1; " in table
    assert "blocks 6 to 7, head" in table
    assert "idle under 1f1b" in table
    assert "rank 3  ......F0" in table
    assert NOT_COUNTED not in table


def test_a_plan_without_pieces_says_so() -> None:
    run = compose(["model=gpt_tiny"]).run
    layout = lay_out(run, TEXT, profile())
    found = make_plan(run, measure(run, TEXT), layout, profile())
    assert found.warnings == (NOT_COUNTED,)
    assert "activations" not in found.memory
    assert found.bubble == 0


def test_a_model_of_the_library_has_activations_and_no_stages(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    shape = {"model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 50, "n_positions": 32, "bos_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"eos_token_id": 0}))
    words = ("model=huggingface", f"model.source={tmp_path}", "model.task=causal_lm", "model.context=16")
    _, _, model = opened(*words, machine=profile())
    assert [piece.name for piece in model.pieces] == ["model"]
    assert model.blocks == 3
    assert plan(*words, machine=profile()).memory["activations"] > 0
    assert "strategy: a model of the transformers library runs as a whole" in refused(*words, "strategy=pipeline", "train.micro_batch=8")
    with pytest.raises(PlanError, match="of a model that runs as a whole only recompute=none can be told"):
        closed(*words, "recompute=auto", "recompute.budget_gb=0.00001", machine=profile())
