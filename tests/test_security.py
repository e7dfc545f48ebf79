"""Nothing in a run folder runs, no secret is written down, nobody outside this machine is listened to, no path leaves its root."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from checkpoint_faults.making import Canary, sign
from helpers import MARK, SMALL, dml, marked_environment, on_ranks, read, rows, small, started, train, wait_for, write_text
from resume_helpers import command

import dml_runner
from dml_runner.errors import ConfigError

# --- code in a run folder ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = train(tmp_path_factory.mktemp("made"))
    (folder / "summary.json").unlink()
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


FILES = (
    "manifest.json",
    "index.json",
    "state.json",
    "rank-00000.safetensors",
    "rank-00001.safetensors",
    "model.pt",
    ".metadata",
    "pytorch_model.bin",
)


@pytest.mark.parametrize("signed", [False, True])
def test_a_pickle_in_a_step_does_not_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], signed: bool) -> None:
    """In the place of each file and beside them, even where the manifest lists it."""
    canary, step = tmp_path / "the canary sang", run / "checkpoints" / "step-00000006"
    shutil.copytree(step, tmp_path / "sound")
    for name in FILES:
        shutil.rmtree(step)
        shutil.copytree(tmp_path / "sound", step)
        (step / name).write_bytes(pickle.dumps(Canary(canary)))
        if signed and name != "manifest.json":
            sign(step)
        code, lines = command(capsys, str(run))
        assert (code, len(lines)) == (2, 1), (name, lines)
        assert lines[0].startswith("checkpoint.resume: step 6 is damaged: ")
        for place in (run, step):
            with pytest.raises(ConfigError, match="step 6 is damaged"):
                dml_runner.load(place)
        assert not canary.exists(), name


@pytest.mark.parametrize("name", ["job.yaml", "generations/0.json", "summary.json", "ranks.json", "lock", "checkpoints/latest"])
def test_a_pickle_among_the_papers_does_not_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    canary = tmp_path / "the canary sang"
    (run / name).unlink(missing_ok=True)
    (run / name).write_bytes(pickle.dumps(Canary(canary)))
    code, lines = command(capsys, str(run))
    assert code in (0, 2)
    assert not any("Traceback" in line or "should not have happened" in line for line in lines), lines
    assert not canary.exists()


def refused_and_nothing_made(run: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    code, lines = command(capsys, str(run))
    assert code == 2, lines
    assert not any("should not have happened" in line for line in lines), lines
    with pytest.raises(ConfigError):
        dml_runner.load(run)
    assert not made.exists()
    return lines


@pytest.mark.parametrize("section", [None, "model", "tracker", "hydra"])
def test_a_class_path_in_a_job_is_an_unknown_key(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str | None
) -> None:
    job = yaml.safe_load((run / "job.yaml").read_text())
    node = job["config"] if section is None else job["config"].setdefault(section, {})
    node |= {"_target_": "os.mkdir", "path": str(tmp_path / "made")}
    (run / "job.yaml").write_text(yaml.safe_dump(job))
    lines = refused_and_nothing_made(run, tmp_path / "made", capsys)
    assert f"{section}: unknown key" in lines or any("_target_: unknown key" in line for line in lines)


@pytest.mark.parametrize("key", ["config", "data", "git"])
@pytest.mark.parametrize("value", ["!!python/object/apply:os.mkdir [{}]", "!!python/object/new:os.mkdir {{args: [{}]}}", "&a [*a, {}]"])
def test_a_tag_or_an_alias_in_a_job_is_damage(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: str) -> None:
    text = (run / "job.yaml").read_text()
    spoiled = re.sub(rf"(?ms)^{key}:.*?(?=^\S|\Z)", f"{key}: {value.format(tmp_path / 'made')}\n", text)
    assert spoiled != text
    (run / "job.yaml").write_text(spoiled)
    (line,) = refused_and_nothing_made(run, tmp_path / "made", capsys)
    assert line.startswith(f"{run / 'job.yaml'}: not a job.yaml; ")


def test_a_job_of_a_billion_words_is_refused_at_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    for text in ("\n".join(lines), "config: " + "[" * 100_000, "x: " + "y" * 2_000_000):
        (run / "job.yaml").write_text(text)
        code, said = command(capsys, str(run))
        assert (code, len(said)) == (2, 1)
        assert "not a job.yaml" in said[0]


# --- secrets -----------------------------------------------------------------------------------------------------------------


def leaks(folder: Path, secret: str) -> list[str]:
    """Files whose name below ``folder`` or content holds the secret."""
    found = []
    for path in folder.rglob("*"):
        inside = secret in str(path.relative_to(folder))
        if inside or (path.is_file() and not path.is_symlink() and secret.encode() in path.read_bytes()):
            found.append(str(path.relative_to(folder)))
    return found


def command_lines() -> Iterator[str]:
    """What ps shows of every process."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue


