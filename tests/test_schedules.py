"""Schedules: all the work once, no rank waits for ever, held and idle are what the papers say, and drawings that can be read."""

from __future__ import annotations

import itertools
import queue
import threading
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml_runner.errors import PlanError
from dml_runner.layout import Stages
from dml_runner.schedules import SEVERAL_CHUNKS, build
from dml_runner.schedules.base import Action, Schedule
from dml_runner.schedules.chart import as_text
from dml_runner.schedules.check import check
from dml_runner.schedules.drawing import as_svg
from dml_runner.schedules.in_flight import in_flight, peak
from dml_runner.schedules.timeline import Costs, Timed, Timeline, equal_costs, timeline
from dml_runner.schema.strategy import Schedule as Name

RANKS, MICROBATCHES, CHUNKS = range(1, 7), range(1, 13), range(1, 4)
WITH_CHUNKS: list[tuple[Name, int]] = [
    ("naive", 1),
    ("gpipe", 1),
    ("1f1b", 1),
    *(("interleaved_1f1b", chunks) for chunks in CHUNKS),
    *(("zero_bubble", chunks) for chunks in CHUNKS),
]
every = pytest.mark.parametrize(("name", "chunks"), WITH_CHUNKS)
grid = list(itertools.product(RANKS, MICROBATCHES))


def schedule(name: Name, ranks: int, microbatches: int, chunks: int = 1) -> Schedule:
    """One schedule, its cut left open."""
    return build(Stages(name, chunks, ()), ranks, microbatches)


def idle(name: Name, ranks: int, microbatches: int, chunks: int = 1) -> float:
    """Idle share with equal stages, backward twice a forward, and transfers that take no time."""
    return timeline(schedule(name, ranks, microbatches, chunks), equal_costs(ranks * chunks)).idle_share


# --- the work, and its order --------------------------------------------------------------------------------------------


@every
def test_every_piece_of_work_once_on_its_rank(name: Name, chunks: int) -> None:
    kinds = ("F", "I", "W") if name == "zero_bubble" else ("F", "B")
    for ranks, microbatches in grid:
        built = schedule(name, ranks, microbatches, chunks)
        assert built.stages == ranks * chunks
        assert built.chunks == chunks
        for rank, actions in enumerate(built.ranks):
            work = itertools.product(kinds, range(rank, ranks * chunks, ranks), range(microbatches))
            assert Counter((action.kind, action.stage, action.micro) for action in actions) == Counter(work)


@every
def test_a_rank_does_nothing_before_what_it_needs(name: Name, chunks: int) -> None:
    for ranks, microbatches in grid:
        built = schedule(name, ranks, microbatches, chunks)
        for actions in built.ranks:
            at = {action: place for place, action in enumerate(actions)}
            for action, place in at.items():
                if action.kind != "F":
                    assert at[replace(action, kind="F")] < place
                if action.kind == "W":
                    assert at[replace(action, kind="I")] < place


@every
def test_gradients_of_a_stage_come_in_the_order_of_micro_batches(name: Name, chunks: int) -> None:
    for ranks, microbatches in grid:
        built = schedule(name, ranks, microbatches, chunks)
        for actions, kind in itertools.product(built.ranks, ("F", "B", "I", "W")):
            for stage in {action.stage for action in actions}:
                order = [action.micro for action in actions if (action.kind, action.stage) == (kind, stage)]
                assert order == sorted(order)


@every
def test_no_rank_waits_for_ever(name: Name, chunks: int) -> None:
    for ranks, microbatches in grid:
        check(schedule(name, ranks, microbatches, chunks))


@every
@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 3), (2, 3), (3, 2), (4, 7)])
def test_ranks_that_block_on_receives_come_through(name: Name, chunks: int, ranks: int, microbatches: int) -> None:
    """Threads with a first-in-first-out queue for each ordered pair, which know a message by its place in the queue alone."""
    built = schedule(name, ranks, microbatches, chunks)
    wires: dict[tuple[int, int], queue.Queue[Action]] = {pair: queue.Queue() for pair in itertools.product(range(ranks), range(ranks))}
    finished: list[int] = []

    def work(rank: int) -> None:
        announced = {sender: iter(readers) for sender, readers in built.arrivals(rank).items()}
        here: dict[Action, Action] = {}
        for action in built.ranks[rank]:
            for need in built.needs(action):
                sender = built.rank_of(need.stage)
                while sender != rank and here.get(action) != need:
                    here[next(announced[sender])] = wires[sender, rank].get(timeout=10)
            reader = built.reader(action)
            if reader is not None and built.rank_of(reader.stage) != rank:
                wires[rank, built.rank_of(reader.stage)].put(action)
        if all(next(readers, None) is None for readers in announced.values()):
            finished.append(rank)

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(finished) == list(range(ranks))
    assert all(wire.empty() for wire in wires.values())


