"""Bits that repeat, cells that stay zero, odd sizes, and one clear sentence for every input that cannot be computed."""

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Points, Scheme, off_grid, on_grid
from hpfwi_kernels.buffers import Pool
from hpfwi_kernels.errors import GeometryError, KernelError, ModelError, StabilityError
from hpfwi_kernels.stability import courant_limit, largest_stable_dt, substeps_needed
from hpfwi_kernels.subnormals import HAS_CONTROL

SHAPE = (17, 23)
SHOTS = 5
SAMPLES = 70


def scheme_of(**options: Any) -> Scheme:
    base: dict[str, Any] = {
        "spacing_m": (10.0, 12.0),
        "dt_s": 1.6e-3,
        "order": 4,
        "absorbing": (6, 5, 4, 7),
        "boundary": "cpml",
        "free_surface": False,
        "pml_hz": 20.0,
        "max_velocity_mps": 2500.0,
    }
    return Scheme(**(base | options))


def velocity_of(shape: tuple[int, ...] = SHAPE) -> NDArray[np.float64]:
    return np.random.default_rng(61).uniform(1500.0, 2500.0, shape)


def survey(shape: tuple[int, int] = SHAPE, shots: int = SHOTS, receivers: int = 3) -> tuple[Points, Points]:
    rng = np.random.default_rng(62)
    high = [shape[0] - 1, shape[1] - 1]
    places = [rng.uniform(0.0, high, (shots, count, 2)) for count in (1, receivers)]
    return off_grid(places[0], shape, free_surface=False), off_grid(places[1], shape, free_surface=False)


def wavelet_of(shots: int = SHOTS, samples: int = SAMPLES) -> NDArray[np.float64]:
    return np.random.default_rng(63).standard_normal((shots, 1, samples))


def everything(
    engine: Any, scheme: Scheme, shape: tuple[int, int] = SHAPE, shots: int = SHOTS, receivers: int = 3, **how: Any
) -> Any:
    """Records, and both gradients of half their sum of squares, of one small survey; `how` holds threads and pool."""
    points, wavelet, velocity = survey(shape, shots, receivers), wavelet_of(shots), velocity_of(shape)
    records, stored = engine.forward(velocity, wavelet, *points, scheme, store=True, **how)
    gradients = engine.gradient(velocity, wavelet, *points, scheme, stored, records, **how)
    return records, *gradients


@pytest.mark.parametrize(
    "options",
    [{}, {"boundary": "sponge", "min_velocity_mps": 1500.0}, {"substeps": 2, "store_every": 4}],
    ids=["cpml", "sponge", "substeps"],
)
def test_bits_do_not_depend_on_the_threads_or_the_run(options: dict[str, Any], compiled: Any) -> None:
    first, *others = (everything(compiled, scheme_of(**options), threads=threads) for threads in (1, 1, 2, 2, 3))
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_shot_computed_alone_has_the_same_bits(engine: Any) -> None:
    sources, receivers = survey()
    scheme, wavelet = scheme_of(), wavelet_of()
    together, _ = engine.forward(velocity_of(), wavelet, sources, receivers, scheme, threads=2)
    for shot in (0, 3):
        alone, _ = engine.forward(
            velocity_of(), wavelet[[shot]], sources.of_shots([shot]), receivers.of_shots([shot]), scheme
        )
        assert np.array_equal(alone[0], together[shot])


def test_storing_or_not_gives_the_same_records(engine: Any) -> None:
    points = survey()
    kept, stored = engine.forward(velocity_of(), wavelet_of(), *points, scheme_of(), store=True)
    dropped, nothing = engine.forward(velocity_of(), wavelet_of(), *points, scheme_of(), store=False)
    assert np.array_equal(kept, dropped)
    assert stored is not None
    assert nothing is None


@pytest.mark.parametrize("boundary", ["cpml", "sponge"])
def test_memory_used_before_changes_no_bits(boundary: str, compiled: Any) -> None:
    """A pool hands out what an earlier, larger propagation left behind."""
    scheme = scheme_of(boundary=boundary, min_velocity_mps=1500.0)
    points, wavelet, pool = survey(), wavelet_of(), Pool()
    fresh = everything(compiled, scheme)
    everything(compiled, scheme_of(order=8), (33, 47), pool=pool)
    for _ in range(2):
        assert all(np.array_equal(a, b) for a, b in zip(fresh, everything(compiled, scheme, pool=pool), strict=True))
    first, kept = compiled.forward(velocity_of(), wavelet, *points, scheme, store=True, pool=pool)
    before = kept.copy()
    compiled.forward(velocity_of(), 2.0 * wavelet, *points, scheme, store=True, pool=pool)
    assert np.array_equal(kept, before)
    assert np.array_equal(first, fresh[0])