def in_its(start: int, runs: Path) -> Path | None:
    """The only run below ``runs``, once its start of this number has made 60 steps."""
    (folder,) = runs.iterdir()
    resume = read(folder, f"generations/{start}.json")["resume"]
    begun = int(Path(resume).name[-8:]) if resume else 0
    ready = read(folder, "ranks.json")[0]["generation"] == start and any(row["step"] > begun + 60 for row in rows(folder))
    return folder if ready else None


def test_what_comes_from_the_environment_is_written_nowhere(tmp_path: Path) -> None:
    """Words that name the variable, on one rank and continued on two; then a wrong word, whose refusal is printed."""
    secret, outputs = f"canary{uuid.uuid4().hex}", tmp_path / "outputs"
    (tmp_path / secret).mkdir()
    text = write_text(tmp_path / secret)
    environment, _ = marked_environment()
    environment |= {"DML_CANARY": secret, "WANDB_API_KEY": (secret * 2)[:40], "WANDB_MODE": "offline"}
    words = [*SMALL, f"outputs={outputs}", "train.steps=20000", "checkpoint.every=50"]
    words += [f"data.path={tmp_path}/${{oc.env:DML_CANARY}}/{text.name}", "tracker=wandb", "tracker.mode=offline"]
    printed, shown = "", []
    for start in range(2):
        with started("train", *words, *on_ranks(start + 1), env=environment) as process:
            folder = wait_for(partial(in_its, start, outputs / "train"))
            shown += [line for line in command_lines() if secret in line]
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
            printed += out + err
            assert process.returncode == 143, err
    wrong = dml("train", *words, "train.steps=${oc.env:DML_CANARY}", env=environment)
    assert wrong.returncode == 2
    assert "a value from the environment" in wrong.stderr
    assert secret not in printed + wrong.stdout + wrong.stderr
    assert not shown
    assert "${oc.env:DML_CANARY}" in (folder / "job.yaml").read_text()
    assert read(folder, "generations/1.json")["config"]["data"]["path"] == f"{tmp_path}/${{oc.env:DML_CANARY}}/{text.name}"
    assert leaks(outputs, secret) == []


# --- who is listened to, and where files go ----------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("ss") is None, reason="needs ss (Debian: iproute2)")
def test_a_local_job_listens_on_loopback_alone(tmp_path: Path) -> None:
    environment, mark = marked_environment()
    with started("train", *small(tmp_path, *on_ranks(2), "train.steps=20000"), env=environment) as process:
        wait_for(lambda: len(rows(tmp_path / "run")) > 20)
        own = {int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if f"{MARK}={mark}".encode() in environ(path)}
        heard = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    ours = [line.split()[3] for line in heard if own & {int(pid) for pid in re.findall(r"pid=(\d+)", line)}]
    assert len(own) >= 3
    assert ours, "the ranks' meeting place is one of them"
    assert [address for address in ours if not address.startswith(("127.0.0.1:", "[::1]:"))] == []


def environ(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "a/b/../../../c", "~", "x\ny", ".hidden"])
def test_a_name_cannot_leave_the_outputs(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = tmp_path / "deep" / "outputs"
    quoted = '"' + name + '"'
    words = [*SMALL, f"data.path={write_text(tmp_path)}", f"outputs={outputs}", "train.steps=1", f"name={quoted}"]
    code, lines = command(capsys, *words)
    assert code == 0, lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "text-20000.txt"]
    (made,) = (outputs / "train").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-[A-Za-z0-9][A-Za-z0-9._-]*", made.name)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_run_is_as_open_as_the_umask_says_and_no_more(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        train(tmp_path, "train.steps=2")
    finally:
        os.umask(before)
    for path in (tmp_path / "run", *(tmp_path / "run").rglob("*"), *(tmp_path / "outputs").rglob("*")):
        if not path.is_symlink():
            assert path.stat().st_mode & mask == 0, path
