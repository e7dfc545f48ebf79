"""Promise 3: what one layout saves every other continues, optimizer state included; the same layout to the last bit."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from helpers import in_group

from dml_runner.bench.faults_evidence import fingerprint
from dml_runner.bench.parity_cells import ADAMW, LAYOUTS, RANKS, Cell, write_texts
from dml_runner.bench.pool import Job, Ranks, job_of, ranks
from dml_runner.checkpoint.read import Committed, open_step
from dml_runner.comm.world import World
from dml_runner.engines.assemble import assemble

TOLERANCE = 1e-5
RING = [
    "single",
    "pipeline_2_1f1b",
    "tensor_2_sequence",
    "all_reduce_2",
    "hybrid_1x2x2",
    "parameter_server",
    "hybrid_2x2x1_zero",
    "pipeline_2_interleaved",
    "tensor_3",
    "hybrid_2x1x2",
    "pipeline_4_uneven",
    "hybrid_1x2x2_sequence",
    "single",
]
"""Each continues what the one before it saved."""
RING_OF_CELLS = ["single", "pipeline_2_1f1b", "tensor_2", "hybrid_2x2x1_zero", "hybrid_1x2x2", "pipeline_2_interleaved", "all_reduce_2"]
"""For families of which the sequence is not divided."""
RING_OF_IMAGES = ["all_reduce_2", "pipeline_4_uneven", "hybrid_2x2x1_zero", "single", "pipeline_2_zero_bubble"]
"""For families of which no layer is split."""
EACH = 2
"""Steps between two changes of the layout."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("resume")
    write_texts(found)
    return found


@pytest.fixture(scope="module")
def pool(folder: Path) -> Iterator[Ranks]:
    with ranks(RANKS, folder) as found:
        yield found


def at(run: Path, step: int) -> Path:
    """A saved step."""
    return run / "checkpoints" / f"step-{step:08d}"


def leg(folder: Path, layout: str, family: str, run: Path, steps: int, every: int, resume: Path | None = None) -> Job:
    """A job that ends with ``steps`` and saves every so many under ``run``."""
    words = Cell(layout, family).words(folder, *ADAMW, f"train.steps={steps}", f"checkpoint.every={every}")
    return job_of(words, folder / "cache", run / "checkpoints", resume)


# --- round all layouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "ring"),
    [
        ("gpt", RING),
        ("rnn", RING_OF_CELLS),
        pytest.param("elmo", RING_OF_CELLS, marks=pytest.mark.slow),
        pytest.param("bert", RING, marks=pytest.mark.slow),
        ("resnet", RING_OF_IMAGES),
    ],
)
def test_a_ring_through_the_layouts_has_the_losses_of_a_run_that_never_stopped(
    pool: Ranks, folder: Path, tmp_path: Path, family: str, ring: Sequence[str]
) -> None:
    """Of an rnn, whose streams go on from step to step, too."""
    whole = leg(folder, "single", family, tmp_path / "whole", EACH * len(ring), 99)
    legs = []
    for number, layout in enumerate(ring):
        before = at(tmp_path / f"leg-{number - 1}", EACH * number) if number else None
        legs.append(leg(folder, layout, family, tmp_path / f"leg-{number}", EACH * (number + 1), EACH, before))
    alone, *parts = pool.train(whole, *legs)
    for number, part in enumerate(parts):
        assert part.losses == pytest.approx(alone.losses[EACH * number : EACH * (number + 1)], abs=TOLERANCE), ring[number]
    assert parts[-1].held_out == pytest.approx(alone.held_out, abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", list(dict.fromkeys(RING)))
def test_every_layout_continues_what_every_other_saved(pool: Ranks, folder: Path, tmp_path: Path, first: str) -> None:
    saved = leg(folder, first, "gpt", tmp_path / "saved", 6, 3)
    then = {layout: leg(folder, layout, "gpt", tmp_path / layout, 6, 99, at(tmp_path / "saved", 3)) for layout in dict.fromkeys(RING)}
    whole, *others = pool.train(saved, *then.values())
    for layout, other in zip(then, others, strict=True):
        assert other.losses == pytest.approx(whole.losses[3:], abs=TOLERANCE), layout
        assert other.held_out == pytest.approx(whole.held_out, abs=TOLERANCE), layout


# --- the same layout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "layouts"),
    [
        ("gpt", ["parameter_server", "pipeline_2_interleaved", "tensor_2_sequence", "hybrid_1x2x2", "hybrid_2x2x1_zero"]),
        ("rnn", ["pipeline_2_1f1b", "hybrid_2x2x1_zero"]),
        pytest.param("gpt", list(LAYOUTS), marks=pytest.mark.slow),
        pytest.param("rnn", RING_OF_CELLS, marks=pytest.mark.slow),
        pytest.param("resnet", RING_OF_IMAGES, marks=pytest.mark.slow),
    ],
)
def test_the_same_layout_goes_on_to_the_last_bit(pool: Ranks, folder: Path, tmp_path: Path, family: str, layouts: Sequence[str]) -> None:
    whole = [leg(folder, layout, family, tmp_path / layout, 4, 2) for layout in layouts]
    again = [leg(folder, layout, family, tmp_path / f"{layout}-again", 4, 2, at(tmp_path / layout, 2)) for layout in layouts]
    found = pool.train(*whole, *again)
    for layout, first, then in zip(layouts, found[: len(layouts)], found[len(layouts) :], strict=True):
        assert then.losses == first.losses[2:], layout
        assert [row["grad_norm"] for row in then.rows] == [row["grad_norm"] for row in first.rows[2:]], layout
        assert fingerprint(at(tmp_path / f"{layout}-again", 4)) == fingerprint(at(tmp_path / layout, 4)), layout


