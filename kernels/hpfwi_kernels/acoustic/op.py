"""The propagator as a differentiable torch operation, on the CPU and on GPUs."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hpfwi_kernels.acoustic import cpu, cpu_3d, cuda
from hpfwi_kernels.acoustic.device.op import (
    forward_on_device,
    gradient_on_device,
    room_for_gradient,
    settings_of,
    work_of,
)
from hpfwi_kernels.acoustic.memory import STORE, Memory
from hpfwi_kernels.acoustic.points import Points
from hpfwi_kernels.acoustic.scheme import Scheme
from hpfwi_kernels.buffers import Pool
from hpfwi_kernels.errors import KernelError, ModelError


def propagate(
    velocity: Tensor,
    wavelet: Tensor,
    sources: Points,
    receivers: Points,
    scheme: Scheme,
    *,
    threads: int = 1,
    pool: Pool | None = None,
    memory: Memory = STORE,
) -> Tensor:
    """Record pressure at the receivers of every shot.

    velocity    float32 or float64 [z, x] for all shots or [shot, z, x], m/s; [z, y, x] where spacing_m has three sizes.
                On the CPU, or on a GPU in float32
    wavelet     same dtype and device [shot, source, time], Pa/m², the f of (1/v²) u_tt = lap u + f at the source's cell
    sources     one set of taps per shot and source        receivers   one per shot and receiver
    threads     shots run at the same time on the CPU; the bits do not depend on it
    pool        lends wavefields and snapshots on the CPU, for a caller that propagates again and again; None takes
                fresh memory
    memory      how the wavefield is held for the gradient, where one is wanted; `choose` picks one for a budget
    returns     same dtype and device [shot, receiver, time], Pa; sample 0 is the field before the first step.
                Differentiable once in velocity and wavelet, by the discrete adjoint (exact in velocity for
                scheme.store_every = 1)
    raises      ModelError, GeometryError, StabilityError before any work; on a GPU also KernelError: no CuPy, or not
                enough memory

    The wavefield is kept only where a gradient is wanted: not under torch.no_grad, nor when no input requires one.
    Work on a GPU runs in torch's current stream; checking the velocity waits for it. Under torch.compile the call is
    one opaque operation, and on the CPU its gradient computes the wavefield again.
    """
    if velocity.device != wavelet.device or velocity.device.type not in ("cpu", "cuda"):
        raise ModelError(
            f"velocity is on {velocity.device} and wavelet is on {wavelet.device}; put both on the CPU or on one GPU."
        )
    if velocity.dtype != wavelet.dtype:
        raise ModelError(f"velocity is {velocity.dtype} and wavelet is {wavelet.dtype}; give both the same dtype.")
    store = torch.is_grad_enabled() and (velocity.requires_grad or wavelet.requires_grad)
    if velocity.device.type == "cpu" and not torch.compiler.is_compiling():
        result: Tensor = _Propagate.apply(velocity, wavelet, sources, receivers, scheme, threads, pool, memory, store)
        return result
    records, _ = _acoustic(
        velocity,
        wavelet,
        torch.from_numpy(sources.cells),
        torch.from_numpy(sources.weights),
        torch.from_numpy(receivers.cells),
        torch.from_numpy(receivers.weights),
        *_plain(sources.shape, scheme, memory),
        threads,
        store,
    )
    return records


def gpus_usable() -> bool:
    """Whether this process has a GPU on which `propagate` runs: torch sees one, and CuPy is there for it."""
    return torch.cuda.is_available() and cuda.available()


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        velocity: Tensor,
        wavelet: Tensor,
        sources: Points,
        receivers: Points,
        scheme: Scheme,
        threads: int,
        pool: Pool | None,
        memory: Memory,
        store: bool,
    ) -> Tensor:
        records, stored = (cpu_3d if scheme.dimensions == 3 else cpu).forward(
            velocity.detach().numpy(),
            wavelet.detach().numpy(),
            sources,
            receivers,
            scheme,
            store=store,
            threads=threads,
            pool=pool,
            memory=memory,
        )
        if store:
            assert stored is not None
            ctx.save_for_backward(velocity, wavelet, torch.from_numpy(stored))
            ctx.rest = (sources, receivers, scheme, threads, pool, memory)
        return torch.from_numpy(records)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, record_gradient: Tensor) -> tuple[Tensor | None, ...]:
        velocity, wavelet, stored = ctx.saved_tensors
        sources, receivers, scheme, threads, pool, memory = ctx.rest
        velocity_gradient, wavelet_gradient = (cpu_3d if scheme.dimensions == 3 else cpu).gradient(
            velocity.detach().numpy(),
            wavelet.detach().numpy(),
            sources,
            receivers,
            scheme,
            stored.numpy(),
            record_gradient.detach().numpy(),
            threads=threads,
            pool=pool,
            memory=memory,
        )
        wants_velocity, wants_wavelet = ctx.needs_input_grad[:2]
        return (
            torch.from_numpy(velocity_gradient) if wants_velocity else None,
            torch.from_numpy(wavelet_gradient) if wants_wavelet else None,
            *(None,) * 7,
        )


def _plain(shape: tuple[int, ...], scheme: Scheme, memory: Memory) -> tuple[Any, ...]:
    """Model's shape, scheme and memory as what an operation takes: numbers, strings and lists of them."""
    return (
        list(shape),
        list(scheme.spacing_m),
        list(scheme.absorbing),
        [scheme.dt_s, scheme.pml_hz, scheme.max_velocity_mps, *scheme.sponges_mps],
        [scheme.order, scheme.substeps, scheme.store_every, memory.segment_steps or 0],
        scheme.boundary,
        scheme.free_surface,
        memory.mode,
        memory.half,
    )


