"""The downstream job: one data set, one initialisation, one protocol, one seed; train, choose, judge."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.config import identity
from app.data import Dataset, draw_overlap, few_shot_draw
from app.errors import CollapseError
from app.jobs import keys
from app.jobs.checkpoint import dump_weights
from app.jobs.job import Job, open_job
from app.jobs.run import Run, load_labelled, now
from app.runtime import Progress, choose_device, environment, prepare
from app.science import metrics
from app.science.draws import generator
from app.science.finetuning import Fit, Labelled, fit, n_outputs, predict, probabilities
from app.science.networks import Classifier, Encoder
from app.science.protocols import PROTOCOLS
from app.settings import ProtocolName
from app.stages.weights import Weights, describe, initial_weights


def run(
    run: Run, *, dataset: str, init: str, protocol: ProtocolName, seed: int, overwrite: bool = False
) -> dict[str, Any]:
    """Train and judge one classifier (or one per few-shot draw) and publish model, predictions and record.

    The epoch, and of several draws the saved model, are chosen on the validation split; each trained model
    reads the test split once.

    Args:
        run: the run.
        dataset: a labelled data set.
        init: ``random``, ``imagenet``, a pretraining of this run (``byol-s0``), or the URI of a state dict.
        protocol: one of ``protocols.PROTOCOLS``.
        seed: names the draws of images, their order, the linear layer and, for ``random``, the encoder.
        overwrite: start afresh, whatever is there.

    Returns:
        The job's record.

    Raises:
        InputError: a missing or damaged input, or weights of another architecture.
        UsageError: k is larger than a class.
        Interrupted: a signal came.
        CollapseError: the loss is not finite; ``curves.jsonl`` shows the way there.
    """
    config = run.config
    data = load_labelled(run, dataset)
    weights = initial_weights(run, init)
    name = str(keys.Downstream(dataset, weights.name, protocol, seed))
    folder = keys.downstream(run.run_id, name)
    progress = Progress("downstream", run_id=run.run_id, job=name)
    settings = getattr(config.protocols, protocol).model_dump()
    science = {
        "dataset": {
            "name": data.name,
            "sha256": data.sha256,
            "size": data.size,
            "subset": config.data.subset,
        },
        "task": data.task,
        "init": weights.identity,
        "network": {"architecture": config.network.architecture, "stem": config.network.stem},
        "protocol": {"name": protocol} | settings,
        "seed": seed,
    }
    with open_job(run, folder, science, progress=progress, overwrite=overwrite) as job:
        if job.record is not None:
            return job.record
        return job.publish(*work(run, job, data, weights, protocol, seed))


def work(
    run: Run, job: Job, data: Dataset, weights: Weights, protocol: ProtocolName, seed: int
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Train and judge; return the files and the record."""
    config = run.config
    recipe = getattr(config.protocols, protocol)
    device = choose_device(config.runtime.device)
    prepare(device, config.runtime.threads)
    begin = time.perf_counter()
    kind = PROTOCOLS[protocol]
    k, draws = (recipe.k, recipe.draws) if kind.few else (0, 1)
    train = Labelled.of(data.train.images, data.train.labels, device)
    val = Labelled.of(data.val.images, data.val.labels, device)
    test_images = Labelled.of(data.test.images, data.test.labels, device).images
    chosen = [choose_images(data, k, seed, draw, protocol) for draw in range(draws)] if kind.few else []
    saved = job.restore()
    outcomes: list[Outcome] = []
    fit_state: dict[str, Any] | None = None
    seconds, epochs_done = 0.0, 0
    if saved is not None:
        with job.resuming():
            outcomes = [Outcome.of_state(state) for state in saved["outcomes"]]
            fit_state, seconds = saved["fit"], float(saved["seconds"])
            epochs_done = len(outcomes) * recipe.epochs + len(saved["fit"]["curves"])
        job.progress.say(f"continues at epoch {epochs_done + 1} of {draws * recipe.epochs}")

    def after_step(step: int, state: Callable[[], dict[str, Any]]) -> None:
        def whole() -> dict[str, Any]:
            return {
                "outcomes": [outcome.state() for outcome in outcomes],
                "fit": state(),
                "seconds": seconds + time.perf_counter() - begin,
            }

        step += sum(outcome.fit.steps for outcome in outcomes)
        job.after_step(step, whole, f"step {step}")

    with job.progress.bar(draws * recipe.epochs, epochs_done) as bar:
        for draw in range(len(outcomes), draws):
            classifier = build_classifier(run, data, weights, seed, draw).to(device)
            try:
                outcome = fit(
                    classifier,
                    train.take(chosen[draw]) if kind.few else train,
                    val,
                    protocol=kind,
                    recipe=recipe,
                    task=data.task,
                    key=(data.name, seed, draw),
                    check=bar.advance,
                    after_step=after_step,
                    resume=fit_state,
                )
            except CollapseError as error:
                job.claim.confirm()
                curves = curves_jsonl([*(o.fit.curves for o in outcomes), error.curves])
                run.store.write(f"{job.folder}/{keys.CURVES}", curves)
                raise
            fit_state = None
            outcomes.append(Outcome.judge(classifier, outcome, data, val, test_images))
            keep_best_model(outcomes)

    best = best_of(outcomes)
    model = outcomes[best].model
    assert model is not None, "the best outcome keeps its model"
    metadata = describe(
        config,
        synthetic=data.synthetic,
        task=data.task,
        labels=json.dumps(data.labels),
        dataset=data.title,
        init=weights.name,
        protocol=protocol,
        seed=str(seed),
        licence=data.licence,
    )
    files = {
        keys.PREDICTIONS: predictions_csv(outcomes[best].scores),
        keys.MODEL: dump_weights(model, metadata),
    }
    if kind.few:
        files |= {keys.draw_predictions(d): predictions_csv(o.scores) for d, o in enumerate(outcomes)}
    return files, {
        "version": 1,
        "kind": "downstream",
        "run_id": run.run_id,
        "key": str(keys.Downstream(data.name, weights.name, protocol, seed)),
        "dataset": data.name,
        "init": weights.name,
        "method": keys.method_of(weights.name),
        "protocol": protocol,
        "seed": seed,
        "synthetic": data.synthetic,
        "identity": identity(job.science),
        "science": job.science,
        "config": config.model_dump(mode="json"),
        "environment": environment(device),
        "data": {data.name: {"sha256": data.sha256}},
        "task": data.task,
        "labels": data.labels,
        "metrics": _mean([o.test for o in outcomes]),
        "validation": _mean([o.validation for o in outcomes]),
        "confusion_matrix": metrics.confusion_matrix(data.test.labels, outcomes[best].scores, data.task),
        "per_class_auroc": _none_for_nan(metrics.per_class_auroc(data.test.labels, outcomes[best].scores, data.task)),
        "best_epoch": outcomes[best].fit.best_epoch,
        "curves": outcomes[best].fit.curves,
        "chosen_draw": best if kind.few else None,
        "draws": [
            {
                "draw": d,
                "indices": chosen[d].tolist(),
                "metrics": _mean([o.test]),
                "best_epoch": o.fit.best_epoch,
            }
            for d, o in enumerate(outcomes)
            if kind.few
        ],
        "draw_overlap": draw_overlap(chosen) if kind.few else None,
        "timings": {"seconds": round(seconds + time.perf_counter() - begin, 3)},
        "finished": now(),
    }


