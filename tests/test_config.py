import json
from importlib import resources

import pytest

from app.config import difference, identity, load_config, parse_config, presets
from app.errors import UsageError
from app.science.protocols import PROTOCOLS
from app.settings import Config, FewShotRecipe


def rejected(*overrides, preset="smoke", **options):
    """Return the message that loading ends with, checked to be one line and a usage error."""
    with pytest.raises(UsageError) as caught:
        load_config(preset, overrides, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def preset_file(tmp_path, text, name="mine"):
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    return str(path)


# Presets


def test_the_presets_there_are():
    assert presets() == ["cifar10-byol", "demo", "paper-code", "paper-text", "recommended", "smoke"]


@pytest.mark.parametrize("preset", presets())
def test_every_preset_loads_and_its_parts_fit_what_they_configure(preset):
    config = load_config(preset)
    assert config.preset == preset
    for name in PROTOCOLS:
        assert isinstance(getattr(config.protocols, name), FewShotRecipe) == PROTOCOLS[name].few
    assert parse_config(config.model_dump(mode="json"), where="again") == config


def test_other_presets_start_from_the_recommended_one():
    base, smoke = load_config("recommended"), load_config("smoke")
    assert smoke.data.subset == 128
    assert smoke.data.size == base.data.size
    assert smoke.views == base.views.model_copy(update={"crop_scale": (0.3, 1.0), "blur": 0.5})
    assert smoke.views_plus == base.views_plus
    assert smoke.protocols.linear_probe.epochs == 5
    assert smoke.protocols.linear_probe.learning_rate == base.protocols.linear_probe.learning_rate


def test_the_papers_settings():
    config = load_config("paper-text")
    assert (config.pretrain.epochs, config.pretrain.learning_rate, config.pretrain.ema_momentum) == (1000, 1e-4, 0.99)
    assert config.pretrain.optimizer == "adam"
    assert config.network.init == "imagenet"
    assert config.network.stem == "stock"
    assert config.protocols.few_shot.k == 20


def test_an_own_preset_extends_another(tmp_path):
    path = preset_file(tmp_path, "extends: smoke\npretrain: {epochs: 7}\n")
    config = load_config(path)
    assert config.preset == "mine"
    assert config.pretrain.epochs == 7
    assert config.pretrain.batch_size == load_config("smoke").pretrain.batch_size
    again = preset_file(tmp_path, f"extends: {path}\nstudy: {{seeds: [4]}}\n", "third")
    assert load_config(again).pretrain.epochs == 7
    assert load_config(again).study.seeds == (4,)


def test_bad_presets(tmp_path):
    assert "--preset smok: unknown; did you mean 'smoke'?" in rejected(preset="smok")
    assert "cifar10-byol, demo, paper-code, paper-text, recommended, smoke" in rejected(preset="qqq")
    assert "cannot read it (No such file or directory)" in rejected(preset="nowhere.yaml")
    assert "not valid YAML" in rejected(preset=preset_file(tmp_path, "a: [1"))
    assert "not a mapping" in rejected(preset=preset_file(tmp_path, "- 1"))
    assert "not a mapping" in rejected(preset=preset_file(tmp_path, ""))
    assert "key 'epochs' appears twice" in rejected(
        preset=preset_file(tmp_path, "extends: smoke\npretrain: {epochs: 1, epochs: 2}")
    )
    assert "key 'pretrain' appears twice" in rejected(preset=preset_file(tmp_path, "pretrain: {}\npretrain: {}\n"))
    assert "unknown key 'runtime'" in rejected(preset=preset_file(tmp_path, "data: {size: 28}"), device="cpu")
    assert "study is missing" in rejected(preset=preset_file(tmp_path, "data: {size: 28}"))
    assert "sources: write a mapping" in rejected(preset=preset_file(tmp_path, "extends: smoke\nsources: abc"))
    assert "give one preset's name" in rejected(preset=preset_file(tmp_path, "extends: [smoke]"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert "cannot read it (not text)" in rejected(preset=str(tmp_path / "binary.yaml"))


@pytest.mark.parametrize(
    "text", ["2026-01-01: 1", "&loop\nstudy: *loop", "study: " + "[" * 5000 + "]" * 5000], ids=["date", "loop", "deep"]
)
def test_what_is_no_tree_of_settings_is_refused_in_a_line(tmp_path, text):
    path = tmp_path / "my.yaml"
    path.write_text(f"extends: smoke\n{text}\n" if not text.startswith("&") else text)
    with pytest.raises(UsageError) as error:
        load_config(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["data_root", "preset", "runtime", "study"])
def test_a_plan_that_lacks_a_setting_is_refused_in_a_line(name):
    base = load_config("smoke").model_dump(mode="json")
    del base[name]
    if name == "data_root":
        with pytest.raises(UsageError, match="data_root"):
            parse_config(base, where="x")
        assert load_config("smoke", base=base).data_root is None
    else:
        with pytest.raises(UsageError, match=name):
            load_config("smoke", base=base)


def test_presets_that_extend_each_other(tmp_path):
    first, second = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    preset_file(tmp_path, f"extends: {second}", "a")
    preset_file(tmp_path, f"extends: {first}", "b")
    assert f"{first} extends {second} extends {first}, a circle" in rejected(preset=first)


def test_a_preset_file_may_say_where_data_lie(tmp_path):
    path = preset_file(tmp_path, "extends: smoke\ndata_root: /data\nsources: {own: /own.npz}\n")
    assert load_config(path).data_root == "/data"
    assert load_config(path, data_root="/other").data_root == "/other"
    assert load_config(path, sources=["more=/m.npz"]).sources == {"own": "/own.npz", "more": "/m.npz"}


def test_a_planned_configuration_can_be_the_base():
    planned = load_config("smoke", ["pretrain.epochs=7"], data_root="/data").model_dump(mode="json")
    config = load_config("recommended", ["runtime.keep=5"], base=planned, threads=3)
    assert (config.preset, config.pretrain.epochs, config.data_root) == ("smoke", 7, "/data")
    assert (config.runtime.keep, config.runtime.threads) == (5, 3)
    assert planned["runtime"]["threads"] is None  # the base itself is left alone


# Unknown keys and values


def test_unknown_keys_name_the_nearest(tmp_path):
    assert "unknown key 'epohcs'; did you mean 'epochs'?" in rejected("pretrain.epohcs=3")
    assert "unknown key 'pretrian'; did you mean 'pretrain'?" in rejected("pretrian.epochs=3")
    assert "unknown key 'lerning_rate'; did you mean 'learning_rate'?" in rejected("protocols.few_shot.lerning_rate=1")
    assert "unknown key 'zzz'" in rejected("zzz=3")
    own = "extends: smoke\n"
    for text, where in (
        ("pretrain: {epohcs: 3}", "unknown key pretrain.epohcs; did you mean 'epochs'?"),
        ("veiws: {}", "unknown key veiws; did you mean 'views'?"),
        ("protocols: {few_shot: {drws: 3}}", "unknown key protocols.few_shot.drws; did you mean 'draws'?"),
        ("protocols: {finetune: {k: 3}}", "unknown key protocols.finetune.k"),
    ):
        assert where in rejected(preset=preset_file(tmp_path, own + text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.epochs", "write section.key=value"),
        ("pretrain.epochs.deep=3", "'epochs' is a value, there is nothing below it"),
        ("pretrain.epochs=[", "not valid YAML"),
        ("pretrain.epochs=0", "pretrain.epochs: input should be greater than or equal to 1, not 0"),
        ("pretrain.epochs=1.5", "pretrain.epochs: input should be a valid integer"),
        ("pretrain.epochs='3'", "pretrain.epochs: input should be a valid integer, not '3'"),
        ("pretrain.batch_size=1", "pretrain.batch_size"),
        ("pretrain.learning_rate=0", "pretrain.learning_rate: input should be greater than 0"),
        ("pretrain.learning_rate=.inf", "pretrain.learning_rate: input should be a finite number"),
        ("pretrain.learning_rate=.nan", "pretrain.learning_rate"),
        ("pretrain.learning_rate=fast", "pretrain.learning_rate: input should be a valid number"),
        ("pretrain.ema_momentum=1.5", "pretrain.ema_momentum: input should be less than or equal to 1"),
        ("pretrain.cosine=1", "pretrain.cosine: input should be a valid boolean"),
        ("pretrain.optimizer=adagrad", "pretrain.optimizer: input should be 'adam', 'adamw', 'sgd' or 'lars'"),
        ("pretrain={epochs: 3}", "pretrain.batch_size is missing"),
        ("data.size=29", "data.size: input should be 28, 32, 64, 128 or 224, not 29"),
        ("network.architecture=2024-01-01", ""),
        ("network.stem=big", "network.stem: input should be 'stock', 'middle' or 'cifar'"),
        ("views.flip=-0.1", "views.flip"),
        ("views.jitter_hue=0.6", "views.jitter_hue"),
        ("views.crop_scale=[0.9, 0.1]", "crop_scale: the first value must not exceed the second"),
        ("views.crop_scale=[1, 0]", "crop_scale: the first value must not exceed the second"),
        ("views.crop_scale=[0.1, 1.2]", "views.crop_scale.1"),
        ("views.crop_ratio=[0.0, 1.0]", "views.crop_ratio.0"),
        ("views.blur_sigma=[0.1]", "views.blur_sigma"),
        ("views_plus.cutout_side=[0.1, 1.5]", "views_plus.cutout_side.1"),
        ("study.seeds=[]", "study.seeds"),
        ("study.seeds=[-1]", "study.seeds.0"),
        ("study.seeds=[0, 1, 0]", "seeds: names something twice"),
        ("study.datasets=[breastmnist, breastmnist]", "datasets: names something twice"),
        ("study.methods=[simclr]", "study.methods.0: input should be 'byol' or 'byol_plus', not 'simclr'"),
        ("study.protocols=[probe]", "study.protocols.0"),
        ("protocols.few_shot.k=0", "protocols.few_shot.k"),
        ("protocols.finetune.optimizer=lars", "protocols.finetune.optimizer"),
        ("runtime.device=gpu", "runtime.device"),
        ("runtime=3", "runtime"),
    ],
)
def test_values_out_of_range_name_the_key(override, message):
    if "2024" in override:  # a name that YAML takes for a date is still a name
        assert load_config("smoke", [override]).network.architecture == "2024-01-01"
        return
    assert message in rejected(override)


def test_data_options():
    config = load_config("smoke", sources=["nih=/data/nih.npz", "own=s3://b/x:binary-class"], data_root="/d")
    assert config.sources == {"nih": "/data/nih.npz", "own": "s3://b/x:binary-class"}
    assert config.data_root == "/d"
    for source in ("nih", "nih=", "=x", "NIH=x", "a/b=x"):
        assert "write name=URI" in rejected(sources=[source])


# Overrides


def test_overrides_are_yaml_and_the_last_one_wins():
    config = load_config(
        "smoke",
        [
            "pretrain.epochs=3", "pretrain.epochs=4", "pretrain.learning_rate=1e-3", "data.monitor=null",
            "data.subset=null", "study.methods=[byol]", "views.crop_scale=[0.5, 1]", "network.init=a=b",
        ],
    )  # fmt: skip
    assert config.pretrain.epochs == 4
    assert config.pretrain.learning_rate == 0.001
    assert config.data.monitor is None
    assert config.data.subset is None
    assert config.study.methods == ("byol",)
    assert config.views.crop_scale == (0.5, 1.0)
    assert config.network.init == "a=b"


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "1.0e-3", "10e-4", "+1e-3", ".1e-2"])
def test_every_way_to_write_a_float(text):
    assert load_config("smoke", [f"pretrain.learning_rate={text}"]).pretrain.learning_rate == pytest.approx(0.001)


def test_device_and_threads_override_the_preset():
    config = load_config("smoke", ["runtime.threads=7"], device="cpu", threads=3)
    assert config.runtime.device == "cpu"
    assert config.runtime.threads == 3
    assert "runtime.device" in rejected(device="tpu")
    assert "runtime.threads" in rejected(threads=0)


def test_a_config_is_frozen():
    config = load_config("smoke")
    with pytest.raises(ValueError, match="frozen"):
        config.pretrain.epochs = 3


def test_no_field_has_a_default_but_quirks():
    quirks = set().union(*QUIRKS.values())

    def walk(section):
        for name, field in section.model_fields.items():
            assert field.is_required() == (name not in quirks), f"{section.__name__}.{name}"
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                walk(field.annotation)

    walk(Config)


# Identity


def science(*overrides, **options):
    return identity(load_config("smoke", overrides, **options).science())


def test_runtime_and_places_do_not_change_the_identity():
    base = science()
    assert base == science("runtime.threads=1", "runtime.keep=9", "runtime.checkpoint_minutes=1", device="cpu")
    assert base == science(sources=["x=/y.npz"], data_root="/z", imagenet_weights="/w.pth")
    assert len(base) == 64


@pytest.mark.parametrize(
    "override",
    [
        "pretrain.epochs=3", "pretrain.learning_rate=2e-3", "views.flip=0.4", "network.stem=cifar", "data.size=64",
        "study.seeds=[1]", "protocols.few_shot.k=3", "views_plus.cutout=0.1",
    ],
)  # fmt: skip
def test_science_changes_the_identity(override):
    assert science(override) != science()


def test_the_identity_does_not_depend_on_how_values_are_written():
    assert science("views.crop_scale=[0.3, 1]") == science("views.crop_scale=[3e-1, 1.0]")
    assert identity({"a": 1, "b": [1.5, None]}) == identity({"b": [1.5, None], "a": 1})
    assert identity({"a": 1}) != identity({"a": 1.5})


def test_the_identity_of_a_known_tree_is_stable():
    # run names and stored results depend on it
    assert (
        identity({"b": [1, 2.5, None, True], "a": "é"})
        == "0b8cc543e984d4d7398f5f603a4b91d358a2565f1d6b6a058565d662854e37cf"
    )


def test_science_survives_json():
    config = load_config("recommended")
    again = parse_config(json.loads(json.dumps(config.model_dump(mode="json"))), where="x")
    assert identity(again.science()) == identity(config.science())


def test_difference_lists_what_changed_by_path():
    old = load_config("smoke").science()
    new = load_config("smoke", ["pretrain.epochs=9", "study.seeds=[3]"]).science()
    assert difference(old, old) == []
    assert difference(old, new) == ["pretrain.epochs: 2 -> 9", "study.seeds: [0] -> [3]"]
    assert difference({"a": 1}, {"b": {"c": 2}}) == ["a: 1 -> null", 'b: null -> {"c": 2}']
    assert difference({"curve": [1, "10%"]}, {"curve": (1, "10%")}) == []
    assert difference({"curve": [1]}, {"curve": (1, 2)}) == ["curve: [1] -> [1, 2]"]


def test_preset_files_ship_with_the_package():
    folder = resources.files("app") / "presets"
    assert all((folder / f"{name}.yaml").is_file() for name in presets())


# Settings that are younger than runs


QUIRKS = {
    "network": {"predictor"}, "pretrain": {"ema_every"}, "views": {"jitter_and_blur", "normalise"},
    "views_plus": {"cutout_shape", "drawn", "keep_blur"}, "protocols": {"epoch", "batch_norm", "second_batch"},
}  # fmt: skip


@pytest.mark.parametrize("preset", presets())
def test_a_run_that_is_older_than_the_quirks_goes_on(preset):
    """Of such a run the settings have no word, nor has its identity; a quirk that is chosen is part of it."""
    config = load_config(preset)
    old = config.model_dump(mode="json")
    for section, names in QUIRKS.items():
        for part in old[section].values() if section == "protocols" else [old[section]]:
            for name in names:
                del part[name]
    science = config.science()
    if preset == "paper-code":
        assert science["network"]["predictor"] == "linear"
        assert science["protocols"]["linear_probe"].keys() >= {"epoch", "batch_norm"}
    else:
        assert parse_config(old, where="old").science() == science
        assert science == {section: old[section] for section in science}


def test_presets_and_code_agree_on_the_defaults():
    plain = load_config("recommended").model_dump(mode="json", exclude_defaults=True)
    assert "predictor" not in plain["network"]
    assert plain.keys() == load_config("recommended").model_dump().keys()


def test_batch_norm_cannot_be_trained_behind_features_that_are_scaled():
    said = rejected("protocols.linear_probe.batch_norm=train")
    assert "protocols.linear_probe: batch_norm=train: features then change in every step, so set standardise" in said
