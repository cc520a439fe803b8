"""The report from fabricated records: right numbers, honest words, and no run too partial to read."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from app.errors import InputError
from app.jobs.records import DownstreamRecord, Experiment, PretrainRecord
from app.report import (
    clinical,
    counts,
    curves,
    efficiency,
    inventory,
    names,
    paper,
    plots,
    style,
    table,
    tables,
)
from app.report.collect import Study, collect, parse_predictions
from app.report.compare import Analysis, Comparison
from app.report.content import SYNTHETIC, build_context
from app.report.efficiency import Efficiency, efficiencies, efficiency_table, saved_sentence
from app.report.page import make_report
from app.report.summary import ReportSummary
from app.report.verdict import labels_verdict, models_to_take
from app.science import metrics, statistics
from app.science.clinical import confident_errors
from app.science.efficiency import Curve, LabelsNeeded
from app.science.statistics import Interval, holm
from app.stages.report import run as write_report
from app.storage import FolderStore, MissingObject, Store, check_key, sha256

RUN = "recommended-1a2b3c4d"
ROOT = f"runs/{RUN}"
DERMA = (
    "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
    "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
)  # fmt: skip
DATASETS: dict[str, dict[str, Any]] = {
    "pneumoniamnist": {
        "title": "PneumoniaMNIST", "modality": "Chest X-ray", "task": "binary-class", "labels": ("normal", "pneumonia"),
        "test": (234, 390), "licence": "CC BY 4.0",
    },
    "breastmnist": {
        "title": "BreastMNIST", "modality": "Breast ultrasound", "task": "binary-class",
        "labels": ("malignant", "normal, benign"), "test": (42, 114), "licence": "CC BY 4.0",
    },
    "dermamnist_reconstructed": {
        "title": "DermaMNIST (reconstructed)", "modality": "Dermatoscope", "task": "multi-class", "labels": DERMA,
        "test": (66, 103, 220, 23, 223, 1341, 29), "licence": "CC BY-NC 4.0",
    },
}  # fmt: skip
# Distance of the classes in standard deviations: byol is better than random on pneumonia, worse on derma.
GAP = {
    "pneumoniamnist": {"random": 1.9, "imagenet": 2.2, "byol": 2.5, "byol_plus": 2.45},
    "breastmnist": {"random": 1.3, "imagenet": 1.4, "byol": 1.35, "byol_plus": 1.45},
    "dermamnist_reconstructed": {"random": 1.6, "imagenet": 1.8, "byol": 1.25, "byol_plus": 1.3},
}
K = 20  # images per class of the few-shot protocols
SPLITS = {"train": 7, "val": 1, "test": 1}
LOSS = {"finetune": 0.0, "linear_probe": -0.3, "few_shot": -0.6, "few_shot_frozen": -0.7}


class MemoryStore:
    """A store in a dictionary: the folder store syncs every object to the disk, and a run has hundreds."""

    uri = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def read(self, key: str) -> bytes:
        if key not in self.objects:
            raise MissingObject(f"{key}: there is no such object")
        return self.objects[key]

    def write(self, key: str, data: bytes) -> None:
        self.objects[check_key(key)] = data

    def exists(self, key: str) -> bool:
        return key in self.objects

    def list(self, prefix: str = "") -> Iterator[str]:
        return iter(sorted(key for key in self.objects if key.startswith(f"{check_key(prefix)}/")))

    def stamps(self, prefix: str = "") -> dict[str, str]:
        return {key: sha256(self.objects[key]) for key in self.list(prefix)}

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)


class FakeRun:
    """Writes a run's objects as the stages do, with made-up but consistent numbers."""

    def __init__(
        self,
        *,
        store: Store | None = None,
        datasets: dict[str, dict[str, Any]] | None = None,
        methods: tuple[str, ...] = ("random", "byol", "byol_plus"),
        protocols: tuple[str, ...] = ("finetune", "linear_probe", "few_shot"),
        seeds: tuple[int, ...] = (0, 1, 2),
        synthetic: bool = False,
        shrink: int = 1,
        draws: int = 3,
        curve: tuple[str, ...] = (),
        clinical: bool = False,
    ) -> None:
        self.store = store or MemoryStore()
        self.datasets = datasets if datasets is not None else DATASETS
        self.methods, self.protocols, self.seeds = methods, protocols, seeds
        self.synthetic, self.shrink, self.draws, self.curve = synthetic, shrink, draws, curve
        self.clinical = clinical
        self.summary: ReportSummary | None = None

    def labels(self, name: str) -> NDArray[np.int64]:
        info = self.datasets[name]
        if info["task"] == metrics.MULTI_LABEL:
            rng = np.random.default_rng(5)
            return (rng.random((sum(info["test"]), len(info["labels"]))) < 0.2).astype(np.int64)
        counts = [max(4, n // self.shrink) for n in info["test"]]
        return np.repeat(np.arange(len(counts)), counts)[:, None]

    def scores(
        self, name: str, method: str, protocol: str, seed: int, draw: int, more: float = 0.0
    ) -> NDArray[np.float64]:
        """``more`` distance of the classes than the protocol has."""
        y, task, classes = self.labels(name), self.datasets[name]["task"], len(self.datasets[name]["labels"])
        gap = max(0.1, GAP.get(name, {}).get(method, 1.0) + LOSS[protocol] + more)
        # Part of the noise belongs to the image: all models find the same images hard.
        image = np.random.default_rng(11).normal(size=(len(y), classes))
        own = np.random.default_rng([seed, draw, len(method), len(protocol)]).normal(size=(len(y), classes))
        z = 0.85 * image + 0.5 * own
        if task == metrics.MULTI_LABEL:
            return 1 / (1 + np.exp(-(z + gap * (2 * y - 1))))
        if task == metrics.BINARY:
            p = 1 / (1 + np.exp(-(z[:, 0] + gap * (y[:, 0] - 0.5))))
            return np.stack([1 - p, p], axis=1)
        z = z + gap * np.eye(classes)[y[:, 0]] + 1.2 * (np.arange(classes) == classes - 2)
        return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)

    def inits(self) -> list[tuple[str, str, int]]:
        """(init, method, seed)."""
        pretrained = [m for m in self.methods if m.startswith("byol")]
        return [(f"{m}-s{s}" if m in pretrained else m, m, s) for m in self.methods for s in self.seeds]

    def put(self, key: str, value: Any) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.store.write(f"{ROOT}/{key}", data)

    def write(self) -> FakeRun:
        self.experiment()
        for init, method, seed in self.inits():
            if init != method:
                self.pretrain(init, method, seed)
            for name in self.datasets:
                for protocol in self.protocols:
                    self.downstream(name, init, method, protocol, seed)
        return self

    def experiment(self, **changes: Any) -> None:
        data: dict[str, Any] = {
            "nih_unlabelled": {
                "sha256": "0" * 64, "size": 28, "task": "none", "labels": {}, "channels": 1, "splits": {"all": 10000},
                "class_counts": {}, "licence": "NIH ChestX-ray14, free use with citation", "source": "nih.npz",
                "title": "NIH chest X-rays", "modality": "Chest X-ray", "role": "pretrain",
            }
        }  # fmt: skip
        for name, info in self.datasets.items():
            y = self.labels(name)
            test = y.sum(axis=0) if y.shape[1] > 1 else np.bincount(y[:, 0])
            counts = {split: [factor * int(n) for n in test] for split, factor in SPLITS.items()}
            data[name] = {
                "sha256": "1" * 64, "size": 28, "task": info["task"],
                "labels": {str(i): label for i, label in enumerate(info["labels"])},
                "channels": 3 if "derma" in name else 1,
                "splits": {split: factor * len(y) for split, factor in SPLITS.items()}, "class_counts": counts,
                "licence": info["licence"], "source": f"{name}.npz", "title": info["title"],
                "modality": info["modality"], "role": "downstream",
            }  # fmt: skip
            self.put(f"samples/{name}_test_labels.json", {"labels": y.tolist()})
            if self.clinical:
                self.put(f"samples/{name}_val_labels.json", {"labels": y.tolist()})
        inits = self.inits()
        plan = {
            "version": 1, "run_id": RUN,
            "pretrain": [{"key": i, "args": ()} for i, m, _ in inits if i != m],
            "downstream": [
                {"key": f"{d}/{i}/{p}/s{s}", "needs": i if i != m else None, "args": ()}
                for d in self.datasets for p in self.protocols for i, m, s in inits
            ],
        }  # fmt: skip
        config = {"study": {"methods": list(self.methods), "seeds": list(self.seeds)}, "pretrain": {"epochs": 20}}
        record = {
            "run_id": RUN, "preset": "recommended", "synthetic": self.synthetic, "config": config, "science": {},
            "monitor": None, "plan": plan, "data": data, "created": "2026-11-22T08:00:00Z",
        }  # fmt: skip
        self.put("experiment.json", Experiment.model_validate(record | changes).model_dump(mode="json"))

    def base(self, key: str, method: str, seed: int) -> dict[str, Any]:
        return {
            "run_id": RUN, "key": key, "method": method, "seed": seed, "synthetic": self.synthetic, "science": {},
            "identity": "2" * 64, "config": {}, "data": {}, "finished": "2026-11-22T09:30:00Z",
            "environment": {"git_commit": "abc1234", "python": "3.11.2", "torch": "2.14.1"},
        }  # fmt: skip

    def files(self, folder: str, contents: dict[str, bytes]) -> dict[str, Any]:
        for name, data in contents.items():
            self.put(f"{folder}/{name}", data)
        return {n: {"size": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in contents.items()}

    def pretrain(self, key: str, method: str, seed: int) -> None:
        rng = np.random.default_rng([seed, len(method)])
        lines = []
        for epoch in range(1, 21):
            for half in (0.5, 1.0):
                step = round((epoch - 1 + half) * 39)
                loss = 0.35 + 1.6 * np.exp(-(epoch + half) / 4) + (method == "byol_plus") * 0.15 + rng.normal() * 0.02
                std = 0.0625 * (1 - 0.5 * np.exp(-epoch / 5)) + rng.normal() * 0.0008
                lines.append({"step": step, "epoch": epoch, "loss": loss, "learning_rate": 1e-3, "target_std": std})
            knn = 0.94 - 0.12 * np.exp(-epoch / 6) + rng.normal() * 0.004
            seen = {"knn_auroc": knn, "few_shot_auroc": knn - 0.1, "knn_dataset": "pneumoniamnist:val"}
            lines.append({"step": epoch * 39, "epoch": epoch} | seen)
        curves = "\n".join(json.dumps(line) for line in lines).encode()
        folder = f"pretrain/{key}"
        record = self.base(key, method, seed) | {
            "steps": 780, "epochs": 20, "files": self.files(folder, {"curves.jsonl": curves}),
            "metrics": {"loss": 0.4, "target_std": 0.06, "rank_me": 88.2, "knn_accuracy": 0.88, "knn_auroc": 0.94},
            "timings": {"seconds": 812.3, "images_per_second": 246.1},
        }  # fmt: skip
        self.put(f"{folder}/record.json", PretrainRecord.model_validate(record).model_dump(mode="json"))

    def downstream(self, name: str, init: str, method: str, protocol: str, seed: int) -> dict[str, Any]:
        info, y = self.datasets[name], self.labels(name)
        key = f"{name}/{init}/{protocol}/s{seed}"
        folder = f"downstream/{key}"
        drawn = [self.scores(name, method, protocol, seed, d) for d in range(self.draws)]
        few = protocol.startswith("few_shot")
        drawn = drawn if few else drawn[:1]
        values = [metrics.evaluate(y, s, info["task"]) for s in drawn]
        contents = {"predictions.csv": predictions_csv(drawn[0])}
        if few:
            contents |= {f"draws/{d}/predictions.csv": predictions_csv(s) for d, s in enumerate(drawn)}
        errors = self.extras(name, y, drawn[0], protocol, seed, contents) if self.clinical else []
        points = self.label_curve(name, method, protocol, seed, contents) if few and self.curve else []
        record = self.base(key, method, seed) | {
            "label_curve": points, "errors": errors, "science": {"protocol": {"k": K}} if few else {},
            "dataset": name, "init": init, "protocol": protocol, "task": info["task"],
            "labels": {str(i): label for i, label in enumerate(info["labels"])},
            "metrics": {m: float(np.mean([v[m] for v in values])) for m in values[0]},
            "validation": values[0], "confusion_matrix": metrics.confusion_matrix(y, drawn[0], info["task"]),
            "per_class_auroc": [0.9] * len(info["labels"]), "best_epoch": 3, "curves": [],
            "draws": [
                {"draw": d, "indices": range(K * len(info["labels"])), "metrics": v, "best_epoch": 3}
                for d, v in enumerate(values) if few
            ],
            "chosen_draw": 0 if few else None,
            "draw_overlap": 0.02 if few else None, "timings": {"seconds": 41.5}, "files": self.files(folder, contents),
        }  # fmt: skip
        plain = DownstreamRecord.model_validate(record).model_dump(mode="json")
        self.put(f"{folder}/record.json", plain)
        return plain

    def extras(
        self, name: str, y: NDArray[np.int64], scores: NDArray[np.float64], protocol: str, seed: int,
        contents: dict[str, bytes],
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Add what a job leaves beside its test scores; validation images are harder, and the same for all methods."""
        sure = np.random.default_rng(seed).dirichlet(np.full(scores.shape[1], 0.3), len(y))
        contents["val_predictions.csv"] = predictions_csv(0.8 * scores + 0.2 * sure)
        if protocol == "linear_probe":
            places = np.random.default_rng(seed).normal(size=(len(y), 2)) + y[:, :1]
            contents["embedding.csv"] = "".join(f"{a},{b}\n" for a, b in places).encode()
        if y.shape[1] > 1:
            return []
        places = confident_errors(y[:, 0], scores, 4)
        picture = io.BytesIO()
        Image.new("L", (84 * 4, 84)).save(picture, "PNG")
        if len(places):
            contents["errors.png"] = picture.getvalue()
        return [
            {"image": int(i), "truth": int(y[i, 0]), "predicted": int(scores[i].argmax()),
             "probability": float(scores[i].max())}
            for i in places
        ]  # fmt: skip

    def label_curve(
        self, name: str, method: str, protocol: str, seed: int, contents: dict[str, bytes]
    ) -> list[dict[str, Any]]:
        """Add the scores of the label curve to ``contents``; return the points of the record."""
        classes, images = len(self.datasets[name]["labels"]), len(self.labels(name))
        points, scores = [], {}
        for budget in self.curve:
            share = budget[-1] == "%"
            labels = max(classes, round(float(budget[:-1]) * images / 100)) if share else int(budget) * classes
            more = 0.25 * float(np.log2(labels / (K * classes)))
            drawn = [self.scores(name, method, protocol, seed, 50 + d, more) for d in range(self.draws)]
            scores[budget] = np.stack(drawn)
            points += [
                {"budget": budget, "draw": d, "labels": labels, "best_epoch": 3, "auroc": 0.8}
                for d in range(self.draws)
            ]
        contents["label_curve.safetensors"] = safetensors.numpy.save(scores)
        return points


def predictions_csv(scores: NDArray[np.float64]) -> bytes:
    return "".join(f"{i}," + ",".join(f"{v:.6f}" for v in row) + "\n" for i, row in enumerate(scores)).encode()


class Page(HTMLParser):
    """Text, ids, links and a check that tags are closed in order."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input", "path", "use", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def read(run: FakeRun, name: str) -> str:
    return run.store.read(f"{ROOT}/report/{name}").decode()


@pytest.fixture(scope="module")
def study(full: FakeRun) -> Study:
    return collect(full.store, RUN)


@pytest.fixture(scope="module")
def analysis(study: Study) -> Analysis:
    return Analysis(study, resamples=200)


# --- the whole report -------------------------------------------------------------------------------


def the_script_alone(page: str) -> bool:
    """There is one script, it is ours, and the policy of the page allows it alone."""
    ours = files("app.report").joinpath("sort.js").read_text()
    allowed = base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()
    policy = f"default-src 'none'; .*script-src 'sha256-{re.escape(allowed)}'; "
    return page.count("<script") == 1 and f"<script>{ours}</script>" in page and re.search(policy, page) is not None


def test_the_report_is_one_well_formed_page_without_network(full: FakeRun) -> None:
    html = read(full, "index.html")
    page = Page(html)
    assert len(html) < 3_000_000
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    links = [a["href"] for tag, a in page.tags if tag == "a" and a["href"]]
    assert links
    assert all(link.removeprefix("#") in ids for link in links if link.startswith("#"))
    assert not [link for link in links if re.match(r"(?!data:text/csv;)\w+:|//", link)], "tests/report/test_sources.py"
    assert not [a for _, a in page.tags if re.match(r"(https?:)?//", str(a.get("src") or a.get("href") or ""))]
    assert not {"link", "iframe"} & {tag for tag, _ in page.tags}
    assert the_script_alone(html)
    assert all(a.get("scope") for tag, a in page.tags if tag == "th")
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")
    drawings = [a for tag, a in page.tags if tag == "svg"]
    assert len(drawings) == 1 + 3 + 3 + (3 + 1) + 1 + 3
    assert all(a["role"] == "img" and a["aria-label"] for a in drawings)


def test_every_file_is_written_and_named(full: FakeRun) -> None:
    summary = full.summary
    assert summary is not None
    names = {key.removeprefix(f"{ROOT}/report/") for key in summary.keys}
    assert {"index.html", "report.md", "tables.csv", "figures/differences.svg", "figures/pretraining.svg"} <= names
    assert all(full.store.exists(key) for key in summary.keys)
    assert summary.missing == []
    markdown = read(full, "report.md")
    linked = set(re.findall(r"\]\((figures/[^)]+)\)", markdown))
    assert linked == {name for name in names if name.startswith("figures/")}


def test_the_same_records_give_the_same_bytes() -> None:
    run = small(methods=("random", "byol"), protocols=("finetune",)).write()
    before = make_report(run.store, RUN)[0]
    assert before
    assert make_report(run.store, RUN)[0] == before


def test_means_and_intervals_of_the_table_are_those_of_the_records(full: FakeRun, analysis: Analysis) -> None:
    key = ("pneumoniamnist", "finetune", "byol")
    y = full.labels("pneumoniamnist")[:, 0]
    aurocs = [roc_auc_score(y, full.scores("pneumoniamnist", "byol", "finetune", s, 0)[:, 1]) for s in (0, 1, 2)]
    half = 4.302653 * np.std(aurocs, ddof=1) / np.sqrt(3)
    expected = f"{np.mean(aurocs):.3f} ± {half:.3f}"
    assert names.mean_and_half_width(analysis.metric(key, "auroc")) == expected
    assert expected in Page(read(full, "index.html")).text
    assert expected in read(full, "report.md")
    row = next(
        row for row in csv.DictReader(io.StringIO(read(full, "tables.csv")))
        if (row["kind"], row["dataset"], row["protocol"], row["method"], row["metric"]) == ("mean", *key, "auroc")
    )  # fmt: skip
    assert float(row["estimate"]) == pytest.approx(np.mean(aurocs), abs=1e-6)
    assert float(row["high"]) == pytest.approx(np.mean(aurocs) + half, abs=1e-6)
    assert row["paper"] == ""  # the paper's number on this set is a balanced accuracy


def test_improvement_and_harm_are_said_as_the_data_have_them(analysis: Analysis) -> None:
    verdicts = {(c.dataset, c.protocol, c.method): c.verdict for c in analysis.against_baseline.values()}
    assert verdicts["pneumoniamnist", "linear_probe", "byol"] == "better"
    assert verdicts["dermamnist_reconstructed", "finetune", "byol"] == "unsettled"
    assert analysis.against_baseline["dermamnist_reconstructed", "finetune", "byol"].difference < -0.02
    assert "better" not in {v for (dataset, _, _), v in verdicts.items() if dataset.startswith("derma")}
    pairs = {(c.method, c.baseline) for c in analysis.comparisons}
    assert pairs == {("byol", "random"), ("byol_plus", "random"), ("byol_plus", "byol")}


def interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 3)


def joint_of(low: float, high: float) -> statistics.Tested:
    return statistics.Tested((low + high) / 2, low, high, 3, 1e-4, 1e-4, 0.01)


ABOVE, AROUND, BELOW, NONE = (0.01, 0.03), (-0.01, 0.02), (-0.03, -0.01), (float("nan"), float("nan"))


@pytest.mark.parametrize(
    ("joint", "adjusted", "seeds", "images", "verdict"),
    [
        (ABOVE, 0.04, AROUND, AROUND, "better"),
        (BELOW, 0.04, BELOW, BELOW, "worse"),
        (ABOVE, 0.06, ABOVE, ABOVE, "unsettled"),  # Holm
        (AROUND, 0.9, ABOVE, ABOVE, "none"),  # each kind of chance alone is not enough
        (NONE, float("nan"), NONE, ABOVE, "unsettled"),  # one seed
        (NONE, float("nan"), NONE, AROUND, "none"),
        (None, float("nan"), BELOW, None, "unsettled"),  # no predictions
        (None, float("nan"), NONE, None, "unknown"),
    ],
)
def test_a_verdict_follows_from_the_joint_interval_and_holm(
    joint: Any, adjusted: float, seeds: Any, images: Any, verdict: str
) -> None:
    compared = Comparison(
        "d", "p", "m", "b", interval(*seeds), images and interval(*images), joint and joint_of(*joint), adjusted
    )
    assert compared.verdict == verdict


def test_all_comparisons_of_a_study_are_one_family(analysis: Analysis) -> None:
    p = [c.joint.p for c in analysis.comparisons if c.joint]
    assert len(p) == 27
    assert [c.adjusted for c in analysis.comparisons] == pytest.approx(holm(p))


def test_the_joint_interval_is_that_of_the_seeds_and_their_images(full: FakeRun, analysis: Analysis) -> None:
    [c] = [c for c in analysis.comparisons if (c.dataset, c.protocol, c.method, c.baseline)
           == ("breastmnist", "few_shot", "byol", "random")]  # fmt: skip
    y = full.labels("breastmnist")
    each = [
        [
            np.mean([roc_auc_score(y, full.scores("breastmnist", m, "few_shot", s, d)[:, 1]) for d in (0, 1)])
            for s in (0, 1, 2)
        ]
        for m in ("byol", "random")
    ]
    assert c.joint is not None
    assert c.joint.spread == pytest.approx(np.var(np.subtract(*each), ddof=1) / 3, rel=1e-3)
    assert c.joint.mean == pytest.approx(np.mean(np.subtract(*each)), abs=1e-4)
    assert c.joint.half_width >= c.seeds.half_width - 1e-9


def test_bootstrap_and_seed_means_are_of_the_same_difference(analysis: Analysis) -> None:
    for c in analysis.comparisons:
        assert c.images is not None
        assert c.images.mean == pytest.approx(c.difference, abs=1e-4)  # predictions have six decimals


def test_paper_numbers_stand_beside_the_metric_they_measure(full: FakeRun, analysis: Analysis) -> None:
    assert paper.paper_value("pneumoniamnist", "finetune", "byol", "balanced_accuracy") == 0.85
    assert paper.paper_value("pneumoniamnist", "finetune", "byol", "auroc") is None
    assert paper.paper_value("dermamnist_reconstructed", "finetune", "byol_plus", "auroc") == 0.94
    assert paper.paper_value("dermamnist", "few_shot", "byol", "balanced_accuracy") is None
    assert paper.paper_value("breastmnist", "linear_probe", "byol_plus", "accuracy") == 0.76
    assert paper.paper_value("breastmnist", "finetune", "imagenet", "f1") == 0.82
    assert paper.paper_value("breastmnist", "finetune", "random", "f1") is None
    assert paper.paper_value("octmnist", "finetune", "byol", "accuracy") is None
    figure5, figure6 = (build(analysis) for build in (paper.figure5_table, paper.figure6_table))
    assert [row.cells[-1].text for row in figure5.rows[:6]] == ["0.89", "0.92", "0.86", "0.88", "0.86", "—"]
    assert figure5.rows[4].head == "Balanced accuracy ¹"
    assert {row.group for row in figure6.rows} >= {"DermaMNIST (reconstructed) · Few-shot"}
    assert "roc_auc_score(truth, hard labels)" in Page(read(full, "index.html")).text


def test_medmnist_reference_stands_beside_fine_tuning_alone(analysis: Analysis) -> None:
    last = {(row.group, row.head): row.cells[-1].text for row in tables.results_table(analysis).rows}
    assert last["PneumoniaMNIST", "Fine-tune"] == "0.944"
    assert last["DermaMNIST (reconstructed)", "Fine-tune"] == "0.917"
    assert last["PneumoniaMNIST", "Few-shot"] == ""


def test_licences_settings_and_the_clinical_note_are_shown(full: FakeRun) -> None:
    for text in (Page(read(full, "index.html")).text, read(full, "report.md")):
        assert "CC BY-NC 4.0" in text
        assert "not for clinical use" in text
        assert "abc1234" in text
        assert "epochs: 20" in text
        assert "SYNTHETIC" not in text


def test_terminal_table(full: FakeRun) -> None:
    assert full.summary is not None
    text = full.summary.table_text
    assert re.search(r"^Dataset +Protocol +Random +BYOL +BYOL\+ +MedMNIST v2$", text, re.M)
    assert re.search(r"^PneumoniaMNIST +Fine-tune +0\.\d{3} ± 0\.\d{3} ", text, re.M)
    assert "18 comparisons with the Random start: " in text


# --- partial, damaged and odd runs ------------------------------------------------------------------


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty figures, for tests of words and numbers: drawing takes a second a report."""

    def finish(canvas: Any, name: str, alt: str) -> style.Figure:
        return style.Figure(name, '<svg viewBox="0 0 1 1"></svg>', alt, 96)

    for module in (clinical, counts, curves, efficiency, plots):
        monkeypatch.setattr(module, "finish", finish)


def small(**changes: Any) -> FakeRun:
    only = {"pneumoniamnist": DATASETS["pneumoniamnist"]}
    return FakeRun(**({"datasets": only, "shrink": 10, "draws": 2} | changes))


def test_a_run_without_any_result_is_reported() -> None:
    run = small()
    run.experiment()
    summary = write_report(run.store, RUN)
    assert len(summary.missing) == 6 + 27
    page = Page(read(run, "index.html")).text
    assert "No downstream job has finished yet" in page
    assert "PneumoniaMNIST · Few-shot · BYOL+ (s0, s1, s2): no record" in page
    assert "Pretraining · BYOL (s0, s1, s2): no record" in page
    assert "No downstream job" in summary.table_text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("role", ["another set", "itself"])
def test_test_images_that_are_pretrained_on_are_said_everywhere(role: str) -> None:
    run = small().write()
    experiment = json.loads(run.store.read(f"{ROOT}/experiment.json"))
    data = experiment["data"]
    shared = {name: {"images": 50, "shared": 0} for name in run.datasets}
    if role == "itself":
        del data["nih_unlabelled"]
        data["pneumoniamnist"] |= {"role": "both", "unlabelled": {"all": 500}}
        shared["pneumoniamnist"]["shared"] = 50
        sentence = "All 50 test images of PneumoniaMNIST are among the images of pretraining, PneumoniaMNIST (its "
        name = "pneumoniamnist"
    else:
        shared["pneumoniamnist"]["shared"] = 3
        sentence = "3 of 50 test images of PneumoniaMNIST are among the images of pretraining, NIH chest X-rays."
        name = "nih_unlabelled"
    experiment["overlap"] = {"pretraining": name, "split": "all", "images": 500, "test": shared}
    run.put("experiment.json", experiment)
    summary = write_report(run.store, RUN)
    page, study = Page(read(run, "index.html")), collect(run.store, RUN)
    for text in (page.text, read(run, "report.md"), summary.table_text):
        assert sentence in text
        assert "PneumoniaMNIST †" in text
        assert "BreastMNIST †" not in text
    [row, *others] = inventory.overlap_table(study).rows
    assert [cell.text for cell in row.cells] == (["50", "50", "100.0%"] if role == "itself" else ["50", "3", "6.0%"])
    assert all(other.cells[1].text == "0" for other in others)
    rows = [(row.group, row.head, row.cells[2].text) for row in inventory.datasets_table(study).rows]
    if role == "itself":
        assert rows[0] == ("Pretrain", "PneumoniaMNIST", "500 unlabelled")
        counts = " / ".join(f"{n:,}" for n in data["pneumoniamnist"]["splits"].values())
        assert ("Downstream", "PneumoniaMNIST", counts) in rows
        assert [info for info in study.experiment.data.values() if info.class_counts]
    assert len(rows) == len(run.datasets) + 1


@pytest.mark.usefixtures("undrawn")
def test_no_overlap_is_said_once_and_an_old_plan_says_nothing() -> None:
    run = small().write()
    write_report(run.store, RUN)
    assert "among the images of pretraining" not in read(run, "index.html")
    shared = {name: {"images": 50, "shared": 0} for name in run.datasets}
    run.experiment(overlap={"pretraining": "nih_unlabelled", "split": "all", "images": 10000, "test": shared})
    summary = write_report(run.store, RUN)
    assert "†" not in summary.table_text
    assert "Beware" not in read(run, "index.html")
    table = "Test images that are among the images of pretraining (NIH chest X-rays, 10,000 images)"
    assert Page(read(run, "index.html")).text.count(table) == 1


@pytest.mark.usefixtures("undrawn")
def test_one_seed_has_no_interval_and_settles_nothing() -> None:
    run = small(seeds=(0,), shrink=1).write()
    write_report(run.store, RUN)
    analysis = Analysis(collect(run.store, RUN), resamples=200)
    assert {c.verdict for c in analysis.comparisons} <= {"unsettled", "none"}
    assert {c.verdict for c in analysis.comparisons if c.method == "byol" and c.protocol == "finetune"} == {"unsettled"}
    table = tables.results_table(analysis)
    assert not [cell for row in table.rows for cell in row.cells if "±" in cell.text]
    assert "one seed cannot say how another would end" in Page(read(run, "index.html")).text


@pytest.mark.usefixtures("undrawn")
def test_a_damaged_record_is_named_and_the_rest_is_shown() -> None:
    run = small().write()
    run.put("downstream/pneumoniamnist/byol-s1/finetune/s1/record.json", b'{"version": 1, "run_id"')
    record = run.downstream("pneumoniamnist", "byol-s2", "byol", "finetune", 2)
    del record["metrics"]
    run.put("downstream/pneumoniamnist/byol-s2/finetune/s2/record.json", record)
    run.put("pretrain/byol-s0/record.json", b"\xff\xfe")
    summary = write_report(run.store, RUN)
    assert summary.missing == [
        "downstream pneumoniamnist/byol-s1/finetune/s1: damaged record (not JSON)",
        "downstream pneumoniamnist/byol-s2/finetune/s2: damaged record (metrics: Field required)",
        "pretrain byol-s0: damaged record (not JSON)",
    ]
    page = Page(read(run, "index.html")).text
    assert "1 of 3 seeds" in page
    assert "PneumoniaMNIST · Fine-tune · BYOL (s1): damaged record (not JSON)" in page


@pytest.mark.usefixtures("undrawn")
def test_objects_that_a_store_finds_rotten_are_named_and_the_rest_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    run = small().write()
    read_object = run.store.read
    job = "downstream/pneumoniamnist/byol-s0"
    rotten = {
        f"{ROOT}/{job}/finetune/s0/record.json", f"{ROOT}/{job}/linear_probe/s0/predictions.csv",
        f"{ROOT}/pretrain/byol-s0/curves.jsonl", f"{ROOT}/samples/pneumoniamnist.png",
    }  # fmt: skip

    def read_or_find_out(key: str) -> bytes:
        if key in rotten:
            raise InputError(f"s3://bucket/{key}: damaged, its SHA-256 is not the one it was written with")
        return read_object(key)

    monkeypatch.setattr(run.store, "read", read_or_find_out)
    summary = write_report(run.store, RUN)
    assert [line.split(": ")[0] for line in summary.missing] == [
        "downstream pneumoniamnist/byol-s0/finetune/s0",
        "downstream pneumoniamnist/byol-s0/linear_probe/s0",
        "pretrain byol-s0",
    ]
    assert all("damaged" in line for line in summary.missing)


@pytest.mark.usefixtures("undrawn")
def test_predictions_that_are_missing_or_damaged_cost_only_what_needs_them() -> None:
    run = small().write()
    folder = "downstream/pneumoniamnist/byol-s0"
    run.store.delete(f"{ROOT}/{folder}/finetune/s0/predictions.csv")
    run.put(f"{folder}/linear_probe/s0/predictions.csv", b"0,0.5,0.5\n")
    run.store.delete(f"{ROOT}/{folder}/few_shot/s0/draws/1/predictions.csv")
    summary = write_report(run.store, RUN)
    reasons = {line.split(": ", 1)[0].split("/")[2]: line.split(": ", 1)[1] for line in summary.missing}
    assert reasons["finetune"].startswith("predictions.csv is missing")
    assert reasons["linear_probe"].startswith("predictions.csv is damaged (its SHA-256")
    assert reasons["few_shot"].startswith("draws/1/predictions.csv is missing")
    by_key = {(c.protocol, c.method): c for c in Analysis(collect(run.store, RUN), resamples=20).comparisons}
    assert by_key["finetune", "byol"].images is None
    assert by_key["finetune", "byol"].seeds.known
    assert all(r.chosen is not None for r in collect(run.store, RUN).cells["pneumoniamnist", "few_shot", "byol"])


@pytest.mark.parametrize(
    ("key", "what", "reason"),
    [
        ("pretrain/byol-s0", {"science": {"pretrain": {"epochs": 300}}}, "pretrain.epochs is 300, the plan says 20"),
        (
            "downstream/pneumoniamnist/byol-s0/finetune/s0",
            {"science": {"protocol": {"name": "finetune", "epochs": 9}}},
            "protocol.epochs is 9, the plan says 25",
        ),
        (
            "downstream/pneumoniamnist/byol-s0/finetune/s0",
            {"data": {"pneumoniamnist": {"sha256": "f" * 64}}},
            "its pneumoniamnist is another file",
        ),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_records_that_a_plan_made_anew_no_longer_means_are_missing(key: str, what: dict[str, Any], reason: str) -> None:
    run = small().write()
    run.experiment(config={"pretrain": {"epochs": 20}, "protocols": {"finetune": {"epochs": 25}}})
    run.put(f"{key}/record.json", json.loads(run.store.read(f"{ROOT}/{key}/record.json")) | what)
    study = collect(run.store, RUN)
    assert [str(missing) for missing in study.missing] == [
        f"{key.replace('/', ' ', 1)}: of another experiment ({reason})"
    ]
    if key.startswith("pretrain"):
        assert "byol-s0" not in {run.record.key for run in study.pretraining}
    else:
        assert 0 not in {result.record.seed for result in study.cells["pneumoniamnist", "finetune", "byol"]}


@pytest.mark.usefixtures("undrawn")
def test_a_name_that_could_be_a_script_is_no_name() -> None:
    run = small().write()
    experiment = json.loads(run.store.read(f"{ROOT}/experiment.json"))
    experiment["data"]['x"><script>alert(1)</script>'] = experiment["data"]["pneumoniamnist"]
    run.put("experiment.json", experiment)
    with pytest.raises(InputError, match="damaged record"):
        write_report(run.store, RUN)


@pytest.mark.usefixtures("undrawn")
def test_missing_test_labels_are_named_and_intervals_over_images_left_out() -> None:
    run = small().write()
    run.store.delete(f"{ROOT}/samples/pneumoniamnist_test_labels.json")
    summary = write_report(run.store, RUN)
    assert any("pneumoniamnist_test_labels.json" in line for line in summary.missing)
    assert f"{ROOT}/report/figures/roc-pneumoniamnist.svg" not in summary.keys
    assert all(c.images is None for c in Analysis(collect(run.store, RUN)).comparisons)


NESTED = b"[" * 100_000
SIDE_FILES = {
    "labels that are too large": ("labels", json.dumps({"labels": [[10**30]]}).encode()),
    "labels that are none": ("labels", b'{"labels": 5}'),
    "labels in too many dimensions": ("labels", b'{"labels": [[[1]]]}'),
    "labels without end": ("labels", NESTED),
    "labels of too many digits": ("labels", b'{"labels": [' + b"1" * 5000 + b"]}"),
    "patients of other images": ("labels", b'{"labels": [0, 1, 1], "patients": [0, 0]}'),
    "patients without numbers": ("labels", b'{"labels": [0, 1, 1], "patients": ["A", "B", "B"]}'),
    "a curve beyond every float": ("curves", b'{"loss": ' + b"1" * 400 + b"}"),
    "a curve of too many digits": ("curves", b'{"loss": ' + b"1" * 5000 + b"}"),
    "a curve without end": ("curves", NESTED),
    "a curve that is no text": ("curves", b"\xff\xfe"),
    "a record of too many digits": ("record", b'{"version": ' + b"1" * 5000 + b"}"),
    "a record without end": ("record", NESTED),
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", SIDE_FILES)
def test_one_damaged_file_costs_what_it_held_and_no_more(name: str) -> None:
    kind, data = SIDE_FILES[name]
    run = small().write()
    if kind == "labels":
        run.put("samples/pneumoniamnist_test_labels.json", data)
    elif kind == "record":
        run.put("downstream/pneumoniamnist/byol-s1/finetune/s1/record.json", data)
    else:
        run.put("pretrain/byol-s0/curves.jsonl", data)
        record = json.loads(run.store.read(f"{ROOT}/pretrain/byol-s0/record.json"))
        record["files"]["curves.jsonl"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        run.put("pretrain/byol-s0/record.json", record)
    [missing] = collect(run.store, RUN).missing
    assert "damaged" in missing.reason
    assert write_report(run.store, RUN).table_text


def test_every_interval_over_images_takes_those_of_a_patient_together() -> None:
    """With the patients beside the labels, each is the interval over patients, and the note says so."""
    run = small(clinical=True, curve=("1", "5", "10", "50"), protocols=("linear_probe", "few_shot")).write()
    y = run.labels("pneumoniamnist")
    patients = np.arange(len(y)) // 4

    def intervals() -> list[Interval]:
        analysis = Analysis(collect(run.store, RUN), resamples=200)
        [first, *_] = analysis.comparisons
        assert first.joint is not None
        assert first.images is not None
        delong = analysis.delong(analysis.results("pneumoniamnist", "linear_probe", "byol")[0])
        [one] = efficiencies(analysis)
        assert delong is not None
        curve = one.curves["byol"].mean(one.y, 0, one.patients)
        return [first.joint, first.images, delong, curve, one.differences["byol", 0]]

    before, rates_before = intervals(), clinical.operating_table(Analysis(collect(run.store, RUN))).rows
    note = tables.differences_table(Analysis(collect(run.store, RUN), resamples=10)).notes[-1]
    assert note.startswith("Test images count as independent")
    run.put("samples/pneumoniamnist_test_labels.json", {"labels": y.tolist(), "patients": patients.tolist()})
    after, rates_after = intervals(), clinical.operating_table(Analysis(collect(run.store, RUN))).rows
    assert [i.mean for i in after] == pytest.approx([i.mean for i in before])
    assert all(abs(a.half_width / b.half_width - 1) > 1e-3 for a, b in zip(after, before, strict=True))
    assert rates_after != rates_before
    analysis = Analysis(collect(run.store, RUN), resamples=10)
    result = analysis.results("pneumoniamnist", "linear_probe", "byol")[0]
    assert result.chosen is not None
    assert after[2] == statistics.delong_interval(y[:, 0], result.chosen, patients=patients)
    assert tables.differences_table(analysis).notes[-1].startswith("On PneumoniaMNIST another test set has other")


def test_the_report_names_the_interval_that_it_shows(full: FakeRun) -> None:
    """Half-widths are joined after Howe; Hillis' interval, whose cover is short, is not shown."""
    text = read(full, "report.md")
    assert "Howe" in (statistics.mixed_interval.__doc__ or "")
    assert text.count("Howe") == 2, "in the note and among the references"
    assert "Hillis" not in text


def test_synthetic_says_so_everywhere_and_compares_with_no_paper() -> None:
    run = small(synthetic=True, protocols=("finetune",)).write()
    summary = write_report(run.store, RUN)
    for text in (Page(read(run, "index.html")).text, read(run, "report.md"), summary.table_text):
        assert SYNTHETIC in text
    page = Page(read(run, "index.html")).text
    assert "cannot be compared" in page
    assert "lie within our" not in page
    rows = list(csv.DictReader(io.StringIO(read(run, "tables.csv"))))
    assert {row["synthetic"] for row in rows} == {"true"}
    assert {row["paper"] for row in rows} == {""}
    assert "MedMNIST v2" not in summary.table_text


@pytest.mark.usefixtures("undrawn")
def test_imagenet_is_the_control_where_random_is_not() -> None:
    run = small(methods=("imagenet", "byol"), protocols=("finetune", "few_shot_frozen")).write()
    summary = write_report(run.store, RUN)
    assert "with the ImageNet start" in summary.table_text
    assert "Few-shot (frozen)" in summary.table_text
    figure5 = paper.figure5_table(Analysis(collect(run.store, RUN)))
    assert figure5.rows[0].cells[1].text == "0.86"  # the paper's Base


@pytest.mark.usefixtures("undrawn")
def test_a_single_method_has_nothing_to_compare_with() -> None:
    run = small(methods=("byol",)).write()
    assert "no pair of a method and a control" in write_report(run.store, RUN).table_text


@pytest.mark.usefixtures("undrawn")
def test_jobs_outside_the_plan_and_checkpoints_are_shown() -> None:
    run = small(methods=("random",)).write()
    for seed in run.seeds:
        run.downstream("pneumoniamnist", "ckpt-0123456789ab", "ckpt-0123456789ab", "finetune", seed)
    summary = write_report(run.store, RUN)
    assert summary.missing == []
    assert "Checkpoint 01234567" in summary.table_text


def test_multi_label_tasks_and_nan_metrics() -> None:
    labels = ("effusion", "mass", "nodule")
    chest = {
        "title": "ChestMNIST", "modality": "Chest X-ray", "task": metrics.MULTI_LABEL, "labels": labels,
        "test": (60, 40, 50), "licence": "CC BY 4.0",
    }  # fmt: skip
    run = small(datasets={"chestmnist": chest}, protocols=("finetune", "linear_probe"), shrink=1).write()
    record = run.downstream("chestmnist", "byol-s0", "byol", "linear_probe", 0)
    record["metrics"]["auroc"] = float("nan")
    record["metrics"]["f1"] = None
    run.put("downstream/chestmnist/byol-s0/linear_probe/s0/record.json", record)
    summary = write_report(run.store, RUN)
    assert summary.missing == []
    assert "n/a" in summary.table_text
    assert f"{ROOT}/report/figures/roc-chestmnist.svg" in summary.keys
    assert f"{ROOT}/report/figures/confusion-chestmnist.svg" not in summary.keys
    for text in (Page(read(run, "index.html")).text, read(run, "report.md")):
        assert "eside the paper" not in text


def test_text_from_the_data_is_escaped() -> None:
    words = {"title": "<script>alert(1)</script>", "labels": ("a $x_1$ & <b>", 'c" onload=')}
    evil = DATASETS["pneumoniamnist"] | words
    run = small(datasets={"pneumoniamnist": evil}, protocols=("finetune",)).write()
    write_report(run.store, RUN)
    html = read(run, "index.html")
    page = Page(html)
    assert the_script_alone(html)
    assert "<script>alert(1)</script>" in page.text
    assert "a $x_1$ & <b>" in page.text
    assert not [a for _, a in page.tags if "onload" in a]
    assert "<script" not in read(run, "report.md")


@pytest.mark.usefixtures("undrawn")
def test_a_folder_holds_the_report_that_opens_in_a_browser(tmp_path: Path) -> None:
    run = small(store=FolderStore(tmp_path), methods=("random",), protocols=("finetune",), seeds=(0,)).write()
    write_report(run.store, RUN)
    assert (tmp_path / ROOT / "report" / "index.html").read_text("utf-8").startswith("<!doctype html>")


def test_no_such_run_and_a_damaged_experiment_are_input_errors() -> None:
    run = small()
    with pytest.raises(InputError, match=f"{RUN}: memory has no such run; it has none"):
        write_report(run.store, RUN)
    with pytest.raises(InputError, match=f"no run '{RUN}' in memory"):
        collect(run.store, RUN)
    run.put("experiment.json", b"{}")
    with pytest.raises(InputError, match=r"damaged record \(run_id: Field required\)"):
        write_report(run.store, RUN)


# --- pieces -----------------------------------------------------------------------------------------


def test_predictions_are_read_in_the_order_of_their_index() -> None:
    np.testing.assert_array_equal(parse_predictions(b"1,0.3,0.7\n0,0.6,0.4\n"), [[0.6, 0.4], [0.3, 0.7]])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no scores"),
        (b"0\n1\n", "no scores"),
        (b"0,0.5\n2,0.5\n", "indices are not 0 to N-1"),
        (b"0,x\n", "could not convert"),
        (b"0,0.5\n1,0.5,0.5\n", "number of columns changed"),
    ],
)
def test_predictions_that_are_no_table_of_scores_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_predictions(data)


