"""Weights & Biases: every point can be read back, whatever the server does, and no key is left behind."""

from __future__ import annotations

import gzip
import http.server
import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_tracking import EVALUATION, SUMMARY, Recorder, row

from dml_runner import tracking
from dml_runner.errors import ConfigError
from dml_runner.schema import tracker as schema
from dml_runner.tracking import Trackers

OFFLINE = schema.Wandb(name="wandb", project="p", entity=None, mode="offline")
ONLINE = OFFLINE.model_copy(update={"mode": "online"})
THREE_STEPS = [row(1), {**row(2), **EVALUATION}, {**row(3), "eval_loss": 1.25, "eval_samples": 64}]
KEY = "canary" * 7


def records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: a 7-byte header, then LevelDB's log format in blocks of 32 KiB."""
    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def points(folder: Path) -> tuple[list[dict[str, object]], dict[str, object], dict[str, object]]:
    """History, summary and config in the one run kept offline, or else in the one sent."""
    from wandb.proto import wandb_internal_pb2 as pb

    (path,) = list(folder.glob("wandb/offline-run-*/run-*.wandb")) or list(folder.glob("wandb/run-*/run-*.wandb"))
    history: list[dict[str, object]] = []
    summary: dict[str, object] = {}
    config: dict[str, object] = {}
    for data in records(path):
        record = pb.Record.FromString(data)  # type: ignore[attr-defined]
        if record.HasField("history"):
            history.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
        summary.update({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.summary.update})
        config.update({i.key: json.loads(i.value_json) for i in record.run.config.update})
        if record.HasField("run"):
            summary["id"] = record.run.run_id
    return history, summary, config


def run_three_steps(words: schema.Wandb, folder: Path) -> list[str]:
    notes: list[str] = []
    tracker = tracking.build(words, folder, name="tiny", run_id="tiny-1", config={"model": {"key": "${oc.env:X}"}}, say=notes.append)
    assert tracker is not None
    for step in (1, 2):
        tracker.log(row(step))
    tracker.log(EVALUATION)
    tracker.log(row(3))
    tracker.log({"step": 3, "eval_loss": 1.25, "eval_samples": 64})
    tracker.finish(SUMMARY)
    return notes


def bare(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without what the service adds."""
    return [{key: value for key, value in point.items() if not key.startswith("_")} for point in history]


def check_three_steps(folder: Path) -> None:
    ends = time.monotonic() + 5
    while len(points(folder)[0]) < 3 and time.monotonic() < ends:
        time.sleep(0.05)  # the service may write its last block just after the run has finished
    history, summary, config = points(folder)
    assert bare(history) == THREE_STEPS
    assert [point["_step"] for point in history] == [1, 2, 3]
    assert (summary["id"], summary["status"], summary["final_loss"]) == ("tiny-1", "completed", 1.25)
    assert config["model"] == {"key": "${oc.env:X}"}


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.delenv("WANDB_MODE", raising=False)


@pytest.mark.usefixtures("key")
def test_an_offline_run_reads_back_whole_and_holds_no_key(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_three_steps(OFFLINE, tmp_path) == []
    check_three_steps(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


class Server(http.server.BaseHTTPRequestHandler):
    """Enough of the service's interface to begin a run and take its rows; a stand-in, for the service is not to be had in a test."""

    mood = "well"
    rows: list[dict[str, Any]] = []  # noqa: RUF012, every test has a class of its own

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = json.loads(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body or b"{}")
        if self.mood == "silent":
            threading.Event().wait(20)
        if self.mood == "refuses":
            self._answer(401, {"errors": [{"message": "invalid key"}]})
        else:
            history = content.get("files", {}).get("wandb-history.jsonl", {"content": []})
            self.rows.extend(json.loads(line) for line in history["content"])
            self._answer(200, {"data": self._data(content.get("query", ""))})

    do_GET = do_PUT = do_POST

    def _data(self, query: str) -> dict[str, Any]:
        project = {"id": "x", "name": "p", "entity": {"id": "e", "name": "me"}}
        if "ResumeStatus" in query:
            return {"model": {**project, "bucket": None}}
        if "UpsertBucket" in query:
            bucket = {"id": "b", "name": "tiny-1", "displayName": "tiny", "config": "{}", "project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "CreateRunFiles" in query:
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}
        return {}

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, key: None) -> Iterator[type[Server]]:
    import wandb

    handler = type("OneServer", (Server,), {"rows": []})
    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    listener.daemon_threads, listener.block_on_close = True, False
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    wandb.teardown()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.server_port}")
    yield handler
    listener.shutdown()
    listener.server_close()
    wandb.teardown()


def test_an_online_run_sends_every_point(tmp_path: Path, server: type[Server]) -> None:
    assert run_three_steps(ONLINE, tmp_path) == []
    assert bare(server.rows) == THREE_STEPS


@pytest.mark.parametrize("mood", ["refuses", "silent"])
def test_a_server_that_refuses_or_is_silent_costs_no_point(
    tmp_path: Path, server: type[Server], mood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.mood = mood
    monkeypatch.setattr("dml_runner.tracking.wandb.INIT_S", 1.0)
    began = time.monotonic()
    (note,) = run_three_steps(ONLINE, tmp_path)
    assert time.monotonic() - began < 5
    check_three_steps(tmp_path)
    assert note.startswith("wandb: ")
    assert note.endswith(str(next(tmp_path.glob("wandb/offline-run-*"))))


def test_a_server_that_falls_silent_does_not_hold_up_the_end(tmp_path: Path, server: type[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dml_runner.tracking.wandb.UPLOAD_S", 1.0)
    notes: list[str] = []
    tracker = tracking.build(ONLINE, tmp_path, name="tiny", run_id="tiny-1", config={}, say=notes.append)
    assert tracker is not None
    tracker.log(row(1))
    time.sleep(1.5)
    server.mood = "silent"
    tracker.log(row(2))
    began = time.monotonic()
    tracker.finish(SUMMARY)
    assert time.monotonic() - began < 3
    (folder,) = tmp_path.glob("wandb/run-*")
    assert notes == [f"wandb: the server did not take everything within 1 s, send the rest later with: wandb sync {folder}"]
    assert bare(points(tmp_path)[0]) == [row(1), row(2)]


def test_a_package_that_is_missing_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^tracker: wandb is not installed; pip install 'dml_runner\[wandb\]'$"):
        tracking.check(OFFLINE)
    tracking.check(schema.Local(name="local"))


@pytest.mark.usefixtures("key")
def test_a_run_that_cannot_be_written_is_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "a-file"
    folder.write_text("")
    own = Recorder()
    outside = tracking.build(OFFLINE, folder, name="n", run_id="bad/id", config={}, say=own.note)
    assert outside is not None
    trackers = Trackers([own], [outside])
    trackers.log(row(1))
    trackers.finish(SUMMARY)
    assert len(own.notes) == 1
    assert own.notes[0].startswith("wandb: ")
    assert own.summary == SUMMARY
