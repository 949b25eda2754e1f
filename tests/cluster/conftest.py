"""A task small enough to read, chaotic enough that one wrong bit shows, and able to fail on demand."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpfwi_cluster import ItemResult

SIZE = 300
NAN_ARRAY, NAN_SCALAR, ALWAYS_RAISES, ODD_SHAPE, ZEROS, UNEVEN, BAD_FINISH, DIVERGES = range(1000, 1008)
"""Iterations in which item 5 (in UNEVEN: item 7; in ZEROS: every item) misbehaves."""


class Chaotic:
    """State float64[300]; items mix it, the total feeds back through a cosine of a large argument."""

    def __init__(self, orders: str) -> None:
        self.orders = Path(orders)
        self.values = np.linspace(0.1, 1.0, SIZE)
        self.iteration = 0
        self._obey("build")

    def begin(self, iteration: int) -> None:
        self.iteration = iteration

    def compute(self, item: int) -> ItemResult:
        self._obey(f"compute-{self.iteration}-{item}")
        array = (np.sin(self.values * (item + 1)) * 10.0 ** (item % 5 - 2)).astype(np.float32)
        scalars = {"item": float(item), "first": float(array[0])}
        if self.iteration == ZEROS:
            array[:] = 0.0
        if self.iteration == UNEVEN and item == 7:
            array *= np.float32(2.0**40)
        if item == 5:
            if self.iteration == NAN_ARRAY:
                array[17] = np.nan
            if self.iteration == NAN_SCALAR:
                scalars["first"] = float("inf")
            if self.iteration == ODD_SHAPE:
                array = array[:-1]
            if self.iteration == ALWAYS_RAISES or self._told("raise"):
                raise ValueError("no luck with this item")
        return ItemResult(array, scalars)

    def finish(self, iteration: int, total: np.ndarray | None) -> None:
        self._obey(f"finish-{iteration}")
        assert total is not None
        self.values = np.cos(100.0 * total + self.values)
        if iteration == DIVERGES:
            self.values[0] = os.getpid()
        if iteration == BAD_FINISH:
            raise ValueError("cannot finish")

    def state(self) -> dict[str, np.ndarray]:
        return {"values": self.values}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        self.values = state["values"]
        self.values += 0.0  # a state that cannot be written to would be no state

    def _obey(self, order: str) -> None:
        """Die as by kill -9, stand still, fall silent a little later, or take its time, if told so."""
        if (self.orders / f"always-{order}").exists() or self._told(order):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._told(f"nap-{order}"):
            while list(self.orders.glob("freeze-*")):
                time.sleep(0.01)
            time.sleep(1.5)
        if self._told(f"freeze-{order}"):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGSTOP)).start()
        if self._told(f"stop-{order}"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if self._told(f"sleep-{order}"):
            time.sleep(20.0)
        if self._told(f"doze-{order}"):
            time.sleep(8.0)
        if self._told(f"hold-{order}"):
            ctypes.PyDLL(None).sleep(6)  # native code that keeps the interpreter to itself: no thread of Python runs

    def _told(self, order: str) -> bool:
        """Return whether a file of this name lies among the orders; one worker alone gets to remove it."""
        try:
            (self.orders / order).unlink()
        except FileNotFoundError:
            return False
        return True


def broken_factory() -> Chaotic:
    raise FileNotFoundError("data.zarr is not there")


@pytest.fixture(scope="session")
def chaotic() -> Callable[[Path], Callable[[], Chaotic]]:
    """Return a function that gives the factory of the task for a folder of orders."""
    return lambda orders: functools.partial(Chaotic, str(orders))


@pytest.fixture(scope="session")
def unbuildable() -> Callable[[], Chaotic]:
    """Return a factory that raises."""
    return broken_factory


@pytest.fixture(scope="session")
def toy_travels() -> None:
    """Send the classes of this file to workers by value: a test folder is not importable there."""
    from hpfwi_cluster.ray_library import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
