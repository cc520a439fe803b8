"""Configuration: typed, frozen, strict; presets in YAML; ``--set a.b=c`` overrides.

No field has a default here: ``presets/recommended.yaml`` is complete, and every other preset says in
``extends`` what it starts from.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import UsageError

Method = Literal["byol", "byol_plus"]
METHODS: tuple[Method, ...] = get_args(Method)
Baseline = Literal["random", "imagenet"]
ProtocolName = Literal["finetune", "linear_probe", "few_shot", "few_shot_frozen"]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Range = tuple[NotNegative, NotNegative]


class Section(BaseModel):
    """A part of the configuration: immutable, without unknown keys or silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Section:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], float) and value[0] > value[1]:
                raise ValueError(f"{name}: the first value must not exceed the second")
        return self


class Study(Section):
    """What is compared with what."""

    methods: tuple[Method, ...]
    baselines: tuple[Baseline, ...]
    datasets: tuple[str, ...]
    protocols: tuple[ProtocolName, ...]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _no_repeats(self) -> Study:
        for name in type(self).model_fields:
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name}: names something twice")
        return self


class Data(Section):
    """Which images, and how many of them."""

    pretrain: str
    pretrain_split: Literal["all", "train"]
    size: Literal[28, 64, 128, 224]
    subset: Count | None
    monitor: str | None
    phantoms: Literal["never", "if_missing", "always"]


class Network(Section):
    """The encoder and the heads."""

    architecture: str
    stem: Literal["stock", "middle", "cifar"]
    init: str
    projector_hidden: Count
    predictor_hidden: Count
    projection: Count


class Pretrain(Section):
    """The pretraining recipe."""

    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    accumulate: Count
    optimizer: Literal["adam", "adamw", "sgd", "lars"]
    learning_rate: Positive
    weight_decay: NotNegative
    warmup_epochs: NotNegative
    cosine: bool
    ema_momentum: Probability
    ema_cosine: bool
    precision: Literal["auto", "float32", "bfloat16"]
    monitor_every: Count
    knn_neighbours: Count
    knn_temperature: Positive
    collapse_below: NotNegative


class Views(Section):
    """The augmentations both methods share; see ``augment.Augmentation``."""

    crop_scale: tuple[Probability, Probability]
    crop_ratio: tuple[Positive, Positive]
    flip: Probability
    jitter: Probability
    jitter_brightness: NotNegative
    jitter_contrast: NotNegative
    jitter_saturation: NotNegative
    jitter_hue: Annotated[float, Field(ge=0, le=0.5)]
    grayscale: Probability
    blur: Probability
    blur_sigma: Range
    blur_radius: Annotated[int, Field(ge=1, le=13)]


class ViewsPlus(Section):
    """What BYOL+ adds."""

    contrast: Probability
    contrast_range: Range
    brightness: Probability
    brightness_range: Range
    cutout: Probability
    cutout_side: tuple[Probability, Probability]


class Protocol(Section):
    """The recipe of one downstream protocol."""

    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    optimizer: Literal["adam", "adamw", "sgd"]
    learning_rate: Positive
    weight_decay: NotNegative
    cosine: bool
    standardise: bool


class FewShot(Protocol):
    """A protocol that sees ``k`` images per class, in ``draws`` independent draws."""

    k: Count
    draws: Count


class Protocols(Section):
    """The recipes of all protocols."""

    finetune: Protocol
    linear_probe: Protocol
    few_shot: FewShot
    few_shot_frozen: FewShot


class Runtime(Section):
    """How jobs run; never changes what they compute beyond rounding, so it is recorded but not compared."""

    device: Literal["auto", "cpu", "cuda"]
    threads: Count | None
    processes: Count | None
    compile: Literal["auto", "always", "never"]
    checkpoint_minutes: Positive
    checkpoint_steps: Count | None
    keep: Count
    patience_minutes: Positive
    grace_seconds: Positive
    claim_seconds: Positive
    claim_wait_minutes: NotNegative


class Config(Section):
    """Everything a run needs to know."""

    preset: str
    study: Study
    data: Data
    network: Network
    pretrain: Pretrain
    views: Views
    views_plus: ViewsPlus
    protocols: Protocols
    runtime: Runtime
    sources: dict[str, str]
    data_root: str | None
    imagenet_weights: str | None

    def science(self) -> dict[str, Any]:
        """Return the fields that decide the results; two runs with equal ones are the same experiment."""
        return self.model_dump(mode="json", exclude={"preset", "runtime", "sources", "data_root", "imagenet_weights"})


def default_runtime() -> dict[str, Any]:
    """Return the runtime settings of the recommended preset, as plain values."""
    runtime: dict[str, Any] = _load_preset("recommended")["runtime"]
    return runtime


