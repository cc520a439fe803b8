"""What a study took: sums over records, and how they are said."""

from __future__ import annotations

import json

import pytest

from app.jobs.processor_time import Taken, read_taken, taken
from app.jobs.records import Record
from app.quantities import processor_time
from app.storage import open_store


def record(seconds, **environment) -> Record:
    return Record.model_validate(
        {
            "kind": "pretrain", "run_id": "r", "key": "byol-s0", "method": "byol", "seed": 0, "synthetic": False,
            "identity": "", "science": {}, "config": {}, "environment": environment, "data": {}, "metrics": {},
            "timings": {"seconds": seconds}, "finished": "2026-11-26T20:00:00Z",
        }
    )  # fmt: skip


def test_threads_count_on_a_cpu_and_processes_on_gpus():
    assert taken([]) == Taken(0, 0, 0)
    assert taken([record(10, device="cpu", threads=4), record(5, device="cpu", threads=2, processes=2)]).cpu == 60
    on_gpus = taken([record(10, device="NVIDIA A10G", threads=8, processes=4), record(2, device="NVIDIA A10G")])
    assert on_gpus == Taken(jobs=2, cpu=0, gpu=42)
    assert taken([record(7)]) == Taken(1, 7, 0), "older records tell no threads"


@pytest.mark.parametrize("environment", [{"threads": "two"}, {"threads": -3}, {"threads": 10**400}, {"threads": None}])
@pytest.mark.parametrize(("seconds", "counted"), [(9.0, 9.0), (None, 0.0), (-1.0, 0.0), (float("inf"), 0.0)])
def test_a_number_that_cannot_be_adds_nothing(environment, seconds, counted):
    assert taken([record(seconds, **environment)]) == Taken(1, counted, 0)


@pytest.mark.parametrize(
    ("cpu", "gpu", "said"),
    [
        (0, 0, "0 CPU seconds"),
        (42.4, 0, "42 CPU seconds"),
        (252, 0, "4.2 CPU minutes"),
        (5400, 360, "1.5 CPU hours and 6.0 GPU minutes"),
        (3600 * 1234.5, 3600 * 12, "1,234 CPU hours and 12 GPU hours"),
        (0, 45, "0 CPU seconds and 45 GPU seconds"),
    ],
)
def test_units_fit(cpu, gpu, said):
    assert processor_time(cpu, gpu) == said


def test_a_damaged_record_is_left_out_of_the_sum_and_of_the_jobs(tmp_path):
    store = open_store(str(tmp_path))
    whole = record(30, device="cpu", threads=2).model_dump(mode="json")
    for name, data in {"a": json.dumps(whole), "b": "{}", "c": "no JSON", "d": json.dumps(whole)}.items():
        store.write(name, data.encode())
    assert str(read_taken(store, ["a", "b", "c", "d", "gone"])) == "2.0 CPU minutes in 2 jobs"
