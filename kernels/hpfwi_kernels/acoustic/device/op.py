"""Acoustic propagation in the memory of a device: what torch computes around the kernels in cuda.py."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hpfwi_kernels.acoustic import cuda
from hpfwi_kernels.acoustic.cuda_call import AdjointCall, ForwardCall, Problem, outlined
from hpfwi_kernels.acoustic.device.described import OwnPart, described
from hpfwi_kernels.acoustic.memory import Memory, segments
from hpfwi_kernels.acoustic.points import Points
from hpfwi_kernels.acoustic.scheme import Scheme
from hpfwi_kernels.acoustic.setup import require_shapes, require_stable_steps
from hpfwi_kernels.errors import KernelError, ModelError


@dataclass(frozen=True, eq=False)
class Work:
    """One propagation: how it is computed, how its gradient is, and between which points."""

    scheme: Scheme
    memory: Memory
    sources: Points
    receivers: Points


def settings_of(
    shape: list[int], spacing_m: list[float], absorbing: list[int], measures: list[float], counts: list[int],
    boundary: str, free_surface: bool, mode: str, half: bool,
) -> tuple[tuple[int, ...], Scheme, Memory]:  # fmt: skip
    """What the operations take, numbers and lists of them, as objects again: the model's shape, scheme and memory."""
    dt_s, pml_hz, max_velocity_mps, *sponges_mps = measures
    order, substeps, store_every, segment_steps = counts
    scheme = Scheme(
        spacing_m=tuple(spacing_m),
        dt_s=dt_s,
        order=order,
        absorbing=tuple(absorbing),
        boundary=boundary,  # type: ignore[arg-type]
        free_surface=free_surface,
        pml_hz=pml_hz,
        max_velocity_mps=max_velocity_mps,
        min_velocity_mps=tuple(sponges_mps) if len(sponges_mps) > 1 else next(iter(sponges_mps), None),
        substeps=substeps,
        store_every=store_every,
    )
    memory = Memory(mode=mode, half=half, segment_steps=segment_steps or None)  # type: ignore[arg-type]
    return tuple(shape), scheme, memory


def work_of(
    source_cells: Tensor, source_weights: Tensor, receiver_cells: Tensor, receiver_weights: Tensor, *settings: Any
) -> Work:  # fmt: skip
    """The points too."""
    shape, scheme, memory = settings_of(*settings)
    sources = Points(source_cells.numpy(), source_weights.numpy(), shape)
    return Work(scheme, memory, sources, Points(receiver_cells.numpy(), receiver_weights.numpy(), shape))


def forward_on_device(velocity: Tensor, wavelet: Tensor, work: Work, *, store: bool) -> tuple[Tensor, Tensor]:
    """Records and what the gradient needs, by the kernels in cuda.py, on the current device."""
    ready = _ready(velocity, wavelet, work, gradient=store)
    problem, choice = ready.problem, ready.choice
    kept = room_for_gradient(work.sources.shape, work.scheme, work.memory, wavelet) if store else velocity.new_empty(0)
    records = velocity.new_empty((problem.shots, problem.steps, work.receivers.per_shot))
    call = ready.forward_call(records)
    mode = work.memory.mode if store else "nothing"
    if mode == "checkpoint":
        states = _states(kept, problem)
        before = 0
        for number, (begin, end) in enumerate(_segments(work.scheme, work.memory, problem)):
            after = states[number].data_ptr() if end < problem.steps else 0
            cuda.forward(replace(call, begin=begin, end=end, state_in=before, state_out=after), choice)
            before = after
    elif mode == "boundary":
        state = velocity.new_empty((problem.shots, problem.state_fields, problem.cells))
        ring, last = _boundary(kept, problem)
        cuda.forward(replace(call, state_out=state.data_ptr(), ring=ring.data_ptr()), choice)
        last.copy_(state[:, :2])
    else:
        if mode == "store":
            call = replace(call, brackets=kept.data_ptr(), bracket_type=_type_of(work))
        cuda.forward(call, choice)
    sampled = _downsample(records.transpose(1, 2), work.scheme.substeps)
    return sampled.to(velocity.dtype).contiguous(), kept


