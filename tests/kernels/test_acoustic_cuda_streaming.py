"""The streaming kernels: their source and their host code run on the processor against the reference."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpfwi_kernels.acoustic import Memory, Scheme, cuda, cuda_streaming, cuda_streaming_layout, off_grid
from hpfwi_kernels.acoustic.cuda_call import outlined
from hpfwi_kernels.errors import ModelError
from tests.kernels.cuda_on_cpu import Processor, Survey, distance, right_answers
from tests.kernels.cupy_on_cpu import operation_on

LIMITS = cuda.Limits("a test", 132, 99 * 1024, clusters=False)
# In 2-D with one tile that no layer touches, in the middle.
SHAPES = {2: (70, 266), 3: (9, 17, 21)}
SMALL = (29, 45)
WIDTHS = (6, 5, 4, 7, 3, 6)
SAMPLES = 40


def survey_of(
    dimensions: int = 2,
    shots: int = 1,
    models: int = 1,
    shape: tuple[int, ...] = (),
    samples: int = SAMPLES,
    **options: Any,
) -> Survey:
    """Sources between cells all over the model and a receiver near each; the last receiver of shot 0 is absent."""
    shape = shape or SHAPES[dimensions]
    base: dict[str, Any] = {
        "spacing_m": (10.0, 11.0, 12.0)[:dimensions],
        "dt_s": 1.2e-3,
        "order": 4,
        "absorbing": WIDTHS,
        "boundary": "cpml",
        "free_surface": False,
        "pml_hz": 20.0,
        "max_velocity_mps": 2500.0,
    } | options
    scheme = Scheme(**(base | {"absorbing": base["absorbing"][: 2 * dimensions]}))
    shots, models = max(shots, len(scheme.sponges_mps)), max(models, len(scheme.sponges_mps))
    rng, high = np.random.default_rng(32), np.array(shape) - 1
    spread = np.array([[0.02, 0.02, 0.05], [0.5, 0.48, 0.5], [0.97, 0.96, 0.98], [0.8, 0.93, 0.2], [0.05, 0.5, 0.9]])
    near = spread[:, :dimensions] * high + rng.uniform(-3.0, 3.0, (2, shots, len(spread), dimensions))
    places = np.clip(near, 0, high)
    places[1][0, -1] = np.nan
    sources, receivers = (off_grid(place, shape, free_surface=scheme.free_surface) for place in places)
    velocity = rng.uniform(1500.0, 2500.0, shape if models == 1 else (models, *shape))
    return Survey(scheme, velocity, rng.standard_normal((shots, len(spread), samples)), sources, receivers)


def streamed(processor: Processor, survey: Survey, memory: Memory | None = None, **how: Any) -> tuple[NDArray, ...]:
    """Records and both gradients from the kernels."""
    return operation_on(processor, survey, memory or Memory(), LIMITS, streams=True, **({"order": 0} | how))


def require_the_reference(found: tuple[NDArray, ...], survey: Survey) -> None:
    for result, right in zip(found, right_answers(survey), strict=False):
        assert distance(result, right) < 1e-5


def require_the_same_bits(found: tuple[NDArray, ...], other: tuple[NDArray, ...]) -> None:
    for one, same in zip(found, other, strict=True):
        np.testing.assert_array_equal(one, same)


def kernels_of(dimensions: int) -> set[str]:
    """What most tests run, compiled at once."""
    names = {f"{way}_{dimensions}d<{r}, CPML, FULL>" for way in ("forward", "back") for r in (1, 2, 3, 4)}
    for way in ("forward", "back"):
        names |= {f"{way}_{dimensions}d<2, SPONGE, {keep}>" for keep in ("FULL", "NOTHING")}
        names |= {f"{way}_{dimensions}d<2, CPML, {keep}>" for keep in ("NOTHING", "HALF")}
    names |= {f"rewind_{dimensions}d<2, {counts}>" for counts in ("true", "false")}
    return names.union(*(cuda_streaming.once_per_call(radius) for radius in (1, 2, 3, 4)))


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    made = Processor(tmp_path_factory.mktemp("streaming"))
    for dimensions in (2, 3):
        made.compile(kernels_of(dimensions))
    return made


CASES: dict[str, dict[str, Any]] = {
    "order-2": {"order": 2},
    "order-4": {},
    "order-6": {"order": 6},
    "order-8": {"order": 8},
    "free-surface": {"free_surface": True, "absorbing": (0, *WIDTHS[1:])},
    "sponge": {"boundary": "sponge", "min_velocity_mps": 1500.0},
    "sponge-free-surface": {
        "boundary": "sponge", "min_velocity_mps": 1500.0, "free_surface": True, "absorbing": (0, *WIDTHS[1:]),
    },
    "sponge-for-each-model": {"boundary": "sponge", "min_velocity_mps": (1500.0, 800.0)},
    "no-layer": {"absorbing": (0,) * 6},
    "every-third-step": {"store_every": 3},
}  # fmt: skip


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str, dimensions: int, processor: Processor) -> None:
    survey = survey_of(dimensions, **CASES[name])
    require_the_reference(streamed(processor, survey), survey)


@pytest.mark.parametrize("shape", [SMALL, (1, 1), (5, 33), (33, 2), (3, 1, 2), (1, 20, 5)], ids=str)
def test_odd_sizes_and_several_shots_equal_the_reference(shape: tuple[int, ...], processor: Processor) -> None:
    """A model for each shot; layers that are wider than the model and overlap, and a layer of one cell."""
    survey = survey_of(len(shape), shots=2, models=2, shape=shape, absorbing=(12, 1, 0, 9, 10, 3))
    require_the_reference(streamed(processor, survey), survey)


@pytest.mark.slow
@pytest.mark.parametrize("order", [4, 8])
def test_blocks_that_no_layer_touches_in_3d(order: int, processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_streaming_layout, "SHORTEST_RUN", 4)
    survey = survey_of(3, shape=(24, 36, 133), samples=14, order=order, absorbing=(2, 2, 4, 7, 3, 6), dt_s=1.9e-3)
    layout = cuda_streaming_layout.Layout(survey.problem, "adjoint", rewinds=False)
    assert layout.tile == (4, 16, 64)
    params = layout.params(0, 0, 14)[0]
    # The tile in the middle.
    assert all(params["inner_low"] <= (12, 16, 64))
    assert all(params["inner_high"] >= (16, 32, 128))
    require_the_reference(streamed(processor, survey), survey)


FREE = {"free_surface": True, "absorbing": (0, *WIDTHS[1:])}
SPONGE = {"boundary": "sponge", "min_velocity_mps": 1500.0}
SPONGES = CASES["sponge-for-each-model"]
SIZES = {2: SMALL, 3: (7, 13, 16)}
"""In 3-D with rows of 25 cells, or of 24, which are whole vectors."""
WHOLE = {"absorbing": (6, 5, 4, 7, 3, 5)}


@pytest.mark.parametrize(
    ("dimensions", "options"),
    [
        (2, {"store_every": 2}), (2, SPONGES), (3, {}), (3, {"store_every": 3}), (3, FREE),
        (3, WHOLE), (3, SPONGES),
    ],
    ids=str,
)  # fmt: skip
def test_orders_of_threads_and_segments_do_not_show(
    dimensions: int, options: dict[str, Any], processor: Processor
) -> None:
    """First to last, last to first, shuffled, in segments run again from states passed on: the same bits."""
    survey = survey_of(dimensions, shots=2, models=2, shape=SIZES[dimensions], samples=24, **options)
    found = streamed(processor, survey)
    require_the_reference(found, survey)
    require_the_same_bits(streamed(processor, survey, order=1), found)
    segments = Memory(mode="checkpoint", segment_steps=11)
    require_the_same_bits(streamed(processor, survey, segments, order=7), found)


@pytest.mark.parametrize(
    ("dimensions", "options"),
    [(2, {}), (3, {}), (3, {"store_every": 2}), (3, WHOLE)],
    ids=str,
)
def test_brackets_in_sixteen_bits(dimensions: int, options: dict[str, Any], processor: Processor) -> None:
    """Their digits alone are lost; in segments and in any order of threads nothing else is."""
    survey = survey_of(dimensions, shots=2, shape=SIZES[dimensions], samples=24, **options)
    exact, half = (streamed(processor, survey, Memory(half=half)) for half in (False, True))
    require_the_same_bits((half[0], half[2]), (exact[0], exact[2]))
    assert 1e-4 < distance(half[1], exact[1]) < 2**-7
    segments = Memory(mode="checkpoint", half=True, segment_steps=11)
    require_the_same_bits(streamed(processor, survey, segments, order=7), half)


@pytest.mark.parametrize(
    ("dimensions", "options"),
    [
        (2, {}), (2, {"store_every": 2}), (2, FREE), (2, SPONGE), (3, {}), (3, {"store_every": 2}), (3, FREE),
        (3, SPONGE), (3, SPONGE | FREE), (3, {"absorbing": (0,) * 6}),
    ],
    ids=str,
)  # fmt: skip
def test_the_field_run_backwards_from_its_ring(dimensions: int, options: dict[str, Any], processor: Processor) -> None:
    """What the layer-free core contributes to the gradient; nothing from the layers and what they reach."""
    survey = survey_of(dimensions, shots=2, shape=(*SIZES[dimensions][:-1], 45), samples=24, **options)
    found = streamed(processor, survey, Memory(mode="boundary"))
    stored = streamed(processor, survey)
    require_the_same_bits((found[0], found[2]), (stored[0], stored[2]))
    core = tuple(
        slice(max(first - low, 1), min(last - low, cells) - 1)
        for (first, last), (low, _), cells in zip(
            survey.problem.core, survey.scheme.widths, survey.velocity.shape, strict=True
        )
    )
    assert stored[1][core].size > 0
    assert 0 < distance(found[1][core], stored[1][core]) < 1e-5
    for order in (1, 7):
        require_the_same_bits(streamed(processor, survey, Memory(mode="boundary"), order=order), found)


BREAKS = {
    "no barrier between a plane's halo and its update": (
        3,
        "        __syncthreads();\n        if (z + 1 < end) {",
        "        if (z + 1 < end) {",
    ),
    "no barrier before what a source adds": (
        2,
        "    if (begin == end) return;\n    __syncthreads();",
        "    if (begin == end) return;",
    ),
    "a halo of one row less": (3, "halo.any = me < rows + 2 * SIDE;", "halo.any = me >= SIDE && me < rows + 2 * SIDE;"),
    "a block that takes itself for an inner one": (
        2,
        "from[axis] >= p.inner_low[axis]",
        "from[axis] + 32 > p.inner_low[axis]",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_seen(name: str, tmp_path: Path) -> None:
    dimensions, right, wrong = BREAKS[name]

    def edit(text: str) -> str:
        assert text.count(right) == 1
        return text.replace(right, wrong)

    survey = survey_of(dimensions, shape={2: (45, 150), 3: (4, 33, 6)}[dimensions], samples=20)
    expected = right_answers(survey)[0]
    broken = Processor(tmp_path, edit)
    broken.compile({f"forward_{dimensions}d<2, CPML, NOTHING>", *cuda_streaming.once_per_call(2)})
    with np.errstate(all="ignore"):
        results = [streamed(broken, survey, order=order, gradient=False)[0] for order in (0, 1)]
    assert max(distance(np.nan_to_num(result, nan=1e30), expected) for result in results) > 1e-3


def test_more_shots_than_a_launch_has_room_for_are_refused() -> None:
    outline = replace(survey_of(shape=SMALL).problem, shots=65536)
    with pytest.raises(ModelError, match=r"65536 shots .* more than the 65535 .* fewer at a time"):
        cuda_streaming_layout.Layout(outline, "forward", rewinds=False)


def layout_of(shape: tuple[int, ...], width: int = 20, shots: int = 1) -> cuda_streaming_layout.Layout:
    scheme = replace(
        survey_of(2 if len(shape) == 2 else 3).scheme,
        spacing_m=(10.0,) * len(shape),
        absorbing=(width,) * 2 * len(shape),
    )
    outline = outlined(scheme, scheme.padded(shape), shots=shots, models=1, steps=2)
    return cuda_streaming_layout.Layout(outline, "forward", rewinds=False)


def test_numbers_beyond_32_bits_are_refused() -> None:
    """In two dimensions those of a field with its frame, in three those of the cells."""
    assert layout_of((40000, 53640), 4).field < 2**31
    with pytest.raises(
        ModelError, match=r"^A padded model of 40008 x 53668 cells takes 2147\d+ numbers, more than the 2"
    ):
        layout_of((40000, 53660), 4)
    assert layout_of((1280, 1280, 1280), 5).field > 2**31
    with pytest.raises(ModelError, match=r"^A padded model of 1290 x 1290 x 1310 cells takes 2179971000 numbers"):
        layout_of((1280, 1280, 1300), 5)


def test_runs_of_planes_fill_a_gpu() -> None:
    """Two blocks on each of 132 multiprocessors, in rounds of which the last is nearly full."""
    tiles = layout_of((256, 256, 256)).tiles
    assert tiles[0] * tiles[1] * tiles[2] == 760
    assert layout_of((64, 64, 64)).tiles[0] == 3
    assert layout_of((256, 256, 256), shots=8).tiles[0] == 1
