"""A batch job on GPUs from its script to its workers: SLURM and GPUs are stand-ins, Ray and the launcher are not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hpfwi_cluster import launch
from hpfwi_cluster.ray_node import command_of
from hpfwi_cluster.slurm import SlurmJob, script

GPUS = 2

PROGRAM = """
    import os, pathlib, sys, time
    import numpy as np
    from hpfwi_cluster import ClusterSettings, ItemResult
    from hpfwi_cluster.group import RayGroup
    from hpfwi_cluster.ray_library import ray

    class Tells:
        def begin(self, iteration): pass
        def compute(self, item):
            time.sleep(0.1)
            gpus = [float(number) for number in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
            return ItemResult(np.ones(1), {"pid": float(os.getpid()), "gpus": float(len(gpus)), "gpu": sum(gpus)})
        def finish(self, iteration, total): pass
        def state(self): return {"nothing": np.zeros(1)}
        def load_state(self, state): pass

    settings = ClusterSettings(workers=WORKERS, device="cuda", replica_check_every=None).placed(0)
    with RayGroup(Tells, workers=WORKERS, threads_per_worker=1, settings=settings) as group:
        told = group.run(0, range(8), [1.0] * 8).scalars.values()
        offered = ray.cluster_resources()
    print("offered", offered["CPU"], offered["GPU"])
    print("workers", sorted({(one["pid"], one["gpus"], one["gpu"])[1:] for one in told}), len({o["pid"] for o in told}))
"""

SRUN = """
    #!/bin/bash
    while [ "${1:0:2}" = -- ]; do echo "srun $1"; shift; done
    export SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_CPUS_ON_NODE=3 SLURM_GPUS_ON_NODE=GPUS
    exec "$@"
"""
"""The step's only task. SLURM would tell it its share of the node like this."""


def test_a_node_offers_the_gpus_that_slurm_gave_it(tmp_path: Path) -> None:
    slurm = {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_ON_NODE": "16", "SLURM_NTASKS": "3", "SLURM_PROCID": "2"}
    job, _ = launch._arguments(["--job", str(tmp_path), "--", "program"], slurm)
    assert (job.rank, job.nodes, job.cpus, job.gpus) == (2, 3, 16, 4)
    assert {"--num-cpus=16", "--num-gpus=4"} <= set(command_of(job.plan("10.0.0.1:20000", "10.0.0.3")))
    alone, _ = launch._arguments(["--job", str(tmp_path), "--", "program"], slurm | {"SLURM_GPUS_ON_NODE": ""})
    assert alone.gpus is None
    assert not [word for word in command_of(alone.plan("10.0.0.1:20000", "10.0.0.3")) if "gpus" in word]


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_every_worker_of_a_job_has_a_gpu_to_itself(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM).replace("WORKERS", str(GPUS)))
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(textwrap.dedent(SRUN).lstrip().replace("=GPUS", f"={GPUS}"))
    srun.chmod(0o755)
    job = SlurmJob(nodes=1, gpus_per_node=GPUS, cpus_per_node=3, requeue=False)
    text = script(job, tmp_path / "job", [sys.executable, str(program)], where=tmp_path)
    assert f"#SBATCH --gpus-per-node={GPUS}\n" in text
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_", "CUDA_"))}
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "OMP_NUM_THREADS": "1", "PATH": f"{srun.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", text], env=kept | slurm, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "srun --cpus-per-task=3" in done.stdout
    assert f"offered 3.0 {GPUS}.0" in done.stdout
    assert f"workers {[(1.0, float(number)) for number in range(GPUS)]} {GPUS}" in done.stdout
