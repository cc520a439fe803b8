"""The README keeps its word: every command in it parses, every target exists, its code runs on a real encoder."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from app import cli
from app.checkpoint import dump_weights
from app.config import presets
from app.networks import Encoder

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.S | re.M)


def commands() -> list[str]:
    shell = "".join(text for language, text in BLOCKS if language in ("", "bash", "sh")).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in shell.splitlines() if line.startswith("python -m app ")]


def test_there_are_commands_to_check():
    assert {line.split()[3] for line in commands()} >= {
        "run",
        "plan",
        "pretrain",
        "downstream",
        "report",
        "views",
        "ls",
    }


@pytest.mark.parametrize("line", commands())
def test_command_parses(line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["app", *shlex.split(line)[3:], "--help"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0, capsys.readouterr().err
    assert "Example:" in capsys.readouterr().out


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]+)", TEXT, re.M))
    assert {"demo", "test", "smoke"} <= named
    missing = [name for name in named if not re.search(rf"^{name}:", makefile, re.M)]
    assert not missing


def test_every_preset_is_in_the_table():
    assert [name for name in presets() if f"| `{name}` |" not in TEXT] == []


def test_every_module_is_in_the_tree():
    tree = next(text for _, text in BLOCKS if text.startswith("app/\n"))
    modules = [p.stem if p.suffix else f"{p.name}/" for p in (ROOT / "app").iterdir() if not p.name.startswith("__")]
    assert [name for name in modules if not re.search(rf"\b{re.escape(name)}", tree)] == []


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
