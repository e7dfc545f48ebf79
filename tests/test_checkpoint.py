"""Saving and reading steps: any split, any slice, killed anywhere, on a full disk."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_faults.making import pieces, save, step_folder, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from dml_runner.checkpoint import saver as saver_module
from dml_runner.checkpoint.differences import differences
from dml_runner.checkpoint.dtypes import CODES
from dml_runner.checkpoint.newest import newest
from dml_runner.checkpoint.pieces import Piece
from dml_runner.checkpoint.read import open_step
from dml_runner.checkpoint.saver import Saver
from dml_runner.checkpoint.tidy import reap, steps
from dml_runner.errors import ConfigError, RunFailed

HERE = Path(__file__).parent


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_what_was_saved_is_read_back(tmp_path: Path, ranks: int) -> None:
    save(tmp_path, 100, ranks)
    committed, notices = newest(tmp_path)
    assert committed is not None
    assert not notices
    assert committed.step == 100
    assert committed.state == {"step": 100, "name": "job"}
    assert set(committed.tensors) == set(tensors(100))
    for name, tensor in tensors(100).items():
        read = committed.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor), name
    shards = [f"rank-{rank:05d}.safetensors" for rank in range(ranks)]
    assert names(step_folder(tmp_path, 100)) == ["index.json", "manifest.json", *shards, "state.json"]
    assert os.readlink(tmp_path / "latest") == "step-00000100"
    assert committed.verified.bytes > 0
    assert committed.verified.gb_per_s > 0


@pytest.mark.parametrize("dtype", list(CODES), ids=str)
def test_every_number_format_survives(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = torch.arange(12).remainder(2).reshape(3, 4).to(dtype)
    with Saver(tmp_path, 0, 1, 1, keep=1) as saver:
        saver.save(1, pieces({"model/a": whole, "model/scalar": whole[0, 1].clone()}), {})
    committed = open_step(step_folder(tmp_path, 1))
    assert committed.tensors["model/a"] == ((3, 4), dtype)
    assert torch.equal(committed.read("model/a").to(torch.complex128), whole.to(torch.complex128))
    assert torch.equal(committed.read("model/a", (1, 2), (2, 1)).to(torch.complex128), whole[1:3, 2:3].to(torch.complex128))
    assert committed.read("model/scalar").to(torch.complex128) == 1


def test_slices_across_parts(tmp_path: Path) -> None:
    save(tmp_path, 5, ranks=3)
    committed = open_step(step_folder(tmp_path, 5))
    whole = tensors(5)["model/weight"]

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 5), st.integers(0, 9), st.integers(0, 6), st.integers(0, 10))
    def check(top: int, left: int, rows: int, columns: int) -> None:
        rows, columns = min(rows, 6 - top), min(columns, 10 - left)
        assert torch.equal(committed.read("model/weight", (top, left), (rows, columns)), whole[top : top + rows, left : left + columns])

    check()
    assert torch.equal(committed.read("model/weight", (2, 3)), whole[2:, 3:])
    with pytest.raises(ConfigError, match="leaves the tensor"):
        committed.read("model/weight", (2, 3), (5, 1))
    with pytest.raises(ConfigError, match="no tensor 'model/other'"):
        committed.read("model/other")


def test_the_caller_may_go_on_at_once(tmp_path: Path) -> None:
    weight = torch.zeros(1000, 1000)
    with Saver(tmp_path, 0, 1, 1, keep=9) as saver:
        for step in range(1, 5):
            weight.fill_(step)
            saver.save(step, pieces({"model/weight": weight}), {"step": step})
            weight.fill_(-1)
    for step in range(1, 5):
        assert open_step(step_folder(tmp_path, step)).read("model/weight").eq(step).all()


def test_check_costs_nothing(tmp_path: Path) -> None:
    saver = Saver(tmp_path, 0, 1, 1, keep=1)
    started = time.perf_counter()
    for _ in range(100_000):
        saver.check()
    assert (time.perf_counter() - started) / 100_000 < 1e-6
    saver.close()


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    with Saver(tmp_path, 0, 1, 1, keep=2) as saver:
        for step in range(1, 7):
            saver.save(step, pieces(tensors(step)), {}, best=step in (1, 2))
    assert steps(tmp_path) == [2, 5, 6]
    assert os.readlink(tmp_path / "best") == "step-00000002"
    assert names(tmp_path) == ["best", "latest", "step-00000002", "step-00000005", "step-00000006"]


def test_pruning_takes_only_what_was_made_here(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "manifest.json").write_text("mine")
    folder = tmp_path / "checkpoints"
    save(folder, 3, keep=1)
    (folder / "step-00000001").symlink_to(outside)
    (folder / "step-2").mkdir()
    (folder / "step-00000002").mkdir()
    (folder / "notes").mkdir()
    save(folder, 4, keep=1)
    assert names(folder) == ["latest", "notes", "step-00000001", "step-00000002", "step-00000004", "step-2"]
    assert (outside / "manifest.json").exists()


def test_a_step_saved_again_takes_the_old_ones_place(tmp_path: Path) -> None:
    save(tmp_path, 1, ranks=2)
    save(tmp_path, 1, ranks=1, generation=2, seed=5)
    assert torch.equal(open_step(step_folder(tmp_path, 1)).read("model/weight"), tensors(5)["model/weight"])
    assert names(tmp_path) == ["latest", "step-00000001"]


def test_a_run_that_went_back_keeps_what_it_saves(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        save(tmp_path, step)
    save(tmp_path, 150, generation=2, keep=1)
    assert steps(tmp_path) == [150, 200, 300]
    committed, _ = newest(tmp_path)
    assert committed is not None
    assert committed.step == 150


OTHER_KILLS = [pytest.param(ranks, kind, marks=pytest.mark.slow) for ranks, kind in ((1, "new"), (1, "again"), (2, "new"))]


@pytest.mark.parametrize(("ranks", "kind"), [(2, "again"), *OTHER_KILLS])
def test_killed_anywhere(tmp_path: Path, ranks: int, kind: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(HERE / "checkpoint_faults" / "killer.py"), str(tmp_path), str(ranks), kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) > 20
    assert kills[-1]["call"] is None
    for kill in kills:
        assert kill["right"], kill
        assert kill["after"] == [kill["step"], True], kill
        assert kill["last"] == [4, True], kill
        assert kill["left"] == [], kill
    assert {kill["step"] for kill in kills} == ({2, 3} if kind == "new" else {2})


def test_reaping_spares_the_writers_of_this_generation(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for name in (".staging-step-00000002-g3-1", ".staging-step-00000002-g2-1", ".removed-step-00000000", ".mine"):
        (tmp_path / name).mkdir()
    (tmp_path / ".latest-link").symlink_to("step-00000009")
    reap(tmp_path, generation=3)
    assert names(tmp_path) == [".mine", ".staging-step-00000002-g3-1", "latest", "step-00000001"]
    reap(tmp_path)
    assert names(tmp_path) == [".mine", "latest", "step-00000001"]


def test_a_failed_save_is_raised_at_the_next_check(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    saver = Saver(folder, 0, 1, 1, keep=1)
    folder.rmdir()
    folder.write_text("in the way")
    saver.save(7, pieces(tensors(7)), {})
    failure = None
    for _ in range(200):
        try:
            saver.check()
        except RunFailed as error:
            failure = error
            break
        time.sleep(0.01)
    assert failure is not None
    assert failure.exit_code == 5
    assert str(failure).startswith("checkpoint: step 7 was not saved: ")
    saver.wait()
    saver.close()


def test_a_context_does_not_forget_the_last_failure(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"

    def in_context() -> None:
        with Saver(folder, 0, 1, 1, keep=1) as saver:
            folder.rmdir()
            saver.save(7, pieces(tensors(7)), {})

    with pytest.raises(RunFailed, match="was not saved"):
        in_context()


def wrong_pieces() -> Iterator[tuple[str, list[Piece]]]:
    zeros = torch.zeros(2, 2)
    yield "lies outside", [Piece("model/a", (2, 3), (0, 2), zeros)]
    yield "came twice", [Piece("model/a", (2, 2), (0, 0), zeros)] * 2
    yield "cannot be stored", [Piece("model/a", (2, 2), (0, 0), zeros.to(torch.complex128))]
    yield "cover 4 of 6 elements", [Piece("model/a", (2, 3), (0, 1), zeros)]
    yield "two parts overlap", [Piece("model/a", (2, 3), (0, 0), zeros), Piece("model/a", (2, 3), (0, 1), zeros)]


@pytest.mark.parametrize(("message", "wrong"), list(wrong_pieces()), ids=[m for m, _ in wrong_pieces()])
def test_pieces_that_make_no_whole_are_not_committed(tmp_path: Path, message: str, wrong: list[Piece]) -> None:
    with pytest.raises(RunFailed, match=message), Saver(tmp_path, 0, 1, 1, keep=1) as saver:
        saver.save(1, wrong, {})
    assert names(tmp_path) == []


@pytest.mark.parametrize("state", [{"a": float("nan")}, {"a": torch.zeros(1)}, {"a": {1, 2}}])
def test_a_state_that_is_not_json_is_refused_at_once(tmp_path: Path, state: dict[str, object]) -> None:
    saver = Saver(tmp_path, 0, 1, 1, keep=1)
    with pytest.raises(RunFailed, match="checkpoint: the state is not plain JSON"):
        saver.save(1, pieces(tensors(1)), state)
    saver.close()


def test_one_failing_rank_fails_all_and_leaves_the_last_step(tmp_path: Path) -> None:
    save(tmp_path, 1, ranks=2)
    lines: list[str] = []

    def one(rank: int) -> None:
        whole = tensors(2)
        shares = list(pieces(whole, rank, 2))
        try:
            with Saver(tmp_path, rank, 2, 2, keep=1, timeout_s=20) as saver:
                if rank:
                    (tmp_path / ".staging-step-00000002-g2-1" / "rank-00001.safetensors").mkdir(parents=True)
                saver.save(2, shares, {})
        except RunFailed as error:
            lines.append(str(error))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    assert len(lines) == 2
    assert any("rank 1 failed" in line for line in lines)
    assert all(line.endswith("the last committed step is 1") for line in lines)
    assert names(tmp_path) == ["latest", "step-00000001"]


def test_waiting_for_a_dead_rank_ends(tmp_path: Path) -> None:
    saver = Saver(tmp_path, 0, 2, 1, keep=1, timeout_s=0.3)
    saver.save(1, pieces(tensors(1), 0, 2), {})
    with pytest.raises(RunFailed, match="rank 1 did not finish its part within 0 s"):
        saver.wait()
    patient = Saver(tmp_path, 0, 2, 2, keep=1)
    patient.save(1, pieces(tensors(1), 0, 2), {})
    started = time.perf_counter()
    patient.close()
    assert time.perf_counter() - started < 2
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("foreseen", [True, False])
def test_full_disk(small_disk: Path, foreseen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    save(small_disk, 1)
    saver = Saver(small_disk, 0, 1, 2, keep=2)
    if not foreseen:
        monkeypatch.setattr(saver_module, "MARGIN", -(2**30))
    saver.save(2, [Piece("model/big", (2_000_000,), (0,), torch.zeros(2_000_000))], {})
    with pytest.raises(RunFailed) as caught:
        saver.wait()
    line = str(caught.value)
    assert line.startswith(f"checkpoint: No space left on {small_disk}; need ")
    assert line.endswith("; the last committed step is 1")
    assert names(small_disk) == ["latest", "step-00000001"]
    monkeypatch.undo()
    saver.save(3, pieces(tensors(3)), {})
    saver.wait()
    saver.close()
    assert open_step(step_folder(small_disk, 3)).step == 3


def test_file_size_limit(tmp_path: Path) -> None:
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    saver = Saver(tmp_path, 0, 1, 2, keep=2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        saver.save(2, [Piece("model/big", (2_000_000,), (0,), torch.zeros(2_000_000))], {})
        with pytest.raises(RunFailed, match=r"checkpoint: Limit of file size reached on .*; need 9\.0 MB, have "):
            saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    saver.close()
    assert names(tmp_path) == ["latest", "step-00000001"]


def test_differences_are_counted_and_the_first_ten_listed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    committed = open_step(step_folder(tmp_path, 1))
    expected = dict(committed.tensors)
    assert differences(committed, expected) == []
    expected["model/weight"] = ((6, 11), torch.float32)
    expected["model/half"] = ((3, 10), torch.float16)
    del expected["model/mask"]
    expected |= {f"model/new.{number}": ((2,), torch.float32) for number in range(20)}
    lines = [str(problem) for problem in differences(committed, expected)]
    assert len(lines) == 11
    assert lines[0] == (
        "checkpoint.resume: step 1 is of another model: tensors 20 missing, 1 unexpected, 1 of another shape, 1 of another dtype; "
        "the first 10 follow"
    )
    assert lines[1] == "checkpoint.resume: model/weight has another shape; got [6, 10]; allowed [6, 11]"
    assert lines[2] == "checkpoint.resume: model/half has another dtype; got torch.bfloat16; allowed torch.float16"
    assert lines[3] == "checkpoint.resume: model/new.0 is missing; allowed [2] torch.float32"
