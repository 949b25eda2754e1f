"""The launcher on processes that stand for a job's nodes, with stand-ins for Ray: what it starts, tells, and ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpfwi_cluster import launch, ray_node
from hpfwi_cluster.errors import StartFailed
from hpfwi_cluster.ray_node import NodePlan, command_of, descendants, end_processes

LAUNCHER = """
    import os, sys
    from hpfwi_cluster import launch, ray_node
    from hpfwi_cluster.addresses import own_address

    def stand_in(plan):
        return [sys.executable, STAND_IN, plan.head if plan.is_head else "", os.environ.get("RAY_LIVES_S", "60")]

    ray_node.command_of = stand_in
    launch.own_address = lambda interface=None, toward=None: os.environ["OWN_HOST"]
    launch.is_loopback = lambda host: False
    launch._HEADLESS_S, launch._HEAD_CHECK_S, launch._LAST_WORD_S = 1.0, 0.2, 1.0
    sys.exit(launch.main())
"""

STAND_IN = """
    import os, socket, subprocess, sys, time
    head, lives_s = sys.argv[1:]
    if head:
        host, port = head.split(":")
        server = socket.create_server((host, int(port)))
    # Part of Ray outlives its parent when that is killed.
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    if os.environ.get("RAY_STARTS", "yes") == "yes":
        print("Ray runtime started.", flush=True)
    print("words of the stand-in", flush=True)
    time.sleep(float(lives_s))
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a node's launcher with a Python program to run; nothing is left afterwards."""
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(textwrap.dedent(STAND_IN))
    code = textwrap.dedent(LAUNCHER).replace("STAND_IN", repr(str(stand_in)))
    started: list[subprocess.Popen[str]] = []

    def start(rank: int, program: str = "", *, nodes: int = 2, **variables: str) -> subprocess.Popen[str]:
        slurm = {"SLURM_PROCID": rank, "SLURM_NTASKS": nodes, "SLURM_JOB_ID": 7, "SLURM_CPUS_ON_NODE": 3}
        environment = os.environ | {name: str(value) for name, value in slurm.items()} | {"OWN_HOST": "127.0.0.1"}
        environment.pop("RAY_AUTH_MODE", None)
        arguments = ["--job", str(tmp_path / "job"), "--temporary", str(temporary(rank))]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *arguments, "--", sys.executable, "-c", textwrap.dedent(program)],
                env=environment | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        end_processes([process.pid, *descendants(process.pid)], 5.0)
        process.communicate()
    for rank in range(2):
        shutil.rmtree(temporary(rank), ignore_errors=True)


def temporary(rank: int) -> Path:
    return Path(f"/tmp/t{os.getpid()}-{rank}")


def output(process: subprocess.Popen[str], code: int) -> str:
    said, _ = process.communicate(timeout=30)
    assert process.returncode == code, said
    return said


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_a_job_of_two_nodes(start: Start, tmp_path: Path) -> None:
    """The program finds its cluster and its token; its exit code is the job's; nothing of the job is left."""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "ray start --block"])
    program = """
        import os, pathlib, sys, time
        token = pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        names = [name for name in os.environ if name == "RAY_AUTH_TOKEN"]
        print(os.environ["RAY_ADDRESS"], os.environ["RAY_AUTH_MODE"], oct(token.stat().st_mode), names)
        secret = token.read_bytes()
        assert len(secret) == 64
        told = [p for p in pathlib.Path("/proc").glob("[0-9]*/cmdline") if secret in p.read_bytes()]
        print("in arguments:", told, flush=True)
        while not pathlib.Path(sys.argv[1] if sys.argv[1:] else os.environ["GO_ON"]).exists():
            time.sleep(0.02)
        sys.exit(3)
    """
    go_on = tmp_path / "go_on"
    head = start(0, program, GO_ON=str(go_on), RAY_AUTH_TOKEN="another")
    other = start(1)
    # On the head a stand-in for Ray, its child and the program; on the other a stand-in and its child.
    until(lambda: (len(descendants(head.pid)), len(descendants(other.pid))) == (3, 2))
    inside = descendants(head.pid) + descendants(other.pid)
    address = json.loads((tmp_path / "job" / "head-7-0.json").read_text())["address"]
    secret = (tmp_path / "job" / "token-7-0").read_text()
    go_on.touch()
    said = output(head, 3)
    told = output(other, 0)
    assert f"{address} token 0o100600 []" in said
    assert "in arguments: []" in said
    assert secret not in said + told
    assert "The program has ended." in told
    assert (tmp_path / "job" / "exit-7-0").read_text() == "3\n"
    assert not (tmp_path / "job" / "token-7-0").exists()
    assert [pid for pid in inside if Path(f"/proc/{pid}").exists()] == []
    assert not temporary(0).exists()
    assert not temporary(1).exists()
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_warning_reaches_the_program_once(number: signal.Signals, start: Start, tmp_path: Path) -> None:
    """The other nodes stay while the program writes its checkpoint."""
    program = f"""
        import pathlib, signal, sys, time
        heard = []
        signal.signal({int(number)}, lambda *_: heard.append(1))
        pathlib.Path({str(tmp_path / "ready")!r}).touch()
        while not heard:
            time.sleep(0.02)
        time.sleep(0.5)
        print("heard", len(heard), flush=True)
        sys.exit(75)
    """
    head, other = start(0, program), start(1)
    until(lambda: (tmp_path / "ready").exists() and len(descendants(other.pid)) == 2)
    other.send_signal(number)
    head.send_signal(number)
    assert "heard 1" in output(head, 75)
    output(other, 0)


