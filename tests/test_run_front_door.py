"""The front door: recipes that plan as they stand, help and refusals that do not wait for torch."""

from __future__ import annotations

import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import dml, write_text

from dml_runner import cli

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


STAND_INS = {"bert_sst2": ("model.pretrained=null", "data.tokenizer=wordpiece"), "resnet_fashion_mnist": ("data=digits",)}
"""In place of weights and data that not every machine has."""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_plans_with_the_command_it_states(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dml_word, verb, file, *words = shlex.split(recipe.read_text().splitlines()[0].removeprefix("# ").split("     ")[0])
    assert (dml_word, verb, file) == ("dml", "train", f"recipes/{recipe.name}")
    rows = tmp_path / "rows.tsv"
    rows.write_text("a good film\t1\na bad film\t0\n" * 20)
    data = rows if recipe.stem == "bert_sst2" else write_text(tmp_path)
    words = [f"{word.split('=')[0]}={data}" if word.startswith(("data.path=", "data.eval_path=")) else word for word in words]
    assert cli.main(["plan", str(recipe), *words, *STAND_INS.get(recipe.stem, ()), "format=json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"]
    assert plan["layout"]["strategy"]


@pytest.mark.parametrize("words", [["--help"], [], ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    script = "import sys; from dml_runner import cli; assert cli.main(sys.argv[1:]) == 0; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    assert not {"'torch'", "'pydantic'", "'hydra'", "'numpy'"} & set(done.stdout.splitlines()[-1].strip("[]").split(", "))


def test_a_wrong_key_is_refused_before_torch_is_imported() -> None:
    script = "import sys; from dml_runner import cli; code = cli.main(['train', 'optimizer.lrr=1']); print(code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"


@pytest.mark.parametrize(("words", "code", "limit_s"), [(["--help"], 0, 0.4), (["train", "optimizer.lrr=1"], 2, 0.8)])
def test_answers_come_at_once(words: list[str], code: int, limit_s: float) -> None:
    """In processor time, which is the waiting time where nobody else computes; the quickest of five."""
    took = []
    for _ in range(5):
        before = children_s()
        assert dml(*words).returncode == code
        took.append(children_s() - before)
    assert min(took) < limit_s, took


def children_s() -> float:
    """Processor time of the processes this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
