"""Good words: what composes, what is found, what is kept, and that the vocabulary and the schema agree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dml_runner.config import compose, conf_folder, group_help, groups, recompose, show_defaults, show_job, trials, verb_help
from dml_runner.run import Run
from dml_runner.schema.base import Section, meanings
from dml_runner.validation import keys, restore, validate

OPTIONS = sorted((path.parent.name, path.stem) for path in conf_folder().glob("*/*.yaml"))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job(text: str, name: str = "job.yaml") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_an_options_keys_are_its_classes_fields(group: str, option: str) -> None:
    section = yaml.safe_load(show_job([f"{group}={option}"]))[group]
    owner = keys.chosen(keys.groups()[group], section)
    assert owner is not None, f"no class of {group} is named {section['name']}"
    assert set(section) == set(owner.model_fields)


def test_the_roots_keys_are_the_schemas() -> None:
    tree = yaml.safe_load(show_job([]))
    assert set(tree) == set(Run.model_fields)
    for dotted, _, _ in keys.fields(Run):
        node = tree
        for part in dotted.split("."):
            assert part in node
            node = node[part]


def test_every_key_has_a_meaning() -> None:
    owners: list[type[Section]] = [Run, *(each for classes in keys.groups().values() for each in classes)]
    for owner in owners:
        for dotted, _, section in keys.fields(owner):
            assert meanings(section).get(dotted.rpartition(".")[2]), f"{owner.__name__}.{dotted}"


def test_every_option_begins_with_a_line_of_meaning() -> None:
    for group in groups():
        for line in group_help(group).splitlines():
            assert len(line.split()) > 2, line


def test_defaults() -> None:
    composed = compose([])
    assert composed.run.strategy.name == "single"
    assert composed.run.train.steps == 1000
    assert composed.notices == ()
    assert composed.file is None
    assert validate(composed.tree) == composed.run


def test_words_stand_over_the_file_and_the_file_over_its_options() -> None:
    name = job(
        "defaults: [config, override strategy: all_reduce, override model: gpt_tiny, _self_]\n"
        "strategy: {bucket_mb: 3}\nmodel: {layers: 7}\ntrain: {steps: 50, log_every: 5}\n",
        "deep/er/job.yml",
    )
    composed = compose([name, "train.steps=9", "+seed=3", "optimizer=sgd"])
    run = composed.run
    assert (run.strategy.name, run.model.layers, run.model.hidden, run.optimizer.name) == ("all_reduce", 7, 32, "sgd")
    assert (run.train.steps, run.train.log_every, run.seed) == (9, 5, 3)
    assert composed.tree["strategy"] | {"name": "all_reduce", "bucket_mb": 3} == composed.tree["strategy"]
    assert composed.file == Path(name)


def test_the_example_in_the_refusal_works() -> None:
    from dml_runner.config.words import EXAMPLE

    assert compose([job(EXAMPLE.removeprefix("begin it with: "))]).run.strategy.name == "all_reduce"


def test_a_file_without_self_still_stands_over_config() -> None:
    assert compose([job("defaults: [config, override model: gpt_tiny]\ntrain: {steps: 5}\n")]).run.train.steps == 5


def test_another_option_drops_the_files_keys_with_one_notice() -> None:
    name = job("defaults: [config, override strategy: all_reduce, _self_]\nstrategy: {bucket_mb: 3}\n")
    composed = compose([name, "strategy=single"])
    assert composed.tree["strategy"] == {"name": "single"}
    assert composed.notices == ("strategy=single: dropped bucket_mb (of all_reduce)",)
    assert compose([name, "strategy=all_reduce"]).notices == ()


def test_another_option_keeps_keys_unknown_to_both_and_typed_ones_as_errors() -> None:
    from dml_runner.errors import ConfigError

    name = job("defaults: [config, override strategy: all_reduce, _self_]\nstrategy: {bucket_mb: 3, buckets: 4}\n")
    with pytest.raises(ConfigError, match=r"strategy\.buckets: unknown key"):
        compose([name, "strategy=single"])
    name = job("defaults: [config, override strategy: all_reduce, _self_]\nstrategy: {bucket_mb: 3}\n")
    with pytest.raises(ConfigError, match=r"strategy\.bucket_mb: unknown key; a key of strategy=all_reduce"):
        compose([name, "strategy=single", "strategy.bucket_mb=4"])


@pytest.mark.parametrize("folder", ["jobs/conf", "conf"])
def test_a_users_own_option_is_found(folder: str) -> None:
    job("# my own size\ndefaults: [gpt, _self_]\nlayers: 3\n", f"{folder}/model/mine.yaml")
    name = job("defaults: [config, override model: mine, _self_]\n", "jobs/job.yaml")
    assert (compose([name]).run.model.layers, compose([name]).run.model.heads) == (3, 4)
    assert compose([name, "model=mine", "model.heads=2"]).run.model.heads == 2
    assert "  mine" in group_help("model", Path(name))
    assert "my own size" in group_help("model", Path(name))
    assert folder in show_defaults([name])


def test_a_users_group_can_set_keys_anywhere() -> None:
    job("# @package _global_\n# quick look\ntrain: {steps: 2}\nname: quick\n", "conf/debug/fast.yaml")
    run = compose(["+debug=fast", "optimizer.lr=1"]).run
    assert (run.train.steps, run.name) == (2, "quick")
    assert "debug" in groups()


def test_lists_become_tuples() -> None:
    run = compose(["data=text", "data.path=[a.txt,b.txt]"]).run
    assert getattr(run.data, "path") == ("a.txt", "b.txt")  # noqa: B009


def test_interpolations_are_resolved_but_the_environment_stays_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DML_NAME", "secret")
    name = job("defaults: [config, _self_]\nname: x-${oc.env:DML_NAME}\noutputs: ${name}/${seed}\nrun: seed-${seed}\n")
    composed = compose([name, "train.log_every=${train.steps}", "optimizer.lr='${oc.decode:${oc.env:DML_RATE,0.5}}'"])
    assert (composed.run.name, composed.run.outputs, composed.run.run) == ("x-secret", "x-secret/1", "seed-1")
    assert (composed.run.train.log_every, composed.run.optimizer.lr) == (1000, 0.5)
    assert "secret" not in str(composed.tree)
    assert composed.tree["name"] == "x-${oc.env:DML_NAME}"
    assert composed.tree["outputs"] == "${name}/${seed}"
    assert composed.tree["run"] == "seed-1"
    assert restore(yaml.safe_load(yaml.safe_dump(composed.tree))) == composed.run


def test_restore_names_a_variable_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    from dml_runner.errors import ConfigError

    monkeypatch.setenv("DML_NAME", "secret")
    tree = compose(["name=${oc.env:DML_NAME}"]).tree
    monkeypatch.delenv("DML_NAME")
    with pytest.raises(ConfigError, match="name: environment variable DML_NAME is not set"):
        restore(tree)


def test_recompose_changes_a_run() -> None:
    before = compose(["strategy=all_reduce", "optimizer.lr=0.5", "train.steps=7"]).tree
    after = recompose(before, ["strategy=single", "train.log_every=2", "~train.stop.metric", "train.stop.metric=null"])
    assert (after.run.strategy.name, after.run.optimizer.lr, after.run.train.steps, after.run.train.log_every) == ("single", 0.5, 7, 2)
    assert recompose(before, []).run == restore(before)


def test_show_job_keeps_missing_and_interpolated_values() -> None:
    tree = yaml.safe_load(show_job(["data=text", "name=${oc.env:DML_NOT_SET}", "run=${no.such.key}"]))
    assert (tree["data"]["path"], tree["name"], tree["run"]) == ("???", "${oc.env:DML_NOT_SET}", "${no.such.key}")
    assert "hydra" not in tree
    assert "defaults" not in tree


def test_show_defaults_lists_options_and_files() -> None:
    lines = [line.split() for line in show_defaults(["model=gpt2_124m"]).splitlines()]
    assert ["model", "gpt2_124m", str(conf_folder() / "model" / "gpt2_124m.yaml")] in lines
    assert ["strategy", "single", str(conf_folder() / "strategy" / "single.yaml")] in lines


def test_trials_are_the_product_in_order() -> None:
    name = job("defaults: [config, _self_]\n")
    assert trials(["strategy=single,all_reduce", name, "seed=5", "train.steps=range(1,3)"]) == [
        [name, f"strategy={strategy}", "seed=5", f"train.steps={steps}"] for strategy in ("single", "all_reduce") for steps in (1, 2)
    ]
    assert trials(["data.path=[a,b]", "~run"]) == [["data.path=[a,b]", "~run"]]
    assert [each[0] for each in trials(["model=glob(gpt2_1*)"])] == ["model=gpt2_124m", "model=gpt2_1558m"]


def test_help_names_every_group_and_key_within_100_columns() -> None:
    text = verb_help("train")
    assert max(len(line) for line in text.splitlines()) <= 100
    for dotted, _, _ in keys.fields(Run):
        assert f"  {dotted} " in text
    for group, classes in keys.groups().items():
        assert f"\n{group}: " in text
        for owner in classes:
            for dotted, _, _ in keys.fields(owner):
                assert dotted == "name" or f"  {group}.{dotted} " in text
    assert verb_help("bench").startswith("usage: dml bench")


def test_composing_imports_no_torch_and_leaves_hydra_as_it_was() -> None:
    code = (
        "import sys\nfrom dml_runner.config import compose, verb_help\nassert 'hydra' not in sys.modules\nverb_help('train')\n"
        "assert 'hydra' not in sys.modules\ncompose([])\n"
        "from hydra.core.global_hydra import GlobalHydra\nassert not GlobalHydra.instance().is_initialized()\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