def test_roc_curve_has_the_area_of_sklearn() -> None:
    rng = np.random.default_rng(0)
    y = rng.random(800) < 0.5
    score = np.round(y + rng.normal(size=800), 2)
    curve = curves.roc_curve(y, score)
    assert curve is not None
    assert np.trapezoid(curve, dx=1 / 200) == pytest.approx(roc_auc_score(y, score), abs=0.004)
    assert curve[-1] == 1.0
    assert (np.diff(curve) >= 0).all()
    assert curves.roc_curve(np.zeros(4, bool), score[:4]) is None


def test_confusion_matrix_is_the_mean_over_seeds(full: FakeRun, analysis: Analysis) -> None:
    y = full.labels("breastmnist")
    each = [
        metrics.confusion_matrix(y, full.scores("breastmnist", "byol", "finetune", s, 0), "binary-class")
        for s in (0, 1, 2)
    ]
    got = analysis.confusion(("breastmnist", "finetune", "byol"))
    np.testing.assert_allclose(got, np.mean(each, axis=0))


def test_figures_carry_the_numbers_they_draw_and_change_colour_with_the_page(study: Study) -> None:
    info = study.experiment.data["pneumoniamnist"]
    figure = counts.class_histogram("pneumoniamnist", info)
    assert figure is not None
    total = sum(info.class_counts[s][1] for s in info.class_counts)
    assert f"{total:,}" in figure.svg
    assert f"pneumonia {total:,}" in figure.alt
    inline = style.for_page(figure)
    assert style.INK in figure.svg
    assert style.INK not in inline
    assert "var(--ink)" in inline
    assert set(re.findall(r"url\(#([^)]+)\)", inline)) <= set(re.findall(r'id="([^"]+)"', inline))


