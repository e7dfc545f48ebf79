"""Given: how many ranks there are where another program started them, and which of them are workers."""

from __future__ import annotations

from dataclasses import dataclass

from dml_runner.errors import LaunchError, Problem
from dml_runner.schema.strategy import ParameterServer, StrategyWords


@dataclass(frozen=True)
class Beside:
    """Ranks that a strategy has beside its workers, after them.

    Attributes:
        ranks: how many.
        key: what sets their number.
        called: what they are.
    """

    ranks: int
    key: str = "strategy.servers"
    called: str = "dedicated server(s)"


def ranks_beside(strategy: StrategyWords) -> Beside:
    """Dedicated servers, or helpers, which take the place of servers."""
    if not isinstance(strategy, ParameterServer):
        return Beside(0)
    if strategy.helpers:
        return Beside(strategy.helpers, "strategy.helpers", "helper(s)")
    return Beside(strategy.servers if strategy.placement == "dedicated" else 0)


@dataclass(frozen=True)
class Given:
    """Ranks that a launcher from outside started.

    Attributes:
        size: all of them.
        node: those on rank 0's host.
    """

    size: int
    node: int

    @property
    def world(self) -> tuple[int, int]:
        """(nodes, devices a node) where every rank is a worker."""
        return self.size // self.node, self.node

    def workers(self, strategy: StrategyWords) -> tuple[int, int]:
        """(nodes, devices a node) of the workers, which come first; servers and helpers share a host with them only where there is but one.

        Raises:
            LaunchError: those beside them leave no worker, or no whole hosts of workers.
        """
        beside = ranks_beside(strategy)
        workers = self.size - beside.ranks
        per_node = workers if self.size == self.node else self.node
        if workers < 1:
            what = f"{beside.ranks} {beside.called} leave no worker"
            raise LaunchError(Problem(beside.key, what, got=f"{self.size} rank(s) that the launcher started"))
        if beside.ranks and workers % per_node:
            what = f"{beside.ranks} {beside.called} leave {workers} workers, which do not fill hosts of {per_node}"
            hint = "they have hosts of their own, after those of the workers"
            raise LaunchError(Problem(beside.key, what, got=f"{self.size} ranks that the launcher started", hint=hint))
        return workers // per_node, per_node
