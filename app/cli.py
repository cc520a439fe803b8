"""The command line: parse, build, run, exit code. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from app.bench.cli import bench_app
from app.cluster.cli import cluster_app
from app.cluster.parameters import check_parameters, read_parameters
from app.data_cli import data_app
from app.errors import Interrupted, StorageError, UsageError
from app.exits import exit_code
from app.models.cli import models_app
from app.options import Asked, Limits, Parameters, Seed, StoreUri, Version, example, one_of, takes_settings, with_home
from app.upkeep.cli import upkeep_app

if TYPE_CHECKING:
    from app.jobs.run import Run
    from app.storage import Store

app = typer.Typer(
    name="python -m app",
    epilog="Start with: python -m app run --preset demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(models_app)
app.add_typer(upkeep_app)
app.add_typer(cluster_app)
app.add_typer(bench_app, name="bench", epilog=example("bench --peers --json bench.json"))


@app.callback()
def root(version: Version = False) -> None:
    """BYOL pretraining on unlabelled medical images, judged by fine-tuning, linear probes and few shots."""


RunId = Annotated[str, typer.Option("--run-id", help="Name of the run, as `plan` printed it.")]
OptionalRunId = Annotated[
    str | None, typer.Option("--run-id", help="Name of the run. [default: <preset>-<8 hex of settings and data>]")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start afresh and replace what is there.")]
StrictOverlap = Annotated[bool, typer.Option("--strict-overlap", help="Refuse to pretrain on images of a test split.")]
MethodName = Annotated[str, typer.Option("--method", help="byol or byol_plus.")]


@app.command(epilog=example("plan --preset smoke --store runs --data-root ~/.medmnist"))
@takes_settings()
def plan(
    store: StoreUri = "runs",
    run_id: OptionalRunId = None,
    datasets: Annotated[str, typer.Option("--datasets", help="Labelled sets, by commas. [default: preset's]")] = "",
    methods: Annotated[str, typer.Option("--methods", help="Methods, by commas. [default: preset's]")] = "",
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds, by commas. [default: preset's]")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for what a scheduler's fan-out needs.")] = None,
    seeds_per_pod: Annotated[int, typer.Option("--seeds-per-pod", min=1, help="Downstream jobs of a pod.")] = 1,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Its name, for `status`.")] = None,
    parameters: Parameters = None,
    limits: Limits = None,
    overwrite: Overwrite = False,
    strict_overlap: StrictOverlap = False,
    pilot: Annotated[str | None, typer.Option("--pilot", help="A finished run to foresee the intervals from.")] = None,
    *,
    asked: Asked,
) -> None:
    """Check the inputs, say what can be settled, name the run, list its jobs; prints the run's name."""
    from app.jobs.run import planned_settings
    from app.stages.fan_out import write_fan_out
    from app.stages.plan import plan as make_plan
    from app.stages.status import announce

    if parameters is not None:
        check_parameters(read_parameters(parameters), limits)
    chosen = [
        f"study.{name}=[{names}]"
        for name, names in (("datasets", datasets), ("methods", methods), ("seeds", seeds))
        if names
    ]
    opened, run_id = _store(store), run_id or None
    base = planned_settings(opened, run_id, overwrite=overwrite)
    config = asked.config(chosen, base=base)
    run = make_plan(opened, config, run_id, overwrite=overwrite, strict_overlap=strict_overlap, pilot=pilot)
    if workflow:
        announce(run.store, workflow, run.run_id)
    if out is not None:
        write_fan_out(run, out, seeds_per_pod, workflow or None)
    print(run.run_id)


@app.command(epilog=example("pretrain --method byol_plus --data chest=nih.npz --store runs --run-id nih"))
@takes_settings()
def pretrain(
    run_id: RunId,
    method: MethodName,
    seed: Seed = 0,
    store: StoreUri = "runs",
    overwrite: Overwrite = False,
    *,
    asked: Asked,
) -> None:
    """Pretrain an encoder on unlabelled images; prints where it is."""
    from app.jobs import keys
    from app.settings import Method
    from app.stages import pretrain as stage

    name = one_of("--method", method, Method)
    run = _open(store, run_id, asked)
    if (record := stage.run(run, method=name, seed=seed, overwrite=overwrite)) is not None:
        print(f"{run.store.uri}/{keys.pretraining(run_id, record['key'])}/{keys.ENCODER}")


