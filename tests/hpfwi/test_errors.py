"""Every error has an exit code of its kind and crosses processes whole."""

from __future__ import annotations

import pickle

import pytest

from hpfwi import errors


def subclasses(root: type[errors.HpfwiError]) -> list[type[errors.HpfwiError]]:
    below = [kind for child in root.__subclasses__() for kind in subclasses(child)]
    return [root, *(kind for kind in below if kind.__module__ == errors.__name__)]


@pytest.mark.parametrize("kind", subclasses(errors.HpfwiError))
def test_an_error_is_pickled_with_its_sentence(kind: type[errors.HpfwiError]) -> None:
    error = pickle.loads(pickle.dumps(kind("One sentence, whole.")))
    assert type(error) is kind
    assert str(error) == "One sentence, whole."


def test_the_exit_codes_are_those_documented() -> None:
    codes = {kind.__name__: kind.exit_code for kind in subclasses(errors.HpfwiError)}
    assert codes == {
        "HpfwiError": 1,
        "ConfigError": 2,
        "DataError": 3,
        "CheckpointError": 3,
        "DiskError": 3,
        "NumericsError": 4,
        "RunClusterError": 5,
        "Stopped": 75,
    }
