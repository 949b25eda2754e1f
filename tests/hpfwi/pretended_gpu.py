"""A GPU that is pretended: tensors in this machine's memory that say they are on "cuda:0" and are treated as if.

What a machine without CUDA does not show by itself is code that mixes devices: a tensor left on the CPU, an array taken
of one that is elsewhere, a random number drawn in the wrong place. Here every operator is looked at before it runs.
Which tensors are on the GPU is a property of their memory, so views, copies of modules and gradients need no care.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from hpfwi_kernels.acoustic import propagate

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
CROSSING = {"aten::copy_", "aten::index", "aten::index_put_", "aten::_index_put_impl_"}
"""Operators that take tensors of both sides: torch's own copy, and cells picked by indices on the CPU."""


class PretendedGpu(TorchDispatchMode):
    """Which memory is the GPU's, and the operators that ran there."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()
        # Memory is kept until the end: an address that is used again must not be taken for what was there before.
        self._memory: dict[int, torch.UntypedStorage] = {}
        self._own_op = threading.local()

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is on the GPU; our own operators, whose code for CPUs runs here, find none there."""
        return not getattr(self._own_op, "runs", False) and tensor.untyped_storage().data_ptr() in self._memory

    def moved(self, tensor: torch.Tensor, there: bool, dtype: torch.dtype) -> torch.Tensor:
        """A copy on the GPU, or on the CPU."""
        with _disable_current_modes():
            copy = tensor.detach().clone().to(dtype)
        if there:
            self._take(copy)
        return copy

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket._qualified_op_name, dict(kwargs or {})
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        here = [tensor for tensor in given if self.holds(tensor)]
        asked = kwargs.get("device")
        # torch's own code asks for the device that it believes its tensors are on, the CPU; `to` is not seen here.
        on_gpu = bool(here) or (asked is not None and asked.type == "cuda")
        if asked is not None:
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        if here:
            self.operators.add(name)
            # Scalars may be anywhere, as on a real one.
            if name not in CROSSING and any(not self.holds(tensor) and tensor.dim() > 0 for tensor in given):
                places = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in given)
                raise RuntimeError(f"{name} is given tensors of two devices: {places}")
        self._own_op.runs = func.namespace == "hpfwi"
        try:
            result = func(*args, **kwargs)
        finally:
            self._own_op.runs = False
        if on_gpu and name != "aten::copy_":
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    self._take(tensor)
        return result

    def _take(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr():
            self._memory[storage.data_ptr()] = storage


class _Move(torch.autograd.Function):
    """A copy to the other side, whose gradient comes back."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, gpu: PretendedGpu, there: bool, dtype: torch.dtype) -> torch.Tensor:
        ctx.gpu, ctx.there, ctx.dtype = gpu, there, tensor.dtype
        return gpu.moved(tensor, there, dtype)

    @staticmethod
    def backward(ctx: Any, *above: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return ctx.gpu.moved(above[0], not ctx.there, ctx.dtype), None, None, None


class _Queue:
    """A stream or an event: everything was done when it was asked for."""

    cuda_stream = 0

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def record_event(self) -> _Queue:
        return self

    def wait_stream(self, other: _Queue) -> None:
        pass

    def synchronize(self) -> None:
        pass


@contextlib.contextmanager
def _switches_kept() -> Iterator[None]:
    """torch's switches for GPUs, and cuBLAS's variable, are in the end what they were."""
    workspace = os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    kept = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, products.allow_tf32
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, products.allow_tf32 = kept
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        if workspace is not None:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace


@contextlib.contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    """This process has one GPU, for torch; operators of this thread and of those it starts are looked at."""
    gpu = PretendedGpu()
    base = torch._C.TensorBase

    def to(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        copy = options.pop("copy", False)
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype)
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **options)
        there = gpu.holds(tensor) if device is None else device.type == "cuda"
        dtype = tensor.dtype if dtype is None else dtype
        if there == gpu.holds(tensor):
            return base.to(tensor, dtype=dtype, copy=copy, memory_format=layout or torch.preserve_format)
        moved: torch.Tensor = _Move.apply(tensor, gpu, there, dtype)
        return moved if layout is None else moved.contiguous(memory_format=layout)

    def refuses_arrays(method: str) -> Any:
        original = getattr(torch.Tensor, method)

        def array(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
            if gpu.holds(tensor):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            return original(tensor, *args, **options)

        return array

    own: dict[str, Any] = {
        "device": property(lambda tensor: CUDA if gpu.holds(tensor) else base.device.__get__(tensor)),
        "is_cuda": property(gpu.holds),
        "is_cpu": property(lambda tensor: not gpu.holds(tensor) and base.device.__get__(tensor).type == "cpu"),
        "to": to,
        "cpu": lambda tensor: to(tensor, CPU),
        "cuda": lambda tensor: to(tensor, CUDA),
        "numpy": refuses_arrays("numpy"),
        "__array__": refuses_arrays("__array__"),
        "record_stream": lambda tensor, stream: None,
    }
    for name, value in own.items():
        monkeypatch.setattr(torch.Tensor, name, value, raising=False)
    system: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "Stream": _Queue,
        "current_stream": _Queue,
        "stream": contextlib.nullcontext,
        "device": contextlib.nullcontext,
        "mem_get_info": lambda *_: (2**34, 2**34),
        "memory_reserved": lambda *_: 0,
        "memory_allocated": lambda *_: 0,
        "get_device_name": lambda *_: "a pretended GPU",
    }
    for name, value in system.items():
        monkeypatch.setattr(torch.cuda, name, value)
    run = threading.Thread.run

    def run_there(thread: threading.Thread) -> None:
        with gpu:
            run(thread)

    monkeypatch.setattr(threading.Thread, "run", run_there)
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device_type, **options: autocast("cpu", **options))
    with _switches_kept(), gpu:
        yield gpu


def waves_too(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The simulator takes the pretended GPU as well; returns the shapes of the models that will be computed there."""
    seen: list[tuple[int, ...]] = []

    def propagated(velocity: torch.Tensor, wavelet: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        assert velocity.device == wavelet.device
        if not velocity.is_cuda:
            return propagate(velocity, wavelet, *rest, **options)
        seen.append(tuple(velocity.shape))
        return propagate(velocity.cpu(), wavelet.cpu(), *rest, **options).cuda()

    monkeypatch.setattr("hpfwi.physics.device.gpus_usable", lambda: True)
    monkeypatch.setattr("hpfwi.physics.simulator.propagate", propagated)
    return seen
