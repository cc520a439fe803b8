"""What somebody who may write to the store, or who gives a file, can do: no code, no way out of the store, no HTML."""

from __future__ import annotations

import ast
import json
import re
import secrets
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from app.errors import AppError, UsageError
from app.jobs import keys
from app.jobs.checkpoint import load_checkpoint
from app.jobs.records import read_verified
from app.stages.report import run as write_report
from app.storage import FolderStore, check_key
from app.storage.answers import explain_answer, plain
from tests.report.test_report import ROOT, RUN, FakeRun, the_script_alone

APP = Path(__file__).resolve().parents[1] / "app"

EVIL = (
    '<script>alert(1)</script>"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>--><script>alert(1)</script><!--",
    "</style></svg>`<script>alert(1)</script>`",
    "javascript:alert(1) ]](javascript:alert(1)) ![x](x){{7*7}}{% raw %}",
)
# What ties records to each other: changed, a record is another one, or none.
STRUCTURE = {"key", "run_id", "kind", "dataset", "init", "method", "protocol", "task", "sha256", "identity", "monitor"}


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag


def harmless(html: str) -> None:
    tags = Tags(html).tags
    assert not [tag for tag, _ in tags if tag in ("iframe", "object", "embed", "base", "form")]
    assert the_script_alone(html) or not [tag for tag, _ in tags if tag == "script"]
    assert not [attrs for _, attrs in tags if any(name.startswith("on") for name in attrs)]
    links = [value or "" for _, attrs in tags for name, value in attrs.items() if name in ("href", "src", "xlink:href")]
    active = ("javascript:", "vbscript:", "data:text/html")
    assert not [link for link in links if link.strip().lower().startswith(active)]


NAMED_FREELY = ("environment", "timings", "metrics", "validation")


def poison(value: Any, word: str, name: str = "", *, structure: bool) -> Any:
    """Put ``word`` behind every text of a JSON value, and behind the names of its free fields."""
    if isinstance(value, dict):
        after = word if name in NAMED_FREELY else ""
        return {f"{key}{after}": poison(item, word, key, structure=structure) for key, item in value.items()}
    if isinstance(value, list):
        return [poison(item, word, name, structure=structure) for item in value]
    return f"{value}{word}" if isinstance(value, str) and (structure or name not in STRUCTURE) else value


@pytest.fixture(scope="module")
def written() -> dict[str, bytes]:
    run = FakeRun(methods=("random", "byol"), protocols=("finetune",), seeds=(0, 1), shrink=40)
    run.datasets = {"pneumoniamnist": run.datasets["pneumoniamnist"]}
    run.write()
    return run.store.objects  # type: ignore[union-attr]


@pytest.mark.parametrize("structure", [False, True], ids=["free texts", "every text"])
@pytest.mark.parametrize("word", EVIL)
def test_no_html_comes_into_the_report(written: dict[str, bytes], monkeypatch, word: str, structure: bool) -> None:
    run = FakeRun()
    for key, data in written.items():
        if key.endswith(".json"):
            changed = poison(json.loads(data), word, structure=structure)
            if structure:  # the plan has to be found, or there is no report at all
                changed = json.loads(data) | {"science": changed.get("science")} if "experiment" in key else changed
            data = json.dumps(changed).encode()
        run.store.write(key, data)
    try:
        write_report(run.store, RUN)
    except AppError:
        assert structure, "free texts cost no page"
        return  # one line, and no page
    harmless(run.store.read(f"{ROOT}/report/index.html").decode())
    markdown = run.store.read(f"{ROOT}/report/report.md").decode()
    # within a fence that nothing inside can close, markup is text
    markdown = re.sub(r"^(`{3,})yaml\n.*?^\1$", "", markdown, flags=re.S | re.M)
    assert not re.search("<script|<img|<svg", markdown)


def test_the_watchdog_bites() -> None:
    for evil in ("<script>x</script>", "<img onerror=x>", '<a href=" javascript:x">'):
        with pytest.raises(AssertionError):
            harmless(evil)


WAYS_OUT = [
    "../x",
    "a/../../x",
    "/etc/passwd",
    "..",
    ".",
    "a//b",
    "a\\..\\b",
    "a\0b",
    "a\nb",
    "",
    "a/",
    "\u202e/x",
    "~/../x/..",
]


@pytest.mark.parametrize("way", WAYS_OUT)
def test_no_key_leads_out_of_the_store(tmp_path: Path, way: str) -> None:
    (tmp_path / "x").write_bytes(b"secret")
    store = FolderStore(tmp_path / "store")
    operations: list[Callable[[], object]] = [
        lambda: store.read(way), lambda: store.write(way, b""), lambda: store.delete(way), lambda: store.local(way),
        lambda: store.create(way, b""), lambda: store.exists(way), lambda: store.clean(way), lambda: check_key(way),
        lambda: read_verified(store, way, {"size": 6, "sha256": ""}),
    ]  # fmt: skip
    for operation in operations:
        with pytest.raises(UsageError, match="not a plain relative path"):
            operation()
    assert (tmp_path / "x").read_bytes() == b"secret"


def test_no_pointer_leads_out_of_the_store(tmp_path: Path) -> None:
    """A pointer that names a file outside is refused before anything is read."""
    store = FolderStore(tmp_path / "store")
    (tmp_path / "secret.pt").write_bytes(b"x")
    entry = {"step": 1, "key": "../../../secret.pt", "size": 1, "sha256": "0"}
    store.write("job/latest.json", json.dumps({"version": 1, "generation": 1, "checkpoints": [entry]}).encode())
    with pytest.raises(UsageError, match="not a plain relative path"):
        load_checkpoint(store, "job", warn=lambda line: None)


@pytest.mark.parametrize("word", ["../x", "a/b", "a b", "<b>", "a\nb", "A" * 100, "-x", "x-", "ä"])
def test_no_name_of_a_run_makes_another_key(word: str) -> None:
    from app.jobs.run import check_run_id

    with pytest.raises(UsageError):
        check_run_id(word)
    assert check_key(keys.experiment("nih-28"))


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_from_outside_is_unpickled_or_run() -> None:
    """Pickle, marshal, shelve, eval and exec are nowhere; torch and numpy are told to load plain values alone."""
    for path in APP.rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle"}, path
        for name, call in calls(tree):
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert name not in ("eval", "exec", "compile", "os.system", "os.popen", "yaml.unsafe_load"), path
            if name == "torch.load":
                assert given.get("weights_only") == "True", path
            if name in ("np.load", "numpy.load"):
                assert given.get("allow_pickle") == "False", path
            if name == "yaml.load":
                assert "Loader" in given, path
            if name.startswith("subprocess."):
                assert given.get("shell", "False") == "False", path


def test_no_secret_comes_into_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = secrets.token_hex(20)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, f"{secret}{name}")
        for text in (
            f"the key {secret}{name} is unknown", f"https://me:{secret}@host/x", f"?X-Amz-Signature={secret}&a=b",
            f"AKIA{secret[:16].upper()} is not active",
        ):  # fmt: skip
            assert secret not in plain(text)
            assert secret[:16].upper() not in plain(text)
            answer = {"Error": {"Code": "Odd", "Message": text}, "ResponseMetadata": {"HTTPStatusCode": 403}}
            assert secret not in str(explain_answer(answer, "s3://b", "s3://b/k"))
