"""The `hpfwi` command: one function per verb, each a thin layer over the library.

Exit codes: 0 done, 2 configuration, 3 data, 4 numerics, 5 cluster, 75 stopped and resumable; 1 is a defect of hpfwi and
130 a Ctrl-C outside a run. Everything heavy is imported inside the verbs, so that `hpfwi --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpfwi import __version__
from hpfwi.cli_bench import register as register_bench
from hpfwi.cli_cluster import register as register_cluster
from hpfwi.cli_data import app as data_app
from hpfwi.cli_field import register as register_field
from hpfwi.cli_refine import register as register_refinement
from hpfwi.cli_train import register as register_training
from hpfwi.commands import command_on
from hpfwi.errors import ConfigError, DiskError, HpfwiError, Stopped
from hpfwi.verbs import refuses_input, verb_of

if TYPE_CHECKING:
    from rich.console import Console

    from hpfwi.config import RunConfig
    from hpfwi.inversion.outcome import Outcome
    from hpfwi.run_folder import RunFolder

app = typer.Typer(
    help="Find the velocity of the earth from seismic records: full waveform inversion with grids or neural networks.",
    epilog="Start with `hpfwi demo`. Exit codes: 0 done, 2 configuration, 3 data, 4 numerics, 5 cluster, 75 stopped "
    "and resumable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(data_app, name="data")
_verb = verb_of(app)

Source = Annotated[
    str,
    typer.Argument(
        metavar="RUN.TOML",
        help="A TOML file, or a recipe: demo, demo_3d, marmousi_smooth, marmousi_linear, marmousi_bands.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Change one option of the configuration; may be repeated."),
]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run and of its folder.")]
Workers = Annotated[
    str | None,
    typer.Option(
        "--workers", metavar="N", help="Worker processes; 0 computes in this process, auto: a GPU or a core each."
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="PATH", help="The true velocity model: .npy, .npz, .zarr, .segy or .sgy."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run of the same name.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a run, such as runs/demo.")]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hpfwi {__version__}")
        raise typer.Exit


@app.callback()
def _hpfwi(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from; HPFWI_DEBUG=1 does the same.")
    ] = False,
) -> None:
    if debug:
        os.environ["HPFWI_DEBUG"] = "1"


@_verb
def demo(overrides: Overrides = None, name: Name = None, workers: Workers = None, overwrite: Overwrite = False) -> None:
    """Invert a made-up earth, to see hpfwi at work.

    Needs no file and no configuration, and takes minutes on a laptop. The result is in runs/demo.
    """
    _start("demo", _overrides(overrides, name=name, workers=workers), overwrite)


@_verb
def invert(
    source: Source,
    model: Model = None,
    overrides: Overrides = None,
    name: Name = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Invert gathers as a TOML file or a recipe says.

    The gathers are read from data.observed, or simulated in the true model without it. Ctrl-C and SIGTERM stop
    the run soon, with a checkpoint and exit code 75; `hpfwi resume` goes on to the same result.
    """
    _start(source, _overrides(overrides, model=model, name=name, workers=workers), overwrite)


@_verb
def resume(
    folder: Folder,
    workers: Workers = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="PATH.zarr", help="Where the pairs of a training run lie now, if elsewhere."),
    ] = None,
) -> None:
    """Go on with a stopped or killed run.

    It starts from the last checkpoint that is whole and gives the same result, bit for bit, on any number of workers.
    """
    from hpfwi.cli_train import resume_training
    from hpfwi.config import load_config
    from hpfwi.run_folder import RunFolder
    from hpfwi.training.settings import is_training

    with RunFolder.open(folder) as run:
        if run.is_done:
            typer.echo(f"{folder} is finished; there is nothing to resume.")
            return
        if is_training(folder):
            resume_training(run, _overrides(None, workers=workers), data)
            return
        if data is not None:
            raise ConfigError(
                f"--data is for training runs and {folder} inverts gathers; leave it out, and write where gathers that "
                f"have moved are now into data.observed of {run.config_path}."
            )
        config, _ = load_config(run.config_path, _overrides(None, workers=workers))
        _drive(config, run, going_on=True)