def test_with_one_chunk_messages_are_taken_in_the_order_they_come() -> None:
    for (name, chunks), (ranks, microbatches) in itertools.product(WITH_CHUNKS, grid):
        built = schedule(name, ranks, microbatches, chunks)
        for rank in range(ranks) if chunks == 1 else ():
            for readers in built.arrivals(rank).values():
                assert [built.ranks[rank].index(reader) for reader in readers] == sorted(map(built.ranks[rank].index, readers))


def test_1f1b_is_the_published_order() -> None:
    order = [" ".join(f"{action.kind}{action.micro}" for action in actions) for actions in schedule("1f1b", 3, 4).ranks]
    assert order == ["F0 F1 F2 B0 F3 B1 B2 B3", "F0 F1 B0 F2 B1 F3 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3"]


def test_with_one_chunk_interleaved_is_1f1b() -> None:
    for ranks, microbatches in grid:
        assert schedule("interleaved_1f1b", ranks, microbatches).ranks == schedule("1f1b", ranks, microbatches).ranks


def test_several_chunks_where_there_is_one_are_refused() -> None:
    for name in ("naive", "gpipe", "1f1b"):
        assert name not in SEVERAL_CHUNKS
        with pytest.raises(PlanError, match=rf"strategy.chunks: {name} has one virtual stage a rank; got 2; allowed 1; .*zero_bubble"):
            schedule(name, 4, 8, 2)


def test_what_is_no_schedule_is_noticed() -> None:
    good = schedule("1f1b", 2, 2)
    first, second = good.ranks
    wrong = {
        "F1 of stage 0 is missing": (tuple(a for a in first if a != Action("F", 0, 1)), second),
        "F1 of stage 0 is there 2 times": ((*first, Action("F", 0, 1)), second),
        "B9 of stage 1 is no work": (first, (*second, Action("B", 1, 9))),
        "rank 0 does not hold the stage of F0 of stage 1": (second, first),
        "never ends: rank 0 at B0 of stage 0, rank 1 at B0 of stage 1": (first, second[::-1][-2:] + second[::-1][:2]),
    }
    for told, ranks in wrong.items():
        with pytest.raises(ValueError, match=told):
            check(replace(good, ranks=ranks))


# --- what is held -------------------------------------------------------------------------------------------------------


def test_activations_held() -> None:
    for ranks, microbatches in grid:
        assert in_flight(schedule("naive", ranks, microbatches)) == tuple({rank: 1} for rank in range(ranks))
        assert in_flight(schedule("gpipe", ranks, microbatches)) == tuple({rank: microbatches} for rank in range(ranks))
        expected = tuple({rank: min(microbatches, ranks - rank)} for rank in range(ranks))
        assert in_flight(schedule("1f1b", ranks, microbatches)) == expected
        assert in_flight(schedule("zero_bubble", ranks, microbatches)) == tuple({rank: min(microbatches, ranks)} for rank in range(ranks))


def test_zero_bubble_waits_for_as_few_backwards_as_1f1b() -> None:
    for ranks, microbatches in grid:
        for rank, actions in enumerate(schedule("zero_bubble", ranks, microbatches).ranks):
            ahead = itertools.accumulate({"F": 1, "I": -1, "W": 0}[action.kind] for action in actions)
            assert max(ahead) == min(microbatches, ranks - rank)


def test_zero_bubble_with_chunks_holds_their_number_times_the_ranks() -> None:
    for ranks, microbatches, chunks in itertools.product(range(2, 7), MICROBATCHES, CHUNKS):
        left_over = microbatches % ranks
        if left_over == 0 or 2 * left_over >= ranks:
            assert max(peak(schedule("zero_bubble", ranks, microbatches, chunks), [1] * ranks * chunks)) <= ranks * chunks


def test_the_peak_of_a_rank_counts_its_stages_together() -> None:
    built, sizes = schedule("interleaved_1f1b", 2, 4, 2), [10, 10, 7, 7]
    for rank, actions in enumerate(built.ranks):
        sums = list(itertools.accumulate(sizes[action.stage] * (1 if action.kind == "F" else -1) for action in actions))
        assert peak(built, sizes)[rank] == max(sums)
        assert max(sums) <= sum(count * sizes[stage] for stage, count in in_flight(built)[rank].items())


