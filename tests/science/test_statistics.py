"""Statistics against scipy, scikit-learn, brute force and published values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from app.bench.coverage import hillis_interval
from app.science import bootstrap, metrics
from app.science import statistics as st
from app.science.statistics import Floats


def binary_problem(
    n: int = 200, seed: int = 0, gap: float = 1.0, ties: bool = False
) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(int)
    score = y * gap + rng.normal(size=n)
    return y, np.round(score, 1) if ties else score


def multiclass_problem(n: int = 300, classes: int = 5, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    score = np.exp(np.eye(classes)[y] + rng.normal(size=(n, classes)))
    return y, score / score.sum(1, keepdims=True)


# --- t ---------------------------------------------------------------------------------------------


def test_t_interval_equals_scipy() -> None:
    values = [0.91, 0.93, 0.90, 0.95]
    got = st.t_interval(values)
    want = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))
    assert got.mean == pytest.approx(np.mean(values))
    assert got.n == 4


def test_t_interval_of_three_values_by_hand() -> None:
    got = st.t_interval([1.0, 2.0, 3.0])
    assert got.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_one_value_has_no_interval() -> None:
    got = st.t_interval([0.8])
    assert got.mean == 0.8
    assert math.isnan(got.low)
    assert math.isnan(got.high)
    assert not got.known
    assert not got.excludes_zero


def test_no_values_are_nan_and_a_nan_spreads() -> None:
    assert math.isnan(st.t_interval([]).mean)
    assert math.isnan(st.t_interval([0.5, math.nan]).mean)


def test_t_interval_covers_the_truth_at_its_rate() -> None:
    rng = np.random.default_rng(3)
    hits = [st.t_interval(row) for row in rng.normal(0.3, 1.0, size=(2000, 3))]
    coverage = np.mean([i.low <= 0.3 <= i.high for i in hits])
    assert 0.935 <= coverage <= 0.965


def test_paired_t_difference_equals_scipy_and_needs_equal_lengths() -> None:
    a, b = [0.9, 0.92, 0.95], [0.88, 0.91, 0.91]
    want = stats.ttest_rel(a, b).confidence_interval(0.95)
    got = st.paired_t_difference(a, b)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))
    with pytest.raises(ValueError, match="equal shapes"):
        st.paired_t_difference([1.0, 2.0], [1.0])


# --- DeLong ----------------------------------------------------------------------------------------


def brute_force_delong(y: NDArray[Any], score: NDArray[Any]) -> tuple[float, float]:
    """DeLong's (1988) definition: the kernel of every pair, no ranks."""
    pos, neg = score[y == 1], score[y == 0]
    kernel = (pos[:, None] > neg[None]).astype(float) + 0.5 * (pos[:, None] == neg[None])
    variance = kernel.mean(1).var(ddof=1) / len(pos) + kernel.mean(0).var(ddof=1) / len(neg)
    return float(kernel.mean()), float(variance)


@pytest.mark.parametrize("ties", [False, True])
def test_delong_equals_brute_force_and_sklearn(ties: bool) -> None:
    y, score = binary_problem(ties=ties)
    auc, variance = st.delong_variance(y, score)
    assert (auc, variance) == pytest.approx(brute_force_delong(y, score), rel=1e-12)
    assert auc == pytest.approx(roc_auc_score(y, score))


def test_delong_interval_is_the_wald_interval_of_its_variance() -> None:
    y, score = binary_problem()
    auc, variance = st.delong_variance(y, score)
    got = st.delong_interval(y, score)
    half = 1.959964 * math.sqrt(variance)
    assert (got.low, got.high) == pytest.approx((auc - half, auc + half))
    assert got.n == 200


def test_delong_interval_stays_inside_zero_and_one() -> None:
    y, score = binary_problem(n=30, gap=2.0, seed=6)
    got = st.delong_interval(y, score)
    assert got.high == 1.0 > got.low
    perfect = st.delong_interval(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]))
    assert (perfect.mean, perfect.low, perfect.high) == (1.0, 1.0, 1.0)


