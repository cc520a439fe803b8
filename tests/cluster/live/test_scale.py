"""What Argo makes of many pods: its object, its memory, its pace. ``SCALE=260 STANDIN_IMAGE=… make cluster-test``.

The image is tests/cluster/standin, loaded into the nodes: the controller, the scheduler and the pods are real.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.cluster.live.cluster import kubectl, submit, template_of, when

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
if os.environ.get("CLUSTER_TEST") != "1" or not os.environ.get("STANDIN_IMAGE"):
    pytest.skip("STANDIN_IMAGE names no image for it", allow_module_level=True)


@pytest.mark.parametrize("shards", [int(n) for n in os.environ.get("SCALE", "260").split(",")])
def test_so_many_pods(shards: int) -> None:
    given = {"image": os.environ["STANDIN_IMAGE"], "seeds-per-pod": str(shards), "concurrency": "64"}
    given |= {"cpu-cpu": "10m", "cpu-memory": "512Mi", "disk": "1Mi"}
    study = submit(given)
    study.succeeds(3600)
    nodes = [n for n in study.nodes() if template_of(n) == "shard"]
    assert len(nodes) == shards
    text = kubectl("get", "workflow", study.name, "-o", "json")
    compact = len(json.dumps(json.loads(text), separators=(",", ":")))
    seconds = (max(when(n["finishedAt"]) for n in nodes) - min(when(n["startedAt"]) for n in nodes)).total_seconds()
    pid = next(
        (p for p in Path("/proc").glob("[0-9]*") if b"workflow-controller" in (p / "cmdline").read_bytes()[:40]), None
    )
    status = (pid / "status").read_text() if pid is not None else ""
    resident = re.search(r"VmRSS:\s+(\d+)", status)
    memory = f"{int(resident[1]) / 1024:.0f} MB" if resident else "?"
    packed = "compressedNodes" in text
    print(
        f"{shards} shards: {seconds:.0f} s, {shards / seconds * 60:.0f} pods a minute; workflow {compact / 1e3:.0f} kB"
        f"{' (packed)' if packed else ''}, {len(study.get()['status']['nodes'])} nodes; controller {memory}"
    )