def test_every_colour_of_a_figure_has_a_variable_in_the_page(full: FakeRun) -> None:
    html = read(full, "index.html")
    for variable in style.PALETTE.values():
        forms = 3 if variable in ("--ink", "--muted", "--line") else 2  # light, dark and, for some, print
        assert html.count(f"{variable}:") == forms, variable


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.9174, 0.905, 0.929, 3), "0.917 ± 0.012"),
        (Interval(0.9174, float("nan"), float("nan"), 1), "0.917"),
        (Interval(float("nan"), float("nan"), float("nan"), 3), "n/a"),
    ],
)
def test_mean_and_half_width(interval: Interval, text: str) -> None:
    assert names.mean_and_half_width(interval) == text


def test_markdown_tables_have_one_width(analysis: Analysis) -> None:
    for build in (tables.results_table, paper.figure5_table, tables.differences_table, tables.delong_table):
        text = table.markdown(build(analysis))
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
        assert len(widths) == 1, build.__name__


def test_published_numbers_are_those_of_the_papers_tables() -> None:
    numbers = paper.published()
    assert set(numbers["figure5"]) == set(numbers["figure6"]) == {"pneumoniamnist", "breastmnist", "dermamnist"}
    assert all(set(v) == {"imagenet", "byol", "byol_plus"} for v in numbers["figure5"].values())
    for by_method in numbers["figure6"].values():
        assert all(set(v) == {"finetune", "linear_probe", "few_shot"} for v in by_method.values())
    # The finding that names our column: on the binary sets the printed "AUC" equals the printed macro recall.
    for name in ("pneumoniamnist", "breastmnist"):
        assert all(v["auc"] == v["recall"] for v in numbers["figure5"][name].values())
    assert len(numbers["medmnist"]["resnet18_28"]) == 12