@_verb
def simulate(
    source: Source,
    model: Model = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PATH.zarr", help="Where the gathers go; without it, NAME.zarr.")
    ] = None,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace gathers that are there already.")] = False,
) -> None:
    """Compute and store the gathers of the true model.

    They are stored with survey and wavelet, ready to be inverted with --set data.observed=PATH.zarr.
    """
    from hpfwi.config import load_config
    from hpfwi.experiment import build_experiment, simulated_gathers
    from hpfwi.store.atomic import refuse_unwritable
    from hpfwi.store.gathers import require_zarr, write_gathers
    from hpfwi.training.settings import require_kind

    require_kind(source, training=False)
    config, _ = load_config(source, _overrides(overrides, model=model))
    path = out or Path(f"{config.name}.zarr")
    if config.model.true is None:
        raise ConfigError("Simulating gathers needs a true model, and model.true is none; name one with --model PATH.")
    require_zarr(path)
    refuse_unwritable(path, overwrite=overwrite)
    experiment = build_experiment(config.model_copy(update={"data": config.data.model_copy(update={"observed": None})}))
    console = _console()
    with console.status(f"Simulating {experiment.survey.shots} shots") as status:
        gathers = simulated_gathers(
            experiment,
            threads=len(os.sched_getaffinity(0)),
            progress=lambda done, shots: status.update(f"Simulating shot {done} of {shots}"),
        )
    attrs = {"made_by": f"hpfwi {__version__} simulate", "name": config.name}
    write_gathers(path, gathers, experiment.survey, experiment.wavelet, attrs, overwrite=overwrite)
    shots, receivers, samples = gathers.shape
    typer.echo(f"Wrote {shots} shots x {receivers} receivers x {samples} samples to {path}")


@_verb
def plan(source: Source, model: Model = None, overrides: Overrides = None, workers: Workers = None) -> None:
    """Print what a run would do, cost and need.

    Time step, points per wavelength, absorbing edges, memory and time, each with its reason; nothing is inverted.
    """
    from hpfwi.config import load_config
    from hpfwi.experiment import build_experiment
    from hpfwi.plan import as_table, derived_settings, estimated_time
    from hpfwi.training.settings import require_kind

    require_kind(source, training=False)
    config, _ = load_config(source, _overrides(overrides, model=model, workers=workers))
    experiment = build_experiment(config)
    rows = derived_settings(experiment)
    _console().print(as_table([*rows, *estimated_time(experiment)], f"Plan of {config.name}"))


@_verb
def config(
    source: Annotated[
        str | None,
        typer.Argument(metavar="RUN.TOML", help="A TOML file, a recipe, or `refine`; without it, the defaults."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print every option, its meaning and its origin.

    The output is TOML that can be edited and run. Recipes: demo, demo_3d, marmousi_smooth, marmousi_linear,
    marmousi_bands, and those of `hpfwi train`. `hpfwi config refine` prints the options of `hpfwi refine`.
    """
    from hpfwi.config import describe, load_config, recipe_names, training_recipe_names
    from hpfwi.refinement.settings import load_refinement
    from hpfwi.training.settings import is_training, load_train_config

    if source == "refine" and not Path(source).exists():
        typer.echo(describe(*load_refinement(overrides or [])), nl=False)
        return
    recipes = [*recipe_names(), *training_recipe_names()]
    if source is not None and source not in recipes and not os.path.exists(source):  # False for names too long
        raise ConfigError(
            f"{source} does not exist; give a TOML file, refine, or one of the recipes {', '.join(recipes)}."
        )
    read = load_train_config if is_training(source) else load_config
    config, origins = read(source, _overrides(overrides))
    typer.echo(describe(config, origins), nl=False)


@_verb
def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print versions and hardware, for a bug report."""
    import json

    from hpfwi.environment import environment, environment_text

    facts = environment()
    typer.echo(json.dumps(facts, indent=1) if as_json else environment_text(facts))


@_verb
def check(
    with_ray: Annotated[bool, typer.Option("--ray/--no-ray", help="Start a Ray worker too.")] = True,
) -> None:
    """Prove that this installation works.

    Kernel, a tiny inversion, files, TensorBoard and Ray, in about a minute.
    """
    from hpfwi.installation import checks

    failed = 0
    for result in checks(with_ray=with_ray):
        typer.echo(f"{'ok    ' if result.ok else 'FAILED'}  {result.seconds:6.1f} s  {result.name}: {result.detail}")
        failed += not result.ok
    if failed:
        raise HpfwiError(f"{failed} of the checks failed; `hpfwi env` says what a bug report needs.")
    typer.echo("This installation works.")


@_verb
def report(folder: Folder) -> None:
    """Draw the figures of a run and write its report.

    The run may be finished, stopped or still going on.
    """
    from hpfwi.report import write_report
    from hpfwi.training.settings import is_training

    if is_training(folder):
        raise ConfigError(f"{folder} trained a network; `{command_on('evaluate', folder)}` says how good it is.")
    typer.echo(f"Wrote {write_report(folder)}")


def _overrides(
    overrides: list[str] | None, *, model: str | None = None, name: str | None = None, workers: str | None = None
) -> list[str]:
    """The --set options, followed by the options that have a name of their own."""
    from hpfwi.options import toml_value

    named = {"model.true": model, "name": name}
    texts = [f"{option}={toml_value(value)}" for option, value in named.items() if value is not None]
    return [*(overrides or []), *texts, *([] if workers is None else [f"cluster.workers={workers}"])]


def _start(source: str, overrides: list[str], overwrite: bool) -> None:
    """Make the folder of a new run and run it."""
    from hpfwi.config import load_config
    from hpfwi.environment import environment
    from hpfwi.experiment import build_experiment, cluster_of
    from hpfwi.plan import derived_settings, in_brief
    from hpfwi.run_folder import RunFolder, refuse_taken
    from hpfwi.training.settings import require_kind

    require_kind(source, training=False)
    config, _ = load_config(source, overrides)
    parent = Path(config.output.folder)
    refuse_taken(parent / config.name, overwrite)
    experiment = build_experiment(config)
    for line in in_brief(derived_settings(experiment)):
        typer.echo(line)
    # The folder says where its run computes, because a GPU's bits are others; the number of workers stays open.
    device = cluster_of(config).device
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"device": device})})
    facts = environment(["hpfwi", *sys.argv[1:]])
    with RunFolder.create(config, config.name, parent=parent, environment=facts, overwrite=overwrite) as run:
        try:
            _drive(config, run, going_on=False)
        except Exception as error:
            # Another input is another run: an unfinished folder would stand in its way.
            if refuses_input(error) and not run.checkpoints.exists():
                restored = "the run before is there again" if run.discard() else "it is removed"
                typer.echo(f"Nothing was begun in {run.path}: {restored}.")
            raise


