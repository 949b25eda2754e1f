"""CuPy as far as the kernels use it, on the processor: what is launched runs as fibers (cuda_on_cpu.py).

It is as strict as CuPy and CUDA: arguments have the bytes of the kernel's signature, a launch stays within the GPU's
limits and the shared memory that its kernel was allowed, kernels are launched on the GPU they were loaded on, nothing
is loaded while a stream is captured, and a graph keeps the arguments it was captured with.
"""

import contextlib
import ctypes
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hpfwi_kernels import gpu
from hpfwi_kernels.acoustic import Memory, cuda, cuda_streaming
from hpfwi_kernels.acoustic.device import op as device_op
from hpfwi_kernels.dct_pool import cuda as dct_cuda
from hpfwi_kernels.haar import cuda as haar_cuda
from tests.kernels.cuda_on_cpu import Processor, Survey

SHARED_UNASKED = 48 * 1024
"""Bytes of dynamic shared memory that a launch may have unless the kernel's limit is raised."""
STREAM = 77
"""The handle of the caller's stream."""
MOST_BLOCKS = (2**31 - 1, 65535, 65535)
CACHES: tuple[Any, ...] = (
    gpu.available, cuda.limits_of, cuda._kernel, cuda_streaming._graph, cuda_streaming._function,
    cuda_streaming._once_per_call, haar_cuda._kernels, dct_cuda._kernel,
)  # fmt: skip
USED = (
    "RawModule", "cuda.is_available", "cuda.Device", "cuda.Stream", "cuda.Stream.from_external",
    "cuda.Stream.begin_capture", "cuda.Stream.end_capture", "cuda.runtime.memsetAsync",
    "cuda.runtime.getDeviceProperties", "cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor",
)  # fmt: skip
"""All there is of CuPy here."""


class Refused(RuntimeError):
    """What the driver would not do."""


@dataclass
class Gpus:
    """The state of the stand-in: GPUs of one kind, and what was done in which stream."""

    processor: Processor
    limits: cuda.Limits
    order: int = 0
    devices: list[int] = field(default_factory=lambda: [0])
    """The current one last."""
    streams: list[int] = field(default_factory=lambda: [0])
    capture: tuple[int, list[Callable[[], None]]] | None = None
    done: list[tuple[int, int, str]] = field(default_factory=list)
    """GPU, stream and what: a kernel's name, "memset", or "graph"."""
    modules: dict[Any, "Module"] = field(default_factory=dict)

    @property
    def device(self) -> int:
        return self.devices[-1]

    def enqueue(self, stream: int, what: str, work: Callable[[], None]) -> None:
        if self.capture is not None and stream == self.capture[0]:
            self.capture[1].append(work)
            return
        self.done.append((self.device, stream, what))
        work()


@dataclass
class Function:
    """A kernel in a module."""

    gpus: Gpus
    name: str
    cluster: int
    device: int
    shared: int = SHARED_UNASKED
    ptr: int = 0

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Any, shared_mem: int = 0, stream: Any = None,
        enable_cooperative_groups: bool = False,
    ) -> None:  # fmt: skip
        gpus = self.gpus
        blocks, threads = (tuple(max(1, size) for size in (*sizes, 1, 1)[:3]) for sizes in (grid, block))
        arguments = tuple(_value(argument) for argument in args)
        gpus.processor.require_taken(self.name, arguments)
        if gpus.device != self.device:
            raise Refused(f"{self.name} was loaded on GPU {self.device} and is launched on GPU {gpus.device}")
        if any(size > most for size, most in zip(blocks, MOST_BLOCKS, strict=True)) or math.prod(threads) > 1024:
            raise Refused(f"{self.name}: {blocks} blocks of {threads} threads")
        if shared_mem > self.shared:
            raise Refused(f"{self.name}: {shared_mem} bytes of shared memory where {self.shared} are allowed")
        if blocks[0] % self.cluster or (self.cluster > 1 and not gpus.limits.clusters):
            raise Refused(f"{self.name}: {blocks} blocks in clusters of {self.cluster}")
        if enable_cooperative_groups and math.prod(blocks) > gpus.limits.multiprocessors * _resident(
            gpus, math.prod(threads), shared_mem
        ):
            raise Refused(f"{self.name}: {blocks} blocks are not resident together")
        together = blocks[0] if enable_cooperative_groups else self.cluster
        assert blocks[2] == threads[1] == threads[2] == 1

        def work() -> None:
            run = gpus.processor.run
            done = run(self.name, arguments, blocks[:2], threads[0], together, gpus.order, shared_mem)  # type: ignore[arg-type]
            assert done, f"threads of {self.name} wait at different barriers, or write behind their shared memory"

        gpus.enqueue(gpus.streams[-1] if stream is None else stream.ptr, self.name, work)