# --- label efficiency -------------------------------------------------------------------------------


def test_labels_saved_come_first_with_their_figure_and_table(curved: FakeRun) -> None:
    page, text = Page(read(curved, "index.html")), read(curved, "report.md")
    assert curved.summary is not None
    assert curved.summary.missing == []
    for said in (page.text, text, curved.summary.table_text):
        assert re.search(
            r"On PneumoniaMNIST, few-shot \(frozen\): 40 labels with BYOL do (what|more than) [\d,]+", said
        )
    assert "figures/label-efficiency.svg" in text
    assert page.text.index("40 labels with BYOL") < page.text.index("Label efficiency") + 500
    assert page.text.index("Every point of the curves") < page.text.index("Test AUROC: mean")
    found = efficiencies(Analysis(collect(curved.store, RUN), resamples=10))
    assert [one.dataset for one in found] == list(DATASETS)
    assert found[0].budgets == ("1", "5", "10", "20", "50", "100%")
    rows = efficiency_table(Analysis(collect(curved.store, RUN), resamples=10), found).rows
    assert rows[3].head == "40 labels (k = 20)"
    needed = found[0].needed["byol"]
    assert needed.labels == 40
    assert needed.needed > 40, "byol is better on pneumonia"
    assert found[2].needed["byol"].needed < found[2].k, "and worse on derma"


