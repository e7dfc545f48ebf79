"""Steps that are not as they were written: always noticed, said in one line, never executed."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_faults.making import Canary, edit, save, sign, step_folder, tensors
from safetensors.torch import save_file

from dml_runner.checkpoint import strict_json
from dml_runner.checkpoint.newest import newest
from dml_runner.checkpoint.read import open_step
from dml_runner.checkpoint.shard import FileFact
from dml_runner.errors import ConfigError

SHARD = "rank-00000.safetensors"
FILES = ("manifest.json", "index.json", "state.json", SHARD, "rank-00001.safetensors")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    for step in (100, 200, 300):
        save(folder, step, ranks=2)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "checkpoints"
    shutil.copytree(sound, copy, symlinks=True)
    return copy


def refused(path: Path) -> str:
    """The one line that a step is refused with."""
    with pytest.raises(ConfigError) as caught:
        open_step(path)
    assert caught.value.exit_code == 2
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("checkpoint.resume: ")
    return line


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_noticed(folder: Path, name: str) -> None:
    path = step_folder(folder, 300) / name
    whole, draw = path.read_bytes(), random.Random(name)
    for _ in range(80):
        bit = draw.randrange(8 * len(whole))
        torn = bytearray(whole)
        torn[bit // 8] ^= 1 << bit % 8
        path.write_bytes(torn)
        assert "step 300 " in refused(path.parent)
    path.write_bytes(whole)
    assert open_step(path.parent).step == 300


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_noticed(folder: Path, name: str) -> None:
    path = step_folder(folder, 300) / name
    whole = path.read_bytes()
    for length in {0, 1, 8, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:length])
        assert f"step 300 is damaged: {name}: " in refused(path.parent)
    path.write_bytes(whole + b"\n")
    assert f"step 300 is damaged: {name}: " in refused(path.parent)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to("../elsewhere")


def listed(step: Path, name: str, content: bytes = b"x") -> None:
    """List a file of this name in the manifest, as if it belonged there."""
    manifest = json.loads((step / "manifest.json").read_text())
    files = {known: FileFact(fact["size"], fact["sha256"]) for known, fact in manifest["files"].items()}
    if "/" not in name:
        (step / name).write_bytes(content)
    sign(step, files={**files, name: FileFact(1, "0")})


def tensor(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    return lambda step: edit(step, "index.json", lambda index: change(index["tensors"]["model/weight"]))


def set_field(name: str, field: str, value: object) -> Callable[[Path], None]:
    return lambda step: edit(step, name, lambda content: content.update({field: value}))


def rewrite_manifest(step: Path, **changes: object) -> None:
    value = json.loads((step / "manifest.json").read_text())
    (step / "manifest.json").write_text(json.dumps({**value, **changes}, indent=2, sort_keys=True) + "\n")


def other_shard(step: Path, content: dict[str, torch.Tensor]) -> None:
    save_file(content, step / SHARD)
    sign(step)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty folder": (lambda s: [p.unlink() for p in s.iterdir()], "step 300 was never committed: manifest.json is missing"),
    "no folder": (shutil.rmtree, "no such step folder"),
    "no manifest": (lambda s: (s / "manifest.json").unlink(), "step 300 was never committed: manifest.json is missing"),
    "missing shard": (lambda s: (s / SHARD).unlink(), f"is damaged: {SHARD}: missing"),
    "missing state": (lambda s: (s / "state.json").unlink(), "is damaged: state.json: missing"),
    "one bit": (lambda s: flip(s / SHARD), f"is damaged: {SHARD}: SHA-256 differs"),
    "empty shard": (lambda s: (s / SHARD).write_bytes(b""), f"is damaged: {SHARD}: 0 bytes instead of "),
    "manifest is text": (lambda s: (s / "manifest.json").write_text("hello"), "is damaged: manifest.json: not JSON"),
    "manifest is a list": (lambda s: (s / "manifest.json").write_text("[1]"), "is damaged: manifest.json: an object is expected"),
    "manifest is deep": (lambda s: (s / "manifest.json").write_text("[" * 10**5), "is damaged: manifest.json: not JSON"),
    "manifest is binary": (lambda s: (s / "manifest.json").write_bytes(b"\x80\x05\xff"), "is damaged: manifest.json: not JSON"),
    "newer format": (lambda s: rewrite_manifest(s, format=2), "is in a newer checkpoint format; got 2; allowed up to 1; update dml_runner"),
    "format zero": (lambda s: rewrite_manifest(s, format=0), "is damaged: manifest.json: unknown format 0"),
    "format is text": (lambda s: rewrite_manifest(s, format="1"), "is damaged: manifest.json: a whole number is expected, got '1'"),
    "unknown field": (lambda s: rewrite_manifest(s, extra=1), "is damaged: manifest.json: unknown field 'extra'"),
    "manifest edited": (lambda s: rewrite_manifest(s, save=9), "is damaged: manifest.json: SHA-256 differs"),
    "manifest of another step": (lambda s: sign(s, step=200), "is damaged: manifest.json: it is of step 200"),
    "folder of another step": (
        lambda s: [shutil.rmtree(s), shutil.copytree(step_folder(s.parent, 200), s)],
        "is damaged: manifest.json: it is of step 200",
    ),
    "state of another step": (set_field("state.json", "step", 200), "is damaged: state.json: it is of step 200"),
    "state in a newer format": (set_field("state.json", "format", 7), "is in a newer checkpoint format; got 7"),
    "state is no object": (set_field("state.json", "state", [1]), "is damaged: state.json: an object is expected"),
    "index of another step": (set_field("index.json", "step", 1), "is damaged: index.json: it is of step 1"),
    "index with unknown field": (set_field("index.json", "more", 1), "is damaged: index.json: unknown field 'more'"),
    "link in place of a file": (lambda s: link(s / SHARD), f"is damaged: manifest.json: '{SHARD}' leaves the folder"),
    "link in place of the manifest": (lambda s: link(s / "manifest.json"), "is damaged: manifest.json: symbolic link"),
    "folder in place of a file": (lambda s: [(s / SHARD).unlink(), (s / SHARD).mkdir()], f"is damaged: {SHARD}: not a regular file"),
    "pipe in place of a file": (lambda s: [(s / SHARD).unlink(), os.mkfifo(s / SHARD)], f"is damaged: {SHARD}: not a regular file"),
    "path out of the folder": (lambda s: listed(s, "../secret"), "is damaged: manifest.json: '../secret' leaves the folder"),
    "absolute path": (lambda s: listed(s, "/etc/passwd"), "is damaged: manifest.json: '/etc/passwd' leaves the folder"),
    "foreign file": (lambda s: listed(s, "model.pt"), "is damaged: manifest.json: 'model.pt' is not a file of a checkpoint"),
    "unlisted file": (lambda s: (s / "more.txt").write_text("x"), "is damaged: 'more.txt' is not in manifest.json"),
    "not safetensors": (lambda s: [(s / SHARD).write_bytes(b"hello" * 9), sign(s)], f"is damaged: {SHARD}: not a safetensors file ("),
    "huge header": (lambda s: [(s / SHARD).write_bytes(b"\xff" * 64), sign(s)], f"is damaged: {SHARD}: not a safetensors file ("),
    "other tensors": (lambda s: other_shard(s, {"model/x": torch.zeros(2)}), f"'{SHARD}' has no part 'model/counts' for it alone"),
    "unlisted tensor": (
        lambda s: edit(s, "index.json", lambda index: index["tensors"].pop("model/half")),
        f"is damaged: index.json: 'model/half@0,0' of {SHARD} is not in it",
    ),
    "another shape": (tensor(lambda t: t.update(shape=[6, 11])), "'model/weight': parts cover 60 of 66 elements"),
    "shape of a part": (tensor(lambda t: t["parts"][0].update(shape=[6, 9])), "'model/weight': two parts overlap"),
    "a part outside": (tensor(lambda t: t["parts"][0].update(offsets=[1, 0])), "'model/weight': a part lies outside the tensor"),
    "negative offset": (tensor(lambda t: t["parts"][0].update(offsets=[-1, 0])), "'model/weight': a whole number is expected, got '-1'"),
    "dimensions differ": (tensor(lambda t: t["parts"][0].update(offsets=[0])), "'model/weight': a part lies outside the tensor"),
    "a part less": (tensor(lambda t: t["parts"].pop()), "'model/weight': parts cover 30 of 60 elements"),
    "a part twice": (tensor(lambda t: t["parts"].append(t["parts"][0])), "'model/weight': two parts overlap"),
    "unknown dtype": (tensor(lambda t: t.update(dtype="F128")), "'model/weight': unknown dtype 'F128'"),
    "another dtype": (tensor(lambda t: t.update(dtype="I32")), "'model/weight': 'rank-00000.safetensors' holds another shape or dtype"),
    "part in no file": (tensor(lambda t: t["parts"][0].update(file="../x")), "'model/weight': '../x' has no part 'model/weight@0,0'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_in_one_line(folder: Path, kind: str) -> None:
    spoil, message = DAMAGE[kind]
    spoil(step_folder(folder, 300))
    line = refused(step_folder(folder, 300))
    assert message in line
    committed, notices = newest(folder)
    assert committed is not None
    assert committed.step == 200
    assert len(notices) == 1
    assert notices[0].endswith("; using step 200")
    assert "step" in notices[0].removesuffix("; using step 200") or "latest" in notices[0]


def test_the_notice_says_what_was_passed_over(folder: Path) -> None:
    flip(step_folder(folder, 300) / SHARD)
    (step_folder(folder, 200) / SHARD).unlink()
    committed, notices = newest(folder)
    assert committed is not None
    assert torch.equal(committed.read("model/weight"), tensors(100)["model/weight"])
    assert notices == [
        f"step 300 is damaged: {SHARD}: SHA-256 differs; using step 100",
        f"step 200 is damaged: {SHARD}: missing; using step 100",
    ]
    flip(step_folder(folder, 100) / "state.json")
    with pytest.raises(ConfigError) as caught:
        newest(folder)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("target", "notice"),
    [
        ("step-00000400", "latest points to nothing (step-00000400); using step 300"),
        ("../../etc", "latest points outside the run's steps ('../../etc'); using step 300"),
        ("/etc", "latest points outside the run's steps ('/etc'); using step 300"),
        ("latest", "latest points outside the run's steps ('latest'); using step 300"),
        (None, "latest is missing; using step 300"),
    ],
)
def test_latest_that_leads_nowhere(folder: Path, target: str | None, notice: str) -> None:
    (folder / "latest").unlink()
    if target:
        (folder / "latest").symlink_to(target)
    committed, notices = newest(folder)
    assert committed is not None
    assert committed.step == 300
    assert notices == [notice]


def test_latest_is_followed_even_to_an_older_step(folder: Path) -> None:
    (folder / "latest").unlink()
    (folder / "latest").symlink_to("step-00000100")
    committed, notices = newest(folder)
    assert committed is not None
    assert (committed.step, notices) == (100, [])


def test_nothing_saved_yet(tmp_path: Path) -> None:
    assert newest(tmp_path / "none") == (None, [])
    assert newest(tmp_path) == (None, [])
    (tmp_path / "latest").symlink_to("step-00000001")
    assert newest(tmp_path) == (None, ["latest points to nothing (step-00000001); there is no step to use"])


def test_a_step_opens_under_another_name(folder: Path) -> None:
    copied = folder / "my copy"
    shutil.copytree(step_folder(folder, 200), copied)
    assert open_step(copied).step == 200
    assert open_step(folder / "latest").step == 300


def test_a_peer_need_not_hash_again(folder: Path) -> None:
    committed = open_step(step_folder(folder, 300), hashing=False)
    assert committed.verified.bytes == 0
    assert torch.equal(committed.read("model/weight"), tensors(300)["model/weight"])
    (step_folder(folder, 300) / SHARD).write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes instead of"):
        open_step(step_folder(folder, 300), hashing=False)


def test_large_json_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "LIMIT", 2**20)
    (step_folder(folder, 300) / "manifest.json").write_bytes(b" " * (2**20 + 1))
    assert "manifest.json: larger than 1 MiB" in refused(step_folder(folder, 300))


def test_no_pickle_is_ever_opened(sound: Path, folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "the canary sang"
    plain = pickle.dumps(Canary(canary))
    torch.save(Canary(canary), tmp_path / "zip.pt")
    step, zipped = step_folder(folder, 300), (tmp_path / "zip.pt").read_bytes()
    for content in (plain, zipped):
        for name in (*FILES, "model.pt", ".metadata", "rank-00002.safetensors"):
            for signed in (False, True):
                shutil.rmtree(step)
                shutil.copytree(step_folder(sound, 300), step)
                (step / name).write_bytes(content)
                if signed and name != "manifest.json":
                    sign(step)
                refused(step)
                assert not canary.exists()
    (folder / "latest").unlink()
    (folder / "latest").write_bytes(plain)
    committed, notices = newest(folder)
    assert committed is not None
    assert committed.step == 200
    assert notices[0] == "latest is not a link; using step 200"
    assert not canary.exists()
    pickle.loads(plain)
    assert canary.exists()
