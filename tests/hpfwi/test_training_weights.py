"""Weights on their own: written from a run, loaded by torch alone, begun with, and refused where they do not belong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hpfwi import checkpoints
from hpfwi.errors import ConfigError, DataError
from hpfwi.networks.build import NetworkChoice, build_network
from hpfwi.run_folder import RunFolder
from hpfwi.training.predict import predict
from hpfwi.training.replicas import weights_of
from hpfwi.training.settings import load_train_config
from hpfwi.training.trained import NETWORK, STATE, open_trained
from hpfwi.training.weights import export, read_weights

OPTIONS = [
    "name=kept",
    "network.name=inversionnet",
    "network.width=0.05",
    "network.seed=5",
    "network.records_shape=[2, 64, 20]",
    "network.model_shape=[12, 20]",
    "training.loss.name=mse",
    "training.normalisation.range_mps=[1500.0, 4500.0]",
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a run with weights, statistics of batch norm among them, that training could have left."""
    config, _ = load_train_config(None, OPTIONS)
    network = build_network(config.network)
    torch.manual_seed(0)
    with torch.no_grad():
        for value in weights_of(network).values():
            value.copy_(torch.rand_like(value) + 0.5)
    tensors = {f"{STATE}{NETWORK}{name}": value.detach().numpy() for name, value in weights_of(network).items()}
    with RunFolder.create(config, "kept", parent=tmp_path, environment={}) as folder:
        path = checkpoints.save(folder.checkpoints, 7, tensors, {"score": 1.0})
        folder.event("checkpoint", iteration=6, path=str(path.relative_to(folder.path)), score=1.0)
    return folder.path


def test_torch_loads_what_is_exported(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.safetensors"
    assert export(run, out).step == 7
    network = build_network(open_trained(run).config.network)
    network.load_state_dict(load_file(out), strict=True)
    records = torch.randn(3, 2, 64, 20)
    with torch.no_grad():
        expected = open_trained(run).network(records)
        assert torch.equal(network.eval()(records), expected)
    with safe_open(out, framework="numpy") as file:
        told = file.metadata()
    assert (told["run"], told["step"]) == ("kept", "7")
    assert NetworkChoice.model_validate_json(told["network"]).name == "inversionnet"
    assert str(tmp_path) not in str(told)
    with pytest.raises(ConfigError, match=r"kept.safetensors exists"):
        export(run, out)
    assert export(run, out, which="last", overwrite=True).step == 7
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"folder is a folder; give the name of a file"):
        export(run, tmp_path / "folder", overwrite=True)


def test_a_file_predicts_what_its_run_does(run: Path, tmp_path: Path) -> None:
    out, records = tmp_path / "kept.safetensors", tmp_path / "records.npy"
    export(run, out)
    np.save(records, np.random.default_rng(0).normal(size=(3, 2, 64, 20)).astype(np.float32))
    for network in (run, out):
        assert predict(network, records, tmp_path / f"{network.suffix}.npy") == (3, 12, 20)
    assert np.array_equal(np.load(tmp_path / ".npy"), np.load(tmp_path / ".safetensors.npy"))
    with pytest.raises(ConfigError, match=r"kept.safetensors holds the weights of one checkpoint"):
        predict(out, records, tmp_path / "last.npy", which="last")
    for name in ("nowhere", "nowhere.safetensors"):
        with pytest.raises(DataError, match=rf"The weights .*{name} cannot be used .*; give the folder of a training"):
            predict(tmp_path / name, records, tmp_path / "none.npy")
    with safe_open(out, framework="pt") as file:
        told = file.metadata()
    save_file({"weight": torch.zeros(3)}, out, told)
    with pytest.raises(DataError, match=r"kept.safetensors cannot be used .its tensors are not those"):
        predict(out, records, tmp_path / "none.npy")
    assert not (tmp_path / "none.npy").exists()


def test_a_network_begins_with_weights_of_a_run_or_a_file(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.safetensors"
    export(run, out)
    trained = open_trained(run)
    for path in (run, out):
        weights = read_weights(path)
        network = build_network(trained.config.network)
        weights.put_into(network, trained.config.network)
        for name, value in weights_of(trained.network).items():
            assert torch.equal(weights_of(network)[name], value), name
        assert weights.in_words() == (
            f"{path} after step 7, trained with velocities on range: 1500 to 4500 m/s on [0, 1]"
        )


@pytest.mark.parametrize("change", ['network.name="fcnvmb"', "network.width=0.5", "network.records_shape=[3, 64, 20]"])
def test_weights_of_another_network_are_refused(run: Path, change: str) -> None:
    choice = load_train_config(None, [*OPTIONS, change])[0].network
    with pytest.raises(ConfigError, match=r"kept holds inversionnet of width 0.05 for records .* and this run trains"):
        read_weights(run).put_into(build_network(choice), choice)


def test_what_holds_no_weights_is_said(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    with pytest.raises(DataError, match=r"other.safetensors cannot be used"):
        read_weights(file)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"array.npy cannot be used"):
        read_weights(tmp_path / "array.npy")
    save_file({"weight": torch.zeros(3)}, file)
    with pytest.raises(DataError, match=r"its header says 'nothing' where 'hpfwi-network 1' belongs"):
        read_weights(file)
    save_file({"weight": torch.zeros(3)}, file, {"format": "hpfwi-network 1", "network": '{"name": "resnet"}'})
    with pytest.raises(DataError, match=r"other.safetensors cannot be used"):
        read_weights(file)
    with pytest.raises(ConfigError, match=r"is not the folder of a training run"):
        read_weights(tmp_path)
    export(run, file, overwrite=True)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"other.safetensors cannot be used"):
        read_weights(file)
