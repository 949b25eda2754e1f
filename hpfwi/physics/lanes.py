"""Pieces of work shared by lanes, each in a thread of its own: one for each GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Lane = TypeVar("Lane")
Piece = TypeVar("Piece")


def in_lanes(lanes: Sequence[Lane], pieces: Iterable[Piece], work: Callable[[Lane, Piece], None]) -> None:
    """Call `work(lane, piece)` once for every piece; a lane takes the next one when it is free.

    One lane works in this thread. What a piece raises is raised here, once the pieces under way have ended.
    """
    if len(lanes) == 1:
        for piece in pieces:
            work(lanes[0], piece)
        return
    waiting, taking, over = iter(pieces), threading.Lock(), threading.Event()

    def drive(lane: Lane) -> None:
        try:
            while not over.is_set():
                with taking:
                    found = next(waiting, over)
                if isinstance(found, threading.Event):
                    return
                work(lane, found)
        except BaseException:
            over.set()
            raise

    with ThreadPoolExecutor(len(lanes), "lane") as pool:
        try:
            for done in [pool.submit(drive, lane) for lane in lanes]:
                done.result()
        finally:
            over.set()