# --- what is idle -------------------------------------------------------------------------------------------------------


def test_idle_shares_are_those_of_the_papers() -> None:
    for ranks, microbatches in grid:
        assert idle("naive", ranks, microbatches) == pytest.approx((ranks - 1) / ranks)
        law = (ranks - 1) / (microbatches + ranks - 1)
        assert idle("gpipe", ranks, microbatches) == pytest.approx(law)
        assert idle("1f1b", ranks, microbatches) == pytest.approx(law)


def test_interleaved_divides_the_idle_time_by_its_chunks() -> None:
    for ranks, microbatches, chunks in itertools.product(RANKS, MICROBATCHES, CHUNKS):
        share = idle("interleaved_1f1b", ranks, microbatches, chunks)
        if microbatches >= ranks:
            assert share == pytest.approx((ranks - 1) / (microbatches * chunks + ranks - 1))
        elif ranks > 1:
            assert share <= idle("1f1b", ranks, microbatches)


def test_zero_bubble_idles_a_third_of_1f1b() -> None:
    """Qi et al. 2023, table 1: (K - 1)(F + I - W), where 1F1B idles (K - 1)(F + I + W)."""
    for ranks, microbatches in grid:
        built = timeline(schedule("zero_bubble", ranks, microbatches), equal_costs(ranks))
        if microbatches >= ranks:
            assert built.makespan == pytest.approx(3 * microbatches + ranks - 1)
            assert built.idle == pytest.approx([(ranks - 1) / (3 * microbatches + ranks - 1)] * ranks)
        elif ranks > 1:
            assert built.idle_share < idle("1f1b", ranks, microbatches)


def test_zero_bubble_divides_that_by_its_chunks() -> None:
    for ranks, microbatches, chunks in itertools.product(RANKS, MICROBATCHES, CHUNKS):
        share = idle("zero_bubble", ranks, microbatches, chunks)
        if microbatches >= ranks:
            assert share == pytest.approx((ranks - 1) / (3 * microbatches * chunks + ranks - 1))
        else:
            assert share < idle("interleaved_1f1b", ranks, microbatches, chunks)


seconds = st.floats(0.1, 10.0)


@given(ranks=st.integers(1, 6), more=st.integers(0, 6), forward=seconds, inputs=seconds, weight=seconds)
@settings(max_examples=100, deadline=None)
def test_zero_bubble_idles_as_its_paper_says_for_any_cost(ranks: int, more: int, forward: float, inputs: float, weight: float) -> None:
    """Where W is longer than F or I it cannot shorten the wait below the longer of those."""
    microbatches = ranks + more
    built = timeline(schedule("zero_bubble", ranks, microbatches), equal_costs(ranks, forward, inputs + weight, weight))
    waited = built.makespan - microbatches * (forward + inputs + weight)
    assert waited == pytest.approx((ranks - 1) * max(forward, inputs, forward + inputs - weight))


# --- the timeline -------------------------------------------------------------------------------------------------------


@st.composite
def timed_schedules(draw: st.DrawFn) -> tuple[Schedule, Costs]:
    """Any schedule with stages and transfers of any cost."""
    name, chunks = draw(st.sampled_from(WITH_CHUNKS))
    built = schedule(name, draw(st.integers(1, 5)), draw(st.integers(1, 8)), chunks)

    def some(count: int) -> tuple[float, ...]:
        return tuple(draw(st.lists(seconds, min_size=count, max_size=count)))

    inputs, weight = some(built.stages), some(built.stages)
    return built, Costs(some(built.stages), tuple(map(sum, zip(inputs, weight, strict=True))), weight, some(built.stages - 1))


@given(timed_schedules())
@settings(max_examples=60, deadline=None)
def test_nothing_starts_before_its_rank_is_free_and_its_input_has_come(case: tuple[Schedule, Costs]) -> None:
    built, costs = case
    result = timeline(built, costs)
    assert [tuple(timed.action for timed in rank) for rank in result.ranks] == list(built.ranks)
    ran = {timed.action: timed for rank in result.ranks for timed in rank}
    for rank in result.ranks:
        assert all(after.start >= before.end for before, after in itertools.pairwise(rank))
        assert all(timed.end - timed.start == pytest.approx(costs.of(timed.action)) for timed in rank)
    for action, need in itertools.chain.from_iterable(((action, need) for need in built.needs(action)) for action in ran):
        apart = built.rank_of(need.stage) != built.rank_of(action.stage)
        travels = costs.transfer[min(need.stage, action.stage)] if apart else 0.0
        assert ran[action].start >= ran[need].end + travels - 1e-9


