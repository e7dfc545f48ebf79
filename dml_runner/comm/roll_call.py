"""Roll call: every rank says who it is through the store, and hears everyone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist


def roll_call(store: dist.Store, rank: int, size: int, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Post ``entry`` (plain JSON values) for ``rank`` and return the entries of all ranks, in order."""
    store.set(f"roll_call/{rank}", json.dumps(entry))
    return [json.loads(store.get(f"roll_call/{other}")) for other in range(size)]