def test_inputs_are_left_alone(engine: Any) -> None:
    velocity, wavelet = velocity_of().astype(engine.dtype), wavelet_of().astype(engine.dtype)
    before = velocity.copy(), wavelet.copy()
    records, stored = engine.forward(velocity, wavelet, *survey(), scheme_of(), store=True)
    engine.gradient(velocity, wavelet, *survey(), scheme_of(), stored, records)
    assert np.array_equal(velocity, before[0])
    assert np.array_equal(wavelet, before[1])


def test_dtypes_and_shapes_of_the_answer(engine: Any) -> None:
    records, velocity_gradient, wavelet_gradient = everything(engine, scheme_of())
    assert (records.shape, velocity_gradient.shape, wavelet_gradient.shape) == ((5, 3, 70), SHAPE, (5, 1, 70))
    assert {array.dtype for array in (records, velocity_gradient, wavelet_gradient)} == {np.dtype(engine.dtype)}


@pytest.mark.parametrize("order", [2, 8])
@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (15, 1), (2, 3), (16, 16), (31, 17), (33, 47)])
def test_odd_sizes_equal_the_reference(shape: tuple[int, int], order: int, compiled: Any, request: Any) -> None:
    """Poisoned buffers turn a cell that no loop wrote, or a guard that was read too far, into NaN."""
    from hpfwi_kernels.acoustic import reference

    engine = replace(compiled, module=reference, dtype=np.float64)
    expected = everything(engine, scheme_of(order=order), shape, shots=2, receivers=1)
    for result, truth in zip(
        everything(compiled, scheme_of(order=order), shape, shots=2, receivers=1), expected, strict=True
    ):
        assert np.isfinite(result).all()
        distance = np.linalg.norm(result.astype(np.float64) - truth)
        assert distance <= (1e-5 if compiled.single else 1e-12) * np.linalg.norm(truth)


@pytest.mark.parametrize("absorbing", [(0, 0, 0, 0), (1, 0, 2, 1), (40, 3, 0, 25)])
@pytest.mark.parametrize("order", [2, 4, 6, 8])
def test_any_widths_equal_the_reference(absorbing: tuple[int, int, int, int], order: int, compiled: Any) -> None:
    from hpfwi_kernels.acoustic import reference

    scheme = scheme_of(order=order, absorbing=absorbing)
    expected = everything(replace(compiled, module=reference, dtype=np.float64), scheme, shots=2)
    for result, truth in zip(everything(compiled, scheme, shots=2), expected, strict=True):
        distance = np.linalg.norm(result.astype(np.float64) - truth)
        assert distance <= (1e-5 if compiled.single else 1e-12) * np.linalg.norm(truth)


def test_points_on_every_corner_and_edge(engine: Any) -> None:
    corners = np.array([[[0, 0], [0, 22], [16, 0], [16, 22], [0, 11], [8, 0]]])
    points, wavelet, scheme = on_grid(corners, SHAPE), np.ones((1, 6, 40)), scheme_of(order=8)
    records, stored = engine.forward(velocity_of(), wavelet, points, points, scheme, store=True)
    gradients = engine.gradient(velocity_of(), wavelet, points, points, scheme, stored, records)
    assert all(np.isfinite(array).all() and array.any() for array in (records, *gradients))


def test_still_cells_stay_still(engine: Any) -> None:
    """c = 0 pins the field to zero: the guard cells rely on the same."""
    velocity = velocity_of()
    velocity[8:11, 9:14] = 0.0
    inside = on_grid(np.array([[[9, 10], [10, 13], [8, 9]]]), SHAPE)
    records, _ = engine.forward(velocity, wavelet_of(1), on_grid(np.array([[[9, 5]]]), SHAPE), inside, scheme_of())
    assert not records.any()


def test_a_wavelet_of_zeros_gives_zeros(engine: Any) -> None:
    records, _ = engine.forward(velocity_of(), np.zeros((SHOTS, 1, 30)), *survey(), scheme_of())
    assert not records.any()


def test_fields_below_the_least_normal_number_count_as_zero(fast32: Any) -> None:
    """Else the cells that a wave is about to reach cost the most; and the caller's own arithmetic is left alone."""
    if not HAS_CONTROL:
        pytest.skip("this processor has no such control register")
    scheme, wavelet = scheme_of(), 1e-35 * wavelet_of()
    records, stored = fast32.forward(velocity_of(), wavelet, *survey(), scheme, store=True)
    fast32.gradient(velocity_of(), wavelet, *survey(), scheme, stored, records)
    small = np.abs(records[records != 0])
    assert small.size
    assert small.min() >= np.finfo(np.float32).tiny
    assert np.float32(1e-39) * np.float32(2) > 0


