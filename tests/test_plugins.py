"""Options from outside: files that are named, packages that are installed; refused in one line, and never run from a file."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers import DML, dml, losses, on_ranks, small
from resume_helpers import command

import dml_runner
from dml_runner import plugins
from dml_runner.config import compose, group_help, load_plugins, show_job, verb_help
from dml_runner.errors import ConfigError, LaunchError

ROOT = Path(__file__).parent.parent
EXAMPLE = Path(__file__).parent / "example_plugin"
MINE = "model=gpt_zloss"
SIZE = ("model.layers=1", "model.hidden=16", "model.heads=2", "model.context=16")
HEAD = "from typing import Literal\nfrom dml_runner.schema.model import Gpt, ModelWords\n"
NAMED = '    """Mine."""\n    name: Literal["{}"]\n'
BUILD = "def build(words, data): ...\n"


@pytest.fixture(autouse=True)
def _forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test leaves an option behind."""
    monkeypatch.chdir(tmp_path)
    yield
    plugins._loaded.clear()
    plugins.extend_run()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text((EXAMPLE / "gpt_zloss.py").read_text())
    return path


def words(folder: Path, *more: str, run: str = "run") -> list[str]:
    """A small job of the example's model."""
    return [word for word in small(folder, *more, run=run) if not word.startswith("model=")] + [MINE, *SIZE]


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


# --- files ---------------------------------------------------------------------------------------------------------------


def test_a_file_trains_on_one_and_two_ranks_with_one_curve(tmp_path: Path, mine: Path) -> None:
    for ranks in (1, 2):
        job = words(tmp_path, "plugins=./mine.py", *on_ranks(ranks), "train.global_batch=8", "model.z=0.01", run=f"{ranks}")
        assert dml_runner.train(job).status == "completed"
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "2"), abs=1e-5)
    written = yaml.safe_load((tmp_path / "1" / "job.yaml").read_text())
    assert written["config"]["plugins"] is None
    (source,) = written["plugins"]
    assert (source["place"], source["options"]) == (str(mine), [MINE])
    assert source["sha256"] == hashlib.sha256(mine.read_bytes()).hexdigest()
    plain = [word for word in small(tmp_path, "train.global_batch=8", "strategy=single", run="plain") if word != "model=gpt_tiny"]
    dml_runner.train([*plain, "model=gpt", *SIZE])
    assert losses(tmp_path / "plain") != pytest.approx(losses(tmp_path / "1"), abs=1e-3), "its loss is its own"


def test_its_keys_are_like_ours(mine: Path) -> None:
    tree = yaml.safe_load(show_job(["plugins=mine.py", MINE]))
    assert tree["plugins"] == ["mine.py"]
    assert tree["model"] == {**yaml.safe_load(show_job(["model=gpt"]))["model"], "name": "gpt_zloss", "z": 0.0001}
    for wrong, line in (("model.zz=1", "unknown key; did you mean model.z?"), ("model.z=-1", "out of range; got -1; allowed >= 0")):
        with pytest.raises(ConfigError, match=re.escape(line)):
            compose([MINE, wrong])
    assert "  gpt_zloss       A GPT whose logits stay small (z-loss" in group_help("model")
    assert re.search(r"  model\.z +default 0\.0001 +a number >= 0\n +Weight of the squared", verb_help("train"))


def test_a_job_file_chooses_what_a_typed_file_offers(mine: Path) -> None:
    write(Path("job.yaml"), "defaults: [config, override model: gpt_zloss, _self_]\nmodel: {z: 0.5}\n")
    assert compose(["job.yaml", "plugins=mine.py"]).tree["model"]["z"] == 0.5  # type: ignore[index]


def test_a_folder_conf_beside_the_file_is_searched(tmp_path: Path, mine: Path) -> None:
    folder = tmp_path / "elsewhere"
    write(folder / "mine.py", mine.read_text())
    write(folder / "conf/model/zloss_large.yaml", "# large\ndefaults: [gpt_zloss, _self_]\nlayers: 9\n")
    run = compose([f"plugins={folder / 'mine.py'}", "model=zloss_large"]).run
    assert (run.model.name, run.model.layers, run.model.z) == ("gpt_zloss", 9, 0.0001)  # type: ignore[union-attr]


