"""Trackers: what they write can be read back, what they show is right, and none of them holds the training up."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from dml_runner.tracking import Console, Jsonl, Trackers, jsonl
from dml_runner.tracking.meter import Meter
from dml_runner.tracking.wording import duration, loss_text, short

EVALUATION = {"step": 2, "eval_loss": 1.5, "eval_samples": 64, "eval_accuracy": 0.75}
SUMMARY = {"status": "completed", "steps": 3, "final_loss": 1.25, "eval": {"eval_loss": 1.5}, "wall_s": 83.2, "folder": "outputs/train/x"}


def row(step: int, loss: float = 2.0) -> dict[str, object]:
    return {
        "step": step,
        "loss": loss,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "step_time_s": 0.1,
        "data_wait_s": 0.025,
        "forward_backward_s": 0.05,
        "comm_wait_s": 0.0,
        "update_s": 0.01,
        "comm_bytes": 0,
        "samples_per_s": 80.0,
        "tokens_per_s": 12_345.0,
        "memory_bytes": 1_000_000,
    }


class Recorder:
    """A tracker that keeps what it is given, and fails when told to."""

    def __init__(self, failing: bool = False) -> None:
        self.rows: list[Mapping[str, object]] = []
        self.notes: list[str] = []
        self.summary: Mapping[str, object] | None = None
        self.failing = failing
        self.calls = 0

    def log(self, row: Mapping[str, object]) -> None:
        self.calls += 1
        if self.failing:
            raise OSError("no route to host\nand more")
        self.rows.append(row)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finish(self, summary: Mapping[str, object]) -> None:
        self.summary = summary


def strict(text: str) -> object:
    def refuse(word: str) -> object:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


# --- several at once


def test_an_outside_tracker_that_fails_is_reported_once_and_dropped() -> None:
    own, outside = Recorder(), Recorder(failing=True)
    trackers = Trackers([own], [outside])
    for step in range(3):
        trackers.log({"step": step})
    trackers.finish(SUMMARY)
    assert [r["step"] for r in own.rows] == [0, 1, 2]
    assert own.notes == ["recorder: no route to host; training goes on"]
    assert (outside.calls, outside.summary, own.summary) == (1, None, SUMMARY)


def test_the_runs_own_tracker_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    own, other = Recorder(failing=True), Recorder()
    trackers = Trackers([own, other])
    trackers.log({"step": 1})
    trackers.log({"step": 2})
    own.failing = False
    trackers.log({"step": 3})
    assert [r["step"] for r in own.rows] == [3]
    assert len(other.rows) == 3
    assert other.notes == ["recorder: no route to host; training goes on"] == caplog.messages


# --- metrics.jsonl


def test_rows_are_on_disk_as_they_are_logged_and_strictly_valid(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = Jsonl(path)
    tracker.log({"step": 1, "loss": float("nan"), "more": {"a": [float("inf"), 1.5]}, "name": "ü"})
    assert strict(path.read_text()) == {"step": 1, "loss": None, "more": {"a": [None, 1.5]}, "name": "ü"}
    tracker.log(row(2))
    assert jsonl.read(path)[1] == row(2)
    tracker.finish(SUMMARY)
    again = Jsonl(path)
    again.log(row(3))
    again.finish(SUMMARY)
    assert [r["step"] for r in jsonl.read(path)] == [1, 2, 3]


def test_cut_removes_later_rows_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps(r) for r in (row(1), row(2), EVALUATION, row(3), row(4))]
    path.write_text("\n".join(whole) + '\n{"step": 2, "lo')
    assert len(jsonl.read(path)) == 5
    jsonl.cut(path, 2, evaluated=2)
    assert path.read_text().splitlines() == whole[:3]
    jsonl.cut(path, 0, evaluated=0)
    assert path.read_bytes() == b""
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_an_evaluation_the_saved_step_does_not_know_of_goes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (row(1), row(2), EVALUATION)))
    jsonl.cut(path, 2, evaluated=1)
    assert jsonl.read(path) == [row(1), row(2)]


def test_a_torn_line_goes_even_where_no_row_is_late(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')  # whole, but its end was not written: it may be longer
    jsonl.cut(path, 5, evaluated=5)
    assert path.read_text() == '{"step": 1}\n'


def test_without_a_file_there_are_no_rows_and_nothing_to_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    jsonl.cut(path, 3, evaluated=3)
    assert jsonl.read(path) == []
    assert not path.exists()


def test_rows_that_a_full_disk_refused_are_written_later(tmp_path: Path) -> None:
    """A file size limit stands for the full disk: the row that crosses it is refused half-way."""
    path = tmp_path / "metrics.jsonl"
    code = f"""
