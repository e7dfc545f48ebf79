"""Closing a layout: what a strategy left open, decided by what was measured of the model; and what the model does not allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dml_runner.errors import PlanError, Problem, raise_all
from dml_runner.facts import DataFacts, ModelFacts
from dml_runner.hardware.profile import Profile
from dml_runner.layout import Layout, Recomputed, Stages
from dml_runner.parallel.recompute import refusals as not_recomputed
from dml_runner.planning.activations import stage_activations
from dml_runner.planning.cut import cut, loads_of
from dml_runner.planning.memory import devices_of, rank_bytes
from dml_runner.planning.shape import measure, needs_pieces
from dml_runner.run import Run
from dml_runner.schedules import build
from dml_runner.schedules.in_flight import in_flight
from dml_runner.tensor_rules import refusals as not_split

GB = 10**9


def settle(run: Run, data: DataFacts, layout: Layout, profile: Profile) -> tuple[Layout, ModelFacts]:
    """``layout`` closed, and the model it was closed for, of which no more is measured than that takes.

    Raises:
        ConfigError: see ``shape.measure``.
        PlanError: see ``close``.
    """
    model = measure(run, data, layout if needs_pieces(layout) else None)
    return close(run, layout, model, profile), model


def close(run: Run, layout: Layout, model: ModelFacts, profile: Profile) -> Layout:
    """``layout`` with nothing open, and allowed by the model.

    Boundaries that were not typed are put so that the costliest virtual stage costs least; where that does not fit the memory and each rank
    has one stage, so that it costs least among those that fit. Of ``recompute=auto`` the cheapest way is taken whose predicted memory
    fits: to keep all, to keep matrix products, or to keep what enters every k-th block, with the smallest k.

    Args:
        run: the job.
        layout: as a strategy left it.
        model: with its pieces, if ``shape.needs_pieces(layout)``.
        profile: the machine.

    Raises:
        PlanError: the model cannot be cut, split or recomputed so, or nothing fits.
    """
    raise_all(_refused(layout, model), PlanError)
    if layout.recompute.kept != "open":
        return _with_cut(run, layout, model, profile.memory_bytes)
    if not model.pieces:
        raise AssertionError("an open recomputation is decided by measured pieces")
    budget = int(layout.recompute.budget_gb * GB) if layout.recompute.budget_gb else profile.memory_bytes
    smallest: tuple[int, Recomputed] | None = None
    for way in _ways(layout, model):
        closed = _with_cut(run, replace(layout, recompute=way), model, budget)
        needed = _fullest(run, closed, model)
        if needed <= budget:
            return closed
        if smallest is None or needed < smallest[0]:
            smallest = (needed, way)
    assert smallest is not None
    raise PlanError(_too_small(layout, model, budget, *smallest))


def _ways(layout: Layout, model: ModelFacts) -> Iterator[Recomputed]:
    """The ways to recompute whose memory can be told, the cheapest first."""
    how = layout.recompute
    yield replace(how, kept="none")
    if model.undivided is None:
        yield replace(how, kept="products")
        for every in range(1, model.blocks + 1):
            yield replace(how, kept="inputs", every=every)


def _with_cut(run: Run, layout: Layout, model: ModelFacts, budget: int) -> Layout:
    """``layout`` with its boundaries, where it has stages and they are open."""
    stages, virtual = layout.stages, _virtual(layout)
    if stages is None or stages.boundaries or virtual == 1:
        return layout
    loads = loads_of(model, layout.recompute)
    found = cut(loads, virtual)
    assert found is not None
    closed = replace(layout, stages=replace(stages, boundaries=found))
    if stages.chunks > 1 or _fullest(run, closed, model) <= budget:
        return closed
    limits = [_limits(run, layout, model, stage, budget) for stage in range(virtual)]
    other = cut(loads, virtual, lambda stage, first, end: end <= limits[stage][first])
    return closed if other is None else replace(layout, stages=replace(stages, boundaries=other))


def _limits(run: Run, layout: Layout, model: ModelFacts, stage: int, budget: int) -> list[int]:
    """For each first block of the one virtual stage of a rank, the highest end with which it fits; the first itself: there is none.

    Whoever begins later ends no earlier, so both are walked through once.
    """
    virtual, found, end = _virtual(layout), list[int](), 0
    schedule = build(_stages(layout), layout.mesh.pipeline, layout.batch.accumulation)
    on_the_way = in_flight(schedule)[stage][stage]
    for first in range(model.blocks):
        end = max(first, end)
        if (first < stage) or (stage == 0 and first > 0):  # no cut begins there
            found.append(first)
            continue
        while end < model.blocks - (virtual - 1 - stage) and _bytes_of(run, layout, model, (stage, first, end + 1), on_the_way) <= budget:
            end += 1
        found.append(end)
    return found


def _bytes_of(run: Run, layout: Layout, model: ModelFacts, place: tuple[int, int, int], on_the_way: int) -> int:
    """Of the rank with one virtual stage, whatever the others hold: they are given one block each, or what is left."""
    stage, first, end = place
    before = tuple(range(first - stage + 1, first + 1)) if stage else ()
    behind = tuple(range(end, end + _virtual(layout) - 1 - stage))
    closed = replace(layout, stages=replace(_stages(layout), boundaries=before + behind))
    (activations,) = stage_activations(model, closed, stage)
    state = sum(devices_of(model, run.optimizer, closed, stage)[0].values())
    return state + on_the_way * activations.held + activations.working


def _stages(layout: Layout) -> Stages:
    assert layout.stages is not None
    return layout.stages


def _fullest(run: Run, layout: Layout, model: ModelFacts) -> int:
    return max(sum(held.values()) for held in rank_bytes(model, run.optimizer, layout))


def _virtual(layout: Layout) -> int:
    """Virtual stages."""
    return layout.mesh.pipeline * (layout.stages.chunks if layout.stages else 1)


def _refused(layout: Layout, model: ModelFacts) -> Iterator[Problem]:
    """What the model does not allow of a layout."""
    if layout.stages is not None:
        yield from _not_cut(layout, model)
    key = "strategy.tensor" if layout.strategy == "hybrid" else "strategy.degree"
    yield from not_split(model.plan, layout.mesh.tensor, model.tensors, key, layout.sequence_parallel)
    yield from not_recomputed(layout.recompute, model.undivided, model.blocks)


def _not_cut(layout: Layout, model: ModelFacts) -> Iterator[Problem]:
    assert layout.stages is not None
    key = "strategy.pipeline" if layout.strategy == "hybrid" else "strategy.stages"
    ranks, chunks, boundaries, blocks = layout.mesh.pipeline, layout.stages.chunks, layout.stages.boundaries, model.blocks
    virtual = ranks * chunks
    if model.undivided is not None:
        yield Problem("strategy", f"{model.undivided}, so it has no stages", got=layout.strategy, hint="strategy=all_reduce")
    elif virtual > blocks:
        each = f"{ranks} stages x {chunks} chunks = {virtual} virtual stages" if chunks > 1 else f"{virtual} stages"
        hint = "every stage has a block at least; fewer stages" + (", fewer chunks" if chunks > 1 else "") + ", or a deeper model"
        yield Problem(key, f"the model has {blocks} block(s) for {each}", got=str(ranks), allowed=f"1 to {blocks // chunks}", hint=hint)
    elif boundaries and (len(boundaries) != virtual - 1 or list(boundaries) != sorted(set(boundaries))):
        what = f"{virtual} virtual stages have {virtual - 1} boundaries, each higher than the one before"
        yield Problem("strategy.boundaries", what, got=str(list(boundaries)), hint="null cuts by cost")
    elif boundaries and not 1 <= boundaries[0] <= boundaries[-1] < blocks:
        what = "a boundary is the number of a block, and the first stage has block 0"
        yield Problem("strategy.boundaries", what, got=str(list(boundaries)), allowed=f"1 to {blocks - 1}", hint="null cuts by cost")


def _too_small(layout: Layout, model: ModelFacts, budget: int, needed: int, way: Recomputed) -> Problem:
    typed = layout.recompute.budget_gb is not None
    hint = "more memory a device, more ranks, or a smaller train.micro_batch"
    if model.undivided is not None:
        hint = "of a model that runs as a whole only recompute=none can be told; recompute=full may fit"
    return Problem(
        "recompute.budget_gb" if typed else "hardware.memory_gb",
        f"no way to recompute fits; the smallest is {told(way)}",
        got=f"{budget / GB:.4g} GB",
        allowed=f"at least {needed / GB:.4g} GB",
        hint=hint,
    )


def told(way: Recomputed) -> str:
    """A way to recompute in the words that ask for it."""
    names = {"none": "recompute=none", "products": "recompute=selective", "inputs": f"recompute=full recompute.every={way.every}"}
    return names[way.kept]