def test_an_edited_file_is_loaded_again(mine: Path) -> None:
    assert compose(["plugins=mine.py", MINE]).run.model.z == 1e-4  # type: ignore[union-attr]
    mine.write_text(mine.read_text().replace("z: NotNegative = 1e-4", "zed: NotNegative = 0.25").replace("words.z", "words.zed"))
    assert compose(["plugins=mine.py", MINE]).run.model.zed == 0.25  # type: ignore[union-attr]


def test_ranks_run_the_text_that_was_read(tmp_path: Path, mine: Path) -> None:
    """Even where the file is gone by then."""
    mine.write_text(
        mine.read_text().replace("    class Model", "    __import__('pathlib').Path(__file__).unlink(missing_ok=True)\n    class Model")
    )
    assert dml_runner.train(words(tmp_path, "plugins=mine.py", *on_ranks(2))).status == "completed"
    assert not mine.exists()


def test_the_blocks_of_the_docs_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", (ROOT / "docs" / "plugins.md").read_text(), re.DOTALL)
    for name, text in blocks:
        write(Path(name), text)
    code, example = (re.sub(r'\s*\n\s*|^""".*?"""', "\n", text) for text in (blocks[0][1], (EXAMPLE / "gpt_zloss.py").read_text()))
    assert code.strip() == example.strip(), "the example package"
    toml = re.search(r"```toml\n(.*?)```", (ROOT / "docs" / "plugins.md").read_text(), re.DOTALL)
    assert toml
    assert all(part in (EXAMPLE / "pyproject.toml").read_text() for part in toml[1].split("\n\n"))
    job = ["hardware=cpu", "train.steps=2", "train.log_every=1", f"outputs={tmp_path}"]
    images = ["plugins=[perceptron.py,counting.py]", "model=perceptron", "data=synthetic", "train.metrics=[recall]"]
    assert 0 <= dml_runner.train([*job, *images, "run=images"]).eval["eval_recall"] <= 1
    text = [
        "model=gpt_tiny",
        "data=counting",
        "data.last=3000",
        "data.seq_len=16",
        "train.metrics=[recall,accuracy]",
        "train.sample_tokens=4",
    ]
    summary = dml_runner.train([*job, *text, "strategy=first_few", "hardware.devices_per_node=3", "run=text"])
    assert (summary.layout["strategy"], summary.layout["mesh"]["data"], len(summary.eval)) == ("first_few", 2, 4)
    written = yaml.safe_load(Path("text/job.yaml").read_text())["plugins"]
    assert [each["options"] for each in written] == [["data=counting", "strategy=first_few", "train.metrics=recall"]]


# --- what is refused -----------------------------------------------------------------------------------------------------

FAULTY = [
    ("x = (\n", "{}:1: cannot be loaded; got SyntaxError: '(' was never closed"),
    ("import torch_of_mine\n", "{}:1: cannot be loaded; got ModuleNotFoundError: No module named 'torch_of_mine'"),
    ("def f():\n    return {}['a']\n\nf()\n", "{}:2: cannot be loaded; got KeyError: 'a'"),
    ("raise ValueError('one\\ntwo')\n", "{}:1: cannot be loaded; got ValueError: one"),
    ("raise SystemExit(3)\n", "{}:1: cannot be loaded; got SystemExit: 3"),
    ("\0", "{}:1: cannot be loaded; got "),
    ("x = 1\n", "{}: has no option; allowed a class of keys below ModelWords"),
    (HEAD + "class Mine(ModelWords):\n    objective = property(len)\n" + BUILD, '{}: Mine: has no name; give it: name: Literal["mine"]'),
    (HEAD + "class Mine(Gpt):\n    width: int = 3\n" + BUILD, "{}: the name of an option is taken; got model=gpt; dml_runner has it"),
    (HEAD + "class Mine(Gpt):\n" + NAMED.format("gpt_tiny") + BUILD, "{}: the name of an option is taken; got model=gpt_tiny"),
    (HEAD + "class Mine(Gpt):\n" + NAMED.format("No-good") + BUILD, "{}: no name for an option; got 'No-good'; allowed a-z, 0-9, _"),
    (HEAD + "class Mine(Gpt):\n" + NAMED.format("mine"), "{}: has Mine, and no function build"),
    (HEAD + "class Mine(ModelWords):\n" + NAMED.format("mine") + BUILD, "{}: Mine: does not say what the model learns"),
    (
        "from __future__ import annotations\n" + HEAD + "class Mine(Gpt):\n" + NAMED.format("mine") + "    a: Nope = 1\n" + BUILD,
        "{}: Mine: is no",
    ),
    (
        HEAD + "class Mine(Gpt):\n" + NAMED.format("mine") + "class Other(Gpt):\n" + NAMED.format("mine") + BUILD,
        "{}: two classes have one name; got model=mine",
    ),
    ("METRICS = ['mine']\n", "{}: METRICS is no mapping of names to functions"),
    ("METRICS = {'f1': print}\n", "{}: the name of an option is taken; got train.metrics=f1"),
]


