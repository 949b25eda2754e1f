"""Edge masks: OpenCV's result on one map, and what a mask does not depend on."""

import numpy as np

from hpfwi.training.edges import dilated, edge_masks

OPENCV = (
    ".............##.........",
    "...........##...........",
    ".......####...........##",
    "....###............###..",
    "..##............###.....",
    "##............##........",
    "...........###..........",
    "........###......#...###",
    "....####......#....##...",
    "..##............###.....",
    "###....##....###........",
    "..#........###..........",
    "###....####...#.......##",
    "...####.......#....###..",
    "####.............##.....",
    "..............###.......",
)
"""cv2.Canny of the map below, scaled to 8 bits, thresholds 10 and 15, by OpenCV 5.0.0."""


def dipping_layers() -> np.ndarray:
    """Dipping layers with a step, a dome and a weak ripple, float32[16, 24] in m/s."""
    z, x = np.mgrid[0:16, 0:24]
    layers = 1500 + 250 * ((z + 0.35 * x) // 5) + 120 * (x > 13) * (z > 6)
    dome = 25 * ((z - 11) ** 2 + (x - 5) ** 2 < 10)
    return (layers + dome + 8 * np.sin(1.3 * z) * np.cos(0.9 * x)).astype(np.float32)


def test_masks_are_those_of_opencv() -> None:
    found = edge_masks(dipping_layers()[None])[0]
    assert ["".join("#" if edge else "." for edge in row) for row in found] == list(OPENCV)


def test_a_mask_depends_neither_on_the_scale_nor_on_the_other_samples() -> None:
    model = dipping_layers()
    alone = edge_masks(model[None])
    other = np.full_like(model, 2000.0)
    other[:, 12:] = 3000.0
    together = edge_masks(np.stack([other, model, other]))
    np.testing.assert_array_equal(together[1], alone[0])
    # Exact powers of two, so that no 8-bit value can round to its neighbour.
    np.testing.assert_array_equal(edge_masks(model[None] * 2), alone)
    np.testing.assert_array_equal(edge_masks((model[None] / 4).astype(np.float64)), alone)


def test_a_constant_map_has_no_edges_and_a_step_one_line() -> None:
    assert not edge_masks(np.full((1, 9, 9), 1500.0)).any()
    step = np.full((1, 9, 12), 1500.0)
    step[:, :, 5:] = 1600.0
    np.testing.assert_array_equal(edge_masks(step)[0].sum(axis=1), np.ones(9))


def test_masks_are_widened_within_their_own_sample() -> None:
    masks = np.zeros((3, 5, 6), dtype=bool)
    masks[1, 2, 3] = masks[2, 0, 0] = True
    wide = dilated(masks)
    assert not wide[0].any()
    assert np.argwhere(wide[1]).tolist() == [[row, column] for row in (1, 2, 3) for column in (2, 3, 4)]
    assert wide[2].sum() == 4