def _value(argument: Any) -> np.ndarray:
    """An argument as CuPy passes it: its bytes at this moment."""
    if isinstance(argument, np.ndarray):
        if argument.size != 1:
            raise TypeError(f"an array of shape {argument.shape} is no kernel argument")
        return argument.reshape(()).copy()
    if isinstance(argument, np.generic | int | float):
        return np.asarray(argument).copy()
    raise TypeError(f"{type(argument)} is no kernel argument")


def _resident(gpus: Gpus, threads: int, shared: int) -> int:
    return min(2048 // threads, (gpus.limits.shared_bytes + 1024) // (shared + 1024))


@dataclass
class Module:
    """What CuPy loads once for a source, its options and its names, however often it is asked."""

    functions: dict[str, Function]


def cupy_of(gpus: Gpus) -> ModuleType:
    """The package, for GPUs."""

    class RawKernel:
        def __init__(self, function: Function) -> None:
            self.kernel = function

        def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Any, **more: Any) -> None:
            self.kernel(grid, block, args, enable_cooperative_groups=False, **more)

        @property
        def shared_size_bytes(self) -> int:
            return 0

        @property
        def max_dynamic_shared_size_bytes(self) -> int:
            return self.kernel.shared

        @max_dynamic_shared_size_bytes.setter
        def max_dynamic_shared_size_bytes(self, count: int) -> None:
            if count > gpus.limits.shared_bytes:
                raise Refused(f"{count} bytes of shared memory, more than a block can have")
            self.kernel.shared = count

    class RawModule:
        def __init__(self, *, code: str, options: tuple[str, ...] = (), name_expressions: Any = None) -> None:
            assert isinstance(options, tuple)
            assert "--std=c++17" in options
            self.key = gpus.device, code, options, tuple(name_expressions)

        def get_function(self, name: str) -> RawKernel:
            device, code, options, names = self.key
            if self.key not in gpus.modules:
                if gpus.capture is not None:
                    raise Refused("a module is loaded while a stream is captured")
                sizes = [int(option.split("=")[1]) for option in options if option.startswith("-DCLUSTER_BLOCKS=")]
                _build(gpus.processor, code, set(names))
                functions = {
                    one: Function(gpus, one, sizes[0] if sizes else 1, device, ptr=id(object())) for one in names
                }
                gpus.modules[self.key] = Module(functions)
            return RawKernel(gpus.modules[self.key].functions[name])

    class Device:
        def __init__(self, number: int | None = None) -> None:
            self.id = gpus.device if number is None else int(number)

        def __enter__(self) -> Self:
            gpus.devices.append(self.id)
            return self

        def __exit__(self, *_: object) -> None:
            gpus.devices.pop()

        @property
        def attributes(self) -> dict[str, int]:
            return {
                "MultiProcessorCount": gpus.limits.multiprocessors,
                "MaxSharedMemoryPerBlockOptin": gpus.limits.shared_bytes,
            }

        @property
        def compute_capability(self) -> str:
            return "90" if gpus.limits.clusters else "80"

    class Stream:
        def __init__(self, *, non_blocking: bool = False) -> None:
            self.ptr = 1000 + id(self)

        @classmethod
        def from_external(cls, obj: Any) -> "Stream":
            version, handle = obj.__cuda_stream__()
            if version != 0 or not isinstance(handle, int):
                raise TypeError("__cuda_stream__() must return (0, int)")
            stream = cls.__new__(cls)
            stream.ptr = handle
            return stream

        def __enter__(self) -> Self:
            gpus.streams.append(self.ptr)
            return self

        def __exit__(self, *_: object) -> None:
            gpus.streams.pop()

        def begin_capture(self) -> None:
            assert gpus.capture is None
            if self.ptr == 0:
                raise RuntimeError("cannot capture on the default (legacy) stream")
            gpus.capture = self.ptr, []

        def end_capture(self) -> Any:
            assert gpus.capture is not None
            captured, gpus.capture = gpus.capture, None
            assert captured[0] == self.ptr

            def launch(stream: Any = None) -> None:
                def work() -> None:
                    for one in captured[1]:
                        one()

                gpus.enqueue(gpus.streams[-1] if stream is None else stream.ptr, "graph", work)

            return SimpleNamespace(launch=launch)

    def set_bytes(address: int, value: int, count: int, stream: int) -> None:
        gpus.enqueue(stream, "memset", lambda: (ctypes.memset(address, value, count), None)[1])

    package = ModuleType("cupy")
    package.RawModule = RawModule  # type: ignore[attr-defined]
    package.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        is_available=lambda: True,
        Device=Device,
        Stream=Stream,
        runtime=SimpleNamespace(
            memsetAsync=set_bytes, getDeviceProperties=lambda device: {"name": gpus.limits.name.encode()}
        ),
        driver=SimpleNamespace(
            occupancyMaxActiveBlocksPerMultiprocessor=lambda function, threads, shared: _resident(gpus, threads, shared)
        ),
    )
    return package


