"""Initial weights: ImageNet's from a file or a server, others by their content."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision

from app.config import load_config
from app.errors import InputError, StorageError, UsageError
from app.jobs.checkpoint import dump_weights
from app.jobs.run import Run
from app.science.networks import Encoder
from app.stages.weights import initial_weights
from app.storage import FolderStore, open_store


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A stand-in for torchvision's server: a ResNet-18 state dict under a name that ends in its hash."""
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    data = (tmp_path / "resnet18.pth").read_bytes()
    name = f"resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / name).write_bytes(data)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    url = f"http://127.0.0.1:{server.server_port}/{name}"
    monkeypatch.setattr(
        weights, "_value_", torchvision.models._api.Weights(url, *list(vars(weights.value).values())[1:])
    )
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    yield tmp_path / "served" / name
    server.shutdown()
    server.server_close()


def run(tmp_path, *overrides: str, weights: str | None = None) -> Run:
    return Run(FolderStore(tmp_path / "s"), "r", load_config("paper-text", overrides, imagenet_weights=weights))


def test_imagenet_is_downloaded_verified_and_loaded(tmp_path, published):
    found = initial_weights(run(tmp_path), "imagenet")
    assert not (tmp_path / "hub").exists(), "not before it is needed: a job may be done already"
    encoder = Encoder()
    found.load_into(encoder)
    expected = torch.load(published, weights_only=True)
    assert all(torch.equal(value, expected[name]) for name, value in encoder.plain_state().items())
    assert (tmp_path / "hub/checkpoints" / published.name).is_file()


def test_a_local_file_is_the_same_imagenet(tmp_path, published):
    here = initial_weights(run(tmp_path, weights=str(published)), "imagenet")
    assert here.identity == initial_weights(run(tmp_path), "imagenet").identity


def test_a_damaged_download_is_refused(tmp_path, published):
    published.write_bytes(published.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="damaged download"):
        initial_weights(run(tmp_path), "imagenet").load_into(Encoder())


def test_what_lies_in_torchs_cache_is_verified_and_cannot_run_code(tmp_path, published):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    cached = tmp_path / "hub/checkpoints" / published.name
    cached.parent.mkdir(parents=True)
    torch.save({"conv1.weight": Evil()}, cached)
    with pytest.raises(InputError, match=r"\.pth: damaged, its SHA-256 does not begin with"):
        initial_weights(run(tmp_path), "imagenet").load_into(Encoder())
    assert not (tmp_path / "ran").exists()


def test_an_unreachable_server_names_the_way_out(tmp_path, published):
    published.unlink()
    with pytest.raises(StorageError, match="--imagenet-weights FILE"):
        initial_weights(run(tmp_path), "imagenet").load_into(Encoder())


def test_imagenet_needs_the_stock_stem(tmp_path):
    with pytest.raises(UsageError, match="stock stem"):
        initial_weights(run(tmp_path, "network.stem=middle"), "imagenet")


@pytest.mark.s3
def test_weights_in_a_bucket_are_read_by_their_uri(tmp_path, s3_environment, monkeypatch):
    """The run's own store is asked with its settings, as `pretrain` prints no others; another has its own."""
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    options = f"?endpoint={s3_environment.url}&path_style=true"
    store = open_store(f"s3://{s3_environment.bucket}/{secrets.token_hex(4)}{options}")
    store.write("a/encoder.safetensors", dump_weights(Encoder().plain_state(), {}))
    uri = f"{store.uri}/a/encoder.safetensors"
    config = load_config("recommended", ["network.stem=stock"])
    ours = initial_weights(Run(store, "r", config), uri)
    assert ours.name == initial_weights(Run(FolderStore(tmp_path), "r", config), uri + options).name
    assert ours.name == initial_weights(Run(store, "r", config), "a/encoder.safetensors").name


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ESTALE, StorageError), (errno.EIO, StorageError), (errno.EACCES, UsageError), (errno.EISDIR, InputError)],
)
@pytest.mark.parametrize("way", ["--init", "--imagenet-weights"])
def test_weights_that_cannot_be_read_have_the_code_of_the_cause(tmp_path, monkeypatch, way, number, kind):
    file = tmp_path / "w.pth"

    def fail(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "read_bytes", fail)
    asked = run(tmp_path, weights=str(file))
    with pytest.raises(kind, match=r"w\.pth: .* while reading; "):
        initial_weights(asked, str(file) if way == "--init" else "imagenet")


def test_a_file_is_known_by_its_content(tmp_path, published):
    copy = tmp_path / "copy.pth"
    copy.write_bytes(published.read_bytes())
    first, second = (initial_weights(run(tmp_path), str(path)) for path in (published, copy))
    assert first.name == second.name == f"ckpt-{hashlib.sha256(copy.read_bytes()).hexdigest()[:12]}"
    copy.write_bytes(b"not weights")
    with pytest.raises(InputError, match=r"copy\.pth"):
        initial_weights(run(tmp_path), str(copy))
