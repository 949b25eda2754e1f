"""Options of the tiny inversion's relatives: looked at closely in files of their own, and by workers as a whole."""

from __future__ import annotations

from typing import Any

BANDS: dict[str, Any] = {"inversion__bands_hz": [14.0, 20.0], "survey__samples": 180}
"""Stages of 2, 3 and 3 of the tiny run's 8 iterations, whose wavelet has its peak at 12 Hz. The records are longer, for
filters delay."""

PIXEL: dict[str, Any] = {"inversion__parameterisation__kind": "pixel", "inversion__iterations": 12}
LBFGS: dict[str, Any] = {**PIXEL, "inversion__optimiser__kind": "lbfgs"}
SHAPED: dict[str, Any] = {
    **LBFGS,
    "inversion__optimiser__first_step": 200.0,
    "inversion__bands_hz": [20.0],
    "inversion__smooth_gradient_m": 15.0,
    "inversion__regularise__tv": 0.02,
    "inversion__checkpoint_every": 4,
    "inversion__snapshot_every": 1,
    "inversion__diagnostics_every": 1,
    "model__water_depth_m": 45.0,
}
"""A first step of 1000 m/s, which bounds bend and the line search takes back, and all that shapes a step."""

BLOCK: dict[str, object] = {
    "model__shape": "[12, 13, 14]",
    "model__spacing_m": 25.0,
    "model__initial": "linear",
    "model__linear_mps": "[1600.0, 3200.0]",
    "survey__shots": 2,
    "survey__source_lines": 2,
    "survey__receivers": 7,
    "survey__receiver_lines": 5,
    "survey__dt_s": 0.003,
    "survey__samples": 100,
    "source__peak_hz": 7.0,
    "source__delay_s": 0.1,
    "modelling__order": 4,
    "modelling__absorbing_cells": 5,
    "inversion__iterations": 6,
    "inversion__parameterisation__lr_network": 3e-3,
    "inversion__parameterisation__lr_pixel_mps": 20.0,
    "inversion__parameterisation__pretrain__max_steps": 20,
}
"""On top of the tiny line of these tests: 12 x 13 x 14 cells, 2 x 2 shots, 7 x 5 receivers."""
