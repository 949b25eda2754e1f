"""The calls of CuPy around every kernel, on a stand-in that is as strict as CuPy and CUDA, and what they compute."""

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hpfwi_kernels import gpu
from hpfwi_kernels.acoustic import Memory, Scheme, cuda, off_grid
from hpfwi_kernels.acoustic import op as acoustic_op
from hpfwi_kernels.dct_pool import op as dct_op
from hpfwi_kernels.dct_pool import published_frequencies
from hpfwi_kernels.errors import KernelError
from hpfwi_kernels.haar import cuda as haar_cuda
from hpfwi_kernels.haar import op as haar_op
from hpfwi_kernels.haar import reference as haar_reference
from tests.kernels.cuda_on_cpu import Processor, filled
from tests.kernels.cupy_on_cpu import STREAM, USED, Gpus, Refused, cupy_of, cupy_on

H100 = cuda.Limits("H100", 132, 227 * 1024, clusters=True)
ADDER = """
template <typename T> __global__ void add(T* to, T more, long long place) {
    extern __shared__ float memory[];
    memory[place] = 0;
    to[place] += more;
}
"""


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    made = Processor(tmp_path_factory.mktemp("launches"))
    made.build(ADDER, {"add<int>", "add<float>"})
    return made


def attribute(package: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        package = getattr(package, name)
    return package


def test_the_stand_in_has_nothing_that_cupy_has_not(processor: Processor) -> None:
    stand_in = cupy_of(Gpus(processor, H100))
    assert all(attribute(stand_in, name) for name in USED)
    cupy = pytest.importorskip("cupy")
    assert all(attribute(cupy, name) for name in USED)


def test_what_the_driver_would_refuse_is_refused(processor: Processor) -> None:
    """Bytes that are not the signature's, more shared memory than allowed, another GPU, a load while capturing."""
    numbers = np.zeros(4, np.int32)
    to = np.uint64(numbers.ctypes.data)
    with cupy_on(processor, H100) as gpus:
        import cupy

        with gpu.launching_on(1, STREAM) as queue:
            add = gpu.compiled(ADDER, ("add<int>", "add<float>"))["add<int>"]
            add((2,), (32,), (to, np.int32(3), np.int64(1)), shared_mem=227 * 1024)
            with pytest.raises(AssertionError, match="write behind their shared memory"):
                add((1,), (1,), (to, np.int32(0), np.int64(1)), shared_mem=4)
            for wrong in ((to, np.int32(3), np.int32(1)), (to, 3, np.int64(1)), (to, np.int32(3))):
                with pytest.raises(TypeError, match=r"add<int> takes \['p8', 'i4', 'i8'\] and is launched with"):
                    add((1,), (1,), wrong)
            with pytest.raises(TypeError, match=r"takes .* and is launched with .*'f4'"):
                add((1,), (1,), (to, np.float32(3), np.int64(1)))
            with pytest.raises(Refused, match=r"bytes of shared memory where"):
                add((1,), (1,), (to, np.int32(3), np.int64(1)), shared_mem=227 * 1024 + 4)
            with pytest.raises(Refused, match=r"65536"):
                add((1, 65536), (1,), (to, np.int32(3), np.int64(1)))
            fresh = cupy.RawModule(code=ADDER + "\n", options=("--std=c++17",), name_expressions=("add<int>",))
            with pytest.raises(Refused, match=r"49153 bytes .* where 49152"):
                fresh.get_function("add<int>")((1,), (1,), (to, np.int32(3), np.int64(1)), shared_mem=48 * 1024 + 1)
            with cupy.cuda.Stream(non_blocking=True) as side:
                side.begin_capture()
                add((1,), (1,), (to, np.int32(100), np.int64(2)), shared_mem=12)
                with pytest.raises(Refused, match=r"loaded while a stream is captured"):
                    gpu.compiled(ADDER + "//", ("add<int>",))
                graph = side.end_capture()
            assert numbers.tolist() == [0, 192, 0, 0]
            graph.launch(stream=queue)
            graph.launch(stream=queue)
        with gpu.launching_on(0, STREAM), pytest.raises(Refused, match=r"loaded on GPU 1 and is launched on GPU 0"):
            add((1,), (1,), (to, np.int32(3), np.int64(1)))
    assert numbers.tolist() == [0, 192, 200, 0]
    assert gpus.done == [(1, STREAM, name) for name in ("add<int>", "add<int>", "graph", "graph")]


def test_the_stand_in_is_found_and_forgotten(processor: Processor) -> None:
    with cupy_on(processor, H100):
        assert gpu.available()
        assert cuda.limits_of(1) == H100
    if not gpu.available():
        with pytest.raises(KernelError, match="needs CuPy to run on a GPU"):
            cuda.limits_of(0)


@pytest.mark.parametrize(("dtype", "k"), [("float32", 5), ("bfloat16", 3)])
def test_the_wavelet_convolution_is_launched_as_its_kernels_ask(dtype: str, k: int, processor: Processor) -> None:
    rng = np.random.default_rng(8)
    shape, channels = (2, 2, 9, 14), 2
    sizes = [shape, (channels, k, k), (channels,), (1, channels, 4, k, k), shape]
    x, base, bias, bands, gradient = (rng.standard_normal(size).astype(np.float32) for size in sizes)
    maps = [x, gradient]
    if dtype == "bfloat16":
        maps = [(one.view(np.uint32) >> 16).astype(np.uint16) for one in maps]
        x, gradient = ((one.astype(np.uint32) << 16).view(np.float32) for one in maps)
    space, terms = haar_cuda.gradient_terms(shape, k)
    y, partial, total = filled(shape, maps[0].dtype), filled((space,)), filled((channels, terms))
    told: dict[str, Any] = {"shape": shape, "k": k, "dtype": dtype, "device": 1, "stream": STREAM}
    at = [array.ctypes.data for array in (maps[0], base, bias, bands, y, maps[1], partial, total)]
    with cupy_on(processor, H100) as gpus:
        haar_cuda.forward(*at[:5], **told)
        haar_cuda.filter_gradient(at[0], *at[5:], **told)
    assert [one[:2] for one in gpus.done] == 3 * [(1, STREAM)]
    if dtype == "bfloat16":
        y = (y.astype(np.uint32) << 16).view(np.float32)
    right = haar_reference.forward(x, base, bias, bands)
    np.testing.assert_allclose(y, right, rtol=2**-8 if dtype == "bfloat16" else 0, atol=2e-5)
    _, base_gradient, bias_gradient, _ = haar_reference.gradient(x, base, bands, gradient)
    atol = 2e-6 * np.sqrt(x.size)
    np.testing.assert_allclose(total[:, : k * k], base_gradient.reshape(channels, -1), rtol=0, atol=atol)
    np.testing.assert_allclose(total[:, -1], bias_gradient, rtol=0, atol=atol)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says of a GPU's streams, and its guard, for tensors of the processor."""
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))
    monkeypatch.setattr("torch.cuda.device", lambda device: nullcontext())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("streams")
