"""What else goes wrong in a run: numbers, disks, clocks, folders, ports, a rank that is slow, one process that hangs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from faults import EVERY, last_step, meanwhile, misbehave, toy, train, wait_for_step
from helpers import marked_environment, read, rows, started, wait_for

from dml_runner import pulse
from dml_runner.checkpoint.newest import newest
from dml_runner.layout import Mesh
from dml_runner.loops.straggler import Stragglers
from dml_runner.pulse import Listener, Pulse

# --- numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_diverges_keeps_its_last_healthy_step(tmp_path: Path, ranks: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A learning rate that grows for 40 steps and is too high from the first on."""
    words = ["optimizer=sgd", "optimizer.lr=1e6", "lr_schedule.warmup_steps=60", "checkpoint.every=1", "checkpoint.keep=2"]
    assert train(toy(tmp_path, ranks, *words)) == 6
    said = capsys.readouterr().err
    run = tmp_path / "run"
    died = last_step(run) + 1
    assert f"step {died}: the gradient is not finite" in said, said
    committed, notices = newest(run / "checkpoints")
    assert committed is not None
    assert not notices
    assert died - 2 <= committed.step < died, "one save may have been in flight"
    assert all(committed.read(name).isfinite().all() for name in committed.tensors if name.startswith("model/"))
    assert len(list((run / "generations").glob("*"))) == 1, "not tried again"
    assert read(run, "summary.json")["status"] == "failed"


# --- disks ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of its own; skips where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "dml-test", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a file system takes root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_disk_that_fills_up_leaves_the_last_step_and_one_clear_line(
    tmp_path: Path, small_disk: Path, ranks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_disk / "run"
    words = [word for word in toy(tmp_path, ranks, "train.steps=100000") if not word.startswith("run=")]

    def fill() -> None:
        wait_for(lambda: (run / "checkpoints" / "latest").exists())
        with suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as ballast:
            while ballast.write(bytes(4096)):
                pass

    with meanwhile(fill):
        assert train([*words, f"run={run}"]) == 5
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("checkpoint: ")]
    assert "No space left on" in line
    assert "need" in line
    assert "have" in line
    assert "the last committed step is" in line
    assert "starting again" not in said
    assert "should not have happened" not in said
    (small_disk / "ballast").unlink()
    committed, _ = newest(run / "checkpoints")
    assert committed is not None
    assert committed.step % EVERY == 0


# --- clocks --------------------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_by_an_hour_is_no_hang_and_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    misbehave(monkeypatch, tmp_path, rank=0, step=30, act="jump")
    now = time.time

    def jump_here() -> None:
        wait_for_step(tmp_path / "run", 10)
        monkeypatch.setattr(time, "time", lambda: now() + 3600)

    with meanwhile(jump_here):
        assert train(toy(tmp_path, 2, "train.max_hours=0.05")) == 0
    summary = read(tmp_path / "run", "summary.json")
    assert (summary["status"], summary["restarts"]) == ("completed", 0)
    assert 0 < summary["wall_s"] < 180


# --- folders and ports ---------------------------------------------------------------------------------------------------


def test_of_two_jobs_in_one_folder_the_second_is_refused_and_the_first_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = toy(tmp_path, 1, "train.steps=100000")
    environment, _ = marked_environment()
    with started("train", *words, env=environment) as first:
        wait_for_step(tmp_path / "run", 5)
        assert train(words) == 2
        assert f'"pid": {first.pid}' in (said := capsys.readouterr().err)
        assert "another job is using this folder" in said
        assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_two_jobs_start_at_once_though_torchs_port_is_taken(tmp_path: Path) -> None:
    environment, _ = marked_environment()
    with closing(socket.socket()) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            taken.bind(("", 29500))
            taken.listen()
        jobs = [toy(tmp_path, 2, "train.steps=20", run=f"run-{number}") for number in (1, 2)]
        with started("train", *jobs[0], env=environment) as one, started("train", *jobs[1], env=environment) as two:
            assert (one.wait(90), two.wait(90)) == (0, 0)


# --- a slow rank ---------------------------------------------------------------------------------------------------------


