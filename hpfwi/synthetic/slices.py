"""Pairs cut out of a large velocity model: windows of it and their records.

The defaults are the recipe that ABA-FWI, AMFMS and their rivals share for Marmousi II at 1.25 m, 2801 rows of 13601
columns: without its 420 rows of water, windows of 70 x 70 cells that test lie side by side in columns 7350 to 8049,
windows that train overlap, one every 30 cells, in the columns left and right of those, so that no cell is in both. A
window without an edge (`training.edges`) is left out. 328 windows test and 30,926 train. A cell of 1.25 m is then taken
for one of `modelling.spacing_m`, as published.

How the published records of these windows were made is not known. Here they are made as all others, by OpenFWI's
recipe, so that networks trained on either can be used on both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hpfwi.errors import ConfigError
from hpfwi.physics.openfwi import OpenFwiSettings
from hpfwi.store.models import read_model
from hpfwi.training.edges import edge_masks

FAMILY = "slices"
_AT_ONCE = 500
"""Windows whose edges are looked for at a time."""


class SliceSettings(BaseModel):
    """Which windows of a model are cut out; the defaults are for Marmousi II at 1.25 m."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[int, int] = Field(default=(70, 70), description="Rows and columns of a window, at least 8.")
    skip_rows: int = Field(default=420, ge=0, description="Rows at the top of the model, its water, that are left out.")
    test_columns: tuple[int, int] = Field(
        default=(7350, 8050), description="First column of the windows that test, and the first one behind them."
    )
    train_stride: int = Field(default=30, ge=1, description="Cells between neighbouring windows that train.")
    test_stride: int = Field(default=70, ge=1, description="Cells between neighbouring windows that test.")

    @model_validator(mode="after")
    def _makes_windows(self) -> Self:
        if min(self.shape) < 8:
            raise ValueError(f"a window of {self.shape[0]} x {self.shape[1]} cells is too small; give at least 8 x 8")
        if not 0 <= self.test_columns[0] <= self.test_columns[1]:
            raise ValueError(f"test_columns={list(self.test_columns)} are no columns; give the smaller one first")
        return self


def slice_settings(given: Mapping[str, Any]) -> SliceSettings:
    """Settings with some options given; raises ConfigError for a value that an option cannot take."""
    try:
        return SliceSettings.model_validate(given)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"These windows cannot be cut: {reason}.") from None


def windows(model_shape: tuple[int, int], settings: SliceSettings) -> dict[str, NDArray[np.int64]]:
    """First row and column of every window of each split, int64[window, 2], row by row.

    raises  ConfigError: the model has no such columns, or a split would have no window

    >>> {split: len(cuts) for split, cuts in windows((2801, 13601), SliceSettings()).items()}
    {'train': 33228, 'test': 340}
    """
    rows, columns = model_shape
    first, behind = settings.test_columns
    if behind > columns:
        raise ConfigError(
            f"Columns {first} to {behind - 1} cannot test: the model has {rows} rows and {columns} columns; give "
            "--test-columns FIRST,BEHIND that fit, and --skip-rows."
        )

    def cut(left: int, right: int, stride: int) -> NDArray[np.int64]:
        down = np.arange(settings.skip_rows, rows - settings.shape[0] + 1, stride)
        along = np.arange(left, right - settings.shape[1] + 1, stride)
        return np.stack(np.meshgrid(down, along, indexing="ij"), axis=-1).reshape(-1, 2)

    found = {
        "train": np.concatenate([cut(0, first, settings.train_stride), cut(behind, columns, settings.train_stride)]),
        "test": cut(first, behind, settings.test_stride),
    }
    if empty := [split for split, cuts in found.items() if not len(cuts)]:
        raise ConfigError(
            f"A model of {rows} x {columns} cells has no window of {settings.shape[0]} x {settings.shape[1]} for split "
            f"{empty[0]!r} below row {settings.skip_rows}, with columns {first} to {behind - 1} to test; change "
            "--window, --skip-rows or --test-columns."
        )
    return found