@dataclass
class Outcome:
    """A trained classifier, judged.

    Attributes:
        fit: the way there.
        scores: of the test images, float64, (N, C).
        test: metrics on the test split.
        validation: metrics on the validation split.
        model: weights, off the device; None once another draw is better.
    """

    fit: Fit
    scores: NDArray[np.float64]
    test: dict[str, float]
    validation: dict[str, float]
    model: dict[str, Tensor] | None

    @classmethod
    def judge(cls, classifier: Classifier, outcome: Fit, data: Dataset, val: Labelled, test_images: Tensor) -> Outcome:
        """Judge a classifier on both splits: the one time that it reads the test split."""
        scores = probabilities(predict(classifier, test_images), data.task)
        val_scores = probabilities(predict(classifier, val.images), data.task)
        return cls(
            fit=outcome,
            scores=scores,
            test=metrics.evaluate(data.test.labels, scores, data.task),
            validation=metrics.evaluate(data.val.labels, val_scores, data.task),
            model={name: value.cpu() for name, value in classifier.plain_state().items()},
        )

    @property
    def choice(self) -> tuple[float, float]:
        """What the draws are compared by: validation AUROC, then the lower validation loss."""
        best = self.fit.curves[self.fit.best_epoch - 1]
        return (-1.0 if best["val_auroc"] is None else best["val_auroc"], -best["val_loss"])

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "fit": {"best_epoch": self.fit.best_epoch, "curves": self.fit.curves, "steps": self.fit.steps},
            "scores": torch.from_numpy(self.scores),
            "test": {name: float(value) for name, value in self.test.items()},
            "validation": {name: float(value) for name, value in self.validation.items()},
            "model": self.model,
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Outcome:
        """Return the outcome of which this is the ``state``."""
        return cls(
            fit=Fit(**state["fit"]),
            scores=state["scores"].numpy(),
            test=state["test"],
            validation=state["validation"],
            model=state["model"],
        )


