"""Room is counted machine by machine."""

from __future__ import annotations

import pytest

from pitune.errors import PituneError
from pitune.runtime.room import check_room, has_room, needs, seats
from pitune.runtime.settings import RuntimeSettings


def test_a_worker_is_not_shared_between_two_machines() -> None:
    each = needs(RuntimeSettings(cpus_per_worker=3))
    assert seats([{"CPU": 5.0}, {"CPU": 5.0}], each) == 2
    assert seats([{"CPU": 6.0}, {"CPU": 5.0, "memory": 1.0}, {}], each) == 3
    assert seats([], each) == 0
    assert seats([{"CPU": 64.0, "GPU": 2.0}], needs(RuntimeSettings(gpus_per_worker=1))) == 2


def test_three_workers_of_three_cpus_do_not_fit_on_two_machines_of_five() -> None:
    with pytest.raises(PituneError) as caught:
        check_room(RuntimeSettings(workers=3, cpus_per_worker=3), [{"CPU": 5.0}, {"CPU": 5.0}])
    assert str(caught.value) == (
        "runtime: a gang of 3 takes 3 CPUs for each worker, there is room for 2 on 2 machines of 5 CPUs and 0 GPUs; "
        "lower runtime.workers, runtime.cpus_per_worker or runtime.gpus_per_worker"
    )
    check_room(RuntimeSettings(workers=3, cpus_per_worker=3), [{"CPU": 5.0}, {"CPU": 7.0}])


@pytest.mark.parametrize(
    ("gangs", "free", "room"),
    [
        (1, [{"CPU": 0.4}, {"CPU": 1.0}], True),  # a machine has come
        (1, [{"CPU": 0.4}, {"CPU": 0.6}], True),  # where a task is already
        (1, [{"CPU": 0.4}, {"CPU": 0.2}], False),  # where others are
        (2, [{"CPU": 1.0}, {"CPU": 1.0}], False),  # which two gangs that are just starting will take
    ],
)
def test_a_gang_joins_where_a_machine_has_room_beside_all_others(
    gangs: int, free: list[dict[str, float]], room: bool
) -> None:
    assert has_room(RuntimeSettings(), gangs, [{"CPU": 1.0}, {"CPU": 1.0}], free) is room


def test_what_gangs_leave_to_tasks_is_no_room_for_a_gang() -> None:
    assert not has_room(RuntimeSettings(), 8, [{"CPU": 8.0}], [{"CPU": 3.2}])
    assert not has_room(RuntimeSettings(workers=2), 1, [{"CPU": 3.0}], [{"CPU": 1.8}])
    assert has_room(RuntimeSettings(workers=2), 1, [{"CPU": 4.0}], [{"CPU": 2.8}])


def test_a_worker_without_a_gpu_to_be_had_is_refused() -> None:
    with pytest.raises(PituneError, match="a worker takes 1 CPU and 1 GPU, there is room for 0 on 1 machine of 2 CPUs"):
        check_room(RuntimeSettings(gpus_per_worker=1), [{"CPU": 2.0}])