@pytest.mark.parametrize("order", [2, 4, 6, 8])
def test_the_courant_limit_is_where_the_scheme_breaks(order: int, fast64: Any) -> None:
    """1 % below the limit the checkerboard mode stays bounded; the check refuses 1 % above it, where it would grow."""
    limit_s = largest_stable_dt(2500.0, (10.0, 12.0), order)
    velocity, points = np.full(SHAPE, 2500.0), survey()
    wavelet = np.zeros((SHOTS, 1, 2000))
    wavelet[..., 0] = 1.0
    below = scheme_of(order=order, dt_s=0.99 * limit_s, absorbing=(0, 0, 0, 0))
    records, _ = fast64.forward(velocity, wavelet, *points, below)
    assert np.abs(records[..., 1000:]).max() <= 10.0 * np.abs(records[..., :1000]).max()
    above = scheme_of(order=order, dt_s=1.01 * limit_s, absorbing=(0, 0, 0, 0))
    with pytest.raises(StabilityError):
        fast64.forward(velocity, wavelet, *points, above)


def test_a_sponge_that_no_velocity_makes_stable_is_refused(engine: Any) -> None:
    """Three cells damp by 2.4 in a step and the field would grow whatever it meets; four by 1.6."""
    narrow = scheme_of(boundary="sponge", min_velocity_mps=1500.0, absorbing=(0, 0, 3, 0))
    with pytest.raises(StabilityError, match=r"damps by 2\.\d+ in a step of 0\.0016 s .* wider or dt_s smaller"):
        engine.forward(velocity_of(), wavelet_of(), *survey(), narrow)
    engine.forward(velocity_of(), wavelet_of(), *survey(), replace(narrow, absorbing=(0, 0, 4, 0)))
    each = replace(narrow, min_velocity_mps=(600.0, 600.0, 1500.0, 600.0, 600.0))
    with pytest.raises(StabilityError, match=r"damps by 2\.\d+"):
        engine.forward(velocity_of((SHOTS, *SHAPE)), wavelet_of(), *survey(), each)


@pytest.mark.parametrize("shape", [SHAPE, (SHOTS, *SHAPE)], ids=str)
def test_sponges_without_a_model_each_are_refused(shape: tuple[int, ...], engine: Any) -> None:
    scheme = scheme_of(boundary="sponge", min_velocity_mps=(1500.0, 1600.0))
    with pytest.raises(
        ModelError, match=r"holds 2 values for a velocity of shape .*; give one number, or one for each"
    ):
        engine.forward(velocity_of(shape), wavelet_of(), *survey(), scheme)


@pytest.mark.parametrize(("order", "limit"), [(2, 1.0), (4, 0.866), (6, 0.8135), (8, 0.784)])
def test_courant_limits(order: int, limit: float) -> None:
    assert courant_limit(order) == pytest.approx(limit, abs=5e-4)


def test_an_unstable_step_names_the_largest_stable_one(engine: Any) -> None:
    """The largest step and the number of substeps in the sentence must themselves be accepted."""
    peak = float(velocity_of().max())
    with pytest.raises(StabilityError, match=r"Use dt_s <= ([0-9.e-]+), or substeps=2\.") as caught:
        engine.forward(velocity_of(), wavelet_of(), *survey(), scheme_of(dt_s=3e-3))
    named = float(str(caught.value).split("dt_s <= ")[1].split(",")[0])
    assert named == pytest.approx(largest_stable_dt(peak, (10.0, 12.0), 4), rel=1e-5)
    assert substeps_needed(peak, 3e-3, (10.0, 12.0), 4) == 2
    engine.forward(velocity_of(), wavelet_of(), *survey(), scheme_of(dt_s=3e-3, substeps=2))
    engine.forward(velocity_of(), wavelet_of(), *survey(), scheme_of(dt_s=0.9999 * named))


def refused(engine: Any, **changes: Any) -> None:
    sources, receivers = survey()
    case = {"velocity": velocity_of(), "wavelet": wavelet_of(), "sources": sources, "receivers": receivers} | changes
    engine.forward(case["velocity"], case["wavelet"], case["sources"], case["receivers"], scheme_of())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_velocity_that_is_no_number_is_named(value: float, engine: Any) -> None:
    velocity = velocity_of()
    velocity[4, 5] = value
    with pytest.raises(ModelError, match=rf"velocity is {value} at cell \(4, 5\)"):
        refused(engine, velocity=velocity)