def with_edges(velocity: NDArray[np.float32], cuts: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.int64]:
    """The windows, of those at `cuts`, whose velocity has an edge somewhere.

    velocity    float32[z, x] of the model
    cuts        int64[window, 2], first row and column
    """
    kept = [
        edge_masks(np.stack([_window(velocity, cut, shape) for cut in some])).any(axis=(1, 2))
        for some in (cuts[first : first + _AT_ONCE] for first in range(0, len(cuts), _AT_ONCE))
    ]
    found: NDArray[np.int64] = cuts[np.concatenate(kept)]
    return found


@dataclass(frozen=True, eq=False)
class Slices:
    """Windows of the model in a file, a source of maps for `dataset`; read by every worker from the file itself.

    cuts        int64[sample, 2], first row and column of each
    provenance  of the model and of the cut
    """

    path: Path
    velocity_unit: str | None
    settings: SliceSettings
    modelling: OpenFwiSettings
    cuts: NDArray[np.int64] = field(repr=False)
    splits: dict[str, range]
    provenance: dict[str, Any]
    family: str = FAMILY
    _read: list[NDArray[np.float32]] = field(default_factory=list, repr=False)
    """The model, once a map was asked for."""

    @property
    def samples(self) -> int:
        return len(self.cuts)

    @property
    def shape(self) -> tuple[int, int]:
        return self.settings.shape

    def velocity(self, sample: int) -> NDArray[np.float32]:
        """Map of a sample, float32[z, x], m/s."""
        if not self._read:
            self._read.append(_velocity(self.path, self.velocity_unit, self.modelling))
        return _window(self._read[0], self.cuts[sample], self.shape).copy()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": []}


def cut_slices(
    path: str | Path,
    settings: SliceSettings,
    modelling: OpenFwiSettings,
    *,
    velocity_unit: str | None = None,
    limits: tuple[int | None, int | None] = (None, None),
) -> Slices:
    """Find the windows of the model in a file.

    path            as `store.models.read_model` takes it
    velocity_unit   "m/s" or "km/s"; None means m/s and refuses values that look like km/s
    limits          windows of (train, test) at most, evenly spread over those with edges; None takes all

    raises          DataError: no such model; ConfigError: it has no such windows, or none with an edge
    """
    path = Path(path).absolute()  # workers may start in another folder
    velocity = _velocity(path, velocity_unit, modelling)
    found: dict[str, NDArray[np.int64]] = {}
    for (split, cuts), limit in zip(windows(_shape_of(velocity), settings).items(), limits, strict=True):
        kept = with_edges(velocity, cuts, settings.shape)
        if not len(kept):
            raise ConfigError(f"None of the {len(cuts)} windows of {path} for split {split!r} has an edge.")
        found[split] = kept if limit is None or limit >= len(kept) else kept[_spread(len(kept), limit)]
    splits, first = {}, 0
    for split, cuts in found.items():
        splits[split] = range(first, first + len(cuts))
        first += len(cuts)
    return Slices(
        path=path,
        velocity_unit=velocity_unit,
        settings=settings,
        modelling=modelling,
        cuts=np.concatenate(list(found.values())),
        splits=splits,
        provenance={
            "model": path.name,
            "model_sha256": hashlib.sha256(np.ascontiguousarray(velocity).tobytes()).hexdigest(),
            "cut": settings.model_dump(mode="json"),
        },
        _read=[velocity],
    )


def _spread(count: int, limit: int) -> list[int]:
    """`limit` of the numbers below `count`, evenly apart.

    >>> _spread(10, 4)
    [1, 3, 6, 8]
    """
    return [(2 * number + 1) * count // (2 * limit) for number in range(limit)]


def _velocity(path: Path, velocity_unit: str | None, modelling: OpenFwiSettings) -> NDArray[np.float32]:
    """Velocity of the model in a file, float32[z, x], m/s; its cells count as `spacing_m`, whatever the file says."""
    model = read_model(path, (modelling.spacing_m, modelling.spacing_m), velocity_unit)
    return np.asarray(model.velocity, dtype=np.float32)


def _shape_of(velocity: NDArray[np.float32]) -> tuple[int, int]:
    return velocity.shape[0], velocity.shape[1]


def _window(velocity: NDArray[np.float32], cut: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.float32]:
    row, column = int(cut[0]), int(cut[1])
    return velocity[row : row + shape[0], column : column + shape[1]]
