"""Gathers on disk: a Zarr v3 group with one chunk per shot, so that a worker reads the shots it needs and no others.

gathers      float32[shot, receiver, time]   Pa, chunk [1, receiver, time]
sources_m    float64[shot, source, axis]     (z, x) or (z, y, x), NaN = absent
receivers_m  float64[shot, receiver, axis]   (z, x) or (z, y, x), NaN = absent
wavelet      float32[shot, source, time]     Pa, over (z, y, x) Pa m; left out where it is not known
attributes   format, version, dt_s, unit, provenance
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics.survey import Survey
from hpfwi.store.atomic import new_folder

FORMAT = "hpfwi-gathers"
VERSION = 1


@dataclass(frozen=True, eq=False)
class GathersStore:
    """Gathers that are read from disk shot by shot; it can be pickled and read from several threads."""

    path: Path
    survey: Survey
    wavelet: NDArray[np.float32] | None
    """float32[shot, source, time], Pa, or None where the file does not hold it."""
    provenance: dict[str, Any]
    """What the writer noted about the origin of the gathers."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(shot, receiver, time)."""
        return (self.survey.shots, self.survey.receivers, self.survey.samples)

    def read(self, shots: Sequence[int]) -> NDArray[np.float32]:
        """The gathers of some shots, float32[shot, receiver, time], in the order given.

        raises  DataError: a shot that does not exist, a chunk that is missing or damaged, NaN or infinity in a gather
        """
        gathers = np.empty((len(shots), *self.shape[1:]), dtype=np.float32)
        for row, shot in enumerate(shots):
            if not 0 <= shot < self.survey.shots:
                raise DataError(f"Shot {shot} does not exist: {self.path} has shots 0 to {self.survey.shots - 1}.")
            try:
                gathers[row] = _array(zarr.open_group(str(self.path), mode="r"), "gathers", self.path)[shot]
            except DataError:
                raise
            # Zarr and its codecs raise a dozen unrelated types for a damaged chunk.
            except Exception as error:
                raise DataError(
                    f"Shot {shot} cannot be read from {self.path} ({type(error).__name__}: {error})."
                ) from error
            if not np.isfinite(gathers[row]).all():
                raise DataError(
                    f"Shot {shot} of {self.path} holds NaN or infinity, or its chunk is missing: write it again, with "
                    "zeros to have the shot left out."
                )
        return gathers


def require_zarr(path: Path) -> None:
    """Raise ConfigError where a path for gathers is named like a file of another kind."""
    if path.suffix != ".zarr":
        raise ConfigError(f"{path} has the suffix {path.suffix!r}: gathers are written as a .zarr folder.")


