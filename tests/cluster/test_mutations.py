"""The checks of the shipped YAML are worth something: they find a slip in any key and any reference."""

from __future__ import annotations

import collections
import os
from pathlib import Path

import pytest
import yaml

from tests.cluster.checks import OVERLAYS, all_problems, workspace
from tests.cluster.documents import load, render, shipped
from tests.cluster.mutations import Mutation, draw_mutations, sites

COUNT = int(os.environ.get("MUTATIONS", "80"))
SHARE, SEED = 0.98, 4


def affected(file: str) -> tuple[str, ...]:
    """Overlays that a file goes into."""
    if file.startswith("k8s/base"):
        return OVERLAYS
    if file.startswith("k8s/overlays/prod"):
        return ("k8s/overlays/prod",)
    if file.startswith("k8s/overlays/dev"):
        return ("k8s/overlays/dev", "k8s/overlays/with-cache")
    return ("k8s/overlays/with-cache",) if file.startswith("k8s/components") else ()


@pytest.mark.slow
def test_almost_every_slip_is_found(tmp_path: Path) -> None:
    root = workspace(tmp_path)
    files = shipped()
    rendered = {overlay: render(root / overlay) for overlay in OVERLAYS}
    assert list(all_problems(files, root, rendered)) == []
    survivors: list[Mutation] = []
    kinds: collections.Counter[str] = collections.Counter()
    for mutation in draw_mutations(files, COUNT, SEED):
        kinds["key" if mutation.key else "reference"] += 1
        changed = mutation.apply(files[mutation.file])
        stale = affected(mutation.file)
        current = {overlay: objects for overlay, objects in rendered.items() if overlay not in stale}
        path = root / mutation.file
        if stale:
            path.write_text(yaml.safe_dump_all(changed))
        try:
            caught = any(True for _ in all_problems(files | {mutation.file: changed}, root, current))
        except (KeyError, TypeError, AttributeError, ValueError, StopIteration):
            caught = True  # the checks cannot even read it
        if stale:
            path.write_text(yaml.safe_dump_all(files[mutation.file]))
        if not caught:
            survivors.append(mutation)
    print(f"{COUNT} of {len(list(sites(files)))} places broken: {dict(kinds)}; {len(survivors)} not found")
    for survivor in survivors:
        print(f"  {survivor}")
    assert len(survivors) <= COUNT * (1 - SHARE), "\n".join(map(str, survivors))


def test_a_key_that_appears_twice_is_refused() -> None:
    with pytest.raises(yaml.constructor.ConstructorError, match="appear twice: \\['a'\\]"):
        load("a: 1\nb: 2\na: 3\n")
