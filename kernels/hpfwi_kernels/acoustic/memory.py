"""How the wavefield reaches the adjoint run: kept, computed again, or run backwards; and what each needs in bytes."""

import math
from dataclasses import dataclass
from typing import Literal

from hpfwi_kernels.acoustic.boundary import ring_cells
from hpfwi_kernels.acoustic.layout import Layout
from hpfwi_kernels.acoustic.layout_3d import (
    STATE,
    Stack,
    adjoint_layers,
    adjoint_sizes,
    forward_layers,
    forward_sizes,
)
from hpfwi_kernels.acoustic.scheme import Scheme
from hpfwi_kernels.errors import ModelError

Mode = Literal["store", "checkpoint", "boundary"]
STATE_FIELDS = 6
"""In 2-D: u now and before, psi and zeta of both axes, all that the next step needs."""


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


@dataclass(frozen=True)
class Cells:
    """What the arrays of one shot hold in the layout of the compiled loops, in cells."""

    field: int
    """The wavefield at one time."""
    bracket: int
    """w at one time."""
    state: int
    """All that the next step of a forward run needs."""
    forward: int
    """The fields and the layers' memories of a forward run."""
    adjoint: int
    """The same of an adjoint run, and the sum of mu w."""


def cells_of(padded: tuple[int, ...], scheme: Scheme) -> Cells:
    """Count the cells for a model of so many cells [z, x] or [z, y, x], layers included."""
    if len(padded) == 2:
        layout = Layout(rows=padded[0], columns=padded[1], radius=scheme.radius)
        size = layout.size
        return Cells(size, layout.rows * layout.width, STATE_FIELDS * size, forward=7 * size, adjoint=10 * size)
    stack = Stack(planes=padded[0], rows=padded[1], columns=padded[2], radius=scheme.radius)
    fields = forward_sizes(stack, forward_layers(stack, scheme))
    return Cells(
        field=stack.size,
        bracket=stack.kept,
        state=sum(fields[k] for k in STATE),
        forward=sum(fields),
        adjoint=sum(adjoint_sizes(stack, adjoint_layers(stack, scheme))) + stack.kept,
    )


def kept_shape(
    memory: Memory, scheme: Scheme, padded: tuple[int, ...], steps: int, shots: int, threads: int
) -> tuple[int, ...]:
    """[shot, slot, cell] of brackets, [shot, segment, cell] of states, or [shot, cell] of rings and last two fields.

    Raises ModelError in mode "boundary" for a model that is all layers.
    """
    cells = cells_of(padded, scheme)
    if memory.mode == "boundary":
        return shots, steps * ring_cells(padded, scheme) + 2 * cells.field
    parts = segments(memory, scheme, steps, shots, threads)
    if memory.mode == "checkpoint":
        return shots, len(parts), cells.state
    return shots, *segment_shape(parts[0], scheme, cells)


def segment_shape(part: tuple[int, int], scheme: Scheme, cells: Cells) -> tuple[int, int]:
    """[slot, cell] of the brackets of steps part[0] to part[1] - 1."""
    return -(-(part[1] - part[0]) // scheme.store_every), cells.bracket


def peak_bytes(
    shape: tuple[int, ...],
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

    shape      cells [z, x] or [z, y, x] of the model        receivers   per shot        itemsize   of a field: 4 or 8
    """
    padded = scheme.padded(shape)
    cells = cells_of(padded, scheme)
    steps = samples * scheme.substeps
    workers = max(1, min(threads, shots))
    bracket_bytes = 2 if memory.half else itemsize
    kept = math.prod(kept_shape(memory, scheme, padded, steps, shots, threads))
    kept *= bracket_bytes if memory.mode == "store" else itemsize
    # Each worker's fields, and c.
    working = cells.adjoint + cells.field
    if memory.mode == "checkpoint":
        working += cells.forward
        longest = segments(memory, scheme, steps, shots, threads)[0]
        kept += workers * math.prod(segment_shape(longest, scheme, cells)) * bracket_bytes
    elif memory.mode == "boundary":
        working += 2 * cells.field
    # The records and their gradient at the inner time step, and twice again in float64 while they are resampled.
    traces = shots * steps * receivers * (2 * itemsize + 16)
    # Padded velocity, c and each shot's gradient, in float64; in 3-D a gradient is folded at once, which takes a copy.
    models = (shots + 4 if len(padded) == 2 else 2 * workers + 2) * math.prod(padded) * 8
    sponges = len(set(scheme.sponges_mps)) * (8 * math.prod(padded) + itemsize * cells.field)
    return kept + workers * working * itemsize + traces + models + sponges


def choose(
    shape: tuple[int, ...],
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
