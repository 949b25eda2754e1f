"""`hpfwi cluster …` and `hpfwi status`: runs on many nodes, how they stand, and what they would gain."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpfwi.commands import command_on
from hpfwi.errors import ConfigError
from hpfwi.verbs import verb_of

if TYPE_CHECKING:
    from rich.console import Console

    from hpfwi.parallel import SlurmJob

JOB_FILE = "job.json"
"""What a job is to run, beside its script."""

app = typer.Typer(
    help="Run on many nodes of a cluster, or forecast what it gives.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_verb = verb_of(app)

Source = Annotated[
    str, typer.Argument(metavar="RUN.TOML", help="A TOML file or a recipe, of an inversion or of a training run.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Change one option of the configuration; may be repeated."),
]


Model = Annotated[str | None, typer.Option("--model", metavar="PATH", help="The true velocity model of an inversion.")]
Data = Annotated[str | None, typer.Option("--data", metavar="PATH.zarr", help="The pairs of a training run.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run and of its folder.")]


def register(main: typer.Typer) -> None:
    """Make the commands of this file commands of `hpfwi`."""
    main.add_typer(app, name="cluster")
    verb_of(main)(status)


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, such as runs/demo.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how a run stands: progress, speed and time left.

    Reads the run's folder alone, so it works from any machine that sees it, while the run goes on and afterwards.
    """
    from hpfwi.status import as_text
    from hpfwi.status import status as status_of

    found = status_of(run)
    for line in [found.as_json()] if as_json else as_text(found):
        typer.echo(line)


@_verb
def submit(
    source: Source,
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", help="Nodes of the job.")],
    time: Annotated[str, typer.Option("--time", metavar="H:MM:SS", help="Wall time, such as 12:00:00 or 2-00:00:00.")],
    gpus_per_node: Annotated[
        int, typer.Option("--gpus-per-node", metavar="N", help="GPUs of each node, one worker on each.")
    ] = 0,
    cpus_per_node: Annotated[
        int | None,
        typer.Option("--cpus-per-node", metavar="N", help="CPUs of each node; without it, GPU jobs take whole nodes."),
    ] = None,
    partition: Annotated[str | None, typer.Option("--partition", help="Partition of the cluster.")] = None,
    account: Annotated[str | None, typer.Option("--account", help="Account that is charged.")] = None,
    interface: Annotated[
        str | None, typer.Option("--interface", metavar="NAME", help="Network between the nodes, such as ib0.")
    ] = None,
    extra: Annotated[
        list[str] | None,
        typer.Option("--sbatch", metavar="OPTION", help="A further option for sbatch; may be repeated."),
    ] = None,
    warn_s: Annotated[
        int | None, typer.Option("--warn-s", metavar="S", help="How long before the wall time the run is told to stop.")
    ] = None,
    requeue: Annotated[
        bool, typer.Option("--requeue/--no-requeue", help="Whether a run that ran out of time is queued again.")
    ] = True,
    model: Model = None,
    data: Data = None,
    name: Name = None,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script; write and submit nothing.")] = False,
) -> None:
    """Submit a run to SLURM.

    It gets a Ray cluster of its own over all nodes of the job. Shortly before the wall time the run leaves a
    checkpoint and the job goes back into the queue, until the run is finished. A lost node costs the work that was
    in its hands. The exit code of the job is that of the run.
    """
    from pydantic import ValidationError

    from hpfwi.options import as_toml
    from hpfwi.parallel import SlurmJob, job_script, submit_job

    config, verb = _load(source, overrides, model, data, name)
    asked: dict[str, Any] = {
        "name": config.name,
        "nodes": nodes,
        "gpus_per_node": gpus_per_node,
        "cpus_per_node": cpus_per_node,
        "time": time,
        "partition": partition,
        "account": account,
        "interface": interface,
        "extra": extra or [],
        "requeue": requeue,
    }
    try:
        job = SlurmJob.model_validate(asked | ({} if warn_s is None else {"warn_s": warn_s}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        wrong = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":  # those say the value themselves
            wrong = f"{first['input']!r} cannot be used, {wrong[0].lower()}{wrong[1:]}"
        raise ConfigError(f"The job cannot be asked for: {f'{where} = ' if where else ''}{wrong}.") from None
    cluster: dict[str, Any] = {"workers": _workers(job, config.cluster.threads_per_worker), "address": None}
    cluster |= {"device": "cuda" if gpus_per_node else "cpu"}
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update=cluster)})
    run = Path(config.output.folder) / config.name
    _require_same_run(run, config, verb)
    if verb == "train":
        _require_samples(config)
    folder = run.with_name(f"{run.name}.job").absolute()
    text = job_script(job, folder, [sys.executable, "-m", "hpfwi", "cluster", "work", str(folder)], where=Path.cwd())
    if dry_run:
        typer.echo(text, nl=False)
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "run.toml").write_text(as_toml(config), encoding="utf-8")
        (folder / JOB_FILE).write_text(
            json.dumps({"verb": verb, "run": str(run), "workers": cluster["workers"]}) + "\n"
        )
        (folder / "job.sh").write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"The job cannot be written to {folder} ({error.strerror or error}); choose another place with "
            "--set output.folder=PATH."
        ) from error
    typer.echo(submit_job(folder / "job.sh"))
    typer.echo(f"Log     {folder}/log-JOB.txt")
    typer.echo(f"Status  {command_on('status', run)}")


