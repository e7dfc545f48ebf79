"""Promise 1: the same job under every layout, of every family, in every way to recompute, has the losses and weights of one process."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from dml_runner.bench.page import marks
from dml_runner.bench.parity import tables
from dml_runner.bench.parity_cells import FAMILIES, LAYOUTS, RANKS, RECOMPUTE, ways, write_texts
from dml_runner.bench.parity_runs import Found, Matrix
from dml_runner.bench.parity_words import parity_words
from dml_runner.bench.pool import ranks
from dml_runner.errors import ConfigError

LOSS, WEIGHTS = 1e-4, 1e-5

SELECTED = {
    "all_reduce_2": ("bert", "full"),
    "parameter_server": ("gpt", "selective"),
    "pipeline_2_naive": ("rnn", "full"),
    "pipeline_2_gpipe": ("elmo", "full_2"),
    "pipeline_2_1f1b": ("gpt", "full"),
    "pipeline_2_interleaved": ("bert", "selective"),
    "pipeline_2_zero_bubble": ("gpt", "full_2"),
    "pipeline_4_uneven": ("resnet", "full"),
    "pipeline_2x2": ("gpt_classifier", "none"),
    "tensor_2": ("gpt", "selective"),
    "tensor_2_sequence": ("bert", "full_2"),
    "tensor_3": ("elmo", "none"),
    "hybrid_2x2x1": ("elmo_classifier", "none"),
    "hybrid_1x2x2": ("bert_classifier", "none"),
    "hybrid_2x1x2": ("rnn", "selective"),
    "hybrid_2x2x1_zero": ("resnet", "selective"),
    "hybrid_1x2x2_sequence": ("bert", "none"),
    "single": ("gpt", "full_2"),
}
"""What the default suite trains: every layout, every family and every way to recompute, each at least once."""

DROPPED = ("pipeline_2_1f1b", "tensor_2")
"""Layouts whose dropout is compared to the last bit there."""


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    folder = tmp_path_factory.mktemp("parity")
    write_texts(folder)
    with ranks(RANKS, folder) as pool:
        yield Matrix(pool, folder)


def close(found: Found) -> None:
    """Within the bounds of promise 1."""
    assert all(gap <= LOSS for gap in found.losses.values()), found
    assert found.weights is None or found.weights <= WEIGHTS, found
    assert all(found.dropped.values()), found


def test_the_selection_leaves_nothing_out() -> None:
    assert set(SELECTED) == set(LAYOUTS)
    assert {family for family, _ in SELECTED.values()} == set(FAMILIES)
    assert {way for _, way in SELECTED.values()} == set(RECOMPUTE)


@pytest.mark.parametrize("layout", list(SELECTED))
def test_a_selection_has_the_losses_of_one_process(matrix: Matrix, layout: str) -> None:
    family, way = SELECTED[layout]
    found = matrix.find(layout, family, [way], weights=family == "gpt", dropout=layout in DROPPED)
    assert not found.refused
    close(found)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("layout", "family"), list(product(LAYOUTS, FAMILIES)))
def test_every_cell_has_the_losses_and_weights_of_one_process(matrix: Matrix, layout: str, family: str) -> None:
    found = matrix.find(layout, family, ways(family, list(RECOMPUTE)))
    close(found)
    divided = "tensor" in layout or layout in ("hybrid_1x2x2", "hybrid_2x1x2", "hybrid_1x2x2_sequence")
    whole = family in ("resnet", "elmo_classifier") or ("sequence" in layout and family in ("elmo", "rnn"))
    assert bool(found.refused) == (divided and whole), "the plan refuses what the docs list, and no more"


# --- the bench -----------------------------------------------------------------------------------------------------------


def test_words_name_layouts_families_and_ways(tmp_path: Path) -> None:
    asked = parity_words(["layouts=tensor_2,single", "families=rnn", f"to={tmp_path / 'parity.md'}"])
    assert (asked.layouts, asked.families, asked.recompute) == (("single", "tensor_2"), ("rnn",), tuple(RECOMPUTE))
    with pytest.raises(ConfigError) as error:
        parity_words(["layouts=tensor2", "families=", "recompute=all", f"to={tmp_path}"])
    assert {problem.key for problem in error.value.problems} == {"layouts", "families", "recompute", "to"}
    assert any("did you mean tensor_2" in str(problem) for problem in error.value.problems)


def test_tables_show_gaps_and_reasons_by_letter() -> None:
    asked = parity_words(["layouts=single,tensor_2", "families=rnn,resnet", "recompute=none,full"])
    trained = Found({"none": 0.0, "full": 2e-7}, 3e-8, {"full": True})
    refused = Found(refused={"none": ("no layer can be split",), "full": ("no layer can be split",)})
    found = dict.fromkeys(product(asked.layouts, asked.families), trained) | {("tensor_2", "resnet"): refused}
    text = tables(asked, found)
    assert "| tensor_2 | 2e-07 | a |" in text
    assert "| tensor_2 | 3e-08 | - |" in text
    assert "3 of 3 jobs that recompute" in text
    assert "- a: no layer can be split (tensor_2; resnet; none, full)" in text


def test_the_documented_table_has_every_layout_and_family() -> None:
    page = (Path(__file__).parent.parent / "docs" / "parity.md").read_text()
    begin, end = (page.index(mark) for mark in marks("parity"))
    table = page[begin:end]
    assert all(f"| {layout} |" in table for layout in LAYOUTS)
    assert all(f"| {family} |" in table for family in FAMILIES)