def test_a_slow_rank_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    environment, _ = marked_environment()
    words = toy(tmp_path, 2, "train.steps=100000", "model.hidden=64", "train.eval_every=null", "checkpoint.every=null")
    with started("train", *words, env=environment) as process:
        victim = wait_for_step(run, 20)[1]
        with meanwhile(lambda: slow_down(victim, process, seconds=60)):
            assert process.stderr is not None
            named = any("rank 1 is slow: it computes" in line for line in process.stderr)
            process.kill()
    assert named


def slow_down(pid: int, process: subprocess.Popen[str], seconds: float) -> None:
    """Let a rank run a third of the time only, while it lives; after ``seconds`` end its job."""
    ends = time.monotonic() + seconds
    with suppress(ProcessLookupError):
        while time.monotonic() < ends:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.006)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.003)
    process.kill()


@pytest.mark.parametrize("every", [1, 2, 8])
@pytest.mark.parametrize("start", range(8))
def test_a_rank_of_half_the_speed_is_named_within_20_steps(every: int, start: int) -> None:
    stragglers, slow_from = Stragglers(Mesh(data=4)), 40 + start
    for step in range(every, 100, every):
        window = range(step - every + 1, step + 1)
        mean = sum(2.0 if each >= slow_from else 1.0 for each in window) / every
        said = stragglers.see([1.0, mean, 1.0, 1.05], every)
        if said is not None:
            assert "rank 1 is slow" in said
            assert slow_from <= step <= slow_from + 20
            return
    pytest.fail("never named")


def test_a_hiccup_is_not_named() -> None:
    stragglers = Stragglers(Mesh(data=2))
    assert all(stragglers.see([1.0, 5.0 if step == 30 else 1.2], 10) is None for step in range(10, 200, 10))


def test_a_stage_that_has_more_to_do_than_another_is_not_slow() -> None:
    stages, rows = Stragglers(Mesh(pipeline=2)), Stragglers(Mesh(pipeline=2, data=2))
    assert all(stages.see([1.0, 2.0], 10) is None for _ in range(10))
    said = [rows.see([1.0, 1.0, 2.0, 4.0], 10) for _ in range(10)]
    assert [each for each in said if each] == ["rank 3 is slow: it computes 4000.0 ms a step where the median rank takes 2000.0 ms"]


# --- one process ---------------------------------------------------------------------------------------------------------


def test_one_process_that_hangs_says_where_and_ends_with_5(tmp_path: Path) -> None:
    done = alone_with(tmp_path, "spoil(30, 'stand still')")
    assert done.returncode == 5, done.stderr
    assert "rank 0 hangs in step 30: no progress for" in done.stderr
    assert "faults.py:" in done.stderr
    run = tmp_path / "run"
    assert "stand_still" in (run / "logs" / "rank-0.log").read_text()
    assert read(run, "summary.json")["status"] == "failed"
    assert "hangs in step 30" in read(run, "summary.json")["error"]


@pytest.mark.slow
def test_one_process_under_a_debugger_may_stand_still(tmp_path: Path) -> None:
    done = alone_with(tmp_path, "import faults; faults.ACTS['debug'] = faults.think; spoil(30, 'debug')", "train.steps=40")
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "run")) == 40


def alone_with(folder: Path, prelude: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A run of one rank in a Python of its own that first does ``prelude``."""
    script = f"import sys; from faults import spoil; {prelude}; from dml_runner import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "train", *toy(folder, 1, "launcher.hang_floor_s=1", *words)]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60)


# --- the pulse -----------------------------------------------------------------------------------------------------------


class Watch:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


def test_silence_counts_only_while_the_listener_is_awake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    monkeypatch.setattr(pulse, "time", watch)
    path = tmp_path / "pulse"
    pulse.create(path, 2)
    ranks, listener = [Pulse(path, rank, 10.0) for rank in (0, 1)], Listener(path, 2)
    for rank in ranks:
        rank.begin(1)
        rank.done(0.1)
    for _ in range(10):
        watch.now += 1.0
        assert not any(beat.overdue for beat in listener.beats())
    watch.now += 3600.0
    assert not any(beat.overdue for beat in listener.beats()), "the whole machine slept"
    ranks[0].begin(2)
    for _ in range(10):
        watch.now += 1.0
        assert not any(beat.overdue for beat in listener.beats())
    watch.now += 0.5
    assert [beat.overdue for beat in listener.beats()] == [True, True]
    assert [beat.step for beat in listener.beats()] == [2, 1]
