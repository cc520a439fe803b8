"""Make the other workflows from full.yaml, the one source: ``make workflows``.

A smoke study differs from a full one in its parameters alone, and a WorkflowTemplate from a Workflow in its head alone.
Comments come along: this works on the text.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent

# Parameters of smoke.yaml that are not those of full.yaml.
SMOKE = {
    "preset": "smoke",
    "seeds-per-pod": '"3"',
    "concurrency": '"4"',
    "device": "cpu",
    "gpus": '"0"',
    "gpu-node-selector": '"{}"',
    "gpu-tolerations": '"[]"',
    "gpu-cpu": '"1"',
    "gpu-memory": "3Gi",
    "cpu-cpu": '"1"',
    "cpu-memory": "3Gi",
    "disk": "1Gi",
}

# What only a template needs: it keeps its own labels to itself.
LABELLED = """\
  # Of every workflow that is made from this: the watch accounts for those with it.
  workflowMetadata:
    labels:
      app.kubernetes.io/part-of: byol-med
"""

SMOKE_INTRODUCTION = """\
# The same study on tiny subsets and CPU nodes, a few minutes long: shows that a cluster is set up, says nothing about
# methods."""


def derived(full: str) -> dict[str, str]:
    """Return the text of every derived file by its name in this folder."""
    smoke = full.replace(
        "# The whole study: pretraining on GPU nodes, then the downstream jobs in parallel.", SMOKE_INTRODUCTION
    )
    smoke = smoke.replace(
        "argo submit -n byol --watch workflows/full.yaml -p preset=paper-text -p seeds=0,1,2,3,4",
        "argo submit -n byol --watch workflows/smoke.yaml",
    )
    smoke = smoke.replace(
        "smoke.yaml and templates/ are made from this file by `make workflows`.",
        "Made from full.yaml by `make workflows`.",
    )
    smoke = smoke.replace("generateName: byol-full-", "generateName: byol-smoke-")
    for name, value in SMOKE.items():
        smoke = _set_parameter(smoke, name, value)
    return {
        "smoke.yaml": smoke,
        "templates/full.yaml": _template(full, "full"),
        "templates/smoke.yaml": _template(smoke, "smoke"),
    }


def _set_parameter(text: str, name: str, value: str) -> str:
    """Give a workflow parameter a plain value; its list of choices stays."""
    found = re.search(rf"^      - (?:\{{name: {name}, .*\n|name: {name}\n(?:        .*\n)+)", text, re.MULTILINE)
    if found is None:
        raise SystemExit(f"full.yaml has no parameter {name}")
    choices = re.search(r", enum: \[.*\]", found[0])
    return text.replace(found[0], f"      - {{name: {name}, value: {value}{choices[0] if choices else ''}}}\n")


def _template(text: str, name: str) -> str:
    """Turn a Workflow into the WorkflowTemplate of the same parameters and templates."""
    text = re.sub(
        r"^#   argo submit .*$",
        f"#   argo submit -n byol --from workflowtemplate/byol-{name}",
        text,
        flags=re.MULTILINE,
    )
    text = text.replace(
        "smoke.yaml and templates/ are made from this file by `make workflows`.",
        "Made from ../full.yaml by `make workflows`.",
    )
    text = text.replace("Made from full.yaml by", "Made from ../full.yaml by")
    text = text.replace("  podMetadata:\n", f"{LABELLED}  podMetadata:\n", 1)
    return text.replace("kind: Workflow\n", "kind: WorkflowTemplate\n").replace(
        f"generateName: byol-{name}-", f"name: byol-{name}"
    )


def main() -> int:
    """Write the derived files; with ``--check``, only say which differ."""
    stale = []
    for name, text in derived((HERE / "full.yaml").read_text("utf-8")).items():
        path = HERE / name
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, "utf-8")
    print("\n".join(f"workflows/{name}" for name in stale) or "workflows: up to date")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    raise SystemExit(main())