def test_delong_takes_columns_and_reports_absent_classes_as_nan() -> None:
    y, score = binary_problem()
    two_columns = np.stack([1 - score, score], axis=1)
    assert st.delong_variance(y[:, None], two_columns) == st.delong_variance(y, score)
    assert math.isnan(st.delong_interval(np.zeros(5, int), np.arange(5.0)).mean)
    with pytest.raises(ValueError, match="0 or 1"):
        st.delong_variance(np.array([0, 1, 2]), np.arange(3.0))
    with pytest.raises(ValueError, match="not a binary problem"):
        st.delong_variance(np.zeros((5, 3), int), np.zeros((5, 3)))


# --- AUROC and bootstrap ---------------------------------------------------------------------------


def macro_auroc(y: NDArray[Any], score: NDArray[Any]) -> float:
    return float(st.weighted_auroc(y, score, np.ones((len(y), 1), dtype=np.int32))[0])


def test_auroc_equals_sklearn_on_every_task() -> None:
    y, score = binary_problem(ties=True)
    assert macro_auroc(y, score) == pytest.approx(roc_auc_score(y, score))
    y, score = multiclass_problem()
    assert macro_auroc(y[:, None], score) == pytest.approx(roc_auc_score(y, score, multi_class="ovr"))
    rng = np.random.default_rng(0)
    labels, scores = (rng.random((100, 4)) < 0.3).astype(int), rng.random((100, 4))
    assert macro_auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


def test_a_class_with_one_image_or_patient_gives_no_interval() -> None:
    """Every resample and every seed has that image: nothing tells how another of its kind would do."""
    rng = np.random.default_rng(0)
    y, scores = np.repeat([0, 1], [60, 1]), rng.random((3, 61))
    area, own = zip(*(st.auroc_components(y, s) for s in scores), strict=True)
    assert np.isfinite(area).all()
    found = st.mixed_interval(area, st.shared_covariance(st.image_covariance(y, np.stack(own))))
    assert np.isfinite(found.mean)
    assert not found.known
    several = np.repeat([0, 1], [60, 5])
    patients = np.append(np.arange(60), np.full(5, 60))
    own = [st.auroc_components(several, s)[1] for s in rng.random((3, 65))]
    assert np.isfinite(st.image_covariance(several, np.stack(own))).all()
    assert np.isnan(st.image_covariance(several, np.stack(own), patients)).all()


def test_an_absent_class_is_left_out_as_in_metrics_and_no_class_is_nan() -> None:
    assert math.isnan(macro_auroc(np.ones(4, int), np.arange(4.0)))
    y, score = multiclass_problem(classes=4)
    y[y == 2] = 1
    assert macro_auroc(y, score) == pytest.approx(metrics.auroc(y[:, None], score, "multi-class"))
    assert math.isnan(macro_auroc(y, np.where(score > 0.5, math.nan, score)))


def test_labels_and_scores_that_do_not_fit_are_errors() -> None:
    y, score = multiclass_problem(classes=3)
    with pytest.raises(ValueError, match="scores"):
        macro_auroc(y[:-1], score)
    with pytest.raises(ValueError, match="one column per label"):
        macro_auroc(np.zeros((6, 3), int), np.zeros((6, 4)))


@pytest.mark.parametrize("problem", [binary_problem, multiclass_problem])
def test_weighted_auroc_equals_sklearn_on_the_repeated_images(problem: Any) -> None:
    y, score = problem()
    for counts in bootstrap._resamples(y, 5, seed=1):
        got = st.weighted_auroc(y, score, counts)
        for column in range(5):
            index = np.repeat(np.arange(len(y)), counts[:, column])
            assert got[column] == pytest.approx(roc_auc_score(y[index], score[index], multi_class="ovr"))


def test_weighted_auroc_leaves_out_a_label_lost_by_the_resample() -> None:
    labels = np.array([[1, 0], [0, 1], [0, 0]])
    score = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.3]])
    counts = np.array([[2], [0], [1]], dtype=np.int32)  # the only image with the second label was not drawn
    assert st.weighted_auroc(labels, score, counts)[0] == 1.0


def test_resamples_keep_the_class_counts_and_repeat_with_the_seed() -> None:
    y, _ = multiclass_problem()
    (counts,) = bootstrap._resamples(y, 50, seed=4)
    (again,) = bootstrap._resamples(y, 50, seed=4)
    np.testing.assert_array_equal(counts, again)
    for c in range(5):
        assert (counts[y == c].sum(axis=0) == (y == c).sum()).all()
    assert counts.std() > 0