# --- what a rank writes and reads --------------------------------------------------------------------------------------------


def tensor_bytes(shard: Path) -> int:
    """Bytes of tensors in a safetensors file: all but its header."""
    with shard.open("rb") as file:
        (header,) = struct.unpack("<Q", file.read(8))
    return shard.stat().st_size - 8 - int(header)


def read_by(world: World, job: Job, step: str) -> tuple[int, int]:
    """Bytes that a rank reads of a saved step, and bytes that the step has."""
    count, read = [0], Committed.read

    def counting(self: Committed, *where: Any) -> Any:
        found = read(self, *where)
        count[0] += found.nbytes
        return found

    Committed.read = counting  # type: ignore[method-assign]
    try:
        engine = assemble(job.run, job.facts, job.layout, world)
        engine.restore(open_step(Path(step)))
    finally:
        Committed.read = read  # type: ignore[method-assign]
    return count[0], sum(tensor_bytes(shard) for shard in Path(step).glob("rank-*.safetensors"))


DIVIDED = {
    "pipeline_2_1f1b": (3 / 5, 3 / 5),
    "pipeline_4_uneven": (2 / 5, 2 / 5),
    "tensor_2": (1 / 2, 1 / 2),
    "hybrid_1x2x2": (3 / 10, 3 / 10),
    "hybrid_2x1x2": (1 / 4, 1 / 2),
    "hybrid_2x2x1_zero": (3 / 10, 2 / 5),
}
"""Layout -> the share of a step that a rank should write, and read at most: by blocks (three of five), by columns, and by replicas, which
read all that they hold: with a divided optimizer the weights, which are a third of a step, and a half of the rest."""
OVER = 1.2
"""Norms stand on several ranks, and what the head shares with the stem."""


def test_no_rank_writes_more_than_its_part(pool: Ranks, folder: Path, tmp_path: Path) -> None:
    pool.train(*(leg(folder, layout, "gpt", tmp_path / layout, 1, 1) for layout in DIVIDED))
    for layout, (share, _) in DIVIDED.items():
        sizes = [tensor_bytes(shard) for shard in at(tmp_path / layout, 1).glob("rank-*.safetensors")]
        assert max(sizes) <= OVER * share * sum(sizes), (layout, sizes)


@pytest.mark.parametrize("layout", ["pipeline_2_1f1b", "tensor_2", "hybrid_1x2x2", "hybrid_2x2x1_zero"])
def test_no_rank_reads_more_than_its_part(pool: Ranks, folder: Path, tmp_path: Path, layout: str) -> None:
    """Of what one process saved."""
    pool.train(leg(folder, "single", "gpt", tmp_path, 1, 1))
    job = leg(folder, layout, "gpt", tmp_path / "unused", 1, 1)
    for read, whole in in_group(job.layout.world_size, read_by, tmp_path, job, str(at(tmp_path, 1))):
        assert 0 < read <= OVER * DIVIDED[layout][1] * whole, (read, whole)


