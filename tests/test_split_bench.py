"""`dml bench bubble` and `dml bench split`: words, laws, and one tiny measurement of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dml_runner.bench import bubble, split
from dml_runner.bench.bubble_stages import Kept, Sleep, Stage
from dml_runner.bench.network import INTERFACE, JUMBO_MTU, headers, lab, possible
from dml_runner.bench.ranks import run_module
from dml_runner.bench.split_words import split_words
from dml_runner.cli import main

TINY = ["layers=2", "hidden=128", "vocabulary=96", "length=16", "batch=4", "steps=2", "pairs=2"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["bubble", "ranks=1"], "ranks: not counts; got '1'; allowed 2 or more each, as in 1,2,4"),
        (["bubble", "schedules=1f1"], "schedules: no such schedule; got '1f1'; allowed naive, gpipe, 1f1b, interleaved_1f1b, zero_bubble"),
        (["split", "what=tensors"], "what: no such split; got 'tensors'; allowed pipeline, tensor; hint did you mean tensor?"),
        (["split", "hidden=64"], "hidden: no whole heads of 64 for each rank; got 64; allowed multiples of 128"),
        (["split", "layers=1"], "layers: not a count; got '1'; allowed 2 or more"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0].startswith(line.partition("; hint")[0])


def test_the_laws_of_idle_time() -> None:
    assert bubble.law("naive", 4, 8, 1) == 3 / 4
    assert bubble.law("gpipe", 4, 8, 1) == bubble.law("1f1b", 4, 8, 1) == 3 / 11
    assert bubble.law("interleaved_1f1b", 4, 8, 2) == 3 / 19
    assert bubble.law("zero_bubble", 4, 8, 1) == 3 / 27


def test_what_is_kept_is_counted_until_it_is_let_go() -> None:
    kept, stage = Kept(), Stage(Sleep(1e-4), first=True)
    with kept.watch():
        outs = [stage(None) for _ in range(3)]
    assert kept.most == 3
    outs.pop().sum().backward()
    kept.clear()
    assert kept.most == 2


@pytest.mark.slow
def test_idle_time_and_kept_activations_follow_the_laws(tmp_path: Path) -> None:
    """Five points, as stages that sleep keep even on a busy machine."""
    page = tmp_path / "page.md"
    words = ["ranks=2", "microbatches=4", "schedules=naive,gpipe,1f1b,zero_bubble", "ms=20", "rounds=2", f"to={page}", "format=json"]
    told = json.loads(bubble.measure(words))
    for row in told["rows"]:
        assert row["idle"]["median"] == pytest.approx(row["law"], abs=0.05)
        assert row["paper"] == pytest.approx(row["law"])
        assert row["held"] == row["held_on_paper"]
    held = {row["schedule"]: row["held"] for row in told["rows"]}
    assert held == {"naive": [1, 1], "gpipe": [4, 4], "1f1b": [2, 1], "zero_bubble": [2, 2]}
    assert page.read_text().startswith("<!-- bubble -->\n```\nranks")
    assert "1f1b" in (tmp_path / "page-bubble.svg").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["pipeline", "tensor"])
def test_a_split_model_trains_as_by_hand_and_sends_what_the_law_says(what: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    told: dict[str, Any] = json.loads(split.measure([*TINY, f"what={what}", "microbatches=2", f"to={page}", "format=json"]))
    assert told["losses"]["dml"] == pytest.approx(told["losses"]["by hand"], abs=split.CLOSE)
    assert told["ratio"]["median"] > 0
    assert {each["layout"] for each in told["traffic"]} == set(split.variants(what))
    for each in told["traffic"]:
        assert each["counted"] == each["law"], each["layout"]
    assert page.read_text().startswith(f"<!-- split_{what} -->\n```\nloop")


@pytest.mark.slow
@pytest.mark.skipif(possible() is not None, reason=str(possible()))
@pytest.mark.parametrize("what", ["pipeline", "tensor"])
def test_bytes_of_a_split_model_are_those_of_the_law_by_the_kernels_count(what: str) -> None:
    """Beside them a host sends headers, acknowledgements of what the other sends, and small words at the border of a step."""
    asked = split_words([f"what={what}", "layers=4", "hidden=256", "vocabulary=512", "length=128", "batch=16"])
    jobs = {layout: asked.job(*more, steps=6, log_every=6) for layout, more in split.variants(what).items()}
    ask = {"what": what, "counted": list(jobs.values()), "pairs": 0, "interface": INTERFACE}
    with lab(2, 1000, mtu=JUMBO_MTU) as made:
        found = run_module("dml_runner.bench.split_rank", ask, [host.command for host in made.hosts], INTERFACE)
    for layout, counted in zip(jobs, found["counted"], strict=True):
        law, _ = split.law(asked, layout)
        assert counted["bytes"][-1] == law
        assert law <= counted["wire"] <= law * (1 + 2 * headers(JUMBO_MTU)) + 10_000, layout
