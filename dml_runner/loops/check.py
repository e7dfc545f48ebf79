"""Do all ranks hold the same weights?"""

from __future__ import annotations

from dml_runner.comm.world import World
from dml_runner.engines.base import Engine
from dml_runner.errors import CameApart, Problem


def check_replicas(engine: Engine, world: World, workers: int, step: int) -> None:
    """Compare the weights of the first ``workers`` ranks after ``step``; called by all ranks together.

    Raises:
        CameApart: a rank's weights differ from most others' (of two ranks, from rank 0's); the rank and a parameter are named.
    """
    names, mine = engine.fingerprint()
    everyone = world.gather_tensor(mine)[:workers]
    usual = everyone.mode(dim=0).values if workers > 2 else everyone[0]
    rank, parameter = divmod(int((everyone != usual).flatten().int().argmax()), len(mine))
    if everyone[rank, parameter] != usual[parameter]:
        raise CameApart(
            Problem(
                f"rank {rank}",
                f"its weights differ from the other ranks' after step {step}, first in {names[parameter]}",
                hint="a faulty device or memory, or a kernel that is not deterministic; do not trust what was saved since the check before",
            )
        )
