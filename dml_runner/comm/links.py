"""Links: the ranks of a group as numbered peers that exchange tensors, and every byte counted where it is sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.distributed as dist
from torch import Tensor

from dml_runner.comm.counter import Sent

Message = tuple[Tensor, int]
"""A contiguous tensor and the peer it goes to or comes from."""


class PeerLost(RuntimeError):
    """A peer died, left, or sent nothing within the group's time limit.

    Attributes:
        peers: the peers of the exchange that failed, numbered within its Links; with several of them the loss may be any one's.
    """

    def __init__(self, peers: Sequence[int], why: BaseException) -> None:
        self.peers = tuple(sorted(set(peers)))
        who = "rank" if len(self.peers) == 1 else "one of ranks"
        super().__init__(f"no more word from {who} {', '.join(map(str, self.peers))}: {why}")


class Exchange:
    """Messages on their way. Their tensors must stay as they are until ``wait`` returns."""

    def __init__(self, works: Sequence[dist.Work], messages: Sequence[Message]) -> None:
        self._works = list(works)
        self._messages = list(messages)  # holds the tensors: a freed buffer would be sent or written all the same

    def wait(self) -> None:
        """Return when all has been received and all that is sent may be overwritten (CUDA: when the current stream will see it so).

        Other threads run meanwhile. A second call does nothing.

        Raises:
            PeerLost: a peer died, or the group's time limit passed.
        """
        works, messages = self._works, self._messages
        self._works, self._messages = [], []
        for at, work in enumerate(works):
            try:
                work.wait()
            except RuntimeError as error:
                among = messages[at : at + 1] if len(works) == len(messages) else messages
                raise PeerLost([peer for _, peer in among], error) from error


class Links:
    """Some ranks of a group as peers 0 to ``size - 1``, this one being ``rank``.

    Messages between two peers arrive in the order they were sent under one ``tag``, so one thread at a time uses one tag. A
    thread beside it takes a part under a tag of its own, the same on all its peers. NCCL knows no tags: on it such a thread
    needs a group of its own.

    Attributes:
        rank: this rank's number among the peers.
        size: how many peers there are, this one included.
        group: the process group; None where this rank is alone.
        members: each peer's rank in ``group``.
        tag: the tag of all messages.
        sent: the count every sent byte is added to.
        buffers: bytes that collectives over these Links received into and will use again: fresh memory costs as much as a copy.
    """

    def __init__(self, group: dist.ProcessGroup | None, sent: Sent, members: Sequence[int] | None = None, tag: int = 0) -> None:
        ranks = 1 if group is None else group.size()
        self.group = group
        self.members = tuple(range(ranks) if members is None else members)
        assert len(set(self.members)) == len(self.members), f"a rank stands twice in {self.members}"
        assert all(0 <= member < ranks for member in self.members), f"{self.members} are not all ranks of a group of {ranks}"
        self.rank = self.members.index(0 if group is None else group.rank())
        self.size = len(self.members)
        self.tag = tag
        self.sent = sent
        self.buffers: list[Tensor] = []

    @property
    def whole(self) -> bool:
        """Whether the peers are all ranks of the group, in its order."""
        return self.group is None or self.members == tuple(range(self.group.size()))

    def part(self, members: Sequence[int], tag: int | None = None) -> Links | None:
        """The Links among the peers ``members``, in this order, or None if this rank is not one of them.

        Costs no message. ``tag`` sets the part's messages apart from ours; without it one thread must use both.
        """
        if self.rank not in members:
            return None
        part = Links(self.group, self.sent, [self.members[member] for member in members], self.tag if tag is None else tag)
        if part.tag == self.tag:
            part.buffers = self.buffers
        return part

    def exchange(self, outgoing: Sequence[Message], incoming: Sequence[Message]) -> Exchange:
        """Start to receive ``incoming`` and then to send ``outgoing``; both peers name the same type and number of elements.

        Empty tensors are not sent. On NCCL the messages of one call travel as one batch, so peers must make calls that match
        in an order that suits all of them; elsewhere receives may be posted far ahead of what is sent.

        Raises:
            PeerLost: a peer is known to be gone.
        """
        incoming = [(tensor, peer) for tensor, peer in incoming if tensor.numel()]
        outgoing = [(tensor, peer) for tensor, peer in outgoing if tensor.numel()]
        messages = [*incoming, *outgoing]
        if not messages:
            return Exchange([], [])
        assert self.group is not None, "nobody to exchange with"
        if messages[0][0].is_cuda:
            works = self._batch(self.group, outgoing, incoming)
        else:
            works = [self._start(self.group.recv, tensor, peer) for tensor, peer in incoming]
            works += [self._start(self.group.send, tensor, peer) for tensor, peer in outgoing]
        self.sent.add(sum(tensor.nbytes for tensor, _ in outgoing))
        return Exchange(works, messages)

    def send(self, tensor: Tensor, peer: int) -> Exchange:
        """Start to send ``tensor`` to ``peer``."""
        return self.exchange([(tensor, peer)], [])

    def receive(self, tensor: Tensor, peer: int) -> Exchange:
        """Start to receive ``tensor`` from ``peer``."""
        return self.exchange([], [(tensor, peer)])

    def _start(self, post: Callable[[list[Tensor], int, int], dist.Work], tensor: Tensor, peer: int) -> dist.Work:
        assert tensor.is_contiguous(), "only contiguous tensors travel"
        try:
            return post([tensor], self.members[peer], self.tag)
        except RuntimeError as error:
            raise PeerLost([peer], error) from error

    def _batch(self, group: dist.ProcessGroup, outgoing: Sequence[Message], incoming: Sequence[Message]) -> list[dist.Work]:
        receives = [dist.P2POp(dist.irecv, tensor, group=group, group_peer=self.members[peer]) for tensor, peer in incoming]
        sends = [dist.P2POp(dist.isend, tensor, group=group, group_peer=self.members[peer]) for tensor, peer in outgoing]
        return list(dist.batch_isend_irecv([*receives, *sends]))
