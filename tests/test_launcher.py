"""`launcher=torchrun`: its words, the hosts of a hostfile, real runs here and on hosts with a network between them."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import alive, dml, losses, marked_environment, on_ranks, read, rows, small, started, train, wait_for

from dml_runner import cli
from dml_runner.bench.network import Lab, lab, possible
from dml_runner.config import compose
from dml_runner.errors import ConfigError, LaunchError
from dml_runner.launch import interface
from dml_runner.launch.given import Given
from dml_runner.launch.hostfile import read_hosts
from dml_runner.launch.nodes import arrange

TORCHRUN = "launcher=torchrun"
DIVIDED = ("strategy=all_reduce", "train.global_batch=8")
SECRET = "squeamish-ossifrage"
needs_hosts = pytest.mark.skipif(possible() is not None, reason=str(possible()))


def write(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_text(text)
    return path


# --- words ---------------------------------------------------------------------------------------------------------------


def test_a_hostfile_is_hosts_and_comments(tmp_path: Path) -> None:
    hosts = read_hosts(write(tmp_path, "# two\nalpha slots=4\n\nme@10.0.0.7 # no slots\nfd00::1 slots=2\n"))
    assert [(host.name, host.address, host.slots) for host in hosts] == [
        ("alpha", "alpha", 4),
        ("me@10.0.0.7", "10.0.0.7", None),
        ("fd00::1", "fd00::1", 2),
    ]


def test_every_bad_line_of_a_hostfile_is_told_by_its_number(tmp_path: Path) -> None:
    path = write(tmp_path, "alpha slots=4\n-oProxyCommand=sh\nbeta slots=0\ngamma cores=2\nroot@alpha\ndelta\n")
    with pytest.raises(ConfigError) as refused:
        read_hosts(path)
    assert [str(problem) for problem in refused.value.problems] == [
        f"{path}:2: not the name of a host; got -oProxyCommand=sh; allowed HOST slots=N",
        f"{path}:3: slots must be a whole number >= 1; got beta slots=0; allowed HOST slots=N",
        f"{path}:4: cores=2 is not understood; got gamma cores=2; allowed HOST slots=N",
        f"{path}:5: alpha stands in line 1 already; got root@alpha; allowed HOST slots=N",
    ]
    for text, what in (("# nobody\n", "names no host"), ("\xff", "not the name of a host")):
        with pytest.raises(ConfigError, match=what):
            read_hosts(write(tmp_path, text))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_hosts(tmp_path / "nowhere")


def ranks(tmp_path: Path, text: str | None, *words: str) -> list[int]:
    """The ranks of each host of a job."""
    composed = compose([*small(tmp_path, TORCHRUN), *words])
    return [node.ranks for node in arrange(composed.run, None if text is None else write(tmp_path, text), composed.typed)]


def test_hosts_have_the_ranks_of_their_slots_or_of_the_hardware(tmp_path: Path) -> None:
    two = "hardware.devices_per_node=2"
    servers = ("strategy=parameter_server", "strategy.servers=3")
    assert ranks(tmp_path, None, DIVIDED[0], two) == [2]
    assert ranks(tmp_path, None, "strategy=single", two) == [1]
    assert ranks(tmp_path, "a slots=3\nb slots=3", DIVIDED[0]) == [3, 3]
    assert ranks(tmp_path, "a\nb", DIVIDED[0], two, "hardware.nodes=2") == [2, 2]
    assert ranks(tmp_path, "a slots=2", "strategy=single") == [1]
    assert ranks(tmp_path, None, *servers, two) == [5], "servers are beside the workers of one host"
    assert ranks(tmp_path, "a slots=5", *servers) == [5]
    assert ranks(tmp_path, "a slots=2\nb slots=2\nc slots=2\nd", *servers) == [2, 2, 2, 1], "and on the last of several"
    assert ranks(tmp_path, "a slots=2\nb slots=2\nc slots=1", servers[0], "strategy.helpers=1") == [2, 2, 1], "helpers take their place"
    assert ranks(tmp_path, "a slots=2\nb slots=2", *servers, "strategy.servers=2", "strategy.placement=colocated") == [2, 2]


@pytest.mark.parametrize(
    ("hosts", "words", "said"),
    [
        ("a\nb", ("hardware.nodes=3",), "hardware.nodes: FILE has 2 host(s) of workers; got 3; leave it out, or name as many"),
        ("a slots=2\nb slots=2", ("hardware.devices_per_node=4",), "FILE gives each host 2; got 4; leave it out, or give slots=N as many"),
        ("a slots=2\nb slots=3", (), "FILE: hosts of workers must have as many slots each; got a 2, b 3"),
        (None, ("hardware.nodes=2",), "hardware.nodes: launcher=torchrun without a hostfile has this machine alone; got 2; allowed 1"),
        ("a\nb", ("strategy=single",), "strategy: strategy=single has 1 rank, and FILE 2 hosts; choose a strategy that uses them"),
        (
            "a\nb slots=2",
            ("strategy=parameter_server",),
            "1 dedicated server(s) need hosts of their own: the last lines",
        ),
        ("a slots=1", ("strategy=parameter_server",), "strategy.servers: 1 dedicated server(s) leave no worker; got slots=1 in FILE"),
    ],
)
def test_hosts_that_are_not_what_was_typed_are_refused(tmp_path: Path, hosts: str | None, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(LaunchError) as refused:
        ranks(tmp_path, hosts, DIVIDED[0], *words)
    assert said.replace("FILE", str(tmp_path / "hosts")) in str(refused.value)
    assert refused.value.exit_code == 4


def test_given_ranks_are_workers_first_and_then_servers() -> None:
    servers = compose(["strategy=parameter_server", "strategy.servers=2"]).run.strategy
    workers = compose(["strategy=all_reduce"]).run.strategy
    assert Given(6, 6).workers(servers) == (1, 4)
    assert Given(6, 1).workers(servers) == (4, 1)
    assert Given(10, 4).workers(servers) == (2, 4)
    assert Given(6, 3).workers(workers) == (2, 3)
    with pytest.raises(LaunchError, match="leave 4 workers, which do not fill hosts of 3"):
        Given(6, 3).workers(servers)
    with pytest.raises(LaunchError, match="leave no worker"):
        Given(2, 2).workers(servers)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("launcher.env.LD_PRELOAD=x.so", "launcher.env: LD_PRELOAD decides which code runs, so no job can set it"),
        ("launcher.env.PYTHONPATH=x", "launcher.env: PYTHONPATH decides which code runs"),
        ("launcher.env.NCCL_NET_PLUGIN=x", "launcher.env: NCCL_NET_PLUGIN decides which code runs"),
        ("launcher.env.RANK=1", "launcher.env: RANK is set by the launcher itself"),
        ("launcher.env.A=[1]", "launcher.env: A must be text or a whole number"),
        ("launcher.env=1", "launcher.env: expected a mapping of keys; got 1"),
        ("launcher.port=70000", "launcher.port: out of range; got 70000; allowed >= 1 and <= 65535 or null"),
        ("launcher.hosts=x", "launcher.hosts: unknown key; did you mean launcher.hostfile?"),
    ],
)
def test_bad_words_of_the_launcher_are_refused(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", TORCHRUN, word]) == 2
    assert said in capsys.readouterr().err


def test_print_shows_the_command_of_each_host_and_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    monkeypatch.setenv("DML_REMOTE_SHELL", "ssh -p 2222")
    named = write(tmp_path, "alpha slots=2\nbeta slots=2")
    words = [*DIVIDED, TORCHRUN, f"launcher.hostfile={named}", "launcher.print=true"]
    words += ["launcher.env.WANDB_API_KEY=${oc.env:MY_TOKEN}", "launcher.env.NCCL_DEBUG=INFO", "launcher.interface=ib0"]
    assert cli.main(["train", *small(tmp_path, *words)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        f'ssh -p 2222 alpha \'cd {os.getcwd()} && env WANDB_API_KEY="$MY_TOKEN" NCCL_DEBUG=INFO GLOO_SOCKET_IFNAME=ib0 '
    )
    assert "-m torch.distributed.run --nnodes=2 --node-rank=0 --nproc-per-node=2 --master-addr=alpha --master-port=29500" in first
    assert "-m dml_runner train model=gpt_tiny" in first
    assert second.startswith("ssh -p 2222 beta ")
    assert "--node-rank=1 --nproc-per-node=2 --master-addr=alpha" in second
    assert SECRET not in first + second
    assert "launcher.print" not in first + second
    assert not (tmp_path / "run").exists()


def test_the_interface_that_leads_somewhere_is_known_without_a_tool() -> None:
    assert interface.leading_to("127.0.0.1") == "lo"
    assert interface.leading_to("no.such.host.invalid") is None
    assert "lo" in interface.names()


# --- on this machine -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ranks_of_torchrun_do_what_our_own_do(tmp_path: Path) -> None:
    environment, mark = marked_environment()
    hosts = write(tmp_path, "localhost slots=2")
    done = dml("train", *small(tmp_path, *DIVIDED, TORCHRUN, f"launcher.hostfile={hosts}", run="here"), env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("completed after 6 steps") == 1, "what the ranks say is shown"
    assert [each["rank"] for each in read(tmp_path / "here", "ranks.json")] == [0, 1]
    assert losses(tmp_path / "here") == losses(train(tmp_path, *DIVIDED, *on_ranks(2), run="local"))
    done = dml("train", *small(tmp_path, DIVIDED[0], "train.global_batch=9", TORCHRUN, f"launcher.hostfile={hosts}"), env=environment)
    assert done.returncode == 3, "a refusal keeps its code"
    assert done.stderr.startswith("train.global_batch: data ranks 2 = 2 does not divide it; got 9")
    assert done.stderr.count("\n") == 1
    assert alive(mark) == []


def ranks_of(run: Path, number: int) -> list[int]:
    """The processes of start ``number``, once they have met."""
    if (run / "ranks.json").stat().st_mtime < (run / "generations" / f"{number}.json").stat().st_mtime:
        return []
    return [each["pid"] for each in read(run, "ranks.json")]


@pytest.mark.slow
def test_signals_reach_the_ranks_and_nobody_outlives_the_command(tmp_path: Path) -> None:
    environment, mark = marked_environment()
    environment["MY_TOKEN"] = SECRET
    run, said = tmp_path / "run", {f"WANDB_API_KEY={SECRET}", "NCCL_DEBUG=WARN", "GLOO_SOCKET_IFNAME=lo", "NCCL_SOCKET_IFNAME=lo"}
    words = [*DIVIDED, "hardware.devices_per_node=2", TORCHRUN, "train.steps=100000", "train.eval_batches=2"]
    words += ["launcher.env.NCCL_DEBUG=WARN", "launcher.env.WANDB_API_KEY=${oc.env:MY_TOKEN}"]
    command = ["train", *small(tmp_path, *words)]

    with started(*command, env=environment) as process:
        pids = wait_for(lambda: rows(run) and ranks_of(run, 0))
        for pid in pids:
            assert said <= set(Path(f"/proc/{pid}/environ").read_text().split("\0"))
            assert SECRET not in Path(f"/proc/{pid}/cmdline").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    summary = read(run, "summary.json")
    assert summary["status"] == "interrupted"
    assert [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []
    assert alive(mark) == []

    with started(*command, env=environment) as process:
        wait_for(lambda: rows(run)[-1]["step"] > summary["steps"] + 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert read(run, "summary.json")["steps"] > summary["steps"], "the same words went on"

    with started(*command, env=environment) as process:
        os.kill(wait_for(lambda: ranks_of(run, 2))[1], signal.SIGKILL)
        assert process.wait(60) == 5
        assert process.stderr is not None
        assert f"rank 1, on host {socket.gethostname()}, was killed by SIGKILL" in process.stderr.read()
    assert alive(mark) == []

    with started(*command, env=environment) as process:
        wait_for(lambda: ranks_of(run, 3))
        process.kill()
        process.wait()
        assert alive(mark, 10) == [], "ranks end with whoever wanted them"


# --- on hosts with a network between them --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hosts() -> Iterator[Lab]:
    with lab(2, 1000.0) as made:
        yield made


def remote(folder: Path, made: Lab) -> dict[str, str]:
    """An environment whose remote shell reaches the hosts by their addresses, and one that hangs, and one that sees another disk."""
    script = folder / "shell"
    cases = "\n".join(f'{host.address}) shift; exec ip netns exec {host.namespace} "$@" ;;' for host in made.hosts)
    blind = f'hostname blind; mount -t tmpfs none {folder}/outputs; exec "$@"'
    script.write_text(
        f'#!/bin/sh\ncase "$1" in\n{cases}\nsilent) exec sleep 60 ;;\n'
        f"blind) shift; exec ip netns exec {made.hosts[1].namespace} unshare -u sh -c '{blind}' sh \"$@\" ;;\n"
        'esac\necho "connect to host $1 port 22: No route to host" >&2\nexit 255\n'
    )
    script.chmod(0o755)
    return {**os.environ, "DML_REMOTE_SHELL": str(script), "TORCH_CPP_LOG_LEVEL": "ERROR"}


@pytest.mark.slow
@needs_hosts
def test_a_job_on_two_hosts_is_the_job_on_one(tmp_path: Path, hosts: Lab) -> None:
    named = write(tmp_path, "\n".join(f"{host.address} slots=1" for host in hosts.hosts))
    words = small(tmp_path, *DIVIDED, TORCHRUN, f"launcher.hostfile={named}", run="outputs/hosts")
    done = dml("train", *words, env=remote(tmp_path, hosts))
    assert done.returncode == 0, done.stderr
    alone = train(tmp_path, "train.global_batch=8", run="alone")
    assert losses(tmp_path / "outputs" / "hosts") == pytest.approx(losses(alone), abs=1e-5)
    assert read(tmp_path / "outputs" / "hosts", "generations/0.json")["layout"]["nodes"] == 2
    assert hosts.traffic()[0].sent > 6 * 29_792 * 4, "the gradients went over the link"


@needs_hosts
@pytest.mark.parametrize(
    ("names", "word", "code", "said"),
    [
        (("HOST", "silent"), "launcher.wait_s=3", 4, "launcher.hostfile: host silent did not come within 3 s (launcher.wait_s)"),
        (("silent", "HOST"), "launcher.wait_s=3", 4, "launcher.hostfile: host silent did not come within 3 s (launcher.wait_s)"),
        (
            ("HOST", "away"),
            "launcher.wait_s=20",
            4,
            "launcher.hostfile: host away did not come: connect to host away port 22: No route to host",
        ),
        (("HOST", "OTHER"), "launcher.interface=ib0", 4, "launcher.interface: host OTHER has no such interface; got ib0; allowed lo, eth0"),
    ],
)
def test_a_host_that_is_not_there_is_named_in_time(
    tmp_path: Path, hosts: Lab, names: tuple[str, str], word: str, code: int, said: str
) -> None:
    there = {"HOST": hosts.hosts[0].address, "OTHER": hosts.hosts[1].address}
    named = write(tmp_path, "\n".join(there.get(name, name) for name in names))
    began = time.monotonic()
    done = dml("train", *small(tmp_path, *DIVIDED, TORCHRUN, f"launcher.hostfile={named}", word), env=remote(tmp_path, hosts))
    assert done.returncode == code, done.stderr
    assert said.replace("OTHER", there["OTHER"]) in done.stderr
    assert time.monotonic() - began < 15
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@needs_hosts
def test_a_server_has_a_host_of_its_own_and_a_pulled_cable_ends_the_run_in_time(tmp_path: Path, hosts: Lab) -> None:
    named = write(tmp_path, "\n".join(host.address for host in hosts.hosts))
    words = ["strategy=parameter_server", TORCHRUN, f"launcher.hostfile={named}", "train.steps=100000", "launcher.hang_floor_s=1"]
    with started("train", *small(tmp_path, *words), env=remote(tmp_path, hosts)) as process:
        wait_for(lambda: len(rows(tmp_path / "run")) > 2)
        assert [each["role"] for each in read(tmp_path / "run", "ranks.json")] == ["worker", "server"]
        hosts.cut(hosts.hosts[1])
        try:
            assert process.wait(30) == 5
        finally:
            hosts.mend(hosts.hosts[1])
        assert process.stderr is not None
        assert "stands still in step" in process.stderr.read()
    assert read(tmp_path / "run", "summary.json")["status"] == "failed"


@pytest.mark.slow
@needs_hosts
def test_a_host_without_a_way_and_one_that_does_not_see_the_run_are_named(tmp_path: Path, hosts: Lab) -> None:
    first = hosts.hosts[0].address
    (tmp_path / "outputs").mkdir()
    named = write(tmp_path, f"{first}\nblind")
    words = small(tmp_path, *DIVIDED, TORCHRUN, f"launcher.hostfile={named}", run="outputs/run")
    done = dml("train", *words, env=remote(tmp_path, hosts))
    assert done.returncode == 4, done.stderr
    assert f"run: host blind does not see what rank 0 wrote; got {tmp_path}/outputs/run; all hosts must share it" in done.stderr
    hosts.cut(hosts.hosts[1])
    try:
        named.write_text(f"{first}\n{hosts.hosts[1].address}")
        done = dml(
            "train", *small(tmp_path, *DIVIDED, TORCHRUN, f"launcher.hostfile={named}", "launcher.wait_s=3"), env=remote(tmp_path, hosts)
        )
    finally:
        hosts.mend(hosts.hosts[1])
    assert done.returncode == 4, done.stderr
    line = f"launcher.hostfile: host {hosts.hosts[1].address} does not reach {first}:29500, where the first host listens, within 3 s"
    assert done.stderr.startswith(line)
