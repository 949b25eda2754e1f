"""The 3-D loops equal the reference and deepwave, repeat bit for bit, and refuse what they cannot compute."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import deepwave
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Points, Scheme, cpu_3d, off_grid, on_grid, propagate, reference
from hpfwi_kernels.acoustic.layout_3d import Stack
from hpfwi_kernels.acoustic.memory import Memory
from hpfwi_kernels.buffers import Pool
from hpfwi_kernels.errors import GeometryError, KernelError, ModelError, StabilityError
from hpfwi_kernels.stability import largest_stable_dt

SHAPE = (11, 13, 15)
SPACING_M = (10.0, 11.0, 12.0)
SAMPLES = 60
WIDTHS = (6, 5, 4, 7, 3, 6)


def scheme_of(**options: Any) -> Scheme:
    base: dict[str, Any] = {
        "spacing_m": SPACING_M,
        "dt_s": 1.2e-3,
        "order": 4,
        "absorbing": WIDTHS,
        "boundary": "cpml",
        "free_surface": False,
        "pml_hz": 20.0,
        "max_velocity_mps": 2500.0,
    }
    return Scheme(**(base | options))


def velocity_of(shape: tuple[int, ...] = SHAPE) -> NDArray[np.float64]:
    return np.random.default_rng(31).uniform(1500.0, 2500.0, shape)


def survey(scheme: Scheme, shape: tuple[int, ...] = SHAPE, shots: int = 2) -> tuple[Points, Points]:
    """One source and three receivers a shot, anywhere between cells; the last receiver of shot 0 is absent."""
    rng, high = np.random.default_rng(32), [size - 1 for size in shape[-3:]]
    places = [rng.uniform(0.0, high, (shots, count, 3)) for count in (1, 3)]
    places[1][0, 2] = np.nan
    sources, receivers = (off_grid(place, shape[-3:], free_surface=scheme.free_surface) for place in places)
    return sources, receivers


def everything(engine: Any, scheme: Scheme, shape: tuple[int, ...] = SHAPE, shots: int = 2, **how: Any) -> Any:
    """Records, and both gradients of half their sum of squares, of one small survey; `how` is for the engine."""
    points, velocity = survey(scheme, shape, shots), velocity_of(models_of(scheme, shape))
    wavelet = np.random.default_rng(33).standard_normal((shots, 1, SAMPLES))
    records, stored = engine.forward(velocity, wavelet, *points, scheme, store=True, **how)
    return records, *engine.gradient(velocity, wavelet, *points, scheme, stored, records, **how)


def models_of(scheme: Scheme, shape: tuple[int, ...] = SHAPE) -> tuple[int, ...]:
    """The shape of a model for all shots, or of one for each where each has a sponge."""
    sponges = len(scheme.sponges_mps)
    return (sponges, *shape) if sponges > 1 else shape


def distance(result: NDArray, truth: NDArray) -> float:
    """Relative L2 distance over the whole array, in float64."""
    assert result.shape == truth.shape
    return float(np.linalg.norm(result.astype(np.float64) - truth) / np.linalg.norm(truth))


@pytest.fixture
def definition(fast64: Any) -> Any:
    """The reference."""
    return replace(fast64, module=reference)


@pytest.fixture
def double(fast64: Any) -> Any:
    """The compiled loops in float64."""
    return replace(fast64, module=cpu_3d)


@pytest.fixture
def single(fast32: Any) -> Any:
    """The compiled loops in float32."""
    return replace(fast32, module=cpu_3d)


CASES: dict[str, dict[str, Any]] = {
    "order-2": {"order": 2},
    "order-4": {},
    "order-6": {"order": 6},
    "order-8": {"order": 8},
    "free-surface": {"free_surface": True, "absorbing": (0, *WIDTHS[1:])},
    "free-surface-order-8": {"free_surface": True, "absorbing": (0, 0, *WIDTHS[2:]), "order": 8},
    "sponge": {"boundary": "sponge", "min_velocity_mps": 1500.0},
    "sponge-free-surface": {
        "boundary": "sponge", "min_velocity_mps": 1500.0, "free_surface": True, "absorbing": (0, *WIDTHS[1:]),
    },
    "sponge-for-each-model": {"boundary": "sponge", "min_velocity_mps": (1500.0, 800.0)},
    "no-layer": {"absorbing": (0,) * 6},
    "wider-than-the-model": {"absorbing": (20, 1, 0, 4, 30, 2)},
    "only-in-front": {"absorbing": (0, 0, 5, 0, 0, 0)},
    "substeps": {"substeps": 2, "store_every": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_float64_equals_the_reference(name: str, definition: Any, double: Any) -> None:
    scheme = scheme_of(**CASES[name])
    expected = everything(definition, scheme)
    assert all(distance(*pair) <= 1e-12 for pair in zip(everything(double, scheme), expected, strict=True))


@pytest.mark.parametrize("name", ["order-4", "order-8", "free-surface", "sponge-for-each-model", "substeps"])
def test_float32_equals_the_reference(name: str, definition: Any, single: Any) -> None:
    scheme = scheme_of(**CASES[name])
    expected = everything(definition, scheme)
    assert all(distance(*pair) <= 1e-5 for pair in zip(everything(single, scheme), expected, strict=True))


@pytest.mark.parametrize("order", [2, 8])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 33), (19, 1, 2), (2, 31, 1), (9, 16, 16)])
def test_odd_sizes_equal_the_reference(shape: tuple[int, ...], order: int, definition: Any, double: Any) -> None:
    """Poisoned buffers turn a cell that no loop wrote, or a guard that was read too far, into NaN."""
    scheme = scheme_of(order=order, absorbing=(3, 2, 1, 3, 2, 2))
    expected = everything(definition, scheme, shape, shots=1)
    assert all(
        distance(*pair) <= 1e-12 for pair in zip(everything(double, scheme, shape, shots=1), expected, strict=True)
    )


def test_one_model_per_shot(definition: Any, double: Any) -> None:
    scheme = scheme_of()
    expected = everything(definition, scheme, (2, *SHAPE))
    result = everything(double, scheme, (2, *SHAPE), threads=2)
    assert all(distance(*pair) <= 1e-12 for pair in zip(result, expected, strict=True))


PEER: dict[str, dict[str, Any]] = {
    "order-4": {"absorbing": (5, 7, 4, 6, 8, 3)},
    "order-8": {"order": 8, "absorbing": (6,) * 6},
    "free-surface": {"free_surface": True, "absorbing": (0, 6, 6, 0, 6, 6)},
    "every-third-step": {"store_every": 3},
}


@pytest.mark.filterwarnings("ignore::deepwave.ZeroWidthFaceWarning")
@pytest.mark.parametrize("name", PEER)
def test_equals_deepwave_in_float64(
    name: str, definition: Any, double: Any, single: Any, ricker: Callable[..., NDArray[np.float64]]
) -> None:
    """deepwave's wavelet has the opposite sign; its free surface lies a cell above its first plane, ours on it."""
    scheme, rng = scheme_of(**PEER[name]), np.random.default_rng(34)
    above = 1 if scheme.free_surface else 0
    cells = [
        np.stack(np.unravel_index(rng.choice(10 * 13 * 15, (2, count), replace=False), (10, 13, 15)), axis=-1)
        + np.array([1, 0, 0])
        for count in (1, 9)
    ]
    wavelet = rng.uniform(0.5, 2.0, (2, 1, 1)) * ricker(20.0, scheme.dt_s, 90)
    velocity = torch.tensor(velocity_of()[above:], requires_grad=True)
    amplitudes = torch.tensor(-wavelet, requires_grad=True)
    out = deepwave.scalar(
        velocity,
        scheme.spacing_m,
        scheme.dt_s,
        source_amplitudes=amplitudes,
        source_locations=torch.tensor(cells[0] - np.array([above, 0, 0])),
        receiver_locations=torch.tensor(cells[1] - np.array([above, 0, 0])),
        accuracy=scheme.order,
        pml_width=list(scheme.absorbing),
        boundary=["free", *["pml"] * 5] if scheme.free_surface else None,
        pml_freq=scheme.pml_hz,
        max_vel=scheme.max_velocity_mps,
        model_gradient_sampling_interval=scheme.store_every,
    )
    assert out.info.step_ratio == scheme.substeps
    weights = rng.uniform(-1.0, 1.0, (2, 9, 1))
    record_gradient = out.receiver_amplitudes.detach() * torch.tensor(weights)
    out.receiver_amplitudes.backward(record_gradient)
    assert velocity.grad is not None
    assert amplitudes.grad is not None
    velocity_gradient = np.zeros(SHAPE)
    velocity_gradient[above:] = velocity.grad.numpy()
    expected = out.receiver_amplitudes.detach().numpy(), velocity_gradient, -amplitudes.grad.numpy()
    points = [on_grid(places, SHAPE) for places in cells]
    for engine, bar in ((definition, 1e-11), (double, 1e-11), (single, 1e-5)):
        records, stored = engine.forward(velocity_of(), wavelet, *points, scheme, store=True)
        gradients = engine.gradient(velocity_of(), wavelet, *points, scheme, stored, expected[0] * weights)
        assert all(distance(*pair) <= bar for pair in zip((records, *gradients), expected, strict=True))


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("name", ["order-4", "free-surface", "sponge"])
def test_bits_do_not_depend_on_threads_runs_or_memory(name: str, shots: int, single: Any) -> None:
    scheme, pool, shape = scheme_of(**CASES[name], store_every=2), Pool(), (24, 13, 15)
    first = everything(single, scheme, shape, shots)
    checkpoint = Memory(mode="checkpoint", segment_steps=14)
    for how in ({}, {"threads": 2, "pool": pool}, {"threads": 5, "pool": pool}, {"memory": checkpoint, "threads": 2}):
        other = everything(single, scheme, shape, shots, **how)
        assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_sponge_for_each_model_is_what_each_has_alone(single: Any) -> None:
    scheme, wavelet = scheme_of(**CASES["sponge-for-each-model"]), np.random.default_rng(33).standard_normal((2, 1, 60))
    velocity, points = velocity_of(models_of(scheme)), survey(scheme)
    together, _ = single.forward(velocity, wavelet, *points, scheme, threads=2)
    for shot, made_for in enumerate(scheme.sponges_mps):
        own = [one.of_shots([shot]) for one in points]
        alone = replace(scheme, min_velocity_mps=made_for)
        records, _ = single.forward(velocity[shot], wavelet[[shot]], *own, alone)
        assert np.array_equal(records[0], together[shot])