def test_chunks_cover_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    y, score = binary_problem()
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", 200 * 7)
    assert bootstrap.bootstrap_means(st.weighted_auroc, y, [[score]], n=30).shape == (1, 30)


def paired_bootstrap(y: NDArray[Any], a: list[NDArray[Any]], b: list[NDArray[Any]], n: int = 2000) -> st.Interval:
    """The difference of two methods over test images, as the report puts it together."""
    difference = np.mean([macro_auroc(y, s) for s in a]) - np.mean([macro_auroc(y, s) for s in b])
    means = bootstrap.bootstrap_means(st.weighted_auroc, y, [a, b], n)
    return st.percentile_interval(difference, means[0] - means[1], len(y))


def delong_difference(y: NDArray[Any], a: NDArray[Any], b: NDArray[Any]) -> st.Interval:
    """The same by DeLong et al. 1988: Var(a) + Var(b) - 2 Cov(a, b) of the placements."""
    positive, negative = y == 1, y == 0
    kernels = [(s[positive][:, None] > s[negative][None]).astype(float) for s in (a, b)]
    s = np.cov([k.mean(1) for k in kernels]) / positive.sum() + np.cov([k.mean(0) for k in kernels]) / negative.sum()
    difference, half = kernels[0].mean() - kernels[1].mean(), 1.959964 * math.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])
    return st.Interval(difference, difference - half, difference + half, len(y))


def test_the_paired_bootstrap_of_a_method_with_itself_is_zero() -> None:
    y, score = binary_problem()
    got = paired_bootstrap(y, [score], [score], n=100)
    assert (got.mean, got.low, got.high) == (0.0, 0.0, 0.0)


def test_the_paired_bootstrap_agrees_with_delong() -> None:
    """Two unrelated derivations of the same interval must meet on a large sample."""
    y, a = binary_problem(n=1500, seed=1)
    b = a + np.random.default_rng(2).normal(0, 0.8, a.size)
    boot, delong = paired_bootstrap(y, [a], [b]), delong_difference(y, a, b)
    assert boot.mean == pytest.approx(delong.mean)
    assert boot.low == pytest.approx(delong.low, abs=0.003)
    assert boot.high == pytest.approx(delong.high, abs=0.003)


def test_the_paired_bootstrap_takes_the_mean_over_seeds() -> None:
    y, a = binary_problem(seed=1)
    runs = [a + np.random.default_rng(s).normal(size=a.size) for s in range(4)]
    got = paired_bootstrap(y, runs[:3], runs[3:], n=50)
    want = np.mean([roc_auc_score(y, r) for r in runs[:3]]) - roc_auc_score(y, runs[3])
    assert got.mean == pytest.approx(want)
    assert got.low < got.mean < got.high


# --- seeds, draws and images together --------------------------------------------------------------

# Van Dyke et al. 1993 (2 modalities, 5 readers, 114 cases), as analysed by MRMCaov and RJafroc: AUROC by reader, the
# covariances of Obuchowski and Rockette by the jackknife, and their results for random readers and random cases.
VAN_DYKE = (
    (0.91964573, 0.85877617, 0.90386473, 0.97310789, 0.82979066),
    (0.94782609, 0.90531401, 0.92173913, 0.99935588, 0.92995169),
)
COV2, COV3 = 0.0003440748, 0.0002390284


def test_mixed_interval_has_the_standard_error_of_a_published_example() -> None:
    got = st.mixed_interval(np.subtract(*VAN_DYKE), 2 * (COV2 - COV3))
    assert got.mean == pytest.approx(-0.04380032, abs=1e-8)
    assert got.error == pytest.approx(0.02074862, abs=1e-8)
    hillis = hillis_interval(np.subtract(*VAN_DYKE), 2 * (COV2 - COV3))
    assert (hillis.low, hillis.high) == pytest.approx((-0.0879594986, 0.0003588544), abs=1e-7)
    assert got.low < hillis.low < 0 < hillis.high < got.high


def test_mixed_intervals_p_value_is_where_it_begins_to_exclude_zero() -> None:
    values, shared = [0.05, 0.02, 0.04], 1e-4
    p = st.mixed_interval(values, shared).p
    assert not st.mixed_interval(values, shared, 1 - p + 1e-6).excludes_zero
    assert st.mixed_interval(values, shared, 1 - p - 1e-6).excludes_zero
    assert st.mixed_interval([-v for v in values], shared).p == pytest.approx(p)


