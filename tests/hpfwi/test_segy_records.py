import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segyio

from hpfwi.errors import ConfigError, DataError
from hpfwi.physics.bands import band_passed
from hpfwi.store.gathers import open_gathers, write_shots
from hpfwi.store.segy import open_segy
from hpfwi.store.segy_records import Records, open_records

SHARED = Path(os.environ.get("HPFWI_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "segy"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared SEG-Y files are not on this machine")
F = segyio.TraceField
DT_US, SAMPLES = 4000, 40


def trace(record: int, source: Sequence[float], receiver: Sequence[float], **fields: int) -> dict[str, Any]:
    """Headers of a trace at map coordinates in metres, written in decimetres."""
    x0, y0, x1, y1 = (round(10 * value) for value in (*source, *receiver))
    positions = {"SourceX": x0, "SourceY": y0, "GroupX": x1, "GroupY": y1, "SourceGroupScalar": -10}
    return {"FieldRecord": record, "TraceIdentificationCode": 1, **positions, **fields}


def write(path: Path, traces: list[dict[str, Any]], samples: np.ndarray | None = None, feet: bool = False) -> Path:
    """A SEG-Y file; without samples, trace k holds k + 1 throughout."""
    table = np.repeat(np.arange(1.0, len(traces) + 1)[:, None], SAMPLES, 1) if samples is None else samples
    spec = segyio.spec()
    spec.format, spec.samples, spec.tracecount = 5, np.arange(table.shape[1]), len(traces)
    with segyio.create(str(path), spec) as file:
        file.bin.update({segyio.BinField.Interval: DT_US, segyio.BinField.MeasurementSystem: 2 if feet else 1})
        for number, header in enumerate(traces):
            named = {getattr(F, name): value for name, value in header.items()}
            file.header[number] = {F.TRACE_SAMPLE_INTERVAL: DT_US} | named
            file.trace[number] = table[number].astype(np.float32)
    return path


def read(path: Path, **options: Any) -> tuple[Records, list[np.ndarray]]:
    with open_segy(path) as file:
        records = open_records(file, **options)
        return records, list(records.gathers())


def test_shots_positions_and_samples_along_a_slanted_line(tmp_path: Path) -> None:
    """A line along (3, 4) / 5: distances are exact, shots of unequal spreads are padded with absent receivers."""

    def at(distance: float) -> tuple[float, float]:
        return 1000 + 0.6 * distance, 5000 + 0.8 * distance

    headers = [
        *(trace(7, at(50), at(x), SourceDepth=60, ReceiverGroupElevation=-80, ElevationScalar=-10) for x in (0, 100)),
        *(
            trace(9, at(150), at(x), SourceDepth=60, ReceiverGroupElevation=-80, ElevationScalar=-10)
            for x in (0, 50, 200)
        ),
    ]
    records, gathers = read(write(tmp_path / "line.sgy", headers))
    survey = records.survey
    assert survey.dt_s == pytest.approx(0.004)
    assert survey.samples == SAMPLES
    assert survey.sources_m[:, 0] == pytest.approx(np.array([[6.0, 50.0], [6.0, 150.0]]))
    assert survey.receivers_m[1] == pytest.approx(np.array([[8.0, 0.0], [8.0, 50.0], [8.0, 200.0]]))
    assert survey.live_receivers().tolist() == [[True, True, False], [True] * 3]
    assert records.line_m == pytest.approx((1000, 5000, 1120, 5160))
    assert [gather[:, 0].tolist() for gather in gathers] == [[1, 2, 0], [3, 4, 5]]
    assert not records.remarks
    write_shots(tmp_path / "line.zarr", iter(gathers), survey, None)
    assert (open_gathers(tmp_path / "line.zarr").read([0, 1]) == np.stack(gathers)).all()


def test_a_given_line_sets_origin_and_direction(tmp_path: Path) -> None:
    path = write(tmp_path / "a.sgy", [trace(1, (10, 3), (110, -4)), trace(2, (20, 3), (110, -4))])
    survey = read(path, line_m=(200, 0, 0, 0))[0].survey
    assert survey.sources_m[:, 0, 1].tolist() == [190.0, 180.0]
    assert survey.receivers_m[:, 0, 1].tolist() == [90.0, 90.0]
    with pytest.raises(ConfigError, match="from 1, 1 to 1, 1 has no direction"):
        read(path, line_m=(1, 1, 1, 1))


def test_an_area_keeps_what_lies_across_its_line(tmp_path: Path) -> None:
    """An x axis along (4, 3) / 5 from (1000, 5000), y to its left: positions are exact."""

    def at(y: float, x: float) -> tuple[float, float]:
        return 1000 + 0.8 * x - 0.6 * y, 5000 + 0.6 * x + 0.8 * y

    places = [(0, 0), (0, 50), (100, 50)]
    depths = {"SourceDepth": 5, "ReceiverGroupElevation": -10}
    headers = [trace(shot, at(50, 100 * shot), at(*place), **depths) for shot in (1, 2) for place in places]
    path = write(tmp_path / "area.sgy", headers)
    records, gathers = read(path, line_m=(1000, 5000, 1400, 5300), areal=True)
    survey = records.survey
    assert survey.sources_m.tolist() == [[[5.0, 50.0, 100.0]], [[5.0, 50.0, 200.0]]]
    assert survey.receivers_m[1].tolist() == [[10.0, *place] for place in places]
    assert not records.remarks
    write_shots(tmp_path / "area.zarr", iter(gathers), survey, None)
    assert np.array_equal(open_gathers(tmp_path / "area.zarr").survey.receivers_m, survey.receivers_m)
    kept = read(path, line_m=(1000, 5000, 1400, 5300), areal=True, max_offset_m=np.hypot(50, 50) + 0.1)[0].survey
    assert kept.receivers_m.tolist() == [[[10.0, 0.0, 50.0], [10.0, 100.0, 50.0]]]
    along_x = read(path, areal=True)[0]
    assert along_x.line_m == (980.0, 5000.0, 1130.0, 5000.0)
    assert along_x.survey.sources_m[0, 0].tolist() == [5.0, 100.0, 70.0]
    assert "shortens offsets" in read(path)[0].remarks[0]


@pytest.mark.parametrize(("scalar", "unit_m"), [(-10, 0.1), (-100, 0.01), (1, 0.1), (-10000, 1e-4)])
def test_a_turned_line_adds_no_decimals_to_those_of_the_headers(tmp_path: Path, scalar: int, unit_m: float) -> None:
    factor = -scalar if scalar < 0 else 1
    turn = np.deg2rad(30.0)
    x, y = 75.0 * np.cos(turn), 75.0 * np.sin(turn)
    fields = {"SourceX": 0, "SourceY": 0, "GroupX": round(factor * x), "GroupY": round(factor * y)}
    path = write(tmp_path / "a.sgy", [trace(1, (0, 0), (0, 0), **fields) | {"SourceGroupScalar": scalar}])
    along = read(path, line_m=(0, 0, float(np.cos(turn)), float(np.sin(turn))))[0].survey.receivers_m[0, 0, 1]
    assert along == pytest.approx(75.0, abs=1 / factor + unit_m)
    assert along / unit_m == pytest.approx(round(along / unit_m), abs=1e-6)
    assert scalar == 1 or along == 75.0


def test_depths_count_from_the_datum_or_are_given(tmp_path: Path) -> None:
    headers = [trace(1, (0, 0), (50, 0), SourceSurfaceElevation=40, SourceDepth=5, ReceiverGroupElevation=42)]
    path = write(tmp_path / "hill.sgy", headers)
    survey = read(path, datum_m=45.0)[0].survey
    assert (survey.sources_m[0, 0, 0], survey.receivers_m[0, 0, 0]) == (10.0, 3.0)
    with pytest.raises(DataError, match="35 m above the datum of 0 m: raise the model's top with --datum-m 35"):
        read(path)
    given = read(path, source_depth_m=7.0, receiver_depth_m=9.0)[0].survey
    assert (given.sources_m[0, 0, 0], given.receivers_m[0, 0, 0]) == (7.0, 9.0)


def test_feet_become_metres(tmp_path: Path) -> None:
    survey = read(write(tmp_path / "ft.sgy", [trace(1, (0, 0), (1000, 0), SourceDepth=10)], feet=True))[0].survey
    assert survey.receivers_m[0, 0, 1] == pytest.approx(304.8)
    assert survey.sources_m[0, 0, 0] == pytest.approx(3.048)


def test_offsets_shots_duration_and_codes_choose_traces(tmp_path: Path) -> None:
    headers = [trace(shot, (10 * shot, 0), (10 * shot + offset, 0)) for shot in (1, 2, 3) for offset in (0, 100, 200)]
    headers[1]["TraceIdentificationCode"] = 13
    path = write(tmp_path / "a.sgy", headers)
    records, gathers = read(path, min_offset_m=50, max_offset_m=150, every=2, duration_s=0.02)
    # Shot 1 has lost its only trace within the offsets to its code, so shots 2 and 3 are there, and 2 is the first.
    assert records.survey.sources_m[:, 0, 1].tolist() == [10.0]
    assert [gather.tolist() for gather in gathers] == [[[5.0] * 6]]
    assert [remark.split(" are ")[0] for remark in records.remarks] == [
        "1 traces of the codes [13]",
        "6 traces outside 50 to 150 m",
    ]
    assert read(path, codes=[13])[1][0][:, 0].tolist() == [2.0]
    with pytest.raises(DataError, match="no trace of the codes"):
        read(path, codes=[12])
    with pytest.raises(ConfigError, match="leave 1 of 40 samples"):
        read(path, duration_s=0.001)


def test_dead_traces_and_shots_of_them_are_left_out(tmp_path: Path) -> None:
    table = np.ones((5, SAMPLES))
    table[0] = 0.0
    table[3, 7] = np.nan
    table[4] = 0.0
    headers = [trace(1, (0, 0), (50, 0)), trace(1, (0, 0), (60, 0)), trace(1, (0, 0), (70, 0))]
    headers += [trace(2, (10, 0), (50, 0)), trace(2, (10, 0), (60, 0))]
    records, gathers = read(write(tmp_path / "a.sgy", headers, table))
    assert records.survey.receivers_m[..., 1].tolist() == [[60.0, 70.0]]
    assert (gathers[0] == 1).all()
    (remark,) = records.remarks
    assert remark == "3 dead traces (zeros, NaN or infinity) are left out, among them all of field record 2."


def test_delays_shift_traces_to_the_time_of_the_shot(tmp_path: Path) -> None:
    table = np.tile(np.arange(1.0, SAMPLES + 1), (2, 1))
    headers = [trace(1, (0, 0), (50, 0), DelayRecordingTime=80, ScalarTraceHeader=-10)]
    headers += [trace(1, (0, 0), (60, 0), DelayRecordingTime=-12)]
    _, (gather,) = read(write(tmp_path / "a.sgy", headers, table))
    assert gather.shape == (2, SAMPLES + 2)
    assert gather[0].tolist() == [0.0, 0.0, *table[0]]
    assert gather[1].tolist() == [*table[1, 3:], *[0.0] * 5]
    headers[0]["DelayRecordingTime"] = 90
    with pytest.raises(DataError, match="no whole number of samples"):
        read(write(tmp_path / "b.sgy", headers, table))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"GroupX": 0, "GroupY": 0}, "receiver coordinates .* are all zero"),
        ({"CoordinateUnits": 2}, "are angles"),
        ({"TRACE_SAMPLE_INTERVAL": 2000}, "sample intervals from 2000 to 4000"),
    ],
)
def test_headers_without_geometry_or_sampling_are_refused(tmp_path: Path, fields: dict[str, int], what: str) -> None:
    other = {} if "GroupX" not in fields else fields
    headers = [trace(1, (1, 1), (50, 0)) | fields, trace(2, (2, 1), (50, 0)) | other]
    with pytest.raises(DataError, match=what):
        read(write(tmp_path / "a.sgy", headers))


