"""Tasks are shared completely, in ranges that do not overlap, and what a thread raises comes out."""

import threading

import pytest

from hpfwi_kernels.threads import share


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("tasks", [0, 1, 3, 37])
def test_every_task_runs_once_and_each_thread_has_its_own_space(tasks: int, threads: int) -> None:
    runs = [0] * tasks
    owners: dict[int, set[int]] = {}

    def run(space: list[int], first: int, end: int) -> None:
        owners.setdefault(id(space), set()).add(threading.get_ident())
        space.append(end - first)
        for task in range(first, end):
            runs[task] += 1

    spaces: list[list[int]] = []

    def workspace() -> list[int]:
        spaces.append([])
        return spaces[-1]

    share(run, tasks, threads, workspace)
    assert runs == [1] * tasks
    assert sum(map(sum, spaces)) == tasks
    assert len(spaces) <= max(1, min(threads, tasks))
    assert all(len(idents) == 1 for idents in owners.values())


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_a_task_comes_out(threads: int) -> None:
    def run(space: None, first: int, end: int) -> None:
        if first <= 7 < end:
            raise ValueError("task 7")

    for _ in range(3):  # the threads stay usable
        with pytest.raises(ValueError, match="task 7"):
            share(run, 20, threads, lambda: None)