def test_the_verdict_says_where_labels_are_saved_and_lost(analysis: Analysis) -> None:
    def one(dataset: str, settled: tuple[list[float], list[float]] = ([], []), **needed: tuple[float, float]) -> Any:
        found = {m: LabelsNeeded(40, sum(ends) / 2, *ends) for m, ends in needed.items()}
        curve = SimpleNamespace(labels=np.array([2.0, 200.0]))
        return SimpleNamespace(
            dataset=dataset, protocol="few_shot_frozen", baseline="random", k=40.0, methods=tuple(found),
            needed=found, curves={"random": curve}, settled=lambda method: settled, seeds=3,
        )  # fmt: skip

    open_ended = one("breastmnist", byol=(30, float("inf")))
    [first, *rest] = labels_verdict(analysis.study, [open_ended])
    assert first == "That pretraining saves labels is settled nowhere."
    assert rest == [
        "On BreastMNIST, few-shot (frozen): 40 labels with BYOL do more than 200, the most that were tried, from the "
        "Random start (95 %: it needs 30 to more than 200; not settled)."
    ]
    [_, apart] = labels_verdict(analysis.study, [one("breastmnist", byol=(60, 90))])
    assert apart.endswith("(95 %: it needs 60 to 90; not settled after the correction for all numbers of labels).")
    [_, below] = labels_verdict(analysis.study, [one("breastmnist", ([], [40.0]), byol=(0, 0))])
    assert below == (
        "On BreastMNIST, few-shot (frozen): 40 labels with BYOL do what 2, the fewest that were tried, or fewer do "
        "from the Random start: 38 lost, or more (95 %: it needs fewer than 2)."
    )
    found = [
        one("pneumoniamnist", ([40.0], []), byol=(50, 90), byol_plus=(41, 99)),
        open_ended,
        one("dermamnist", ([10.0, 4.0, 40.0], [100.0, 2000.0]), byol=(50, 60)),
    ]
    assert labels_verdict(analysis.study, found)[0] == (
        "Pretraining saves labels on PneumoniaMNIST: BYOL with 40 labels, BYOL+ with 40 labels; on dermamnist: BYOL "
        "with 4, 10 and 40 labels. It costs labels on dermamnist: BYOL with 100 and 2,000 labels."
    )
    assert labels_verdict(analysis.study, ()) == []


