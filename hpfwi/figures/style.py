"""The common look of all figures: fonts, colours, colour maps, axes in metres or kilometres, saving.

Figures are `matplotlib.figure.Figure` objects drawn with Agg; pyplot and its backend are never touched.
Matplotlib is imported inside the functions, because `import hpfwi` has to stay light.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpfwi.store.atomic import new_file

# Perceptually even and readable with every kind of colour vision; the diverging map is white at zero.
VELOCITY_MAP = "viridis"
DIFFERENCE_MAP = "RdBu_r"
GATHER_MAP = "gray"

# Okabe and Ito's colour-blind-safe set (2008, "Color universal design").
BLACK, BLUE, ORANGE, VERMILION = "#222222", "#0072b2", "#e69f00", "#d55e00"
GREEN, PURPLE, SKY, GREY = "#009e73", "#cc79a7", "#56b4e9", "#8a8a8a"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)

# One line of each role in every figure.
TRUE_LINE: dict[str, Any] = {"color": BLACK, "linewidth": 1.4}
INITIAL_LINE: dict[str, Any] = {"color": ORANGE, "linewidth": 1.3, "linestyle": (0, (4, 1.5))}
INVERTED_LINE: dict[str, Any] = {"color": BLUE, "linewidth": 1.5}

_LOOK: dict[str, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "image.interpolation": "nearest",
    "savefig.facecolor": "white",
}
_DOTS_PER_INCH = 150
PAGE_INCHES = 10.0


@dataclass(frozen=True)
class Picture:
    """A drawn figure with its words: `title` names it, `caption` says what to look for, `alt` what it shows."""

    file: str
    figure: Any
    title: str
    caption: str
    alt: str


@contextmanager
def look() -> Iterator[None]:
    """Matplotlib's own defaults plus the common look, whatever the user's matplotlibrc says; restored on leaving."""
    import matplotlib.style

    with matplotlib.style.context(["default", _LOOK]):
        yield


def new_figure(height_inches: float, *, width_inches: float = PAGE_INCHES, layout: str = "constrained") -> Any:
    """An empty figure of the page's width."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout=layout)  # type: ignore[arg-type]


def save_png(figure: Any, path: Path) -> None:
    """Write the figure in place of an earlier one, so that no reader meets half a file; makes its folder.

    raises  DiskError: the disk refuses
    """
    with new_file(path, overwrite=True) as partial:
        figure.savefig(partial, format="png", dpi=_DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.06)


def line_axes(axes: Any, title: str, xlabel: str | None, ylabel: str) -> None:
    """Title, labels and the light grid of a panel with curves."""
    axes.set_title(title)
    if xlabel is not None:
        axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True)


def letter(index: int) -> str:
    """The panel's letter.

    >>> letter(2)
    '(c)'
    """
    return f"({chr(ord('a') + index)})"


@dataclass(frozen=True)
class Frame:
    """The axes of a section: where its cells lie, in `unit`."""

    left: float
    right: float
    top: float
    bottom: float
    unit: str
    per_metre: float

    @property
    def ratio(self) -> float:
        """Width over height."""
        return (self.right - self.left) / (self.bottom - self.top)

    @property
    def drawn_ratio(self) -> float:
        """Width over height on paper: true to scale unless the section is very long or very deep."""
        return min(max(self.ratio, 0.5), 6.0)


def frame_of(
    shape: tuple[int, int],
    spacing_m: tuple[float, float],
    origin_m: tuple[float, float],
    *,
    longest_m: float | None = None,
) -> Frame:
    """The frame of a model[z, x] whose cell (0, 0) is centred on origin_m: kilometres from 2 km of extent, else metres.

    longest_m  extent that decides the unit; None is the longest of these

    >>> frame_of((100, 300), (10.0, 10.0), (5.0, 5.0))
    Frame(left=0.0, right=3.0, top=0.0, bottom=1.0, unit='km', per_metre=0.001)
    """
    rows, columns = shape
    (dz_m, dx_m), (z_m, x_m) = spacing_m, origin_m
    long = (max(rows * dz_m, columns * dx_m) if longest_m is None else longest_m) >= 2000.0
    per_metre, unit = (1e-3, "km") if long else (1.0, "m")
    return Frame(
        left=(x_m - dx_m / 2) * per_metre,
        right=(x_m + (columns - 0.5) * dx_m) * per_metre,
        top=(z_m - dz_m / 2) * per_metre,
        bottom=(z_m + (rows - 0.5) * dz_m) * per_metre,
        unit=unit,
        per_metre=per_metre,
    )


def draw_section(
    axes: Any,
    values: np.ndarray,
    frame: Frame,
    *,
    title: str,
    colours: str,
    limits: tuple[float, float],
    outer: tuple[bool, bool] = (True, True),
    names: tuple[str, str] = ("depth", "distance"),
) -> Any:
    """Draw values[z, x] with depth down and return the image.

    names  of the two axes
    outer  whether this panel carries the labels (of the depth axis, of the distance axis)
    """
    image = axes.imshow(
        values,
        extent=(frame.left, frame.right, frame.bottom, frame.top),
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        aspect="equal" if frame.drawn_ratio == frame.ratio else frame.ratio / frame.drawn_ratio,
    )
    axes.set_title(title)
    for spine in axes.spines.values():
        spine.set_visible(True)
    if outer[0]:
        axes.set_ylabel(f"{names[0]} ({frame.unit})")
    if outer[1]:
        axes.set_xlabel(f"{names[1]} ({frame.unit})")
    axes.tick_params(labelleft=outer[0], labelbottom=outer[1])
    axes.locator_params(axis="y", nbins=4)
    return image


def velocity_limits(*models: np.ndarray | None) -> tuple[float, float]:
    """Colour limits over all the models that are there, a little apart where they are constant.

    >>> velocity_limits(None, np.array([[1.5, 4.0]]))
    (1.5, 4.0)
    """
    values = np.concatenate([model[np.isfinite(model)].ravel() for model in models if model is not None])
    if values.size == 0:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.05, high + 0.05)


def symmetric_limit(*fields: np.ndarray, percentile: float = 97.0) -> float:
    """A round number near the percentile of the fields' absolute values: the largest field sets it.

    >>> symmetric_limit(np.array([-0.93, 0.1]), percentile=100)
    0.95
    """
    peaks = [np.nanpercentile(np.abs(field), percentile) for field in fields if np.isfinite(field).any()]
    peak = max(peaks, default=0.0)
    if peak <= 0.0:
        return 1.0
    unit = 10.0 ** np.floor(np.log10(peak))
    return float(f"{np.ceil(peak / unit * 2 - 1e-9) / 2 * unit:.3g}")


def extends(values: list[np.ndarray], limits: tuple[float, float]) -> str:
    """Which end of a colour bar is pointed, because values lie beyond it."""
    low = any(bool(np.nanmin(value) < limits[0]) for value in values if np.isfinite(value).any())
    high = any(bool(np.nanmax(value) > limits[1]) for value in values if np.isfinite(value).any())
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[low, high]
