import numpy as np
import pytest

from app.data import draw_overlap, few_shot_draw, stratified_subset, uniform_subset
from app.data.subsets import shares
from app.errors import UsageError

NAMES = ["rare", "common", "usual"]
LABELS = np.repeat([0, 1, 2], [12, 500, 88])[:, None].astype(np.int64)


def draw(k=5, seed=0, number=0, labels=LABELS, names=NAMES):
    return few_shot_draw(labels, k, seed, number, class_names=names, dataset="dermamnist")


class TestFewShot:
    def test_k_of_each_class_sorted_without_repetition(self):
        chosen = draw(k=12)
        assert chosen.dtype == np.int64
        assert np.bincount(LABELS[chosen, 0]).tolist() == [12, 12, 12]
        assert (np.diff(chosen) > 0).all()

    def test_same_seed_and_draw_give_the_same_indices(self):
        assert np.array_equal(draw(seed=3, number=2), draw(seed=3, number=2))

    def test_seeds_and_draws_differ(self):
        made = {draw(seed=s, number=d).tobytes() for s in range(5) for d in range(5)}
        assert len(made) == 25

    def test_known_values(self):
        # A change here would silently change every published few-shot result.
        assert draw(k=2).tolist() == [9, 11, 154, 302, 545, 588]

    def test_draws_are_uniform_over_the_members_of_a_class(self):
        counts = np.zeros(len(LABELS))
        for number in range(2000):
            counts[draw(k=3, number=number)] += 1
        # 2000 draws of 3 of 12: mean 500, standard deviation 19 per member
        assert counts[:12].min() > 420
        assert counts[:12].max() < 580
        assert counts[:12].sum() == 6000

    def test_batch_of_a_large_class_are_independent(self):
        # Jaccard of two independent 20-subsets of 500 is about 0.02.
        labels = np.zeros((500, 1), np.int64)
        draws = [draw(k=20, number=number, labels=labels, names=["only"]) for number in range(40)]
        assert 0.01 < draw_overlap(draws) < 0.03

    def test_multi_label_is_the_union_of_k_positives_per_label(self):
        labels = np.zeros((30, 3), np.int64)
        labels[:10, 0] = 1
        labels[5:20, 1] = 1
        labels[25:, 2] = 1
        chosen = draw(k=4, labels=labels)
        assert (labels[chosen].sum(axis=0) >= 4).all()
        assert len(chosen) <= 12
        assert (labels[chosen].sum(axis=1) > 0).all()
        assert (np.diff(chosen) > 0).all()

    def test_k_larger_than_a_class(self):
        with pytest.raises(UsageError) as caught:
            draw(k=20)
        assert str(caught.value) == (
            "k=20 is larger than class 0 'rare' of dermamnist, which has 12 training images; "
            "use --set protocols.few_shot.k=12 or less"
        )

    def test_class_without_images(self):
        with pytest.raises(UsageError, match="class 3 'none' of dermamnist has no training images"):
            draw(names=[*NAMES, "none"])

    @pytest.mark.parametrize("k", [0, -3])
    def test_k_below_one(self, k):
        with pytest.raises(UsageError, match=f"k={k} is not a number of images"):
            draw(k=k)


class TestOverlap:
    def test_hand_computed(self):
        a, b, c = np.array([1, 2, 3]), np.array([2, 3, 4]), np.array([7, 8, 9])
        assert draw_overlap([a, b]) == pytest.approx(0.5)
        assert draw_overlap([a, b, c]) == pytest.approx(0.5 / 3)
        assert draw_overlap([a, a]) == 1.0

    @pytest.mark.parametrize("draws", [[], [np.array([1, 2])]])
    def test_needs_two(self, draws):
        assert draw_overlap(draws) is None


class TestSubsets:
    def test_shares_keep_every_class(self):
        assert shares(np.array([12, 500, 88]), 60).tolist() == [1, 50, 9]
        assert shares(np.array([1, 999]), 10).tolist() == [1, 9]
        assert shares(np.array([5, 5, 5]), 2).sum() == 2
        assert shares(np.array([3, 4]), 7).tolist() == [3, 4]

    @pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 59, 300, 599])
    def test_shares_always_sum_and_never_exceed(self, n):
        sizes = np.array([12, 500, 88])
        made = shares(sizes, n)
        assert made.sum() == n
        assert (made <= sizes).all()
        if n >= 3:
            assert (made >= 1).all()

    def test_stratified(self):
        chosen = stratified_subset(LABELS, 60, seed=0)
        assert np.bincount(LABELS[chosen, 0]).tolist() == [1, 50, 9]
        assert (np.diff(chosen) > 0).all()
        assert np.array_equal(chosen, stratified_subset(LABELS, 60, seed=0))
        assert not np.array_equal(chosen, stratified_subset(LABELS, 60, seed=1))
        assert not np.array_equal(chosen, stratified_subset(LABELS, 60, seed=0, stream=1))

    def test_whole_when_n_is_large(self):
        assert np.array_equal(stratified_subset(LABELS, 600, seed=0), np.arange(600))
        assert np.array_equal(uniform_subset(5, 9, seed=0), np.arange(5))

    def test_multi_label_keeps_every_label(self):
        rng = np.random.default_rng(0)
        labels = (rng.random((400, 6)) < 0.3).astype(np.int64)
        labels[:, 5] = 0
        labels[17, 5] = 1
        for seed in range(20):
            chosen = stratified_subset(labels, 12, seed=seed)
            assert len(np.unique(chosen)) == 12
            assert (labels[chosen].sum(axis=0) >= 1).all()

    def test_uniform(self):
        chosen = uniform_subset(1000, 100, seed=4)
        assert len(np.unique(chosen)) == 100
        assert chosen.max() < 1000
        assert np.array_equal(chosen, uniform_subset(1000, 100, seed=4))
        assert not np.array_equal(chosen, uniform_subset(1000, 100, seed=5))

    def test_empty_is_refused(self):
        with pytest.raises(UsageError, match="a subset of 0 images is empty"):
            uniform_subset(10, 0, seed=0)
