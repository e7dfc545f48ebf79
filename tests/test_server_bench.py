"""`dml bench server`, `loopback`, `overlap`, `ddp` and `straggler`: words, laws, and one tiny measurement of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dml_runner.bench import ddp, loopback, overlap, server, straggler
from dml_runner.bench.network import possible
from dml_runner.bench.straggler import Course, read_course
from dml_runner.bench.straggler_words import straggler_words
from dml_runner.cli import main

needs_hosts = pytest.mark.skipif(possible() is not None, reason=str(possible()))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["server", "server=1"],
            "server: no such word; allowed workers=, servers=, helpers=, placement=, mbit=, mtu=, mb=, buckets=, rounds=, to=, format=",
        ),
        (["server", "servers=0"], "servers: not counts; got '0'; allowed 1 or more each, as in 1,2,4"),
        (["server", "servers=5"], "servers: more than workers to live with; got 5; allowed 1 to 4"),
        (["server", "servers=247"], "servers: too many hosts for one switch; got 247; allowed 250 hosts in all"),
        (["server", "placement=colocate"], "placement: no such placement; got 'colocate'; allowed dedicated, colocated, helpers"),
        (["server", "workers=1", "servers=1"], "placement: helpers sum for two workers or more; allowed placement=dedicated,colocated"),
        (["server", "mtu=9001"], "mtu: larger than a link takes; got 9001; allowed 576 to 9000"),
        (["loopback", "rounds=1"], "rounds: not a count; got '1'; allowed 2 or more"),
        (["overlap", "algorithms=rings"], "algorithms: no such algorithm; got 'rings'; allowed backend, ring, tree, hierarchical"),
        (["ddp", "hosts=251"], "hosts: too many for one switch; got 251; allowed 2 to 250"),
        (["straggler", "who=two"], "who: nobody of that name; got 'two'; allowed one, any"),
        (["straggler", "lr=fast"], "lr: not a number of that range; got 'fast'; allowed above 0, 1000 at most"),
        (["straggler", "momentum=1"], "momentum: not a number of that range; got '1'; allowed 0 or more, 0.999 at most"),
        (["straggler", "batch=30"], "batch: does not divide among 4 workers; got 30"),
        (["straggler", "most_ms=1"], "most_ms: less than least_ms; got 1; allowed 20 or more"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0].startswith(line)


def test_the_laws_of_the_traffic() -> None:
    assert [server.law(4, k, "dedicated", 1.0) for k in (1, 2, 4, 8)] == [4.0, 2.0, 1.0, 1.0]
    assert [server.law(4, k, "colocated", 1.0) for k in (1, 2, 4)] == [3.0, 2.0, 1.5]
    assert [server.law(4, k, "helpers", 1.0) for k in (0, 1, 2, 4)] == pytest.approx([1.5, 4 / 3, 1.2, 1.0])


def test_a_course_is_read_from_rows() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 10, "step_time_s": 0.5, "clock_gap": 2},
        {"step": 10, "eval_loss": 4.0},
        {"step": 20, "step_time_s": 0.1, "clock_gap": 3},
        {"step": 20, "eval_loss": 2.0},
    ]
    course = read_course(rows)
    assert course == Course((5.0, 6.0), (4.0, 2.0), 20, 3)
    assert course.at(5.5) == 3.0


def test_push_and_pull_beside_plain_messages(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    told = json.loads(loopback.measure(["workers=2", "buckets=2", "mb=1", "rounds=2", f"to={page}", "format=json"]))
    assert [(row["workers"], row["buckets"]) for row in told["rows"]] == [(2, 2)]
    assert told["rows"][0]["rate"] > 0
    assert page.read_text().startswith("<!-- loopback -->\n```\nworkers")


@pytest.mark.slow
@needs_hosts
@pytest.mark.parametrize("placement", ["dedicated", "colocated", "helpers"])
def test_bytes_of_a_parameter_server_are_those_of_the_law(placement: str) -> None:
    told = json.loads(
        server.measure(["workers=2", "servers=2", "helpers=2", f"placement={placement}", "mb=2", "buckets=4", "rounds=2", "format=json"])
    )
    row = told["rows"][0]
    assert row["law"] == pytest.approx(2e6)
    assert row["counted"] == pytest.approx(row["law"], rel=0.001)
    assert row["sent"] == pytest.approx(row["law"], rel=0.1)
    assert row["seconds"]["median"] > row["bound"]


@pytest.mark.slow
@needs_hosts
def test_overlap_and_ddp_are_measured() -> None:
    told = json.loads(overlap.measure(["hosts=2", "mb=1", "layers=4", "algorithms=ring", "rounds=2", "format=json"]))
    assert [row["algorithm"] for row in told["rows"]] == ["ring"] * 3
    assert all(row["both"] > 0.9 * row["compute"] for row in told["rows"])
    pair = json.loads(ddp.measure(["hosts=2", "steps=2", "pairs=2", "format=json"]))
    assert set(pair["sides"]) == {"dml", "by hand"}
    assert pair["ratio"]["low"] <= pair["ratio"]["median"] <= pair["ratio"]["high"]


@pytest.mark.slow
def test_a_job_with_a_straggler_tells_its_gap(tmp_path: Path) -> None:
    asked = straggler_words(["seconds=1", "every=4", "staleness=2"])
    course = straggler.train(asked, "ssp", 1, tmp_path / "run")
    assert course.gap is not None
    assert 0 <= course.gap <= 2
    assert list(course.times) == sorted(course.times)