def test_the_layers_operations_on_a_gpu_are_those_of_the_cpu(dtype: torch.dtype, processor: Processor) -> None:
    """What torch calls for tensors on a GPU; gradients that are not contiguous, and want gradients themselves."""
    generator = torch.Generator().manual_seed(3)
    sizes = [(2, 2, 9, 14), (2, 3, 3), (2,), (1, 2, 4, 3, 3), (2, 2, 14, 9)]
    x, base, bias, bands, above = (torch.randn(size, generator=generator) for size in sizes)
    x, above = x.to(dtype).requires_grad_(), above.to(dtype).transpose(-1, -2).requires_grad_()
    flat = [index for pair in published_frequencies(7) for index in pair]
    slopes = [torch.randn(2, 2, generator=generator).to(dtype).T.requires_grad_() for _ in range(3)]
    with cupy_on(processor, H100), torch.no_grad():
        own = (
            haar_op._convolution_on_gpu(x, base, bias, bands, "haar"),
            *haar_op._convolution_gradient_on_gpu(x, base, bands, above, "haar", True, True),
        )
        pooled = dct_op._pool_on_gpu(x, flat, 7, True)
        blind = dct_op._pool_on_gpu(x, flat, 7, False)
        spread = dct_op._pool_gradient_on_gpu(pooled[3], flat, 7, 9, 14, *slopes)
    right = (
        haar_op._convolution(x, base, bias, bands, "haar"),
        *haar_op._convolution_gradient(x, base, bands, above, "haar", True, True),
    )
    eps = torch.finfo(dtype).eps
    for one, other in zip(own, right, strict=True):
        torch.testing.assert_close(one, other, rtol=4 * eps, atol=16 * eps)
    expected = dct_op._pool(x, flat, 7, True)
    for one, again, other in zip(pooled[:3], blind, expected, strict=False):
        torch.testing.assert_close(one, other, rtol=2 * eps, atol=16 * eps)
        assert torch.equal(one, again)
    assert blind[3].shape == (0, 2, 16)
    assert torch.equal(pooled[3], expected[3])
    right_spread = dct_op._pool_gradient(expected[3], flat, 7, 9, 14, *slopes)
    torch.testing.assert_close(spread, right_spread, rtol=2 * eps, atol=16 * eps)


