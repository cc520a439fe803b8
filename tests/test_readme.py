"""The README keeps its word: every command in it parses, every target exists, its code runs on a real encoder."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

from app import cli
from app.cluster.argo import read_workflow
from app.config import load_config, presets
from app.jobs.checkpoint import dump_weights
from app.science.networks import Encoder
from tests.cluster.checks import parse

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
CLUSTER = (ROOT / "k8s/README.md").read_text()
FENCED = r"^```(\w*)\n(.*?)^```"
BLOCKS = re.findall(FENCED, TEXT, re.S | re.M)


def lines() -> list[str]:
    """Every line of a shell block of either file."""
    blocks = BLOCKS + re.findall(FENCED, CLUSTER, re.S | re.M)
    shell = "".join(text for language, text in blocks if language in ("", "bash", "sh")).replace("\\\n", " ")
    return [re.split(r"\s#", line)[0].strip() for line in shell.splitlines()]


def commands() -> list[str]:
    return [line for line in lines() if line.startswith("python -m app ")]


def test_there_are_commands_to_check():
    assert {line.split()[3] for line in commands()} >= {
        "run",
        "plan",
        "pretrain",
        "downstream",
        "report",
        "views",
        "ls",
        "submit",
    }


@pytest.mark.parametrize("line", commands())
def test_command_parses(line):
    """With its values, and all that it has to name."""
    assert parse(tuple(shlex.split(line))) is None


@pytest.mark.parametrize("line", commands())
def test_the_help_of_a_command_has_an_example(line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["app", *shlex.split(line)[3:], "--help"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0, capsys.readouterr().err
    assert "Example:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", ["pretrain --run-id x", "plan --seed two", "knn --run-idd x", "report --run-id x more", "data", "reprot"]
)
def test_a_command_that_is_wrong_does_not(line):
    assert parse(("python", "-m", "app", *line.split())) is not None


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]+)", TEXT + CLUSTER, re.M))
    assert {"demo", "test", "smoke", "image", "local-run", "submit"} <= named
    missing = [name for name in named if not re.search(rf"^{name}:", makefile, re.M)]
    assert not missing


def test_workflows_and_overlays_that_are_named_exist():
    named = [
        word
        for line in lines()
        if line.startswith(("kubectl apply", "argo submit", "python -m app submit"))
        for word in shlex.split(line)
        if word.startswith(("k8s/", "workflows/"))
    ]
    assert {"k8s/overlays/dev", "k8s/overlays/prod", "workflows/full.yaml", "workflows/smoke.yaml"} <= set(named)
    assert [word for word in named if not (ROOT / word).exists()] == []
    for text, folder in ((TEXT, ROOT), (CLUSTER, ROOT / "k8s")):
        for path in re.findall(r"`((?:k8s|workflows|base|overlays|components)/[\w./-]*)`", text):
            assert (folder / path).exists() or (ROOT / path).exists(), path


def test_workflow_parameters_that_are_given_exist():
    """Those of every command, and those that tables and sentences mention."""
    given = dict(re.findall(r"""-p ([\w-]+)=((?:'[^'\n]*')|[^\s`")]*)""", TEXT + CLUSTER))
    assert {"preset", "seeds", "gpu-product", "gpu-node-selector", "grace-seconds", "device"} <= given.keys()
    read_workflow(ROOT / "workflows/full.yaml", {name: value.strip("'") for name, value in given.items()})


def test_one_version_of_argo_is_installed_everywhere():
    action = (ROOT / ".github/workflows/cluster.yml").read_text("utf-8")
    found = set(re.findall(r"argo-workflows/releases/download/([\w.]+)/install.yaml", TEXT + CLUSTER + action))
    assert len(found) == 1
    assert yaml.safe_load(action)["jobs"]["kind"]["env"]["ARGO"] == found.pop()


def test_the_action_brings_kind_up_as_the_readme_says():
    [section] = re.findall(r"^## kind: .*?```\n(.*?)```", CLUSTER, re.MULTILINE | re.DOTALL)
    action = yaml.safe_load((ROOT / ".github/workflows/cluster.yml").read_text("utf-8"))
    done = [" ".join(step["run"].split()) for step in action["jobs"]["kind"]["steps"] if "run" in step]
    commands = [" ".join(line.split()) for line in section.splitlines()]
    ours = ("kubectl apply -k", "argo submit")  # the tests' own first steps
    assert [line for line in commands if line not in done and not line.startswith(ours)] == []


def test_every_preset_is_in_the_table():
    assert [name for name in presets() if f"| `{name}` |" not in TEXT] == []


@pytest.mark.parametrize("name", presets())
def test_the_table_of_presets_says_what_the_files_say(name):
    """Every number and every word for a setting in "what it is"."""
    said = re.search(rf"^\| `{name}` \| ([^|]*) \|", TEXT, re.M)[1]
    settings = load_config(name).pretrain
    numbers = {
        "optimizer": (r"\b(Adam|AdamW|SGD|LARS) ", lambda word: word.lower() == settings.optimizer),
        "learning rate": (r"\b(?:Adam|AdamW|SGD|LARS) (\d+e-\d+)", lambda word: float(word) == settings.learning_rate),
        "EMA": (r"EMA (\.\d+)", lambda word: float(word) == settings.ema_momentum),
        "EMA's end": (r"EMA \.\d+ to (1)\b", lambda word: settings.ema_cosine),
        "epochs": (r"(\d+) epochs", lambda word: int(word) == settings.epochs),
        "start": (r"(\w+) start", lambda word: word.lower() == load_config(name).network.init),
        "warm-up": ("(warm-up)", lambda word: settings.warmup_epochs > 0),
        "schedule": ("(cosine)", lambda word: settings.cosine),
    }
    found = {what: (match[1], fits) for what, (words, fits) in numbers.items() if (match := re.search(words, said))}
    assert (
        len(found)
        >= {"recommended": 8, "paper-text": 5, "paper-code": 5, "cifar10-byol": 6, "smoke": 1, "demo": 0}[name]
    ), found.keys()
    assert [what for what, (word, fits) in found.items() if not fits(word)] == []
    longest_first = sorted((words for words, _ in numbers.values()), key=len, reverse=True)
    loose = re.sub("|".join(longest_first), "", said)
    assert not re.search(r"\d", loose), f"a number that nothing compares: {loose}"


def test_every_module_is_in_the_tree():
    """Every folder, and the modules beside the folders and of ``science`` and ``jobs``; and nothing that is gone."""
    tree = next(text for _, text in BLOCKS if text.startswith("app/\n"))
    named = set(re.findall(r"(?<![\w.])[\w]+(?:\.py|/)", tree)) - {"app/"}
    places = [p for folder in ("", "science", "jobs") for p in (ROOT / "app" / folder).iterdir()]
    there = {p.name if p.suffix else f"{p.name}/" for p in places if not p.name.startswith("__")}
    assert named == there


def test_the_snippet_reads_an_encoder(tmp_path, monkeypatch):
    """A stranger's code and ours give the same features."""
    encoder = Encoder().eval()
    (tmp_path / "encoder.safetensors").write_bytes(dump_weights(encoder.plain_state(), {"stem": "stock"}))
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(next(text for language, text in BLOCKS if language == "python"), scope)
    with torch.no_grad():
        ours = encoder(scope["images"] / 127.5 - 1)
    torch.testing.assert_close(scope["features"].detach(), ours, rtol=1e-4, atol=1e-5)
