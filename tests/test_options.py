"""The bundle of options that make a run's settings."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from app.errors import UsageError
from app.options import Asked, one_of, takes_settings, with_home

ALL = {field.name for field in fields(Asked)}


def test_a_command_has_the_options_in_place_of_the_bundle():
    def command(first: int, *, asked: Asked) -> None: ...

    assert set(inspect.signature(takes_settings()(command)).parameters) == {"first", *ALL}
    assert set(inspect.signature(takes_settings("preset", "device")(command)).parameters) == {
        "first",
        "preset",
        "device",
    }


def test_what_is_given_reaches_the_command():
    app, got = typer.Typer(), []

    @app.command()
    @takes_settings()
    def command(name: Annotated[str, typer.Option("--name")] = "x", *, asked: Asked) -> None:
        got.append((name, asked))

    words = ["--name", "y", "--preset", "smoke", "--set", "a.b=1", "--set", "c.d=2\n e.f=3 ", "--threads", "2"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert got == [("y", Asked(preset="smoke", overrides=["a.b=1", "c.d=2\n e.f=3 "], threads=2))]
    assert got[0][1].lines == ["a.b=1", "c.d=2", "e.f=3"]
    assert CliRunner().invoke(app, []).exit_code == 0
    assert got[1] == ("x", Asked())


def test_settings_are_those_of_the_run_unless_a_preset_is_named():
    base = Asked(preset="demo").config().model_dump(mode="json")
    assert Asked(threads=3).config(base=base).preset == "demo"
    assert Asked(threads=3).config(base=base).runtime.threads == 3
    assert Asked(preset="smoke").config(base=base).preset == "smoke"
    assert Asked().config().preset == "recommended"
    assert Asked(overrides=["pretrain.epochs=3"]).config(["pretrain.epochs=4"]).pretrain.epochs == 4


def test_a_word_is_one_of_those_there_are():
    assert one_of("--part", "b", Literal["a", "b"]) == "b"
    with pytest.raises(UsageError, match="--part c: unknown; choose from a, b"):
        one_of("--part", "c", Literal["a", "b"])


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    assert [with_home(word) for word in ("~/a", "--store=~/a", "a~", "--set", "a.b=~/c")] == [
        "/home/x/a", "--store=/home/x/a", "a~", "--set", "a.b=~/c",
    ]  # fmt: skip
