"""As much of Argo as the workflows use: parameters and their substitution, and the order of a DAG."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.documents import Document

TAG = re.compile(r"\{\{(=?)(.*?)\}\}", re.DOTALL)
ENDS = {"Succeeded", "Failed", "Errored", "Skipped", "Omitted", "Daemoned", "AnySucceeded", "AllFailed"}
CHOICE = re.compile(r"workflow\.parameters\['([^']+)'\] == '([^']*)'\s+\?\s+'([^']*)'\s+:\s+(.*)", re.DOTALL)
PIECE = re.compile(r"'([^']*)'|workflow\.parameters\['([^']+)'\]|(\s*\+\s*)")


class UnknownTag(Exception):
    """A ``{{…}}`` that nothing defines."""


def evaluate(expression: str, values: Mapping[str, str]) -> str:
    """Evaluate an expression tag of the one shape we use: ``parameter == 'text' ? 'text' : 'text' + parameter``."""
    choice = CHOICE.fullmatch(expression.strip())
    if choice is None:
        raise UnknownTag(expression)
    name, compared, then, other = choice.groups()
    parts, at = [], 0
    while at < len(other):
        piece = PIECE.match(other, at)
        if piece is None:
            raise UnknownTag(expression)
        text, parameter, _ = piece.groups()
        parts.append(text or (_value(f"workflow.parameters.{parameter}", values) if parameter else ""))
        at = piece.end()
    return then if _value(f"workflow.parameters.{name}", values) == compared else "".join(parts)


def _value(name: str, values: Mapping[str, str]) -> str:
    if name not in values:
        raise UnknownTag(name)
    return values[name]


def substitute(text: str, values: Mapping[str, str]) -> str:
    """Replace every tag; raises ``UnknownTag`` for one without a value."""
    return TAG.sub(
        lambda tag: evaluate(tag[2], values) if tag[1] else _value(tag[2].strip(), values), text
    )  # fmt: skip


def tags(text: str) -> Iterator[str]:
    """Names that a text refers to."""
    for equals, body in TAG.findall(text):
        if equals:
            yield from (
                f"workflow.parameters.{name}" for name in re.findall(r"workflow\.parameters\['([^']+)'\]", body)
            )
        else:
            yield body.strip()


def workflow_parameters(
    spec: Document, config_maps: Mapping[str, Mapping[str, str]], given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Values of a workflow's parameters: given ones, else its own, else of a ConfigMap, else the default."""
    values = {}
    for parameter in spec.get("arguments", {}).get("parameters", []):
        name = parameter["name"]
        if given and name in given:
            value = given[name]
        elif "value" in parameter:
            value = parameter["value"]
        else:
            source = parameter["valueFrom"]["configMapKeyRef"]
            value = config_maps.get(source["name"], {}).get(source["key"], parameter["valueFrom"].get("default"))
        values[f"workflow.parameters.{name}"] = str(value)
    return values


def truth(depends: str, ends: Mapping[str, str]) -> bool:
    """Whether a ``depends`` holds: ``&&``, ``||``, ``!`` and brackets over ``task.End``."""

    def term(match: re.Match[str]) -> str:
        task, _, end = match[0].partition(".")
        if end not in ENDS | {""}:
            raise UnknownTag(match[0])
        return str(ends[task] == end if end else ends[task] in ("Succeeded", "Skipped", "Daemoned"))

    python = re.sub(r"[A-Za-z][\w-]*(?:\.\w+)?", term, depends)
    python = python.replace("&&", " and ").replace("||", " or ").replace("!", " not ")
    if re.sub(r"True|False|and|or|not|[()\s]", "", python):
        raise UnknownTag(depends)
    return bool(eval(python, {"__builtins__": {}}))


def retries(expression: str, status: str, message: str, code: int) -> bool:
    """Whether a ``retryStrategy.expression`` asks for another try after a pod that ended so.

    Raises:
        UnknownTag: it uses more than ``lastRetry``'s fields, ``asInt``, texts, lists of numbers and operators.
    """
    last = {"status": status, "message": message, "exitCode": str(code), "duration": "60"}
    field = r"lastRetry\.(\w+)"
    python = expression
    for pattern, replacement in (
        (rf'{field} matches ("[^"]*")', r"matches(last['\1'], \2)"),
        (rf'{field} contains ("[^"]*")', r"(\2 in last['\1'])"),
        (rf"asInt\({field}\)", r"int(last['\1'])"),
        (rf"{field} ==", r"last['\1'] =="),
        (r"\|\|", " or "),
        (r"&&", " and "),
        (r"!\(", " not ("),
    ):
        python = re.sub(pattern, replacement, python)
    shape = re.sub(r'"[^"]*"', "''", python)
    shape = re.sub(r"last\['\w+'\]|\b(?:matches|int|in|or|and|not|\d+)\b|''|==|[\[\](),\s]", "", shape)
    if shape:
        raise UnknownTag(expression)
    names = {"last": last, "int": int, "matches": lambda text, pattern: re.search(pattern, text) is not None}
    try:
        return bool(eval(python, {"__builtins__": {}}, names))
    except (KeyError, NameError, SyntaxError, re.error) as error:
        raise UnknownTag(f"{expression}: {error}") from error


