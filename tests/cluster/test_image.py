"""The image, locked up as in a cluster: no root, no capabilities, nothing writable but mounts, no way out but to S3.

``make image-test`` builds it and names it by ``BYOL_IMAGE``.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.documents import ROOT, tool

pytestmark = [pytest.mark.docker, pytest.mark.slow]
IMAGE = os.environ.get("BYOL_IMAGE", "")
LOCKED = [
    *("--init", "--user", "10001:10001", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
    *("--memory", "4g", "--pids-limit", "512", "--shm-size", "256m", "--volume", "/scratch"),
]
KEYS = ["--env", "AWS_ACCESS_KEY_ID=development", "--env", "AWS_SECRET_ACCESS_KEY=development-only"]
TINY = [
    *("--set", "data.phantoms=always", "--set", "data.subset=48", "--set", "pretrain.epochs=1"),
    *("--set", "pretrain.batch_size=24", "--set", "study.methods=[byol]", "--set", "study.datasets=[breastmnist]"),
    *("--set", "study.protocols=[finetune]", "--set", "protocols.finetune.epochs=1", "--set", "data.monitor=null"),
]


def docker(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([tool("docker"), *command], capture_output=True, text=True)
    assert not check or result.returncode == 0, f"docker {' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    if not IMAGE:
        pytest.skip("BYOL_IMAGE names no image; `make image-test` builds one and runs this")
    if docker("info", check=False).returncode:
        pytest.skip("there is no Docker daemon")


@pytest.fixture
def names() -> Iterator[list[str]]:
    """Names of containers to be removed."""
    found: list[str] = []
    yield found
    for name in found:
        docker("rm", "--force", "--volumes", name, check=False)


@pytest.fixture
def volume() -> Iterator[str]:
    """A volume that the image's user may write to."""
    name = f"byol-test-{secrets.token_hex(4)}"
    docker("volume", "create", name)
    docker(
        "run", "--rm", "--user", "0", "--volume", f"{name}:/store", "--entrypoint", "chown", IMAGE, "10001", "/store"
    )
    yield name
    docker("volume", "rm", "--force", name, check=False)


@pytest.fixture
def s3(names: list[str]) -> Iterator[tuple[str, str]]:
    """A network without a way out, and the URL of the S3 server in it: SeaweedFS's program in a container of ours."""
    tag = secrets.token_hex(4)
    network, server = f"byol-test-{tag}", f"weed-{tag}"
    docker("network", "create", "--internal", network)
    names.append(server)
    docker(
        *("run", "--detach", "--name", server, "--network", network, "--read-only", "--cap-drop=ALL", *KEYS),
        # a volume and its owner: a study writes more than would fit into memory
        *("--env", "GOMEMLIMIT=300MiB", "--memory", "1g", "--user", "0", "--volume", "/data", "--env", "HOME=/data"),
        *("--tmpfs", "/tmp", "--volume", f"{Path(tool('weed')).resolve()}:/weed:ro", "--entrypoint", "/weed", IMAGE),
        *("mini", "-dir=/data", "-ip=127.0.0.1", "-ip.bind=0.0.0.0", "-s3.port=8333", "-master.telemetry=false"),
        *("-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-bucket=byol"),
    )
    probe = f"import urllib.request; urllib.request.urlopen('http://{server}:8333/healthz', timeout=5)"
    for _ in range(60):
        command = ["run", "--rm", "--network", network, "--entrypoint", "python", IMAGE, "-c", probe]
        if docker(*command, check=False).returncode == 0:
            break
        time.sleep(1)
    else:
        pytest.fail(docker("logs", server).stderr)
    yield network, f"http://{server}:8333"
    docker("rm", "--force", "--volumes", server, check=False)
    names.remove(server)
    docker("network", "rm", network, check=False)