def write_gathers(
    path: str | Path,
    gathers: NDArray[np.float32],
    survey: Survey,
    wavelet: NDArray[np.float32] | None,
    attrs: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write gathers with their survey and wavelet; the folder appears under its name when it is complete.

    gathers  float32[shot, receiver, time], Pa
    wavelet  float32[shot, source, time], Pa, or None where it is not known
    attrs    provenance, plain JSON values

    raises  DataError: shapes that contradict the survey, NaN or infinity; ConfigError, DiskError: as `new_folder`
    """
    gathers = np.ascontiguousarray(gathers, dtype=np.float32)
    expected = (survey.shots, survey.receivers, survey.samples)
    if gathers.shape != expected:
        raise DataError(
            f"Gathers of shape {gathers.shape} do not fit the survey, whose (shots, receivers, samples) are {expected}."
        )
    write_shots(path, gathers, survey, wavelet, attrs, overwrite=overwrite)


def write_shots(
    path: str | Path,
    gathers: Iterable[NDArray[np.float32]],
    survey: Survey,
    wavelet: NDArray[np.float32] | None,
    attrs: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write gathers as `write_gathers` does, one shot after the other, so that a line need not fit the memory.

    gathers  float32[receiver, time] of every shot, in order

    raises  DataError: as `write_gathers`; fewer or more shots than the survey has
    """
    if wavelet is not None:
        _check_wavelet(wavelet.shape, survey, str(path))
    expected = (survey.shots, survey.receivers, survey.samples)
    with new_folder(path, overwrite=overwrite) as folder:
        group = zarr.create_group(store=str(folder), zarr_format=3)
        # A chunk that goes missing reads as the fill value: NaN is noticed, zeros would be taken for a quiet record.
        array = group.create_array(
            "gathers", shape=expected, chunks=(1, *expected[1:]), dtype="float32", fill_value=float("nan")
        )
        written = 0
        for shot, gather in enumerate(gathers):
            if shot == survey.shots or gather.shape != expected[1:]:
                raise DataError(f"Shot {shot} of shape {gather.shape} does not fit the survey of {expected}.")
            if not np.isfinite(gather).all():
                raise DataError(f"The gather of shot {shot} holds NaN or infinity and is not written.")
            array[shot] = gather
            written += 1
        if written < survey.shots:
            raise DataError(f"There are gathers of {written} shots, and the survey has {survey.shots}.")
        group.create_array("sources_m", data=np.asarray(survey.sources_m), fill_value=float("nan"))
        group.create_array("receivers_m", data=np.asarray(survey.receivers_m), fill_value=float("nan"))
        if wavelet is not None:
            group.create_array("wavelet", data=np.asarray(wavelet, dtype=np.float32))
        group.attrs.update(
            {
                "format": FORMAT,
                "version": VERSION,
                "dt_s": survey.dt_s,
                "unit": "Pa",
                "axes": ["shot", "receiver", "time"],
                "provenance": dict(attrs or {}),
            }
        )


def open_gathers(path: str | Path) -> GathersStore:
    """Open gathers for reading: positions and wavelet now, gathers when they are asked for.

    raises  DataError: not a gathers folder, another format version, an array missing or of a shape that contradicts the
            others, positions or a wavelet that make no survey
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"Gathers folder {path} does not exist; give one that `hpfwi data gathers` or `hpfwi simulate` wrote."
        )
    if path.is_file():
        raise DataError(f"{path} is a file; give a .zarr folder, as `hpfwi data gathers` makes of SEG-Y records.")
    try:
        group = zarr.open_group(str(path), mode="r")
        attrs = dict(group.attrs)
    # Zarr raises a dozen unrelated types for a folder that is not its own.
    except Exception as error:
        raise DataError(f"{path} is not a Zarr group ({type(error).__name__}: {error}).") from error
    if attrs.get("format") != FORMAT:
        raise DataError(
            f"{path} is a Zarr group, but not of gathers: its format is {attrs.get('format')!r}, not {FORMAT!r}."
        )
    if attrs.get("version") != VERSION:
        raise DataError(
            f"{path} has gathers format version {attrs.get('version')!r}, and this program reads {VERSION}: write it "
            "again or use the matching version."
        )
    dt_s = attrs.get("dt_s")
    if not isinstance(dt_s, int | float):
        raise DataError(f"{path} has dt_s={dt_s!r} in its attributes: it must be the sample interval in seconds.")
    gathers = _array(group, "gathers", path)
    if gathers.ndim != 3 or gathers.dtype != np.float32:
        raise DataError(
            f"{path} holds gathers of shape {gathers.shape} and type {gathers.dtype}: they must be float32[shot, "
            "receiver, time]."
        )
    survey = Survey(_load(group, "sources_m", path), _load(group, "receivers_m", path), dt_s, gathers.shape[2])
    if gathers.shape != (survey.shots, survey.receivers, survey.samples):
        raise DataError(
            f"{path} contradicts itself: gathers of shape {gathers.shape}, positions of {survey.shots} shots with "
            f"{survey.receivers} receivers."
        )
    wavelet = None
    if "wavelet" in group:
        wavelet = _load(group, "wavelet", path).astype(np.float32)
        _check_wavelet(wavelet.shape, survey, str(path))
        if not np.isfinite(wavelet).all():
            raise DataError(f"The wavelet in {path} holds NaN or infinity.")
    provenance = attrs.get("provenance")
    return GathersStore(path, survey, wavelet, dict(provenance) if isinstance(provenance, dict) else {})


def _check_wavelet(shape: tuple[int, ...], survey: Survey, where: str) -> None:
    expected = (survey.shots, survey.sources_m.shape[1], survey.samples)
    if tuple(shape) != expected:
        raise DataError(
            f"{where}: a wavelet of shape {tuple(shape)} does not fit the survey, whose (shots, sources, samples) are "
            f"{expected}."
        )


def _array(group: zarr.Group, name: str, path: Path) -> zarr.Array[Any]:
    member = group.get(name)
    if not isinstance(member, zarr.Array):
        raise DataError(f"{path} has no array {name!r}: the folder is damaged or incomplete; write it again.")
    return member


def _load(group: zarr.Group, name: str, path: Path) -> NDArray[Any]:
    try:
        return np.asarray(_array(group, name, path)[...])
    except DataError:
        raise
    # Zarr and its codecs raise a dozen unrelated types for a damaged chunk.
    except Exception as error:
        raise DataError(f"Array {name!r} of {path} cannot be read ({type(error).__name__}: {error}).") from error
