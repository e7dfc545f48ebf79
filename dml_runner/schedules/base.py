"""What a schedule is: for each pipeline rank the order of its work, as data that can be printed, timed and drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Kind = Literal["F", "B", "I", "W"]
MEANING: dict[Kind, str] = {"F": "forward", "B": "backward", "I": "backward to inputs", "W": "gradients of weights"}
"""What the kinds of actions are called where they are drawn."""


@dataclass(frozen=True, slots=True)
class Action:
    """One piece of work of a rank.

    Attributes:
        kind: ``F`` forward; ``B`` the whole backward; ``I`` backward to the stage's input and ``W`` the gradients of its weights, which
            together are ``B``.
        stage: virtual stage, 0 to stages - 1.
        micro: micro-batch, 0 to microbatches - 1.
    """

    kind: Kind
    stage: int
    micro: int

    def __str__(self) -> str:
        return f"{self.kind}{self.micro} of stage {self.stage}"


@dataclass(frozen=True)
class Schedule:
    """The order in which each pipeline rank computes.

    Virtual stage v lives on rank v % ranks. What a stage computes is sent at once and does not hold up the sender; a rank waits where
    the input of its next action has not come.

    Attributes:
        name: as of ``strategy.schedule``.
        stages: virtual stages: ranks x chunks.
        microbatches: micro-batches of a step.
        ranks: the actions of each rank, in its order.
    """

    name: str
    stages: int
    microbatches: int
    ranks: tuple[tuple[Action, ...], ...]

    @property
    def chunks(self) -> int:
        """Virtual stages a rank."""
        return self.stages // len(self.ranks)

    @cached_property
    def splits_backward(self) -> bool:
        """Whether gradients of weights are actions of their own."""
        return any(action.kind == "W" for actions in self.ranks for action in actions)

    def rank_of(self, stage: int) -> int:
        """The pipeline rank that holds virtual stage ``stage``."""
        return stage % len(self.ranks)

    def stages_of(self, rank: int) -> range:
        """The virtual stages of pipeline rank ``rank``, in the order in which a sample passes them."""
        return range(rank, self.stages, len(self.ranks))

    def needs(self, action: Action) -> Iterator[Action]:
        """The actions whose results ``action`` takes as its input: of its own stage, and of the stage before or after."""
        kind, stage, micro = action.kind, action.stage, action.micro
        if kind == "W":
            yield Action("I", stage, micro)
        elif kind == "F":
            if stage > 0:
                yield Action("F", stage - 1, micro)
        else:
            yield Action("F", stage, micro)
            if stage < self.stages - 1:
                yield Action(kind, stage + 1, micro)

    def reader(self, action: Action) -> Action | None:
        """The action of the stage after or before whose input ``action`` computes: an activation or its gradient; None: there is none."""
        if action.kind == "F" and action.stage < self.stages - 1:
            return Action("F", action.stage + 1, action.micro)
        if action.kind in ("B", "I") and action.stage > 0:
            return Action(action.kind, action.stage - 1, action.micro)
        return None

    def arrivals(self, rank: int) -> dict[int, tuple[Action, ...]]:
        """What comes to ``rank`` from each other rank, in the order in which that rank sends it.

        Returns:
            By the sender's rank: the actions of ``rank`` whose inputs its messages are. They need not be in the order in which ``rank``
            takes them where it has several stages.
        """
        senders = {sender: actions for sender, actions in enumerate(self.ranks) if sender != rank}
        readers = {sender: [self.reader(action) for action in actions] for sender, actions in senders.items()}
        mine = {sender: tuple(r for r in found if r is not None and self.rank_of(r.stage) == rank) for sender, found in readers.items()}
        return {sender: found for sender, found in mine.items() if found}
