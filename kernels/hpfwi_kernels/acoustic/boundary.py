"""Where a wavefield can be run backwards in time: the core, whose update no layer touches, and the ring around it."""

import math

from hpfwi_kernels.acoustic.bands import between
from hpfwi_kernels.acoustic.layout import Layout
from hpfwi_kernels.acoustic.regions import MARGIN
from hpfwi_kernels.acoustic.scheme import Scheme
from hpfwi_kernels.errors import ModelError


def core(shape: tuple[int, ...], scheme: Scheme) -> tuple[int, ...]:
    """First and last+1 (plane,) row and column, as in a layout's fields, of the cells whose update no layer touches.

    shape   padded cells, [z, x] or [z, y, x]

    For a sponge, whose damped update cannot be run backwards, these are the undamped cells. Columns come in whole
    vectors. Raises ModelError when there are none.
    """
    reach = scheme.radius if scheme.boundary == "cpml" else 0
    edges: tuple[int, ...] = ()
    for cells, (low, high) in zip(shape[:-1], scheme.widths, strict=False):
        lines = Layout(rows=cells, columns=1, radius=scheme.radius)
        edges += between(lines.row_strips(low, high, reach), scheme.radius, scheme.radius + cells)
    row = Layout(rows=1, columns=shape[-1], radius=scheme.radius)
    edges += between(row.column_strips(*scheme.widths[-1], reach), MARGIN, MARGIN + row.width)
    if any(first >= last for first, last in zip(edges[::2], edges[1::2], strict=True)):
        raise ModelError(
            f"A model of {' x '.join(map(str, shape))} cells, layers included, has no cell out of reach of its "
            'absorbing layers, which mode="boundary" needs; use "store" or "checkpoint".'
        )
    return edges


def ring_cells(shape: tuple[int, ...], scheme: Scheme) -> int:
    """Cells around the core that a step backwards reads: R cells beyond each of its faces."""
    edges = core(shape, scheme)
    sizes = [last - first for first, last in zip(edges[::2], edges[1::2], strict=True)]
    return 2 * scheme.radius * sum(math.prod(sizes) // size for size in sizes)
