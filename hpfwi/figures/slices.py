"""Planes through the middle of a model: a section [z, x] itself, two upright and a level one of a block [z, y, x]."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpfwi.figures import style

_CALLED = ("depth", "y", "x")

Plane = tuple[int, int]
"""The axes of a model that go down and to the right in a picture of it."""


@dataclass(frozen=True)
class Panel:
    """A model, or the difference of two, [z, x] or [z, y, x] in km/s."""

    title: str
    values: np.ndarray


@dataclass(frozen=True)
class Group:
    """Panels that share a colour map, its limits and one colour bar."""

    panels: Sequence[Panel]
    colours: str
    limits: tuple[float, float]
    label: str


def planes(axes: int) -> list[Plane]:
    """The planes that show a model of two or three axes, the upright one along x first.

    >>> planes(2), planes(3)
    ([(0, 1)], [(0, 2), (0, 1), (1, 2)])
    """
    return sorted(itertools.combinations(range(axes), 2), key=lambda plane: (plane[0], -plane[1]))


def cut(model: np.ndarray, plane: Plane) -> np.ndarray:
    """A model in one of its planes, [down, right], at the middle of the axis that is left out."""
    return model[tuple(slice(None) if axis in plane else cells // 2 for axis, cells in enumerate(model.shape))]


def upright(model: np.ndarray) -> np.ndarray:
    """The section [z, x] of a model: itself, or that in the middle of a block."""
    return cut(model, planes(model.ndim)[0])


def remark(axes: int) -> str:
    """What a caption adds where only `upright` is shown."""
    return " Of the block the section through its middle in y is shown." if axes == 3 else ""


def names(plane: Plane, axes: int) -> tuple[str, str]:
    """What the axes of a plane are called.

    >>> names((0, 1), 2), names((0, 1), 3), names((1, 2), 3)
    (('depth', 'distance'), ('depth', 'y'), ('y', 'x'))
    """
    called = ("depth", "distance") if axes == 2 else _CALLED
    return called[plane[0]], called[plane[1]]


def frames(shape: tuple[int, ...], spacing_m: tuple[float, ...], origin_m: tuple[float, ...]) -> list[style.Frame]:
    """The axes of every plane of a model, all in one unit."""
    longest_m = max(cells * step for cells, step in zip(shape, spacing_m, strict=True))

    def of(values: tuple[Any, ...], plane: Plane) -> tuple[Any, Any]:
        return values[plane[0]], values[plane[1]]

    return [
        style.frame_of(of(shape, plane), of(spacing_m, plane), of(origin_m, plane), longest_m=longest_m)
        for plane in planes(len(shape))
    ]


def draw_blocks(groups: Sequence[Group], spacing_m: tuple[float, ...], origin_m: tuple[float, ...]) -> Any:
    """Draw a row of planes for every block, and a colour bar for every group."""
    shape = groups[0].panels[0].values.shape
    shown, every = planes(len(shape)), frames(shape, spacing_m, origin_m)
    lengths = [frame.right - frame.left for frame in every]
    widths = [max(length, max(lengths) / 4) for length in lengths]  # labels need room beside a narrow block
    rows = sum(len(group.panels) for group in groups)
    per_inch = sum(widths) / (style.PAGE_INCHES - 2.4)
    tallest = max(frame.bottom - frame.top for frame in every) / per_inch
    figure = style.new_figure(rows * (tallest + 0.35) + 0.5, layout="compressed")
    grid = figure.subplots(rows, len(shown), squeeze=False, width_ratios=widths)
    row = 0
    for group in groups:
        first = row
        for panel in group.panels:
            for axes, plane, frame in zip(grid[row], shown, every, strict=True):
                (left_out,) = set(range(len(shape))) - set(plane)
                at = (origin_m[left_out] + shape[left_out] // 2 * spacing_m[left_out]) * frame.per_metre
                titles = [f"{style.letter(row)} {panel.title}"] if plane == shown[0] else []
                titles += [f"{_CALLED[left_out]} = {at:.3g} {frame.unit}"] if row == 0 else []
                image = style.draw_section(
                    axes,
                    cut(panel.values, plane),
                    frame,
                    title=", ".join(titles),
                    colours=group.colours,
                    limits=group.limits,
                    outer=(True, row == rows - 1),
                    names=names(plane, len(shape)),
                )
            row += 1
        extend = style.extends([panel.values for panel in group.panels], group.limits)
        figure.colorbar(image, ax=grid[first:row], label=group.label, extend=extend, aspect=18, pad=0.015, shrink=0.9)
    return figure
