"""Weights as others save them: the ResNet's among them, found by the names or the order of its tensors."""

from __future__ import annotations

import functools
import re

import torch
from torch import Tensor

from app.errors import InputError
from app.science.networks import ARCHITECTURES, Encoder
from app.settings import Stem

State = dict[str, Tensor]

# What wrappers put into names: torch.compile, FSDP, DeepSpeed.
WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_forward_module)\.")
# Networks that follow the one that is trained, as MoCo, BYOL, DINO and others name theirs.
FOLLOWERS = re.compile(
    r"(^|[._])(target|momentum|teacher|ema|encoder_k|key_encoder|backbone_k|k)(?=[._])|_m(?=\.)|_ema"
)
COUNTER = ".num_batches_tracked"


def find_resnet(state: State, architecture: str, stem: Stem, *, source: str) -> tuple[State, str | None]:
    """Find the weights of a plain torchvision ResNet in a state dict that holds them in some way.

    Their names may have a prefix (``module.``, ``backbone.``, ``state_dict.encoder_q.``), or be those of an
    ``nn.Sequential`` of the ResNet's parts; of a network and its moving average, the network is taken. What lies
    beside them (heads, an optimizer's moments) is left out.

    Args:
        state: what was saved.
        architecture: of the ResNet that they are for.
        stem: of the same.
        source: the file, for messages.

    Returns:
        The weights under the ResNet's own names, and what was found, in words; None where nothing was to be found.

    Raises:
        InputError: there is no such ResNet, or there are several.
    """
    own = _shapes(architecture, stem)
    bare = {WRAPPERS.sub("", key): value for key, value in state.items()}
    wrapped = len(bare) == len(state) and bare.keys() != state.keys()
    if not wrapped:
        bare = state
    named = _by_prefix(bare, own)
    if "" in named:
        beside = [key for key in bare if key not in named[""] and not key.startswith("fc.")]
        notes = ["names of a wrapper are left out of its names"] if wrapped else []
        notes += [f"{len(beside)} tensors beside the ResNet are left out ('{beside[0]}', …)"] if beside else []
        return named[""], "; ".join(notes) or None
    if len(named) > 1:
        leading = {prefix: found for prefix, found in named.items() if not FOLLOWERS.search(prefix)}
        named = leading or named
    if len(named) == 1:
        [(prefix, found)] = named.items()
        return found, f"its names begin with '{prefix}', which is left out"
    if named:
        raise InputError(
            f"{source}: holds several {architecture}, under {', '.join(repr(prefix) for prefix in sorted(named))}; "
            "save the state dict of one"
        )
    ordered = _by_order(bare, own)
    if ordered is not None:
        return ordered[0], f"its parts ('{ordered[1]}', …) are taken by their order"
    raise InputError(_difference(bare, own, architecture, stem, source))


def _by_prefix(state: State, own: State) -> dict[str, State]:
    """Return every prefix under which all tensors of ``own`` are there, in their shapes, and no more of a ResNet."""
    needed = [key for key in own if not key.endswith(COUNTER)]
    parts = {key.split(".")[0] for key in own}
    found = {}
    for prefix in [key.removesuffix(needed[0]) for key in state if key.endswith(needed[0])]:
        if not (prefix == "" or prefix.endswith(".")):
            continue
        here = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        ours = {key: value for key, value in here.items() if key.split(".")[0] in parts}
        fits = all(key in ours and ours[key].shape == own[key].shape for key in needed)
        if fits and ours.keys() <= own.keys():
            found[prefix] = ours
    return found


def _by_order(state: State, own: State) -> tuple[State, str] | None:
    """Match the parts of an ``nn.Sequential``, in their order, with the ResNet's: ``4.0.conv1.weight`` is layer1's.

    A part fits if its tensors have the names and shapes of its counterpart; those without tensors do not count.

    Returns:
        The weights under the ResNet's names, and the first name in the file; None if they do not fit.
    """
    wanted: dict[str, dict[str, Tensor]] = {}
    for key, value in own.items():
        part, _, rest = key.partition(".")
        wanted.setdefault(part, {})[rest] = value
    prefixes = dict.fromkeys(key[: found.start(1)] for key in state if (found := re.search(r"(?:^|\.)(\d+)\.", key)))
    for prefix in prefixes:
        parts: dict[int, dict[str, str]] = {}
        for key in state:
            if found := re.fullmatch(rf"{re.escape(prefix)}(\d+)\.(.+)", key):
                parts.setdefault(int(found[1]), {})[found[2]] = key
        matched: State = {}
        for (name, tensors), number in zip(wanted.items(), sorted(parts), strict=False):
            for rest, tensor in tensors.items():
                key = parts[number].get(rest, "")
                if key in state and state[key].shape == tensor.shape:
                    matched[f"{name}.{rest}"] = state[key]
        needed = {key for key in own if not key.endswith(COUNTER)}
        if needed <= matched.keys():
            return matched, parts[min(parts)][next(iter(parts[min(parts)]))]
    return None


def _difference(state: State, own: State, architecture: str, stem: Stem, source: str) -> str:
    """Say what differs first, as the file has it, and which network it is if it is one that can be asked for."""
    what = f"{source}: not a {architecture} with the {stem} stem"
    stems: tuple[Stem, ...] = ("stock", "cifar")  # the middle one has the tensors of the last
    for other in ARCHITECTURES:
        for other_stem in stems:
            if _by_prefix(state, _shapes(other, other_stem)):
                same = other_stem == stem or (other_stem == "cifar" and stem == "middle")
                advice = [f"--set network.architecture={other}"] if other != architecture else []
                advice += [f"--set network.stem={other_stem}"] if not same else []
                also = " (or middle)" if other_stem == "cifar" and not same else ""
                return f"{what}, but a {other} with the {other_stem}{also} stem; use {' '.join(advice)}{also}"
    wrong = [key for key in own if not key.endswith(COUNTER) and key not in state]
    if len(wrong) == len([key for key in own if not key.endswith(COUNTER)]):
        shown = ", ".join(f"'{key}'" for key in list(state)[:3])
        return f"{what}: its names are others ({shown}, {len(state)} in all); save a torchvision ResNet's state dict"
    unknown = [key for key in state if key not in own and key.split(".")[0] in {name.split(".")[0] for name in own}]
    shapes = [key for key in own if key in state and state[key].shape != own[key].shape]
    if shapes:
        key = shapes[0]
        first = f"'{key}' is {_size(state[key])}, where {_size(own[key])} is needed"
    else:
        first = f"'{wrong[0]}' is missing" if wrong else f"'{unknown[0]}' is unknown"
    count = len(wrong) + len(unknown) + len(shapes)
    return (
        f"{what} ({first}; {count} names differ); set network.architecture and network.stem to what the weights were "
        "trained with"
    )


def _size(value: Tensor) -> str:
    return "x".join(str(side) for side in value.shape) or "a number"


@functools.cache
def _shapes(architecture: str, stem: Stem) -> State:
    with torch.device("meta"):  # no memory, and no draws
        return Encoder(architecture, stem).plain_state()
