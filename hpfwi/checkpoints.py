"""Checkpoints of a run: what it needs to go on, written so that a kill at any moment leaves the one before intact.

    checkpoints/iteration-00000120/tensors.safetensors     the arrays
    checkpoints/iteration-00000120/manifest.json           iteration, meta, sha256 of the tensors and of itself

A checkpoint is prepared under a temporary name, its files and their folder are flushed to the disk, and only then does
it get its name. The two latest and the one with the lowest `meta["score"]` are kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpfwi.errors import CheckpointError

FORMAT_VERSION = 1
KEPT_LATEST = 2
_TENSORS = "tensors.safetensors"
_MANIFEST = "manifest.json"
_NAME = re.compile(r"iteration-(\d{8,})(?:-again(\d+))?")
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint read back and verified.

    tensors     the arrays as they were saved: same names, shapes, dtypes and bits
    meta        what the run stored beside them (JSON values)
    skipped     one sentence for each later checkpoint that was damaged and passed over
    """

    iteration: int
    tensors: dict[str, np.ndarray]
    meta: dict[str, Any]
    path: Path
    skipped: tuple[str, ...] = ()


def save(folder: Path, iteration: int, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Path:
    """Write the checkpoint of `iteration` into `folder` and return its path.

    tensors     arrays of any shape, in a dtype of safetensors (floats, integers, bool)
    meta        JSON values; `meta["score"]`, a finite number, lower is better, decides which one is kept as the best
    raises      CheckpointError when the disk refuses; every earlier checkpoint is then still there

    Checkpoints of later iterations are deleted: they belong to a course that the run left when it went back.
    """
    temporary = folder / f"{_TEMPORARY}{iteration:08d}-{os.getpid()}"
    try:
        folder.mkdir(exist_ok=True)  # without its parents: a run folder that vanished is not made up again
        _clear_leftovers(folder)
        final = _free_name(folder, iteration)
        temporary.mkdir()
        blob = _serialise(tensors)
        _write_flushed(temporary / _TENSORS, blob)
        _write_flushed(temporary / _MANIFEST, _manifest(iteration, blob, meta))
        _flush_folder(temporary)
        os.replace(temporary, final)
        _flush_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"The checkpoint of iteration {iteration} cannot be written to {folder} ({error.strerror or error}); "
            "make room or give write permission there and resume the run: earlier checkpoints are intact."
        ) from error
    _prune(folder, final)
    return final


def load_latest(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint in `folder` whose sha256 agree, or None where there is no checkpoint at all.

    raises      CheckpointError when checkpoints exist and every one of them is damaged
    """
    skipped: list[str] = []
    for path in reversed(_complete(folder)):
        try:
            found = load(path)
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        return Checkpoint(found.iteration, found.tensors, found.meta, path, tuple(skipped))
    if skipped:
        raise CheckpointError(
            f"None of the {len(skipped)} checkpoints in {folder} can be used (the newest: {skipped[0].rstrip('.')}); "
            "restore them from a copy, or start the run again under another name."
        )
    return None


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint; raises CheckpointError naming what is wrong with it."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        blob = (path / _TENSORS).read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"The checkpoint {path} is damaged: {_reason(error)}.") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"The checkpoint {path} is damaged: {_MANIFEST} is not a JSON object.")
    stated = manifest.pop("sha256", None)
    if stated != _manifest_digest(manifest):
        raise CheckpointError(f"The checkpoint {path} is damaged: {_MANIFEST} does not match its own sha256.")
    if manifest["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"The checkpoint {path} has format version {manifest['format_version']} and this hpfwi reads version "
            f"{FORMAT_VERSION}; resume it with the hpfwi that wrote it."
        )
    if len(blob) != manifest["tensors_bytes"]:
        raise CheckpointError(
            f"The checkpoint {path} is damaged: {_TENSORS} has {len(blob)} bytes instead of "
            f"{manifest['tensors_bytes']}."
        )
    if hashlib.sha256(blob).hexdigest() != manifest["tensors_sha256"]:
        raise CheckpointError(f"The checkpoint {path} is damaged: {_TENSORS} does not match its sha256.")
    return Checkpoint(manifest["iteration"], _deserialise(blob), manifest["meta"], path)


def part_of(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _serialise(tensors: Mapping[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save as to_bytes

    # order="C" keeps a zero-dimensional array as it is; np.ascontiguousarray would make it one-dimensional.
    return to_bytes({name: np.asarray(array, order="C") for name, array in tensors.items()})


def _deserialise(blob: bytes) -> dict[str, np.ndarray]:
    from safetensors.numpy import load as from_bytes

    return {name: np.array(array) for name, array in from_bytes(blob).items()}


def _manifest(iteration: int, blob: bytes, meta: Mapping[str, Any]) -> bytes:
    manifest = {
        "format_version": FORMAT_VERSION,
        "iteration": int(iteration),
        "tensors_bytes": len(blob),
        "tensors_sha256": hashlib.sha256(blob).hexdigest(),
        "meta": dict(meta),
    }
    manifest["sha256"] = _manifest_digest(manifest)
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _write_flushed(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename is only on the disk once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free_name(folder: Path, iteration: int) -> Path:
    """A name that no checkpoint has, so that one saved again never displaces the first before it is whole."""
    final = folder / f"iteration-{iteration:08d}"
    attempt = 1
    while final.exists():
        attempt += 1
        final = folder / f"iteration-{iteration:08d}-again{attempt}"
    return final


def _order(path: Path) -> tuple[int, int]:
    """(iteration, attempt) of a checkpoint's name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 1)


def _complete(folder: Path) -> list[Path]:
    """Every checkpoint that got its final name, by iteration and attempt, oldest first."""
    try:
        return sorted((entry for entry in folder.iterdir() if _NAME.fullmatch(entry.name)), key=_order)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"The checkpoints in {folder} cannot be listed ({error.strerror or error}).") from error


def _clear_leftovers(folder: Path) -> None:
    """Delete what a killed writer left; the lock of the run folder says that nobody is writing it now."""
    for entry in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(entry, ignore_errors=True)


def _prune(folder: Path, newest: Path) -> None:
    """Keep the latest two and the best; whatever cannot be deleted stays, since too many do no harm."""
    complete = _complete(folder)
    by_iteration = {_order(path)[0]: path for path in complete if _order(path) <= _order(newest)}
    past = list(by_iteration.values())
    kept = set(past[-KEPT_LATEST:])
    scored = [(score, path) for path in past if (score := _score(path)) is not None]
    if scored:
        kept.add(min(scored, key=lambda pair: pair[0])[1])
    for path in complete:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
    _clear_leftovers(folder)


def _score(path: Path) -> float | None:
    """The score in a manifest, or None where there is none, it is not finite, or the manifest is damaged."""
    try:
        score = json.loads((path / _MANIFEST).read_bytes())["meta"]["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(score) if isinstance(score, int | float) and math.isfinite(score) else None


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{Path(str(error.filename)).name} is missing"
    return str(error.strerror or error) if isinstance(error, OSError) else f"{_MANIFEST} is not JSON"