def gradient_on_device(
    kept: Tensor, record_gradient: Tensor, velocity: Tensor, wavelet: Tensor, work: Work
) -> tuple[Tensor, Tensor]:
    """Gradients of velocity and wavelet, by the kernels in cuda.py, on the current device."""
    ready = _ready(velocity, wavelet, work, gradient=True)
    problem, choice, scheme, mode = ready.problem, ready.choice, work.scheme, work.memory.mode
    residual = _upsample(record_gradient, scheme.substeps) / scheme.substeps
    residual = residual.transpose(1, 2).to(torch.float32).contiguous()
    total = velocity.new_zeros((problem.shots, problem.cells))
    drive_gradient = torch.empty_like(ready.drive)
    product = velocity.new_empty((problem.sources.taps, problem.steps))
    call = AdjointCall(
        problem=problem,
        begin=0,
        end=problem.steps,
        residual=residual.data_ptr(),
        drive_gradient=drive_gradient.data_ptr(),
        product=product.data_ptr(),
        total=total.data_ptr(),
        bracket_type=_type_of(work),
        workspace=ready.bytes(cuda.adjoint_workspace_bytes(problem, choice, rewinds=mode == "boundary")),
        **ready.place,
    )
    if mode == "checkpoint":
        parts, states = _segments(scheme, work.memory, problem), _states(kept, problem)
        segment = _bracket_room(work.memory, problem, problem.slots(*parts[0]), velocity)
        call = replace(call, brackets=segment.data_ptr())
        again = replace(ready.forward_call(None), brackets=call.brackets, bracket_type=call.bracket_type)
        state = ready.bytes(4 * problem.shots * problem.state_fields * problem.cells)
        for number, (begin, end) in reversed(list(enumerate(parts))):
            start = states[number - 1].data_ptr() if number else 0
            cuda.forward(replace(again, begin=begin, end=end, state_in=start), choice)
            later = state if end < problem.steps else 0
            cuda.adjoint(replace(call, begin=begin, end=end, state_in=later, state_out=state), choice)
    elif mode == "boundary":
        ring, last = _boundary(kept, problem)
        field = last.clone()  # a graph that is kept may ask for its gradient again
        cuda.adjoint(replace(call, ring=ring.data_ptr(), field=field.data_ptr()), choice)
    else:
        cuda.adjoint(replace(call, brackets=kept.data_ptr()), choice)
    per_shot = total.to(torch.float64).view(problem.shots, *problem.shape) * scheme.store_every
    _add_own_part(per_shot, product, ready.drive, ready.own)
    per_model = per_shot if velocity.dim() > scheme.dimensions else per_shot.sum(dim=0, keepdim=True)
    folded = _fold_edges(per_model * torch.where(ready.padded == 0, 0.0, 2.0 / ready.padded), scheme)
    wavelet_gradient = _downsample(drive_gradient, scheme.substeps) * scheme.substeps
    return folded.reshape(velocity.shape).to(velocity.dtype), wavelet_gradient.to(wavelet.dtype).contiguous()


def room_for_gradient(shape: tuple[int, ...], scheme: Scheme, memory: Memory, wavelet: Tensor) -> Tensor:
    """Uninitialised memory for what a forward run keeps for its gradient; KernelError where there is not enough."""
    steps = wavelet.shape[-1] * scheme.substeps
    problem = outlined(scheme, scheme.padded(shape), shots=wavelet.shape[0], models=1, steps=steps)
    if memory.mode == "store":
        return _bracket_room(memory, problem, problem.slots(0, steps), wavelet)
    if memory.mode == "checkpoint":
        count = (len(_segments(scheme, memory, problem)) - 1) * problem.state_fields * problem.cells
    else:
        _require_core(problem)
        count = steps * problem.ring_cells + 2 * problem.cells
    return _allocated(problem.shots * count, torch.float32, wavelet)


@dataclass(frozen=True, eq=False)
class _Ready:
    """A propagation in a device's memory, and which kernels run it."""

    problem: Problem
    choice: cuda.Choice
    drive: Tensor
    padded: Tensor
    """float64[model, padded cells], m/s"""
    own: OwnPart
    held: list[Tensor]
    """What the addresses in `problem` and in calls point into."""

    @property
    def place(self) -> dict[str, Any]:
        """Device and stream of a call."""
        device = self.drive.device
        if device.type != "cuda":
            return {}
        return {"device": device.index, "stream": torch.cuda.current_stream(device).cuda_stream}

    def bytes(self, count: int) -> int:
        """Address of uninitialised memory that lives as long as this."""
        self.held.append(torch.empty(count, dtype=torch.uint8, device=self.drive.device))
        return self.held[-1].data_ptr()

    def forward_call(self, records: Tensor | None) -> ForwardCall:
        """All steps from rest, nothing kept."""
        return ForwardCall(
            problem=self.problem,
            begin=0,
            end=self.problem.steps,
            records=0 if records is None else records.data_ptr(),
            workspace=self.bytes(cuda.forward_workspace_bytes(self.problem, self.choice)),
            **self.place,
        )


