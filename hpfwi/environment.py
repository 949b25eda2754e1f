"""What a run or a bug report has to say about the machine and the software: versions and hardware, and no secrets."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "hpfwi",
    "numpy",
    "scipy",
    "torch",
    "numba",
    "deepwave",
    "ray",
    "zarr",
    "safetensors",
    "tensorboard",
    "pydantic",
    "segyio",
    "cupy-cuda12x",
    "cupy-cuda13x",
)

VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAY_ADDRESS",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_NTASKS",
)
"""The only environment variables that are ever written down: others may hold passwords."""


def environment(command: list[str] | None = None) -> dict[str, Any]:
    """Versions, hardware and settings that decide how a run goes, as JSON values.

    command     the arguments that started the run, kept so that its report can say how to repeat it
    """
    return {
        "command": None if command is None else shlex.join(command),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "memory_gib": _memory_gib(),
        "gpus": _gpus(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def environment_text(facts: dict[str, Any]) -> str:
    """The same as lines for people."""
    lines: list[tuple[str, Any]] = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [(f"{name}.{key}", item) for key, item in value.items()]
        elif isinstance(value, list):
            lines.append((name, "; ".join(str(item) for item in value) or "none"))
        elif value is not None:
            lines.append((name, value))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the checkout that this package is imported from, marked where files differ; None elsewhere."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return None if not commit else f"{commit}+changes" if changed else commit


def _output(*command: str) -> str:
    """What a command prints, or nothing where it is absent, fails or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    """Memory of the machine, cut by the limit of the control group."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        limit = "max"
    if limit.isdigit():
        memory = min(memory, int(limit))
    return round(memory / 2**30, 1)


def _gpus() -> list[str]:
    """One line per GPU, asked of the driver so that no context is created on any."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = "name,memory.total,driver_version"
    return _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader").splitlines()