@pytest.mark.usefixtures("streams")
def test_no_sample_is_no_launch(processor: Processor) -> None:
    """CuPy takes no blocks for one."""
    x, base, bands = torch.empty(0, 2, 9, 14), torch.ones(2, 5, 5), torch.ones(1, 2, 4, 5, 5)
    flat = [index for pair in published_frequencies(7) for index in pair]
    with cupy_on(processor, H100) as gpus, torch.no_grad():
        assert haar_op._convolution_on_gpu(x, base, None, bands, "haar").shape == x.shape
        mean, *_, cells = dct_op._pool_on_gpu(x, flat, 7, True)
        assert dct_op._pool_gradient_on_gpu(cells, flat, 7, 9, 14, mean, mean, mean).shape == x.shape
        assert gpus.done == []
        _, *sums = haar_op._convolution_gradient_on_gpu(x, base, bands, x, "haar", True, True)
    assert [one[2] for one in gpus.done] == ["sum_partials"]
    assert not any(one.any() for one in sums)


@pytest.mark.usefixtures("streams")
def test_the_propagators_operations_on_a_gpu_are_those_of_the_cpu(processor: Processor) -> None:
    rng, shape = np.random.default_rng(4), (13, 15)
    scheme = Scheme(
        spacing_m=(10.0, 12.0), dt_s=1.4e-3, order=4, absorbing=(5, 4, 6, 4), boundary="cpml", free_surface=False,
        pml_hz=20.0, max_velocity_mps=2500.0,
    )  # fmt: skip
    points = [off_grid(rng.uniform(1.0, 11.0, (2, count, 2)), shape, free_surface=False) for count in (1, 3)]
    velocity = torch.tensor(rng.uniform(1500.0, 2500.0, shape), dtype=torch.float32)
    wavelet = torch.tensor(rng.standard_normal((2, 1, 12)), dtype=torch.float32)
    arrays = [torch.from_numpy(array) for one in points for array in (one.cells, one.weights)]
    rest = (*arrays, *acoustic_op._plain(shape, scheme, Memory()), 1)
    with cupy_on(processor, H100):
        records, kept = acoustic_op._acoustic_on_gpu(velocity, wavelet, *rest, True)
        above = records.transpose(0, 1).contiguous().transpose(0, 1)
        own = acoustic_op._acoustic_gradient_on_gpu(kept, above, velocity, wavelet, *rest)
    right, nothing = acoustic_op._acoustic(velocity, wavelet, *rest, True)
    expected = acoustic_op._acoustic_gradient(nothing, right, velocity, wavelet, *rest)
    for one, other in zip((records, *own), (right, *expected), strict=True):
        assert torch.linalg.norm(one - other) < 1e-5 * torch.linalg.norm(other)


@pytest.mark.usefixtures("streams")
def test_a_gpu_without_the_memory_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(acoustic_op, "forward_on_device", full)
    monkeypatch.setattr(acoustic_op, "work_of", lambda *_: None)
    velocity, wavelet = torch.empty(3, 3), torch.empty(7, 1, 2)
    with pytest.raises(
        KernelError, match=r"^Propagating 7 shots together takes more .* cpu; propagate fewer at a time\.$"
    ):
        acoustic_op._acoustic_on_gpu(velocity, wavelet, 1, True)


def test_a_home_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cupy.py").write_text("raise PermissionError(13, 'Permission denied', '/home/x/.cupy')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    gpu.available.cache_clear()
    with pytest.raises(KernelError, match=r"'/home/x/.cupy'\); name one that can be written in CUPY_CACHE_DIR"):
        gpu.available()
