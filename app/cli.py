"""The command line: parse, build, run, exit code. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast, get_args

import typer

from app.errors import MACHINE_ERRORS, AppError, InputError, Interrupted, UsageError, os_error
from app.machine import enough_memory, keep_library_caches_writable, speak_plainly
from app.runtime import SIGNALS, Stopped, stop_now

if TYPE_CHECKING:
    from app.jobs.run import Run
    from app.report import ReportSummary
    from app.settings import Config, Method, ProtocolName
    from app.storage import Store

app = typer.Typer(
    name="python -m app",
    help="BYOL pretraining on unlabelled medical images, judged by fine-tuning, linear probes and few shots.",
    epilog="Start with: python -m app run --preset demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Get data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
bench_app = typer.Typer(invoke_without_command=True)
app.add_typer(bench_app, name="bench", epilog="Example: python -m app bench --peers --json bench.json")

StoreOption = Annotated[str, typer.Option("--store", help="Where data and runs are: a folder, or s3://bucket/prefix.")]
RunId = Annotated[str, typer.Option("--run-id", help="Name of the run, as `plan` printed it.")]
OptionalRunId = Annotated[
    str | None, typer.Option("--run-id", help="Name of the run. [default: <preset>-<8 hex of settings and data>]")
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset", help="smoke, demo, recommended, paper-text, or a YAML file. [default: the run's, or recommended]"
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value; may be repeated, or hold several lines.")
]
Sources = Annotated[list[str] | None, typer.Option("--data", help="Own data, name=URI[:task]; may be repeated.")]
DataRoot = Annotated[str | None, typer.Option("--data-root", help="Folder to look for data sets in first.")]
Weights = Annotated[str | None, typer.Option("--imagenet-weights", help="File of ImageNet weights, not a download.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda; cuda never falls back.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads. [default: all cores]")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start afresh and replace what is there.")]
StrictOverlap = Annotated[bool, typer.Option("--strict-overlap", help="Refuse to pretrain on images of a test split.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Names every random draw.")]
MethodName = Annotated[str, typer.Option("--method", help="byol or byol_plus.")]
Channels = Annotated[int, typer.Option("--channels", min=1, max=3, help="Of the images: 1 or 3.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Figures are medians over them.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Steps of a turn.")]
Size = Annotated[int, typer.Option("--size", help="28, 64, 128 or 224 pixels.")]


def example(text: str) -> str:
    """Format an example for the end of a command's help."""
    return f"Example: python -m app {text}"


