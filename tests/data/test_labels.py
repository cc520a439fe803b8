"""Labels as people save them: one-hot, counted from 1, as floats, with missing ones."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from app.data import few_shot_draw, load_dataset, stratified_subset
from app.data.datasets import MISSING
from app.errors import InputError
from app.report.curves import macro_roc
from app.science import metrics, statistics
from app.science.finetuning import task_loss
from app.science.knn import knn_scores

MULTI = metrics.MULTI_LABEL
RNG = np.random.default_rng(5)


def file(tmp_path, labels: dict[str, np.ndarray] | np.ndarray):
    """A set of 28 px images with these labels, in every split alike unless a dict says otherwise."""
    path = tmp_path / "own.npz"
    splits = labels if isinstance(labels, dict) else dict.fromkeys(("train", "val", "test"), labels)
    arrays = {f"{name}_images": np.zeros((len(values), 28, 28), np.uint8) for name, values in splits.items()}
    np.savez(path, **arrays, **{f"{name}_labels": values for name, values in splits.items()})
    return path


def load(tmp_path, labels, task=None):
    return load_dataset("own", path=file(tmp_path, labels), task=task)


GRADES = np.arange(20) % 5


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize("shape", [(), (20, 0), (20, 1, 1), (20, 2, 2)])
def test_labels_of_another_shape_are_refused(tmp_path, dtype, shape) -> None:
    labels = {"train": GRADES, "val": GRADES, "test": GRADES}
    arrays = {f"{name}_images": np.zeros((20, 28, 28), np.uint8) for name in labels}
    arrays |= {f"{name}_labels": values for name, values in labels.items()}
    wrong = np.full(shape, np.nan if dtype == np.float32 else 1, dtype)
    np.savez(tmp_path / "own.npz", **arrays | {"val_labels": wrong})
    with pytest.raises(InputError, match=r"val_labels has shape .*; save it as \(N,\) or \(N, L\)"):
        load_dataset("own", path=tmp_path / "own.npz")


class TestOneHot:
    @pytest.mark.parametrize("dtype", [np.uint8, bool, np.int64, np.float32])
    @pytest.mark.parametrize("task", [None, "multi-class", "ordinal"])
    def test_columns_of_which_one_is_set_are_classes(self, tmp_path, dtype, task) -> None:
        data = load(tmp_path, np.eye(5, dtype=dtype)[GRADES], task)
        assert data.task == ("ordinal-regression" if task == "ordinal" else "multi-class")
        assert np.array_equal(data.train.labels[:, 0], GRADES)
        assert any("one-hot" in note for note in data.notes)
        assert data.describe("downstream")["notes"] == list(data.notes)

    def test_two_columns_are_a_binary_task(self, tmp_path) -> None:
        data = load(tmp_path, np.eye(2, dtype=int)[GRADES % 2])
        assert (data.task, data.train.labels[:, 0].tolist()) == ("binary-class", (GRADES % 2).tolist())

    def test_the_advice_works(self, tmp_path) -> None:
        data = load(tmp_path, np.eye(5, dtype=int)[GRADES], "multi-label")
        assert (data.task, data.notes) == (MULTI, ())

    def test_one_image_with_two_labels_makes_them_independent(self, tmp_path) -> None:
        labels = np.eye(5, dtype=int)[GRADES]
        other = labels.copy()
        other[3, 0] = other[3, 1] = 1
        data = load(tmp_path, {"train": labels, "val": labels, "test": other})
        assert (data.task, data.notes) == (MULTI, ())


class TestNumbering:
    @pytest.mark.parametrize("first", [1, 2, 7])
    @pytest.mark.parametrize("task", [None, "multi-class", "ordinal"])
    def test_classes_that_begin_later_get_no_phantom_class(self, tmp_path, first, task) -> None:
        data = load(tmp_path, GRADES + first, task)
        assert data.n_classes == 5
        assert data.class_names == [f"class {first + i}" for i in range(5)]
        assert np.array_equal(data.train.labels[:, 0], GRADES)
        assert any(f"numbered from {first}" in note for note in data.notes)

    def test_one_and_two_are_binary(self, tmp_path) -> None:
        assert load(tmp_path, GRADES % 2 + 1).task == "binary-class"

    def test_a_split_without_the_first_class_shifts_nothing(self, tmp_path) -> None:
        data = load(tmp_path, {"train": GRADES, "val": GRADES[GRADES > 0], "test": GRADES[GRADES > 1]})
        assert data.notes == ()
        assert data.val.labels.min() == 1

    def test_a_class_without_images_is_said(self, tmp_path) -> None:
        data = load(tmp_path, np.where(GRADES == 2, 3, GRADES), "multi-class")
        assert any("no image is of class 2" in note for note in data.notes)

    @pytest.mark.parametrize("labels", [GRADES * 3, np.where(GRADES == 2, 3, GRADES)])
    def test_what_cannot_be_told_is_asked(self, tmp_path, labels) -> None:
        with pytest.raises(InputError, match="cannot be told"):
            load(tmp_path, labels)


class TestNumbers:
    def test_whole_floats_are_whole_numbers(self, tmp_path) -> None:
        assert np.array_equal(load(tmp_path, GRADES.astype(np.float32)).train.labels[:, 0], GRADES)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (GRADES + 0.5, "fractions"),
            (np.where(GRADES == 2, np.inf, GRADES), "fractions"),
            (np.where(GRADES == 2, np.nan, GRADES), r"holds NaN: the labels of 4 images are missing; leave these out"),
            (GRADES - 1, r"holds -1; labels count from 0: write NaN for a missing label"),
            (GRADES.astype(np.float64) * 1e12, "number the classes"),
            (np.array(["benign", "malignant"] * 10), "save the labels as whole numbers"),
        ],
    )
    def test_others_are_refused_with_what_to_do(self, tmp_path, labels, message) -> None:
        with pytest.raises(InputError, match=message):
            load(tmp_path, labels)

    def test_uncertain_beside_missing_is_refused(self, tmp_path) -> None:
        labels = RNG.integers(0, 2, (20, 3)).astype(float)
        labels[0, 0], labels[1, 1] = np.nan, -1
        with pytest.raises(InputError, match="decide what an uncertain one counts as"):
            load(tmp_path, labels, "multi-label")


class TestMissing:
    @pytest.fixture
    def labels(self) -> np.ndarray:
        labels = RNG.integers(0, 2, (40, 4)).astype(float)
        labels[RNG.random(labels.shape) < 0.3] = np.nan
        labels[:, 3] = np.nan
        return labels

    @pytest.mark.parametrize("task", [None, "multi-label"])
    def test_nan_is_missing_never_a_number(self, tmp_path, labels, task) -> None:
        data = load(tmp_path, labels, task)
        assert data.task == MULTI
        assert np.array_equal(data.train.labels == MISSING, np.isnan(labels))
        assert data.class_counts("train") == np.nansum(labels, axis=0).astype(int).tolist()
        count = int(np.isnan(labels).sum())
        assert f"{3 * count} of {3 * labels.size} labels are missing" in data.notes[0]
        json.dumps(data.describe("downstream"))

    def test_the_loss_is_that_of_the_known(self, labels) -> None:
        logits = torch.randn(40, 4, requires_grad=True)
        whole = torch.from_numpy(np.where(np.isnan(labels), MISSING, labels).astype(np.int64))
        loss = task_loss(logits, whole, MULTI)
        known = ~np.isnan(labels)
        expected = torch.nn.functional.binary_cross_entropy_with_logits(
            logits[torch.from_numpy(known)], torch.from_numpy(labels[known]).float()
        )
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        loss.backward()
        assert (logits.grad[torch.from_numpy(~known)] == 0).all()
        nothing = task_loss(logits, torch.full((40, 4), MISSING), MULTI)
        assert nothing.item() == 0

    def test_scores_are_those_of_the_known(self, labels) -> None:
        whole = np.where(np.isnan(labels), MISSING, labels).astype(np.int64)
        scores = RNG.random((40, 4))
        found = metrics.evaluate(whole, scores, MULTI)
        areas, recalls = [], []
        for c in range(3):
            known = ~np.isnan(labels[:, c])
            areas.append(sk.roc_auc_score(labels[known, c], scores[known, c]))
            recalls.append(sk.recall_score(labels[known, c], scores[known, c] > 0.5))
        assert found["auroc"] == pytest.approx(np.mean(areas))
        assert found["recall"] == pytest.approx(np.mean(recalls))
        right = (scores > 0.5) == (labels == 1)
        assert found["accuracy"] == pytest.approx(right[~np.isnan(labels)].mean())
        assert math.isnan(metrics.per_class_auroc(whole, scores, MULTI)[3])
        assert statistics.auroc_components(whole, scores)[0] == pytest.approx(np.mean(areas))
        assert macro_roc(whole, scores, MULTI) is not None

    def test_without_missing_ones_the_scores_are_as_before(self) -> None:
        whole, scores = RNG.integers(0, 2, (60, 3)), RNG.random((60, 3))
        by_hand = metrics._evaluate_known(whole, scores, metrics.decide(scores, MULTI))
        assert metrics.evaluate(whole, scores, MULTI) == pytest.approx(by_hand)

    def test_who_lacks_a_label_does_not_vote(self) -> None:
        bank, queries = torch.eye(3), torch.ones(1, 3)
        labels = torch.tensor([[1, 0], [MISSING, 1], [0, MISSING]])
        scores = knn_scores(bank, labels, queries, n_classes=2, neighbours=3, temperature=1.0)
        assert scores[0] == pytest.approx([0.5, 0.5])

    def test_draws_and_subsets_count_what_is_there(self, labels) -> None:
        whole = np.where(np.isnan(labels), MISSING, labels).astype(np.int64)[:, :3]
        drawn = few_shot_draw(whole, 2, 0, 0, class_names=["a", "b", "c"], dataset="own")
        assert all((whole[drawn, c] == 1).sum() >= 2 for c in range(3))
        subset = stratified_subset(whole, 5, seed=0)
        assert all((whole[subset, c] == 1).any() for c in range(3))