@app.command(
    epilog=example(
        "downstream --dataset pneumoniamnist --protocol linear_probe --init byol_plus-s0 --store runs --run-id nih"
    )
)
@takes_settings()
def downstream(
    run_id: RunId,
    dataset: Annotated[str, typer.Option("--dataset", help="A labelled data set.")],
    protocol: Annotated[str, typer.Option("--protocol", help="finetune, linear_probe, few_shot or few_shot_frozen.")],
    init: Annotated[
        str, typer.Option("--init", help="random, imagenet, a pretraining such as byol-s0, or a file of weights.")
    ],
    seed: Seed = 0,
    store: StoreUri = "runs",
    overwrite: Overwrite = False,
    *,
    asked: Asked,
) -> None:
    """Train a classifier from an initialisation and judge it on the test split."""
    from app.settings import ProtocolName
    from app.stages import downstream as stage

    name = one_of("--protocol", protocol, ProtocolName)
    run = _open(store, run_id, asked)
    record = stage.run(run, dataset=dataset, init=init, protocol=name, seed=seed, overwrite=overwrite)
    scores = (f"{name} {'n/a' if value is None else f'{value:.3f}'}" for name, value in record["metrics"].items())
    print(f"{record['key']}: {'  '.join(scores)}")


@app.command(epilog=example("shard --run-id nih --group byol_plus-s0 --part frozen --index 0 --store s3://bucket/nih"))
@takes_settings()
def shard(
    run_id: RunId,
    group: Annotated[str, typer.Option("--group", help="What the jobs wait for: baselines, or a pretraining.")],
    part: Annotated[str, typer.Option("--part", help="trained: the encoder is trained; frozen: it is not.")],
    index: Annotated[int, typer.Option("--index", min=0, help="Which shard of the group's part.")],
    jobs_per_pod: Annotated[int, typer.Option("--jobs-per-pod", min=1, help="As `plan --out` wrote it.")] = 1,
    workflow: Annotated[
        str | None, typer.Option("--workflow", help="Count the shards that were missing when `plan` was told this.")
    ] = None,
    store: StoreUri = "runs",
    *,
    asked: Asked,
) -> None:
    """Work off one shard of a planned run's downstream jobs, as a pod does."""
    from app.stages.fan_out import Part, missing_shard, read_fan_out
    from app.stages.shard import run_shard

    opened, half = _store(store), one_of("--part", part, Part)
    if workflow:
        jobs = missing_shard(opened, run_id, workflow, group, half, index)
    else:
        jobs = read_fan_out(opened, run_id, jobs_per_pod).shard(group, half, index)
    run = _open(store, run_id, asked)
    run_shard(run, jobs, name=f"{group}/{part}/{index}")


@app.command(epilog=example("report --store runs --run-id nih"))
def report(
    run_id: RunId,
    store: StoreUri = "runs",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for a copy of the page.")] = None,
) -> None:
    """Write the report of a run from the records it has; fails, after that, if any are missing."""
    from app.stages import report as stage

    summary = stage.run(_store(store), run_id, out)
    print("\n".join(summary.lines))
    summary.check_complete()


@app.command(epilog=example("status --workflow study-x7k2p --phase Succeeded --store s3://bucket/nih"))
def status(
    workflow: Annotated[str, typer.Option("--workflow", help="Its name, as `plan --workflow` was told.")],
    phase: Annotated[str, typer.Option("--phase", help="How the scheduler says it ended.")],
    failed: Annotated[str, typer.Option("--failures", help="What Argo says of its failed nodes, as JSON.")] = "",
    store: StoreUri = "runs",
) -> None:
    """Publish how a workflow ended, and what is done and missing; an exit handler calls it."""
    from app.stages.status import WEBHOOK, failures, publish_status, tell, workflow_status

    opened = _store(store)
    ended = workflow_status(opened, workflow, phase, why=failures(failed))
    print(f"{workflow}: {phase}, {ended['done'] or 0} of {ended['planned'] or 0} jobs done")
    if ended["took"]:
        print(f"took {ended['took']}")
    for line in ended["why"]:
        print(f"why: {line}")
    print(f"report: {ended['report'] or 'none'}")
    publish_status(opened, ended)  # after that: who may only read has seen it all
    if (url := os.environ.get(WEBHOOK)) and (wrong := tell(url, ended)):
        print(f"warning: {WEBHOOK} was not told: {wrong}", file=sys.stderr)


@app.command(epilog=example("watch --store s3://bucket/nih"))
def watch(
    store: StoreUri = "runs",
    alive: Annotated[Path | None, typer.Option("--alive", help="File to touch at every look.")] = None,
) -> None:
    """Stop studies whose pods wait in vain; runs in a pod beside them (k8s/base/watch.yaml), for ever."""
    from app.cluster.kubernetes import Api
    from app.stages.watch import watch as watch_pods

    watch_pods(Api.inside(), _store, store, alive=alive)