@pytest.mark.parametrize(("text", "line"), FAULTY, ids=[line for _, line in FAULTY])
def test_a_faulty_file_is_one_line(tmp_path: Path, text: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "faulty.py", text)
    before = compose([]).run
    code, lines = command(capsys, "plugins=faulty.py")
    assert (code, len(lines)) == (2, 1), lines
    assert lines[0].startswith(line.format(path))
    assert compose([]).run == before
    assert "faulty" not in str(plugins._loaded)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("nowhere.py", "plugins: cannot be read: No such file or directory; got nowhere.py"),
        ("folder", "plugins: is no Python file; got folder; allowed a .py file"),
        ("note.txt", "plugins: is no Python file; got note.txt"),
        ("a.py,b.py", "plugins: expected paths, as they are; got a.py,b.py; allowed FILE.py, [a.py,b.py]"),
        ("3", "plugins: expected paths, as they are; got 3"),
        ("'${oc.env:HOME}/a.py'", "plugins: expected paths, as they are; got '${oc.env:HOME}/a.py'"),
    ],
)
def test_a_word_that_leads_to_no_file_is_one_line(tmp_path: Path, value: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    code, lines = command(capsys, f"plugins={value}")
    assert (code, len(lines)) == (2, 1), lines
    assert lines[0].startswith(line)


def test_two_files_cannot_have_one_name(mine: Path) -> None:
    write(Path("other.py"), mine.read_text())
    with pytest.raises(ConfigError, match=rf"other\.py: the name of an option is taken; got {MINE}; {mine} has it; choose another"):
        load_plugins(["plugins=[mine.py,other.py]"])
    with pytest.raises(ConfigError) as caught:
        load_plugins(["plugins=[nowhere.py,other.py,elsewhere.py]"])
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("place", ["job", "option", "run"])
def test_no_file_has_code_run(tmp_path: Path, mine: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A job file, an option of the user's conf/, a job.yaml: in ``config``, or beside it under the name of a known option."""
    evil = write(tmp_path / "evil.py", f"open({str(tmp_path / 'canary')!r}, 'w')\n" + mine.read_text())
    asked = {"job": ["job.yaml"], "option": ["+mine=evil"], "run": ["run"]}[place]
    write(tmp_path / "job.yaml", f"defaults: [config, _self_]\nplugins: {evil}\n")
    write(tmp_path / "conf/mine/evil.yaml", f"# @package _global_\nplugins: [{evil}]\n")
    if place == "run":
        dml_runner.train(words(tmp_path, "plugins=mine.py", "strategy=single", "train.steps=1"))
        job = yaml.safe_load((tmp_path / "run/job.yaml").read_text())
        job["config"]["plugins"], job["plugins"][0]["place"] = evil, evil
        (tmp_path / "run/job.yaml").write_text(yaml.safe_dump(job))
    for _ in range(2):
        code, lines = command(capsys, *asked)
        assert (code, len(lines)) == (2, 1), lines
        assert "plugins" in lines[0]
        plugins._loaded.clear()
        plugins.extend_run()
    assert not (tmp_path / "canary").exists()


# --- runs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_says_which_file_it_needs_and_that_it_changed(tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dml_runner.train(words(tmp_path, "plugins=mine.py", "strategy=single"))
    (tmp_path / "run/summary.json").unlink()
    plugins._loaded.clear()
    plugins.extend_run()
    needed = f"plugins: {MINE} comes from {mine}, which is not loaded; add plugins={mine}"
    assert command(capsys, "run") == (2, [needed])
    with pytest.raises(ConfigError, match=re.escape(needed)):
        dml_runner.load("run")
    assert dml("eval", "run=run").stderr.strip() == needed
    assert "accuracy" in dml("eval", "run=run", "plugins=mine.py").stdout
    assert type(dml_runner.load("run", plugins=["mine.py"])).__name__ == "Model"
    mine.write_text(mine.read_text() + "\n")
    code, lines = command(capsys, "run", "plugins=mine.py", "train.steps=8")
    assert code == 0, lines
    assert any(line.startswith(f"{MINE} is not what it was when the run began: {mine} (was SHA-256 ") for line in lines), lines


@pytest.mark.slow
def test_torchruns_ranks_load_it_themselves(tmp_path: Path, mine: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *DML[1:])
    done = dml("train", *words(tmp_path, "plugins=mine.py", "strategy=all_reduce", "train.global_batch=8"), command=torchrun)
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "run")) == 6
    source = plugins.Source(str(mine), "0" * 64, (MINE,))
    with pytest.raises(LaunchError, match=rf"{MINE} is not what rank 0 has of {mine}; got none; allowed SHA-256 000000000000"):
        plugins.agree([source])
    load_plugins(["plugins=mine.py"])
    with pytest.raises(LaunchError, match=r"got SHA-256 [0-9a-f]{12}; allowed SHA-256 000000000000; start all ranks with"):
        plugins.agree([source])
    plugins.agree(plugins.used(compose([MINE]).run))


