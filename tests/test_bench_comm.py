"""`dml bench comm` and `dml bench links`: words, figures beside their laws, and any job on shaped hosts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import DML, dml, losses, small, wait_for

from dml_runner.bench import comm, links
from dml_runner.bench.comm_cases import Case, cases
from dml_runner.bench.comm_plot import write
from dml_runner.bench.comm_rank import Ask, Found
from dml_runner.bench.comm_report import Report, render, rows
from dml_runner.bench.comm_start import run_ranks
from dml_runner.bench.comm_words import ALGORITHMS, comm_words, job_words, link_words
from dml_runner.bench.links_job import run_on
from dml_runner.bench.network import lab, possible
from dml_runner.bench.units import duration, size
from dml_runner.cli import main
from dml_runner.comm import laws
from dml_runner.errors import ConfigError, LaunchError, RunFailed

needs_hosts = pytest.mark.skipif(possible() is not None, reason=str(possible()))


# --- words ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["comm", "rank=2"], "rank: no such word; allowed ranks=, sizes=, collectives=, algorithms=, node=, rounds=, format=, to="),
        (["comm", "ranks=1"], "ranks: not a count; got '1'; allowed 2 or more"),
        (["comm", "sizes=8q"], "sizes: not a number of bytes; got '8q'; allowed 1 or more, as in 4096, 64k, 8m"),
        (["comm", "algorithms=rings"], "algorithms: no such algorithm; got 'rings'; allowed backend, ring, tree, hierarchical"),
        (["comm", "collectives="], "collectives: nothing to measure; allowed all_reduce, reduce_scatter"),
        (["comm", "algorithms=tree", "collectives=gather"], "algorithms: none of these has one of these collectives on 2 ranks"),
        (["comm", "format=xml"], "format: no such form; got 'xml'; allowed table, json"),
        (["links", "hosts=1"], "hosts: not a count; got '1'; allowed 2 or more"),
        (["links", "hosts=251"], "hosts: too many for one switch; got 251; allowed 2 to 250"),
        (["links", "algorithms=hierarchical", "hosts=3"], "algorithms: none of these has one of these collectives on 3 hosts"),
        (["links", "mbit=0", "--"], "mbit: not a count; got '0'; allowed 1 or more"),
        (["links", "--"], "--: says what to run; got nothing; dml bench links hosts=4 -- train FILE.yaml"),
        (["links", "lost=never", "--", "train"], "lost: not what may follow a rank's failure; got 'never'; allowed end, go_on"),
        (["links", "mb=8", "--", "train"], "mb: no such word; allowed hosts=, mbit=, delay_ms=, lost=, format=, to="),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0].startswith(line)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        comm_words(["sizes=1k,,x", "rounds=0", "algorithms=x", f"to={tmp_path / 'file'}"])
    assert [problem.key for problem in caught.value.problems] == ["sizes", "algorithms", "rounds", "to"]


def test_words_and_their_defaults() -> None:
    asked = comm_words([])
    assert (asked.ranks, asked.sizes) == (None, (64_000, 1_000_000, 8_000_000))
    assert asked.measured.collectives == laws.COLLECTIVES
    assert asked.measured.algorithms == ALGORITHMS == tuple(laws.ALGORITHMS)
    shaped = link_words(["algorithms=ring,backend"])
    assert (shaped.hosts, shaped.mbit, shaped.delay_ms, shaped.size) == (4, 400, 0, 8_000_000)
    assert (shaped.measured.collectives, shaped.measured.algorithms) == (("all_reduce",), ("backend", "ring"))
    job = job_words(["hosts=2", "--", "train", "x.yaml", "--", "y"])
    assert (job.hosts, job.mbit, job.lost, job.command) == (2, 400, "end", ("train", "x.yaml", "--", "y"))


def test_a_plot_is_refused_before_anything_runs_where_none_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^to: a plot needs matplotlib; pip install 'dml_runner\[plots\]', or leave to= out$"):
        comm_words(["to=here"])
    comm_words([])


def test_hierarchical_is_measured_on_whole_nodes_alone() -> None:
    def of(ranks: int) -> set[str]:
        return {case.algorithm for case in cases(("all_reduce", "gather"), ALGORITHMS, (100,), ranks, 2)}

    assert of(4) == set(ALGORITHMS)
    assert of(2) == of(3) == set(ALGORITHMS) - {"hierarchical"}


# --- figures -------------------------------------------------------------------------------------------------------------


def report(bench: str) -> Report:
    """A report of made-up figures."""
    chosen = cases(("all_reduce", "broadcast"), ALGORITHMS, (1000, 8_000_000), 4, 2)
    found = [Found([0.2, 0.3, 0.4], [12_000_000], [12.1e6] if bench == "links" else None) for _ in chosen]
    return Report(bench, 4, 2, 3, 50e6, rows(chosen, found, 4, 2, 50e6))


def test_a_row_stands_beside_its_laws() -> None:
    told = {(row.collective, row.algorithm, row.size): row for row in report("links").rows}
    ring, tree = told["all_reduce", "ring", 8_000_000], told["all_reduce", "tree", 8_000_000]
    assert (ring.seconds, ring.wire, ring.law) == (0.3, 12.1e6, 12_000_000)
    assert ring.own_bound == ring.bound == pytest.approx(0.24)
    assert tree.law == 16_000_000
    assert [tree.own_bound, tree.bound] == pytest.approx([0.32, 0.24])
    assert told["all_reduce", "hierarchical", 8_000_000].own_bound == pytest.approx(0.24)
    assert ring.of_backend is not None
    assert ring.of_backend.median == 1.0


def test_the_table_and_its_units() -> None:
    lines = render(report("links"), "table", ["a note"]).splitlines()
    assert lines[0].split() == ["collective", "algorithm", "size", "time", "rate", "bound", "of", "it", "sent", "law", "to", "backend"]
    (ring,) = [line for line in lines if line.startswith("all_reduce     ring") and "8.00 MB" in line]
    assert ring.split()[2:] == ["8.00", "MB", "300", "ms", "26.7", "MB/s", "240", "ms", "80%", "12.1", "MB", "12.0", "MB", "1.00x"]
    assert lines[-2] == "a note"
    assert [size(each) for each in (8, 999, 1000, 8.4e6, 123e9)] == ["8 B", "999 B", "1.00 kB", "8.40 MB", "123 GB"]
    assert [duration(each) for each in (1.5e-6, 0.0123, 2.0)] == ["1.50 us", "12.3 ms", "2.00 s"]


@pytest.mark.parametrize("bench", ["comm", "links"])
def test_the_plot_is_drawn_and_the_table_put_where_it_belongs(bench: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write(report(bench), tmp_path / "folder", [])
    assert (tmp_path / "folder" / f"{bench}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "folder" / f"{bench}.json").read_text())["rows"][0]["collective"] == "all_reduce"
    page = tmp_path / "page.md"
    page.write_text(f"before\n<!-- {bench} -->\nold\n<!-- /{bench} -->\nbehind\n")
    write(report(bench), page, [])
    text = page.read_text()
    assert text.startswith(f"before\n<!-- {bench} -->\n```\ncollective ")
    assert text.endswith(f"```\n\n![{bench}](page-{bench}.png)\n<!-- /{bench} -->\nbehind\n")
    assert (tmp_path / f"page-{bench}.png").is_file()


# --- measuring -----------------------------------------------------------------------------------------------------------


def test_two_ranks_send_what_the_laws_say() -> None:
    told: dict[str, Any] = json.loads(comm.measure(["ranks=2", "sizes=4k,100k", "rounds=2", "format=json"]))
    assert {"bench", "ranks", "delay_ms", "node", "rounds", "rate", "rows", "latency_s", "machine"} == told.keys()
    assert (told["ranks"], told["rounds"]) == (2, 2)
    assert told["rate"] > 1e6
    measured = {(row["collective"], row["algorithm"], row["size"]) for row in told["rows"]}
    has = {
        (what, how, size)
        for how, known in laws.ALGORITHMS.items()
        if how != "hierarchical"
        for what in known
        for size in (8, 4000, 100_000)
    }
    assert measured == has
    wrong = [row for row in told["rows"] if row["sent"] != row["law"] or not 0 < row["low"] <= row["seconds"] <= row["high"]]
    assert wrong == []
    assert told["latency_s"]["all_reduce"].keys() == {"backend", "ring", "tree"}


def test_a_rank_that_fails_is_told_and_the_others_are_ended() -> None:
    ask = Ask((Case("all_reduce", "ring", 4000),), rounds=1, node=2, interface="nosuch0")
    with pytest.raises(RunFailed, match=r"^rank \d of the bench ended with code 1: .*LookupError: no interface nosuch0$"):
        run_ranks(ask, [list, list], "lo")


def test_a_given_world_is_measured_and_rank_0_talks() -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *DML[1:])
    done = dml("bench", "comm", "sizes=4k", "rounds=1", "collectives=broadcast", command=torchrun)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("collective ") == 1
    assert "2 ranks, median of 1 rounds" in done.stdout


@pytest.mark.slow
@needs_hosts
def test_collectives_on_shaped_hosts_fill_the_links() -> None:
    told = json.loads(links.measure(["hosts=4", "mbit=200", "mb=1", "rounds=1", "format=json"]))
    assert [row["algorithm"] for row in told["rows"]] == list(ALGORITHMS)
    for row in told["rows"]:
        assert row["law"] <= row["wire"] < 1.08 * row["law"], "4.4 % for the headers of full packets, half of it for answers"
        assert row["seconds"] > 0.95 * row["own_bound"], row
    assert told["rate"] == 25e6


# --- jobs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_hosts
def test_any_job_runs_on_shaped_hosts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = small(tmp_path, "strategy=all_reduce", "train.global_batch=8")
    words = ["hosts=2", "mbit=200", "format=json", f"to={tmp_path / 'kept'}", "--", "train", *job]
    assert main(["bench", "links", *words]) == 0
    out, err = capfd.readouterr()
    assert "completed after 6 steps" in err, "rank 0 is heard"
    told = json.loads(out)
    assert told == json.loads((tmp_path / "kept" / "links.json").read_text())
    assert (told["codes"], told["code"]) == ([0, 0], 0)
    gradients = 6 * 4 * 29_000  # steps, bytes, parameters
    assert all(gradients < each["sent"] < 3 * gradients for each in told["traffic"])
    assert len(losses(tmp_path / "run")) == 6


@needs_hosts
def test_a_job_that_fails_ends_with_its_code_and_no_rank_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os, sys, time; rank = int(os.environ['RANK']); rank == 1 and sys.exit(7); time.sleep(float(sys.argv[1]))"
    monkeypatch.setattr("dml_runner.bench.links_job.GRACE_S", 0.5)
    with lab(3, mbit=100) as made:
        done = run_on(made, [sys.executable, "-c", script, "60"], tmp_path)
        assert (done.codes, done.code) == ((-15, 7, -15), 143)
        done = run_on(made, [sys.executable, "-c", script, "0.5"], tmp_path, go_on=True)
        assert (done.codes, done.code) == ((0, 7, 0), 7)
        assert done.seconds > 0.5


STARTER = """
import sys
from pathlib import Path
from dml_runner.bench.links_job import run_on
from dml_runner.bench.network import lab
with lab(2, mbit=100) as made:
    run_on(made, [sys.executable, *sys.argv[2:]], Path(sys.argv[1]))
"""
SAVER = """
import os, signal, sys, time
from pathlib import Path
mine = Path(sys.argv[1]) / os.environ["RANK"]
def save(number, frame):
    mine.with_suffix(".saved").write_text(str(number))
    sys.exit(0)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
mine.touch()
time.sleep(60)
"""


@needs_hosts
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_wish_to_end_is_passed_on_to_the_job_once(number: int, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTER, str(tmp_path), "-c", SAVER, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as starter:
        wait_for(lambda: all((tmp_path / rank).exists() for rank in "01"), 60)
        starter.send_signal(number)
        assert starter.wait(60) == code
    assert [(tmp_path / f"{rank}.saved").read_text() for rank in "01"] == [str(int(number))] * 2


def test_without_root_there_are_no_hosts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("dml_runner.bench.network.possible", lambda: "needs root")
    for words in ([], ["--", "train"]):
        assert main(["bench", "links", *words]) == LaunchError.exit_code
        assert capsys.readouterr().err == "network: hosts cannot be made on this machine; needs root\n"
