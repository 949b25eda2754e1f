"""What nvcc says of kernels: registers and spilled bytes of many instances of one source, compiled together."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

NUMBERS = {
    **{"BLOCK": 0, "CLUSTER": 1, "GRID": 2, "CHAIN": 3, "FORWARD": 0, "UNWIND": 1, "ADJOINT": 2, "false": 0, "true": 1},
    **{"CPML": 0, "SPONGE": 1, "NOTHING": 0, "FULL": 1, "HALF": 2},
}
"""The names that instances are written with."""
_SAID = re.compile(
    r"Compiling entry function '_Z(\d+)(\w+)' for '(sm_\d+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Resources:
    """What a thread of a kernel takes."""

    registers: int
    spilled: int
    """Bytes that are stored, or loaded, whichever are more."""


def require_nvcc() -> str:
    """The compiler; skips the test without it."""
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("needs nvcc")
    return compiler


def resources(
    compiler: str,
    code: str,
    instances: Sequence[str],
    parameters: str,
    architectures: Sequence[str],
    folder: Path,
    options: Sequence[str] = (),
) -> dict[tuple[str, str], Resources]:
    """Of every (architecture, instance). The first architecture is what the others' code is translated for, too.

    instances    template instances of kernels with these parameters
    """
    wanted = "".join(f"\ntemplate __global__ void {one}({parameters});" for one in instances)
    (folder / "all.cu").write_text(f"{code}{wanted}\n")
    virtual = architectures[0].replace("sm", "compute")
    targets = [word for one in architectures for word in ("-gencode", f"arch={virtual},code={one}")]
    like_cupy = ["-std=c++17", "-ftz=true", *options]
    command = [compiler, "-fatbin", *targets, *like_cupy, "-Xptxas", "-v", "all.cu", "-o", "all.fatbin"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    said = {}
    for length, rest, architecture, stores, loads, registers in _SAID.findall(done.stderr):
        name, mangled = rest[: int(length)], rest[int(length) :]
        arguments = tuple(map(int, re.findall(r"L[ib](\d+)E", mangled)))
        said[architecture, name, arguments] = Resources(int(registers), max(int(stores), int(loads)))
    found = {(target, one): said.get((target, *_numbered(one))) for target in architectures for one in instances}
    missing = [key for key, one in found.items() if one is None]
    assert not missing, f"nvcc said nothing of {missing}"
    return {key: one for key, one in found.items() if one is not None}


def _numbered(instance: str) -> tuple[str, tuple[int, ...]]:
    """A kernel's name, and what it is made for in numbers.

    >>> _numbered("rewind_2d<3, true>")
    ('rewind_2d', (3, 1))
    """
    name, _, rest = instance.rstrip(">").partition("<")
    return name, tuple(NUMBERS[word] if word in NUMBERS else int(word) for word in rest.split(", "))
