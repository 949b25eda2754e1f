"""Training and modelling where tensors are on a GPU: no operator mixes devices, none adds in an order of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hpfwi.physics.openfwi import OpenFwiSettings, OpenFwiSimulator
from hpfwi.refinement.refine import refine
from hpfwi.refinement.settings import load_refinement
from hpfwi.store.openfwi import PairStore
from hpfwi.store.pair_writer import create_pairs
from hpfwi.training.gpu_arithmetic import set_arithmetic
from hpfwi.training.settings import TrainConfig, load_train_config, resolved
from hpfwi.training.task import TrainingTask
from tests.hpfwi.pretended_gpu import pretended_gpu, waves_too

RECORDS, MODEL, SAMPLES, TRAIN = (3, 40, 16), (12, 16), 9, 7
WITHOUT_ORDER = {
    "aten::_adaptive_avg_pool2d_backward",
    "aten::adaptive_max_pool2d_backward",
    "aten::grid_sampler_2d_backward",
    "aten::nll_loss2d_forward",
    "aten::reflection_pad2d_backward",
    "aten::upsample_bilinear2d_backward",
}
"""Operators without a fixed order of sums on a GPU that a network may come to use, as named by
`torch.use_deterministic_algorithms`."""

CASES: dict[str, dict[str, object]] = {
    "amfms": {
        "network__name": "amfms",
        "training__mirror": True,
        "training__records_noise": 0.1,
        "training__average_decay": 0.9,
    },
    "dd-net70": {"network__name": "dd-net70", "training__loss__name": "dd"},
    "tu-net": {"network__name": "tu-net", "training__loss__name": "mpe"},
    "aba-fwi": {
        "network__name": "aba-fwi",
        "training__loss__name": "l1+l2+rctb",
        "training__sync_batch_norm": True,
    },
    "velocitygan": {"network__name": "velocitygan", "training__loss__name": "wgan-gp", "training__critic_steps": 1},
    "low precision": {
        "network__name": "inversionnet",
        "training__precision": "bfloat16",
        "training__channels_last": True,
    },
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    random = np.random.default_rng(0)
    names = ("dx_m", "dz_m", "dt_s", "peak_hz", "sources_m", "receivers_m", "records_unit")
    writer = create_pairs(
        tmp_path_factory.mktemp("pairs") / "pairs.zarr",
        samples=SAMPLES,
        records_shape=RECORDS,
        model_shape=MODEL,
        family="layers",
        physics=dict.fromkeys(names),
        splits={"train": range(TRAIN), "test": range(TRAIN, SAMPLES)},
        shard_samples=SAMPLES,
    )
    depths = random.integers(3, 9, SAMPLES)[:, None, None]
    models = np.where(np.arange(MODEL[0])[None, :, None] < depths, 1500.0, 3000.0) + np.zeros((1, 1, MODEL[1]))
    writer.write(0, random.standard_normal((SAMPLES, *RECORDS)).astype(np.float32), models.astype(np.float32))
    return writer.finish()


def configured(store: PairStore, **options: object) -> TrainConfig:
    named = {"data__pairs": store.path, "network__width": 0.05, "training__batch": 6, "training__slices": 2} | options
    config, _ = load_train_config(None, [f"{name.replace('__', '.')}={value}" for name, value in named.items()])
    return resolved(config, store)


def two_steps(config: TrainConfig, store: PairStore, device: str) -> tuple[NDArray[np.floating], dict[str, float]]:
    """The first step's gradient, and the validation after two steps; every tensor of the state is looked at."""
    task = TrainingTask(config, store, device=device)
    first = None
    for step in (0, 1):
        task.begin(step)
        while True:
            slices = [task.gradient(slot) for slot in (0, 1)]
            total = np.sum([vector for vector, _ in slices], axis=0)
            task.advance(step, total)
            if "halted" not in slices[0][1]:
                break
        first = total if first is None else first
    task.begin(None)
    task.load_state(task.state())
    assert {value.device.type for value in task.weights().values()} == {device}
    assert task.predict(store.read(np.arange(2))[0]).shape == (2, *MODEL)
    judged = task.judge(0)
    task.batches.close()
    assert first is not None
    return first, judged


@pytest.mark.parametrize("case", CASES)
def test_a_network_trains_on_a_gpu_as_on_a_cpu(case: str, store: PairStore, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(store, **CASES[case])
    expected, judged = two_steps(config, store, "cpu")
    for op in ("haar", "dct_pool"):  # their CUDA kernels are tested beside them
        monkeypatch.setattr(f"hpfwi_kernels.{op}.op._gpu_is_usable", lambda: True)
    with pretended_gpu(monkeypatch) as gpu:
        set_arithmetic(config.training)
        found, judged_there = two_steps(config, store, "cuda")
        assert not gpu.operators & WITHOUT_ORDER
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    fused = {"hpfwi::wavelet_convolution", "hpfwi::multi_frequency_pool"} if case == "amfms" else {"aten::convolution"}
    assert fused <= gpu.operators
    # bfloat16 keeps 8 bits. TU-Net's taps start on cells, where a bilinear value has two slopes and rounding decides.
    tolerance = {"low precision": 0.3, "tu-net": 0.02}.get(case, 1e-3)
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)
    assert judged_there["loss"] == pytest.approx(judged["loss"], rel=0.1)


def test_without_exact_sums_a_gpu_may_take_its_fastest_operators(
    store: PairStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(store, network__name="dd-net70", training__exact=False)
    with pretended_gpu(monkeypatch) as gpu:
        set_arithmetic(config.training)
        two_steps(config, store, "cuda")
        assert torch.backends.cudnn.benchmark
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert gpu.operators & WITHOUT_ORDER == {"aten::upsample_bilinear2d_backward"}


def test_maps_are_modelled_and_refined_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu(monkeypatch):
        seen = waves_too(monkeypatch)
        toy = OpenFwiSettings(shots=2, steps=120, peak_hz=30.0, absorbing_cells=30)
        there, here = (OpenFwiSimulator((16, 20), toy, boundary="cpml", device=device) for device in ("auto", "cpu"))
        true = np.where(np.indices((16, 20))[0] > 7, 2600.0, 1900.0).astype(np.float32)
        records = there.records_of(np.stack([true, true + 100]))
        np.testing.assert_array_equal(records, here.records_of(np.stack([true, true + 100])))
        for kind in ("s-denorm", "pixel"):
            settings, _ = load_refinement(["iterations=2", f"parameterisation.kind={kind}"])
            found, expected = (refine(true + 100, records[0], simulator, settings) for simulator in (there, here))
            np.testing.assert_allclose(found.velocity, expected.velocity, rtol=1e-5)
    assert seen == [(4, 16, 20)] + [(16, 20)] * (len(seen) - 1)


def test_the_pretence_refuses_what_a_gpu_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu(monkeypatch):
        there = torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match=r"aten::add is given tensors of two devices: \(3,\) on cuda:0"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            np.asarray(there)
        here = torch.ones(3, requires_grad=True)
        (here.to("cuda") * there).sum().backward()
        assert here.grad is not None
        assert (here.grad.device.type, there.cpu().numpy().tolist()) == ("cpu", [1.0, 1.0, 1.0])
