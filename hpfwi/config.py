"""The configuration of a run: one strict tree of settings, read from TOML and changed by `--set a.b=value`.

Each part of the tree is defined beside the code that uses it; this module joins the parts, adds the few that belong to
the run as a whole, and turns whatever a user wrote into either a `RunConfig` or one sentence that says what to change
(`refusals`).
"""

from __future__ import annotations

import importlib.resources
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hpfwi.commands import command_on
from hpfwi.errors import ConfigError
from hpfwi.inversion.settings import InversionSettings
from hpfwi.inversion.windows import MuteSettings
from hpfwi.options import NONE, Option, as_toml, options_of
from hpfwi.parallel import ClusterSettings
from hpfwi.physics.model import ModelSettings
from hpfwi.physics.modelling_settings import ModellingSettings
from hpfwi.physics.source import SourceSettings
from hpfwi.physics.survey import SurveySettings
from hpfwi.refusals import first_problem, is_table, not_an_option_but_a_table, option_at, refusal, unknown

Origins = dict[str, str]
"""Where each option got its value, by dotted name: "default", "--set", or the name of the file or recipe."""

Settings = TypeVar("Settings", bound=BaseModel)

TRAINING = "train_"
"""How the names of training recipes begin; the others are inversions'."""

SMALLEST, LARGEST = 1e-30, 1e18
"""Sizes of the numbers that an option may have beside 0. No quantity here comes near them, and beyond them products of
two in float32, which has models, gathers and weights, are zero or infinite."""
MOST = 2**63 - 1
"""The largest whole number that arrays are counted in."""

TO_BE_GIVEN = "PATH"
"""Stands in a recipe for the file that its user has to name."""

FILE_OPTIONS: dict[str, tuple[str, ...]] = {
    "model.true": ("procedural", TO_BE_GIVEN),
    "model.initial": ("smooth", "linear", "constant"),
    "model.sea_floor": (),
    "source.wavelet": ("ricker",),
    "data.observed": (),
    "modelling.density": ("gardner",),
    "modelling.shear_velocity": (),
    "modelling.quality_factor": (),
}
"""Options whose value may be a file, and the words that are not one. Relative files are made absolute on loading."""


class DataSettings(BaseModel):
    """The observed gathers: read from a file, or simulated in the true model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    observed: str | None = Field(
        default=None, description='Gathers to invert, a .zarr folder; "none" simulates them in the true model.'
    )
    refine: int = Field(
        default=2,
        ge=1,
        le=8,
        description="The simulation of observed gathers uses cells this many times smaller than the inversion's, so "
        "that its numerical errors are others; 1 is the same grid.",
    )
    order: Literal[2, 4, 6, 8] | None = Field(
        default=None, description='Order in space of that simulation; "none" is the inversion\'s.'
    )
    noise_std_share: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Standard deviation of Gaussian noise added to simulated gathers, as a share of theirs.",
    )
    noise_seed: int = Field(default=0, ge=0, description="Seed of that noise.")
    mute: MuteSettings = MuteSettings.model_validate({})


class OutputSettings(BaseModel):
    """Where run folders go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field(
        "runs", min_length=1, description="Folder that gets one folder per run, seen from where you are."
    )


class RunConfig(BaseModel):
    """Everything that determines a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        default="run",
        max_length=100,
        description="Name of the run and of its folder; without one, the name of the TOML file.",
    )
    model: ModelSettings = ModelSettings.model_validate({})
    survey: SurveySettings = SurveySettings.model_validate({})
    source: SourceSettings = SourceSettings.model_validate({})
    modelling: ModellingSettings = ModellingSettings.model_validate({})
    data: DataSettings = DataSettings.model_validate({})
    inversion: InversionSettings = InversionSettings.model_validate({})
    cluster: ClusterSettings = ClusterSettings.model_validate({})
    output: OutputSettings = OutputSettings.model_validate({})

    @model_validator(mode="before")
    @classmethod
    def _nobody_knows_the_earth(cls, values: Any) -> Any:
        """Gathers from a file come without a true model, unless one is named; the made-up one is not theirs."""
        if not isinstance(values, Mapping):
            return values
        model, data = values.get("model", {}), values.get("data", {})
        if isinstance(model, Mapping) and "true" not in model and isinstance(data, Mapping) and data.get("observed"):
            return {**values, "model": {**model, "true": None}}
        return values

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        return name_of_folder(value)


def name_of_folder(value: str) -> str:
    """The value, where a run's folder can be called so; raises ValueError elsewhere."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError("it must be letters, digits, dots, dashes and underscores, a letter or digit first")
    return value


