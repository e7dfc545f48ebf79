"""The bench: words, figures, and that every loop trains the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dml_runner.bench import MEASUREMENTS, loop, run_bench
from dml_runner.bench.loops import by_hand
from dml_runner.bench.statistics import estimate
from dml_runner.bench.task import WARM_UP, Clock, Samples, Task
from dml_runner.bench.words import FRAMEWORKS, KEYS, LoopWords, loop_words
from dml_runner.cli import main
from dml_runner.errors import ConfigError


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], f"bench: what to measure; got nothing; allowed {', '.join(MEASUREMENTS)}\n"),
        (["lop"], f"bench: what to measure; got 'lop'; allowed {', '.join(MEASUREMENTS)}; did you mean loop?\n"),
        (["loop", "step=3"], "step: no such word; allowed steps=, pairs=, with=, format=; did you mean steps?\n"),
        (["loop", "steps=one"], "steps: not a count; got 'one'; allowed 2 or more\n"),
        (["loop", "pairs=1"], "pairs: not a count; got '1'; allowed 2 or more\n"),
        (["loop", "with=acelerate"], "with: no such loop; got 'acelerate'; allowed accelerate, lightning; did you mean accelerate?\n"),
        (["loop", "format=xml"], "format: no such form; got 'xml'; allowed table, json\n"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(words, capsys) == line


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        loop_words(["steps=0", "with=keras", "format=xml", "colour=red"])
    assert {problem.key for problem in caught.value.problems} == {"steps", "with", "format", "colour"}


def test_words_and_their_defaults() -> None:
    assert loop_words([]) == LoopWords(500, 20, FRAMEWORKS, "table")
    assert loop_words(["steps=7", "pairs=3", "with=", "format=json"]) == LoopWords(7, 3, (), "json")
    assert loop_words(["with=lightning"]).frameworks == ("lightning",)


def test_the_interval_holds_the_median_and_is_reproducible() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 100.0]
    found = estimate(values)
    assert found.median == 3.0
    assert found.low <= found.median <= found.high
    assert found == estimate(values)
    assert estimate([5.0, 5.0, 5.0]).low == estimate([5.0, 5.0, 5.0]).high == 5.0


def trained(by: loop.Loop, steps: int) -> tuple[Clock, list[torch.Tensor]]:
    clock = Clock(steps)
    model = by(Task(loop.job(clock.needed), Samples(clock), clock.needed))
    return clock, [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("name", [name for name in loop.LOOPS if name not in FRAMEWORKS or loop.installed(name)])
def test_every_loop_ends_with_the_same_weights(name: str) -> None:
    steps = 150  # past the end of the first epoch
    _, by_myself = trained(by_hand, steps)
    clock, theirs = trained(loop.LOOPS[name], steps)
    assert clock.step_us > 0
    for mine, other in zip(by_myself, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_the_clock_leaves_the_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 10.5])
    monkeypatch.setattr("dml_runner.bench.task.time.perf_counter", lambda: next(now))
    clock = Clock(steps=5)
    for _ in range(clock.needed):
        clock.tick()
    assert clock.needed == WARM_UP + 6
    assert clock.step_us == pytest.approx(1e5)


def test_the_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_bench(["loop", "steps=20", "pairs=2", "with="]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in table[:3]] == ["loop", "plain torch", "dml"]
    assert "1 thread(s)" in table[-1]
    assert run_bench(["loop", "steps=20", "pairs=2", "with=", "format=json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["loops"]["plain torch"]["over_plain_us"] == {"median": 0.0, "low": 0.0, "high": 0.0}
    over = result["loops"]["dml"]["over_plain_us"]
    assert over["low"] <= over["median"] <= over["high"]
    assert result["machine"]["threads"] == 1
    assert {"python", "torch", "cpu", "cores"} <= result["machine"].keys()


def test_a_loop_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "installed", lambda name: False)
    text = loop.measure(["steps=2", "pairs=2"])
    assert "not installed: accelerate, lightning (pip install 'dml_runner[bench]')" in text


def test_help_names_every_word_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: dml bench NAME")
    part = text.partition("Words of loop:")[2].partition("Words of")[0]
    shown = dict(word.split("=", 1) for word in part.split() if "=" in word)
    assert shown.keys() >= set(KEYS)
    assert loop_words([f"steps={shown['steps']}", f"pairs={shown['pairs']}"]) == LoopWords()
