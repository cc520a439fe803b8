"""The choice of kernels is made once a machine: kept, shared, and done without where it cannot be kept."""

import json

import pytest
import torch
from torch import nn

from app.science.convolutions import LIBRARY, ROWS, TAPS, Convolution, Ways
from app.stages import kernel_choice
from app.stages.kernel_choice import choose_kernels

SHAPE = "3x3/1 4-4 4x4 float32"
MEASURED = {SHAPE: Ways(ROWS, LIBRARY, TAPS)}


@pytest.fixture
def network():
    return nn.Sequential(Convolution(1, 4, 1, bias=False), Convolution(4, 4, 3, padding=1, bias=False))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "byol-med" / "kernels"


@pytest.fixture
def measurements(monkeypatch):
    """The batches of the measurements that were made; each says ``MEASURED`` of every shape."""
    seen = []

    def measured(shapes, batch):
        seen.append(batch)
        return {str(shape): Ways(ROWS if shape.kernel == 3 else TAPS, LIBRARY, TAPS) for shape in shapes}

    monkeypatch.setattr(kernel_choice, "measured_table", measured)
    return seen


def choose(network, **others):
    about = {
        "channels": 1,
        "size": 4,
        "batch": 8,
        "precision": "float32",
        "device": "cpu",
        "wanted": "auto",
        "steps": 1000,
    }
    return choose_kernels(network, **(about | others))


def test_only_long_jobs_on_a_cpu_are_measured(network, measurements, cache):
    assert choose(network, device="cuda") == {}
    assert choose(network, steps=99) == {}
    plain = choose(network, wanted="plain", steps=1)
    assert set(plain.values()) == {Ways(LIBRARY, LIBRARY, LIBRARY)}
    assert len(plain) == 2
    assert measurements == []
    assert choose(network)[SHAPE] == MEASURED[SHAPE]
    assert measurements == [8]


def test_what_was_measured_is_kept(network, measurements, cache):
    first = choose(network)
    assert choose(network) == first
    assert measurements == [8]
    assert [json.loads(file.read_text())["about"]["batch"] for file in cache.iterdir()] == [8], "nothing else is left"


@pytest.mark.parametrize("other", ["batch", "precision", "threads", "cpu", "torch"])
def test_another_job_or_machine_is_measured_anew(network, measurements, monkeypatch, other):
    choose(network)
    if other == "threads":
        torch.set_num_threads(2)
    if other == "cpu":
        monkeypatch.setattr(kernel_choice, "cpu_flags", lambda: ["amx_bf16", "avx1024"])
    if other == "torch":
        monkeypatch.setattr(torch, "__version__", "99.0")
    choose(network, **{"batch": {"batch": 9}, "precision": {"precision": "bfloat16"}}.get(other, {}))
    assert len(measurements) == 2


def test_of_two_at_a_time_the_first_counts_for_both(network, measurements, monkeypatch):
    mine = kernel_choice.measured_table

    def meanwhile(shapes, batch):
        monkeypatch.setattr(kernel_choice, "measured_table", mine)
        choose(network)
        return {str(shape): Ways(LIBRARY, LIBRARY, LIBRARY) for shape in shapes}

    monkeypatch.setattr(kernel_choice, "measured_table", meanwhile)
    assert choose(network)[SHAPE] == MEASURED[SHAPE]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"about": 1, "ways": {}}', '{"ways": {"a": ["magic", "few", "few"]}}']
)
def test_a_damaged_file_is_measured_anew(network, measurements, cache, text):
    first = choose(network)
    [file] = cache.iterdir()
    file.write_text(text)
    assert choose(network) == first
    assert measurements == [8, 8]
    assert choose(network) == first
    assert measurements == [8, 8]


@pytest.mark.parametrize(
    "ways", [["library", "library", "rows"], ["taps", "library", "taps"], ["few", "taps", "few"], ["few", "few"]]
)
def test_ways_that_a_pass_cannot_take_are_measured_anew(network, measurements, cache, ways):
    first = choose(network)
    [file] = cache.iterdir()
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"ways": kept["ways"] | {SHAPE: ways}}))
    assert choose(network) == first
    assert measurements == [8, 8]


@pytest.fixture
def no_links(monkeypatch):
    """A file system without hard links: exFAT, for one."""

    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(kernel_choice.os, "link", refused)


def test_without_hard_links_it_is_kept_too(network, measurements, cache, no_links):
    first = choose(network)
    assert choose(network) == first
    assert measurements == [8]
    [file] = cache.iterdir()
    file.write_text(file.read_text()[:20])
    assert choose(network) == choose(network) == first
    assert measurements == [8, 8], "what was cut off is written anew"


def test_without_hard_links_the_first_counts_for_both_too(network, measurements, monkeypatch, no_links):
    test_of_two_at_a_time_the_first_counts_for_both(network, measurements, monkeypatch)


@pytest.mark.parametrize("why", ["no folder", "no room"])
def test_a_cache_that_cannot_be_written_is_done_without(network, measurements, monkeypatch, why):
    if why == "no folder":
        monkeypatch.setattr(kernel_choice, "cache_folder", lambda name: None)
    else:

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(kernel_choice.Path, "write_text", full)
    assert choose(network)[SHAPE] == choose(network)[SHAPE] == MEASURED[SHAPE]
    assert measurements == [8, 8]