def test_a_study_runs_locked_up_with_nothing_but_s3(s3: tuple[str, str]) -> None:
    network, url = s3
    jobs = [
        "--network",
        network,
        *LOCKED,
        *KEYS,
        "--env",
        f"AWS_ENDPOINT_URL_S3={url}",
        "--env",
        "AWS_REGION=eu-central-1",
    ]
    store = "s3://byol/studies"
    result = docker("run", "--rm", *jobs, IMAGE, "run", "--preset", "smoke", "--store", store)
    [report] = [line for line in result.stdout.splitlines() if line.startswith("report: ")]
    assert report.startswith(f"report: {store}/runs/smoke-")
    listed = docker("run", "--rm", *jobs, IMAGE, "ls", "--store", store).stdout
    assert re.search(r": (\d\d) of \1 jobs done", listed), listed
    reach = "import socket; socket.create_connection(('1.1.1.1', 443), 3)"
    assert docker("run", "--rm", *jobs, "--entrypoint", "python", IMAGE, "-c", reach, check=False).returncode != 0


def test_the_image_is_what_it_says() -> None:
    code = (
        "import json, os, torch, app; revision = os.environ['REVISION']; "
        "print(json.dumps([os.getuid(), torch.version.cuda, os.access('/', os.W_OK), revision, app.__file__]))"
    )
    answer = docker("run", "--rm", "--network", "none", *LOCKED, "--entrypoint", "python", IMAGE, "-c", code)
    user, cuda, writable, revision, path = json.loads(answer.stdout)
    assert (user, writable, path) == (10001, False, "/opt/byol-med/app/__init__.py")
    assert cuda is not None
    [inspected] = json.loads(docker("image", "inspect", IMAGE).stdout)
    labels = inspected["Config"]["Labels"]
    assert labels["org.opencontainers.image.revision"] == revision
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert inspected["Config"]["User"] == "10001:10001"


def test_without_a_gpu_cuda_fails_and_never_falls_back(volume: str) -> None:
    command = [
        "run",
        "--rm",
        "--network",
        "none",
        *LOCKED,
        "--volume",
        f"{volume}:/store",
        IMAGE,
        "run",
        "--preset",
        "smoke",
    ]
    result = docker(*command, "--store", "/store", "--device", "cuda", *TINY, check=False)
    assert result.returncode == 2
    assert "no usable GPU" in result.stderr


def test_a_stopped_container_exits_75_and_the_next_goes_on(volume: str, names: list[str]) -> None:
    place = ["--network", "none", *LOCKED, "--volume", f"{volume}:/store"]
    # long enough to be stopped in the middle; a checkpoint is only written because of the signal
    longer = [*TINY, "--set", "pretrain.epochs=500", "--set", "runtime.grace_seconds=60"]
    planned = docker("run", "--rm", *place, IMAGE, "plan", "--preset", "smoke", "--store", "/store", *longer)
    job = ["pretrain", "--run-id", planned.stdout.strip(), "--method", "byol", "--store", "/store"]
    name = f"byol-test-{secrets.token_hex(4)}"
    names.append(name)
    docker("run", "--detach", "--name", name, *place, IMAGE, *job)
    wait_for(name, '"done"')
    docker("stop", "--time", "90", name)
    assert docker("wait", name).stdout.strip() == "75"
    assert "with a checkpoint" in docker("logs", name).stderr
    again = f"{name}-again"
    names.append(again)
    docker("run", "--detach", "--name", again, *place, IMAGE, *job)
    wait_for(again, "continues at step")


def wait_for(name: str, text: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while text not in (logs := docker("logs", name).stderr):
        assert time.monotonic() < deadline, logs
        time.sleep(1)


def test_local_run_ends_in_a_report(tmp_path: Path) -> None:
    arguments = " ".join(f"'{word}'" for word in ("--preset", "smoke", *TINY))
    command = ["make", "local-run", f"IMAGE={IMAGE}", f"STORE={tmp_path}", f"ARGS={arguments}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(tmp_path.glob("runs/smoke-*/report/index.html"))
    if not Path("/dev/nvidia0").exists():
        assert "No GPU here: this runs on the CPU." in result.stderr


def test_the_layers_are_few_and_the_code_is_the_small_one() -> None:
    sizes = docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", IMAGE).stdout
    layers = [(int(size), what) for size, _, what in (line.partition("\t") for line in sizes.splitlines())]
    filled = [(size, what) for size, what in layers if size]
    print("\n".join(f"{size / 1e6:8.0f} MB  {what[:90]}" for size, what in filled))
    assert len(filled) <= 7
    assert next(size for size, what in filled if "/build/app" in what) < 5_000_000