def test_mixed_interval_without_common_chance_is_the_t_interval() -> None:
    values = [0.01, 0.04, 0.02, 0.03]
    for shared in (0.0, -1e-4):  # a negative estimate of a covariance is taken for none
        got, want = st.mixed_interval(values, shared), st.t_interval(values)
        assert (got.low, got.high) == pytest.approx((want.low, want.high))
        assert got.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_mixed_interval_of_equal_seeds_is_normal_over_images() -> None:
    got = st.mixed_interval([0.1, 0.1, 0.1], 0.0025)
    assert got.half_width == pytest.approx(1.959964 * 0.05, rel=1e-6)
    assert got.p == pytest.approx(2 * stats.norm.sf(2))
    nothing = st.mixed_interval([0.0, 0.0], 0.0)
    assert (nothing.low, nothing.high, nothing.p) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(("values", "shared"), [([0.1], math.nan), ([], 0.0), ([0.1, math.nan], 0.0)])
def test_mixed_interval_needs_two_seeds_and_numbers(values: list[float], shared: float) -> None:
    got = st.mixed_interval(values, shared)
    assert not got.known
    assert math.isnan(got.p)


def test_holm_multiplies_each_by_those_not_rejected_yet() -> None:
    """Four hypotheses by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, and no less for the last."""
    assert st.holm([0.04, 0.01, math.nan, 0.03, 0.005]) == pytest.approx(
        [0.06, 0.03, math.nan, 0.06, 0.02], nan_ok=True
    )
    assert st.holm([0.9, 0.8]) == [1.0, 1.0]
    assert st.holm([]) == []


@pytest.mark.parametrize("ties", [False, True])
def test_components_have_delongs_variance(ties: bool) -> None:
    y, score = binary_problem(ties=ties)
    area, own = st.auroc_components(y, score)
    assert st.image_covariance(y, own[None])[0, 0] == pytest.approx(st.delong_variance(y, score)[1])
    assert area == pytest.approx(roc_auc_score(y, score))
    assert own.sum() == pytest.approx(0, abs=1e-12)


def test_covariance_of_two_models_is_the_bootstraps_on_any_task() -> None:
    y, score = multiclass_problem(n=400)
    other = score + 0.1 * np.random.default_rng(1).normal(size=score.shape)
    labels = (score[:, :3] + np.random.default_rng(2).normal(size=(400, 3)) > 0.5).astype(int)
    labels[::7, 1] = -1
    for truth, one, two in ((y, score, other), (labels, score[:, :3], other[:, :3])):
        (area, own), (other_area, other_own) = st.auroc_components(truth, one), st.auroc_components(truth, two)
        assert (area, other_area) == pytest.approx((macro_auroc(truth, one), macro_auroc(truth, two)))
        got = st.image_covariance(truth, np.stack([own, other_own]))
        drawn = bootstrap.bootstrap_means(st.weighted_auroc, truth, [[one], [two]], n=4000)
        np.testing.assert_allclose(got, np.cov(drawn), rtol=0.12)
        assert st.shared_covariance(got) == pytest.approx(got[0, 1])


def test_components_of_what_has_no_curve_are_nan() -> None:
    area, own = st.auroc_components(np.zeros(4, int), np.arange(4.0))
    assert math.isnan(area)
    assert np.isnan(own).all()
    assert math.isnan(st.auroc_components(np.array([0, 1]), np.array([0.1, math.nan]))[0])


# --- images of one patient -------------------------------------------------------------------------


