"""The downstream job: one data set, one initialisation, one protocol, one seed; train, choose, judge."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from app.config import identity
from app.data import Dataset, draw_overlap, few_shot_draw
from app.errors import CollapseError, Misfit
from app.jobs import keys
from app.jobs.checkpoint import dump_weights
from app.jobs.job import Job, done_as_planned, open_job
from app.jobs.records import DatasetInfo, DownstreamRecord, FewShotDraw, Pointer
from app.jobs.run import Run, load_labelled, now, planned_data
from app.progress import Progress
from app.runtime import choose_device, environment, machine_of, prepare
from app.science import metrics
from app.science.convolutions import Table, names_of, table_of, use
from app.science.finetuning import Labelled, fit, n_outputs
from app.science.generators import generator
from app.science.networks import Classifier, Encoder, to_float
from app.science.protocols import protocol_of
from app.settings import Config, FewShotRecipe, ProtocolName, Recipe
from app.stages.kernel_choice import choose_kernels
from app.stages.label_curve import LabelCurve
from app.stages.outcome import Outcome, best_of, curves_jsonl, keep_best_model, mean_of, predictions_csv
from app.stages.pictures import embedding_csv, errors_of, sheet
from app.stages.samples import join_data
from app.stages.weights import Weights, describe, initial_weights, keep_encoder


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
    weights = initial_weights(run, init)
    name = str(keys.Downstream(dataset, weights.name, protocol, seed))
    folder = keys.downstream(run.run_id, name)
    progress = Progress("downstream", run_id=run.run_id, job=name)
    if not overwrite and (planned := planned_data(run, dataset)) is not None:
        science = science_of(config, dataset, planned, weights, protocol, seed)
        if (record := done_as_planned(run, folder, science, progress=progress)) is not None:
            return record
    data = load_labelled(run, dataset)
    science = science_of(config, dataset, data, weights, protocol, seed)
    with open_job(run, folder, science, progress=progress, overwrite=overwrite) as job:
        if job.record is not None:
            return job.record
        device = choose_device(config.runtime.device)
        prepare(device, config.runtime.threads)
        work = Evaluation(run, job, data, weights, protocol, seed, device)
        total = work.draws * work.recipe.epochs + (len(work.curve.trials) if work.curve else 0)
        if (state := job.restore()) is not None:
            with job.resuming():
                work.restore(state)
                progress.say(f"continues at epoch {work.epochs_done + 1} of {total}")
                if work.began_on != machine_of(work.device):
                    progress.say(f"began on another machine ({work.began_on}): from here on equal to rounding alone")
        with progress.bar(total, work.epochs_done) as bar:
            while len(work.outcomes) < work.draws:
                work.run_draw(bar.advance)
            work.run_curve(bar.advance)
        join_data(run, data, "downstream")
        files, encoder = work.files()
        return job.publish(files, work.record(encoder))


def science_of(
    config: Config, dataset: str, data: Dataset | DatasetInfo, weights: Weights, protocol: ProtocolName, seed: int
) -> dict[str, Any]:
    """Return what decides the result: settings that are read, the seed, and data and weights by checksum."""
    return {
        "dataset": {
            "name": dataset,
            "sha256": data.sha256,
            "size": data.size,
            "subset": config.data.subset,
        },
        "task": data.task,
        "init": weights.identity,
        "network": {"architecture": config.network.architecture, "stem": config.network.stem},
        "protocol": protocol_science(config, protocol),
        "seed": seed,
    }


def protocol_science(config: Config, protocol: ProtocolName) -> dict[str, Any]:
    """Return what of a result is decided by its protocol: the name, and the settings as JSON has them."""
    recipe: Recipe = getattr(config.protocols, protocol)
    return {"name": protocol} | recipe.model_dump(mode="json", exclude_defaults=True)


class Evaluation:
    """A downstream job at work: one training for each draw, or a single one, and what came of them so far."""

    def __init__(
        self, run: Run, job: Job, data: Dataset, weights: Weights, protocol: ProtocolName, seed: int, device: str
    ) -> None:
        self.begin, self.seconds_before = time.perf_counter(), 0.0
        self.run, self.job, self.data, self.weights = run, job, data, weights
        self.protocol, self.seed, self.device = protocol, seed, device
        self.recipe: Recipe = getattr(run.config.protocols, protocol)
        self.kind = protocol_of(protocol, self.recipe)
        few = self.recipe if isinstance(self.recipe, FewShotRecipe) else None
        self.draws = few.draws if few else 1
        self.train = Labelled.of(data.train.images, data.train.labels, device)
        self.val = Labelled.of(data.val.images, data.val.labels, device)
        self.test = Labelled.of(data.test.images, data.test.labels, device)
        self.chosen = [choose_images(data, few.k, seed, draw, protocol) for draw in range(few.draws)] if few else []
        self.outcomes: list[Outcome] = []
        self.curve = LabelCurve(data, few, self.kind, seed, self.build, self.head) if few and few.curve else None
        self.fit_state: dict[str, Any] | None = None
        self.kernels: Table | None = None  # until they are chosen
        self.began_on = machine_of(self.device)

    @property
    def seconds(self) -> float:
        """Seconds of work, those before an interruption included."""
        return self.seconds_before + time.perf_counter() - self.begin

    @property
    def epochs_done(self) -> int:
        """Epochs of all draws that a checkpoint had behind it."""
        points = len(self.curve.points) if self.curve else 0
        return (
            len(self.outcomes) * self.recipe.epochs + len(self.fit_state["curves"] if self.fit_state else ()) + points
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned."""
        self.outcomes = [Outcome.of_state(outcome) for outcome in state["outcomes"]]
        if self.outcomes and self.outcomes[best_of(self.outcomes)].model is None:
            raise ValueError("the best draw has no model")
        self.fit_state, self.seconds_before = state["fit"], float(state["seconds"])
        if self.curve is not None:
            self.curve.restore(state.get("label_curve", []))
        self.kernels = table_of(state.get("kernels", {}))
        self.began_on = state.get("machine", self.began_on)

    def state(self, fit_state: dict[str, Any] | None) -> dict[str, Any]:
        """Return everything needed to go on, in the midst of the training whose state is ``fit_state``, if any is."""
        outcomes = [outcome.state() for outcome in self.outcomes]
        kernels = names_of(self.kernels or {})
        job = {"seconds": self.seconds, "kernels": kernels, "machine": self.began_on}
        curve = {"label_curve": self.curve.state()} if self.curve else {}
        return {"outcomes": outcomes, "fit": fit_state} | curve | job

    def build(self, draw: int) -> Classifier:
        """Make the classifier of a draw, as it is before training."""
        classifier = build_classifier(self.run, self.data, self.weights, self.seed, draw).to(self.device)
        use(classifier, self.kernels or {})
        return classifier

    def head(self, encoder: Encoder, draw: int) -> nn.Linear:
        """Make the linear layer of a draw, as it is before training."""
        return build_head(encoder, self.data, self.seed, draw).to(self.device)

    def run_curve(self, advance: Callable[[], None]) -> None:
        """Train and judge on fewer and more labels, if that is asked for."""
        if self.curve is None:
            return
        if self.kind.frozen:  # already, unless all draws are from a checkpoint
            self.val, self.test = (data.encoded(self.curve.encoder) for data in (self.val, self.test))
        steps = sum(outcome.fit.steps for outcome in self.outcomes)

        def check() -> None:
            points = len(self.curve.points) if self.curve else 0
            self.job.after_step(steps + points, lambda: self.state(None), f"point {points} of the label curve")

        def done(trials: int) -> None:
            for _ in range(trials):
                advance()
            check()

        self.curve.run(self.train, self.val, self.test, check=check, done=done)

    def run_draw(self, after_epoch: Callable[[], None]) -> None:
        """Train and judge the next draw.

        Raises:
            CollapseError: the loss is not finite; the curves of all draws are kept.
        """
        draw = len(self.outcomes)
        classifier = self.build(draw)
        train = self.train.take(self.chosen[draw]) if self.kind.few else self.train
        if self.kernels is None:
            self.kernels = self.choose_kernels(classifier, len(train.labels))
        use(classifier, self.kernels)
        if self.kind.frozen:  # it is the same encoder in every draw: it need not see these images again
            self.val, self.test = self.val.encoded(classifier.encoder), self.test.encoded(classifier.encoder)
        try:
            outcome = fit(
                classifier,
                train,
                self.val,
                protocol=self.kind,
                recipe=self.recipe,
                task=self.data.task,
                key=(self.data.name, self.seed, draw),
                check=after_epoch,
                after_step=self._after_step,
                resume=self.fit_state,
            )
        except Misfit:
            with self.job.resuming():
                raise
        except CollapseError as error:
            self.job.claim.confirm()
            curves = curves_jsonl([*(o.fit.curves for o in self.outcomes), error.curves])
            self.run.store.write(f"{self.job.folder}/{keys.CURVES}", curves)
            raise
        self.fit_state = None
        self.outcomes.append(
            Outcome.judge(classifier, outcome, self.data, self.val, self.test, frozen=self.kind.frozen)
        )
        keep_best_model(self.outcomes)

    def choose_kernels(self, classifier: Classifier, images: int) -> Table:
        """Return how convolutions are done here; those of a frozen encoder are too few to be measured."""
        return choose_kernels(
            classifier,
            channels=to_float(self.train.images[:1]).shape[1],
            size=self.train.images.shape[1],
            batch=self.recipe.batch_size,
            precision="float32",
            device=self.device,
            wanted=self.run.config.runtime.kernels,
            steps=0 if self.kind.frozen else self.recipe.epochs * images // self.recipe.batch_size,
        )

    def _after_step(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        step += sum(outcome.fit.steps for outcome in self.outcomes)
        self.job.after_step(step, lambda: self.state(state()), f"step {step}")

    def files(self) -> tuple[dict[str, bytes], Pointer | None]:
        """Return the files to publish: the best draw's model and predictions, and every draw's predictions.

        Of a frozen encoder the model is its head alone, and the second part of the answer says where the encoder is.
        """
        best = self.outcomes[best_of(self.outcomes)]
        assert best.model is not None, "the best outcome keeps its model"
        about = {
            "task": self.data.task,
            "labels": json.dumps(self.data.labels),
            "dataset": self.data.title,
            "init": self.weights.name,
            "protocol": self.protocol,
            "seed": str(self.seed),
            "licence": self.data.licence,
            "channels": str(self.data.channels),
        }
        files = {keys.PREDICTIONS: predictions_csv(best.scores)} | self.pictures(best)
        if best.val_scores is not None:
            files[keys.VAL_PREDICTIONS] = predictions_csv(best.val_scores)
        encoder = None
        if self.kind.frozen:
            frozen = build_encoder(self.run, self.weights, self.seed)
            encoder = keep_encoder(self.run, self.weights, frozen, self.seed)
            head = {name: value for name, value in best.model.items() if name.startswith("fc.")}
            about |= {"encoder": encoder.key, "encoder_sha256": encoder.sha256}
            files[keys.HEAD] = dump_weights(head, describe(self.run.config, self.data.synthetic, **about))
        elif self.run.config.runtime.keep_models in ("all", self.protocol):
            files[keys.MODEL] = dump_weights(best.model, describe(self.run.config, self.data.synthetic, **about))
        if self.kind.few:
            files |= {keys.draw_predictions(d): predictions_csv(o.scores) for d, o in enumerate(self.outcomes)}
        if self.curve is not None and self.curve.points:
            files[keys.LABEL_CURVE] = self.curve.scores_file()
        return files, encoder

    def pictures(self, best: Outcome) -> dict[str, bytes]:
        """Return the sheet of the surest errors, and where the validation images lie in a probe's features."""
        files = {}
        if errors := errors_of(self.data, best.scores):
            files[keys.ERRORS] = sheet(self.data, [error.image for error in errors])
        if self.kind.frozen and not self.kind.few and self.val.features is not None and len(self.val.labels) > 1:
            files[keys.EMBEDDING] = embedding_csv(self.val.features.cpu().numpy())
        return files

    def record(self, encoder: Pointer | None) -> DownstreamRecord:
        """Return the record of the finished job, whose model is a head on a frozen ``encoder``, or whole."""
        data, few = self.data, self.kind.few
        chosen = best_of(self.outcomes)
        best = self.outcomes[chosen]
        where = {"kernels": names_of(self.kernels or {}) if self.device == "cpu" else {}, "began_on": self.began_on}
        return DownstreamRecord(
            run_id=self.run.run_id,
            key=str(keys.Downstream(data.name, self.weights.name, self.protocol, self.seed)),
            dataset=data.name,
            init=self.weights.name,
            method=keys.method_of(self.weights.name),
            protocol=self.protocol,
            seed=self.seed,
            synthetic=data.synthetic,
            identity=identity(self.job.science),
            science=self.job.science,
            config=self.run.config.model_dump(mode="json"),
            environment=environment(self.device) | where,
            data={data.name: {"sha256": data.sha256} | data.read_as},
            task=data.task,
            labels=data.labels,
            metrics=mean_of([o.test for o in self.outcomes]),
            validation=mean_of([o.validation for o in self.outcomes]),
            confusion_matrix=metrics.confusion_matrix(data.test.labels, best.scores, data.task),
            per_class_auroc=metrics.per_class_auroc(data.test.labels, best.scores, data.task),
            best_epoch=best.fit.best_epoch,
            curves=best.fit.curves,
            chosen_draw=chosen if few else None,
            draws=[
                FewShotDraw(draw=d, indices=images.tolist(), metrics=o.test, best_epoch=o.fit.best_epoch)
                for d, (images, o) in enumerate(zip(self.chosen, self.outcomes, strict=few))
            ],
            draw_overlap=draw_overlap(self.chosen) if few else None,
            thresholds=None if best.thresholds is None else tuple(best.thresholds),
            encoder=encoder,
            errors=errors_of(data, best.scores),
            label_curve=self.curve.record() if self.curve else (),
            timings={"seconds": round(self.seconds, 3)},
            finished=now(),
        )


def build_classifier(run: Run, data: Dataset, weights: Weights, seed: int, draw: int) -> Classifier:
    """Make the classifier before training: the encoder as initialised, the linear layer drawn from the seed."""
    encoder = build_encoder(run, weights, seed)
    torch.manual_seed(generator("head", data.name, seed, draw).initial_seed())
    return Classifier(encoder, n_outputs(data.task, data.n_classes))


def build_head(encoder: Encoder, data: Dataset, seed: int, draw: int) -> nn.Linear:
    """Make the linear layer alone, equal to that of ``build_classifier``."""
    torch.manual_seed(generator("head", data.name, seed, draw).initial_seed())
    return Classifier(encoder, n_outputs(data.task, data.n_classes)).head


def build_encoder(run: Run, weights: Weights, seed: int) -> Encoder:
    """Make the encoder as initialised: what the weights leave open is drawn from the seed."""
    torch.manual_seed(generator("weights", seed).initial_seed())
    encoder = Encoder(run.config.network.architecture, run.config.network.stem)
    weights.load_into(encoder)
    return encoder


def choose_images(data: Dataset, k: int, seed: int, draw: int, protocol: str) -> NDArray[np.int64]:
    """Return the training indices of one few-shot draw: the same for every initialisation."""
    return few_shot_draw(
        data.train.labels, k, seed=seed, draw=draw,
        class_names=data.class_names, dataset=data.name, protocols=[protocol],
    )  # fmt: skip
