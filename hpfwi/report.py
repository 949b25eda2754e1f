"""The report of a run: its figures and one HTML page that explains them, written from the run folder alone."""

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpfwi.figures import draw_figures
from hpfwi.figures.curves import computing_hours
from hpfwi.figures.record import RunRecord, as_number, read_record, series
from hpfwi.figures.sections import in_kmps, mean_squared_kmps2
from hpfwi.figures.style import Picture
from hpfwi.html_page import Row, clock, duration, escape, fall, figure, html_page, number, table
from hpfwi.inversion.signatures import means_of_passes
from hpfwi.store.atomic import new_file


def write_report(folder: Path) -> Path:
    """Draw the figures of a run folder and write its report.html; returns the page's path.

    Works from what the folder holds: a run that is unfinished, was stopped, has no true model or no diagnostics gets a
    shorter report that says so. Both the page and the figures appear whole or not at all.

    raises  ConfigError: this is not a run folder; DataError: its configuration or event log is damaged; DiskError: the
            disk refuses
    """
    record = read_record(folder)
    figures = folder / "figures"
    pictures = draw_figures(record, figures)
    page = render_page(record, [(picture, (figures / picture.file).read_bytes()) for picture in pictures])
    path = folder / "report.html"
    with new_file(path, overwrite=True) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def render_page(record: RunRecord, pictures: Sequence[tuple[Picture, bytes]]) -> str:
    """The report as HTML; `pictures` are the figures in their order with their PNG bytes."""
    sections = [
        ("summary", "Summary", _summary(record)),
        ("numbers", "Key numbers", _numbers(record)),
        ("figures", "Figures", "".join(figure(picture, png) for picture, png in pictures)),
        ("incidents", "Incidents", _incidents(record)),
        ("settings", "Settings", _settings(record)),
        ("environment", "Environment", _environment(record)),
        ("again", "Going on and repeating", _again(record)),
    ]
    return html_page(
        record.name,
        _state(record),
        sections,
        ending=f"Written by hpfwi at {clock(time.time())} from the files of this run's folder.",
    )


def _progress(record: RunRecord) -> str:
    planned = record.planned_iterations
    count = len(record.iterations)
    return f"{count} of {planned} iterations" if planned else f"{count} iteration{'s' * (count != 1)}"


def _state(record: RunRecord) -> str:
    """One sentence on whether the run came to its end, and what to do if it did not."""
    if record.done is not None:
        return f'<p class="state">Finished: {_progress(record)}.</p>'
    stops = record.of_kind("stop")
    last = record.events[-1] if record.events else None
    reason = ""
    if stops and last is not None and last.get("kind") in ("stop", "verdict", "checkpoint"):
        reason = f" It was stopped: {stops[-1].get('reason', 'no reason was recorded')}."
    elif last is not None and (moment := as_number(last.get("time"))) is not None:
        reason = f" Its last sign of life is from {clock(moment)}; it may still be running."
    return (
        f'<p class="state unfinished"><strong>Unfinished</strong>: {_progress(record)} so far.{escape(reason)} '
        f"Go on with <code>hpfwi resume {escape(shlex.quote(str(record.folder)))}</code>.</p>"
    )


def _model_errors(record: RunRecord) -> dict[str, float]:
    """MSE in (km/s)² over all cells of the stored initial, inverted and best models; empty without a true model."""
    true = in_kmps(record.results, "true")
    if true is None:
        return {}
    models = {name: in_kmps(record.results, name) for name in ("initial", "inverted", "best")}
    return {name: mean_squared_kmps2(model, true) for name, model in models.items() if model is not None}


