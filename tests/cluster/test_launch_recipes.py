"""The files of cluster/deploy: what they start is what the product would, and no secret stands in them."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from hpfwi_cluster.ray_node import _QUICK
from hpfwi_cluster.slurm import SlurmJob, script

DEPLOY = Path(__file__).parents[2] / "cluster" / "deploy"


def test_the_batch_script_is_what_submit_writes() -> None:
    job = SlurmJob(name="run", nodes=8, gpus_per_node=4, time="12:00:00")
    where = Path("/shared/work")
    folder = where / "runs" / "run.job"
    program = ["python", "-m", "hpfwi", "cluster", "work", str(folder)]
    assert (DEPLOY / "slurm.sh").read_text() == script(job, folder, program, where=where, python="python")


def test_the_kubernetes_job() -> None:
    job: Any = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    pods = [cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]]
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert mounts["shared-memory"] == "/dev/shm"
        assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"
        assert set(mounts) == set(volumes)
        assert container["resources"]["requests"] == container["resources"]["limits"]
    # One worker for each GPU.
    (group,) = cluster["workerGroupSpecs"]
    gpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert job["spec"]["entrypoint"].count(f"--workers {group['replicas'] * gpus}") == 2


@pytest.mark.parametrize(
    ("done", "begun", "runs"),
    [
        (False, False, "invert run.toml --name run --set cluster.device=cuda"),
        (False, True, "resume runs/run"),
        (True, True, ""),
    ],
)
def test_what_the_kubernetes_job_runs(done: bool, begun: bool, runs: str, tmp_path: Path) -> None:
    """Its command in a folder that stands for the volume, with a stand-in for the command it calls."""
    entrypoint = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())["spec"]["entrypoint"]
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    for name, there in (("done.json", done), ("config.toml", begun), ("lock", begun)):
        if there:
            (run / name).touch()
    (tmp_path / "hpfwi").write_text(f"#!/bin/sh\necho $@ > {tmp_path}/asked\nexit 75\n")
    (tmp_path / "hpfwi").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = entrypoint.replace("/work", str(tmp_path))
    ended = subprocess.run(["sh", "-c", command], env=environment, check=False)
    assert ended.returncode == (75 if runs else 0)
    asked = (tmp_path / "asked").read_text() if runs else ""
    assert asked == (f"{runs} --workers 16\n" if runs else "")
    assert (run / "lock").exists() is (done and begun)


def test_the_recipe_for_machines_of_ones_own(tmp_path: Path) -> None:
    file = DEPLOY / "ray_start.sh"
    text = file.read_text()
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0
    for name in ("period_ms", "failure_threshold", "timeout_ms"):
        assert f"RAY_health_check_{name}={_QUICK[f'RAY_health_check_{name}']}" in text
    for tool in ("ray", "ip", "hpfwi"):
        answer = "echo 10.0.0.1 dev eth0 src 10.0.0.7 uid 0" if tool == "ip" else f'echo {tool} "$@"; env | grep RAY_'
        (tmp_path / tool).write_text(f"#!/bin/bash\n{answer}\n")
        (tmp_path / tool).chmod(0o755)
    environment = os.environ | {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def said(*arguments: str) -> str:
        done = subprocess.run(
            ["bash", str(file), *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == (0 if arguments else 2)
        return done.stdout

    assert said() == said("token") == ""
    token = tmp_path / ".hpfwi-token"
    assert (stat.S_IMODE(token.stat().st_mode), len(token.read_text())) == (0o600, 64)
    head, node, run = said("head"), said("node"), said("run", "hpfwi", "invert", "run.toml")
    assert "ray start --head --port=25000 --include-dashboard=false --block --node-ip-address=10.0.0.7" in head
    assert "ray start --address=10.0.0.1:25000 --block --node-ip-address=10.0.0.7" in node
    assert "hpfwi invert run.toml\n" in run
    assert "RAY_ADDRESS=10.0.0.1:25000" in run
    for output in (head, node, run):
        assert "RAY_AUTH_MODE=token" in output
        assert f"RAY_AUTH_TOKEN_PATH={token}" in output
        assert token.read_text() not in output
