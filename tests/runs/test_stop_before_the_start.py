"""A run that is asked to stop before its first iteration: at once, with exit code 75 and nothing lost but the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpfwi.config import load_config
from hpfwi.errors import Stopped
from hpfwi.inversion.invert import invert
from hpfwi.run_folder import RunFolder
from hpfwi.stop import Stop


class StopAtLook(Stop):
    """Raised by itself at a look of the run; counts them."""

    def __init__(self, look: int) -> None:
        super().__init__()
        self.looks, self._look = 0, look

    @property
    def requested(self) -> bool:
        self.looks += 1
        if self.looks >= self._look:
            self.request("it is time")
        return super().requested


def begun(folder: Path, options: list[str], stop: Stop) -> Path:
    config, _ = load_config("demo", options)
    with RunFolder.create(config, "tiny", parent=folder, environment={}) as opened:
        with pytest.raises(Stopped, match=r"Stopped after iteration 0 of 8 .*hpfwi resume") as caught:
            invert(config, opened, resume=False, stop=stop)
        assert caught.value.exit_code == 75
    return opened.path


def test_while_gathers_are_simulated(tiny_options: Any, reference: Any, resume: Any, tmp_path: Path) -> None:
    stop = StopAtLook(2)
    path = begun(tmp_path, tiny_options(), stop)
    assert stop.looks == 2
    assert not (path / "observed.zarr").exists()
    stopped = type(reference)(path)
    assert [event["iteration"] for event in stopped.of_kind("stop")] == [0]
    assert resume(stopped).bits == reference.bits


def test_while_a_network_is_pretrained(tiny_options: Any, run: Any, resume: Any, tmp_path: Path) -> None:
    fitted: dict[str, Any] = {
        "inversion__parameterisation__kind": "pretrain",
        "inversion__parameterisation__pretrain__max_steps": 300,
        "inversion__parameterisation__pretrain__stop_mae_mps": 1.0,
    }
    stop = StopAtLook(60)
    path = begun(tmp_path, tiny_options(**fitted), stop)
    assert stop.looks == 60
    assert (path / "observed.zarr").exists()
    straight = run(tmp_path / "straight", **fitted)
    stopped = type(straight)(path)
    assert (stopped.of_kind("pretrain"), stopped.of_kind("checkpoint")) == ([], [])
    assert resume(stopped).bits == straight.bits


@pytest.mark.ray
def test_while_workers_start(tiny_options: Any, reference: Any, resume: Any, tmp_path: Path) -> None:
    """The initial state is in a checkpoint by then."""

    class StopWithAWorkerOnItsWay(Stop):
        @property
        def requested(self) -> bool:
            return bool(self.reason)

        def __call__(self) -> str | None:
            self.request("it is time")
            return super().__call__()

    path = begun(tmp_path, tiny_options(cluster__workers=1), StopWithAWorkerOnItsWay())
    stopped = type(reference)(path)
    assert stopped.checkpoint.iteration == 0
    assert stopped.of_kind("iteration") == []
    assert resume(stopped, cluster__workers=0).bits == reference.bits