@_verb
def simulate(
    source: Source,
    gpus: Annotated[
        str, typer.Option("--gpus", metavar="N,N,...", help="Numbers of workers to look at; each has a GPU to itself.")
    ] = "8,64,512,4096",
    mtbf_hours: Annotated[
        float | None,
        typer.Option("--mtbf-hours", metavar="H", help="Mean time between failures of one worker; without it, none."),
    ] = None,
    timed: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="Take the times of the items from a run of this kind.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure the overheads of this machine first, in half a minute.")
    ] = False,
    machine_options: Annotated[
        list[str] | None,
        typer.Option(
            "--machine", metavar="NAME=VALUE", help="Set what the cluster costs, such as bandwidth_mbs=10000."
        ),
    ] = None,
    work_options: Annotated[
        list[str] | None,
        typer.Option(
            "--work", metavar="NAME=VALUE", help="Set what the run asks for, such as item_s=0.5 or spread=0.2."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="PATH.png", help="Where the figure goes.")] = None,
    model: Model = None,
    data: Data = None,
    name: Name = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Forecast a run on more workers than there are.

    Told are time, efficiency, and what failures would cost. Virtual workers go through the schedule of the real
    ones: who gets which item when, what a death sends back, how the sums meet. The times of items are measured
    here, on this machine's processor; --work item_s=S puts in the time that an item takes on yours.
    """
    from dataclasses import asdict

    from hpfwi.parallel import Machine, forecast, measured_machine
    from hpfwi.scaling import as_table, draw, work_of_inversion, work_of_run, work_of_training

    counts = _counts(gpus)
    if mtbf_hours is not None and not mtbf_hours > 0:
        raise ConfigError(f"--mtbf-hours={mtbf_hours:g} is no time between failures; give hours above 0.")
    config, verb = _load(source, overrides, model, data, name)
    found = measured_machine(lambda sentence: typer.echo(sentence, err=True)) if calibrate else Machine()
    machine = _changed(found.model_copy(update={"ring_only": config.cluster.collective == "gloo"}), machine_options)
    work = work_of_training(config) if verb == "train" else work_of_inversion(config)
    if timed is not None:
        work = work_of_run(timed, machine, work)
    work = _changed(work, work_options)
    group = config.cluster
    forecasts = [
        forecast(work, machine, count, group.threads_per_worker, mtbf_hours=mtbf_hours, settings=group)
        for count in counts
    ]
    path = out or Path(f"{config.name}_scaling.png")
    draw(path, f"{config.name}: a forecast", forecasts, mtbf_hours)
    if as_json:
        table = [asdict(one) for one in forecasts]
        asked = {"machine": machine.model_dump(), "work": work.model_dump(), "mtbf_hours": mtbf_hours}
        typer.echo(json.dumps(asked | {"forecasts": table}, indent=1))
        return
    console().print(as_table(work, forecasts, mtbf_hours))
    typer.echo(f"Wrote {path}")


def _counts(text: str) -> list[int]:
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = []
    if not counts or counts[0] < 1 or counts[-1] > 100_000:
        raise ConfigError(f"--gpus={text!r} is no list of numbers from 1 to 100000, such as 8,64,512,4096.")
    return counts


def _changed(settings: Any, options: list[str] | None) -> Any:
    """The settings with some of them given as NAME=VALUE."""
    from pydantic import ValidationError

    changes = {}
    for option in options or []:
        name, equals, value = option.partition("=")
        if not equals or name not in type(settings).model_fields:
            known = ", ".join(type(settings).model_fields)
            raise ConfigError(f"{option!r} sets nothing; write NAME=VALUE with one of {known}.")
        changes[name] = value
    try:
        return type(settings).model_validate(settings.model_dump() | changes)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['loc'][0]} = {first['input']!r} cannot be used: {first['msg']}.") from None


def work(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the job.")],
) -> None:
    """Start the run of a job, or go on with it: what the job's script runs on its first node."""
    file = folder / JOB_FILE
    try:
        job = json.loads(file.read_text(encoding="utf-8"))
        verb, run, workers = str(job["verb"]), Path(job["run"]), int(job["workers"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} does not say what to run ({error}); submit the job again.") from error
    if (run / "config.toml").is_file():
        _take_over(run, folder)
        arguments = ["resume", str(run), "--workers", str(workers)]
    else:
        arguments = [verb, str(folder / "run.toml")]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "hpfwi", *arguments])


