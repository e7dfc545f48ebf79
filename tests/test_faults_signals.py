"""Signals: SIGTERM saves and ends, from wherever it comes and whatever the ranks do; Ctrl-C once and twice; nobody is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import STEPS, evaluate_slowly, last_step, meanwhile, misbehave, strike, strike_here, toy, train, untouched, wait_for_step
from helpers import DML, alive, evaluations, marked_environment, read, wait_for

from dml_runner.bench.faults_evidence import evidence, story

LONG = "train.steps=100000"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run of 2 ranks that nobody disturbs leaves."""
    return untouched(tmp_path_factory, 2)


class Job:
    """``dml train`` as a command in a process group of its own, as a shell or a batch system starts it."""

    def __init__(self, words: list[str]) -> None:
        environment, self.mark = marked_environment()
        self.process = subprocess.Popen(
            [*DML, "train", *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to every process of the group."""
        os.killpg(self.process.pid, number)

    def end(self, within_s: float = 60.0) -> tuple[int, str]:
        """Its exit code and all it said; every process of it must be gone soon after."""
        said, _ = self.process.communicate(timeout=within_s)
        assert not alive(self.mark), "left behind"
        return self.process.returncode, said


@contextlib.contextmanager
def job(words: list[str]) -> Iterator[Job]:
    """A Job that is killed in the end if it still runs."""
    started = Job(words)
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.signal_all(signal.SIGKILL)
        started.process.wait()
        assert started.process.stdout is not None
        started.process.stdout.close()


def saved_at(run: Path) -> int:
    """The step that a run would go on from."""
    return int((run / "checkpoints" / "latest").resolve().name.removeprefix("step-"))


# --- SIGTERM -------------------------------------------------------------------------------------------------------------


def test_sigterm_loses_no_step_and_the_same_words_go_on(tmp_path: Path, alone: dict[str, str]) -> None:
    run = tmp_path / "run"
    with meanwhile(strike_here(run, 50, signal.SIGTERM)):
        assert train(toy(tmp_path, 2)) == 143
    assert read(run, "summary.json")["status"] == "interrupted"
    assert saved_at(run) == last_step(run) >= 50
    assert train(toy(tmp_path, 2)) == 0
    assert evidence(run) == alone


@pytest.mark.slow
def test_sigterm_during_an_evaluation(tmp_path: Path, alone: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched, meanwhile(strike_here(run, 40, signal.SIGTERM)):
        evaluate_slowly(patched)
        assert train(toy(tmp_path, 2)) == 143
    assert saved_at(run) == last_step(run) == 40
    assert not evaluations(run), "it was still evaluating"
    assert train(toy(tmp_path, 2)) == 0
    assert evidence(run) == alone


@pytest.mark.slow
def test_sigterm_while_the_ranks_are_being_started(tmp_path: Path, alone: dict[str, str]) -> None:
    run = tmp_path / "run"
    with job(toy(tmp_path, 2)) as started:
        wait_for(lambda: (run / "generations" / "0.json").exists())
        wait_for(lambda: b"spawn_main" in children(started) or b"forkserver" in children(started))
        time.sleep(0.05)
        started.process.send_signal(signal.SIGTERM)
        code, said = started.end()
    assert code in (143, -signal.SIGTERM), said
    assert "starting again" not in said
    assert train(toy(tmp_path, 2)) == 0
    assert evidence(run) == alone


def children(started: Job) -> bytes:
    """Command lines of the processes below a job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"\nPPid:\t{started.process.pid}\n" in (folder / "status").read_text():
                found.append((folder / "cmdline").read_bytes())
    return b"\n".join(found)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_every_process_of_the_job_saves_too(tmp_path: Path, number: signal.Signals) -> None:
    """As systemd, a batch system or a closed terminal sends it."""
    run = tmp_path / "run"
    with job(toy(tmp_path, 2, LONG)) as started:
        wait_for_step(run, 10)
        started.signal_all(number)
        code, said = started.end()
    assert code == 143, said
    assert saved_at(run) == last_step(run)


def test_sigterm_to_a_single_rank_stops_and_saves_all(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with meanwhile(strike(run, 30, 1, signal.SIGTERM)):
        assert train(toy(tmp_path, 2)) == 143
    assert saved_at(run) == last_step(run)


def test_sigterm_with_one_rank(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with meanwhile(strike_here(run, 30, signal.SIGTERM)):
        assert train(toy(tmp_path, 1, LONG)) == 143
    assert saved_at(run) == last_step(run)
    assert read(run, "summary.json")["status"] == "interrupted"


def test_sigterm_while_a_rank_waits_for_data_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    misbehave(monkeypatch, tmp_path, rank=1, step=35, act="stand still")
    run = tmp_path / "run"

    def act() -> None:
        wait_for_step(run, 34)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    with meanwhile(act):
        assert train(toy(tmp_path, 2, "launcher.hang_floor_s=30")) == 143
    assert saved_at(run) == 34, "the step before the one whose data is missing"


def test_asked_to_stop_a_run_that_cannot_save_says_what_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehave(monkeypatch, tmp_path, rank=1, step=35, act="stand still")
    run = tmp_path / "run"

    def act() -> None:
        _, second = wait_for_step(run, 34)
        os.kill(second, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGTERM)

    with meanwhile(act):
        assert train(toy(tmp_path, 2)) == 5
    assert "rank 1 is frozen" in (said := capsys.readouterr().err)
    assert "the end was asked for, but steps 21 to 34 are not saved" in said


# --- Ctrl-C, and a launcher that is gone ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_z_is_no_hang_and_ctrl_c_once_saves(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with job(toy(tmp_path, 2, LONG, "launcher.hang_floor_s=1")) as started:
        wait_for_step(run, 10)
        started.signal_all(signal.SIGSTOP)
        time.sleep(3.5)
        started.signal_all(signal.SIGCONT)
        wait_for_step(run, last_step(run) + 50)
        refused = train(toy(tmp_path, 2))
        started.signal_all(signal.SIGINT)
        code, said = started.end()
    assert code == 130, said
    assert refused == 2, "two jobs in one folder"
    assert read(run, "summary.json")["restarts"] == 0, said
    assert saved_at(run) == last_step(run)


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with job(toy(tmp_path, 2, LONG)) as started:
        wait_for_step(run, 10)
        began = time.monotonic()
        started.signal_all(signal.SIGINT)
        time.sleep(0.02)  # two signals, and not yet a saved run
        started.signal_all(signal.SIGINT)
        assert started.process.stdout is not None
        assert any("stopped at once; the last saved step is kept" in line for line in started.process.stdout)
        took = time.monotonic() - began
        code, _ = started.end()
    assert code == 130
    assert took < 2.0
    assert read(run, "summary.json")["status"] == "interrupted"


def test_no_rank_outlives_a_killed_launcher_and_the_words_go_on(tmp_path: Path, alone: dict[str, str]) -> None:
    run = tmp_path / "run"
    with job(toy(tmp_path, 2)) as started:
        wait_for_step(run, 30)
        started.process.kill()
        assert not alive(started.mark, within_s=5)
    assert train(toy(tmp_path, 2)) == 0
    assert evidence(run) == alone
    assert [row["step"] for row in story(run) if "loss" in row] == list(range(1, STEPS + 1))


def test_under_nohup_a_closed_terminal_is_nothing(tmp_path: Path, alone: dict[str, str]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with meanwhile(strike_here(tmp_path / "run", 10, signal.SIGHUP)):
            assert train(toy(tmp_path, 2)) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert evidence(tmp_path / "run") == alone