def _summary(record: RunRecord) -> str:
    """What happened, in a paragraph; then the verdicts of the diagnostics, the latest per signature."""
    sentences = []
    _, misfit = series(record.iterations, "misfit")
    if len(misfit):
        seconds = computing_hours(record.iterations)[-1] * 3600.0
        stage = record.stages[-1]
        passes = means_of_passes(misfit.tolist(), record.iterations_per_pass, stage.first)
        of_band = f" in the last of {stage.number} bands ({stage.band})" if stage.number > 1 else ""
        sentences.append(
            f"After {_progress(record)} ({duration(seconds)} of computing) the misfit{of_band} went from "
            f"{number(passes[0])} to {number(passes[-1])} of the observed energy, {fall(passes[0], passes[-1])}."
        )
        if record.iterations_per_pass > 1:
            sentences.append(
                "Each iteration uses other shots, so these are means over the first and the last pass through all of "
                "them."
            )
    else:
        sentences.append("No iteration has been completed yet.")
    sentences += [
        f"Pretraining brought the network to within {number(distance)} m/s (mean) of the initial model."
        for event in record.of_kind("pretrain")
        if (distance := as_number(event.get("mae_mps"))) is not None
    ]
    _, error = series(record.diagnostics, "mse_kmps2")
    if len(error):
        sentences.append(
            f"The mean squared model error went from {number(error[0])} to {number(error[-1])} (km/s)², "
            f"{fall(error[0], error[-1])}."
        )
        if error[-1] > error[0]:
            sentences.append("The model is now farther from the truth than its start.")
    _, ssim = series(record.diagnostics, "ssim")
    if len(ssim):
        sentences.append(
            f"Its structural similarity to the true model went from {number(ssim[0])} to {number(ssim[-1])}."
        )
    if not len(error) and record.results is not None and record.results.array("model/true") is None:
        sentences.append("No true model is known, so only the fit to the gathers can be judged.")
    verdicts = {event.get("signature"): _verdict(event) for event in record.of_kind("verdict")}
    listed = "".join(f"<li>{verdict}</li>" for verdict in verdicts.values())
    paragraph = f'<p class="summary">{escape(" ".join(sentences))}</p>'
    return paragraph + (f"<h3>Verdicts of the diagnostics</h3><ul>{listed}</ul>" if listed else "")


def _verdict(event: Mapping[str, Any]) -> str:
    """A verdict as HTML: whether the signature was seen, in bold if so, and the sentence with its numbers."""
    name, sentence = str(event.get("signature", "")).replace("_", " "), escape(event.get("sentence", ""))
    if event.get("judged", True) is False:
        return sentence
    if event.get("present", True) is False:
        return f"No {escape(name)}: {sentence}"
    return f"<strong>{escape(name.capitalize())}</strong>: {sentence}"


def _numbers(record: RunRecord) -> str:
    """The table of key numbers: start, end and best of each metric, then the cost."""
    rows: list[Row] = []
    for label, events, key, best in (
        ("misfit, residual / observed energy", record.iterations, "misfit", min),
        ("model error MSE, (km/s)²", record.diagnostics, "mse_kmps2", min),
        ("the same in the deep half", record.diagnostics, "mse_deep_kmps2", min),
        ("model error MAE, m/s", record.diagnostics, "mae_mps", min),
        ("structural similarity SSIM", record.diagnostics, "ssim", max),
    ):
        at, values = series(events, key)
        if key == "misfit":  # of one band: others do not compare
            at, values = at[at >= record.stages[-1].first], values[at >= record.stages[-1].first]
        if len(values):
            top = best(range(len(values)), key=values.__getitem__)
            found = f"{number(values[top])} (iteration {at[top]})"
            rows.append((label, number(values[0]), number(values[-1]), found))
    if not len(series(record.diagnostics, "mse_kmps2")[0]) and (errors := _model_errors(record)):
        stored = (number(errors[name]) if name in errors else "–" for name in ("initial", "inverted", "best"))
        rows.append(("model error MSE, (km/s)²", *stored))
    content = table("Fit and model error", ("", "start", "end", "best"), rows) if rows else ""
    return content + _bands(record) + _cost(record)


def _bands(record: RunRecord) -> str:
    """The table of the bands that the run has listened to; empty where there was one only."""
    if len(record.stages) == 1:
        return ""
    at, misfit = series(record.iterations, "misfit")
    error_at, error = series(record.diagnostics, "mse_kmps2")
    rows: list[Row] = []
    for stage in record.stages:
        inside = misfit[(at >= stage.first) & (at < stage.end)]
        found = error[(error_at > stage.first) & (error_at <= stage.end)]
        rows.append(
            (
                stage.band,
                f"{stage.first} to {stage.end - 1}",
                f"{number(inside[0])} to {number(inside[-1])}" if len(inside) else "–",
                number(found[-1]) if len(found) else "–",
            )
        )
    header = ("band", "iterations", "misfit, share of the band's energy", "model error MSE at its end, (km/s)²")
    return table("Bands, one after the other", header, rows)