def test_a_crooked_line_and_offsets_of_another_scale_are_said(tmp_path: Path) -> None:
    headers = [trace(1, (0, 0), (x, 0.3 * x if x > 500 else 0), offset=10 * x) for x in (100, 300, 500, 700)]
    remarks = read(write(tmp_path / "a.sgy", headers))[0].remarks
    assert "shortens offsets by up to" in remarks[0]
    assert "10 times those of the coordinates" in remarks[1]


def test_a_band_is_causal_and_keeps_its_middle() -> None:
    time_s = 0.004 * np.arange(1000)
    tones = np.sin(2 * np.pi * np.array([[1.0], [6.0], [40.0]]) * time_s).astype(np.float32)
    kept = np.std(band_passed(tones, 0.004, 3.0, 12.0)[:, 500:], axis=1) / np.std(tones[:, 500:], axis=1)
    assert kept[1] == pytest.approx(1, abs=0.01)
    # 24 dB an octave: 1 Hz is 1.6 octaves below, 40 Hz 1.7 above.
    assert kept[0] < 0.02
    assert kept[2] < 0.01
    late = np.zeros((1, 100), np.float32)
    late[0, 60] = 1
    assert not band_passed(late, 0.004, 3.0, 12.0)[0, :60].any()
    with pytest.raises(ConfigError, match="0 <= low < high < 125 Hz"):
        band_passed(late, 0.004, 3.0, 125.0)


