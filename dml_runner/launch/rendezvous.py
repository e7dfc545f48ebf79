"""A meeting place for ranks that only this machine can reach, fresh for every generation."""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous.api import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

LOOPBACK = "127.0.0.1"


class LoopbackStore:
    """A TCPStore that listens on 127.0.0.1 alone: torch's own would listen on every interface."""

    def __init__(self) -> None:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind((LOOPBACK, 0))
        listener.listen(512)
        self.port: int = listener.getsockname()[1]
        self.store = TCPStore(
            LOOPBACK,
            self.port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=60),
            master_listen_fd=listener.detach(),
            use_libuv=False,
        )

    def generation(self, number: int) -> Store:
        """The part of the store that generation ``number`` has to itself."""
        return PrefixStore(f"g{number}", self.store)


class OneGeneration(RendezvousHandler):
    """Tells the elastic agent that it is the only one, and where its ranks meet."""

    def __init__(self, meeting: LoopbackStore, number: int) -> None:
        self._meeting = meeting
        self._number = number

    def get_backend(self) -> str:
        """Name in the agent's records."""
        return "loopback"

    @property
    def use_agent_store(self) -> bool:
        """The ranks meet in the agent's store."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """This host alone, in a store nobody used before."""
        place = RendezvousStoreInfo(LOOPBACK, self._meeting.port)
        return RendezvousInfo(self._meeting.generation(self._number), 0, 1, place)

    def is_closed(self) -> bool:
        """Never closed early."""
        return False

    def set_closed(self) -> None:
        """Nothing to close: a generation ends with its agent."""

    def num_nodes_waiting(self) -> int:
        """Nobody joins a generation that runs."""
        return 0

    def get_run_id(self) -> str:
        """Name of this generation."""
        return f"g{self._number}"

    def shutdown(self) -> bool:
        """Nothing to shut down."""
        return True
