"""As much of Argo as the workflows use: parameters and their substitution, and the order of a DAG."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.documents import Document
from tests.processes import SMALL, Launcher

TAG = re.compile(r"\{\{(=?)(.*?)\}\}", re.DOTALL)
ENDS = {"Succeeded", "Failed", "Errored", "Skipped", "Omitted", "Daemoned", "AnySucceeded", "AllFailed"}
TOKEN = re.compile(r"\s*(?:'([^']*)'|(\d+)|([A-Za-z][\w.-]*\w|[A-Za-z])|(==|&&|\|\||[?:+()\[\]]))")
POOLS = ("gpu", "cpu")
BY_POOL = re.compile(r"workflow\.parameters\[inputs\.parameters\.pool \+ '([^']*)'\]")


class UnknownTag(Exception):
    """A ``{{…}}`` that nothing defines."""


def evaluate(expression: str, values: Mapping[str, str]) -> str:
    """Evaluate an expression tag: names, texts, numbers, ``== && || + ? : […]`` and two functions.

    Only the branch that is taken has to be defined, as in Argo.

    Raises:
        UnknownTag: a name without a value, or more than that.
    """
    tokens, at = [], 0
    text = expression.strip()
    while at < len(text):
        found = TOKEN.match(text, at)
        if found is None:
            raise UnknownTag(expression)
        tokens.append(found)
        at = found.end()
    value = _Expression(tokens, values, expression).whole()
    return str(value()).lower() if isinstance(value(), bool) else str(value())


class _Expression:
    """A recursive descent over tokens; every method returns a function that evaluates what it has read."""

    def __init__(self, tokens: list[re.Match[str]], values: Mapping[str, str], text: str) -> None:
        self.tokens, self.values, self.text = tokens, values, text

    def take(self, *operators: str) -> str | None:
        if self.tokens and self.tokens[0][4] in operators:
            return self.tokens.pop(0)[4]
        return None

    def expect(self, operator: str) -> None:
        if self.take(operator) is None:
            raise UnknownTag(self.text)

    def whole(self) -> Callable[[], Any]:
        value = self.choice()
        if self.tokens:
            raise UnknownTag(self.text)
        return value

    def choice(self) -> Callable[[], Any]:
        condition = self.either()
        if self.take("?") is None:
            return condition
        then = self.choice()
        self.expect(":")
        other = self.choice()
        return lambda: then() if condition() else other()

    def either(self) -> Callable[[], Any]:
        left = self.compared()
        while operator := self.take("&&", "||"):
            before, right = left, self.compared()
            left = (
                (lambda b=before, r=right: b() and r()) if operator == "&&" else (lambda b=before, r=right: b() or r())
            )
        return left

    def compared(self) -> Callable[[], Any]:
        left = self.sum()
        if self.take("==") is None:
            return left
        right = self.sum()
        return lambda: left() == right()

    def sum(self) -> Callable[[], Any]:
        parts = [self.atom()]
        while self.take("+"):
            parts.append(self.atom())
        return parts[0] if len(parts) == 1 else lambda: _added([part() for part in parts])

    def atom(self) -> Callable[[], Any]:
        if self.take("("):
            inside = self.choice()
            self.expect(")")
            return inside
        if not self.tokens or self.tokens[0][4]:
            raise UnknownTag(self.text)
        text, number, name, _ = self.tokens.pop(0).groups()
        if number is not None or text is not None:
            return lambda: int(number) if number is not None else text
        if self.take("("):
            argument = None if name == "toJson" and self.tokens[0][3] == "workflow.parameters" else self.choice()
            if argument is None:
                self.tokens.pop(0)
            self.expect(")")
            if name == "toJson" and argument is None:
                return self.parameters
            if name == "asInt" and argument is not None:
                return lambda: int(argument())
            raise UnknownTag(f"{name}()")
        if self.take("["):
            index = self.choice()
            self.expect("]")
            return lambda: _value(f"{name}.{index()}", self.values)
        return lambda: _value(name, self.values)

    def parameters(self) -> str:
        front = "workflow.parameters."
        return json.dumps({k.removeprefix(front): v for k, v in self.values.items() if k.startswith(front)})


def _added(parts: list[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


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
    """Names that a text refers to; ``workflow.parameters[pool + '-x']`` refers to one of each pool."""
    for equals, body in TAG.findall(text):
        if not equals:
            yield body.strip()
            continue
        yield from (f"workflow.parameters.{pool}{suffix}" for suffix in BY_POOL.findall(body) for pool in POOLS)
        rest = re.sub(r"\['([\w-]+)'\]", r".\1", BY_POOL.sub("inputs.parameters.pool", body))
        rest = re.sub(r"'[^']*'", "''", rest)
        yield from re.findall(r"\b(?:workflow|inputs|tasks)\.[\w.-]*\w", rest.replace("(workflow.parameters)", ""))


def templates_of(spec: Document) -> list[Document]:
    """The templates of a workflow as its pods get them: with the defaults of containers and the patch of all pods."""
    defaults = spec.get("templateDefaults", {}).get("container", {})
    patch = {"podSpecPatch": spec["podSpecPatch"]} if "podSpecPatch" in spec else {}
    return [
        patch | template | {"container": defaults | template["container"]} if "container" in template else template
        for template in spec["templates"]
    ]


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
        [found] = [template for template in templates_of(self.spec) if template["name"] == name]
        return found

    def workflow(self) -> str:
        """Run the entrypoint, then the exit handler; return the phase."""
        phase, _ = self.execute(self.spec["entrypoint"], {}, "study")
        self.values |= {"workflow.status": phase, "workflow.failures": json.dumps("null")}
        self.execute(self.spec["onExit"], {}, "exit")
        return phase

    def execute(self, name: str, inputs: dict[str, str], task: str) -> tuple[str, dict[str, str]]:
        """Run a template; return its end and its output parameters."""
        template = self.template(name)
        declared = {parameter["name"]: parameter for parameter in template.get("inputs", {}).get("parameters", [])}
        defaults = {key: substitute(p["value"], self.values) for key, p in declared.items() if "value" in p}
        inputs = defaults | inputs
        assert declared.keys() == inputs.keys(), f"{task}: {name} takes {set(declared)}, is given {set(inputs)}"
        values = self.values | {f"inputs.parameters.{key}": value for key, value in inputs.items()}
        if "suspend" in template:
            return "Succeeded", {}
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
                if "when" in task and not when(substitute(task["when"], values | outputs)):
                    ends[task["name"]] = "Skipped"
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
        return [{f"item.{key}": _text(value) for key, value in item.items()} for item in listed]
    return [{}]


def _text(value: Any) -> str:
    """What Argo writes for a value of an item: a text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def when(condition: str) -> bool:
    """Whether a ``when`` holds, of the one shape we use: ``a == b``."""
    left, equals, right = condition.partition(" == ")
    if not equals:
        raise UnknownTag(condition)
    return left.strip() == right.strip()


def process_command(environment: Mapping[str, str], launcher: Launcher) -> Command:
    """Run containers as processes of this machine; what they say goes to standard error."""

    def run(template: Document, command: list[str], folder: Path) -> int:
        assert command[:3] == ["python", "-m", "app"], f"{template['name']}: {command}"
        own = {"HOME": str(folder), "ARGO_PROGRESS_FILE": str(folder / "progress"), SMALL: "1"}
        process = launcher.start(*command[3:], base=environment, environment=own)
        code = process.wait()
        print(process.text, file=sys.stderr)
        return code

    return run