def _cost(record: RunRecord) -> str:
    """The table of what the run cost."""
    _, seconds = series(record.iterations, "seconds")
    if not len(seconds):
        return ""
    rows: list[Row] = [
        ("iterations", _progress(record)),
        ("computing time", duration(float(seconds.sum()))),
        ("median time of an iteration", duration(float(sorted(seconds)[len(seconds) // 2]))),
    ]
    for key, label, unit, scale in (
        ("shots_per_s", "mean throughput", "shots/s", 1),
        ("wait_share", "mean share of the workers' time not spent on shots", "%", 100),
    ):
        _, values = series(record.iterations, key)
        if len(values):
            rows.append((label, f"{number(scale * float(values.mean()))} {unit}"))
    rows += _line_search(record)
    rows.append(("lost workers", str(len(record.of_kind("worker_lost")))))
    rows.append(("resumes and rewinds", str(len(record.of_kind("resume", "rewind")))))
    return table("Cost", ("", "value"), rows)


def _line_search(record: RunRecord) -> list[Row]:
    """What the line search of a quasi-Newton run took; nothing of other runs."""
    _, rejected = series(record.iterations, "rejected")
    _, lengths = series(record.iterations, "step_length")
    if not len(rejected):
        return []
    rows: list[Row] = [("trials that the line search rejected", f"{int(rejected.sum())} of {len(rejected)}")]
    if len(lengths):
        rows.append(("steps tried at full length", f"{int((lengths == 1).sum())} of {len(lengths)}"))
    return rows


def _incidents(record: RunRecord) -> str:
    """What went wrong on the way, as one sentence each."""
    items = []
    for event in record.of_kind("worker_lost", "rewind", "resume", "stop"):
        at = event.get("iteration")
        where = "" if at is None else f"At iteration {at}: "
        words = {
            "worker_lost": event.get("sentence", "a worker was lost."),
            "rewind": event.get("sentence", "the run went back to its last checkpoint."),
            "resume": event.get("sentence", "the run was resumed."),
            "stop": f"the run was stopped: {event.get('reason', 'no reason was recorded')}.",
        }
        items.append(f"<li>{escape(where + str(words[event['kind']]))}</li>")
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[Row]:
    """Nested tables as rows (dotted name, value).

    >>> _flat({"survey": {"shots": 13, "offsets_m": [1.0, 2.0]}})
    [('survey.shots', '13'), ('survey.offsets_m', '[1.0, 2.0]')]
    """
    rows: list[Row] = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            rows.append((f"{prefix}{key}", "–" if value is None else text))
    return rows


def _settings(record: RunRecord) -> str:
    derived = {str(event.get("name")): event for event in record.of_kind("derived")}
    rows = [
        (name, str(event.get("value")), f"{'Warning: ' if event.get('warning') else ''}{event.get('reason') or ''}")
        for name, event in derived.items()
    ]
    content = ""
    if rows:
        content += table("Derived from the settings and the models", ("name", "value", "reason"), rows)
    if record.config:
        content += table(
            "Every option of the run, as in config.toml", ("option", "value"), _flat(record.config), code=True
        )
    return content


def _environment(record: RunRecord) -> str:
    rows = [row for row in _flat(record.environment) if row[0] not in ("command", "argv")]
    return table("Versions and hardware, as in env.json", ("", "value"), rows) if rows else ""


def _command(record: RunRecord) -> str | None:
    """The command line that made the run, where it was recorded."""
    starts = record.of_kind("start")
    for place in (record.environment, starts[0] if starts else {}):
        for key in ("command", "argv"):
            command = place.get(key)
            if isinstance(command, str) and command:
                return command
            if isinstance(command, list) and command:
                return shlex.join(str(part) for part in command)
    return None


def _again(record: RunRecord) -> str:
    """The commands that made the run, go on with it and repeat it."""
    folder = shlex.quote(str(record.folder))
    config = shlex.quote(str(record.folder / "config.toml"))
    parts = []
    if (command := _command(record)) is not None:
        parts.append(f"<p>The command that made this run:</p><pre><code>{escape(command)}</code></pre>")
    if record.done is None:
        parts.append(
            "<p>To go on from the last checkpoint, on any number of workers:</p>"
            f"<pre><code>hpfwi resume {escape(folder)}</code></pre>"
        )
    parts.append(
        "<p>To repeat it from its resolved configuration under another name; the result does not depend on the number "
        f"of workers:</p><pre><code>hpfwi invert {escape(config)} --name NAME</code></pre>"
    )
    return "".join(parts)