@app.command(epilog=example("plan --preset smoke --store runs --data-root ~/.medmnist"))
def plan(
    store: StoreOption = "runs",
    run_id: OptionalRunId = None,
    preset: Preset = None,
    overrides: Overrides = None,
    sources: Sources = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    datasets: Annotated[str, typer.Option("--datasets", help="Labelled sets, by commas. [default: preset's]")] = "",
    methods: Annotated[str, typer.Option("--methods", help="Methods, by commas. [default: preset's]")] = "",
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds, by commas. [default: preset's]")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for what a scheduler's fan-out needs.")] = None,
    seeds_per_pod: Annotated[int, typer.Option("--seeds-per-pod", min=1, help="Downstream jobs of a pod.")] = 1,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Its name, for `status`.")] = None,
    overwrite: Overwrite = False,
    strict_overlap: StrictOverlap = False,
) -> None:
    """Check the inputs, name the run, list its jobs; prints the run's name."""
    from app.stages.fan_out import write_fan_out
    from app.stages.plan import plan as make_plan
    from app.stages.status import announce

    chosen = [
        f"study.{name}=[{names}]"
        for name, names in (("datasets", datasets), ("methods", methods), ("seeds", seeds))
        if names
    ]
    opened, run_id = _store(store), run_id or None
    base = _planned(opened, run_id, overwrite)
    config = _config(preset, [*(overrides or []), *chosen], sources, data_root, weights, base=base)
    run = make_plan(opened, config, run_id, overwrite=overwrite, strict_overlap=strict_overlap)
    if workflow:
        announce(run.store, workflow, run.run_id)
    if out is not None:
        write_fan_out(run, out, seeds_per_pod)
    print(run.run_id)


@app.command(epilog=example("pretrain --method byol_plus --data chest=nih.npz --store runs --run-id nih"))
def pretrain(
    run_id: RunId,
    method: MethodName,
    seed: Seed = 0,
    store: StoreOption = "runs",
    preset: Preset = None,
    overrides: Overrides = None,
    sources: Sources = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    device: Device = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Pretrain an encoder on unlabelled images; prints where it is."""
    from app.jobs import keys
    from app.stages import pretrain as stage

    name = _method(method)
    run = _open(store, run_id, preset, overrides, sources, data_root, weights, device, threads)
    if (record := stage.run(run, method=name, seed=seed, overwrite=overwrite)) is not None:
        print(f"{run.store.uri}/{keys.pretraining(run_id, record['key'])}/{keys.ENCODER}")


@app.command(
    epilog=example(
        "downstream --dataset pneumoniamnist --protocol linear_probe --init byol_plus-s0 --store runs --run-id nih"
    )
)
def downstream(
    run_id: RunId,
    dataset: Annotated[str, typer.Option("--dataset", help="A labelled data set.")],
    protocol: Annotated[str, typer.Option("--protocol", help="finetune, linear_probe, few_shot or few_shot_frozen.")],
    init: Annotated[
        str, typer.Option("--init", help="random, imagenet, a pretraining such as byol-s0, or a file of weights.")
    ],
    seed: Seed = 0,
    store: StoreOption = "runs",
    preset: Preset = None,
    overrides: Overrides = None,
    sources: Sources = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    device: Device = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a classifier from an initialisation and judge it on the test split."""
    from app.settings import ProtocolName
    from app.stages import downstream as stage

    if protocol not in get_args(ProtocolName):
        raise UsageError(f"--protocol {protocol}: unknown; choose from {', '.join(get_args(ProtocolName))}")
    run = _open(store, run_id, preset, overrides, sources, data_root, weights, device, threads)
    record = stage.run(
        run, dataset=dataset, init=init, protocol=cast("ProtocolName", protocol), seed=seed, overwrite=overwrite
    )
    scores = (f"{name} {'n/a' if value is None else f'{value:.3f}'}" for name, value in record["metrics"].items())
    print(f"{record['key']}: {'  '.join(scores)}")


@app.command(epilog=example("shard --run-id nih --group byol_plus-s0 --part frozen --index 0 --store s3://bucket/nih"))
def shard(
    run_id: RunId,
    group: Annotated[str, typer.Option("--group", help="What the jobs wait for: baselines, or a pretraining.")],
    part: Annotated[str, typer.Option("--part", help="trained: the encoder is trained; frozen: it is not.")],
    index: Annotated[int, typer.Option("--index", min=0, help="Which shard of the group's part.")],
    jobs_per_pod: Annotated[int, typer.Option("--jobs-per-pod", min=1, help="As `plan --out` wrote it.")] = 1,
    store: StoreOption = "runs",
    overrides: Overrides = None,
    data_root: DataRoot = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Work off one shard of a planned run's downstream jobs, as a pod does."""
    from app.stages.fan_out import Part, read_fan_out
    from app.stages.shard import run_shard

    if part not in get_args(Part):
        raise UsageError(f"--part {part}: unknown; choose from {', '.join(get_args(Part))}")
    jobs = read_fan_out(_store(store), run_id, jobs_per_pod).shard(group, cast("Part", part), index)
    run = _open(store, run_id, None, overrides, None, data_root, None, device, threads)
    run_shard(run, jobs, name=f"{group}/{part}/{index}")


@app.command(epilog=example("report --store runs --run-id nih"))
def report(
    run_id: RunId,
    store: StoreOption = "runs",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for a copy of the page.")] = None,
) -> None:
    """Write the report of a run from the records it has; fails, after that, if any are missing."""
    from app.stages import report as stage

    summary = stage.run(_store(store), run_id, out)
    _show(summary)
    if summary.missing:
        raise InputError(
            f"--run-id {run_id}: {len(summary.missing)} of the plan's results are missing; "
            "the report names them, run those jobs and `report` again"
        )


@app.command(epilog=example("status --workflow study-x7k2p --phase Succeeded --store s3://bucket/nih"))
def status(
    workflow: Annotated[str, typer.Option("--workflow", help="Its name, as `plan --workflow` was told.")],
    phase: Annotated[str, typer.Option("--phase", help="How the scheduler says it ended.")],
    store: StoreOption = "runs",
) -> None:
    """Publish how a workflow ended, and what is done and missing; an exit handler calls it."""
    from app.stages.status import publish_status, workflow_status

    opened = _store(store)
    ended = workflow_status(opened, workflow, phase)
    print(f"{workflow}: {phase}, {ended['done'] or 0} of {ended['planned'] or 0} jobs done")
    print(f"report: {ended['report'] or 'none'}")
    publish_status(opened, ended)  # last: who may only read has seen it all


@app.command(epilog=example("run --preset smoke --store runs"))
def run(
    store: StoreOption = "runs",
    run_id: OptionalRunId = None,
    preset: Preset = None,
    overrides: Overrides = None,
    sources: Sources = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    device: Device = None,
    threads: Threads = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Jobs at a time, which share the CPU threads.")] = 1,
    overwrite: Overwrite = False,
    strict_overlap: StrictOverlap = False,
) -> None:
    """Run a whole study on this machine: plan, pretrain, downstream, report."""
    from app.stages.run import run_study

    opened = _store(store)
    base = _planned(opened, run_id, overwrite)
    config = _config(preset, overrides, sources, data_root, weights, device, threads, base=base)
    opened.patience.seconds = 60 * config.runtime.patience_minutes
    summary, errors = run_study(
        opened, config, run_id, workers=workers, overwrite=overwrite, strict_overlap=strict_overlap
    )
    _show(summary)
    if errors:
        raise errors[0]


@app.command(epilog=example("submit workflows/full.yaml -p preset=paper-text -p seeds=0,1,2"))
def submit(
    file: Annotated[Path, typer.Argument(help="A Workflow, such as workflows/full.yaml.")],
    parameters: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="name=value; may be repeated.")
    ] = None,
    server: Annotated[
        str | None, typer.Option("--server", help="Argo server. [default: $ARGO_SERVER, or localhost:2746]")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="[default: $ARGO_NAMESPACE, or the workflow's]")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow it to its end.")] = True,
) -> None:
    """Submit a workflow to an Argo server, follow it, and print where the report is."""
    from app.argo import ArgoServer, follow, read_workflow, report_uri, server_url

    given = {}
    for text in parameters or []:
        name, separator, value = text.partition("=")
        if not separator:
            raise UsageError(f"--parameter {text}: write name=value")
        given[name] = value
    workflow = read_workflow(file, given)
    place = namespace or os.environ.get("ARGO_NAMESPACE") or workflow["metadata"].get("namespace") or "argo"
    workflow["metadata"]["namespace"] = place
    argo = ArgoServer(server_url(server), place)
    name = argo.create(workflow)
    print(f"workflow: {argo.url}/workflows/{place}/{name}")
    if wait:
        print(f"report: {report_uri(follow(argo, name)) or 'none'}")


@app.command(epilog=example("views --method byol_plus --data-root ~/.medmnist --out views.png"))
def views(
    method: MethodName = "byol_plus",
    out: Annotated[Path, typer.Option("--out", help="PNG file to write.")] = Path("views.png"),
    seed: Seed = 0,
    store: StoreOption = "runs",
    preset: Preset = None,
    overrides: Overrides = None,
    sources: Sources = None,
    data_root: DataRoot = None,
) -> None:
    """Save a picture of a method's views: a row per image, the original first."""
    from app.jobs.run import Run
    from app.stages.fallback import settle_data
    from app.stages.views import draw_views

    name = _method(method)
    opened = _store(store)
    config = settle_data(opened, _config(preset, _pretraining_source(preset, overrides, sources), sources, data_root))
    print(draw_views(Run(opened, "", config), method=name, seed=seed, out=out))


@app.command(epilog=example("ls --store runs"))
def ls(store: StoreOption = "runs", run_id: OptionalRunId = None) -> None:
    """List the data and runs of a store, or the jobs of one run: done, running, begun or missing."""
    from app.stages.listing import list_store

    for line in list_store(_store(store), run_id):
        print(line)


@data_app.command(epilog=example("data fetch --dataset breastmnist,pneumoniamnist --data-root ~/.medmnist"))
def fetch(
    dataset: Annotated[str, typer.Option("--dataset", help="MedMNIST names, separated by commas.")] = "",
    size: Size = 28,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Put all that this preset's study needs into --store.")
    ] = None,
    overrides: Overrides = None,
    store: Annotated[str | None, typer.Option("--store", help="Put the files into the data/ of this store.")] = None,
    data_root: Annotated[str | None, typer.Option("--data-root", help="Put the files into this folder.")] = None,
    mirror: Annotated[str | None, typer.Option("--mirror", help="Folder or base URL to take the files from.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing: only verify what is there.")] = False,
) -> None:
    """Download MedMNIST files, verify their MD5, and put them into a folder or the store."""
    from app.stages.fetch import fetch as fetch_files
    from app.stages.fetch import fetch_study

    names = [name.strip() for name in dataset.split(",") if name.strip()]
    target = _store(store) if store else None
    if preset is not None and target is not None:
        chosen = [f"study.datasets=[{dataset}]"] if names else []
        config = _config(preset, [*(overrides or []), *chosen], None, data_root)
        for line in fetch_study(target, config, mirror=mirror or None, offline=offline):
            print(line)
        return
    if not names or preset is not None:
        raise UsageError("data fetch: give --dataset NAMES, or --preset NAME and --store URI")
    for line in fetch_files(names, size=size, store=target, root=data_root, mirror=mirror, offline=offline):
        print(line)


