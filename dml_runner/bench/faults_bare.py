"""A script as people write it by hand: DistributedDataParallel under torchrun, a checkpoint every 25 steps, nothing else.

``torchrun --standalone --nproc-per-node=4 --max-restarts=3 faults_bare.py FOLDER`` writes ``pid-RANK`` and a line a step.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

STEPS, EVERY, WIDTH = 100_000, 25, 64


def main(folder: Path) -> None:
    """Train until it is killed; continue from the newest checkpoint."""
    dist.init_process_group("gloo")
    rank, attempt = dist.get_rank(), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    torch.set_num_threads(1)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)))
    optimizer = torch.optim.AdamW(model.parameters())
    saved, first = folder / "model.safetensors", 1
    if saved.exists():
        model.module.load_state_dict(load_file(saved))
        first = int((folder / "step").read_text()) + 1
    (folder / f"pid-{rank}").write_text(f"{attempt} {os.getpid()}")
    for step in range(first, STEPS):
        loss = model(torch.randn(8, WIDTH)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:
            with (folder / "steps").open("a") as file:
                file.write(f"{attempt} {step}\n")
            if step % EVERY == 0:
                save_file(model.module.state_dict(), folder / "draft")
                os.replace(folder / "draft", saved)
                (folder / "step").write_text(str(step))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
