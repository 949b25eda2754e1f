"""The report of a run: its figures and one HTML page that explains them, written from the run folder alone.

The page carries its images inside (base64), loads nothing and runs nothing, so it can be mailed and kept as one file.
"""

import base64
import html
import json
import os
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpfwi.figures import draw_figures
from hpfwi.figures.curves import computing_hours
from hpfwi.figures.record import RunRecord, as_number, read_record, series
from hpfwi.figures.sections import in_kmps, mean_squared_kmps2
from hpfwi.figures.style import Picture
from hpfwi.inversion.signatures import means_of_passes

Row = tuple[str, ...]

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem; color: #222; background: #fff;
       font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.8rem; margin: 0 0 .3rem; line-height: 1.2; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; margin: .8rem 0; }
a { color: #00527f; }
.state { padding: .6rem .9rem; border-left: .35rem solid #009e73; background: #eef7f4; margin: 1rem 0; }
.state.unfinished { border-color: #b85000; background: #fdf3ea; }
.summary { font-size: 1.08rem; max-width: 46rem; }
figure { margin: 0 0 1.8rem; }
figure img { max-width: 100%; height: auto; }
figcaption { max-width: 46rem; color: #333; margin-top: .4rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .95rem; }
caption { text-align: left; color: #444; padding-bottom: .3rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e2e2e2; }
thead th { border-bottom: 1px solid #777; }
tbody th { font-weight: normal; }
td { overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .92em; }
pre { background: #f4f4f4; padding: .7rem .9rem; overflow-x: auto; }
footer { margin-top: 3rem; color: #555; font-size: .9rem; }
@media print { body { max-width: none; padding: 0; } figure, tr { break-inside: avoid; } nav { display: none; } }
"""


def write_report(folder: Path) -> Path:
    """Draw the figures of a run folder and write its report.html; returns the page's path.

    Works from what the folder holds: a run that is unfinished, was stopped, has no true model or no diagnostics gets a
    shorter report that says so. Both the page and the figures appear whole or not at all.

    raises  DataError: the folder is not a run folder, or its configuration or event log is damaged
    """
    record = read_record(folder)
    figures = folder / "figures"
    pictures = draw_figures(record, figures)
    page = render_page(record, [(picture, (figures / picture.file).read_bytes()) for picture in pictures])
    path = folder / "report.html"
    partial = folder / ".report.html.partial"
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def render_page(record: RunRecord, pictures: Sequence[tuple[Picture, bytes]]) -> str:
    """The report as HTML; `pictures` are the figures in their order with their PNG bytes."""
    sections = [
        ("summary", "Summary", _summary(record)),
        ("numbers", "Key numbers", _numbers(record)),
        ("figures", "Figures", "".join(_figure(picture, png) for picture, png in pictures)),
        ("incidents", "Incidents", _incidents(record)),
        ("settings", "Settings", _settings(record)),
        ("environment", "Environment", _environment(record)),
        ("again", "Going on and repeating", _again(record)),
    ]
    shown = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{anchor}">{title}</a></li>' for anchor, title, _ in shown)
    body = "".join(
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{title}</h2>{content}</section>\n'
        for anchor, title, content in shown
    )
    name = _escape(record.name)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name} · hpfwi report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{name}</h1>{_state(record)}</header>\n"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>\n{body}</main>\n'
        f"<footer>Written by hpfwi at {_clock(time.time())} from the files of this run's folder.</footer>\n"
        "</body>\n</html>\n"
    )


def _escape(value: object) -> str:
    return html.escape(str(value), quote=True)


def _clock(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_s))


def _number(value: float) -> str:
    """A number as a reader wants it.

    >>> _number(0.15171), _number(1834000.0), _number(12.0)
    ('0.1517', '1.834e+06', '12')
    """
    return f"{value:.4g}"


def _duration(seconds: float) -> str:
    """A duration in the unit that reads best.

    >>> _duration(42.3), _duration(1320), _duration(9000)
    ('42.3 s', '22 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _table(caption: str, header: Row, rows: Iterable[Row], *, code: bool = False) -> str:
    """A table whose first column names its rows; `code` sets the other cells in the code font. Cells are escaped."""
    opened, closed = ("<code>", "</code>") if code else ("", "")
    head = "".join(f'<th scope="col">{_escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{_escape(first)}</th>'
        + "".join(f"<td>{opened}{_escape(cell)}{closed}</td>" for cell in cells)
        + "</tr>\n"
        for first, *cells in rows
    )
    return (
        f'<div class="table"><table><caption>{_escape(caption)}</caption><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>\n"
    )


def _figure(picture: Picture, png: bytes) -> str:
    anchor = _escape(picture.file.removesuffix(".png"))
    data = base64.b64encode(png).decode("ascii")
    words = f"{_escape(picture.caption)} <small>(figures/{_escape(picture.file)})</small>"
    return (
        f'<figure id="figure-{anchor}"><h3>{_escape(picture.title)}</h3>'
        f'<img src="data:image/png;base64,{data}" alt="{_escape(picture.alt)}">'
        f"<figcaption>{words}</figcaption></figure>\n"
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
        reason = f" Its last sign of life is from {_clock(moment)}; it may still be running."
    return (
        f'<p class="state unfinished"><strong>Unfinished</strong>: {_progress(record)} so far.{_escape(reason)} '
        f"Go on with <code>hpfwi resume {_escape(shlex.quote(str(record.folder)))}</code>.</p>"
    )


def _fall(first: float, last: float) -> str:
    """How much a positive number changed, in words.

    >>> _fall(200.0, 5.0), _fall(1.0, 1.2), _fall(1.0, 1.0)
    ('97.5\\xa0% less', '20\\xa0% more', 'unchanged')
    """
    if first <= 0 or first == last:
        return "unchanged"
    share = 100 * (last - first) / first
    return f"{abs(share):.3g}\u00a0% {'less' if share < 0 else 'more'}"


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
            f"After {_progress(record)} ({_duration(seconds)} of computing) the misfit{of_band} went from "
            f"{_number(passes[0])} to {_number(passes[-1])} of the observed energy, {_fall(passes[0], passes[-1])}."
        )
        if record.iterations_per_pass > 1:
            sentences.append(
                "Each iteration uses other shots, so these are means over the first and the last pass through all of "
                "them."
            )
    else:
        sentences.append("No iteration has been completed yet.")
    sentences += [
        f"Pretraining brought the network to within {_number(distance)} m/s (mean) of the initial model."
        for event in record.of_kind("pretrain")
        if (distance := as_number(event.get("mae_mps"))) is not None
    ]
    _, error = series(record.diagnostics, "mse_kmps2")
    if len(error):
        sentences.append(
            f"The mean squared model error went from {_number(error[0])} to {_number(error[-1])} (km/s)², "
            f"{_fall(error[0], error[-1])}."
        )
        if error[-1] > error[0]:
            sentences.append("The model is now farther from the truth than its start.")
    _, ssim = series(record.diagnostics, "ssim")
    if len(ssim):
        sentences.append(
            f"Its structural similarity to the true model went from {_number(ssim[0])} to {_number(ssim[-1])}."
        )
    if not len(error) and record.results is not None and record.results.array("model/true") is None:
        sentences.append("No true model is known, so only the fit to the gathers can be judged.")
    verdicts = {event.get("signature"): _verdict(event) for event in record.of_kind("verdict")}
    listed = "".join(f"<li>{verdict}</li>" for verdict in verdicts.values())
    paragraph = f'<p class="summary">{_escape(" ".join(sentences))}</p>'
    return paragraph + (f"<h3>Verdicts of the diagnostics</h3><ul>{listed}</ul>" if listed else "")


def _verdict(event: Mapping[str, Any]) -> str:
    """A verdict as HTML: whether the signature was seen, in bold if so, and the sentence with its numbers."""
    name, sentence = str(event.get("signature", "")).replace("_", " "), _escape(event.get("sentence", ""))
    if event.get("judged", True) is False:
        return sentence
    if event.get("present", True) is False:
        return f"No {_escape(name)}: {sentence}"
    return f"<strong>{_escape(name.capitalize())}</strong>: {sentence}"


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
            found = f"{_number(values[top])} (iteration {at[top]})"
            rows.append((label, _number(values[0]), _number(values[-1]), found))
    if not len(series(record.diagnostics, "mse_kmps2")[0]) and (errors := _model_errors(record)):
        stored = (_number(errors[name]) if name in errors else "–" for name in ("initial", "inverted", "best"))
        rows.append(("model error MSE, (km/s)²", *stored))
    content = _table("Fit and model error", ("", "start", "end", "best"), rows) if rows else ""
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
                f"{_number(inside[0])} to {_number(inside[-1])}" if len(inside) else "–",
                _number(found[-1]) if len(found) else "–",
            )
        )
    header = ("band", "iterations", "misfit, share of the band's energy", "model error MSE at its end, (km/s)²")
    return _table("Bands, one after the other", header, rows)


def _cost(record: RunRecord) -> str:
    """The table of what the run cost."""
    _, seconds = series(record.iterations, "seconds")
    if not len(seconds):
        return ""
    rows: list[Row] = [
        ("iterations", _progress(record)),
        ("computing time", _duration(float(seconds.sum()))),
        ("median time of an iteration", _duration(float(sorted(seconds)[len(seconds) // 2]))),
    ]
    for key, label, unit, scale in (
        ("shots_per_s", "mean throughput", "shots/s", 1),
        ("wait_share", "mean share of the workers' time not spent on shots", "%", 100),
    ):
        _, values = series(record.iterations, key)
        if len(values):
            rows.append((label, f"{_number(scale * float(values.mean()))} {unit}"))
    rows.append(("lost workers", str(len(record.of_kind("worker_lost")))))
    rows.append(("resumes and rewinds", str(len(record.of_kind("resume", "rewind")))))
    return _table("Cost", ("", "value"), rows)


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
        items.append(f"<li>{_escape(where + str(words[event['kind']]))}</li>")
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
        content += _table("Derived from the settings and the models", ("name", "value", "reason"), rows)
    if record.config:
        content += _table(
            "Every option of the run, as in config.toml", ("option", "value"), _flat(record.config), code=True
        )
    return content


def _environment(record: RunRecord) -> str:
    rows = [row for row in _flat(record.environment) if row[0] not in ("command", "argv")]
    return _table("Versions and hardware, as in env.json", ("", "value"), rows) if rows else ""


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
        parts.append(f"<p>The command that made this run:</p><pre><code>{_escape(command)}</code></pre>")
    if record.done is None:
        parts.append(
            "<p>To go on from the last checkpoint, on any number of workers:</p>"
            f"<pre><code>hpfwi resume {_escape(folder)}</code></pre>"
        )
    parts.append(
        "<p>To repeat it from its resolved configuration under another name; the result does not depend on the number "
        f"of workers:</p><pre><code>hpfwi invert {_escape(config)} --name NAME</code></pre>"
    )
    return "".join(parts)