@torch.library.custom_op("hpfwi::acoustic", mutates_args=(), device_types="cpu")
def _acoustic(
    velocity: Tensor, wavelet: Tensor, source_cells: Tensor, source_weights: Tensor, receiver_cells: Tensor,
    receiver_weights: Tensor, shape: list[int], spacing_m: list[float], absorbing: list[int], measures: list[float],
    counts: list[int], boundary: str, free_surface: bool, mode: str, half: bool, threads: int, store: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Records, and what the gradient needs: nothing on the CPU, where it computes the wavefield again."""
    work = work_of(
        source_cells, source_weights, receiver_cells, receiver_weights,
        shape, spacing_m, absorbing, measures, counts, boundary, free_surface, mode, half,
    )  # fmt: skip
    records, _ = (cpu_3d if work.scheme.dimensions == 3 else cpu).forward(
        velocity.detach().numpy(),
        wavelet.detach().numpy(),
        work.sources,
        work.receivers,
        work.scheme,
        store=False,
        threads=threads,
    )
    return torch.from_numpy(records), velocity.new_empty(0)


@torch.library.custom_op("hpfwi::acoustic_gradient", mutates_args=(), device_types="cpu")
def _acoustic_gradient(
    kept: Tensor, record_gradient: Tensor,
    velocity: Tensor, wavelet: Tensor, source_cells: Tensor, source_weights: Tensor, receiver_cells: Tensor,
    receiver_weights: Tensor, shape: list[int], spacing_m: list[float], absorbing: list[int], measures: list[float],
    counts: list[int], boundary: str, free_surface: bool, mode: str, half: bool, threads: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of velocity and wavelet."""
    work = work_of(
        source_cells, source_weights, receiver_cells, receiver_weights,
        shape, spacing_m, absorbing, measures, counts, boundary, free_surface, mode, half,
    )  # fmt: skip
    engine = cpu_3d if work.scheme.dimensions == 3 else cpu
    inputs = (velocity.detach().numpy(), wavelet.detach().numpy(), work.sources, work.receivers, work.scheme)
    _, stored = engine.forward(*inputs, store=True, threads=threads, memory=work.memory)
    assert stored is not None
    found = engine.gradient(*inputs, stored, record_gradient.detach().numpy(), threads=threads, memory=work.memory)
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6], output[1])
    ctx.rest = inputs[6:-1]
    ctx.set_materialize_grads(False)


def _acoustic_backward(ctx: Any, record_gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, kept = ctx.saved_tensors
    velocity, wavelet = _acoustic_gradient(kept, record_gradient, *tensors, *ctx.rest)
    wants_velocity, wants_wavelet = ctx.needs_input_grad[:2]
    return velocity if wants_velocity else None, wavelet if wants_wavelet else None, *(None,) * 15


_acoustic.register_autograd(_acoustic_backward, setup_context=_save_inputs)


@_acoustic.register_fake
def _(velocity: Tensor, wavelet: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *settings, _, store = rest
    records = velocity.new_empty((wavelet.shape[0], rest[2].shape[1], wavelet.shape[2]))
    if velocity.device.type == "cpu" or not store:
        return records, velocity.new_empty(0)
    return records, room_for_gradient(*settings_of(*settings[4:]), wavelet)


@_acoustic_gradient.register_fake
def _(kept: Tensor, record_gradient: Tensor, velocity: Tensor, wavelet: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return velocity.new_empty(velocity.shape), wavelet.new_empty(wavelet.shape)


@_acoustic.register_kernel("cuda")
def _acoustic_on_gpu(velocity: Tensor, wavelet: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *settings, _, store = rest
    with _on_gpu_of(wavelet):
        return forward_on_device(velocity, wavelet, work_of(*settings), store=store)


@_acoustic_gradient.register_kernel("cuda")
def _acoustic_gradient_on_gpu(
    kept: Tensor, record_gradient: Tensor, velocity: Tensor, wavelet: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    with _on_gpu_of(wavelet):
        return gradient_on_device(kept, record_gradient, velocity, wavelet, work_of(*rest[:-1]))


@contextlib.contextmanager
def _on_gpu_of(wavelet: Tensor) -> Iterator[None]:
    """Its GPU is the current one; KernelError where that has not the memory for so many shots."""
    try:
        with torch.cuda.device(wavelet.device):
            yield
    except torch.OutOfMemoryError as error:
        raise KernelError(
            f"Propagating {len(wavelet)} shots together takes more memory than is free on {wavelet.device}; propagate "
            "fewer at a time."
        ) from error
