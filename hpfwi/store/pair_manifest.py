"""What a store of pairs says about itself: the manifest of a finished one, the plan of one that is being written.

zarr.json           of a finished store: its attributes are the manifest, with the sha256 of every other file
plan.json           in NAME.part: what the store will be, so that a writer that takes it up can compare
done/<shard>.json   in NAME.part: written when that shard is whole on the disk, with its sizes, sha256 and sums
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpfwi.errors import DataError
from hpfwi.store.shards import Layout

FORMAT = "hpfwi-pairs"
VERSION = 2
READABLE = (1, 2)
"""Version 1 had no statistics of its splits."""
ARRAYS = ("records", "models")
PLAN = "plan.json"
DONE = "done"

PHYSICS = ("dx_m", "dz_m", "dt_s", "peak_hz", "sources_m", "receivers_m", "records_unit")
"""What the physics of every store names, None where it is not known."""


def part_of(path: Path) -> Path:
    """Where a store lies until it is finished.

    >>> part_of(Path("data/flatvel.zarr")).as_posix()
    'data/flatvel.zarr.part'
    """
    return path.with_name(f"{path.name}.part")


def layouts_of(plan: Mapping[str, Any]) -> dict[str, Layout]:
    """The layout of the arrays that a plan or a manifest describes."""
    samples, shard, compression = plan["samples"], plan["shard_samples"], plan["compression"]
    return {
        "records": Layout((samples, *plan["records_shape"]), shard, plan["dtype"], compression),
        "models": Layout((samples, *plan["model_shape"]), shard, "float32", compression),
    }


def digest_of(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest without its own."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a finished store; raises DataError: none, another format or version, or changed since."""
    try:
        manifest = json.loads((path / "zarr.json").read_bytes())["attributes"]
        stated = manifest["format"], manifest["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = "it has no zarr.json" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is no store of pairs ({reason}): make one with `hpfwi data`.") from error
    if stated[0] != FORMAT or stated[1] not in READABLE:
        raise DataError(
            f"{path} is {stated[0]!r} version {stated[1]!r}, and this program reads {FORMAT!r} versions "
            f"{' and '.join(map(str, READABLE))}: make the store again."
        )
    if manifest.get("sha256") != digest_of(manifest):
        raise DataError(
            f"The manifest in {path / 'zarr.json'} does not match its own sha256: it was changed by hand or is "
            "damaged; take it from a copy or make the store again."
        )
    try:
        layouts_of(manifest)
        absent = [key for key in ("family", "physics", "splits", "statistics", "files") if key not in manifest]
    except (KeyError, TypeError):
        absent = ["its shape"]
    if absent:
        raise DataError(f"The manifest in {path / 'zarr.json'} lacks {', '.join(absent)}: make the store again.")
    return dict(manifest)


def read_plan(part: Path) -> tuple[dict[str, Any], str]:
    """Plan of an unfinished store and the command that goes on with it; raises DataError where it cannot be read."""
    try:
        begun = json.loads((part / PLAN).read_bytes())
        layouts_of(begun["plan"])
        return dict(begun["plan"]), str(begun["resume_with"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{part} is no unfinished store of pairs ({type(error).__name__}): delete it and start again."
        ) from error


def done_shard(part: Path, plan: Mapping[str, Any], shard: int) -> dict[str, Any] | None:
    """What was noted when a shard was whole; None where it is not, or its files have other sizes now.

    A note of version 1, without the sums of each split, counts as none: the shard is written again.
    """
    try:
        done = json.loads((part / DONE / f"{shard}.json").read_bytes())
        sizes = [
            (part / name / layout.file_of(shard)).stat().st_size == done[name]["bytes"] and bool(done[name]["sums"])
            for name, layout in layouts_of(plan).items()
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(done) if all(sizes) else None


def unfinished(part: Path) -> DataError:
    """The error of whoever wants to read a store that is not finished: how far it is and how to go on."""
    try:
        plan, command = read_plan(part)
    except DataError as error:
        return error
    shards = layouts_of(plan)["records"].shards
    whole = sum(done_shard(part, plan, shard) is not None for shard in range(shards))
    again = f"start `{command}` again" if command else "start the command that began it again"
    return DataError(
        f"{part} is unfinished, with {whole} of {shards} shards whole: {again}, and it goes on from there."
    )