def _ready(velocity: Tensor, wavelet: Tensor, work: Work, *, gradient: bool) -> _Ready:
    """Check the input and build what the kernels need, coefficients in float64 on the device."""
    scheme, device = work.scheme, velocity.device
    if velocity.dtype != torch.float32:
        raise ModelError(f"velocity is {velocity.dtype}; on a GPU the propagator takes float32: pass velocity.float().")
    require_shapes(tuple(velocity.shape), tuple(wavelet.shape), work.sources, work.receivers, scheme)
    fastest, loudest = torch.stack([velocity.abs().amax(), wavelet.abs().amax()]).tolist()
    for value, tensor, name in ((fastest, velocity, "velocity"), (loudest, wavelet, "wavelet")):
        if not math.isfinite(value):
            where = tuple(torch.nonzero(~torch.isfinite(tensor))[0].tolist())
            raise ModelError(f"{name} is {float(tensor[where])} at {where}; it must be finite everywhere.")
    require_stable_steps(fastest, scheme)
    padded = velocity.to(torch.float64).reshape(-1, *work.sources.shape)
    for axis, (low, high) in enumerate(scheme.widths, start=1):
        cells = padded.shape[axis]
        padded = padded.index_select(axis, torch.arange(-low, cells + high, device=device).clamp(0, cells - 1))
    factor = padded**2 * scheme.inner_dt_s**2
    if scheme.free_surface:
        factor[:, 0] = 0.0
    factor = factor.to(torch.float32)
    drive = _upsample(wavelet, scheme.substeps).to(torch.float32).contiguous()
    known = described(
        scheme, work.sources, work.receivers, models=padded.shape[0], steps=drive.shape[-1], device=device
    )
    problem = replace(known.problem, factor=factor.data_ptr(), drive=drive.data_ptr())
    choice = cuda.choose(problem, cuda.limits_of(device.index or 0), gradient=gradient)
    return _Ready(problem, choice, drive, padded, known.own, [factor, known.block])


def _bracket_room(memory: Memory, problem: Problem, slots: int, like: Tensor) -> Tensor:
    return _allocated(
        problem.shots * slots * problem.bracket_cells, torch.bfloat16 if memory.half else torch.float32, like
    )


def _allocated(count: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    try:
        return torch.empty(count, dtype=dtype, device=like.device)
    except torch.OutOfMemoryError as error:
        raise KernelError(
            f"The wavefields for the gradient take {count * dtype.itemsize / 1e9:.3g} GB, more than is free on "
            f'{like.device}; propagate fewer shots at a time, raise store_every, or use mode "checkpoint".'
        ) from error


def _segments(scheme: Scheme, memory: Memory, problem: Problem) -> list[tuple[int, int]]:
    # All shots run at the same time, so that each needs its own brackets.
    return segments(memory, scheme, problem.steps, problem.shots, threads=problem.shots)


def _states(kept: Tensor, problem: Problem) -> Tensor:
    """The states between segments, [number, shot, field, cell]."""
    return kept.view(-1, problem.shots, problem.state_fields, problem.cells)


def _boundary(kept: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Views of the ring at every step [shot, step, cell] and of the last two fields [shot, 2, cell]."""
    size = problem.shots * problem.steps * problem.ring_cells
    ring = kept[:size].view(problem.shots, problem.steps, problem.ring_cells)
    return ring, kept[size:].view(problem.shots, 2, problem.cells)


def _require_core(problem: Problem) -> None:
    if any(first >= last for first, last in problem.core):
        raise ModelError(
            f"A model of {' x '.join(map(str, problem.shape))} cells, layers included, has no cell out of reach of its "
            'absorbing layers, which mode="boundary" needs; use "store" or "checkpoint".'
        )


def _type_of(work: Work) -> Any:
    return "bfloat16" if work.memory.half else "float32"


def _add_own_part(per_shot: Tensor, product: Tensor, drive: Tensor, own: OwnPart) -> None:
    """The wavelet acts inside the bracket that c multiplies, at every step whatever store_every is.

    Taps of one cell are added in order, cell by cell.
    """
    of_taps = (product.to(torch.float64) * drive.to(torch.float64).flatten(0, 1)[own.source]).sum(dim=1)
    sums = torch.where(own.there, of_taps[own.taps], 0.0).sum(dim=1)
    flat = per_shot.view(len(per_shot), -1)
    flat[own.shot, own.cell] = flat[own.shot, own.cell] + sums


def _fold_edges(gradient: Tensor, scheme: Scheme) -> Tensor:
    """Transpose of padding by edge replication: [model, padded cells] to [model, the model's cells]."""
    for axis, (low, high) in enumerate(scheme.widths, start=1):
        cells = gradient.shape[axis] - low - high
        inside = gradient.narrow(axis, low, cells).clone()
        inside.select(axis, 0).add_(gradient.narrow(axis, 0, low).sum(dim=axis))
        inside.select(axis, cells - 1).add_(gradient.narrow(axis, low + cells, high).sum(dim=axis))
        gradient = inside
    return gradient


def _upsample(signal: Tensor, substeps: int) -> Tensor:
    """`setup.upsample`, on a tensor."""
    signal = signal.to(torch.float64)
    if substeps == 1:
        return signal
    samples = signal.shape[-1]
    spectrum = torch.fft.rfft(signal)
    if samples % 2 == 0:
        spectrum[..., -1] = 0.0
    return torch.fft.irfft(spectrum, samples * substeps) * substeps


def _downsample(signal: Tensor, substeps: int) -> Tensor:
    """`setup.downsample`, on a tensor."""
    if substeps == 1:
        return signal
    samples = signal.shape[-1] // substeps
    spectrum = torch.fft.rfft(signal.to(torch.float64))[..., : samples // 2 + 1]
    if samples % 2 == 0:
        spectrum[..., -1] = 0.0
    return torch.fft.irfft(spectrum, samples) / substeps