def best_of(outcomes: list[Outcome]) -> int:
    """Return the number of the draw that validates best; of equals, the first."""
    return max(range(len(outcomes)), key=lambda draw: outcomes[draw].choice)


def keep_best_model(outcomes: list[Outcome]) -> None:
    """Forget the weights of all but the best: no more will be asked of them."""
    best = best_of(outcomes)
    for draw, outcome in enumerate(outcomes):
        if draw != best:
            outcome.model = None


def build_classifier(run: Run, data: Dataset, weights: Weights, seed: int, draw: int) -> Classifier:
    """Make the classifier before training: the encoder as initialised, the linear layer drawn from the seed."""
    torch.manual_seed(generator("weights", seed).initial_seed())
    encoder = Encoder(run.config.network.architecture, run.config.network.stem)
    weights.load_into(encoder)
    torch.manual_seed(generator("head", data.name, seed, draw).initial_seed())
    return Classifier(encoder, n_outputs(data.task, data.n_classes))


def choose_images(data: Dataset, k: int, seed: int, draw: int, protocol: str) -> NDArray[np.int64]:
    """Return the training indices of one few-shot draw: the same for every initialisation."""
    return few_shot_draw(
        data.train.labels, k, seed=seed, draw=draw,
        class_names=data.class_names, dataset=data.name, protocols=[protocol],
    )  # fmt: skip


def predictions_csv(scores: NDArray[np.float64]) -> bytes:
    """Write scores (N, C) as MedMNIST's Evaluator reads them: index and one column per class, no header."""
    rows = (",".join([str(index), *(repr(float(s)) for s in row)]) for index, row in enumerate(scores))
    return "".join(f"{row}\n" for row in rows).encode()


def curves_jsonl(draws: Sequence[Sequence[Mapping[str, Any]]]) -> bytes:
    """Write the curves of each draw as JSON lines; what is not finite, which JSON cannot say, as null."""

    def plain(value: float | None) -> float | None:
        return None if value is None or not math.isfinite(value) else value

    lines = [
        {"draw": draw} | {name: plain(value) for name, value in line.items()}
        for draw, curves in enumerate(draws)
        for line in curves
    ]
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


def _mean(values: list[dict[str, float]]) -> dict[str, float | None]:
    return dict(zip(values[0], _none_for_nan([float(np.mean([v[m] for v in values])) for m in values[0]]), strict=True))


def _none_for_nan(values: list[float]) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values]