def test_messages_on_one_link_follow_one_another() -> None:
    result = timeline(schedule("gpipe", 2, 3), equal_costs(2, transfer=5.0))
    assert [timed.start for timed in result.ranks[1][:3]] == [6.0, 11.0, 16.0]


def test_a_measured_timeline_starts_when_its_clock_says() -> None:
    one, two = Action("F", 0, 0), Action("B", 0, 0)
    measured = Timeline(((Timed(one, 100.0, 101.0), Timed(two, 103.0, 104.0)), (Timed(Action("F", 1, 0), 101.0, 104.0),)))
    assert measured.makespan == 4.0
    assert measured.idle == (0.5, 0.25)
    assert measured.idle_share == 0.375


# --- drawings -----------------------------------------------------------------------------------------------------------


def test_a_small_schedule_as_text() -> None:
    drawn = as_text(timeline(schedule("1f1b", 2, 3), equal_costs(2))).splitlines()
    assert drawn == [
        "rank 0  F0F1....B0--F2B1--..B2--  idle  25 %",
        "rank 1  ..F0B0--F1B1--F2B2--....  idle  25 %",
        "F forward, B backward, numbers micro-batches, . waiting",
    ]


def test_the_charts_of_the_docs_are_what_is_drawn() -> None:
    text = (Path(__file__).parent.parent / "docs" / "pipelines.md").read_text()
    shown = text.split("<!-- schedules -->\n```\n")[1].split("\n```")[0].split("\n\n")
    for (name, chunks), chart in zip([*WITH_CHUNKS[:3], ("interleaved_1f1b", 2), ("zero_bubble", 1)], shown, strict=True):
        built = schedule(name, 3, 2 if name == "naive" else 6, chunks)
        assert chart == f"{name}\n{as_text(timeline(built, equal_costs(3 * chunks)), 110)}"


@every
@pytest.mark.parametrize("width", [60, 100])
def test_text_keeps_its_width(name: Name, chunks: int, width: int) -> None:
    for ranks, microbatches in ((1, 1), (4, 8), (16, 64)):
        lines = as_text(timeline(schedule(name, ranks, microbatches, chunks), equal_costs(ranks * chunks)), width).splitlines()
        assert len({len(line) for line in lines[:-1]}) == 1
        assert len(lines) == ranks + 1
        assert len(lines[0]) <= width


def test_letters_of_a_crowded_text_are_in_proportion_to_time() -> None:
    lines = as_text(timeline(schedule("1f1b", 16, 64), equal_costs(16))).splitlines()
    assert all("idle  19 %" in line for line in lines[:-1])
    for line in lines[:-1]:
        row = line[9:].split("  idle")[0]
        assert row.count("F") / len(row) == pytest.approx(64 / 237, abs=0.03)
        assert row.count("B") / len(row) == pytest.approx(128 / 237, abs=0.03)


@every
def test_svg_has_a_bar_for_each_action(name: Name, chunks: int) -> None:
    for ranks, microbatches in ((1, 1), (4, 8), (16, 64)):
        predicted = timeline(schedule(name, ranks, microbatches, chunks), equal_costs(ranks * chunks, 0.01, 0.02, 0.01))
        moved = tuple(
            tuple(Timed(timed.action, 50 + timed.start * 1.1, 50 + timed.end * 1.1) for timed in rank) for rank in predicted.ranks
        )
        root = ElementTree.fromstring(as_svg({"predicted": predicted, "measured": Timeline(moved)}, title="a < b & c"))
        told = [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}title")]
        assert told[0] == "a < b & c"
        assert len(told) - 1 == 2 * sum(map(len, predicted.ranks))
        words = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
        assert words.count(f"rank {ranks - 1}") == 2
        assert sum(word.startswith("idle") for word in words) == 2 * ranks
        whole = float(root.attrib["width"])
        assert whole <= 3600 + 200
        assert all(float(node.attrib["width"]) <= whole for node in root.iter("{http://www.w3.org/2000/svg}rect"))


def test_work_that_takes_no_time_can_be_drawn() -> None:
    nothing = timeline(schedule("zero_bubble", 2, 3), equal_costs(2, 0.0, 0.0, 0.0))
    assert nothing.idle == (0.0, 0.0)
    assert "rank 1" in as_text(nothing)
    ElementTree.fromstring(as_svg({"predicted": nothing}))
