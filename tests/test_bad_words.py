"""Bad words and bad files: each is refused with one line that says what, where and what would do."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dml_runner.config import compose, recompose, show_job, trials
from dml_runner.errors import ConfigError

JOB = "defaults:\n  - config\n  - override strategy: all_reduce\n  - _self_\n"


def refused(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(words)
    assert caught.value.exit_code == 2
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.problems), "every problem is one line"
    return lines


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


WORDS = [
    (["optimizer.lrr=0.2"], "optimizer.lrr: unknown key; did you mean optimizer.lr?"),
    (["train.stepz=5"], "train.stepz: unknown key; did you mean train.steps?"),
    (["steps=5"], "steps: unknown key; did you mean train.steps?"),
    (["stratgy=single"], "stratgy: unknown key; did you mean strategy?"),
    (["lr_schedule.lr=1"], "lr_schedule.lr: unknown key; did you mean optimizer.lr?"),
    (["train.stop.metrik=eval_loss"], "train.stop.metrik: unknown key; did you mean train.stop.metric?"),
    (["strategy.bucket_mb=3"], "strategy.bucket_mb: unknown key; a key of strategy=all_reduce"),
    (["xyzzy.plugh=1"], "xyzzy: unknown key"),
    (["+optimizer.warp=true"], "optimizer.warp: unknown key"),
    (["debug=fast"], "debug: unknown key"),
    (["optimizer.lr=abc"], "optimizer.lr: expected a number; got 'abc'"),
    (["optimizer.lr='1e-4'"], "optimizer.lr: expected a number; got '1e-4'; write it plainly, without quotes or leading zeros"),
    (["train.steps=1e3"], "train.steps: expected a whole number; got 1000.0; write 1000"),
    (["train.steps=010"], "train.steps: expected a whole number; got '010'; write it plainly, without quotes or leading zeros"),
    (["train.steps=null"], "train.steps: expected a whole number; got null"),
    (["train.steps=true"], "train.steps: expected a whole number; got true"),
    (["train.compile=yes"], "train.compile: expected true or false; got 'yes'; write true"),
    (["train.compile=1"], "train.compile: expected true or false; got 1"),
    (["train.steps=-1"], "train.steps: out of range; got -1; allowed >= 1"),
    (["train.global_batch=0"], "train.global_batch: out of range; got 0; allowed >= 1 or null"),
    (["optimizer.lr=0"], "optimizer.lr: out of range; got 0; allowed > 0"),
    (["model.dropout=1.5"], "model.dropout: out of range; got 1.5; allowed >= 0 and < 1"),
    (["optimizer.lr=nan"], "optimizer.lr: not a finite number; got nan; allowed > 0"),
    (["optimizer.lr=inf"], "optimizer.lr: not a finite number; got inf; allowed > 0"),
    (["train.steps=[1,2]"], "train.steps: expected a whole number; got [1, 2]"),
    (["train=5"], "train: expected a mapping of keys; got 5"),
    (["name="], "name: is empty; got ''"),
    (["name=7"], "name: expected text; got 7"),
    (["train.precision=fp8"], "train.precision: no such choice; got 'fp8'; allowed auto, fp32, tf32, fp16, bf16"),
    (["strategy=allreduce"], "strategy: no such option; got 'allreduce'; allowed "),
    (["strategy=null"], "strategy: no such option; got null; allowed "),
    (["strategy=[single,all_reduce]"], "strategy: no such option; got ['single', 'all_reduce']; allowed "),
    (["strategy.name=all_reduce"], "strategy.name: an option is chosen by its group; got 'all_reduce'; write strategy=all_reduce"),
    (["~strategy"], "strategy: missing; add strategy=OPTION"),
    (["~train.steps"], "train.steps: missing; add train.steps=...  Number of the last update"),
    (["~train.stepz"], "train.stepz: no such key to remove; did you mean train.steps?"),
    (["data=text"], "data.path: missing; add data.path=...  A text file, a glob, or a list of them"),
    (["data=text", "data.path=3"], "data.path: expected text or a list of text; got 3"),
    (["data=text", "data.path=[a,3]"], "data.path: expected text or a list of text; got ['a', 3]"),
    (["strategy=single,all_reduce"], "strategy: several values; got single,all_reduce; add -m to train each, or write [a,b] for a list"),
    (["train.steps=range(1,4)"], "train.steps: several values; got range(1,4); add -m"),
    (["optimizer.lr=[1"], "optimizer.lr: cannot be read; got 'optimizer.lr=[1'"),
    (["a b=1"], "a b: cannot be read; got 'a b=1'"),
    (["=1"], "=1: not understood; allowed FILE.yaml, group=option, key=value, +key=value, ~key"),
    (["train"], "train: not understood; allowed FILE.yaml"),
    (["--steps=5"], "--steps: cannot be read; got '--steps=5'"),
    (["model@train=gpt"], "model@train: @ has no place here"),
    (["hydra.run.dir=/tmp/x"], "hydra.run.dir: configures Hydra itself; got 'hydra.run.dir=/tmp/x'"),
    (["+hydra.callbacks.x._target_=os.mkdir"], "hydra.callbacks.x._target_: configures Hydra itself"),
    (["hydra/launcher=joblib"], "hydra/launcher: configures Hydra itself"),
    (["~hydra"], "hydra: configures Hydra itself"),
    (["name=${nme}"], "name: interpolates a key that does not exist; got ${nme}"),
    (["name=${outputs}", "outputs=${name}"], "name: interpolations lead back to themselves; got ${outputs}"),
    (["name=${oc.env:DML_NOT_SET}"], "name: environment variable DML_NOT_SET is not set; got ${oc.env:DML_NOT_SET}"),
    (["name=${nope:1}"], "name: unknown kind of interpolation; got ${nope:1}; allowed ${KEY}, ${oc.env:VARIABLE}"),
    (["model.heads=3"], "model.heads: does not divide model.hidden: 128 / 3 = 42.67; got 3; allowed a divisor of model.hidden"),
    (["no_such_file.yaml"], "no_such_file.yaml: no such file"),
]


@pytest.mark.parametrize(("words", "line"), WORDS, ids=[" ".join(words) for words, _ in WORDS])
def test_words(words: list[str], line: str) -> None:
    lines = refused(*words)
    assert any(each.startswith(line) for each in lines), lines


FILES = [
    ("", "job.yaml: config must be a mapping; got an empty file"),
    ("# only a comment\n", "job.yaml: config must be a mapping; got an empty file"),
    ("just text\n", "job.yaml: config must be a mapping; got text 'just text'"),
    ("- a\n- b\n", "job.yaml: config must be a mapping; got a list"),
    ("train: {steps: 5}\n", "job.yaml: a job file needs config in its defaults; begin it with: defaults: [config,"),
    ("defaults: config\n", "job.yaml: defaults must be a list; begin it with: defaults: [config,"),
    ("defaults: [config, {strategy: all_reduce}]\n", "job.yaml: config has this group already; got strategy: all_reduce; write - override"),
    ("defaults: [config, override strategy: allreduce]\n", "strategy: no such option; got 'allreduce'; allowed "),
    ("defaults: [config, no_such]\n", "job.yaml: Could not load 'no_such'"),
    (JOB + "train:\n\tsteps: 5\n", "job.yaml:6:1: a tab where YAML wants spaces"),
    (JOB + "train: {steps: [1, 2}\n", "job.yaml:5:21: a list or mapping is not closed"),
    (JOB + "train: {steps: 5\n", "job.yaml:5:17: a list or mapping is not closed"),
    (JOB + "train: {steps: 5, steps: 6}\n", "job.yaml:5:19: duplicate key; got train.steps; it stands in line 5 already"),
    (JOB + "a: 1\n---\nb: 2\n", "job.yaml:6:1: a second document begins"),
    (JOB + "name: !!python/object/apply:os.mkdir [canary]\n", "job.yaml:5:7: tags are not allowed; got !!python/object/apply:os.mkdir"),
    (JOB + "name: !mine x\n", "job.yaml:5:7: tags are not allowed; got !mine"),
    (JOB + "optimizer: {lrr: 0.2}\n", "optimizer.lrr: unknown key; did you mean optimizer.lr?"),
    (JOB + "strategy: {stage: 2}\n", "strategy.stage: unknown key"),
    (JOB + "strategy: {name: single}\n", "strategy.name: an option is chosen by its group; got 'single'; write - override"),
    (JOB + "optimizer: {lr: abc}\n", "optimizer.lr: expected a number; got 'abc'"),
    (JOB + 'optimizer: {lr: "1e-4"}\n', "optimizer.lr: expected a number; got '1e-4'; write it plainly"),
    (JOB + "train: {compile: yes}\n", 'train.compile: YAML reads yes as true; got yes; write true, or "yes" if text is meant (see'),
    (JOB + "name: no\n", "name: YAML reads no as false; got no; write false"),
    (JOB + "train:\n  steps: 010\n", "train.steps: YAML reads 010 as 8; got 010; write 10 or 8"),
    (JOB + "train: {steps: 12:30:45}\n", "train.steps: YAML reads 12:30:45 as 45045; got 12:30:45; write 45045"),
    (JOB + "train: {steps: 1_000}\n", "train.steps: YAML reads 1_000 as 1000; got 1_000; write 1000"),
    (JOB + "optimizer: {lr: .nan}\n", "optimizer.lr: not a finite number; got .nan; see job.yaml:5:17"),
    (JOB + "optimizer: {lr: -.inf}\n", "optimizer.lr: not a finite number; got -.inf"),
    (JOB + "1: x\n", "job.yaml:5:1: a key must be text; got '1'; quote it"),
    (JOB + "a: &a [*a]\n", "job.yaml:5:4: an alias stands inside what it names"),
    (JOB + "a: " + "[" * 100 + "]" * 100 + "\n", "job.yaml:5:"),
    (JOB + "name: ${\n", "job.yaml: cannot be interpolated"),
    (JOB + "name: ${oc.env:DML_NOT_SET}\n", "name: environment variable DML_NOT_SET is not set"),
]


@pytest.mark.parametrize(("text", "line"), FILES)
def test_files(tmp_path: Path, text: str, line: str) -> None:
    Path("job.yaml").write_text(text)
    lines = refused("job.yaml")
    assert any(each.startswith(line) for each in lines), lines
    assert not Path("canary").exists()


def test_all_at_once() -> None:
    Path("job.yaml").write_text(JOB + "optimizer: {lrr: 1}\ntrain: {log_every: 0}\n")
    lines = refused("job.yaml", "train.steps=-1", "model=gpt9", "model.layerz=2", "train.stepz=3", "name=${nme}")
    assert {line.split(":")[0] for line in lines} == {"model", "name", "optimizer.lrr", "train.log_every", "train.steps", "train.stepz"}


def test_alias_bomb_is_refused_at_once() -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    Path("job.yaml").write_text(JOB + bomb)
    start = time.perf_counter()
    assert refused("job.yaml") == ["job.yaml: too many values; got more than 20,000, aliases written out; allowed 20,000"]
    assert time.perf_counter() - start < 1


def test_large_binary_folder_and_second_file() -> None:
    Path("large.yaml").write_text(JOB + "#" * 1_000_000)
    assert refused("large.yaml") == ["large.yaml: too large; got more than 1,000,000 bytes; allowed 1,000,000 bytes"]
    Path("binary.yml").write_bytes(b"a: 1\nb: \xff\n")
    assert refused("binary.yml") == ["binary.yml:2: not UTF-8; got byte 0xff"]
    Path("nul.yaml").write_bytes(b"a: \x00\n")
    assert "control characters" in refused("nul.yaml")[0]
    Path("folder.yaml").mkdir()
    assert refused("folder.yaml") == ["folder.yaml: is a folder; allowed a YAML file"]
    Path("job.yaml").write_text(JOB)
    assert refused("job.yaml", "job.yaml") == ["job.yaml: a second job file; allowed one; job.yaml comes first"]
    Path("notes.txt").write_text("x")
    assert refused("notes.txt")[0].endswith("a job file ends in .yaml")


def test_a_value_from_the_environment_is_never_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DML_SECRET", "hunter2")
    monkeypatch.setenv("DML_NUMBER", "1237")
    words = [
        ["optimizer.lr=${oc.env:DML_SECRET}"],
        ["train.precision=${oc.env:DML_SECRET}"],
        ["train=${oc.env:DML_SECRET}"],
        ["train.steps=${seed}", "seed=${oc.env:DML_SECRET}"],
        ["data=text", "data.path=[3,'${oc.env:DML_SECRET}']"],
        ["name='${${oc.env:DML_SECRET}}'"],
        ["name='${oc.env:${oc.env:DML_SECRET}}'"],
        ["name='${oc.decode:[${oc.env:DML_SECRET}}'"],
        ["model.heads='${oc.decode:${oc.env:DML_NUMBER}}'"],
        ["lr_schedule.warmup_steps='${oc.decode:${oc.env:DML_NUMBER}}'"],
        ["train.log_every='${oc.decode:-${oc.env:DML_NUMBER}}'"],
    ]
    for each in words:
        text = "\n".join(refused(*each))
        assert "hunter2" not in text, text
        assert "1237" not in text, text
    assert refused("optimizer.lr=${oc.env:DML_SECRET}")[0].startswith("optimizer.lr: expected a number; got a value from the environment")
    output = capsys.readouterr()
    assert "hunter2" not in output.out + output.err


HYDRA = [
    "hydra: {callbacks: {x: {_target_: os.mkdir, path: canary}}}\n",
    "hydra.callbacks: {x: {_target_: os.mkdir, path: canary}}\n",
]


@pytest.mark.parametrize("node", HYDRA)
def test_a_hydra_node_is_refused_and_does_not_run(node: str) -> None:
    Path("job.yaml").write_text(JOB + node)
    assert refused("job.yaml")[0].startswith("job.yaml: configures Hydra itself; got hydra")
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    "entry", ["override hydra/launcher: basic", "/hydra/output: default", "hydra/default", "model@hydra.callbacks: gpt"]
)
def test_hydra_in_defaults_is_refused(entry: str) -> None:
    Path("job.yaml").write_text(f"defaults:\n  - config\n  - {entry}\n  - _self_\n")
    assert refused("job.yaml")[0].startswith("job.yaml: configures Hydra itself; got defaults:")


@pytest.mark.parametrize("header", ["# @package _global_\nhydra: {x: 1}\n", "# @package hydra.callbacks\nx: {_target_: os.mkdir}\n"])
def test_hydra_in_a_users_option_is_refused(header: str) -> None:
    Path("conf/model").mkdir(parents=True)
    Path("conf/model/mine.yaml").write_text(header)
    assert "mine.yaml: configures Hydra itself" in refused("model=mine")[0]


def test_a_users_option_is_checked_like_a_job() -> None:
    Path("conf/model").mkdir(parents=True)
    Path("conf/model/mine.yaml").write_text("defaults: [gpt, _self_]\nlayers: 010\n")
    assert refused("model=mine")[0].startswith("layers: YAML reads 010 as 8")


def test_a_folder_beside_the_job_is_no_source_of_options() -> None:
    Path("config.yaml").write_text("hydra: {x: 1}\n")
    Path("strategy").mkdir()
    Path("strategy/single.yaml").write_text("name: canary\n")
    Path("job.yaml").write_text("defaults: [config, _self_]\n")
    assert compose(["job.yaml", "strategy=single"]).run.strategy.name == "single"


def test_show_job_refuses_what_does_not_exist() -> None:
    for words, line in ((["train.stepz=3"], "train.stepz: unknown key"), (["model=gpt9"], "model: no such option")):
        with pytest.raises(ConfigError, match=line):
            show_job(words)


def test_sweep_words_that_have_no_list() -> None:
    for words, line in (
        (["optimizer.lr=interval(0,1)"], "optimizer.lr: interval has no list of values"),
        (["train.steps=range(1,1000000)", "seed=range(1,1000000)"], "-m: too many trials"),
        (["strategy=glob(xyz*)"], "strategy: no value to try"),
        (["optimizer.lr=1,[2"], "optimizer.lr: cannot be read"),
    ):
        with pytest.raises(ConfigError) as caught:
            trials(words)
        assert str(caught.value).startswith(line)


def test_recompose_takes_no_job_file() -> None:
    Path("job.yaml").write_text(JOB)
    with pytest.raises(ConfigError, match="a job file besides a run folder"):
        recompose(compose([]).tree, ["job.yaml"])


def test_a_typo_is_refused_quickly() -> None:
    code = "from dml_runner.config import compose\ntry:\n    compose(['train.stepz=3'])\nexcept Exception as error:\n    print(error)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    assert done.stdout.startswith("train.stepz: unknown key")
    assert time.perf_counter() - start < 0.8