def test_half_keeps_the_gradient_to_three_digits(single: Any) -> None:
    scheme = scheme_of()
    records, exact, _ = everything(single, scheme)
    same, rounded, _ = everything(single, scheme, memory=Memory(half=True))
    assert np.array_equal(records, same)
    assert 0.0 < distance(rounded, exact.astype(np.float64)) <= 5e-3


def test_a_small_part_of_a_large_field_is_addressed_in_64_bits() -> None:
    """2500³ cells are more than 2³² and their bytes more than 2³⁵."""
    stack, corner = Stack(planes=2500, rows=2500, columns=2500, radius=4), np.array([2499])
    (index,) = stack.cells((corner, corner, corner))
    assert int(index) == 2503 * stack.hop + 2503 * stack.plane.stride + 16 + 2499
    assert int(index) < stack.size


def test_the_torch_operation_takes_three_dimensions(single: Any) -> None:
    scheme = scheme_of()
    points, wavelet = survey(scheme), np.random.default_rng(33).standard_normal((2, 1, SAMPLES)).astype(np.float32)
    velocity = torch.tensor(velocity_of().astype(np.float32), requires_grad=True)
    amplitudes = torch.tensor(wavelet, requires_grad=True)
    records = propagate(velocity, amplitudes, *points, scheme, threads=2)
    (0.5 * records.square().sum()).backward()
    expected = everything(single, scheme)
    for result, truth in zip((records.detach(), velocity.grad, amplitudes.grad), expected, strict=True):
        assert result is not None
        assert np.array_equal(result.numpy(), truth)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"absorbing": (1, 2, 3, 4)}, r"six widths in cells \(top, bottom, front, back, left, right\), none below 0"),
        ({"absorbing": (1, 2, 3, 4, 5, -6)}, "none below 0"),
        ({"spacing_m": (10.0,)}, r"cell size \(dz, dx\) or \(dz, dy, dx\)"),
        ({"spacing_m": (10.0, 0.0, 10.0)}, r"spacing_m\[1\]=0.0"),
        ({"free_surface": True}, "set the top width to 0"),
    ],
)
def test_a_scheme_that_makes_no_sense_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        scheme_of(**options)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"velocity": velocity_of((13, 15))}, r"must be \[z, y, x\] or \[shot, z, y, x\]"),
        ({"velocity": velocity_of((3, *SHAPE))}, "3 models for 2 shots"),
        ({"velocity": velocity_of((11, 13, 14))}, "11 x 13 x 15 cells and velocity has 11 x 13 x 14"),
        (
            {"velocity": np.where(np.indices(SHAPE).sum(axis=0) == 3, np.nan, 2000.0)},
            r"velocity is nan at cell \(0, 0, 3",
        ),
        ({"memory": Memory(half=True)}, "half=True keeps float32 brackets in 16 bits and velocity is float64"),
    ],
)
def test_what_cannot_be_computed_is_refused(changes: dict[str, Any], sentence: str, double: Any) -> None:
    scheme = scheme_of()
    case = {"velocity": velocity_of(), "memory": Memory()} | changes
    with pytest.raises(KernelError, match=sentence):
        double.forward(case["velocity"], np.ones((2, 1, 5)), *survey(scheme), scheme, memory=case["memory"])


def test_a_point_outside_the_model_is_named() -> None:
    with pytest.raises(
        GeometryError, match=r"cell \(z=1, y=13, x=2\), outside the model of 11 x 13 x 15 cells; move it"
    ):
        on_grid(np.array([[[1, 13, 2]]]), SHAPE)


def test_an_unstable_step_names_the_largest_stable_one(double: Any) -> None:
    scheme = scheme_of(dt_s=4e-3)
    with pytest.raises(StabilityError, match=r"Use dt_s <= ([0-9.e-]+), or substeps=2\.") as caught:
        double.forward(velocity_of(), np.ones((2, 1, 5)), *survey(scheme), scheme)
    named = float(str(caught.value).split("dt_s <= ")[1].split(",")[0])
    assert named == pytest.approx(largest_stable_dt(float(velocity_of().max()), SPACING_M, 4), rel=1e-5)
