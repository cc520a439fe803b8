"""Splits of a set by patient, with the same shares of the classes in each, from a seed."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.data.datasets import SPLITS
from app.errors import InputError, UsageError

SPLIT_KEY = 0x73706C69  # keeps these draws apart from any other use of the same seed


def parse_shares(text: str) -> tuple[float, float, float]:
    """Return the shares of train, val and test, which sum to 1, from such as ``70/10/20``.

    Raises:
        UsageError: no three numbers above 0 that sum to 100, or to 1.
    """
    if not re.fullmatch(r"\d+(\.\d+)?(/\d+(\.\d+)?){2}", text):
        raise UsageError(f"--split {text}: write the per cent of train, val and test, such as 70/10/20")
    train, val, test = (float(part) for part in text.split("/"))
    total = train + val + test
    if min(train, val, test) <= 0 or not (abs(total - 100) < 1e-6 or abs(total - 1) < 1e-6):
        raise UsageError(f"--split {text}: has to be three numbers above 0 that sum to 100, such as 70/10/20")
    return train / total, val / total, test / total


def draw_splits(
    groups: Sequence[str], members: NDArray[np.bool_], shares: tuple[float, float, float], *, seed: int
) -> list[str]:
    """Put whole groups into splits so that each split gets its share of every class.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, algorithm 1), for groups instead of single images:
    the class that the fewest groups are left of goes first; each of its groups goes to the split that lacks it most,
    then to the one that lacks images most, then by lot. The last groups of a class go to splits that have none of it.

    Args:
        groups: of each image: its patient, or a name of its own.
        members: (N, C), whether an image is of a class; of several labels, or none.
        shares: of train, val and test.
        seed: names the draw.

    Returns:
        The split of each image.

    Raises:
        InputError: a split stays empty, or a class is missing in one.
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.zeros((len(names), members.shape[1] + 1))
    np.add.at(counts, group_of, np.column_stack([members, np.ones(len(members))]))
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(SPLIT_KEY,))))
    wanted = np.round(np.outer(shares, counts.sum(axis=0)), 9)
    place = np.full(len(names), -1)
    order = rng.permutation(len(names))
    order = order[np.argsort(-counts[order, -1], kind="stable")]  # large groups first: small ones fill the gaps
    while (left := order[place[order] < 0]).size:
        having = (counts[left, :-1] > 0).sum(axis=0)
        if having.any():
            rarest = int(np.argmin(np.where(having > 0, having, np.inf)))
            chosen = left[counts[left, rarest] > 0]
        else:
            rarest, chosen = -1, left  # groups without any label
        for number, group in enumerate(chosen):
            lots = rng.random(3)
            without = [split for split in range(3) if not counts[place == split, rarest].any()]
            splits = (
                without if len(chosen) - number <= len(without) else range(3)
            )  # the last ones, so that all have some
            to = max(splits, key=lambda split: (wanted[split, rarest], wanted[split, -1], lots[split]))
            place[group] = to
            wanted[to] = np.round(wanted[to] - counts[group], 9)  # so that ties are ties
    return [SPLITS[place[group]] for group in group_of]


def check_splits(splits: Sequence[str], members: NDArray[np.bool_], classes: Sequence[str]) -> None:
    """Check that every split has images, and of every class.

    Raises:
        InputError: one has not.
    """
    of_image = np.asarray(splits)
    for split in SPLITS:
        here = of_image == split
        if not here.any():
            raise InputError(f"no image is in {split}; every split needs some: use more patients, or other shares")
        if absent := [name for name, any_here in zip(classes, members[here].any(axis=0), strict=True) if not any_here]:
            raise InputError(
                f"no image of {', '.join(absent[:5])} is in {split}; every split needs every class: use more patients, "
                "other shares, or another --seed"
            )
