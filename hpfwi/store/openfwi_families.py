"""The ten 2-D families of OpenFWI: their files, their split, their amplitudes, and how their records were modelled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hpfwi.errors import ConfigError

Split = Literal["openfwi", "amfms"]

RECORDS_SHAPE = (5, 1000, 70)
"""(shot, time, receiver) of a sample of every family."""

MODEL_SHAPE = (70, 70)
"""(z, x) of a sample of every family."""

MARMOUSI = "Marmousi-slices"
"""Windows of Marmousi II cut by the AMFMS group; files as theirs, records whose modelling is not published."""


@dataclass(frozen=True)
class Family:
    """Names of the files of one family, as OpenFWI published them.

    records, models     beginnings of the file names; a file is the beginning and its id
    train, test         ids of the official split, in order
    amplitudes          least and largest value of the records in OpenFWI's benchmark, or None
    """

    name: str
    records: str
    models: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    amplitudes: tuple[float, float] | None


def _numbers(first: int, last: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(first, last + 1))


def _blocks(blocks: tuple[int, ...], first: int, last: int) -> tuple[str, ...]:
    return tuple(f"{block}_1_{number}" for block in blocks for number in range(first, last + 1))


def _vel(name: str, low: float, high: float) -> Family:
    return Family(name, "data", "model", _numbers(1, 48), _numbers(49, 60), (low, high))


def _fault(name: str, blocks: tuple[int, ...], low: float, high: float) -> Family:
    return Family(name, "seis", "vel", _blocks(blocks, 0, 31), _blocks(blocks, 32, 35), (low, high))


def _style(name: str, low: float, high: float) -> Family:
    return Family(name, "data", "model", _numbers(1, 120), _numbers(121, 134), (low, high))


A, B = (2, 3, 4), (6, 7, 8)

FAMILIES = (
    _vel("FlatVel-A", -26.95, 52.77),
    _vel("FlatVel-B", -27.17, 56.05),
    _vel("CurveVel-A", -27.11, 55.10),
    _vel("CurveVel-B", -29.04, 57.03),
    _fault("FlatFault-A", A, -26.10, 50.86),
    _fault("FlatFault-B", B, -24.86, 50.28),
    _fault("CurveFault-A", A, -26.48, 52.32),
    _fault("CurveFault-B", B, -24.93, 50.98),
    _style("Style-A", -24.96, 48.93),
    _style("Style-B", -23.76, 46.01),
    Family(MARMOUSI, "data", "model", _numbers(1, 62), _numbers(63, 63), None),
)
"""Files, split and amplitudes: the OpenFWI project's data page and benchmark code."""


def family_named(name: str) -> Family | None:
    """The family of that name, whatever its case and punctuation.

    >>> [found.name for name in ("flatvel_a", "CurveFaultB", "Style-A") if (found := family_named(name))]
    ['FlatVel-A', 'CurveFault-B', 'Style-A']
    """
    key = _letters(name)
    return next((family for family in FAMILIES if _letters(family.name) == key), None)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def split_files(family: Family, split: Split) -> dict[str, tuple[str, ...]]:
    """Ids of the files of each split, in order.

    split   "openfwi": the official one; "amfms": that of the AMFMS, ABA-FWI and TU-Net releases, which is the official
            one for the Vel families and another one for FlatFault-A and CurveFault-A

    raises  ConfigError: "amfms" for a family that those releases do not name

    >>> files = split_files(FAMILIES[4], "amfms")
    >>> len(files["train"]), files["test"][0], files["test"][-1]
    (96, '4_1_24', '4_1_35')
    """
    if split == "openfwi" or "Vel" in family.name:
        return {"train": family.train, "test": family.test}
    if family.name == "FlatFault-A":
        test = _blocks((4,), 24, 35)
    elif family.name == "CurveFault-A":
        test = _blocks((4,), 0, 11)
    else:
        raise ConfigError(f"The releases around AMFMS state no split of {family.name}: use --split openfwi.")
    return {"train": tuple(name for name in _blocks(A, 0, 35) if name not in test), "test": test}


def physics_of(family: Family, records_shape: tuple[int, int, int], model_shape: tuple[int, int]) -> dict[str, Any]:
    """How the records were modelled (see `create_pairs` for the names that every store has).

    The sources are spread evenly from the first column to the last and the receivers stand in every column, all one
    cell deep, which was checked on a published record. The modelling of the Marmousi slices is not published.
    """
    shots, _, receivers = records_shape
    spacing_m, columns = 10.0, model_shape[1]
    known = family.name != MARMOUSI
    source_columns = np.rint(np.linspace(0, columns - 1, shots)).astype(int).tolist()
    return {
        "dx_m": spacing_m,
        "dz_m": spacing_m,
        "dt_s": 0.001,
        "peak_hz": 15.0,
        "sources_m": [[spacing_m, spacing_m * column] for column in source_columns] if known else None,
        "receivers_m": [[spacing_m, spacing_m * column] for column in range(columns)]
        if known and receivers == columns
        else None,
        "records_unit": "amplitude as published",
        "recipe": "openfwi" if known else "unknown",
        "benchmark_amplitudes": list(family.amplitudes) if family.amplitudes else None,
    }