def load_config(source: str | Path | None = None, overrides: Sequence[str] = ()) -> tuple[RunConfig, Origins]:
    """Read the configuration of an inversion and say where each of its values comes from; see `load_settings`.

    source      a TOML file, the name of a recipe (see `recipe_names`), or None for the defaults alone
    """
    return load_settings(RunConfig, source, overrides, recipes=recipe_names(), files=FILE_OPTIONS)


def load_settings(
    kind: type[Settings],
    source: str | Path | None,
    overrides: Sequence[str],
    *,
    recipes: Sequence[str],
    files: Mapping[str, tuple[str, ...]],
) -> tuple[Settings, Origins]:
    """Read a configuration of one kind and say where each of its values comes from.

    kind        the settings model; a name that it lacks is filled in from the source's
    source      a TOML file, one of `recipes`, or None for the defaults alone
    overrides   "a.b=value", applied in order; the value is TOML, or text where it is not valid TOML
    files       options whose value may be a file, as FILE_OPTIONS
    raises      ConfigError: one sentence naming the option, its value, its limit and the remedy
    """
    defaults = options_of(kind())
    table, origin, folder = _read(source, recipes)
    values: dict[str, Any] = {}
    origins: Origins = dict.fromkeys(defaults, "default")
    for name, value in _leaves(table, defaults):
        values[name] = _resolved(defaults[name], value, folder, files)
        origins[name] = origin
    if source is not None and "name" not in values:
        values["name"] = _name_from(origin)
        origins["name"] = origin
    spelled: dict[str, str] = {}
    for override in overrides:
        name, text = _split_override(override, defaults)
        values[name] = _resolved(defaults[name], _parse_value(text), Path.cwd(), files)
        spelled[name] = text
        origins[name] = "--set"
    for name, value in values.items():
        _refuse_early(defaults[name], value, origins[name])
    return _validate(kind, values, spelled, origins, defaults), origins


def require_input(config: RunConfig) -> None:
    """Raise ConfigError where a run has neither observed gathers nor a true model to simulate them in."""
    if config.model.true == TO_BE_GIVEN:
        raise ConfigError(
            f"{config.name} needs a velocity model that does not come with hpfwi; name its file (.npy, .npz, .zarr, "
            ".segy or .sgy) with --model PATH."
        )
    if config.data.observed is None and config.model.true is None:
        raise ConfigError(
            "There is nothing to invert, because model.true and data.observed are both none; name a velocity model "
            "with --model PATH, or observed gathers with --set data.observed=PATH."
        )


def recipe_names() -> list[str]:
    """Names of the recipes of inversions that come with hpfwi."""
    return [name for name in _every_recipe() if not name.startswith(TRAINING)]


def training_recipe_names() -> list[str]:
    """Names of the recipes that train networks."""
    return [name for name in _every_recipe() if name.startswith(TRAINING)]


def _every_recipe() -> list[str]:
    entries = importlib.resources.files("hpfwi").joinpath("recipes").iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


def describe(config: BaseModel, origins: Mapping[str, str]) -> str:
    """Every option as TOML with its meaning, value, origin and default; itself a file that can be read back."""
    return as_toml(config, origins, options_of(type(config)()))


