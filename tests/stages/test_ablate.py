"""The ablation: what it turns back, that it reads no test split, and that what is done is not done again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from app.config import load_config
from app.data import write_phantoms
from app.errors import UsageError
from app.jobs.trials import AblationRecord, Arm
from app.stages import pretrain
from app.stages.ablate import CHOICE, IDLE, STEM, ablate, lines_of, switches
from app.stages.listing import list_store
from app.storage import FolderStore
from tests import small

SETTINGS = [
    "data.phantoms=never", "data.subset=32", "data.size=28", "study.datasets=[breastmnist]", "study.seeds=[0,1]",
    "pretrain.batch_size=8", "pretrain.epochs=1", "protocols.linear_probe.epochs=2", "runtime.threads=1",
    "protocols.few_shot_frozen.epochs=2", "protocols.few_shot_frozen.draws=2", "protocols.few_shot_frozen.k=1",
    "runtime.device=cpu", "network.projector_hidden=8", "network.predictor_hidden=8", "network.projection=4",
    "network.init=random",
]  # fmt: skip
SWITCHES = ["network.predictor", "pretrain.ema_every"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set that judges has no test split that anybody could open."""
    root = tmp_path_factory.mktemp("data")
    for path in write_phantoms(root, counts={"chestmnist": (40, 16, 16), "breastmnist": (24, 16, 16)}):
        if path.stem == "breastmnist":
            with np.load(path) as arrays:
                np.savez_compressed(path, **{n: arrays[n] for n in arrays.files if not n.startswith("test_")})
    return root


def test_an_ablation_runs_to_its_end_and_grows(tmp_path, data, monkeypatch):
    small.use(monkeypatch.setattr)
    store, trained = FolderStore(tmp_path), []
    original = pretrain.run
    monkeypatch.setattr(pretrain, "run", lambda run, **o: (trained.append(run.run_id), original(run, **o))[1])
    lines = [*SETTINGS, "pretrain.accumulate=2"]
    code, text = (load_config(name, lines, data_root=str(data)) for name in ("paper-code", "paper-text"))

    def run(*asked: str) -> AblationRecord:
        return ablate(store, code, text, "byol", against="paper-text", asked=asked, run_id="a")

    record = run(*SWITCHES)
    assert len(trained) == 6, "the preset and two arms, two seeds each; the control is not pretrained"
    assert [arm.settings for arm in record.arms] == [{"network.predictor": "mlp"}, {"pretrain.ema_every": "step"}]
    assert set(record.data["breastmnist"].splits) == {"train", "val"}
    arms = (record.control, record.whole, *record.arms)
    assert all(arm.failed is None and np.isfinite([*arm.scores.values()]).all() for arm in arms)
    assert len({run_id for arm in arms for run_id in arm.runs}) == 8
    assert AblationRecord.model_validate_json(store.read("runs/a/ablation.json")) == record
    assert not [key for key in store.list("runs/a") if key.endswith((".safetensors", ".pt"))]
    assert next(list_store(store, "a")).startswith("runs/a: an ablation, 8 trials done, ")

    trained.clear()
    assert run(*SWITCHES).arms == record.arms
    assert trained == [], "what was done is not done again"
    grown = run(*SWITCHES, "network.predictor,pretrain.ema_momentum")
    assert grown.arms[:2] == record.arms
    assert grown.arms[2].settings == {"network.predictor": "mlp", "pretrain.ema_momentum": 0.99}
    assert trained == list(grown.arms[2].runs)

    for name, why in (("views_plus.keep_blur", IDLE), ("protocols.linear_probe.epoch", CHOICE)):
        with pytest.raises(UsageError, match=f"--switch {name}: {why}; leave it out"):
            run(name)
    with pytest.raises(UsageError, match="--run-id a: began from other settings"):
        ablate(store, code, text, "byol_plus", against="paper-text", asked=SWITCHES, run_id="a")


