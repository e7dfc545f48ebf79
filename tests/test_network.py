"""Hosts on one machine: rates, counters, a pulled cable, nothing left behind; and the relay that holds bytes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dml_runner.bench import network
from dml_runner.bench.network import Host, Lab, lab, possible, sweep
from dml_runner.bench.relay import relay
from dml_runner.errors import LaunchError

needs_hosts = pytest.mark.skipif(possible() is not None, reason=str(possible()))

RECEIVER = """
import socket, sys, time
listener = socket.create_server((sys.argv[1], 5000))
print("listening", flush=True)
there, _ = listener.accept()
there.recv(1)
began, got = time.monotonic(), 1
while data := there.recv(1 << 20):
    got += len(data)
print(got, time.monotonic() - began, flush=True)
"""
SENDER = """
import socket, sys
there = socket.create_connection((sys.argv[1], 5000))
there.sendall(bytes(int(sys.argv[2])))
there.shutdown(socket.SHUT_WR)
there.recv(1)
"""


def standing() -> list[str]:
    """Namespaces of this process's laboratories."""
    return [name for name in network._namespaces() if name.startswith(f"dml-{os.getpid()}-")]


def start(host: Host, script: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(host.command([sys.executable, "-c", script, *words]), stdout=subprocess.PIPE, text=True)


def carry(source: Host, target: Host, size: int) -> tuple[int, float]:
    """Send ``size`` bytes and return (bytes that arrived, seconds from the first to the last)."""
    with start(target, RECEIVER, target.address) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "listening\n"
        with start(source, SENDER, target.address, str(size)):
            got, seconds = receiver.stdout.readline().split()
    return int(got), float(seconds)


@pytest.fixture(scope="module")
def three() -> Iterator[Lab]:
    with lab(3, mbit=200) as found:
        yield found


@needs_hosts
def test_a_link_has_its_rate_and_its_counters_say_what_went_over_it(three: Lab) -> None:
    source, target, idle = three.hosts
    before = three.traffic()
    got, seconds = carry(source, target, 4_000_000)
    moved = [now.since(then) for now, then in zip(three.traffic(), before, strict=True)]
    assert got == 4_000_000
    if seconds > 1.1 * 4_000_000 / three.bytes_per_s:  # the machine was busy: a link is never faster than its rate, a process may be slower
        seconds = min(carry(source, target, 4_000_000)[1] for _ in range(3))
    assert 4_000_000 / seconds == pytest.approx(three.bytes_per_s, rel=0.1)
    assert 4_000_000 < moved[source.number].sent < 4_200_000
    assert 4_000_000 < moved[target.number].received < 4_200_000
    assert moved[idle.number].sent < 10_000


@needs_hosts
def test_a_host_receives_at_the_rate_too(three: Lab) -> None:
    """Two send to one: its own link is full, and each gets half."""
    listener = """
import socket, sys, threading, time
listener = socket.create_server((sys.argv[1], 5000))
print("listening", flush=True)
both = [listener.accept()[0] for _ in range(2)]
began = time.monotonic()
def read(there):
    while there.recv(1 << 20): pass
threads = [threading.Thread(target=read, args=(there,)) for there in both]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(time.monotonic() - began, flush=True)
"""
    target, first, second = three.hosts
    with start(target, listener, target.address) as receiver:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        with start(first, SENDER, target.address, "2000000"), start(second, SENDER, target.address, "2000000"):
            seconds = float(receiver.stdout.readline())
    assert seconds > 0.9 * 4_000_000 / three.bytes_per_s


@needs_hosts
def test_a_cable_is_pulled_and_put_back(three: Lab) -> None:
    source, target, _ = three.hosts
    with start(target, RECEIVER, target.address) as receiver:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        three.cut(target)
        with start(source, SENDER, target.address, "100000") as sender:
            time.sleep(0.5)
            assert sender.poll() is None, "nobody is told"
            assert receiver.poll() is None
            three.mend(target)
            assert receiver.stdout.readline().split()[0] == "100000"


PINGED = """
import socket, sys
listener = socket.create_server((sys.argv[1], 5000))
print("listening", flush=True)
there, _ = listener.accept()
while data := there.recv(100):
    there.sendall(data)
"""
PING = """
import socket, sys, time
there = socket.create_connection((sys.argv[1], 5000))
took = []
for _ in range(10):
    began = time.monotonic()
    there.sendall(b"x")
    there.recv(1)
    took.append(time.monotonic() - began)
print(min(took))
"""


@needs_hosts
def test_packets_are_held_and_the_rate_stays() -> None:
    with lab(3, mbit=200, delay_s=0.02) as far:
        source, target, idle = far.hosts
        with start(target, PINGED, target.address) as pinged:
            assert pinged.stdout is not None
            pinged.stdout.readline()
            there = subprocess.run(source.command([sys.executable, "-c", PING, target.address]), capture_output=True, text=True)
        assert float(there.stdout) == pytest.approx(0.04, rel=0.2)
        got, seconds = carry(source, target, 4_000_000)
        assert got == 4_000_000
        assert 4_000_000 / far.bytes_per_s < seconds < 2.0, "many packets are on their way at once: one window of 64 kB would take 2.5 s"
        assert far.traffic()[idle.number].received < 10_000, "a switch, not a hub"
        far.cut(target)
        far.mend(target)
        assert carry(source, target, 1000)[0] == 1000


@needs_hosts
def test_nothing_is_left_after_an_error_not_even_processes() -> None:
    before = standing()
    sleepers: list[subprocess.Popen[bytes]] = []

    def fail() -> None:
        with lab(2, mbit=100) as two:
            assert len(standing()) == len(before) + 3
            sleepers.append(subprocess.Popen(two.hosts[1].command(["sleep", "60"])))
            while Path(f"/proc/{sleepers[0].pid}/comm").read_text() != "sleep\n":
                time.sleep(0.01)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert standing() == before
    assert sleepers[0].wait(5) == -signal.SIGKILL


HOLDER = """
import sys, time
from dml_runner.bench.network import lab
with lab(2, mbit=100) as two:
    print(two.hosts[0].namespace, flush=True)
    time.sleep(60)
"""


def hold() -> tuple[subprocess.Popen[str], str]:
    """Another process with a laboratory, and the name of its first host."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    return holder, holder.stdout.readline().strip()


@needs_hosts
def test_nothing_is_left_after_a_signal_and_what_a_killed_command_left_is_swept() -> None:
    ended, first = hold()
    interrupted, second = hold()
    killed, third = hold()
    with ended, interrupted, killed:
        assert {first, second, third} < set(network._namespaces()), "laboratories do not collide"
        ended.send_signal(signal.SIGTERM)
        assert ended.wait(10) == 143
        interrupted.send_signal(signal.SIGINT)
        assert interrupted.wait(10) != 0
        assert not {first, second} & set(network._namespaces())
        sweep()
        assert third in network._namespaces(), "its command lives"
        killed.kill()
        killed.wait(10)
        assert third in network._namespaces()
        sweep()
        assert not [name for name in network._namespaces() if name.startswith(third.rpartition("-")[0])]


def test_who_cannot_have_hosts_is_told_why_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal() -> str:
        possible.cache_clear()
        with pytest.raises(LaunchError) as caught, lab(2, mbit=100):
            pass
        assert caught.value.exit_code == 4
        return str(caught.value)

    try:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr(shutil, "which", lambda tool: f"/sbin/{tool}")
        root = "needs root, which network namespaces are made with; try again with sudo"
        assert refusal() == f"network: hosts cannot be made on this machine; {root}"
        monkeypatch.setattr(shutil, "which", lambda tool: None)
        tools = "ip and tc not installed; on Debian: apt-get install iproute2"
        assert refusal() == f"network: hosts cannot be made on this machine; {tools}"
    finally:
        possible.cache_clear()


# --- the relay -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what it gets, and the end too."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        there, _ = listener.accept()
        with there:
            while data := there.recv(1 << 16):
                there.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()
    thread.join(5)
    listener.close()


def test_a_relay_holds_each_byte_and_keeps_the_bandwidth(echo: tuple[str, int]) -> None:
    delay = 0.05
    with relay(echo, delay) as there, socket.create_connection((there.host, there.port)) as mine:
        took = []
        for word in (b"once", b"again", b"and", b"once", b"more"):
            began = time.monotonic()
            mine.sendall(word)
            assert mine.recv(100) == word
            took.append(time.monotonic() - began)
        assert min(took) == pytest.approx(2 * delay, rel=0.2), "on a busy machine some take longer"
        began, size = time.monotonic(), 4_000_000

        def send() -> None:
            mine.sendall(bytes(size))
            mine.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        got = 0
        while data := mine.recv(1 << 20):
            got += len(data)
        seconds = time.monotonic() - began
        sender.join()
    assert got == size, "and the end of the stream came through"
    assert 2 * delay < seconds < 2 * delay + 1.0, "the delay is paid once, not once a chunk"


def hung_up(mine: socket.socket) -> bool:
    """Whether the other end closed the connection or broke it off."""
    mine.settimeout(5)
    try:
        return mine.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_relay_to_nobody_hangs_up_and_one_that_ends_lets_go(echo: tuple[str, int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = taken.getsockname()
    with relay(nobody, 0.0) as there, socket.create_connection((there.host, there.port)) as mine:
        assert hung_up(mine)
    with relay(echo, 60.0) as there:
        mine = socket.create_connection((there.host, there.port))
        mine.sendall(b"held for a minute")
        time.sleep(0.1)
    with mine:
        assert hung_up(mine)