def patients_problem(
    seed: int = 0, people: int = 60, methods: int = 2
) -> tuple[NDArray[np.int64], Floats, NDArray[np.int64]]:
    """Labels (N,), scores (methods, N) and patients (N,): 1 to 6 images each, alike, often of both classes."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(people), rng.integers(1, 7, people))
    y = (rng.random(len(patients)) < 0.1 + 0.8 * (patients % 2)).astype(np.int64)
    noise = 0.8 * rng.normal(size=(1, people))[:, patients] + 0.6 * rng.normal(size=(methods, people))[:, patients]
    return y, noise + 0.5 * rng.normal(size=(methods, len(y))) + y, patients


def obuchowski(y: NDArray[np.int64], score: Floats, patients: NDArray[np.int64]) -> float:
    """Variance of an AUROC as the article has it (Biometrics 53, 1997): V10, V01 by patient, S10, S01 and S11."""
    above = (score[y == 1][:, None] > score[y == 0][None]).astype(float)
    area, (m, n) = above.mean(), above.shape
    v10, v01 = np.zeros(len(y)), np.zeros(len(y))
    v10[y == 1], v01[y == 0] = above.mean(axis=1) - area, above.mean(axis=0) - area
    people = np.unique(patients)
    x = np.array([v10[patients == i].sum() for i in people])
    z = np.array([v01[patients == i].sum() for i in people])
    i10, i01 = (len(np.unique(patients[y == c])) for c in (1, 0))
    s10, s01 = i10 / ((i10 - 1) * m) * (x**2).sum(), i01 / ((i01 - 1) * n) * (z**2).sum()
    s11 = len(people) / (len(people) - 1) * (x * z).sum()
    return float(s10 / m + s01 / n + 2 * s11 / (m * n))


def test_patients_variance_is_obuchowskis() -> None:
    y, (score, other), patients = patients_problem()
    pairs = [st.auroc_components(y, s) for s in (score, other)]
    got = st.image_covariance(y, np.stack([own for _, own in pairs]), patients + 7)
    assert got[0, 0] == pytest.approx(obuchowski(y, score, patients))
    interval = st.delong_interval(y, score, patients=patients)
    assert interval.half_width == pytest.approx(1.959964 * math.sqrt(got[0, 0]), rel=1e-6)
    assert interval.half_width > 1.1 * st.delong_interval(y, score).half_width
    drawn = bootstrap.bootstrap_means(st.weighted_auroc, y, [[score], [other]], n=3000, patients=patients)
    np.testing.assert_allclose(got, np.cov(drawn), rtol=0.15)


@pytest.mark.parametrize("problem", [binary_problem, multiclass_problem])
def test_more_images_of_the_same_patients_tell_no_more(problem: Any) -> None:
    """The very images three times: intervals over patients stay, where those over images shrink."""
    y, score = problem(n=60)
    thrice, patients = np.repeat(np.arange(60), 3), np.repeat(np.arange(60), 3)
    once = st.image_covariance(y, st.auroc_components(y, score)[1][None])
    own = st.auroc_components(y[thrice], score[thrice])[1][None]
    np.testing.assert_allclose(st.image_covariance(y[thrice], own, patients), once)
    assert st.image_covariance(y[thrice], own)[0, 0] < 0.4 * once[0, 0]
    drawn = bootstrap.bootstrap_means(st.weighted_auroc, y, [[score]], n=50)
    again = bootstrap.bootstrap_means(st.weighted_auroc, y[thrice], [[score[thrice]]], n=50, patients=patients)
    np.testing.assert_allclose(again, drawn)


def test_patients_of_one_image_each_are_images() -> None:
    y, score = multiclass_problem()
    own = st.auroc_components(y, score)[1][None]
    np.testing.assert_allclose(st.image_covariance(y, own, np.arange(len(y))), st.image_covariance(y, own))
    drawn = [bootstrap.bootstrap_means(st.weighted_auroc, y, [[score]], n=20, patients=who)
             for who in (None, np.arange(len(y)))]  # fmt: skip
    np.testing.assert_array_equal(*drawn)


def test_patients_that_are_too_few_give_no_interval() -> None:
    y, score = binary_problem(n=20)
    own = st.auroc_components(y, score)[1][None]
    assert np.isnan(st.image_covariance(y, own, np.zeros(20, int))).all()
    assert not st.delong_interval(y, score, patients=np.where(y == 1, 0, np.arange(20) + 1)).known


def test_the_interval_over_patients_holds_the_truth() -> None:
    """400 simulated test sets, standard error 1.1 %; over images it holds in far fewer."""
    truth = float(stats.norm.cdf(1 / math.sqrt(2 * (0.64 + 0.36 + 0.25))))
    held = {True: 0, False: 0}
    for study in range(400):
        y, (score,), patients = patients_problem(study, methods=1)
        for known in held:
            interval = st.delong_interval(y, score, patients=patients if known else None)
            held[known] += interval.low <= truth <= interval.high
    assert held[True] / 400 > 0.92
    assert held[False] / 400 < 0.85