# --- words of training on a divided model ------------------------------------------------------------------------------------

SPLIT = ("pipeline_2_1f1b", "tensor_2_sequence", "hybrid_2x2x1_zero", "hybrid_1x2x2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layouts", "words"),
    [
        (SPLIT, ("train.clip_norm=0.5",)),
        (SPLIT, ("model.frozen=1", "optimizer.layer_decay=0.7")),
        (("pipeline_2_1f1b", "tensor_2_sequence", "hybrid_2x1x2"), ("train.accumulation=3",)),
    ],
    ids=["clip_norm", "frozen", "accumulation"],
)
def test_words_of_training_mean_the_same_on_a_divided_model(
    pool: Ranks, folder: Path, layouts: Sequence[str], words: tuple[str, ...]
) -> None:
    def made(layout: str) -> Job:
        return job_of(Cell(layout, "gpt").words(folder, *ADAMW, "train.steps=8", *words), folder / "cache")

    alone, *others = pool.train(made("single"), *map(made, layouts))
    for layout, other in zip(layouts, others, strict=True):
        assert other.losses == pytest.approx(alone.losses, abs=TOLERANCE), layout
        norms = [[row["grad_norm"] for row in each.rows] for each in (other, alone)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4), layout
        assert other.held_out == pytest.approx(alone.held_out, abs=TOLERANCE), layout


@pytest.mark.slow
def test_frozen_blocks_keep_their_weights(pool: Ranks, folder: Path, tmp_path: Path) -> None:
    made = {}
    for layout, steps in product(("single", *SPLIT), (1, 5)):
        words = Cell(layout, "gpt").words(folder, *ADAMW, f"train.steps={steps}", "model.frozen=2")
        made[layout, steps] = job_of(words, folder / "cache", tmp_path / f"{layout}-{steps}" / "checkpoints")
    pool.train(*made.values())
    for layout in ("single", *SPLIT):
        first, last = (open_step(at(tmp_path / f"{layout}-{steps}", steps)) for steps in (1, 5))
        moved = {name for name in first.tensors if name.startswith("model/") and not first.read(name).equal(last.read(name))}
        assert not [name for name in moved if name.startswith(("model/blocks.0.", "model/blocks.1."))], layout
        assert any(name.startswith("model/blocks.2.") for name in moved), layout
        assert set(last.tensors) == set(open_step(at(tmp_path / "single-5", 5)).tensors), layout


@pytest.mark.slow
def test_bf16_falls_on_a_divided_model(pool: Ranks, folder: Path) -> None:
    words = ("optimizer=adamw", "optimizer.lr=3e-3", "train.steps=25", "train.precision=bf16")
    found = pool.train(*(job_of(Cell(layout, "gpt").words(folder, *words), folder / "cache") for layout in ("single", *SPLIT)))
    for layout, each in zip(("single", *SPLIT), found, strict=True):
        assert each.losses[-1] < each.losses[0] - 0.5, layout
        assert each.losses == pytest.approx(found[0].losses, abs=0.1), layout


@pytest.mark.slow
def test_what_an_evaluation_sends_is_no_steps(pool: Ranks, folder: Path) -> None:
    words = (*ADAMW, "train.steps=4", "train.eval_every=2")
    found = pool.train(*(job_of(Cell(layout, "gpt").words(folder, *words), folder / "cache") for layout in SPLIT))
    for layout, each in zip(SPLIT, found, strict=True):
        assert len(each.evaluations) == 2, layout
        assert len({row["comm_bytes"] for row in each.rows}) == 1, (layout, [row["comm_bytes"] for row in each.rows])


def test_what_a_step_holds_is_named_alike_whatever_wrote_it(pool: Ranks, folder: Path, tmp_path: Path) -> None:
    pool.train(*(leg(folder, layout, "rnn", tmp_path / layout, 1, 1) for layout in RING_OF_CELLS))
    whole = open_step(at(tmp_path / "single", 1))
    for layout in RING_OF_CELLS[1:]:
        step = open_step(at(tmp_path / layout, 1))
        assert step.tensors == whole.tensors, layout
        assert step.state == {
            key: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value for key, value in whole.state.items()
        }, layout