def test_all_departures_of_the_papers_code_are_switches():
    """And those alone: what the command line sets is set in both."""
    code, text = (load_config(name, SETTINGS) for name in ("paper-code", "paper-text"))
    assert set(switches(code, text, (), "paper-text")) == {
        "network.predictor", "pretrain.accumulate", "pretrain.ema_momentum", "pretrain.ema_every",
        "views.jitter_and_blur", "views.normalise", "views.blur", "views.blur_sigma",
        *(f"views_plus.{name}" for name in (
            "drawn", "keep_blur", "contrast", "contrast_range", "brightness", "brightness_range", "cutout",
            "cutout_side", "cutout_shape",
        )),
        "protocols.linear_probe.learning_rate", "protocols.linear_probe.epoch", "protocols.linear_probe.batch_norm",
        "protocols.few_shot_frozen.epoch",
    }  # fmt: skip


EXTENDS = {"extends": "paper-code", "views": {"flip": 0.0}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "recommended"], "--preset recommended: extends no other; say by --against"),
        (
            ["--preset", "paper-code", "--against", "paper-tex"],
            "--preset paper-tex: unknown; did you mean 'paper-text'",
        ),
        (["--preset", "paper-code", "--against", "paper-code"], "has the same settings as paper-code; name another"),
        (["--preset", "mine.yaml", "--switch", "views.blur"], "--switch views.blur: is none of those in which mine"),
        (["--preset", "mine.yaml", "--method", "simclr"], "--method simclr: unknown; choose from byol, byol_plus"),
        (["--preset", "mine.yaml", "--set", "study.datasets=[]"], "`ablate` needs sets to judge by; name one or more"),
        (
            ["--preset", "paper-code", "--against", "recommended"],
            "batch_norm=train: features then change in every step",
        ),
    ],
)
def test_what_cannot_be_ablated_is_one_line(call, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(EXTENDS))
    code, _, err = call("ablate", *options, "--store", tmp_path / "store")
    said = [line for line in err.splitlines() if not line.startswith("{")]
    assert code == 2
    assert len(said) == 1, err
    assert message in said[0]
    assert not (tmp_path / "store").exists()


def test_a_stem_that_the_weights_do_not_fit_is_left_out(tmp_path, data):
    code, other = (
        load_config(
            "paper-code", [*SETTINGS[:-1], "network.init=imagenet", f"network.stem={stem}"], data_root=str(data)
        )
        for stem in ("stock", "middle")
    )
    with pytest.raises(UsageError, match=f"--switch network.stem: {STEM}; leave it out"):
        ablate(FolderStore(tmp_path), code, other, "byol", against="other", asked=["network.stem"])


def test_the_table_tells_each_effect_with_its_interval():
    def arm(probe: tuple[float, ...], **settings: Any) -> Arm:
        scores = {"linear_probe": probe, "few_shot_frozen": (0.5,) * len(probe)}
        return Arm(settings=settings, runs=("r",) * len(probe), scores=scores)

    record = AblationRecord(
        run_id="a", synthetic=True, science={}, preset="paper-code", against="paper-text", seeds=(0, 1, 2), data={},
        whole=arm((0.8, 0.9, 0.7)), control=arm((0.6, 0.6, 0.6)),
        arms=(arm((0.79, 0.88, 0.67), a=1), arm((float("nan"),) * 3, b=2).model_copy(update={"failed": "NaN"})),
        left_out={"c": IDLE}, environment={}, finished="",
    )  # fmt: skip
    said = list(lines_of(record))
    half = 4.302653 * 0.01 / 3**0.5  # Student's t at 97.5 % with 2 degrees of freedom; std of .01, .02, .03
    assert said[0].startswith("SYNTHETIC")
    assert said[3].split()[:1] == ["0.8000"]
    assert said[4].startswith("+0.2000 [")
    assert f"+0.0200 [{0.02 - half:+.4f}, {0.02 + half:+.4f}]" in said[5]
    assert said[5].endswith("a=1")
    assert said[6].split() == ["-", "+0.0000", "[+0.0000,", "+0.0000]", "b=2:", "failed,", "NaN"]
    assert said[7:] == [f"not judged: c ({IDLE})", said[8]]
    assert said[8].startswith("6 intervals, not corrected")
    one = record.model_copy(update={"seeds": (0,), "whole": arm((0.8,)), "control": arm((0.6,)), "arms": ()})
    assert list(lines_of(one))[4].split()[:2] == ["+0.2000", "+0.0000"], "one seed has no interval"