def test_a_node_joins_again_and_gives_up(start: Start) -> None:
    """A node whose Ray dies starts it again three times, and then leaves the job without failing it."""
    head = start(0, "import time; time.sleep(30)")
    said = output(start(1, RAY_LIVES_S="0.1"), 0)
    assert said.count("joining again") == 3
    assert "died 4 times, the last time with: words of the stand-in" in said
    head.send_signal(signal.SIGUSR1)
    assert "died of SIGUSR1, before it could heed it" in output(head, 75)


def test_a_program_that_kills_itself(start: Start) -> None:
    output(start(0, "import os; os.kill(os.getpid(), 15)", nodes=1), 128 + signal.SIGTERM)


def test_a_dead_head_ends_the_program(start: Start) -> None:
    head = start(0, "import time; time.sleep(30)", nodes=1, RAY_LIVES_S="0.5")
    said = output(head, 75)
    assert "Ray on the head node has died (words of the stand-in)" in said


def test_a_head_that_does_not_start(start: Start, tmp_path: Path) -> None:
    """Ray gives up on a busy machine: it is started again, and the program not before it runs."""
    said = output(start(0, "print('ran')", nodes=1, RAY_LIVES_S="0.3", RAY_STARTS="no"), 5)
    assert said.count("did not start at 127.0.0.1:") == 3
    assert "did not start in 3 attempts; the last one said: words of the stand-in." in said
    assert "ran" not in said
    assert not temporary(0).exists()
    assert (tmp_path / "job" / "exit-7-0").read_text() == "5\n"
    assert not (tmp_path / "job" / "token-7-0").exists()


def test_a_launcher_that_is_killed_takes_along_what_it_started(start: Start, tmp_path: Path) -> None:
    program = f"import pathlib, time; pathlib.Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(60)"
    head = start(0, program, nodes=1)
    until((tmp_path / "ready").exists)
    children = [
        pid for pid in descendants(head.pid) if Path(f"/proc/{pid}/stat").read_text().split()[3] == str(head.pid)
    ]
    assert len(children) == 2
    head.kill()
    head.wait()
    until(lambda: not [pid for pid in children if running(pid)])


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_no_cluster_without_a_token(start: Start) -> None:
    said = output(start(0, "print('ran')", nodes=1, RAY_AUTH_MODE="disabled"), 5)
    assert "RAY_AUTH_MODE=disabled asks for a Ray cluster without a token" in said
    assert "ran" not in said


def test_nodes_that_only_reach_themselves_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "own_address", lambda interface: "127.0.0.1")
    monkeypatch.setattr(launch, "RayNode", None)
    job, program = launch._arguments(["--job", str(tmp_path), "--nodes", "2", "--", "true"], {})
    with pytest.raises(StartFailed, match=r"no address that the other 1 nodes reach \(127.0.0.1\).*--interface"):
        launch.lead(job, program, {})


def test_a_program_that_is_not_there(start: Start, tmp_path: Path) -> None:
    job, _ = launch._arguments(["--job", str(tmp_path), "--", "x"], {"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "2"})
    assert job.exit.name == "exit-12-2"
    with pytest.raises(StartFailed, match=r"no-such-program cannot be run .* name a program that is on node 0"):
        launch._run(job, ["no-such-program"], {}, None, [])  # type: ignore[arg-type]


def plan(head: bool) -> NodePlan:
    return NodePlan("10.0.0.1:25000", "10.0.0.2", head, 4, 2, 100, Path("/tmp/x"), Path("/shared/token"))


def test_the_command_of_a_node_holds_no_secret_and_no_fixed_port() -> None:
    head, other = command_of(plan(True)), command_of(plan(False))
    assert {"--head", "--port=25000", "--include-dashboard=false", "--num-gpus=2"} <= set(head)
    assert {"--address=10.0.0.1:25000", "--node-ip-address=10.0.0.2", "--min-worker-port=0"} <= set(other)
    assert not [word for word in head + other if "token" in word or "dashboard=true" in word]


def test_a_temporary_folder_whose_sockets_would_have_too_long_names() -> None:
    ray_node.check_temporary(Path("/tmp/r0-123456"))
    with pytest.raises(StartFailed, match=r"names of \d+ characters, the system takes 107: give a folder of at most"):
        ray_node.check_temporary(Path("/scratch/" + "a" * 40))
