"""Earth models in files: .npy, .npz, .zarr and SEG-Y in, .zarr out."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from hpfwi.errors import DataError
from hpfwi.physics.grid import AXES, Grid, along_axes
from hpfwi.physics.model import EarthModel
from hpfwi.physics.numpy_file import load_numpy
from hpfwi.store.atomic import new_folder
from hpfwi.store.segy_models import read_segy_model

FORMAT = "hpfwi-model"
VERSION = 1

SLOWEST_PLAUSIBLE_MPS = 20.0
"""No wave travels this slowly through the earth: a model below it is in km/s, or is no velocity model."""


def read_model(
    path: str | Path,
    spacing_m: float | tuple[float, ...] | None = None,
    velocity_unit: str | None = None,
) -> EarthModel:
    """A velocity model from a file.

    path           .npy, .npz, .zarr, .segy or .sgy; an array inside is named after a colon, "models.npz:vp" or
                   "results.zarr:model/inverted", and may be left out where there is one only
    spacing_m      (dz, dx) or (dz, dy, dx) in metres, or one number for all; needed where the file does not hold it,
                   and preferred to the file's
    velocity_unit  "m/s" or "km/s"; None means m/s and refuses values that look like km/s
    raises         DataError: missing, damaged or ambiguous file; neither 2-D nor 3-D; a spacing or unit in doubt;
                   velocities that are not positive finite numbers
    """
    file, key = _split(str(path))
    suffix = file.suffix.lower()
    if not file.exists():
        raise DataError(f"Model file {file} does not exist.")
    origin_m: tuple[float, ...] = ()
    if suffix in (".segy", ".sgy"):
        values, spacing_m = read_segy_model(file, spacing_m)
    elif suffix == ".zarr":
        values, stored_m, origin_m = _read_zarr(file, key)
        spacing_m = stored_m if spacing_m is None else spacing_m
    elif suffix in (".npy", ".npz"):
        values = _read_numpy(file, key)
    elif (file / "results.zarr").is_dir():
        raise DataError(f"{file} is the folder of a run; give {file / 'results.zarr'}:model/inverted for its model.")
    else:
        packed = "; unpack it first" if suffix in (".gz", ".bz2", ".xz", ".zip", ".tar", ".tgz") else ""
        raise DataError(
            f"Model file {file} has the suffix {suffix!r}: it must be .npy, .npz, .zarr, .segy or .sgy{packed}."
        )
    if values.ndim not in AXES:
        raise DataError(
            f"Model {path} has shape {values.shape}: a velocity model is 2-D [z, x] or 3-D [z, y, x], z down."
        )
    if spacing_m is None:
        steps = ", ".join(f"d{axis}" for axis in AXES[values.ndim])
        raise DataError(f"Model file {file} does not hold its cell size: give it in metres as spacing_m = [{steps}].")
    velocity = _in_mps(values, velocity_unit, path)
    try:
        return EarthModel(velocity, Grid(values.shape, along_axes(spacing_m, values.ndim), origin_m))
    except DataError as error:
        raise DataError(f"Model {path} cannot be used: {str(error)[0].lower()}{str(error)[1:]}") from error


def write_model_zarr(
    path: str | Path, model: EarthModel, attrs: Mapping[str, Any] | None = None, *, overwrite: bool = False
) -> None:
    """Write a model as a Zarr v3 group with the array `velocity`, its spacing and `attrs` (plain JSON values).

    raises  ConfigError: the path exists and overwrite is False
    """
    with new_folder(path, overwrite=overwrite) as folder:
        group = zarr.create_group(store=str(folder), zarr_format=3)
        group.create_array("velocity", data=np.asarray(model.velocity))
        group.attrs.update(
            {
                "format": FORMAT,
                "version": VERSION,
                "spacing_m": list(model.grid.spacing_m),
                "origin_m": list(model.grid.origin_m),
                "unit": "m/s",
                "axes": list(model.grid.axes),
                "provenance": dict(attrs or {}),
            }
        )


def _split(path: str) -> tuple[Path, str | None]:
    match = re.fullmatch(r"(.+\.(?:npz|zarr)):(.+)", path, re.IGNORECASE)
    return (Path(match[1]), match[2]) if match else (Path(path), None)


def _read_numpy(file: Path, key: str | None) -> NDArray[Any]:
    try:
        loaded = load_numpy(file)
        if isinstance(loaded, np.ndarray):
            return _numeric(loaded, file)
        with loaded as archive:
            return _numeric(archive[_choose(list(archive.files), key, file)], file)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"Model file {file} cannot be read as a NumPy array ({str(error).splitlines()[0]}): write it again with "
            "numpy.save, of numbers."
        ) from error


def _read_zarr(file: Path, key: str | None) -> tuple[NDArray[Any], tuple[float, ...] | None, tuple[float, ...]]:
    try:
        node = zarr.open(store=str(file), mode="r")
        attrs = dict(node.attrs)
        if isinstance(node, zarr.Group):
            names = sorted(name for name, member in node.members(max_depth=None) if isinstance(member, zarr.Array))
            chosen = "velocity" if key is None and "velocity" in names else _choose(names, key, file)
            array = node[chosen]
        else:
            array = node
        attrs |= dict(array.attrs)
        values = np.asarray(array[...])  # type: ignore[index]
    except DataError:
        raise
    # Zarr and its codecs raise a dozen unrelated types for a damaged folder.
    except Exception as error:
        raise DataError(f"Model {file} cannot be read as Zarr ({type(error).__name__}: {error}).") from error
    stored = [_metres(attrs.get(name), values.ndim) for name in ("spacing_m", "origin_m")]
    return _numeric(values, file), stored[0], stored[1] or ()


def _metres(value: object, axes: int) -> tuple[float, ...] | None:
    """A number for each of so many axes, None where an attribute holds something else."""
    if isinstance(value, list | tuple) and len(value) == axes and all(isinstance(item, int | float) for item in value):
        return tuple(float(item) for item in value)
    return None


def _choose(names: list[str], key: str | None, file: Path) -> str:
    listed = ", ".join(names) or "none"
    if key is not None:
        if key not in names:
            raise DataError(f"Model file {file} has no array {key!r}: it holds {listed}.")
        return key
    if len(names) != 1:
        raise DataError(f"Model file {file} holds {len(names)} arrays ({listed}): name one as {file.name}:ARRAY.")
    return names[0]


def _numeric(values: NDArray[Any], file: Path) -> NDArray[Any]:
    if values.dtype.kind not in "fiu":
        raise DataError(f"Model file {file} holds values of type {values.dtype}: they must be real numbers.")
    return values


def _in_mps(values: NDArray[Any], velocity_unit: str | None, path: str | Path) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        velocity = np.asarray(values, dtype=np.float32)
    finite = velocity[np.isfinite(velocity)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)
    if velocity_unit == "km/s":
        if high >= SLOWEST_PLAUSIBLE_MPS:
            raise DataError(
                f"Model {path} spans {low:g} to {high:g} and is said to be in km/s: no rock is faster than "
                f'{SLOWEST_PLAUSIBLE_MPS:g} km/s; set velocity_unit to "m/s".'
            )
        return velocity * np.float32(1000)
    if velocity_unit is None and high < SLOWEST_PLAUSIBLE_MPS:
        raise DataError(
            f'Model {path} spans {low:g} to {high:g}, too small for m/s: set velocity_unit to "km/s" if that is its '
            "unit, or give a velocity model if these are densities."
        )
    return velocity