def _build(processor: Processor, code: str, names: set[str]) -> None:
    for name in names:
        if name.startswith("on_chip<"):
            processor.require(name)
    missing = names - processor.libraries.keys()
    if missing:
        processor.build(code, missing)


@contextlib.contextmanager
def cupy_on(processor: Processor, limits: cuda.Limits, order: int = 0) -> Iterator[Gpus]:
    """Have the kernels find a CuPy whose GPUs are the processor."""
    gpus = Gpus(processor, limits, order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", cupy_of(gpus))
        for cache in CACHES:
            cache.cache_clear()
        try:
            yield gpus
        finally:
            for cache in CACHES:
                cache.cache_clear()
    assert (gpus.devices, gpus.streams, gpus.capture) == ([0], [0], None)


@contextlib.contextmanager
def device_on(processor: Processor, limits: cuda.Limits, order: int) -> Iterator[Gpus]:
    """Have the torch operation compute on GPU number 1 of these limits, in a stream of its own."""
    with cupy_on(processor, limits, order) as gpus, pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_op._Ready, "place", {"device": 1, "stream": STREAM})
        patch.setattr(cuda_streaming, "ALIGNMENT_BYTES", 64)  # what torch gives on a processor
        torch.use_deterministic_algorithms(True)  # which fills memory that nobody has written with NaN
        try:
            yield gpus
        finally:
            torch.use_deterministic_algorithms(False)
    assert {one[:2] for one in gpus.done} == {(1, STREAM)}


def operation_on(
    processor: Processor,
    survey: Survey,
    memory: Memory,
    limits: cuda.Limits,
    *,
    order: int = 3,
    gradient: bool = True,
    streams: bool = False,
) -> tuple[NDArray, ...]:
    """Records [shot, receiver, step], and the gradients of velocity and wavelet of half their sum of squares, as the
    torch operation computes them on a GPU; `streams` where every step is to stream through memory."""
    velocity, wavelet = (torch.tensor(array, dtype=torch.float32) for array in (survey.velocity, survey.wavelet))
    work = device_op.Work(survey.scheme, memory, survey.sources, survey.receivers)
    with device_on(processor, limits, order), pytest.MonkeyPatch.context() as patch:
        if streams:
            patch.setattr(cuda, "choose", lambda *_, **__: cuda.Choice("X", None, 0, "asked for by a test"))
        records, kept = device_op.forward_on_device(velocity, wavelet, work, store=gradient)
        gradients = device_op.gradient_on_device(kept, records, velocity, wavelet, work) if gradient else ()
    return tuple(tensor.numpy() for tensor in (records, *gradients))