def test_where_a_curve_is_settled() -> None:
    """By Holm's correction, at k too."""
    labels, y, spread = np.array([2.0, 4, 10, 20, 40]), np.repeat([0, 1], 30), np.array([-0.01, 0, 0.005, 0.005])

    def curves(*gains: float) -> dict[str, Curve]:
        control = 0.5 + 0.05 * np.log2(labels)[:, None] + np.zeros((1, 4))
        components = np.zeros((len(labels), 4, len(y)))
        ours = control + np.array(gains)[:, None] + spread
        return {"random": Curve(labels, control, components), "byol": Curve(labels, ours, components)}

    def settled(k: float, *gains: float) -> tuple[list[float], list[float]]:
        budgets = tuple(f"{n:.0f}" for n in labels)
        return Efficiency("x", "few_shot_frozen", "random", budgets, k, curves(*gains), y).settled("byol")

    assert settled(40, 0.1, 0.1, 0, -0.1, 0) == ([2, 4], [20])
    slight = 0.017  # beyond the interval of one difference, not of five
    assert settled(40, 0, slight, 0, -slight, 0) == ([], [])
    assert settled(4, 0, slight, 0, -slight, 0) == ([], [])
    assert settled(4, 0.1, 0.1, 0, -0.1, 0) == ([2, 4], [20])
    assert settled(20, 0, slight, 0, -slight, 0) == ([], [])


