"""A switch that holds packets: what stands between hosts instead of a bridge where links shall have a latency.

The kernels we meet have no netem, so a process takes each frame off a port (packet(7)) and puts it on another one ``delay`` later, in
order. Frames keep what the kernel knows of them (PACKET_VNET_HDR: unsent checksums, segments still joined), so they stay as large
as the sender made them and one process is fast enough. It learns which port a host is behind, as any switch does.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque
from contextlib import suppress

from dml_runner.seat import die_with

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
EVERYTHING = 0x0003
"""The protocol number of all protocols (linux/if_ether.h)."""
HEADER = 10
"""Bytes before each frame: struct virtio_net_hdr."""
LARGEST = HEADER + 2**16 + 64
HELD = 2**25
"""Bytes that a port holds on its way in, and on its way out."""
AT_ONCE = 64
"""Frames taken off a port before those that are due are looked after."""


class Switch:
    """Ports, what is on its way between them, and who is behind which."""

    def __init__(self, ports: list[str], delay_s: float) -> None:
        """``ports``: interfaces of this process's network; ``delay_s``: how long each frame is held."""
        self._sockets = [_open(port) for port in ports]
        self._delay_s = delay_s
        self._held: deque[tuple[float, int, bytes]] = deque()
        self._behind: dict[bytes, int] = {}

    def run(self) -> None:
        """Switch until the process ends."""
        while True:
            wait = max(0.0, self._held[0][0] - time.monotonic()) if self._held else None
            ready, _, _ = select.select(self._sockets, [], [], wait)
            for port in ready:
                self._take(self._sockets.index(port))
            self._give()

    def _take(self, port: int) -> None:
        # a port whose cable is pulled says so once
        with suppress(OSError):
            for _ in range(AT_ONCE):
                frame = self._sockets[port].recv(LARGEST)
                self._behind[frame[HEADER + 6 : HEADER + 12]] = port
                self._held.append((time.monotonic() + self._delay_s, port, frame))

    def _give(self) -> None:
        now = time.monotonic()
        while self._held and self._held[0][0] <= now:
            _, source, frame = self._held.popleft()
            known = self._behind.get(frame[HEADER : HEADER + 6])
            others = [port for port in range(len(self._sockets)) if port != source]
            for port in others if known is None else [known]:
                # a full port drops, as a switch does
                with suppress(OSError):
                    self._sockets[port].send(frame)


def _open(port: str) -> socket.socket:
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    found.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    found.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    found.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, HELD)
    found.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, HELD)
    found.bind((port, EVERYTHING))
    found.setblocking(False)
    return found


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    switch = Switch(sys.argv[3:], float(sys.argv[2]))
    print("ready", flush=True)
    switch.run()
