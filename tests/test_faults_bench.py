"""`dml bench faults`: draws are written down as they are made, and a measurement that was broken off goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dml_runner.bench import faults
from dml_runner.bench.faults_words import fault_words
from dml_runner.errors import ConfigError


@pytest.mark.slow
def test_draws_that_are_done_are_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads(faults.measure(["only=flip", f"outputs={tmp_path}", "format=json"]))
    (row,) = result["experiments"]
    assert (row["name"], row["good"], row["draws"], row["holds"]) == ("flip", 200, 200, True)
    folder = Path(result["folder"])
    assert str(folder) in capsys.readouterr().err
    ledger = folder / "results.jsonl"
    lines = ledger.read_text().splitlines()
    files = {json.loads(line).get("file") for line in lines} - {None}
    assert files == {"manifest.json", "index.json", "state.json", "rank-00000.safetensors", "rank-00001.safetensors"}
    ledger.write_text("\n".join(lines[:-20]) + "\n")
    table = faults.measure(["only=flip", f"resume={folder}"])
    assert table.startswith("flip        holds   200 of 200")
    assert ledger.read_text().splitlines() == lines, "the same dice"
    assert "flip 200/200  ok" in capsys.readouterr().err


def test_words_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        fault_words(["only=kill2,kil4", "tries=0", "resume=/no/such/folder", "format=yaml", "trees=3"], list(faults.EXPERIMENTS))
    said = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in said] == ["trees", "only", "format", "resume", "tries"]
    assert said[0].endswith("did you mean tries?")
    assert "did you mean kill4?" in said[1]
