"""From presets in YAML, ``--set a.b=c`` and ``--data`` to settings, and what makes two of them the same.

``presets/recommended.yaml`` is complete, and every other preset says in ``extends`` what it starts from.
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
from typing import Any

import yaml
from pydantic import ValidationError

from app.errors import UsageError
from app.machine import as_text
from app.settings import Config, Network, Search, Section


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the settings of a run that is older than some: by the recommended ones where they decide no result.

    Label curves are younger than runs without one.
    """
    recommended, protocols = _load_preset("recommended"), settings.get("protocols")
    whole = dict(settings)
    for name in ("runtime", "reading"):
        if isinstance(mine := settings.get(name, {}), dict):  # else it is refused where it is validated
            whole[name] = recommended[name] | mine
    if isinstance(protocols, Mapping):
        few = {
            name: {"curve": None} | recipe
            for name, recipe in protocols.items()
            if isinstance(recipe, dict) and "k" in recipe
        }
        whole["protocols"] = {**protocols, **few}
    return whole


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
        preset: name of a preset, or path of a YAML file (``.yaml``, ``.yml``, or with a slash).
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
        tree.pop("search", None)  # `tune` reads it; to all others the preset is what the search begins with
    else:
        tree = copy.deepcopy(dict(base))
    tree["data_root"] = as_text(data_root) if data_root else tree.get("data_root")
    tree["imagenet_weights"] = as_text(imagenet_weights) if imagenet_weights else tree.get("imagenet_weights")
    own = tree.get("sources") or {}
    if not isinstance(own, dict):
        raise UsageError(f"preset {preset}: sources: write a mapping of names to URIs, not {own!r}")
    tree["sources"] = dict(own)
    for source in sources:
        name, separator, uri = source.partition("=")
        if not separator or not uri or not re.fullmatch(r"[a-z0-9_]+", name):
            raise UsageError(f"--data {source}: write name=URI or name=URI:task, the name in a-z, 0-9 and _")
        tree["sources"][name] = as_text(uri)
    for override in overrides:
        _apply(tree, override)
    if device is not None:
        _apply(tree, f"runtime.device={device}")
    if threads is not None:
        _apply(tree, f"runtime.threads={threads}")
    return parse_config(tree, where=f"preset {tree.get('preset', preset)}")


def load_search(preset: str) -> Search:
    """Read what ``tune`` tries: the section ``search`` of a preset.

    Raises:
        UsageError: there is none, or a key or value is wrong.
    """
    found = _load_preset(preset).get("search")
    if not isinstance(found, dict):
        raise UsageError(f"--preset {preset}: has no section search; give a file that has, see studies/tune-28.yaml")
    try:
        return Search.model_validate_json(_as_json(found, f"preset {preset}: search"))
    except ValidationError as error:
        raise UsageError(f"preset {preset}: search: {_explain(error, Search)}") from error


def parse_config(tree: Mapping[str, Any], *, where: str) -> Config:
    """Validate a configuration tree of plain values.

    Raises:
        UsageError: one line that names the key, what is wrong with it, and where it was read.
    """
    try:
        return Config.model_validate_json(_as_json(tree, where))
    except ValidationError as error:
        raise UsageError(f"{where}: {_explain(error, Config)}") from error


def _as_json(tree: Mapping[str, Any], where: str) -> str:
    try:
        # YAML knows dates, JSON does not: as text they meet the same checks as everything else.
        return json.dumps(tree, default=str)
    except (TypeError, ValueError, RecursionError) as error:  # a key that is no text, or what holds itself
        raise UsageError(
            f"{where}: settings are names with plain values, and do not hold themselves ({error})"
        ) from error


def check_imagenet(network: Network) -> None:
    """See that a network can start from ImageNet's weights.

    Raises:
        UsageError: they fit another stem.
    """
    if not network.takes_imagenet:
        raise UsageError(
            f"network.stem={network.stem}: ImageNet weights need the stock stem; use --set network.stem=stock, "
            "or leave imagenet out of study.baselines and network.init"
        )


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
    # As JSON, which has no tuples: what a record holds has been through it.
    before, after = json.dumps(old), json.dumps(new)
    return [] if old == new or before == after else [f"{path}: {before} -> {after}"]


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
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{where}: not valid YAML ({' '.join(str(error).split())}); mend it there") from error


def _is_file(preset: str) -> bool:
    return preset.endswith((".yaml", ".yml")) or "/" in preset


def extended(preset: str) -> str | None:
    """Return the preset that a preset starts from: a name, or a file's path; None if it starts from none.

    Raises:
        UsageError: there is no such preset, or it cannot be read.
    """
    return _read_preset(preset)[1]


def _read_preset(preset: str) -> tuple[dict[str, Any], str | None]:
    """Return a preset's own words, and what it extends."""
    if _is_file(preset):
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
    if base is not None and not isinstance(base, str):
        raise UsageError(f"preset {preset}: extends: give one preset's name or YAML file, not {base!r}")
    if base is not None and _is_file(base):  # beside the file that names it
        base = str(Path(preset).parent / base)
    return tree, base


def _load_preset(preset: str, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    if preset in extended_by:
        raise UsageError(f"--preset {extended_by[0]}: {' extends '.join([*extended_by, preset])}, a circle")
    tree, base = _read_preset(preset)
    if base is None:
        return tree
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


def _explain(error: ValidationError, root: type[Section]) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    dotted = ".".join(path)
    if first["type"] == "extra_forbidden":
        section: Any = root
        for part in path[:-1]:
            section = section.model_fields[part].annotation
        return f"unknown key {dotted}{_nearest(path[-1], section.model_fields)}"
    if first["type"] == "missing":
        example = "app/presets/recommended.yaml" if root is Config else "studies/tune-28.yaml"
        return f"{dotted} is missing; see {example}"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict) else f", not {first['input']!r}"
    return f"{dotted}: {message[0].lower()}{message[1:]}{given}"
