"""A workflow's parameters: quantities as Kubernetes reads them, and what a user may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cluster.parameters import CHECKS, check_parameters
from app.errors import UsageError
from app.quantities import quantity, threads


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4", 4), ("500m", 0.5), ("0.5", 0.5), (".5", 0.5), ("2.", 2), ("1k", 1e3), ("3Gi", 3 * 2**30),
        ("128974848", 128974848), ("129e6", 129e6), ("129M", 129e6), ("123Mi", 123 * 2**20), ("1Ki", 1024),
    ],
)  # fmt: skip
def test_quantities_are_kubernetes_quantities(text, number):
    """Among them the examples of its documentation."""
    assert quantity(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "m", "two", "3GB", "3 Gi", "-1", "1e", "1Gi5", "1K", "1.5.0", "0x10"])
def test_other_texts_are_none(text):
    with pytest.raises(ValueError, match="is no quantity"):
        quantity(text)


@pytest.mark.parametrize("text", ["1e999", "1e99999999999", "9" * 400, "9" * 308 + "E"])
def test_what_no_machine_has_is_refused(text):
    with pytest.raises(ValueError, match="more than there is"):
        quantity(text)
    with pytest.raises(UsageError, match="--threads"):
        threads(text)


@pytest.mark.parametrize(("text", "number"), [("500m", 1), ("1", 1), ("1500m", 2), ("3.5", 4), ("16", 16)])
def test_threads_of_a_quantity_of_cpus(text, number):
    assert threads(text) == number


@pytest.mark.parametrize("text", ["0", "many", "-2", "0m"])
def test_no_threads(text):
    with pytest.raises(UsageError, match=f"--threads {text}: give "):
        threads(text)


WRONG = {
    "approve": ("yes", "one of false, true"),
    "cache-volume": ('{"name": "data", "emptyDir": {}}', "JSON, such as"),
    "queue": ("a queue", "the value of a label"),
    "seeds-per-pod": ("0", "a whole number, at least 1"),
    "concurrency": ("1.5", "a whole number, at least 1"),
    "retries": ("-1", "a whole number, at least 0"),
    "pending-minutes": ("1h", "a whole number, at least 1"),
    "device": ("tpu", "one of cuda, cpu"),
    "gpus": ("all", "a whole number, at least 0"),
    "gpu-product": ("NVIDIA L4", "the value of a label"),
    "gpu-node-selector": ('{"spot": true}', "JSON, such as"),
    "gpu-tolerations": ("{}", "JSON, such as"),
    "gpu-cpu": ("0", "more than none"),
    "gpu-memory": ("16GB", "bytes, such as 16Gi"),
    "cpu-node-selector": ("spot", "JSON, such as"),
    "cpu-tolerations": ('["spot"]', "JSON, such as"),
    "cpu-cpu": ("two", "CPUs, such as 4 or 500m"),
    "cpu-memory": ("8", "more, at least 512Mi"),
    "disk": ("big", "bytes, such as 16Gi"),
    "grace-seconds": ("90s", "a whole number, at least 1"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_every_parameter_can_be_wrong(name):
    value, wanted = WRONG[name]
    with pytest.raises(UsageError) as error:
        check_parameters({name: value})
    assert str(error.value).startswith(f"{name}={value}: give {wanted}")
    assert "\n" not in str(error.value)


@pytest.fixture
def limits(tmp_path: Path) -> Path:
    """As a ConfigMap is mounted, with Kubernetes' own links beside the keys."""
    (tmp_path / "..data").mkdir()
    for key in ("device-cpu", "device-cuda-1", "device-cuda-4", "concurrency-2", "concurrency-16"):
        (tmp_path / key).write_text("4")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"concurrency": "12"}, "concurrency=12: the ConfigMap byol-limits has no concurrency-12; choose from 2, 16"),
        (
            {"device": "cuda", "gpus": "3"},
            "gpus=3: the ConfigMap byol-limits has no device-cuda-3; choose from 1, 4",
        ),
        ({"device": "cpu", "gpus": "1"}, "gpus=1: takes GPUs that device=cpu would leave idle"),
        ({"device": "cuda", "gpus": "0"}, "gpus=0: device=cuda needs one"),
    ],
)
def test_what_has_no_lock_is_refused(limits, given, message):
    with pytest.raises(UsageError) as error:
        check_parameters(given, limits)
    assert str(error.value).startswith(message)


def test_what_has_a_lock_passes(limits):
    check_parameters({"concurrency": "16", "device": "cuda", "gpus": "4"}, limits)
    check_parameters({"concurrency": "2", "device": "cpu", "gpus": "0"}, limits)


def test_limits_that_are_not_there_are_said(tmp_path):
    with pytest.raises(UsageError, match="has no limits"):
        check_parameters({"concurrency": "16"}, tmp_path / "nowhere")