@data_app.command(epilog=example("data phantoms --data-root phantoms"))
def phantoms(
    data_root: Annotated[Path, typer.Option("--data-root", help="Put the files into this folder.")],
    size: Size = 28,
    seed: Seed = 0,
) -> None:
    """Draw synthetic data sets in MedMNIST's layout, for trying things out."""
    from app.data import write_phantoms

    for path in write_phantoms(data_root, seed=seed, size=size):
        print(path)


@bench_app.callback()
def bench(
    context: typer.Context,
    peers: Annotated[bool, typer.Option("--peers", help="Measure lightly and byol-pytorch too, in turns.")] = False,
    images: Annotated[int, typer.Option("--images", min=2, help="Resident images, of noise.")] = 112_120,
    channels: Channels = 1,
    rounds: Rounds = 5,
    steps: Steps = 8,
    out: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file, too.")] = None,
    preset: Preset = None,
    overrides: Overrides = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Measure pretraining: images a second, where a step's time goes, memory, the share of what the machine can do."""
    if context.invoked_subcommand is not None:
        return
    from app.bench.step import bench_step, table, write_json

    config = _config(preset, overrides, None, None, None, device, threads)
    figures = bench_step(config, images=images, channels=channels, rounds=rounds, steps=steps, peers=peers)
    for line in table(figures):
        print(line)
    if out is not None:
        write_json(figures, out)


@bench_app.command(name="probe", epilog=example("bench probe --data-root ~/.medmnist"))
def bench_probe(
    dataset: Annotated[str, typer.Option("--dataset", help="A labelled data set.")] = "pneumoniamnist",
    rounds: Rounds = 5,
    naive_epochs: Annotated[int, typer.Option("--epochs", min=1, help="With the encoder in each; scaled.")] = 2,
    store: StoreOption = "runs",
    preset: Preset = None,
    overrides: Overrides = None,
    sources: Sources = None,
    data_root: DataRoot = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Compare a linear probe on cached features with one that runs the encoder in every epoch."""
    from app.bench.pairs import bench_probe as measure

    config = _config(preset, overrides, sources, data_root, None, device, threads)
    for line in measure(_store(store), config, dataset=dataset, rounds=rounds, naive_epochs=naive_epochs):
        print(line)


@bench_app.command(name="images", epilog=example("bench images --few 10000 --many 100000"))
def bench_images(
    few: Annotated[int, typer.Option("--few", min=2)] = 10_000,
    many: Annotated[int, typer.Option("--many", min=2)] = 100_000,
    channels: Channels = 1,
    rounds: Rounds = 5,
    steps: Steps = 8,
    preset: Preset = None,
    overrides: Overrides = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Compare a step of pretraining among many resident images with one among few."""
    from app.bench.pairs import bench_images as measure

    config = _config(preset, overrides, None, None, None, device, threads)
    for line in measure(config, few=few, many=many, channels=channels, rounds=rounds, steps=steps):
        print(line)


@bench_app.command(name="views", epilog=example("bench views --channels 3"))
def bench_views(
    channels: Channels = 1,
    rounds: Rounds = 5,
    steps: Steps = 8,
    preset: Preset = None,
    overrides: Overrides = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Compare the views with kornia's operations of the same settings."""
    from app.bench.pairs import bench_views as measure

    config = _config(preset, overrides, None, None, None, device, threads)
    for line in measure(config, channels=channels, rounds=rounds, steps=steps):
        print(line)


@bench_app.command(epilog=example("bench checkpoint --preset demo --store s3://bucket/prefix --every 60"))
def checkpoint(
    store: StoreOption = "runs",
    every: Annotated[float, typer.Option("--every", min=1.0, help="Seconds from one checkpoint to the next.")] = 60.0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Pairs of turns, without and with.")] = 4,
    server: Annotated[int | None, typer.Option("--server-pid", help="Show this process's CPU time apart.")] = None,
    preset: Preset = None,
    overrides: Overrides = None,
    sources: Sources = None,
    data_root: DataRoot = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Compare training with a checkpoint every so often with training without, in turns."""
    from app.bench.checkpoint import bench_checkpoint

    config = _config(preset, overrides, sources, data_root, None, device, threads)
    for line in bench_checkpoint(_store(store), config, every=every, rounds=rounds, server=server):
        print(line)


def _config(
    preset: str | None,
    overrides: list[str] | None,
    sources: list[str] | None,
    data_root: str | None,
    weights: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    *,
    base: dict[str, Any] | None = None,
) -> Config:
    """Build what a command asks for: from ``base``, the settings of its run, unless it names a preset."""
    from app.config import load_config

    return load_config(
        preset or "recommended",
        _lines(overrides),
        base=None if preset else base,
        sources=sources or [],
        data_root=data_root,
        imagenet_weights=weights or None,
        device=device,
        threads=threads,
    )


def _lines(overrides: list[str] | None) -> list[str]:
    """Split what ``--set`` was given into single overrides: a workflow has one parameter for all of them."""
    return [line.strip() for text in overrides or [] for line in text.splitlines() if line.strip()]


def _store(uri: str) -> Store:
    from app.runtime import Progress
    from app.storage import open_store

    return open_store(uri, warn=Progress("store").say)


def _open(
    store: str,
    run_id: str,
    preset: str | None,
    overrides: list[str] | None,
    sources: list[str] | None,
    data_root: str | None,
    weights: str | None,
    device: str | None,
    threads: int | None,
) -> Run:
    """Open a run for one job: with its planned settings if it has a plan, else with a preset's."""
    from app.jobs.run import open_run

    opened = _store(store)
    planned = _planned(opened, run_id)
    own = overrides if planned else _pretraining_source(preset, overrides, sources)
    config = _config(preset, own, sources, data_root, weights, device, threads, base=planned)
    opened.patience.seconds = 60 * config.runtime.patience_minutes
    return open_run(opened, run_id, config)


def _method(name: str) -> Method:
    from app.settings import METHODS

    if name not in METHODS:
        raise UsageError(f"--method {name}: unknown; choose from {', '.join(METHODS)}")
    return name


def _planned(store: Store, run_id: str | None, overwrite: bool = False) -> dict[str, Any] | None:
    """Return the settings of a run's plan, None if it has none; a damaged plan may be overwritten."""
    from app.jobs.run import planned_settings

    try:
        return planned_settings(store, run_id) if run_id else None
    except InputError:
        if not overwrite:
            raise
        return None


def _pretraining_source(preset: str | None, overrides: list[str] | None, sources: list[str] | None) -> list[str]:
    """Say what to pretrain on: with a single own source, and no word of ``data.pretrain``, on that."""
    lines = _lines(overrides)
    if sources is None or len(sources) != 1 or any(line.startswith("data.pretrain=") for line in lines):
        return lines
    chosen = _config(preset, None, None, None)
    if chosen.data.pretrain in chosen.sources:  # the preset's own word
        return lines
    return [*lines, f"data.pretrain={sources[0].split('=')[0]}"]


def _show(summary: ReportSummary) -> None:
    print(summary.table_text)
    for cell in summary.missing:
        print(f"missing: {cell}")
    print(f"report: {summary.page}")


def _unforeseen(error: Exception) -> int:
    """Print one line for what the machine did to us, a traceback for our own mistakes; return the exit code."""
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        explained = os_error(error, Path(str(error.filename or "this machine")))
        print(f"error: {explained}", file=sys.stderr)
        return explained.exit_code
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        print("error: this machine refuses another thread; raise `ulimit -u`, or lower --workers", file=sys.stderr)
        return UsageError.exit_code
    traceback.print_exception(error)
    print("error: this is a bug; please report it with the lines above", file=sys.stderr)
    return AppError.exit_code


def _expand(word: str) -> str:
    """Put the home folder in place of ``~``, also in ``--store=~/runs``, which shells and YAML leave as it is."""
    option, equals, value = word.partition("=")
    if option.startswith("--") and equals:
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(word)


def main() -> NoReturn:
    """Run the command line and exit with the documented code; an expected error is one line on standard error."""
    code = 0
    speak_plainly()
    keep_library_caches_writable()
    previous = {number: signal.signal(number, stop_now) for number in SIGNALS}  # a training loop has its own
    try:
        with enough_memory("pretrain.batch_size, or batch_size of the protocol"):
            code = app([_expand(word) for word in sys.argv[1:]], standalone_mode=False) or 0
            sys.stdout.flush()  # here, where a full disk can still be said
    except BrokenPipeError:  # whoever reads what we print has had enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except AppError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except typer.TyperException as error:
        print(f"error: {error.format_message()} (--help shows the options)", file=sys.stderr)
        code = UsageError.exit_code
    except Stopped as stop:
        print(f"error: {stop}: stopped; run the same command again", file=sys.stderr)
        code = Interrupted.exit_code
    except Exception as error:
        code = _unforeseen(error)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    sys.exit(code)
