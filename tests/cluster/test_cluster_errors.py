"""Exceptions that cross processes, and settings that say what they mean."""

from __future__ import annotations

import inspect
import pickle

import pytest
from pydantic import ValidationError

from hpfwi_cluster import ClusterSettings, errors
from hpfwi_cluster.settings import usable_cores

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_exception_pickles(kind: type[errors.ClusterError]) -> None:
    error = pickle.loads(pickle.dumps(kind("A sentence.")))
    assert type(error) is kind
    assert str(error) == "A sentence."
    assert isinstance(error, errors.ClusterError)


def test_there_are_exceptions_to_test() -> None:
    assert {errors.GroupLost, errors.ItemFailed} < set(CLASSES)


def test_workers_auto_is_at_least_one() -> None:
    assert ClusterSettings().worker_count() == usable_cores() >= 1
    assert ClusterSettings(threads_per_worker=10_000).worker_count() == 1
    assert ClusterSettings(workers=0).worker_count() == 0
    assert ClusterSettings(workers=7).worker_count() == 7


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"workers": "many"}, {"threads_per_worker": 0}, {"worker": 2}])
def test_settings_refuse_what_they_do_not_know(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ClusterSettings.model_validate(wrong)


def test_auto_does_not_guess_the_size_of_another_cluster() -> None:
    with pytest.raises(ValidationError, match=r"cluster at head:6379: set workers to a number"):
        ClusterSettings(address="head:6379")
    assert ClusterSettings(address="head:6379", workers=8).worker_count() == 8
