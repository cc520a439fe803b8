"""Ways to break the shipped YAML: every key outside free-form maps misspelt, every reference bent."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.cluster.documents import Document
from tests.cluster.references import walk

FREE = {"labels", "annotations", "data", "stringData"}  # their keys are anybody's
REFERENCES = {
    *("template", "entrypoint", "onExit", "depends", "serviceAccountName", "configMap", "priorityClassName"),
    *("podPriorityClassName", "serviceName", "targetPort", "namespace"),
}
REFERENCE_PARENTS = {
    *("configMapKeyRef", "configMapRef", "secretRef", "roleRef", "workflowTemplateRef", "artifactRepositoryRef"),
    *("volumeMounts", "subjects", "matchLabels", "selector", "httpGet", "resources", "patches"),
}
NOT_REFERENCES = {"mountPath", "optional", "kind", "apiGroup", "resources", "scheme"}


@dataclass(frozen=True)
class Mutation:
    """One change: of a key (``new`` is its name) or of a value (``new`` replaces it)."""

    file: str
    document: int
    path: tuple[Any, ...]
    key: bool
    new: str

    def __str__(self) -> str:
        what = "key" if self.key else "value"
        return f"{self.file}[{self.document}] {'.'.join(map(str, self.path))}: {what} -> {self.new!r}"

    def apply(self, documents: list[Document]) -> list[Document]:
        changed = copy.deepcopy(documents)
        node: Any = changed[self.document]
        for part in self.path[:-1]:
            node = node[part]
        last = self.path[-1]
        if self.key:
            items = [(self.new if key == last else key, value) for key, value in node.items()]
            node.clear()
            node.update(items)
        else:
            node[last] = self.new
        return changed


def misspell(word: str, draw: random.Random) -> str:
    """Make a slip of the pen."""
    at = draw.randrange(len(word))
    slips = [word[:at] + word[at] + word[at:], word + "s", word[:at] + "x" + word[at + 1 :], word + "-x"]
    if len(word) > 2:
        slips.append(word[:at] + word[at + 1 :])
    return draw.choice([slip for slip in slips if slip != word])


def is_reference(path: tuple[Any, ...], value: Any, file: str) -> bool:
    """Whether a string names something that is defined elsewhere."""
    if not isinstance(value, str) or not path:
        return False
    if "{{" in value:
        return True
    names = [part for part in path if isinstance(part, str)]
    if not names or (names[-1] in NOT_REFERENCES and "kustomization" not in file):
        return False
    if names[-1] in REFERENCES and not isinstance(path[-1], int):
        return True
    parents = set(names[-2:-1]) | (set(names[-1:]) if isinstance(path[-1], int) else set())
    if "resources" in parents and "kustomization" not in file:
        return False
    patch = file.startswith(("k8s/overlays", "k8s/components")) and file.rpartition("/")[2] in (
        "s3.yaml", "artifacts.yaml", "accounts.yaml",
    )  # fmt: skip
    return bool(parents & REFERENCE_PARENTS) or (patch and path == ("metadata", "name"))


def bend(value: str, draw: random.Random) -> str:
    """Misspell one name inside a reference."""
    if "{{" in value:
        spots = [
            (match.start() + word.start() + 2, match.start() + word.end() + 2)
            for match in re.finditer(r"\{\{(.*?)\}\}", value, re.DOTALL)
            for word in re.finditer(r"workflow\.parameters\['[\w-]+|[a-z]+(?:\.[\w-]+)+|^item$", match[1])
        ]
    else:
        spots = [word.span() for word in re.finditer(r"[\w./-]+", value) if word[0] not in ("&&", "||")]
    start, end = draw.choice(spots)
    return value[:start] + misspell(value[start:end], draw) + value[end:]


def sites(files: Mapping[str, list[Document]]) -> Iterator[tuple[str, int, tuple[Any, ...], bool]]:
    """Every place that can be broken: file, document, path, and whether it is the key or the value there."""
    for file, documents in files.items():
        for number, document in enumerate(documents):
            for path, value in walk(document):
                if path and isinstance(path[-1], str) and not (set(path[:-1]) & FREE):
                    yield file, number, path, True
                if is_reference(path, value, file):
                    yield file, number, path, False


def draw_mutations(files: Mapping[str, list[Document]], count: int, seed: int) -> Iterator[Mutation]:
    """Draw uniformly over all places."""
    draw = random.Random(seed)
    every = list(sites(files))
    for file, number, path, key in draw.sample(every, count):
        node: Any = files[file][number]
        for part in path[:-1]:
            node = node[part]
        new = misspell(str(path[-1]), draw) if key else bend(node[path[-1]], draw)
        while key and new in node:
            new = misspell(str(path[-1]), draw)
        yield Mutation(file, number, path, key, new)
