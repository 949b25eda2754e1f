"""The batch script of a job of several nodes, and its way into SLURM's queue."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hpfwi_cluster.errors import StartFailed

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d\d))?(?::(?P<third>\d\d))?")


class SlurmJob(BaseModel):
    """What a job asks of SLURM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="job", pattern=r"^[\w.+-]+$", description="Name in the queue.")
    nodes: int = Field(default=1, ge=1, description="Nodes of the job.")
    gpus_per_node: int = Field(default=0, ge=0, description="GPUs on each node; each gets a worker.")
    cpus_per_node: int | None = Field(
        default=None, ge=1, description="CPUs on each node; none takes whole nodes, with all of theirs."
    )
    time: str = Field(default="1:00:00", description="Wall time: minutes, h:mm:ss or d-hh:mm:ss.")
    warn_s: int = Field(
        default=300, ge=30, le=65535, description="SIGUSR1 comes this long before the wall time, s: for a checkpoint."
    )
    partition: str | None = Field(default=None, pattern=r"^[\w.,-]+$", description="Partition of the cluster.")
    account: str | None = Field(default=None, pattern=r"^[\w.-]+$", description="Account that is charged.")
    interface: str | None = Field(default=None, pattern=r"^[\w.-]+$", description="Network interface, such as ib0.")
    extra: tuple[str, ...] = Field(default=(), description="Further options for sbatch, such as --constraint=a100.")
    requeue: bool = Field(
        default=True, description="Put the job back into the queue when it stops before its end or loses its head node."
    )

    @model_validator(mode="after")
    def _fit_for_a_script(self) -> Self:
        if not _TIME.fullmatch(self.time):
            raise ValueError(f"time = {self.time!r} is no time: write minutes, h:mm:ss or d-hh:mm:ss, such as 12:00:00")
        if (seconds := seconds_of(self.time)) <= self.warn_s:
            # The run would stop as it starts, and be queued again, for ever.
            raise ValueError(
                f"time = {self.time!r} is {seconds} s, and the run is told to stop warn_s = {self.warn_s} s before the "
                "end: ask for more time or for a later warning"
            )
        for option in self.extra:
            if not option.startswith("-") or not option.isprintable():
                raise ValueError(f"{option!r} is no option of sbatch: write --NAME=VALUE")
        return self


def seconds_of(time: str) -> int:
    """A wall time as SLURM reads it: minutes, m:ss, h:mm:ss, d-h, d-hh:mm or d-hh:mm:ss.

    >>> [seconds_of(time) for time in ("90", "12:30", "1:00:00", "2-12", "1-00:30", "1-00:00:01")]
    [5400, 750, 3600, 216000, 88200, 86401]
    """
    match = _TIME.fullmatch(time)
    assert match is not None  # a SlurmJob has no other
    first, second, third = (int(match[name] or 0) for name in ("first", "second", "third"))
    if match["days"] is not None:
        return ((int(match["days"]) * 24 + first) * 60 + second) * 60 + third
    if match["third"] is not None:
        return (first * 60 + second) * 60 + third
    return first * 60 + second


def script(job: SlurmJob, folder: Path, program: Sequence[str], *, where: Path, python: str = sys.executable) -> str:
    """Return the batch script that runs a program on the first node of a Ray cluster over all nodes of the job.

    folder      of the job, shared by all nodes; the log goes there too
    where       folder in which the program starts
    program     its exit code is the job's; 75 asks to be put back into the queue
    """
    options = {
        "--job-name": job.name,
        "--nodes": job.nodes,
        "--ntasks-per-node": 1,
        "--gpus-per-node": job.gpus_per_node or None,
        "--cpus-per-task": job.cpus_per_node,
        "--time": job.time,
        "--signal": f"USR1@{job.warn_s}",
        "--partition": job.partition,
        "--account": job.account,
        "--output": folder / "log-%j.txt",
        "--open-mode": "append",
    }
    flags = [
        *([] if job.cpus_per_node else ["--exclusive"]),
        # A lost node costs the items it computed, not the job.
        "--no-kill",
        "--requeue" if job.requeue else "--no-requeue",
        *job.extra,
    ]
    asked = [f"{name}={value}" for name, value in options.items() if value is not None] + flags
    launch = [python, "-m", "hpfwi_cluster.launch", "--job", str(folder)]
    launch += [] if job.interface is None else ["--interface", job.interface]
    cpus = "" if job.cpus_per_node is None else f" --cpus-per-task={job.cpus_per_node}"
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in asked),
        "",
        f"cd {shlex.quote(str(where))} || exit 2",
        "export RAY_USAGE_STATS_ENABLED=0",
        f"folder={shlex.quote(str(folder))}",
        'exit_file="$folder/exit-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"',
        "",
        "# One launcher on each node. It hands SIGUSR1 on to the program, makes the token of this job's Ray cluster,",
        "# and ends what it started; nothing else of yours on these nodes is touched.",
        # A step inherits neither the number of CPUs per task nor a binding that leaves the workers more than one.
        f"srun --ntasks-per-node=1{cpus} --cpu-bind=none --no-kill --kill-on-bad-exit=0 --wait=0 \\",
        f"  {shlex.join(launch)} -- \\",
        f"  {shlex.join(program)}",
        "code=$?",
        "",
        "# The program's own exit code: srun's is that of whichever node ended worst.",
        '[ -f "$exit_file" ] && code=$(cat "$exit_file")',
    ]
    if job.requeue:
        lines += ['[ "$code" -eq 75 ] && scontrol requeue "$SLURM_JOB_ID"']
    return "\n".join([*lines, 'exit "$code"', ""])


def submit(file: Path) -> str:
    """Hand a batch script to SLURM; return what it says.

    raises  StartFailed: there is no SLURM here, or it refuses
    """
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise StartFailed(
            f"There is no sbatch on this machine: run this where SLURM is, or take {file} there and `sbatch` it."
        )
    done = subprocess.run([sbatch, str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise StartFailed(f"sbatch refused {file} with {done.returncode}: {said or 'it said nothing'}.")
    return " ".join(done.stdout.split())
