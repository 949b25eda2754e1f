"""The processes of `gpu.py`: each can hang or die on a GPU, and takes nothing else with it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
CASE_S, READY_S = 900, 300
AT_ONCE = 8
"""Cases that get ready at the same time, where there are as many cores."""
LEAST_S = 20
"""What is not begun with less time left."""


def environment() -> dict[str, str]:
    """This process' environment with the kernels on Python's path."""
    path = os.pathsep.join([str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


def finished(command: Sequence[str], limit_s: float) -> tuple[int, str]:
    """Exit status and output of a command; 124 where it took longer than the limit."""
    return finished_together([command], limit_s)[0]


def finished_together(commands: Sequence[Sequence[str]], limit_s: float) -> list[tuple[int, str]]:
    """The same of several commands that run at the same time. What a command has started ends with it."""
    ends = time.monotonic() + limit_s
    with contextlib.ExitStack() as stack:
        running = []
        for command in commands:
            output = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment(), cwd=ROOT, start_new_session=True
            )
            stack.callback(_ended, process)
            running.append((process, output))
        results = []
        for process, output in running:
            note = ""
            try:
                status = process.wait(max(0.0, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                status, note = 124, f"\nstopped after {limit_s:.0f} s"
                _ended(process)
            output.seek(0)
            results.append((status, output.read().decode(errors="replace") + note))
    return results


def _ended(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin:
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver that hangs keeps it
        process.wait(10)


def limited(most_s: float, left_s: float, share: float) -> float:
    """Time that one thing may take: a share of what is left, so that one that hangs leaves the others some.

    >>> limited(900, 540, 1 / 3), limited(900, 90, 1 / 3), limited(900, 30, 1 / 3)
    (180.0, 60.0, 30)
    """
    return min(most_s, left_s, max(60.0, share * left_s))


@dataclass(frozen=True)
class Running:
    """A case in a process of its own."""

    name: str
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    out: Path
    """Of its result."""

    @property
    def waits(self) -> bool:
        """Whether it is checked and compiled, and waits to be timed, or has ended."""
        return self.out.with_suffix(".ready").exists() or self.process.poll() is not None

    def failed(self, why: str = "") -> dict[str, Any]:
        """Its last words; the launches before them say where it was."""
        _ended(self.process)
        self.output.seek(0)
        output = self.output.read().decode(errors="replace")
        lines = [line for line in output.splitlines() if line.strip()]
        last = why or (lines[-1] if lines else f"exit status {self.process.returncode}")
        return {"case": self.name, "failed": last, "output": output[-20000:]}


def run_cases(
    names: Sequence[str], repeats: int, folder: Path, left_s: Callable[[], float]
) -> Iterator[dict[str, Any]]:
    """Every case's result, or why there is none, in order."""
    size = max(1, min(AT_ONCE, os.cpu_count() or 1))
    for first in range(0, len(names), size):
        group = names[first : first + size]
        if left_s() < LEAST_S:
            yield from ({"case": name, "left out": "no time is left"} for name in group)
            continue
        with contextlib.ExitStack() as stack:
            outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in group]
            running = [
                _begun(name, folder / f"{first + k}.json", repeats, output)
                for k, (name, output) in enumerate(zip(group, outputs, strict=True))
            ]
            for one in running:
                stack.callback(_ended, one.process)
            limit_s = limited(READY_S, left_s(), 1 / 2)
            ends = time.monotonic() + limit_s
            print(f"getting ready: {', '.join(group)}", flush=True)
            while time.monotonic() < ends and not all(one.waits for one in running):
                time.sleep(0.1)
            late = [one.failed(f"not ready after {limit_s:.0f} s") for one in running if not one.waits]
            for one in running:
                told = next((result for result in late if result["case"] == one.name), None)
                yield told or timed(one, left_s)


def _begun(name: str, out: Path, repeats: int, output: IO[bytes]) -> Running:
    told = ["--one", name, "--repeats", str(repeats), "--out", str(out)]
    command = [sys.executable, "-u", str(SCRIPT), *told]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment(), cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip
    return Running(name, process, output, out)


def timed(one: Running, left_s: Callable[[], float]) -> dict[str, Any]:
    """Have a case that is ready go on, alone."""
    limit_s = limited(CASE_S, left_s(), 1 / 3)
    if one.process.poll() is not None:
        return one.failed()
    if limit_s < LEAST_S:
        return {"case": one.name, "left out": "no time is left"}
    print(f"case {one.name}", flush=True)
    assert one.process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it has just ended
            one.process.stdin.close()
        status = one.process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return one.failed(f"stopped after {limit_s:.0f} s")
    if status == 0 and one.out.exists():
        return {"case": one.name, **json.loads(one.out.read_text("utf-8"))}
    return one.failed()
