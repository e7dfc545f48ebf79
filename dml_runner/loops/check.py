"""Do all ranks hold the same weights?"""

from __future__ import annotations

from dml_runner.comm.world import World
from dml_runner.engines.base import Engine
from dml_runner.errors import CameApart, Problem
from dml_runner.layout import Mesh

HINT = "a faulty device or memory, or a kernel that is not deterministic; do not trust what was saved since the check before"


def check_replicas(engine: Engine, world: World, mesh: Mesh, step: int) -> None:
    """Compare the weights of ranks that hold the same part of the model after ``step``; called by all ranks together.

    Raises:
        CameApart: a rank's weights differ from most others' (of two ranks, from the first's); the rank and a parameter are named.
    """
    names, mine = engine.fingerprint()
    everyone = world.gather_tensor(mine)
    for first in (rank for rank in range(mesh.size) if mesh.data_rank(rank) == 0):
        alike = mesh.along("data", first)
        rows = everyone[list(alike)]
        usual = rows.mode(dim=0).values if len(alike) > 2 else rows[0]
        row, parameter = divmod(int((rows != usual).flatten().int().argmax()), len(mine))
        if rows[row, parameter] != usual[parameter]:
            what = f"its weights differ from the other ranks' after step {step}, first in {names[parameter]}"
            raise CameApart(Problem(f"rank {alike[row]}", what, hint=HINT))
