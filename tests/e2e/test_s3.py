"""The stages one by one, with nothing but a bucket between them."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path

import pytest

from app import cli
from app.data import write_phantoms
from app.stages import fetch
from app.storage import open_store
from tests import small
from tests.servers import SECRET, Weed

TINY = [
    "--preset", "smoke", "--set", "runtime.device=cpu", "--set", "runtime.threads=1", "--set", "data.phantoms=never",
    "--set", "pretrain.epochs=1", "--set", "pretrain.batch_size=32", "--set", "study.methods=[byol]",
    "--set", "study.datasets=[breastmnist]", "--set", "study.protocols=[linear_probe]",
]  # fmt: skip


@pytest.mark.s3
def test_a_study_in_a_bucket(
    s3_environment: Weed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small.use(monkeypatch.setattr)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MEDMNIST_ROOT", raising=False)
    uri = f"s3://{s3_environment.bucket}/{secrets.token_hex(4)}"
    said: list[str] = []

    def call(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["app", *args])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        said.append(captured.out + captured.err)
        assert not stop.value.code, captured.err
        return captured.out

    # Jobs find the data in the store alone.
    names = ("chestmnist", "pneumoniamnist", "breastmnist")
    paths = write_phantoms(tmp_path / "files", counts=dict.fromkeys(names, (64, 24, 24)))
    monkeypatch.setattr(fetch, "download", lambda wanted, **_: [p for p in paths if p.stem.startswith(wanted[0])])
    out = call("data", "fetch", "--dataset", ",".join(names), "--data-root", str(tmp_path / "files"), "--store", uri)
    assert f"{uri}/data/breastmnist_28.npz" in out

    here = ["--store", uri, "--run-id", "r"]
    assert call("plan", *here, *TINY).strip() == "r"
    assert call("ls", *here).count("missing  ") == 3
    assert call("pretrain", *here, "--method", "byol").strip() == f"{uri}/runs/r/pretrain/byol-s0/encoder.safetensors"
    for init in ("byol-s0", "random", f"{uri}/runs/r/pretrain/byol-s0/encoder.safetensors"):
        out = call("downstream", *here, "--dataset", "breastmnist", "--protocol", "linear_probe", "--init", init)
        assert "auroc 0." in out or "auroc 1." in out
    listed = call("ls", *here)
    assert "runs/r: 3 of 3 jobs done" in listed
    assert f"report: {uri}/runs/r/report/index.html" in call("report", *here)
    assert "runs/r: 3 of 3 jobs done" in call("ls", "--store", uri)

    store = open_store(uri)
    assert b"SYNTHETIC" in store.read("runs/r/report/index.html")
    # A job that was killed: its claim says who, until it expires.
    claim = json.loads(store.read("runs/r/pretrain/byol-s0/claim.json"))
    claim["owner"] = {"host": "elsewhere", "pid": 7, "boot": "b", "space": "s", "started": "1", "nonce": "n"}
    store.delete("runs/r/pretrain/byol-s0/record.json")
    store.write("runs/r/pretrain/byol-s0/claim.json", json.dumps(claim).encode())
    assert "running  pretrain/byol-s0  by 7@elsewhere" in call("ls", *here)
    assert SECRET not in "".join(said)