@app.command(epilog=example("run --preset smoke --store runs"))
@takes_settings()
def run(
    store: StoreUri = "runs",
    run_id: OptionalRunId = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Jobs at a time, which share the CPU threads.")] = 1,
    overwrite: Overwrite = False,
    strict_overlap: StrictOverlap = False,
    *,
    asked: Asked,
) -> None:
    """Run a whole study on this machine: plan, pretrain, downstream, report.

    Of the jobs that failed, an error worth another try decides the exit code if there is one, else the first.
    """
    from app.jobs.run import planned_settings
    from app.stages.run import run_study

    opened = _store(store)
    base = planned_settings(opened, run_id, overwrite=overwrite)
    config = asked.config(base=base)
    opened.patience.seconds = 60 * config.runtime.patience_minutes
    summary, errors = run_study(
        opened, config, run_id, workers=workers, overwrite=overwrite, strict_overlap=strict_overlap
    )
    print("\n".join(summary.lines))
    if errors:
        raise next((error for error in errors if isinstance(error, StorageError | Interrupted)), errors[0])
    summary.check_complete()


@app.command(epilog=example("tune --preset studies/tune-28.yaml --store runs --run-id tune-28 --out best.yaml"))
@takes_settings()
def tune(
    store: StoreUri = "runs",
    run_id: OptionalRunId = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="YAML file to write: a preset of the best settings.")
    ] = None,
    *,
    asked: Asked,
) -> None:
    """Search for settings by validation data alone, as the section `search` of a preset says; no test image is read."""
    from app.config import load_search
    from app.stages.found import best_preset, lines_of
    from app.stages.tune import tune as make_search
    from app.storage import FolderStore

    preset = asked.preset or "recommended"
    search, opened = load_search(preset), _store(store)
    config = asked.config(asked.pretraining_source())
    opened.patience.seconds = 60 * config.runtime.patience_minutes
    record = make_search(opened, config, search, run_id)
    print("\n".join(lines_of(record)))
    if out is not None:
        FolderStore(out.parent).write(out.name, best_preset(record, preset, out).encode())
        print(out)


@app.command(epilog=example("ablate --preset paper-code --set pretrain.epochs=20 --store runs --run-id quirks"))
@takes_settings()
def ablate(
    method: MethodName = "byol_plus",
    against: Annotated[
        str | None, typer.Option("--against", help="Preset to turn back to. [default: the one that --preset extends]")
    ] = None,
    switch: Annotated[
        list[str] | None,
        typer.Option("--switch", help="Setting to turn back; may be repeated; a,b: both at once. [default: each]"),
    ] = None,
    store: StoreUri = "runs",
    run_id: OptionalRunId = None,
    *,
    asked: Asked,
) -> None:
    """Tell what each departure of a preset from another brings, on validation data; no test image is read."""
    from dataclasses import replace

    from app.config import extended
    from app.settings import Method
    from app.stages.ablate import ablate as make_ablation
    from app.stages.ablate import lines_of

    name, preset = one_of("--method", method, Method), asked.preset or "recommended"
    against = against or extended(preset)
    if against is None:
        raise UsageError(f"--preset {preset}: extends no other; say by --against what to turn its settings back to")
    opened, more = _store(store), asked.pretraining_source()
    config, other = asked.config(more), replace(asked, preset=against).config(more)
    opened.patience.seconds = 60 * config.runtime.patience_minutes
    record = make_ablation(opened, config, other, name, against=against, asked=switch or (), run_id=run_id)
    print("\n".join(lines_of(record)))


@app.command(epilog=example("views --method byol_plus --data-root ~/.medmnist --out views.png"))
@takes_settings()
def views(
    method: MethodName = "byol_plus",
    out: Annotated[Path, typer.Option("--out", help="PNG file to write.")] = Path("views.png"),
    seed: Seed = 0,
    store: StoreUri = "runs",
    *,
    asked: Asked,
) -> None:
    """Save a picture of a method's views: a row per image, the original first."""
    from app.jobs.run import Run
    from app.settings import Method
    from app.stages.fallback import settle_data
    from app.stages.views import show_views

    name = one_of("--method", method, Method)
    opened = _store(store)
    config = settle_data(opened, asked.config(asked.pretraining_source()), pretrains=True)
    print(show_views(Run(opened, "", config), method=name, seed=seed, out=out))


def _store(uri: str) -> Store:
    from app.progress import Progress
    from app.storage import open_store

    return open_store(uri, warn=Progress("store").say)


def _open(store: str, run_id: str, asked: Asked) -> Run:
    """Open a run for one job: with its planned settings if it has a plan, else with a preset's."""
    from app.jobs.run import open_run, planned_settings

    opened = _store(store)
    planned = planned_settings(opened, run_id)
    config = asked.config([] if planned else asked.pretraining_source(), base=planned)
    opened.patience.seconds = 60 * config.runtime.patience_minutes
    return open_run(opened, run_id, config)


def main() -> NoReturn:
    """Run the command line and exit with the documented code; an expected error is one line on standard error."""
    sys.exit(exit_code(lambda: app([with_home(word) for word in sys.argv[1:]], standalone_mode=False)))
