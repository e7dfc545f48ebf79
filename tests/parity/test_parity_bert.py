"""Against transformers with the same weights: outputs and gradients of BERT. Skipped where transformers is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

from comparing import PRECISIONS, assert_agree, assert_round_trip, ours, texts, theirs  # noqa: E402  # it imports transformers

HEADS = {
    "mlm": ("model=bert",),
    "classifier": ("model=bert", "model.ffn_hidden=100", "data=labelled_text", "data.path=texts.tsv", "model.head=classifier"),
}
pytestmark = pytest.mark.filterwarnings("ignore")
every_head = pytest.mark.parametrize("words", HEADS.values(), ids=HEADS.keys())


@pytest.mark.parametrize(("dtype", "within"), PRECISIONS, ids=["fp64", "fp32"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@every_head
def test_outputs_and_gradients_agree(words: tuple[str, ...], padded: bool, dtype: torch.dtype, within: float) -> None:
    """fp64: within 1e-9; fp32: within 1e-5 of the largest value."""
    mine = ours(*words, dtype=dtype)
    ids, mask = texts()
    batch, asked = {"inputs": ids}, {"input_ids": ids}
    if padded:
        segments = (torch.arange(ids.shape[1]) > 4).long().expand_as(ids)
        batch |= {"mask": mask, "segments": segments}
        asked |= {"attention_mask": mask.long(), "token_type_ids": segments}
    assert_agree(mine, theirs(mine, dtype), within, batch, **asked)


@every_head
def test_a_written_folder_loads_and_reads_back(words: tuple[str, ...], tmp_path: Path) -> None:
    auto = transformers.AutoModelForSequenceClassification if "model.head=classifier" in words else transformers.AutoModelForMaskedLM
    ids, mask = texts()
    assert_round_trip(ours(*words), tmp_path, auto, {"inputs": ids, "mask": mask}, input_ids=ids, attention_mask=mask.long())