verb_of(app, hidden=True)(work)


def _take_over(run: Path, folder: Path) -> None:
    """Free a run folder that an earlier attempt of this very job left locked when its node died."""
    from hpfwi.folder_lock import FILE_NAME

    number = os.environ.get("SLURM_JOB_ID")
    lock = run / FILE_NAME
    try:
        holder = json.loads(lock.read_text()).get("host")
    except (OSError, ValueError, AttributeError):
        return
    attempt = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    for earlier in range(attempt):
        try:
            head = json.loads((folder / f"head-{number}-{earlier}.json").read_text())["host"]
        except (OSError, ValueError, KeyError):
            continue
        if head == holder:
            lock.unlink(missing_ok=True)
            return


def console() -> Console:
    """A console as wide as the terminal; 110 columns where there is none."""
    from rich.console import Console

    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=110)


def _load(
    source: str, overrides: list[str] | None, model: str | None, data: str | None, name: str | None
) -> tuple[Any, str]:
    """The configuration of a run that names all it needs, and the verb that runs it."""
    from hpfwi.config import load_config, require_input
    from hpfwi.options import toml_value
    from hpfwi.training.settings import is_training, load_train_config, require_pairs

    named = {"model.true": model, "data.pairs": data, "name": name}
    texts = [f"{option}={toml_value(value)}" for option, value in named.items() if value is not None]
    overrides = [*(overrides or []), *texts]
    if is_training(source):
        trained = load_train_config(source, overrides)[0]
        require_pairs(trained)
        return trained, "train"
    inverted = load_config(source, overrides)[0]
    require_input(inverted)
    return inverted, "invert"


def _require_same_run(run: Path, config: Any, verb: str) -> None:
    """Raise ConfigError where the job would go on with a run folder that is there, and that is another run or finished.

    What a run derives for itself, and who computes it, may differ.
    """
    from hpfwi.config import load_config
    from hpfwi.options import options_of, toml_value
    from hpfwi.run_folder import is_done
    from hpfwi.training.settings import is_training, load_train_config

    if not (run / "config.toml").is_file():
        return
    other = "choose another name with --name, or move it away."
    if is_done(run):
        raise ConfigError(f"{run} holds a finished run; {other}")
    if is_training(run) != (verb == "train"):
        raise ConfigError(f"{run} holds a run of another kind; {other}")
    begun = options_of((load_train_config if verb == "train" else load_config)(run / "config.toml", [])[0])
    for name, asked in options_of(config).items():
        if asked.value not in (None, begun[name].value) and not name.startswith("cluster."):
            raise ConfigError(
                f"{run} holds an unfinished run with {name} = {toml_value(begun[name].value)}, and {name} = "
                f"{toml_value(asked.value)} is asked for; the job would go on with the former: ask for that, {other}"
            )


def _require_samples(config: Any) -> None:
    """Raise ConfigError where the job would end as soon as it starts; say so where that cannot be known here."""
    from hpfwi.errors import DataError
    from hpfwi.store.openfwi import open_pairs
    from hpfwi.training.idle import idle_workers
    from hpfwi.training.settings import require_trainable, resolved

    try:
        store = open_pairs(config.data.pairs)
    except DataError as error:
        typer.echo(f"Note    here {error}", err=True)
    else:
        require_trainable(resolved(config, store), store)
    if idle := idle_workers(config, config.cluster):
        typer.echo(f"Note    {idle}", err=True)


def _workers(job: SlurmJob, threads: int) -> int:
    """Workers of a job: one for each GPU, or as many as the CPUs of its nodes carry."""
    if job.cpus_per_node is None:
        if job.gpus_per_node:
            return job.nodes * job.gpus_per_node
        raise ConfigError("A job without GPUs needs --cpus-per-node: it says how many workers there are.")
    if job.cpus_per_node < threads * max(1, job.gpus_per_node):
        each = f" for each of {job.gpus_per_node} GPUs" if job.gpus_per_node else ""
        raise ConfigError(
            f"--cpus-per-node={job.cpus_per_node} is less than cluster.threads_per_worker={threads}{each}; raise the "
            "one or lower the other."
        )
    return job.nodes * (job.gpus_per_node or job.cpus_per_node // threads)
