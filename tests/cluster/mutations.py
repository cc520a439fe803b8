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
    *("podPriorityClassName", "serviceName", "targetPort", "namespace", "claimName"),
    *("kubernetes.io/service-account.name", "workflows.argoproj.io/default-artifact-repository"),
}
REFERENCE_PARENTS = {
    *("configMapKeyRef", "configMapRef", "secretRef", "roleRef", "workflowTemplateRef", "artifactRepositoryRef"),
    *("volumeMounts", "subjects", "matchLabels", "selector", "httpGet", "resources", "patches"),
    *("accessKeySecret", "secretKeySecret"),
}
NOT_REFERENCES = {"optional", "scheme"}
# Kinds of the Prometheus operator, whose schemas are not here; and what belongs to no overlay.
LEFT_OUT = ("k8s/components/monitoring/", "k8s/examples/")
PATCHES = ("s3.yaml", "accounts.yaml", "components/dataset-cache/parameters.yaml")
TAG = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
NAME_IN_TAG = re.compile(r"[a-z]+(?:\.[\w-]+)+|^item$")
NAME_IN_EXPRESSION = re.compile(r"workflow\.parameters\['[\w-]+")
VARIABLE = re.compile(r"\blastRetry\.\w+|\basInt\b")
# In JSON and YAML inside a string: keys, and the values of those that name something.
KEY_INSIDE = re.compile(r"""["']?([\w.$/-]+)["']?:(?=\s)""")
NAME_INSIDE = re.compile(r'"(?:name|claimName)":\s+"([\w.-]+)')
SECRET_INSIDE = re.compile(r"^\s*(?:name|key): (\w[\w-]+)$", re.MULTILINE)
ITEM_INSIDE = re.compile(r'"\$retainKeys":\s+\["(\w+)", "(\w+)"\]')
SERVICE = re.compile(r"[\w-]+\.[\w-]+\.svc\.cluster\.local:\d+")


@dataclass(frozen=True)
class Site:
    """A place that can be broken: a key, or, with a ``span``, a part of the string there."""

    file: str
    document: int
    path: tuple[Any, ...]
    span: tuple[int, int] | None


@dataclass(frozen=True)
class Mutation:
    """One change: at a key ``new`` is its name, elsewhere what the string becomes."""

    site: Site
    was: str
    new: str

    @property
    def file(self) -> str:
        return self.site.file

    @property
    def key(self) -> bool:
        return self.site.span is None

    def __str__(self) -> str:
        where = f"{self.file}[{self.site.document}] {'.'.join(map(str, self.site.path))}"
        return f"{where}: {'key' if self.key else 'value'} {self.was!r} -> {self.new!r}"

    def apply(self, documents: list[Document]) -> list[Document]:
        changed = copy.deepcopy(documents)
        node: Any = changed[self.site.document]
        for part in self.site.path[:-1]:
            node = node[part]
        last = self.site.path[-1]
        if self.site.span is None:
            items = [(self.new if key == last else key, value) for key, value in node.items()]
            node.clear()
            node.update(items)
        else:
            start, end = self.site.span
            node[last] = node[last][:start] + self.new + node[last][end:]
        return changed


def misspell(word: str, draw: random.Random) -> str:
    """Make a slip of the pen."""
    at = draw.randrange(len(word))
    slips = [word[:at] + word[at] + word[at:], word + "s", word[:at] + "x" + word[at + 1 :], word + "-x"]
    if len(word) > 2:
        slips.append(word[:at] + word[at + 1 :])
    return draw.choice([slip for slip in slips if slip != word])


def is_reference(path: tuple[Any, ...], file: str) -> bool:
    """Whether the string at a path names something that is defined elsewhere."""
    names = [part for part in path if isinstance(part, str)]
    last, inside = names[-1], "kustomization" in file
    if last in NOT_REFERENCES:
        return False
    if last in REFERENCES and not isinstance(path[-1], int):
        return True
    if names[-3:] == ["arguments", "parameters", "name"]:  # of a task, or of a workflow made from a template
        return "tasks" in names or "workflowSpec" in names
    if last == "path" and "outputs" in names:
        return True
    parents = set(names[-2:-1]) | (set(names[-1:]) if isinstance(path[-1], int) else set())
    if "resources" in parents and not inside:
        return False
    patch = file.startswith(("k8s/overlays", "k8s/components")) and file.endswith(PATCHES)
    return bool(parents & REFERENCE_PARENTS) or (patch and path == ("metadata", "name"))


def spans(path: tuple[Any, ...], value: str, file: str) -> set[tuple[int, int]]:
    """Every name inside a string, each by itself, that refers to something, and every key of JSON or YAML in it."""
    found = set()
    for tag in TAG.finditer(value):
        name = NAME_IN_EXPRESSION if tag[1].startswith("=") else NAME_IN_TAG
        found |= {(tag.start(1) + a, tag.start(1) + b) for a, b in (m.span() for m in name.finditer(tag[1]))}
    found |= {match.span() for match in SERVICE.finditer(value)}
    if path[-1] == "expression":
        found |= {match.span() for match in VARIABLE.finditer(value)}
    free = any("node-selector" in str(part) for part in path)
    if not free and (value.lstrip()[:1] in ("{", "[") or (path[-2:] == ("data", "s3"))) and not TAG.fullmatch(value):
        found |= {match.span(1) for match in KEY_INSIDE.finditer(value)}
        found |= {match.span(1) for match in (*NAME_INSIDE.finditer(value), *SECRET_INSIDE.finditer(value))}
        found |= {match.span(group) for match in ITEM_INSIDE.finditer(value) for group in (1, 2)}
    elif not found and is_reference(path, file):
        found |= {word.span() for word in re.finditer(r"[\w./-]+", value)}
    return found


def sites(files: Mapping[str, list[Document]]) -> Iterator[Site]:
    """Every place that can be broken."""
    for file, documents in files.items():
        if file.startswith(LEFT_OUT):
            continue
        for number, document in enumerate(documents):
            for path, value in walk(document):
                if not path:
                    continue
                if isinstance(path[-1], str) and not (set(path[:-1]) & FREE):
                    yield Site(file, number, path, None)
                if isinstance(value, str):
                    yield from (Site(file, number, path, span) for span in sorted(spans(path, value, file)))


def break_at(site: Site, files: Mapping[str, list[Document]], draw: random.Random) -> Mutation:
    """Make a slip at a place."""
    node: Any = files[site.file][site.document]
    for part in site.path[:-1]:
        node = node[part]
    was = str(site.path[-1]) if site.span is None else node[site.path[-1]][slice(*site.span)]
    new = misspell(was, draw)
    while site.span is None and new in node:
        new = misspell(was, draw)
    return Mutation(site, was, new)


def draw_mutations(files: Mapping[str, list[Document]], count: int, seed: int) -> Iterator[Mutation]:
    """Draw uniformly over all places."""
    draw = random.Random(seed)
    yield from (break_at(site, files, draw) for site in draw.sample(list(sites(files)), count))
