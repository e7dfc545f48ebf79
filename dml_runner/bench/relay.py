"""A relay that holds bytes: a TCP connection that goes through it is that much longer.

The kernels we meet have no netem, so a delay comes from a process in between. Each direction keeps its order and its bandwidth; what
was read at a moment is written ``delay_s`` later, and so is the end of a stream.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

CHUNK, HELD = 2**16, 1024
"""Bytes read at once, and reads that one direction of a connection holds; beyond them the sender waits."""


@dataclass(frozen=True)
class Relay:
    """A relay that is running.

    Attributes:
        host: address it listens on.
        port: and its port.
    """

    host: str
    port: int


@contextmanager
def relay(target: tuple[str, int], delay_s: float, listen: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[Relay]:
    """Listen on ``listen`` (port 0: a free one) and pass connections on to ``target``, each byte ``delay_s`` later, both ways.

    Raises:
        OSError: nobody may listen there.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="relay", daemon=True)
    thread.start()
    work = _Work(target, delay_s)
    try:
        host, port = asyncio.run_coroutine_threadsafe(work.open(listen), loop).result()
        yield Relay(host, port)
    finally:
        asyncio.run_coroutine_threadsafe(work.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Work:
    """The connections of one relay, on its event loop."""

    def __init__(self, target: tuple[str, int], delay_s: float) -> None:
        self._target, self._delay_s = target, delay_s
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, listen: tuple[str, int]) -> tuple[str, int]:
        self._server = await asyncio.start_server(self._connection, *listen)
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._pass_on(reader, writer)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._one_way(reader, far_writer))
                both.create_task(self._one_way(far_reader, writer))
        except* OSError:
            pass  # one end is gone: both sides are let go of below
        finally:
            for each in (far_writer, writer):
                each.close()
                with suppress(OSError):
                    await each.wait_closed()

    async def _one_way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(HELD)
        async with asyncio.TaskGroup() as two:
            two.create_task(self._take(reader, held))
            two.create_task(self._give(held, writer))

    async def _take(self, reader: asyncio.StreamReader, held: asyncio.Queue[tuple[float, bytes]]) -> None:
        now = asyncio.get_running_loop().time
        data = b"first"
        while data:
            data = await reader.read(CHUNK)
            await held.put((now() + self._delay_s, data))

    async def _give(self, held: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        now = asyncio.get_running_loop().time
        while True:
            due, data = await held.get()
            await asyncio.sleep(max(0.0, due - now()))
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