def tasks_of(depends: str) -> set[str]:
    """The tasks that a ``depends`` names."""
    return {match.partition(".")[0] for match in re.findall(r"[A-Za-z][\w-]*(?:\.\w+)?", depends)}


Command = Callable[[Document, list[str], Path], int]


@dataclass
class Runner:
    """Runs a workflow: every container by ``run``, which gets its template, its command and a folder for ``/scratch``.

    Attributes:
        spec: of the workflow.
        values: of its parameters, and of ``workflow.name``.
        run: runs one container and returns its exit code.
        scratch: folder below which every pod gets one of its own.
        log: what ran, in order: task, command, exit code.
    """

    spec: Document
    values: dict[str, str]
    run: Command
    scratch: Path
    log: list[tuple[str, list[str], int]] = field(default_factory=list)

    def template(self, name: str) -> Document:
        [found] = [template for template in self.spec["templates"] if template["name"] == name]
        return found

    def workflow(self) -> str:
        """Run the entrypoint, then the exit handler; return the phase."""
        phase, _ = self.execute(self.spec["entrypoint"], {}, "study")
        self.values["workflow.status"] = phase
        self.execute(self.spec["onExit"], {}, "exit")
        return phase

    def execute(self, name: str, inputs: dict[str, str], task: str) -> tuple[str, dict[str, str]]:
        """Run a template; return its end and its output parameters."""
        template = self.template(name)
        declared = {parameter["name"] for parameter in template.get("inputs", {}).get("parameters", [])}
        assert declared == set(inputs), f"{task}: {name} takes {declared}, is given {set(inputs)}"
        values = self.values | {f"inputs.parameters.{key}": value for key, value in inputs.items()}
        return self._dag(template, values, task) if "dag" in template else self._pod(template, values, task)

    def _pod(self, template: Document, values: dict[str, str], task: str) -> tuple[str, dict[str, str]]:
        folder = self.scratch / f"{len(self.log)}-{template['name']}"
        folder.mkdir(parents=True)
        container = template["container"]
        command = [substitute(part, values) for part in (*container["command"], *container["args"])]
        command = [part.replace("=/scratch", f"={folder}") for part in command]
        code = self.run(template, command, folder)
        self.log.append((task, command, code))
        outputs = {}
        for parameter in template.get("outputs", {}).get("parameters", []):
            path = folder / parameter["valueFrom"]["path"].removeprefix("/scratch/")
            outputs[parameter["name"]] = path.read_text() if path.exists() else parameter["valueFrom"]["default"]
        if code == 0:
            for artifact in template.get("outputs", {}).get("artifacts", []):
                path = folder / artifact["path"].removeprefix("/scratch/")
                assert path.exists() or artifact.get("optional"), f"{task}: no {artifact['path']}"
        return ("Succeeded" if code == 0 else "Failed"), outputs

    def _dag(self, template: Document, values: dict[str, str], name: str) -> tuple[str, dict[str, str]]:
        waiting = {task["name"]: task for task in template["dag"]["tasks"]}
        ends: dict[str, str] = {}
        outputs: dict[str, str] = {}
        while waiting:
            ready = [task for task in waiting.values() if tasks_of(task.get("depends", "")) <= ends.keys()]
            assert ready, f"{name}: {sorted(waiting)} wait for each other"
            for task in ready:
                del waiting[task["name"]]
                if task.get("depends") and not truth(task["depends"], ends):
                    ends[task["name"]] = "Omitted"
                    continue
                ended = []
                for item in _items(task, values | outputs):
                    scope = values | outputs | item
                    parameters = task.get("arguments", {}).get("parameters", [])
                    inputs = {p["name"]: substitute(p["value"], scope) for p in parameters}
                    end, found = self.execute(task["template"], inputs, f"{name}/{task['name']}")
                    outputs |= {f"tasks.{task['name']}.outputs.parameters.{key}": value for key, value in found.items()}
                    ended.append(end)
                ends[task["name"]] = "Skipped" if not ended else "Failed" if "Failed" in ended else "Succeeded"
        return ("Failed" if "Failed" in ends.values() else "Succeeded"), {}


def _items(task: Document, values: Mapping[str, str]) -> list[dict[str, str]]:
    if "withSequence" in task:
        return [{"item": str(n)} for n in range(int(substitute(task["withSequence"]["count"], values)))]
    if "withParam" in task:
        listed: list[Any] = json.loads(substitute(task["withParam"], values))
        return [{f"item.{key}": str(value) for key, value in item.items()} for item in listed]
    return [{}]


def subprocess_command(environment: Mapping[str, str], python: str) -> Command:
    """Run containers as processes of this machine, ``python`` being the Python of the image."""

    def run(template: Document, command: list[str], folder: Path) -> int:
        assert command[0] == "python", f"{template['name']}: {command}"
        env = {**environment, "HOME": str(folder), "ARGO_PROGRESS_FILE": str(folder / "progress")}
        return subprocess.run([python, *command[1:]], env=env, cwd=environment["PYTHONPATH"], check=False).returncode

    return run