def test_a_file_of_seismic_unix_is_its_traces_alone(tmp_path: Path) -> None:
    headers = [trace(shot, (10 * shot, 0), (x, 0), TRACE_SAMPLE_COUNT=SAMPLES) for shot in (1, 2) for x in (50, 90)]
    whole = write(tmp_path / "line.sgy", headers)
    (tmp_path / "line.SU").write_bytes(whole.read_bytes()[3600:])
    (expected, gathers), (found, bare) = read(whole), read(tmp_path / "line.SU")
    assert np.array_equal(found.survey.receivers_m, expected.survey.receivers_m)
    assert found.survey.dt_s == expected.survey.dt_s
    assert np.array_equal(bare, gathers)
    (tmp_path / "cut.su").write_bytes(whole.read_bytes()[3600:-8])
    for name, sentence in (("cut.su", "1592 bytes, no whole number of traces"), ("none.su", "does not exist")):
        with pytest.raises(DataError, match=sentence):
            read(tmp_path / name)


@pytest.mark.skipif(not (SHARED.parent / "segy_odd").is_dir(), reason="the shared SEG-Y files are not on this machine")
def test_a_public_file_of_seismic_unix() -> None:
    place = SHARED.parent / "segy_odd"
    with open_segy(place / "small-lsb.su") as bare, open_segy(place / "small-lsb.sgy") as whole:
        assert np.array_equal(bare.read(np.arange(25)), whole.read(np.arange(25)))


