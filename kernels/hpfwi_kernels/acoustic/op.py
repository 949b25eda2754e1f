"""The propagator as a differentiable torch operation."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hpfwi_kernels.acoustic import cpu, cpu_3d
from hpfwi_kernels.acoustic.memory import STORE, Memory
from hpfwi_kernels.acoustic.points import Points
from hpfwi_kernels.acoustic.scheme import Scheme
from hpfwi_kernels.buffers import Pool
from hpfwi_kernels.errors import ModelError


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

    velocity    float32 or float64 [z, x] for all shots or [shot, z, x], m/s; [z, y, x] where spacing_m has three sizes
    wavelet     same dtype [shot, source, time], Pa/m², the f of (1/v²) u_tt = lap u + f at the source's cell
    sources     one set of taps per shot and source        receivers   one per shot and receiver
    threads     shots run at the same time; the bits do not depend on it
    pool        lends wavefields and snapshots, for a caller that propagates again and again; None takes fresh memory
    memory      how the wavefield is held for the gradient, where one is wanted; `choose` picks one for a budget
    returns     same dtype [shot, receiver, time], Pa; sample 0 is the field before the first step. Differentiable once
                in velocity and wavelet, by the discrete adjoint (exact in velocity for scheme.store_every = 1)
    raises      ModelError, GeometryError, StabilityError before any work

    The wavefield is kept only where a gradient is wanted: not under torch.no_grad, nor when no input requires one.
    """
    for tensor, name in ((velocity, "velocity"), (wavelet, "wavelet")):
        if tensor.device.type != "cpu":
            raise ModelError(f"{name} is on {tensor.device}; this propagator runs on the CPU: move it with .cpu().")
    if velocity.dtype != wavelet.dtype:
        raise ModelError(f"velocity is {velocity.dtype} and wavelet is {wavelet.dtype}; give both the same dtype.")
    store = torch.is_grad_enabled() and (velocity.requires_grad or wavelet.requires_grad)
    result: Tensor = _Propagate.apply(velocity, wavelet, sources, receivers, scheme, threads, pool, memory, store)
    return result


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
