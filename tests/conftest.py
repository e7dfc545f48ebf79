"""What every test starts from: no outside launcher, one thread a process, no gpu test without a GPU."""

from __future__ import annotations

import os

import hypothesis
import pytest

LAUNCHER_WORDS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

for word in (*LAUNCHER_WORDS, *(name for name in os.environ if name.startswith(("DML_", "TORCHELASTIC_", "SLURM_", "WANDB_")))):
    os.environ.pop(word, None)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: several ranks share the machine

hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