def _drive(config: RunConfig, run: RunFolder, *, going_on: bool) -> None:
    """Invert in an open run folder, stopping when asked to; then say what came out and where to look."""
    from hpfwi.stop import Stop, on_signals

    for notice in run.notices:
        typer.echo(notice)
    typer.echo(f"Run folder {run.path}")
    stop = Stop()
    try:
        with on_signals(stop, typer.echo):
            # These imports take a second or two, in which the folder is there already.
            from hpfwi.inversion.invert import invert as invert_in
            from hpfwi.report import write_report

            outcome = invert_in(config, run, resume=going_on, stop=stop)
    except KeyboardInterrupt:
        raise Stopped(f"Stopped at once by a second signal; go on with `{command_on('resume', run.path)}`.") from None
    try:
        page = write_report(run.path)
    except KeyboardInterrupt:
        raise Stopped(
            f"The run is finished, but not its report: `{command_on('report', run.path)}` writes it."
        ) from None
    except DiskError as error:
        raise DiskError(
            f"The run is finished, but not its report: {error} `{command_on('report', run.path)}` writes it."
        ) from error
    for line in _summary(run.path, outcome, page):
        typer.echo(line)


def _summary(path: Path, outcome: Outcome, page: Path) -> list[str]:
    """The last lines of a run: what changed, what to think of it, and where to look."""
    of_band = f", whole band, from iteration {outcome.last_band} on" if outcome.last_band else ""
    lines = [f"Misfit       {outcome.misfit_first:.4g} → {outcome.misfit_last:.4g} of the observed energy{of_band}"]
    if outcome.mse_first_kmps2 is not None and outcome.mse_last_kmps2 is not None:
        change = f"{outcome.mse_first_kmps2:.4g} → {outcome.mse_last_kmps2:.4g}"
        lines.append(f"Model error  {change} (km/s)², mean square")
    return [
        *lines,
        f"Verdict      {' '.join(outcome.verdict.split())}",
        f"Report       {page}",
        f"TensorBoard  tensorboard --logdir {path / 'tb'}",
    ]


def _console() -> Console:
    """A console as wide as the terminal; 100 columns where there is none."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=100)


register_field(app, data_app)
register_training(app)
register_refinement(app)
register_cluster(app)
register_bench(app)


def main() -> None:
    """Entry point of the `hpfwi` command."""
    app(prog_name="hpfwi")