def validate(run: FakeRun, protocol: str, seed: int, **auroc: float) -> None:
    """Say that the methods did so on the validation images of PneumoniaMNIST."""
    for init, method, of in run.inits():
        if of == seed and method in auroc:
            record = run.downstream("pneumoniamnist", init, method, protocol, seed)
            record["validation"]["auroc"] = auroc[method]
            run.put(f"downstream/{record['key']}/record.json", record)


def test_the_model_to_take_is_best_on_validation_data() -> None:
    run = small(protocols=("finetune",), seeds=(0, 1)).write()
    validate(run, "finetune", 0, random=0.8, byol=0.9, byol_plus=0.85)
    validate(run, "finetune", 1, random=0.81, byol=0.91, byol_plus=0.86)
    assert models_to_take(Analysis(collect(run.store, RUN), resamples=10)) == [
        "Take BYOL of seed 1, best on validation data (mean validation AUROC 0.905 over 1 cell; BYOL+ 0.855, Random "
        f"0.805): {ROOT}/pretrain/byol-s1/encoder.safetensors"
    ]
    validate(run, "finetune", 0, random=0.95)
    validate(run, "finetune", 1, random=0.95)
    [said] = models_to_take(Analysis(collect(run.store, RUN), resamples=10))
    assert said.startswith("Take no encoder of this run: the Random start does best on validation data")
    assert models_to_take(Analysis(collect(small(methods=("byol",)).write().store, RUN), resamples=10)) == []


def test_few_labels_and_all_labels_may_ask_for_other_models() -> None:
    run = small(protocols=("linear_probe", "few_shot_frozen"), seeds=(0,)).write()
    validate(run, "linear_probe", 0, random=0.98, byol=0.9, byol_plus=0.97)
    validate(run, "few_shot_frozen", 0, random=0.6, byol=0.7, byol_plus=0.65)
    assert models_to_take(Analysis(collect(run.store, RUN), resamples=10)) == [
        "With few labels take BYOL of seed 0, best on validation data (mean validation AUROC 0.700 over 1 cell; BYOL+ "
        f"0.650, Random 0.600): {ROOT}/pretrain/byol-s0/encoder.safetensors",
        "With all labels take no encoder of this run: the Random start does best on validation data (mean validation "
        "AUROC 0.980 over 1 cell; BYOL 0.900, BYOL+ 0.970).",
    ]
    validate(run, "linear_probe", 0, byol=0.99)
    [said] = models_to_take(Analysis(collect(run.store, RUN), resamples=10))
    assert said.startswith("Take BYOL of seed 0, best on validation data (mean validation AUROC 0.845 over 2 cells;")


def by_hand(run: FakeRun, init: str, seed: int, validation: float, test: float = 0.5) -> None:
    """Judge an encoder by fine-tuning with another seed than its own."""
    record = run.downstream("pneumoniamnist", init, "byol", "finetune", seed)
    record["validation"]["auroc"], record["metrics"]["auroc"] = validation, test
    run.put(f"downstream/{record['key']}/record.json", record)


def test_an_encoder_that_is_judged_by_another_seed_keeps_its_name() -> None:
    run = small(protocols=("finetune",), methods=("random", "byol"), seeds=(0, 1)).write()
    validate(run, "finetune", 0, random=0.8, byol=0.9)
    validate(run, "finetune", 1, random=0.8, byol=0.85)

    def said() -> str:
        return models_to_take(Analysis(collect(run.store, RUN), resamples=10))[0]

    assert said().startswith("Take BYOL of seed 0, best on validation data (mean validation AUROC 0.875 over 1 cell;")
    by_hand(run, "byol-s1", 7, 0.99)  # no control has this seed
    assert said().startswith("Take BYOL of seed 0, best on validation data (mean validation AUROC 0.875 over 1 cell;")
    by_hand(run, "byol-s1", 0, 0.99)
    assert said().startswith("Take BYOL of seed 1, best on validation data (mean validation AUROC 0.910 over 1 cell;")


