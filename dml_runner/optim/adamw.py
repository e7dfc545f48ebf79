"""Adam with decoupled weight decay."""

from __future__ import annotations

from typing import Any

import torch

from dml_runner.schema.optimizer import AdamW as AdamWWords


def build(words: AdamWWords, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """torch's fused AdamW over ``groups``."""
    return torch.optim.AdamW(groups, lr=words.lr, betas=(words.beta1, words.beta2), eps=words.eps, fused=True)
