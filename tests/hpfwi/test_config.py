"""A configuration is strict, says what is wrong in one sentence, and reads back as it was written."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from hpfwi.config import (
    FILE_OPTIONS,
    RunConfig,
    describe,
    load_config,
    recipe_names,
    require_input,
)
from hpfwi.errors import ConfigError
from hpfwi.options import as_toml, options_of, toml_value


def write(folder: Path, text: str, name: str = "line.toml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(*arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert "pydantic" not in text
    assert "Value error" not in text
    return text


def test_the_defaults_are_a_configuration_and_all_say_so() -> None:
    config, origins = load_config()
    assert config == RunConfig()
    assert set(origins.values()) == {"default"}
    assert origins.keys() == options_of(config).keys()


def test_every_option_is_described() -> None:
    for option in options_of(RunConfig()).values():
        assert option.description.endswith("."), option.name
        assert len(option.description) > 10, option.name


def test_the_options_that_may_be_files_exist() -> None:
    assert FILE_OPTIONS.keys() <= options_of(RunConfig()).keys()


def test_a_file_and_overrides_give_values_and_origins(tmp_path: Path) -> None:
    path = write(tmp_path, "[inversion]\niterations = 7\nseed = 1\n[inversion.parameterisation]\nkind = 'pixel'\n")
    config, origins = load_config(path, ["inversion.seed=2", "inversion.seed = 3", "modelling.free_surface=false"])
    assert (config.inversion.iterations, config.inversion.seed) == (7, 3)
    assert config.inversion.parameterisation.kind == "pixel"
    assert config.modelling.free_surface is False
    assert origins["inversion.iterations"] == "line.toml"
    assert origins["inversion.seed"] == "--set"
    assert origins["survey.shots"] == "default"


@pytest.mark.parametrize(
    ("text", "name"), [("", "north-sea"), ("name = 'given'", "given"), ("[survey]\nshots = 3", "north-sea")]
)
def test_a_run_is_named_by_its_file_unless_it_names_itself(tmp_path: Path, text: str, name: str) -> None:
    assert load_config(write(tmp_path, text, "north sea.toml"))[0].name == name


@pytest.mark.parametrize(
    ("override", "option", "value"),
    [
        ("inversion.parameterisation.kind=pixel", "inversion.parameterisation.kind", "pixel"),
        ("inversion.parameterisation.kind='pixel'", "inversion.parameterisation.kind", "pixel"),
        ("cluster.workers=auto", "cluster.workers", "auto"),
        ("cluster.workers=0", "cluster.workers", 0),
        ("modelling.absorbing_cells=[0, 10, 10, 10]", "modelling.absorbing_cells", (0, 10, 10, 10)),
        ("survey.dt_s=1.9e-3", "survey.dt_s", 0.0019),
        ("inversion.shots_per_iteration=none", "inversion.shots_per_iteration", None),
        ("inversion.parameterisation.lr_log_scale=none", "inversion.parameterisation.lr_log_scale", None),
        ("name=2024", "name", "2024"),
        ("name=2024-05-01", "name", "2024-05-01"),
        ("output.folder=/a/b=c", "output.folder", "/a/b=c"),
    ],
)
def test_values_after_set(override: str, option: str, value: Any) -> None:
    config, origins = load_config("demo", [override])
    assert options_of(config)[option].value == value
    assert origins[option] == "--set"


@pytest.mark.parametrize("value", ["none", '"none"'])
def test_none_in_a_file_is_none(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, f"[inversion.parameterisation]\nlr_log_scale = {value!r}".replace("'\"none\"'", '"none"'))
    assert load_config(path)[0].inversion.parameterisation.lr_log_scale is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[inversion]\niteratons = 5", "inversion.iteratons is not an option; did you mean inversion.iterations?"),
        ("iterations = 5", "iterations is not an option; did you mean inversion.iterations?"),
        ("[inversion]\nkind = 'pixel'", "did you mean inversion.parameterisation.kind or inversion.optimiser.kind?"),
        ("[invresion]\niterations = 5", "invresion is not an option; did you mean "),
        ("[survey]\nzzzzqqqq = 5", "survey.zzzzqqqq is not an option; `hpfwi config` prints every option."),
        ("[survey]\nseeds = 5", "survey.seeds is not an option; did you mean "),
        ("inversion = 5", "inversion = 5 cannot be used, because inversion is a table of options; set one of them"),
        ("[inversion]\niterations = 0", "inversion.iterations = 0 (from line.toml) cannot be used; give at least 1"),
        ("[inversion]\niterations = 1.5", "inversion.iterations = 1.5 (from line.toml) cannot be used; give a whole"),
        ("[inversion]\niterations = true", "inversion.iterations = true (from line.toml) cannot be used; give a value"),
        ("[inversion]\niterations = {x = 1}", 'inversion.iterations = {"x" = 1} (from line.toml) cannot be used'),
        ("[source]\npeak_hz = 'low'", 'source.peak_hz = "low" (from line.toml) cannot be used; give a finite number'),
        ("[source]\npeak_hz = nan", "source.peak_hz = nan (from line.toml) cannot be used; give a finite number"),
        (
            "[survey]\ndt_s = 1e-31",
            "survey.dt_s = 1e-31 (from line.toml) cannot be used; give a number of the size 1e-30 to 1e+18, or 0 (Time",
        ),
        (f"[inversion]\nseed = 1{'0' * 19}", "(from line.toml) cannot be used; give at most 9.22337e+18 (Seed"),
        (f"[source]\nstrength = -1{'0' * 19}", "cannot be used; give a number of the size 1e-30 to 1e+18, or 0"),
        (
            "[model]\nbounds_mps = [1.0, 1e40]",
            "model.bounds_mps = [1.0, 1e+40] (from line.toml) cannot be used; give a",
        ),
        ("[survey]\ndt_s = inf", "survey.dt_s = inf (from line.toml) cannot be used; give a finite number"),
        ("[survey]\ndt_s = -1", "survey.dt_s = -1 (from line.toml) cannot be used; give more than 0"),
        ("[modelling]\norder = 7", "modelling.order = 7 (from line.toml) cannot be used; give 2, 4, 6 or 8"),
        (
            "[modelling]\nfree_surface = 'maybe'",
            'modelling.free_surface = "maybe" (from line.toml) cannot be used; give',
        ),
        ("[inversion]\nmisfit = 'l1'", 'inversion.misfit = "l1" (from line.toml) cannot be used; give "l2" or "normal'),
        ("[cluster]\nworkers = -1", 'cluster.workers = -1 (from line.toml) cannot be used; give at least 0 or "auto"'),
        ("[model]\nlinear_mps = [1500.0]", "model.linear_mps = [1500.0] (from line.toml) cannot be used; give a list"),
        ("[model]\ntrue = 5", "model.true = 5 (from line.toml) cannot be used; give text"),
        ("name = '../up'", 'name = "../up" (from line.toml) cannot be used: it must be letters, digits'),
        (
            "[inversion]\nshots_per_iteration = 5\nshots_per_item = 2",
            "[inversion] shots_per_iteration=5 is not a multiple of shots_per_item=2; change one of the two.",
        ),
        ("[model]\nlinear_mps = [1.0, 2.0, 3.0]", "cannot be used; give a list of 2 values (Velocity at the top"),
        (
            "[model]\nbounds_mps = [2.0, 1.0]",
            "model.bounds_mps = [2.0, 1.0] (from line.toml) cannot be used: (2.0, 1.0)",
        ),
        (
            "[inversion]\niterations = 0\nseed = -1",
            "(and 1 more to correct: inversion.seed).",
        ),
        ("[inversion\n", "line.toml is not valid TOML"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    assert words in refused(write(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("inversion.iterations", "has no name and value; write it as --set inversion.iterations=50"),
        ("=5", "has no name and value"),
        ("inversion=5", "inversion is a table of options; set one of them, such as inversion.iterations"),
        ("inversion.iterations.x=5", "inversion.iterations.x is not an option; did you mean inversion.iterations?"),
        ("inversion.iterations=many", 'inversion.iterations = "many" (from --set) cannot be used; give a whole number'),
        ("inversion.iterations=5\nseed = 3", "inversion.iterations = "),
        ("inversion.iterations=", "give a whole number"),
    ],
)
def test_what_is_wrong_after_set(override: str, words: str) -> None:
    assert words in refused(None, [override]).replace("\n", " ")


def test_a_file_that_is_not_there_lists_the_recipes(tmp_path: Path) -> None:
    text = refused(tmp_path / "absent.toml")
    assert "absent.toml does not exist; give a TOML file or one of the recipes demo, demo_3d, marmousi_bands" in text


def test_a_folder_or_a_binary_file_is_one_sentence(tmp_path: Path) -> None:
    assert "cannot be read (Is a directory)" in refused(tmp_path)
    (tmp_path / "image.toml").write_bytes(b"\x89PNG\xff\xfe")
    assert "is not text; give a TOML file" in refused(tmp_path / "image.toml")


def test_files_are_found_from_where_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = write(
        tmp_path / "project", "[model]\ntrue = 'data/a.npy'\ninitial = 'linear'\n[data]\nobserved = '../g.zarr'"
    )
    config, _ = load_config(path, ["source.wavelet=w.npy"])
    assert config.model.true == str(tmp_path / "project" / "data" / "a.npy")
    assert config.model.initial == "linear"
    assert config.data.observed == str(tmp_path / "g.zarr")
    assert config.source.wavelet == str(elsewhere / "w.npy")


def test_the_recipes_are_valid_and_named_after_themselves() -> None:
    assert recipe_names() == ["demo", "demo_3d", "marmousi_bands", "marmousi_linear", "marmousi_smooth"]
    for name in recipe_names():
        assert load_config(name)[0].name == name


def test_the_marmousi_recipes_follow_the_published_settings() -> None:
    """drfwi: 94 x 288 cells of 15 m, 13 shots every 20 cells from cell 24, 1000 samples of 1.9 ms, Adam at 1e-4."""
    smooth, linear = load_config("marmousi_smooth")[0], load_config("marmousi_linear")[0]
    for config in (smooth, linear):
        assert (config.model.resample, config.model.relabel_spacing_m) == ((94, 288), (15.0, 15.0))
        assert config.model.clip_mps == (1500.0, 5500.0)
        assert (config.survey.shots, config.survey.first_source_m, config.survey.source_spacing_m) == (13, 360, 300)
        assert (config.survey.receivers, config.survey.receiver_depth_m) == (None, None)
        assert (config.survey.dt_s, config.survey.samples) == (0.0019, 1000)
        assert (config.source.peak_hz, config.source.delay_s) == (8.0, None)
        assert (config.modelling.order, config.modelling.absorbing_cells, config.modelling.free_surface) == (
            8,
            20,
            True,
        )
        assert (config.inversion.iterations, config.inversion.shots_per_iteration) == (500, None)
        parameterisation = config.inversion.parameterisation
        assert (parameterisation.scale_mps, parameterisation.mean_mps, parameterisation.lr_network) == (
            1000,
            3000,
            1e-4,
        )
        with pytest.raises(ConfigError, match=r"needs a velocity model .* --model PATH"):
            require_input(config)
    assert (smooth.model.initial, smooth.model.smooth_sigma_cells) == ("smooth", 20)
    assert (linear.model.initial, linear.model.linear_mps) == ("linear", (1500, 4500))
    banded = linear.inversion.model_copy(update={"bands_hz": (4.0, 6.0, 9.0)})
    assert load_config("marmousi_bands")[0] == linear.model_copy(update={"name": "marmousi_bands", "inversion": banded})


def test_a_run_needs_something_to_invert() -> None:
    require_input(load_config("demo")[0])
    fields = ["model.true=none", "model.initial=linear"]
    require_input(load_config("demo", [*fields, "data.observed=g.zarr"])[0])
    with pytest.raises(ConfigError, match="There is nothing to invert"):
        require_input(load_config("demo", fields)[0])


def test_observed_gathers_have_no_true_model_unless_one_is_named(tmp_path: Path) -> None:
    """The made-up earth of the default once stood in for the unknown one of field records."""
    field = "[data]\nobserved = 'g.zarr'\n[model]\ninitial = 'linear'\n"
    config, _ = load_config(write(tmp_path, field))
    assert config.model.true is None
    (tmp_path / "resolved.toml").write_text(as_toml(config))
    assert load_config(tmp_path / "resolved.toml")[0].model == config.model
    assert load_config(write(tmp_path, f"{field}true = 'procedural'"))[0].model.true == "procedural"
    assert load_config(write(tmp_path, field), ["data.observed=none"])[0].model.true == "procedural"
    with pytest.raises(ConfigError, match='initial="smooth" needs a true model'):
        load_config(write(tmp_path, "[data]\nobserved = 'g.zarr'"))


@pytest.mark.parametrize("recipe", [None, "demo", "marmousi_smooth"])
def test_resolved_and_described_configurations_read_back_the_same(tmp_path: Path, recipe: str | None) -> None:
    overrides = [
        "inversion.parameterisation.lr_log_scale=none",
        "inversion.seed=5",
        "modelling.absorbing_cells=[0,9,9,9]",
    ]
    config, origins = load_config(recipe, overrides)
    for text in (as_toml(config), describe(config, origins)):
        again, _ = load_config(write(tmp_path / "run", text, "config.toml"))
        assert again == config
        assert as_toml(again) == as_toml(config)


def test_the_description_says_meaning_origin_and_default() -> None:
    text = describe(*load_config("demo", ["inversion.iterations=7"]))
    assert "[inversion]\n# Iterations of the optimiser.\niterations = 7  # --set; default 300\n" in text
    assert 'true = "procedural"  # recipe demo; default "procedural"' in text
    assert "constant_mps = 3000.0  # default\n" in text


class Anything(BaseModel):
    text: str = ""
    number: float = 0.0
    count: int = 0
    many: tuple[float, ...] = ()
    table: dict[str, str] = {}


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(codec="utf-8")),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.floats(allow_nan=False, allow_infinity=False)),
    st.dictionaries(st.text(st.characters(codec="utf-8")), st.just("v"), max_size=2),
)
def test_any_value_survives_the_writer(
    text: str, number: float, count: int, many: list[float], table: dict[str, str]
) -> None:
    written = Anything(text=text, number=number, count=count, many=tuple(many), table=table)
    read = Anything.model_validate(tomllib.loads(as_toml(written)))
    assert read == written


def test_a_value_without_a_toml_form_is_an_error() -> None:
    with pytest.raises(TypeError, match="type object has no TOML form"):
        toml_value(object())