def test_a_wavelet_that_is_no_number_is_named(engine: Any) -> None:
    wavelet = wavelet_of()
    wavelet[2, 0, 7] = np.nan
    with pytest.raises(ModelError, match=r"wavelet is nan at .*\(2, 0, 7\)"):
        refused(engine, wavelet=wavelet)


def test_a_shot_without_points_is_named(engine: Any) -> None:
    nothing = np.full((SHOTS, 1, 2), 5.0)
    nothing[3] = np.nan
    empty = off_grid(nothing, SHAPE, free_surface=False)
    with pytest.raises(GeometryError, match="Shot 3 has no source"):
        refused(engine, sources=empty)
    with pytest.raises(GeometryError, match="Shot 3 has no receiver"):
        refused(engine, receivers=empty)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"velocity": np.full((3, *SHAPE), 2000.0)}, "3 models for 5 shots"),
        ({"velocity": np.full(7, 2000.0)}, r"must be \[z, x\] or \[shot, z, x\]"),
        ({"velocity": np.full((0, 4), 2000.0)}, "has no cells"),
        ({"wavelet": np.zeros((5, 70))}, r"must be \[shot, source, time\]"),
        ({"wavelet": np.zeros((5, 1, 0))}, "holds nothing"),
        ({"wavelet": np.zeros((0, 1, 9))}, "holds nothing"),
        ({"wavelet": np.zeros((5, 2, 9))}, "5 shots of 2 sources, the geometry has 5 shots of 1"),
        ({"wavelet": np.zeros((4, 1, 9))}, "4 shots of 1 sources, the geometry has 5 shots of 1"),
        ({"receivers": survey(shots=2)[1]}, "Receivers are given for 2 shots"),
    ],
)
def test_wrong_shapes_are_refused(changes: dict[str, Any], sentence: str, engine: Any) -> None:
    with pytest.raises(KernelError, match=sentence):
        refused(engine, **changes)


def test_a_record_gradient_of_another_shape_is_refused(engine: Any) -> None:
    points = survey()
    _, stored = engine.forward(velocity_of(), wavelet_of(), *points, scheme_of(), store=True)
    with pytest.raises(KernelError, match=r"\(5, 3, 69\)"):
        engine.gradient(velocity_of(), wavelet_of(), *points, scheme_of(), stored, np.zeros((5, 3, 69)))


def test_points_made_for_a_larger_model_are_refused(engine: Any) -> None:
    """on_grid checks against the shape it is told; the kernel must not read or write outside of what it is given."""
    far = on_grid(np.full((SHOTS, 1, 2), 200), (300, 300))
    with pytest.raises(GeometryError):
        refused(engine, receivers=far)
    with pytest.raises(GeometryError):
        refused(engine, sources=far)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"order": 5}, "order=5 is not available; use one of 2, 4, 6, 8"),
        ({"dt_s": 0.0}, "dt_s=0.0 must be a positive number"),
        ({"dt_s": float("nan")}, "dt_s=nan"),
        ({"spacing_m": (10.0, -1.0)}, r"spacing_m\[1\]=-1.0"),
        ({"absorbing": (1, 2, 3)}, "four widths"),
        ({"absorbing": (1, 2, 3, -4)}, "none below 0"),
        ({"boundary": "hard"}, 'use "cpml" or "sponge"'),
        ({"boundary": "sponge"}, "min_velocity_mps=None must be positive"),
        ({"boundary": "sponge", "min_velocity_mps": (1500.0, 0.0)}, r"min_velocity_mps\[1\]=0.0 must be positive"),
        ({"boundary": "sponge", "min_velocity_mps": ()}, r"min_velocity_mps\[0\]=None must be positive"),
        ({"free_surface": True}, "set the top width to 0"),
        ({"pml_hz": -1.0}, "pml_hz=-1.0"),
        ({"substeps": 0}, "substeps=0"),
        ({"store_every": 1.5}, "store_every=1.5"),
        ({"max_velocity_mps": 0.0}, "max_velocity_mps=0.0"),
    ],
)
def test_a_scheme_that_makes_no_sense_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        scheme_of(**options)


@pytest.mark.parametrize("kind", [KernelError, StabilityError, GeometryError, ModelError])
def test_errors_survive_a_trip_between_processes(kind: type[KernelError]) -> None:
    error = pickle.loads(pickle.dumps(kind("One finished sentence.")))
    assert type(error) is kind
    assert str(error) == "One finished sentence."
