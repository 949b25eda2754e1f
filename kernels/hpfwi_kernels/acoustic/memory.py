"""How the wavefield reaches the adjoint run: kept, computed again, or run backwards; and what each needs in bytes."""

import math
from dataclasses import dataclass
from typing import Literal

from hpfwi_kernels.acoustic.bands import between
from hpfwi_kernels.acoustic.layout import Layout
from hpfwi_kernels.acoustic.scheme import Scheme
from hpfwi_kernels.errors import ModelError

Mode = Literal["store", "checkpoint", "boundary"]
STATE_FIELDS = 6
"""u now and before, psi and zeta of both axes: all that the next step needs."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a forward run keeps for its gradient; frozen, checked on construction.

    Raises ModelError for a setting that makes no sense.
    """

    mode: Mode = "store"
    """store: the bracket w of every store_every-th step. checkpoint: the state at the start of each segment of steps;
    the adjoint runs a segment again and keeps its brackets: same bits as store for one more forward run. boundary: the
    cells around the layer-free core at every step and the last two fields; the adjoint runs the field backwards from
    them, within rounding, and the gradient holds what the core contributes, nothing from the layers."""
    half: bool = False
    """Keep float32 brackets as bfloat16: half the bytes, 8 bits of precision. Not for "boundary", nor in float64."""
    segment_steps: int | None = None
    """Inner steps in a segment of "checkpoint", rounded up to an even multiple of store_every; None takes what needs
    the least memory."""

    def __post_init__(self) -> None:
        if self.mode not in ("store", "checkpoint", "boundary"):
            raise ModelError(f'mode="{self.mode}" is not available; use "store", "checkpoint" or "boundary".')
        if self.half and self.mode == "boundary":
            raise ModelError(
                'half=True keeps brackets in 16 bits and mode="boundary" keeps none; leave one of them out.'
            )
        if self.segment_steps is not None and self.segment_steps < 1:
            raise ModelError(f"segment_steps={self.segment_steps} must be at least 1.")


STORE = Memory()


@dataclass(frozen=True)
class Choice:
    """A way to hold the wavefield, the bytes a gradient takes with it at its peak, and why it was chosen."""

    memory: Memory
    peak_bytes: int
    reason: str


def segments(memory: Memory, scheme: Scheme, steps: int, shots: int, threads: int) -> list[tuple[int, int]]:
    """First and last+1 step of each segment; all but the last have an even multiple of store_every steps.

    An even number of steps leaves fields that change places at every step where they were.
    """
    if memory.mode != "checkpoint":
        return [(0, steps)]
    length = memory.segment_steps
    if length is None:
        # Checkpoints shrink and kept brackets grow with the length; their sum is least where both are equal.
        length = math.ceil(math.sqrt(STATE_FIELDS * shots * steps * scheme.store_every / max(1, min(threads, shots))))
    unit = math.lcm(2, scheme.store_every)
    length = -(-length // unit) * unit
    return [(begin, min(begin + length, steps)) for begin in range(0, steps, length)]


def core(layout: Layout, scheme: Scheme) -> tuple[int, int, int, int]:
    """First and last+1 row and column, as in a layout's fields, of the cells whose update no layer touches.

    For a sponge, whose damped update cannot be run backwards, these are the undamped cells. Columns come in whole
    vectors. Raises ModelError when there are none.
    """
    top, bottom, left, right = scheme.absorbing
    reach = scheme.radius if scheme.boundary == "cpml" else 0
    first_row, last_row, first, last = (int(edge) for edge in layout.box[:4])
    rows = between(layout.row_strips(top, bottom, reach), first_row, last_row)
    columns = between(layout.column_strips(left, right, reach), first, last)
    if rows[0] >= rows[1] or columns[0] >= columns[1]:
        raise ModelError(
            f"A model of {layout.rows} x {layout.columns} cells, layers included, has no cell out of reach of its "
            'absorbing layers, which mode="boundary" needs; use "store" or "checkpoint".'
        )
    return *rows, *columns


def ring_cells(layout: Layout, scheme: Scheme) -> int:
    """Cells around the core that a step backwards reads."""
    first_row, last_row, first, last = core(layout, scheme)
    return 2 * scheme.radius * (last_row - first_row + last - first)


def peak_bytes(
    shape: tuple[int, int],
    shots: int,
    samples: int,
    receivers: int,
    scheme: Scheme,
    memory: Memory,
    *,
    threads: int,
    itemsize: int = 4,
) -> int:
    """Bytes that a forward run and its gradient hold at their peak, beyond their inputs.

    shape      cells [z, x] of the model        receivers   per shot        itemsize   of a field: 4 or 8
    """
    rows, columns = scheme.padded(shape)
    layout = Layout(rows=rows, columns=columns, radius=scheme.radius)
    steps = samples * scheme.substeps
    workers = max(1, min(threads, shots))
    bracket = layout.rows * layout.width * (2 if memory.half else itemsize)
    parts = segments(memory, scheme, steps, shots, threads)
    slots = -(-(parts[0][1] - parts[0][0]) // scheme.store_every)
    if memory.mode == "store":
        kept = shots * slots * bracket
    elif memory.mode == "checkpoint":
        kept = shots * len(parts) * STATE_FIELDS * layout.size * itemsize + workers * slots * bracket
    else:
        kept = shots * (steps * ring_cells(layout, scheme) + 2 * layout.size) * itemsize
    workspace = workers * 11 * layout.size * itemsize
    # The records and their gradient at the inner time step, and twice again in float64 while they are resampled.
    traces = shots * steps * receivers * (2 * itemsize + 16)
    # Padded velocity, c and each shot's gradient, in float64.
    models = (shots + 4) * rows * columns * 8
    return kept + workspace + traces + models


def choose(
    shape: tuple[int, int],
    shots: int,
    samples: int,
    receivers: int,
    scheme: Scheme,
    *,
    threads: int,
    budget_bytes: int,
    exact: bool = False,
    itemsize: int = 4,
) -> Choice:
    """The fastest way that fits the budget: "store", else "checkpoint", else "boundary" unless `exact`.

    Raises ModelError before any work when nothing fits; it names the smallest need and how to lower it.
    """
    found: list[tuple[Memory, int]] = []
    for memory in (STORE, Memory(mode="checkpoint"), Memory(mode="boundary")):
        try:
            needed = peak_bytes(shape, shots, samples, receivers, scheme, memory, threads=threads, itemsize=itemsize)
        except ModelError:  # a model that is all layers has nothing to run backwards
            continue
        if needed <= budget_bytes and not (exact and memory.mode == "boundary"):
            return Choice(memory, needed, _reason(memory, needed, budget_bytes, found))
        found.append((memory, needed))
    least = " or ".join(f"{needed / 1e6:.4g} MB in mode {memory.mode!r}" for memory, needed in found)
    raise ModelError(
        f"A gradient of {shots} shots on {threads} threads needs {least}, and the budget is {budget_bytes / 1e6:.4g} "
        "MB; raise the budget, or propagate fewer shots at a time."
    )


def _reason(memory: Memory, needed: int, budget_bytes: int, refused: list[tuple[Memory, int]]) -> str:
    fits = f"{memory.mode} needs {needed / 1e6:.4g} MB of the {budget_bytes / 1e6:.4g} MB allowed"
    if not refused:
        return f"{fits}, and nothing is faster"
    return f"{fits}; " + ", ".join(f"{other.mode} would need {more / 1e6:.4g} MB" for other, more in refused)