def test_too_few_shots_leave_nothing(tmp_path: Path) -> None:
    records, gathers = read(write(tmp_path / "a.sgy", [trace(shot, (shot, 0), (50, 0)) for shot in (1, 2)]))
    for wrong in (gathers[:1], gathers * 2, [gather[:, 1:] for gather in gathers]):
        with pytest.raises(DataError, match=r"[Ss]hot"):
            write_shots(tmp_path / "a.zarr", wrong, records.survey, None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.sgy"]


@shared
def test_the_marine_line_of_viking_graben() -> None:
    """4 shots, 120 channels, offsets 262 to 3237 m, source 6 m and cable 10 m deep, as its description says."""
    records, gathers = read(SHARED / "viking_small.segy")
    survey = records.survey
    assert (survey.shots, survey.receivers, survey.samples) == (4, 120, 600)
    offsets = survey.sources_m[..., 1] - survey.receivers_m[..., 1]
    assert (offsets.min(), offsets.max()) == (262.0, 3237.0)
    assert (survey.sources_m[..., 0] == 6).all()
    assert (survey.receivers_m[..., 0] == 10).all()
    assert np.diff(survey.sources_m[:, 0, 1]).tolist() == [25.0] * 3
    assert not records.remarks
    assert float(max(gather.max() for gather in gathers)) == pytest.approx(1290.6, abs=0.05)


@shared
def test_headers_that_count_depth_upwards_are_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match="20 m above the datum"):
        read(SHARED / "unit_test_shot_records_2.segy")
    survey = read(SHARED / "unit_test_shot_records_2.segy", source_depth_m=20, receiver_depth_m=50)[0].survey
    assert (survey.shots, survey.receivers) == (2, 120)
    assert survey.sources_m[:, 0, 1] == pytest.approx([50.0, 1050.0])