def presets() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("app") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(
    preset: str,
    overrides: Iterable[str] = (),
    *,
    base: Mapping[str, Any] | None = None,
    sources: Iterable[str] = (),
    data_root: str | None = None,
    imagenet_weights: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> Config:
    """Build the configuration of a run.

    Args:
        preset: name of a preset, or path of a YAML file (``.yaml``).
        overrides: ``section.key=value`` each, the value in YAML.
        base: a configuration as plain values to start from, instead of the preset.
        sources: ``name=URI[:task]`` each: where own data lies.
        data_root: folder to look for data sets in first.
        imagenet_weights: file of an ImageNet state dict, instead of a download.
        device: overrides ``runtime.device``.
        threads: overrides ``runtime.threads``.

    Raises:
        UsageError: unknown preset or key (the nearest known one is named), or a value out of range.
    """
    if base is None:
        places = {"data_root": None, "imagenet_weights": None}
        tree = places | _load_preset(preset) | {"preset": Path(preset).stem}
    else:
        tree = copy.deepcopy(dict(base))
    tree["data_root"] = data_root or tree["data_root"]
    tree["imagenet_weights"] = imagenet_weights or tree["imagenet_weights"]
    own = tree.get("sources") or {}
    if not isinstance(own, dict):
        raise UsageError(f"preset {preset}: sources: write a mapping of names to URIs, not {own!r}")
    tree["sources"] = dict(own)
    for source in sources:
        name, separator, uri = source.partition("=")
        if not separator or not uri or not re.fullmatch(r"[a-z0-9_]+", name):
            raise UsageError(f"--data {source}: write name=URI or name=URI:task, the name in a-z, 0-9 and _")
        tree["sources"][name] = uri
    for override in overrides:
        _apply(tree, override)
    if device is not None:
        _apply(tree, f"runtime.device={device}")
    if threads is not None:
        _apply(tree, f"runtime.threads={threads}")
    return parse_config(tree, where=f"preset {tree['preset']}")


def parse_config(tree: Mapping[str, Any], *, where: str) -> Config:
    """Validate a configuration tree of plain values.

    Raises:
        UsageError: one line that names the key, what is wrong with it, and where it was read.
    """
    try:
        # YAML knows dates, JSON does not: as text they meet the same checks as everything else.
        return Config.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise UsageError(f"{where}: {_explain(error)}") from error


def identity(value: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of ``value``, 64 hex digits: equal values, equal identity."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def difference(old: Any, new: Any, path: str = "") -> list[str]:
    """List what differs between two trees of plain values, as ``path: old -> new``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in difference(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{path}: {json.dumps(old)} -> {json.dumps(new)}"]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats (``1e-3``), which PyYAML reads as strings, and no duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"), list("-+.0123456789")
)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error


def _load_preset(preset: str, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    if preset in extended_by:
        raise UsageError(f"--preset {extended_by[0]}: {' extends '.join([*extended_by, preset])}, a circle")
    if preset.endswith(".yaml"):
        try:
            text = Path(preset).read_text()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not text"
            raise UsageError(
                f"--preset {preset}: cannot read it ({why}); give a preset's name or a YAML file"
            ) from error
    elif preset in presets():
        text = (resources.files("app") / "presets" / f"{preset}.yaml").read_text()
    else:
        raise UsageError(f"--preset {preset}: unknown{_nearest(preset, presets())}; there are {', '.join(presets())}")
    tree = _parse_yaml(text, f"preset {preset}")
    if not isinstance(tree, dict):
        raise UsageError(f"preset {preset}: not a mapping of sections; see app/presets/recommended.yaml")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UsageError(f"preset {preset}: extends: give one preset's name or YAML file, not {base!r}")
    if base.endswith(".yaml"):  # beside the file that names it
        base = str(Path(preset).parent / base)
    return _merge(_load_preset(base, (*extended_by, preset)), tree)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator:
        raise UsageError(f"--set {override}: write section.key=value")
    *sections, last = key.split(".")
    node = tree
    for depth, name in enumerate([*sections, last]):
        if name not in node:
            raise UsageError(f"--set {override}: unknown key {name!r}{_nearest(name, node)}")
        if depth < len(sections) and not isinstance(node[name], dict):
            raise UsageError(f"--set {override}: {name!r} is a value, there is nothing below it")
        if depth < len(sections):
            node = node[name]
    node[last] = _parse_yaml(value, f"--set {override}")


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    dotted = ".".join(path)
    if first["type"] == "extra_forbidden":
        section: Any = Config
        for part in path[:-1]:
            section = section.model_fields[part].annotation
        return f"unknown key {dotted}{_nearest(path[-1], section.model_fields)}"
    if first["type"] == "missing":
        return f"{dotted} is missing; see app/presets/recommended.yaml"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict) else f", not {first['input']!r}"
    return f"{dotted}: {message[0].lower()}{message[1:]}{given}"
