"""A conversion killed at any point leaves a whole store, or one that is named unfinished and finished by a repeat."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpfwi.store.openfwi import PairStore, open_pairs
from hpfwi.store.openfwi_files import open_openfwi
from hpfwi.store.pair_check import verify_pairs

# One process imports everything and forks a child for each conversion: a killed child costs milliseconds, not seconds.
PROGRAM = """
import functools, json, os, random, signal, sys, time, zarr.codecs
from pathlib import Path
from hpfwi.errors import DataError
from hpfwi.store.convert import convert
from hpfwi.store.openfwi import open_pairs
from hpfwi.store.openfwi_files import open_openfwi

source, folder, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
CHANGES = ("rename", "replace", "fsync", "unlink", "rmdir")

def dies_at(point):
    "Kill this process just before change number `point` that it makes to the disk."
    left = [point]
    def counted(change):
        @functools.wraps(change)
        def guarded(*arguments, **options):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return change(*arguments, **options)
        return guarded
    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))

def start(out, prepare=lambda: None):
    pid = os.fork()
    if pid == 0:
        prepare()
        pairs = open_openfwi(source, partial=True, records_shape=(2, 20, 6), model_shape=(5, 6))
        shard_samples, threads = (25, 1) if mode == "points" else (2, 2)
        convert(pairs, out, shard_samples=shard_samples, threads=threads, made_by="this again")
        os._exit(0)
    return pid

def ended(pid):
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)

def state(out):
    "What is there, and what a reader is told."
    names = sorted(path.name for path in out.parent.iterdir() if path.name.startswith(out.name))
    try:
        open_pairs(out)
        return names, "whole"
    except DataError as error:
        return names, str(error)

seen = []
if mode == "points":
    while not seen or seen[-1][0] == 9:
        out = folder / f"{len(seen)}.zarr"
        code = ended(start(out, functools.partial(dies_at, len(seen))))
        seen.append((code, *state(out), ended(start(out))))
else:
    out, draw = folder / "0.zarr", random.Random(5)
    def whole():
        return len(list(folder.glob("0.zarr*/done/*.json")))
    while not seen or seen[-1][0] == 9:
        # The time is counted in shards, so that a slow machine sees the same kills.
        goal = whole() + draw.randint(0, 4)
        pid = start(out)
        while whole() < goal and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.0005)
        time.sleep(draw.uniform(0.0, 0.004))
        os.kill(pid, signal.SIGKILL)
        seen.append((ended(pid), *state(out), whole()))
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FlatVel-A with three samples in each of 15 pairs of files."""
    folder = tmp_path_factory.mktemp("published") / "FlatVel_A"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(1, 16):
        np.save(folder / f"data{number}.npy", random.normal(size=(3, 2, 20, 6)).astype(np.float32))
        np.save(folder / f"model{number}.npy", random.uniform(1500, 4500, (3, 1, 5, 6)).astype(np.float32))
    return folder


def killed(source: Path, folder: Path, mode: str) -> list[list[Any]]:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(source), str(folder), mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return list(json.loads(done.stdout))


def is_right(store: PairStore, source: Path) -> bool:
    """Whether a store holds every sample of the source once, in its place, and nothing else."""
    pairs = open_openfwi(source, partial=True, records_shape=(2, 20, 6), model_shape=(5, 6))
    records, models = pairs.read(range(45))
    found = store.read(range(store.samples))
    return (
        np.array_equal(found[0], records)
        and np.array_equal(found[1], models)
        and verify_pairs(store.path, dict(store.manifest)) == []
        and sorted(path.name for path in store.path.iterdir()) == ["models", "records", "zarr.json"]
        and not list(store.path.rglob(".*"))
    )


@pytest.mark.slow
def test_killed_before_every_change_to_the_disk(source: Path, tmp_path: Path) -> None:
    seen = killed(source, tmp_path, "points")
    assert [code for code, *_ in seen[:-1]] == [9] * (len(seen) - 1)
    assert seen[-1][0] == 0
    assert len(seen) > 2 * 9  # of each shard: two files and the note, each flushed, named, its folder flushed
    said = {"nothing": 0, "unfinished": 0, "whole": 0}
    for number, (_, names, sentence, code) in enumerate(seen):
        name = f"{number}.zarr"
        if sentence == "whole":
            assert names == [name]
            said["whole"] += 1
        elif names:
            assert names == [f"{name}.part"]
            assert "of 2 shards whole: start `this again` again, and it goes on from there." in sentence
            said["unfinished"] += 1
        else:
            assert sentence.startswith(f"{tmp_path / name} does not exist")
            said["nothing"] += 1
        assert code == 0
        assert not list(tmp_path.glob(f".{name}*"))
        assert is_right(open_pairs(tmp_path / name), source)
    assert min(said.values()) >= 2, said


@pytest.mark.slow
def test_killed_at_random_times_until_it_is_done(source: Path, tmp_path: Path) -> None:
    seen = killed(source, tmp_path, "random")
    whole = [count for code, _, sentence, count in seen if sentence != "whole"]
    assert whole == sorted(whole)  # what was whole stays so
    assert all(sentence == "whole" or "unfinished" in sentence or "not exist" in sentence for _, _, sentence, _ in seen)
    assert seen[-1][2] == "whole"
    assert [code for code, *_ in seen].count(9) >= 3
    assert is_right(open_pairs(tmp_path / "0.zarr"), source)
