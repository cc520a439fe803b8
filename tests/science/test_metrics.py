import warnings

import numpy as np
import pytest
from medmnist.evaluator import Evaluator, getACC, getAUC
from scipy.special import softmax
from sklearn import metrics as sk

from app.science.metrics import (
    BINARY,
    METRICS,
    MULTI_CLASS,
    MULTI_LABEL,
    ORDINAL,
    auroc,
    confusion_matrix,
    decide,
    evaluate,
    per_class_auroc,
)
from app.stages.downstream import predictions_csv

TASKS = {BINARY: 2, MULTI_CLASS: 7, MULTI_LABEL: 14, ORDINAL: 5}
FLAGS = {BINARY: "pneumoniamnist", MULTI_CLASS: "dermamnist", MULTI_LABEL: "chestmnist", ORDINAL: "retinamnist"}


def random_predictions(task, seed=0, count=150):
    rng, classes = np.random.default_rng(seed), TASKS[task]
    if task == MULTI_LABEL:
        labels = rng.integers(0, 2, (count, classes))
        return labels, np.clip(0.3 * labels + rng.random((count, classes)) * 0.7, 0, 1)
    labels = rng.integers(0, classes, (count, 1))
    logits = rng.normal(size=(count, classes)) + 1.2 * (labels == np.arange(classes))
    return labels, softmax(logits, 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("task", TASKS)
def test_accuracy_and_auroc_equal_medmnists(task, seed):
    labels, scores = random_predictions(task, seed)
    found = evaluate(labels, scores, task)
    assert found["accuracy"] == pytest.approx(getACC(labels, scores, task), abs=1e-12)
    assert found["auroc"] == pytest.approx(getAUC(labels, scores, task), abs=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_medmnists_evaluator_reads_our_file_and_scores_it_the_same(task, tmp_path, monkeypatch, capsys):
    labels, scores = random_predictions(task, 5)
    flag = FLAGS[task]
    np.savez(tmp_path / f"{flag}.npz", test_labels=labels.astype(np.uint8))
    monkeypatch.setattr(Evaluator.__init__, "__defaults__", (None, str(tmp_path)))
    path = tmp_path / f"{flag}_test_ours@1.csv"
    path.write_bytes(predictions_csv(scores))
    theirs = Evaluator.parse_and_evaluate(str(path))
    found = evaluate(labels, scores, task)
    assert found["auroc"] == pytest.approx(theirs.AUC, abs=1e-14)
    assert found["accuracy"] == pytest.approx(theirs.ACC, abs=1e-14)


@pytest.mark.parametrize("task", [BINARY, MULTI_CLASS, ORDINAL])
def test_other_metrics_equal_scikit_learns(task):
    labels, scores = random_predictions(task, 7)
    truth, guess = labels[:, 0], decide(scores, task)[:, 0]
    found = evaluate(labels, scores, task)
    assert tuple(found) == METRICS
    assert found["precision"] == sk.precision_score(truth, guess, average="macro", zero_division=0)
    assert found["recall"] == sk.recall_score(truth, guess, average="macro")
    assert found["f1"] == sk.f1_score(truth, guess, average="macro")
    assert found["balanced_accuracy"] == sk.balanced_accuracy_score(truth, guess)
    assert confusion_matrix(labels, scores, task) == sk.confusion_matrix(truth, guess).tolist()
    assert all(type(value) is float for value in found.values())


def test_multi_label_metrics_equal_means_over_the_labels():
    labels, scores = random_predictions(MULTI_LABEL, 7)
    guess, found = scores > 0.5, evaluate(labels, scores, MULTI_LABEL)
    columns = range(labels.shape[1])

    def mean(score, **options):
        return np.mean([score(labels[:, c], guess[:, c], **options) for c in columns])

    assert found["accuracy"] == pytest.approx(mean(sk.accuracy_score))
    assert found["precision"] == pytest.approx(mean(sk.precision_score, zero_division=0))
    assert found["recall"] == pytest.approx(mean(sk.recall_score))
    assert found["f1"] == pytest.approx(mean(sk.f1_score))
    assert found["balanced_accuracy"] == pytest.approx(mean(sk.balanced_accuracy_score))
    assert confusion_matrix(labels, scores, MULTI_LABEL) is None


def test_multi_class_auroc_equals_scikit_learns_one_versus_rest():
    labels, scores = random_predictions(MULTI_CLASS, 9)
    assert auroc(labels, scores, MULTI_CLASS) == pytest.approx(
        sk.roc_auc_score(labels[:, 0], scores, multi_class="ovr", average="macro")
    )


def test_binary_by_hand():
    labels = np.array([[0], [0], [0], [1], [1]])
    positive = np.array([0.1, 0.6, 0.4, 0.9, 0.5])
    scores = np.stack([1 - positive, positive], 1)
    found = evaluate(labels, scores, BINARY)
    # predicted 0 1 0 1 0: a score of exactly 0.5 is a 0, as in MedMNIST's Evaluator
    assert decide(scores, BINARY)[:, 0].tolist() == [0, 1, 0, 1, 0]
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["precision"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["auroc"] == pytest.approx(5 / 6)
    assert confusion_matrix(labels, scores, BINARY) == [[2, 1], [1, 1]]


@pytest.mark.parametrize("task", TASKS)
def test_perfect_and_reversed_predictions(task):
    labels, _ = random_predictions(task, 1)
    perfect = labels.astype(float) if task == MULTI_LABEL else np.eye(TASKS[task])[labels[:, 0]]
    assert set(evaluate(labels, perfect, task).values()) == {1.0}
    assert evaluate(labels, 1 - perfect, task)["auroc"] == 0


@pytest.mark.parametrize("task", [MULTI_CLASS, MULTI_LABEL])
def test_an_absent_class_has_no_auroc_and_does_not_count_in_the_mean(task):
    labels, scores = random_predictions(task, 2)
    if task == MULTI_LABEL:
        labels[:, 3] = 0
    else:
        labels[labels == 3] = 4
    areas = per_class_auroc(labels, scores, task)
    assert [c for c, area in enumerate(areas) if np.isnan(area)] == [3]
    assert auroc(labels, scores, task) == pytest.approx(np.nanmean(areas))


def test_a_single_class_has_no_auroc_at_all_and_no_warning():
    scores = np.array([[0.7, 0.3], [0.2, 0.8]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(auroc(np.zeros((2, 1), dtype=int), scores, BINARY))
        assert all(np.isnan(area) for area in per_class_auroc(np.ones((2, 1), dtype=int), scores, BINARY))
        assert np.isnan(evaluate(np.array([[0], [0]]), scores, BINARY)["auroc"])


def test_a_label_that_every_image_has_has_no_auroc():
    labels = np.array([[1, 0], [1, 1], [1, 0]])
    areas = per_class_auroc(labels, np.array([[0.9, 0.1], [0.8, 0.9], [0.1, 0.2]]), MULTI_LABEL)
    assert np.isnan(areas[0])
    assert areas[1] == 1


def test_confusion_matrix_has_rows_of_truth_for_every_class_even_the_absent():
    scores = np.eye(4)[[0, 1, 1]]
    assert confusion_matrix(np.array([[0], [0], [1]]), scores, MULTI_CLASS) == [
        [1, 1, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]


def test_binary_has_one_auroc_and_the_others_one_per_class():
    for task, classes in TASKS.items():
        labels, scores = random_predictions(task)
        assert len(per_class_auroc(labels, scores, task)) == (1 if task == BINARY else classes)
