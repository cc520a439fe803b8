import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.neighbors import KNeighborsClassifier

from app.science.knn import knn_scores


def features(seed, count, size=6):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("neighbours", [1, 5, 30])
def test_scores_equal_scikit_learn(neighbours):
    bank, queries = features(0, 30), features(1, 12)
    labels = torch.arange(30) % 3
    scores = knn_scores(bank, labels, queries, n_classes=3, neighbours=neighbours, temperature=0.2)
    model = KNeighborsClassifier(
        neighbours, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.2)
    ).fit(bank.double().numpy(), labels.numpy())
    np.testing.assert_allclose(scores, model.predict_proba(queries.double().numpy()), atol=1e-5)


def test_scores_equal_brute_force():
    bank, queries = features(2, 9).double().numpy(), features(3, 4).double().numpy()
    labels = np.array([0, 1, 1, 0, 2, 2, 0, 1, 2])
    scores = knn_scores(
        torch.tensor(bank), torch.tensor(labels), torch.tensor(queries), n_classes=4, neighbours=4, temperature=0.07
    )
    for query, row in zip(queries, scores, strict=True):
        similarity = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-similarity)[:4]
        want = np.zeros(4)
        np.add.at(want, labels[nearest], softmax(similarity[nearest] / 0.07))
        np.testing.assert_allclose(row, want, atol=1e-5)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)
    assert scores.shape == (4, 4)
    assert scores.dtype == np.float64


def test_more_neighbours_than_images_are_all_images():
    bank, queries, labels = features(0, 5), features(1, 3), torch.tensor([0, 1, 0, 1, 1])
    few = knn_scores(bank, labels, queries, n_classes=2, neighbours=5, temperature=1.0)
    many = knn_scores(bank, labels, queries, n_classes=2, neighbours=200, temperature=1.0)
    np.testing.assert_array_equal(few, many)


def test_lengths_of_features_do_not_count():
    bank, queries, labels = features(0, 9), features(1, 3), torch.arange(9) % 2
    plain = knn_scores(bank, labels, queries, n_classes=2, neighbours=3, temperature=0.1)
    scaled = knn_scores(bank * torch.rand(9, 1) * 50, labels, queries * 7, n_classes=2, neighbours=3, temperature=0.1)
    np.testing.assert_allclose(plain, scaled, atol=1e-5)


def test_temperature_tells_the_nearest_from_an_even_vote():
    bank, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 1, 1])
    query = torch.tensor([[1.0, 0.1]])
    cold = knn_scores(bank, labels, query, n_classes=2, neighbours=3, temperature=1e-3)
    warm = knn_scores(bank, labels, query, n_classes=2, neighbours=3, temperature=1e3)
    np.testing.assert_allclose(cold, [[1, 0]], atol=1e-6)
    np.testing.assert_allclose(warm, [[1 / 3, 2 / 3]], atol=1e-3)


def test_multi_label_votes_are_per_label():
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    labels = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]])
    scores = knn_scores(bank, labels, torch.tensor([[2.0, 0.0]]), n_classes=3, neighbours=2, temperature=0.5)
    np.testing.assert_allclose(scores, [[1, 0.5, 0.5]], atol=1e-6)
