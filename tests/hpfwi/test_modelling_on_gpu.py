"""Where gathers are computed: on the GPU of this process if it has one, and with the CPU's numbers."""

import numpy as np
import pytest
import torch

from hpfwi.config import load_config
from hpfwi.errors import ConfigError
from hpfwi.experiment import build_experiment, cluster_of
from hpfwi.parallel import ClusterSettings, device_here, local_threads
from hpfwi.physics.device import Device, compute_devices, usable_gpus
from hpfwi.physics.grid import Grid
from hpfwi.physics.model import EarthModel
from hpfwi.physics.modelling import simulate
from hpfwi.physics.modelling_settings import ModellingSettings
from hpfwi.physics.simulator import Simulator
from hpfwi.physics.survey import Survey
from hpfwi.plan import derived_settings, in_brief

GRID = Grid(shape=(30, 40), spacing_m=(10.0, 10.0))
SMALL = [
    "model.shape=[24, 40]",
    "survey.shots=5",
    "survey.samples=60",
    "source.delay_s=0.05",
    "data.refine=1",
    "inversion.shots_per_iteration=none",
]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def survey() -> Survey:
    sources = np.array([[[20.0, 50.0]], [[20.0, 300.0]]])
    receivers = np.tile(np.stack([np.full(8, 10.0), np.linspace(0.0, 390.0, 8)], axis=1), (2, 1, 1))
    return Survey(sources_m=sources, receivers_m=receivers, samples=120, dt_s=1e-3)


def wavelet() -> np.ndarray:
    phase = (np.pi * 25.0 * (np.arange(120) * 1e-3 - 0.04)) ** 2
    return np.tile(((1 - 2 * phase) * np.exp(-phase)).astype(np.float32), (2, 1, 1))


def simulator(device: Device | torch.device = "auto") -> Simulator:
    return Simulator(GRID, survey(), wavelet(), ModellingSettings(order=4), 2500.0, device=device)


def gradient(work: Simulator) -> tuple[torch.Tensor, torch.Tensor]:
    velocity = torch.linspace(1500.0, 2500.0, 1200).reshape(30, 40).requires_grad_()
    gathers = work.predict(velocity, [0, 1])
    (found,) = torch.autograd.grad(gathers.square().sum(), velocity)
    assert gathers.device == found.device == velocity.device
    return gathers.detach(), found


def test_a_process_computes_on_all_its_gpus_unless_told_otherwise() -> None:
    both = [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert compute_devices("auto", gpus=2) == compute_devices("cuda", gpus=2) == both
    assert compute_devices("auto", gpus=0) == compute_devices("cpu", gpus=2) == [torch.device("cpu")]
    with pytest.raises(ConfigError, match=r'device = "cuda" needs a GPU, and this process has none .* set it to "cpu"'):
        compute_devices("cuda", gpus=0)


def test_a_simulator_computes_where_it_is_told() -> None:
    assert simulator("cpu").device == torch.device("cpu")
    assert simulator(torch.device("cuda", 1)).device == torch.device("cuda", 1)
    assert simulator().device == compute_devices("auto")[0]


def test_a_survey_shared_by_devices_has_the_bits_of_one() -> None:
    model = EarthModel(np.linspace(1500.0, 2500.0, 1200, dtype=np.float32).reshape(30, 40), GRID)
    told: list[tuple[int, int]] = []
    settings, cpu = ModellingSettings(order=4), torch.device("cpu")
    one = simulate(model, survey(), wavelet(), settings, device="cpu")
    two = simulate(
        model, survey(), wavelet(), settings, device=[cpu, cpu], progress=lambda done, shots: told.append((done, shots))
    )
    assert one.tobytes() == two.tobytes()
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("asked", "gpus", "device", "workers", "why"),
    [
        ([], 4, "cuda", 4, "4 GPUs here that can be used"),
        (["cluster.workers=2"], 4, "cuda", 2, "4 GPUs here that can be used"),
        (["cluster.workers=0"], 1, "cuda", 0, "1 GPU here that can be used"),
        (["cluster.workers=3"], 2, "cpu", 3, "2 GPUs here that can be used, fewer than the 3 workers asked for"),
        (["cluster.workers=3"], 0, "cpu", 3, "no GPU here that can be used"),
        (["cluster.device=cpu", "cluster.workers=1"], 4, "cpu", 1, "as set"),
        (["modelling.engine=deepwave", "cluster.workers=1"], 4, "cpu", 1, "deepwave computes on the CPU here"),
    ],
)
def test_a_run_takes_a_worker_for_each_gpu_and_the_plan_says_so(
    asked: list[str], gpus: int, device: str, workers: int, why: str
) -> None:
    config, _ = load_config("demo", [*SMALL, *asked])
    found = cluster_of(config, gpus)
    assert (found.device, found.workers) == (device, workers)
    rows = derived_settings(build_experiment(config), gpus)
    told = {row.name: row for row in rows}
    assert (told["device"].value, told["device"].reason) == (device, why)
    assert told["workers"].value == workers
    assert ("each with a GPU of its own" in told["workers"].reason) is (device == "cuda" and workers > 0)
    assert (" on GPUs" in in_brief(rows)[0]) is (device == "cuda")


@pytest.mark.parametrize(
    ("asked", "gpus", "sentence"),
    [
        ([], 0, r"cluster.device = 'cuda' needs 1 GPU for workers = 'auto', and this machine has none .* to 'cpu'\."),
        (["cluster.workers=3"], 2, r"needs 3 GPUs for workers = 3, and this machine has 2 .*: lower workers, or set"),
        (["cluster.workers=0"], 0, r"needs 1 GPU for this process, and this machine has none"),
        (["modelling.engine=deepwave"], 2, r'has no use with modelling.engine = "deepwave".*: set it to "cpu"'),
    ],
)
def test_gpus_that_are_not_there_are_refused_in_a_sentence(asked: list[str], gpus: int, sentence: str) -> None:
    config, _ = load_config("demo", ["cluster.device=cuda", *asked])
    with pytest.raises(ConfigError, match=sentence) as caught:
        cluster_of(config, gpus)
    assert "\n" not in str(caught.value)


def test_the_driver_of_a_cluster_elsewhere_may_have_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ClusterSettings(workers=16, device="cuda", address="10.0.0.1:20000")
    assert asked.placed(0) == asked
    assert device_here(asked) == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:20000")
    assert device_here(ClusterSettings(workers=16, device="cuda")) == "auto"
    assert ClusterSettings(workers=16).placed(4).device == "cuda"  # the other nodes are taken to be like this one
    monkeypatch.delenv("RAY_ADDRESS")
    assert device_here(ClusterSettings(workers=1, device="cuda")) == "cuda"
    assert device_here(ClusterSettings(workers=1, device="cpu")) == "cpu"


def test_items_do_not_crowd_on_a_gpu() -> None:
    assert local_threads(ClusterSettings(workers=0, device="cuda")) == 1
    assert local_threads(ClusterSettings(workers=0, device="cpu")) >= 1


@pytest.mark.skipif(not usable_gpus(), reason="needs an NVIDIA GPU and CuPy")
def test_gathers_and_gradients_of_a_gpu_are_those_of_the_cpu() -> None:
    for one, right in zip(gradient(simulator("cuda")), gradient(simulator("cpu")), strict=True):
        assert torch.linalg.norm(one - right) < 1e-5 * torch.linalg.norm(right)