import resource, signal
from pathlib import Path
from dml_runner.tracking.jsonl import Jsonl
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
tracker, refused = Jsonl(Path({str(path)!r})), 0
for step in range(1, 21):
    if step == 15:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        tracker.log({{"step": step}})
    except OSError:
        refused += 1
tracker.finish({{}})
print(refused)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == 6
    assert [r["step"] for r in jsonl.read(path)] == list(range(1, 21))


# --- the console


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    console = Console(stream, "tiny", 3, 2)
    console.note("tiny  0.2M parameters")
    for step in (1, 2):
        console.log(row(step))
    console.log(EVALUATION)
    console.log(row(3, loss=float("nan")))
    console.finish(SUMMARY)
    assert stream.getvalue().splitlines() == [
        "tiny  0.2M parameters",
        "step 1/3  loss 2.0000  12.3k tokens/s  data wait 25%",
        "step 2  eval loss 1.5000  accuracy 0.7500",
        "step 3/3  loss nan  0:00 left  12.3k tokens/s  data wait 25%",
        "completed after 3 steps in 1:23  loss 1.2500  eval loss 1.5000",
        "outputs/train/x",
    ]


def test_rare_rows_all_get_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    console = Console(stream, "tiny", 100, 1)
    for step in range(1, 5):
        now += 1.5
        console.log(row(step))
    assert len(stream.getvalue().splitlines()) == 4
    assert stream.getvalue().splitlines()[1].startswith("step 2/100  loss 2.0000  2:27 left")


class Terminal:
    """A pseudo-terminal, and all that was written to it."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w")
        self._chunks: list[bytes] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while chunk := self._chunk():
            self._chunks.append(chunk)

    def _chunk(self) -> bytes:
        try:
            return os.read(self._master, 65536)
        except OSError:
            return b""

    def close(self) -> str:
        self.stream.close()
        self._thread.join(5)
        os.close(self._master)
        return b"".join(self._chunks).decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_a_terminal_gets_one_live_line_and_keeps_its_cursor(terminal: Terminal) -> None:
    console = Console(terminal.stream, "tiny", 1000, 4)
    console.note("tiny  0.2M parameters")
    for step in range(1, 501):
        console.log(row(step))
    console.log(EVALUATION)
    time.sleep(0.6)
    console.finish(SUMMARY)
    shown = terminal.close()
    assert "0/1,000  first step 0 s" in shown
    assert "tiny x4" in shown
    assert "━" in shown
    assert "500/1,000  loss 2.0000  0:00 left  12.3k tokens/s  data wait 25%" in shown
    assert shown.count("12.3k tokens/s") < 10
    assert shown.index("?25l") < shown.index("?25h") < shown.index("12.3k tokens/s")
    assert shown.count("?25l") == 1
    assert "eval loss 1.5000  accuracy 0.7500" in shown
    assert shown.rstrip().endswith("outputs/train/x")


def test_the_live_line_fits_a_narrow_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    console = Console(terminal.stream, "tiny", 1000, 4)
    for step in range(1, 501):
        console.log(row(step))
    time.sleep(0.4)
    console.finish({"status": "failed"})
    shown = terminal.close()
    assert "━" not in shown
    assert "500/1,000  loss 2.0000  0:00 l…" in shown


def test_a_row_costs_the_loop_little(terminal: Terminal) -> None:
    console = Console(terminal.stream, "tiny", 20_000, 1)
    rows = [row(step) for step in range(1, 20_001)]
    console.log(rows[0])
    began = time.thread_time()
    for each in rows[1:]:
        console.log(each)
    per_row = (time.thread_time() - began) / len(rows)
    console.finish(SUMMARY)
    terminal.close()
    assert per_row < 30e-6


def test_importing_the_room_takes_neither_rich_nor_wandb() -> None:
    code = "import sys, dml_runner.tracking; print([m for m in ('rich', 'wandb', 'torch', 'numpy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_time_left_counts_only_this_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    meter = Meter(1000)
    for step in (501, 502, 503):
        meter.take(row(step))
        now += 2.0
    assert "16:32 left" in meter.words()  # 497 steps x 2 s, less the 2 s since the last row
    assert meter.share == 0.503


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5"), (950, "950"), (12_345, "12.3k"), (999_999, "1000k"), (4.56e6, "4.56M"), (2e9, "2G")]
)
def test_quantities(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (42.4, "0:42"), (3723, "1:02:03"), (183_845, "2d 03:04:05")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("loss", "text"), [(None, "-"), (0, "0.0000"), (2.34567, "2.3457"), (1.5e-6, "1.50e-06")])
def test_losses(loss: float | None, text: str) -> None:
    assert loss_text(loss) == text
