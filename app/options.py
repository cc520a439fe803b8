"""Options that commands share: those that make a run's settings are one bundle."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from app import __version__
from app.errors import UsageError
from app.machine import expand_home
from app.quantities import threads

if TYPE_CHECKING:
    from app.settings import Config

StoreUri = Annotated[str, typer.Option("--store", help="Where data and runs are: a folder, or s3://bucket/prefix.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Names every random draw.")]


def print_version(asked: bool) -> None:
    """Print the version and exit."""
    if asked:
        print(f"byol-med {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="smoke, demo, recommended, paper-text, paper-code, cifar10-byol, or a YAML file. "
        "[default: the run's, or recommended]",
    ),
]
Parameters = Annotated[str | None, typer.Option("--parameters", help="Parameters of the workflow to check, as JSON.")]
Limits = Annotated[Path | None, typer.Option("--limits", help="Folder with the cluster's locks, to check them by.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value; may be repeated, or hold several lines.")
]
Sources = Annotated[list[str] | None, typer.Option("--data", help="Own data, name=URI[:task]; may be repeated.")]
Unlabelled = Annotated[
    str | None, typer.Option("--unlabelled", help="Own images to pretrain on: a folder, or an .npz.")
]
Labelled = Annotated[
    list[str] | None, typer.Option("--labelled", help="Own labelled set, FILE.npz[:task]; may be repeated.")
]
OwnSize = Annotated[int | None, typer.Option("--size", help="28, 32, 64, 128 or 224 pixels. [default: preset's]")]
DataRoot = Annotated[str | None, typer.Option("--data-root", help="Folder to look for data sets in first.")]
Weights = Annotated[str | None, typer.Option("--imagenet-weights", help="File of ImageNet weights, not a download.")]
Size = Annotated[int, typer.Option("--size", help="28, 32, 64, 128 or 224 pixels.")]
Fitting = Annotated[str, typer.Option("--fit", help="Images that are not square: pad with black, or crop the centre.")]
Frame = Annotated[
    int | None, typer.Option("--frame", min=1, help="Of files with several frames, read this; 1 is first.")
]
MaxUnreadable = Annotated[
    float, typer.Option("--max-unreadable", min=0, max=100, help="Per cent of the images that may be unreadable.")
]
Anonymise = Annotated[bool, typer.Option("--anonymise", help="Hash the names of files, number patients.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps; only auto falls back.")]
Threads = Annotated[
    int | None, typer.Option("--threads", parser=threads, metavar="CPUS", help="CPU threads. [default: all cores]")
]
Tensorboard = Annotated[
    str | None, typer.Option("--tensorboard", metavar="DIR", help="Write curves and metrics there for TensorBoard.")
]


@dataclass(frozen=True)
class Asked:
    """What a command line says of the settings; see the options."""

    preset: Preset = None
    overrides: Overrides = None
    sources: Sources = None
    unlabelled: Unlabelled = None
    labelled: Labelled = None
    size: OwnSize = None
    data_root: DataRoot = None
    weights: Weights = None
    device: Device = None
    threads: Threads = None
    tensorboard: Tensorboard = None

    @property
    def lines(self) -> list[str]:
        """Single overrides: a workflow has one parameter for all of them, a line each."""
        return [line.strip() for text in self.overrides or [] for line in text.splitlines() if line.strip()]

    def own(self, *, planned: bool = False) -> tuple[list[str], list[str]]:
        """Return what ``--unlabelled``, ``--labelled`` and ``--size`` say in the words of ``--data`` and of ``--set``.

        The monitor reads the first labelled set, since it is what the encoder is for; that of a run that is planned
        stays, since its encoders know it.
        """
        sources: dict[str, str] = {}
        pretrain = _named(self.unlabelled, sources) if self.unlabelled else None
        labelled = [_named(source, sources) for source in self.labelled or []]
        lines = [f"data.pretrain={pretrain}"] if pretrain else []
        lines += [f"study.datasets=[{','.join(labelled)}]"] if labelled else []
        lines += [f"data.monitor={labelled[0]}"] if labelled and not planned else []
        lines += [f"data.size={self.size}"] if self.size is not None else []
        return [f"{name}={source}" for name, source in sources.items()], lines

    def config(self, more: Sequence[str] = (), *, base: Mapping[str, Any] | None = None) -> Config:
        """Build the settings: from ``base``, those of a run that is planned, unless a preset is named.

        Args:
            more: overrides beside those of the command line, and after them.
            base: settings as plain values.
        """
        from app.config import load_config

        base = None if self.preset else base
        own_sources, own_lines = self.own(planned=base is not None)
        return load_config(
            self.preset or "recommended",
            [*own_lines, *self.lines, *more, *self._tensorboard()],
            base=base,
            sources=[*own_sources, *(self.sources or [])],
            data_root=self.data_root,
            imagenet_weights=self.weights or None,
            device=self.device,
            threads=self.threads,
        )

    def _tensorboard(self) -> list[str]:
        """Return the override of ``--tensorboard``; a path is text, whatever YAML would take it for."""
        return [] if self.tensorboard is None else [f"runtime.tensorboard={json.dumps(self.tensorboard)}"]

    def pretraining_source(self) -> list[str]:
        """Return the override that pretrains on a single own source, unless ``data.pretrain`` names something."""
        if self.sources is None or len(self.sources) != 1 or self.unlabelled:
            return []
        if any(line.startswith("data.pretrain=") for line in self.lines):
            return []
        chosen = Asked(preset=self.preset).config()
        if chosen.data.pretrain in chosen.sources:  # the preset's own word
            return []
        return [f"data.pretrain={self.sources[0].split('=')[0]}"]


def takes_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command have, in place of its parameter ``asked``, the options of ``Asked``, or those of some ``names``."""
    hints = get_type_hints(Asked, include_extras=True)
    chosen = names or tuple(field.name for field in fields(Asked))

    def expand(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = [
            parameter
            for own in signature.parameters.values()
            for parameter in (
                [own.replace(name=name, default=None, annotation=hints[name]) for name in chosen]
                if own.name == "asked"
                else [own]
            )
        ]

        @functools.wraps(command)
        def expanded(**given: Any) -> None:
            command(asked=Asked(**{name: given.pop(name) for name in chosen}), **given)

        vars(expanded)["__signature__"] = signature.replace(parameters=parameters)
        expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return expanded

    return expand


def _named(source: str, taken: dict[str, str]) -> str:
    """Name a source by its file or folder, in letters that a data set's name may have; ``taken`` gets it, too."""
    stem = PurePath(re.sub(r":[a-z-]+$", "", source)).stem or "own"
    name = stem = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_") or "own"
    number = 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken[name] = source
    return name


def example(text: str) -> str:
    """Format an example for the end of a command's help."""
    return f"Example: python -m app {text}"


def with_home(word: str) -> str:
    """Put the home folder in place of ``~``, also in ``--store=~/runs``, which shells and YAML leave as it is."""
    option, equals, value = word.partition("=")
    if option.startswith("--") and equals:
        return f"{option}={expand_home(value)}"
    return expand_home(word)


def one_of(option: str, value: str, choices: Any) -> Any:
    """Return ``value``, which has to be one of the words of a literal type.

    Raises:
        UsageError: it is none.
    """
    if value not in get_args(choices):
        raise UsageError(f"{option} {value}: unknown; choose from {', '.join(get_args(choices))}")
    return value