def test_a_cell_that_a_method_lacks_leaves_the_advice_to_the_others() -> None:
    run = small(protocols=("finetune", "linear_probe"), methods=("random", "byol"), seeds=(0, 1)).write()
    validate(run, "finetune", 0, random=0.8, byol=0.9)
    validate(run, "finetune", 1, random=0.8, byol=0.9)
    validate(run, "linear_probe", 0, random=0.8, byol=0.8)
    run.store.delete(f"{ROOT}/downstream/pneumoniamnist/byol-s1/linear_probe/s1/record.json")
    [said] = models_to_take(Analysis(collect(run.store, RUN), resamples=10))
    assert said.startswith("Take BYOL of seed 0, best on validation data (mean validation AUROC 0.850 over 2 cells;")
    run.store.delete(f"{ROOT}/downstream/pneumoniamnist/byol-s0/finetune/s0/record.json")
    run.put("downstream/pneumoniamnist/byol-s1/linear_probe/s1/record.json", b"")
    [said] = models_to_take(Analysis(collect(run.store, RUN), resamples=10))
    assert said.startswith("Take none yet: BYOL does best")
    assert said.endswith("none of its encoders has them all.")


def test_several_jobs_of_a_seed_are_one_value() -> None:
    run = small(protocols=("finetune",), methods=("random", "byol"), seeds=(0, 1)).write()
    key = ("pneumoniamnist", "finetune", "byol")
    before = Analysis(collect(run.store, RUN), resamples=10).metric(key, "auroc")
    seed = collect(run.store, RUN).cells[key][0].record.metrics["auroc"]
    by_hand(run, "byol-s1", 0, 0.9, test=seed - 0.2)
    after = Analysis(collect(run.store, RUN), resamples=10).metric(key, "auroc")
    assert (before.n, after.n) == (2, 2)
    assert after.mean == pytest.approx(before.mean - 0.05)


@pytest.mark.usefixtures("undrawn")
def test_a_job_by_hand_does_not_count_for_one_that_is_planned() -> None:
    run = small(protocols=("finetune",), methods=("random", "byol"), seeds=(0, 1)).write()
    by_hand(run, "byol-s1", 7, 0.9)
    run.store.delete(f"{ROOT}/downstream/pneumoniamnist/byol-s1/finetune/s1/record.json")
    study = collect(run.store, RUN)
    assert build_context(Analysis(study, resamples=10))["progress"] == "6 of 7 jobs"
    cell = tables.results_table(Analysis(study, resamples=10)).rows[0].cells[1]
    assert cell.note == "1 of 2 seeds"


def test_labels_saved_say_why_there_is_no_interval(analysis: Analysis) -> None:
    y, labels = np.repeat([0, 1], [30, 1]), np.array([2.0, 20, 200])
    rng = np.random.default_rng(0)

    def sentence(y: NDArray[np.int64]) -> str:
        found = [
            [statistics.auroc_components(y, rng.random(len(y)) + y * up) for _ in range(3)] for up in (0.1, 0.2, 0.3)
        ]
        areas, own = (np.array([[seed[i] for seed in point] for point in found]) for i in (0, 1))
        curves = {"random": Curve(labels, areas, own), "byol": Curve(labels, areas, own)}
        one = Efficiency("x", "few_shot_frozen", "random", ("1", "10", "100"), 20, curves, y)
        return saved_sentence("X", one, "byol")

    assert sentence(y).endswith("a class with a single test image or patient gives no interval.")
    assert sentence(np.ones(31, dtype=np.int64)).endswith("their AUROC is not defined on the test images.")


def test_the_point_of_k_is_that_of_the_protocol(curved: FakeRun) -> None:
    analysis = Analysis(collect(curved.store, RUN), resamples=10)
    for one in efficiencies(analysis):
        at = one.budgets.index(str(K))
        [c] = [c for c in analysis.comparisons
               if (c.dataset, c.method, c.baseline) == (one.dataset, "byol", "random")]  # fmt: skip
        assert c.joint is not None
        assert one.differences["byol", at].mean == pytest.approx(c.joint.mean)
        assert one.differences["byol", at].p == pytest.approx(c.joint.p)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("harm", ["gone", "rotten", "short"])
def test_scores_of_a_label_curve_that_are_damaged_cost_the_curve_alone(harm: str) -> None:
    run = small(protocols=("few_shot_frozen",), curve=("1", "5", "50")).write()
    folder = "downstream/pneumoniamnist/byol-s0/few_shot_frozen/s0"
    key = f"{ROOT}/{folder}/label_curve.safetensors"
    if harm == "gone":
        run.store.delete(key)
    else:
        data = b"no tensors" if harm == "rotten" else safetensors.numpy.save({"1": np.zeros((2, 3, 2))})
        run.store.write(key, data)
        record = json.loads(run.store.read(f"{ROOT}/{folder}/record.json"))
        record["files"]["label_curve.safetensors"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        run.put(f"{folder}/record.json", record)
    summary = write_report(run.store, RUN)
    [line] = summary.missing
    assert "label_curve.safetensors" in line
    analysis = Analysis(collect(run.store, RUN), resamples=10)
    assert all(c.joint is not None for c in analysis.comparisons)
    [one] = efficiencies(analysis)
    assert one.seeds == 2


@pytest.mark.parametrize(
    ("labels", "text"), [(7.4, "7"), (99.6, "100"), (128, "130"), (1234, "1,200"), (float("inf"), "∞")]
)
def test_numbers_of_labels_are_rounded(labels: float, text: str) -> None:
    assert efficiency.count(labels) == text


# --- what a clinician asks --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked() -> FakeRun:
    both = {name: info for name, info in DATASETS.items() if info["task"] == metrics.BINARY}
    run = FakeRun(datasets=both, shrink=4, protocols=("linear_probe",), clinical=True).write()
    run.summary = write_report(run.store, RUN)
    return run


def test_operating_points_calibration_features_and_errors_are_shown(asked: FakeRun) -> None:
    page, text = Page(read(asked, "index.html")), read(asked, "report.md")
    assert asked.summary is not None
    assert asked.summary.missing == []
    for said in (page.text, text):
        assert "Operating points on the test images" in said
        assert "Calibration on the test images" in said
        assert "with two classes the probability of the second against how often it is the second" in said
        assert "normal taken for pneumonia" in said
    assert {"reliability.svg", "embedding-breastmnist.svg"} <= {key.split("/")[-1] for key in asked.summary.keys}
    pictures = [a for tag, a in page.tags if tag == "img" and "most surely wrong" in str(a.get("alt"))]
    assert len(pictures) == 6


def test_thresholds_of_operating_points_are_those_of_validation_images(asked: FakeRun) -> None:
    analysis = Analysis(collect(asked.store, RUN), resamples=10)
    table = clinical.operating_table(analysis)
    assert {row.group.split(" · ")[0] for row in table.rows} == {"PneumoniaMNIST", "BreastMNIST"}
    [cell] = [row.cells[0].text for row in table.rows
              if (row.group, row.head) == ("PneumoniaMNIST · Linear probe", "BYOL")]  # fmt: skip
    each = []
    for job in clinical.judged(analysis, ("pneumoniamnist", "linear_probe", "byol")):
        negative = np.sort(job.validation[job.val_truth == 0, 1])
        at = negative[int(np.ceil(0.9 * len(negative))) - 1]
        each.append((job.test[job.truth == 1, 1] > at).mean())
    assert float(cell.split(" ")[0]) == pytest.approx(np.mean(each), abs=0.03)
    assert re.fullmatch(r"0\.\d\d \[0\.\d\d, [01]\.\d\d\]", cell)


def test_jobs_older_than_validation_scores_have_no_such_sections(full: FakeRun) -> None:
    text = read(full, "report.md")
    assert "Operating points" not in text
    assert "Calibration on" not in text
    assert full.summary is not None
    assert full.summary.missing == []


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("val_predictions.csv", b"0,x\n"), ("val_predictions.csv", b"0,0.5,0.5\n"), ("embedding.csv", b"1\n"),
        ("embedding.csv", b"1,2\n"), ("embedding.csv", b"x,y\n"),
    ],
)  # fmt: skip
def test_damaged_extras_cost_themselves_alone(name: str, data: bytes) -> None:
    run = small(protocols=("linear_probe",), clinical=True).write()
    folder = "downstream/pneumoniamnist/byol-s0/linear_probe/s0"
    run.put(f"{folder}/{name}", data)
    record = json.loads(run.store.read(f"{ROOT}/{folder}/record.json"))
    record["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    run.put(f"{folder}/record.json", record)
    [line] = write_report(run.store, RUN).missing
    assert name in line
    assert all(c.joint is not None for c in Analysis(collect(run.store, RUN), resamples=10).comparisons)