# --- packages ------------------------------------------------------------------------------------------------------------


def installed(folder: Path, source: Path) -> dict[str, str]:
    """The environment of a process in which the package at ``source`` is installed."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--quiet",
        "--disable-pip-version-check",
    ]
    subprocess.run([*pip, "--target", str(folder), str(source)], check=True, capture_output=True)
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_the_example_package_is_installed_and_trains(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    for name in ("pyproject.toml", "gpt_zloss.py"):
        write(tmp_path / "source" / name, (EXAMPLE / name).read_text())
    environment = installed(tmp_path / "site", tmp_path / "source")
    for ranks in (1, 2):
        done = dml("train", *words(tmp_path, *on_ranks(ranks), "train.global_batch=8", run=f"{ranks}"), env=environment)
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "2"), abs=1e-5)
    (source,) = yaml.safe_load((tmp_path / "2" / "job.yaml").read_text())["plugins"]
    assert (source["place"], source["options"]) == ("package gpt-zloss 0.1", [MINE])
    assert "1 is completed" in dml("train", "1", env=environment).stderr
    line = f"plugins: {MINE} comes from package gpt-zloss 0.1, which is not installed; install gpt-zloss 0.1"
    assert dml("train", "1").stderr.strip() == line


def test_a_package_is_imported_when_it_is_asked_for(tmp_path: Path) -> None:
    """By one of its names, or by help, which lists what is wrong with one below what there is."""
    about = tmp_path / "site" / "broken-1.dist-info"
    write(about / "METADATA", "Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    write(about / "entry_points.txt", "[dml_runner.plugins]\nbroken = broken\n")
    write(tmp_path / "site" / "broken.py", "open('canary', 'w')\nraise ValueError('broken indeed')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for quiet in (["--help"], ["train", "--help"], ["train", "--cfg", "job", "model=gpt_tiny"], ["train", "model=gpt9"]):
        dml(*quiet, env=environment)
        assert not Path("canary").exists()
    line = f"{tmp_path / 'site' / 'broken.py'}:2: cannot be loaded; got ValueError: broken indeed"
    assert dml("train", "model=broken", env=environment).stderr.splitlines() == [line]
    shown = dml("train", "model=help", env=environment)
    assert (shown.returncode, shown.stdout.splitlines()[-1]) == (0, line)
    write(tmp_path / "site" / "broken.py", "METRICS = {'mended': print}\n")
    line = "package broken 1: its entry point broken leads to broken, which has no option of that name; allowed mended"
    assert dml("train", "model=broken", env=environment).stderr.splitlines() == [line]