def _read(source: str | Path | None, recipes: Sequence[str]) -> tuple[dict[str, Any], str, Path]:
    """The table of a file or recipe, a name for its origin, and the folder that relative files start from."""
    if source is None:
        return {}, "default", Path.cwd()
    path = Path(source)
    try:
        if not path.is_file() and str(source) in recipes:
            text = importlib.resources.files("hpfwi").joinpath("recipes", f"{source}.toml").read_text("utf-8")
            return tomllib.loads(text), f"recipe {source}", Path.cwd()
        return tomllib.loads(path.read_bytes().decode("utf-8-sig")), path.name, path.absolute().parent
    except FileNotFoundError as error:
        raise ConfigError(
            f"{source} does not exist; give a TOML file or one of the recipes {', '.join(recipes)}."
        ) from error
    except OSError as error:
        if (path / "config.toml").is_file():
            raise ConfigError(
                f"{source} is the folder of a run; go on with it by `{command_on('resume', path)}`, or give its "
                "config.toml for another run like it."
            ) from error
        raise ConfigError(f"{source} cannot be read ({error.strerror}); give a TOML file or a recipe.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{source} is not text; give a TOML file or a recipe, in which data.observed and model.true name files."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML ({error}); correct it there.") from error


def _name_from(origin: str) -> str:
    """A run name from "recipe demo" or "my line.toml"."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", origin.removeprefix("recipe ").removesuffix(".toml")).lstrip("._-")
    return stem[:100] or "run"


def _leaves(table: Mapping[str, Any], defaults: Mapping[str, Option], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted name, value) of a table; raises ConfigError at the first name that is not an option."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        if name in defaults:
            yield name, value
        elif not is_table(name, defaults):
            raise unknown(name, defaults)
        elif isinstance(value, Mapping):
            yield from _leaves(value, defaults, f"{name}.")
        else:
            raise not_an_option_but_a_table(name, value, defaults)


def _split_override(override: str, defaults: Mapping[str, Option]) -> tuple[str, str]:
    name, equals, text = override.partition("=")
    name, text = name.strip(), text.strip()
    if not equals or not name:
        raise ConfigError(
            f'--set "{override}" has no name and value; write it as --set inversion.iterations=50, for example.'
        )
    if name not in defaults:
        raise (not_an_option_but_a_table(name, text, defaults) if is_table(name, defaults) else unknown(name, defaults))
    return name, text


def _parse_value(text: str) -> Any:
    """A value after `--set name=`: TOML where it is that, else the text itself.

    >>> _parse_value("3"), _parse_value("[1, 2]"), _parse_value("s-denorm"), _parse_value("'s'"), _parse_value("none")
    (3, [1, 2], 's-denorm', 's', 'none')
    """
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _resolved(option: Option, value: Any, folder: Path, files: Mapping[str, tuple[str, ...]]) -> Any:
    """The value with "none" read as None and a relative file made absolute from `folder`."""
    if value == NONE and option.may_be_none:
        return None
    words = files.get(option.name)
    if words is None or not isinstance(value, str) or value in words or not value:
        return value
    return str((folder / Path(value).expanduser()).resolve())


def _refuse_early(option: Option, value: Any, origin: str) -> None:
    """Refuse what pydantic would let pass: numbers that are not finite or of no use, and true or false for a number."""
    items = value if isinstance(value, list) else [value]
    counts = int in option.accepts
    for item in items:
        if isinstance(item, float) and not math.isfinite(item):
            raise refusal(option, value, origin, "; give a finite number", "")
        if counts and isinstance(item, int) and abs(item) > MOST:
            raise refusal(option, value, origin, f"; give at most {MOST:g}", "")
        if not counts and isinstance(item, int | float) and item and not SMALLEST <= abs(item) <= LARGEST:
            raise refusal(option, value, origin, f"; give a number of the size {SMALLEST:g} to {LARGEST:g}, or 0", "")
    if bool not in option.accepts and any(isinstance(item, bool) for item in items):
        raise refusal(option, value, origin, "; give a value that is neither true nor false", "")


def _validate(
    kind: type[Settings],
    values: Mapping[str, Any],
    spelled: Mapping[str, str],
    origins: Origins,
    defaults: Mapping[str, Option],
) -> Settings:
    try:
        return kind.model_validate(_nested(values))
    except ValidationError as error:
        problems = error.errors(include_url=False)
    # `--set name=2024` is a number in TOML and meant as text: where text is asked for, take it as it was spelled.
    as_text = {
        name: spelled[name]
        for problem in problems
        if problem["type"] == "string_type" and (name := option_at(problem["loc"], defaults)) in spelled
    }
    if as_text and any(values[name] != text for name, text in as_text.items()):
        return _validate(kind, {**values, **as_text}, {}, origins, defaults)
    raise first_problem(problems, values, origins, defaults)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as nested tables."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *tables, key = name.split(".")
        table = tree
        for part in tables:
            table = table.setdefault(part, {})
        table[key] = value
    return tree
