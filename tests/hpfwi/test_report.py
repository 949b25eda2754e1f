"""The report and the figures, from run folders that these tests write."""

import json
import math
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from hpfwi.errors import ConfigError, DiskError
from hpfwi.figures import FIGURES, curves, diagnostics, gathers, overview, sections, style
from hpfwi.figures.record import read_record, series
from hpfwi.physics.survey import Survey
from hpfwi.report import render_page, write_report
from hpfwi.results import Results

SHAPE = (24, 60)
ITERATIONS = 12
WITH_ALL = {"overview", "models", "curves", "gathers", "profiles", "history", "spectra", "diagnostics", "cluster"}
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects what the tests ask about and fails on tags that are not closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def write_run(
    folder: Path,
    *,
    name: str = "toy",
    shape: tuple[int, int] = SHAPE,
    true_model: bool = True,
    diagnostics: bool = True,
    finished: bool = True,
    results: bool = True,
    extra_events: tuple[dict[str, Any], ...] = (),
) -> Path:
    """A run folder as a run leaves it, filled with a made-up inversion that halves the model error."""
    folder.mkdir()
    (folder / "config.toml").write_text(
        f"name = {json.dumps(name)}\n[survey]\nshots = 6\n[inversion]\niterations = {ITERATIONS}\n"
        'shots_per_iteration = 3\n[inversion.parameterisation]\nkind = "s-denorm"\n'
    )
    (folder / "env.json").write_text(
        json.dumps({"hpfwi": "0.1.0", "hardware": {"cores": 2}, "command": ["hpfwi", "invert", "a b.toml"]})
    )
    events: list[dict[str, Any]] = [
        {"kind": "start", "time": 1.0},
        {"kind": "derived", "time": 1.0, "name": "modelling.substeps", "value": 1, "reason": "0.5 is below <0.784>"},
    ]
    for iteration in range(ITERATIONS if finished else 5):
        events.append(
            {
                "kind": "iteration",
                "time": 2.0 + iteration,
                "iteration": iteration,
                "misfit": 1000.0 * 0.7**iteration,
                "seconds": 2.0,
                "shots": 3,
                "shots_per_s": 1.5,
                "wait_share": 0.1,
            }
        )
        if diagnostics:
            scalars = {"plasticity/feature_rank": 30.0 + iteration, "plasticity/travel_layer_0": 0.01 * iteration}
            if true_model:
                scalars |= {"metrics/mse_kmps2": 0.2 / (1 + iteration), "metrics/ssim": 0.5 + 0.01 * iteration}
                scalars |= {f"spectra/error_{band}": 1.0 - 0.01 * iteration * band for band in range(3)}
                scalars |= {f"spectra/error_deep_{band}": 1.0 - 0.01 * band for band in range(3)}
            events.append({"kind": "diagnostics", "time": 2.0, "iteration": iteration, **scalars})
    events += extra_events
    if finished:
        events.append({"kind": "done", "time": 99.0})
        (folder / "done.json").write_text("{}")
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if results:
        write_results(folder / "results.zarr", shape, true_model=true_model, finished=finished)
    return folder


def write_results(path: Path, shape: tuple[int, int], *, true_model: bool, finished: bool) -> None:
    rng = np.random.default_rng(3)
    depth = np.linspace(1500.0, 4000.0, shape[0])[:, None]
    initial = np.broadcast_to(depth, shape).astype(np.float32)
    true = (initial + 200.0 * rng.standard_normal(shape)).astype(np.float32)
    gathers = rng.standard_normal((3, shape[1], 50)).astype(np.float32)
    root = zarr.open_group(path, mode="w")
    root.attrs.update({"name": "toy", "spacing_m": [25.0, 50.0], "origin_m": [0.0, 0.0], "dt_s": 0.004})
    arrays = {
        "model/initial": initial,
        "model/history": np.stack([initial, initial + 50.0, initial + 100.0]).astype(np.float32),
        "model/history_iteration": np.array([0, 4, 8]),
        "gathers/shots": np.array([0, 2, 5]),
        "gathers/observed": gathers,
        "gathers/initial": 0.5 * gathers,
    }
    if true_model:
        arrays["model/true"] = true
    if finished:
        arrays |= {"model/inverted": 0.5 * (initial + true), "model/best": true, "gathers/predicted": 0.9 * gathers}
    for name, array in arrays.items():
        root.create_array(name, data=array)


def report(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def drawable(folder: Path) -> set[str]:
    """The figures that the run has something for, laid out in memory and not written."""
    record = read_record(folder)
    with style.look():
        return {picture.file.removesuffix(".png") for draw in FIGURES if (picture := draw(record)) is not None}


def words(folder: Path) -> Page:
    """The page without its figures, which take most of the time."""
    return Page(render_page(read_record(folder), []))


def drawn(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "figures").glob("*.png")}


def test_finished_run_has_every_figure_on_a_valid_accessible_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "toy")
    page = report(folder)
    assert drawn(folder) == WITH_ALL
    images = page.all("img")
    assert len(images) == len(WITH_ALL)
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in images)
    assert all(len(image["alt"] or "") > 20 for image in images)
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("script") == page.all("link") == []
    anchors = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {(link["href"] or "").removeprefix("#") for link in page.all("a")} <= anchors
    assert all("scope" in cell for cell in page.all("th"))
    assert not list(folder.rglob("*.part*"))


def test_finished_run_in_words_and_numbers(tmp_path: Path) -> None:
    lost = {"kind": "worker_lost", "time": 5.0, "iteration": 3, "sentence": "Rank 1 on node-7 fell silent."}
    verdicts = (
        {"kind": "verdict", "time": 5.0, "signature": "blurring", "sentence": "An early verdict."},
        {"kind": "verdict", "time": 6.0, "signature": "blurring", "sentence": "The deep half is blurred."},
        {"kind": "verdict", "time": 6.0, "signature": "oscillation", "present": False, "sentence": "It is calm."},
    )
    page = words(write_run(tmp_path / "toy", extra_events=(lost, *verdicts)))
    assert f"After {ITERATIONS} of {ITERATIONS} iterations (24 s of computing)" in page.text
    assert "misfit went from 850 to 24.01 of the observed energy, 97.2\u00a0% less" in page.text
    assert "model error went from 0.2 to 0.01667 (km/s)²" in page.text
    assert "0.61 (iteration 11)" in page.text
    assert "Blurring: The deep half is blurred." in page.text
    assert "No oscillation: It is calm." in page.text
    assert "An early verdict." not in page.text
    assert "At iteration 3: Rank 1 on node-7 fell silent." in page.text
    assert "hpfwi invert 'a b.toml'" in page.text
    assert "inversion.parameterisation.kind" in page.text
    assert "hardware.cores" in page.text
    assert "Finished" in page.text
    assert "hpfwi resume" not in page.text


def test_bands_are_told_apart(tmp_path: Path) -> None:
    """Misfits of two bands do not compare: each has its curve, and start and end are those of the last one."""
    folder = write_run(tmp_path / "toy")
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("[inversion]", "[inversion]\nbands_hz = [3.0, 6.5]"))
    page = words(folder)
    assert "the misfit in the last of 3 bands (whole band) went from 49 to 24.01" in page.text
    assert "up to 6.5 Hz4 to 7240.1 to 82.350.02222" in page.text.replace("\n", "")
    with style.look():
        picture = curves.curves(read_record(folder))
    assert picture is not None
    misfit, _, error, similarity = picture.figure.axes
    labels = ["up to 3 Hz", "up to 6.5 Hz", "whole band"]
    for axes in (misfit, error, similarity):
        assert [text.get_text() for text in axes.texts] == (labels if axes is misfit else [])
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "-."] == [4, 8]
    assert [len(line.get_xdata()) for line in misfit.lines if line.get_linestyle() == "-"] == [4] * 6
    assert "of the last band from 57.6" in picture.alt
    assert not any("weighted" in str(line.get_label()) for line in misfit.lines)
    bare = words(write_run(tmp_path / "plain"))
    assert "one after the other" not in bare.text


def test_penalties_are_drawn_beside_the_misfit(tmp_path: Path) -> None:
    penalty = {"kind": "diagnostics", "time": 3.0, "iteration": 12, "regularisation/tv": 0.02, "model/bound_share": 0.1}
    record = read_record(write_run(tmp_path / "toy", extra_events=(penalty,)))
    with style.look():
        misfit, others = curves.curves(record), diagnostics.diagnostics(record)
    assert misfit is not None
    assert others is not None
    assert "total variation, weighted" in misfit.figure.axes[0].get_legend_handles_labels()[1]
    assert not any("regularisation" in axes.get_title(loc="left") for axes in others.figure.axes)
    assert any("bounds" in axes.get_title(loc="left") for axes in others.figure.axes)


def test_what_a_user_wrote_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>&amp;'
    verdict = {"kind": "verdict", "time": 5.0, "signature": "x", "sentence": evil}
    folder = write_run(tmp_path / "a <b> 'c'", name=evil, finished=False, extra_events=(verdict,))
    page = words(folder)
    assert page.all("script") == page.all("b") == []
    assert page.text.count(evil) == 4  # title, heading, verdict and table of settings, as text
    assert "0.5 is below <0.784>" in page.text


def test_unfinished_run_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "toy", finished=False)
    with (folder / "events.jsonl").open("a") as stream:
        stream.write('{"kind": "iterat')
    page = words(folder)
    assert drawable(folder) == WITH_ALL
    assert f"Unfinished: 5 of {ITERATIONS} iterations so far." in page.text
    assert "it may still be running" in page.text
    assert f"hpfwi resume {folder}" in page.text


def test_stopped_run_gives_the_reason(tmp_path: Path) -> None:
    stop = {"kind": "stop", "time": 5.0, "reason": "the time limit of 60 s was reached"}
    page = words(write_run(tmp_path / "toy", finished=False, extra_events=(stop,)))
    assert "It was stopped: the time limit of 60 s was reached." in page.text
    assert "may still be running" not in page.text


def test_field_data_has_no_model_error(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "toy", true_model=False)
    page = words(folder)
    assert drawable(folder) == WITH_ALL - {"spectra"}
    assert "No true model is known" in page.text
    assert "MSE" not in page.text


def test_without_diagnostics_the_error_comes_from_the_stored_models(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "toy", diagnostics=False)
    page = words(folder)
    assert drawable(folder) == WITH_ALL - {"spectra", "diagnostics"}
    results = read_record(folder).results
    assert results is not None
    true, initial = results.model("true"), results.model("initial")
    assert true is not None
    assert initial is not None
    assert f"{np.mean((initial - true) ** 2) * 1e-6:.4g}" in page.text


def test_run_that_has_just_begun(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "toy", results=False)
    (folder / "events.jsonl").write_text("")
    (folder / "done.json").unlink()
    page = report(folder)
    assert drawn(folder) == set()
    assert "No iteration has been completed yet." in page.text


@pytest.mark.parametrize("shape", [(20, 20), (12, 300), (60, 12)])
def test_models_of_every_aspect_are_drawn(tmp_path: Path, shape: tuple[int, int]) -> None:
    record = read_record(write_run(tmp_path / "toy", shape=shape, diagnostics=False))
    with style.look():
        picture = sections.models(record)
        assert picture is not None
        assert len(picture.figure.axes) == 6 + 2  # the panels and a colour bar for each of the two groups
        picture.figure.draw_without_rendering()


def test_iterations_computed_again_count_once(tmp_path: Path) -> None:
    again = {"kind": "iteration", "time": 50.0, "iteration": 4, "misfit": 7.0, "seconds": 1.0}
    broken = {"kind": "iteration", "time": 51.0, "iteration": 5, "misfit": None, "seconds": 1.0}
    folder = write_run(tmp_path / "toy", finished=False, results=False, extra_events=(again, broken))
    at, misfit = series(read_record(folder).iterations, "misfit")
    assert at.tolist() == [0, 1, 2, 3, 4]
    assert misfit[-1] == 7.0
    assert math.isfinite(misfit.sum())


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run folder"):
        write_report(tmp_path)


def test_report_leaves_the_process_alone(tmp_path: Path) -> None:
    """Importing is light; drawing never imports pyplot and gives back the user's settings."""
    folder = write_run(tmp_path / "toy", results=False, diagnostics=False)
    code = (
        "import sys, hpfwi.report\n"
        "assert not {'matplotlib', 'zarr', 'ray', 'torch'} & set(sys.modules)\n"
        "import matplotlib\n"
        "matplotlib.rcParams['font.size'] = 31.0\n"
        "before = matplotlib.rcParams.copy()\n"
        "from pathlib import Path\n"
        "hpfwi.report.write_report(Path(sys.argv[1]))\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(folder)], check=True)


def test_resumes_are_placed_by_the_iteration_that_follows(tmp_path: Path) -> None:
    resumed = ({"kind": "resume", "time": 50.0}, {"kind": "iteration", "time": 51.0, "iteration": 5, "misfit": 1.0})
    folder = write_run(tmp_path / "toy", finished=False, results=False, extra_events=resumed)
    assert read_record(folder).taken_up_at == [5]


def test_survey_is_drawn_where_its_positions_are_stored(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "toy")
    sources = np.array([[[25.0, 500.0]], [[25.0, 500.0]], [[25.0, 900.0]]])
    receivers = np.full((3, SHAPE[1], 2), np.nan)
    receivers[:, :, 0] = 50.0
    receivers[:, :, 1] = np.arange(SHAPE[1]) * 10.0 + 400.0 * np.arange(3)[:, None]
    receivers[0, 0] = np.nan
    Results(folder / "results.zarr").positions(Survey(sources, receivers, 0.004, 50), [0, 1, 2])
    record = read_record(folder)
    assert record.results is not None
    stored = record.results.array("survey/receivers_m")
    assert stored is not None
    assert stored.shape == (139, 2)  # 10 to 1390 m every 10 m
    with style.look():
        models, shot = sections.models(record), gathers.gathers(record)
    assert models is not None
    assert shot is not None
    lines = {line.get_label(): line for line in models.figure.axes[0].lines}
    assert set(lines) == {"139 receivers", "2 sources"}
    np.testing.assert_allclose(lines["2 sources"].get_xydata(), [[0.5, 0.025], [0.9, 0.025]])
    observed = next(axes for axes in shot.figure.axes if axes.get_title(loc="left") == "(a) Observed")
    assert observed.images[0].get_extent()[:2] == pytest.approx([0.4, 0.99])


def test_receivers_go_along_the_line_and_absent_ones_are_not_drawn(tmp_path: Path) -> None:
    """A streamer whose channel 0 is the farthest, with five dead channels."""
    folder = write_run(tmp_path / "toy")
    receivers = np.full((3, SHAPE[1], 2), 50.0)
    receivers[..., 1] = 1000.0 - 10.0 * np.arange(SHAPE[1])
    receivers[:, 10:15] = np.nan
    Results(folder / "results.zarr").positions(Survey(np.full((3, 1, 2), 25.0), receivers, 0.004, 50), [0, 1, 2])
    record = read_record(folder)
    assert record.results is not None
    stored = record.results.array("gathers/observed")
    assert stored is not None
    with style.look():
        shot = gathers.gathers(record)
    assert shot is not None
    observed = next(axes for axes in shot.figure.axes if axes.get_title(loc="left") == "(a) Observed").images[0]
    assert observed.get_extent()[:2] == pytest.approx([0.41, 1.0])
    assert np.array_equal(observed.get_array(), stored[1][[*range(59, 14, -1), *range(9, -1, -1)]].T)
    # The configuration counts the shots of a made-up survey; these are half as many.
    assert record.iterations_per_pass == 1


def test_gathers_of_a_normalised_misfit_are_compared_as_it_compares_them(tmp_path: Path) -> None:
    """Predicted traces are 0.9 and 0.5 times the observed ones: the same, but for their strength."""
    folder = write_run(tmp_path / "toy")
    titles = []
    for misfit in ("l2", "normalised"):
        config = (folder / "config.toml").read_text().replace("[inversion]\n", f'[inversion]\nmisfit = "{misfit}"\n')
        (folder / "config.toml").write_text(config.replace('misfit = "l2"\n', "") if misfit == "normalised" else config)
        with style.look():
            shot = gathers.gathers(read_record(folder))
        assert shot is not None
        titles += [text for axes in shot.figure.axes if (text := axes.get_title(loc="left")).startswith("(f)")]
    assert titles[0] == "(f) Residual, end, 10 % rms"
    assert float(titles[1].split(",")[2].split("%")[0]) < 1e-5


def test_warnings_of_derived_values_are_words(tmp_path: Path) -> None:
    derived = {"kind": "derived", "time": 1.0, "value": 3.0, "reason": "below the 4.3 needed", "warning": True}
    calm = derived | {"name": "pml_hz", "reason": "as set", "warning": False}
    text = words(write_run(tmp_path / "toy", extra_events=(derived | {"name": "points"}, calm))).text
    assert "Warning: below the 4.3 needed" in text
    assert "needed True" not in text
    assert "Warning: as set" not in text


def test_bands_are_named_by_their_wavelengths(tmp_path: Path) -> None:
    peak = {"kind": "derived", "time": 1.0, "name": "peak_hz", "value": 5.0, "reason": "as set"}
    picture = diagnostics.spectra(read_record(write_run(tmp_path / "toy", extra_events=(peak,))))
    assert picture is not None
    assert len(picture.figure.axes) == 2  # the error, whole and deep
    # A mean of 2750 m/s at 5 Hz is a wavelength of 550 m.
    names = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert names == ["above 2200 m", "1100 to 2200 m", "550 to 1100 m"]
    nameless = diagnostics.spectra(read_record(write_run(tmp_path / "nameless")))
    assert nameless is not None
    assert [text.get_text() for text in nameless.figure.legends[0].get_texts()] == ["band 0", "band 1", "band 2"]


def test_overview_of_runs_with_less_to_show(tmp_path: Path) -> None:
    begun = write_run(tmp_path / "begun", finished=False, results=False)
    going = write_run(tmp_path / "going", finished=False)
    field = write_run(tmp_path / "field", true_model=False)
    with style.look():
        assert overview.overview(read_record(begun)) is None
        pictures = [overview.overview(read_record(folder)) for folder in (going, field)]
    titles = [
        {axes.get_title(loc="left"): axes for axes in picture.figure.axes}
        for picture in pictures
        if picture is not None
    ]
    assert len(titles) == 2
    inverted = next(title for title in titles[0] if title.startswith("(c)"))
    assert "Inverted, after 8 iterations, MSE" in inverted  # the last record of the history
    np.testing.assert_allclose(titles[0][inverted].images[0].get_array()[0], 1.6)
    assert "(e) Model error, (km/s)²" in titles[0]
    assert [title for title in titles[1] if title] == [
        "(a) Initial",
        f"(b) Inverted, after {ITERATIONS} iterations",
        "(c) Misfit, residual / observed energy",
        "(d) Profile at x = 1.5 km",
    ]


def test_short_ranges_of_the_misfit_are_written_without_powers_of_ten(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "toy", results=False)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    for event in events:
        if "misfit" in event:
            event["misfit"] *= 4e-4
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    picture = curves.curves(read_record(folder))
    assert picture is not None
    picture.figure.draw_without_rendering()
    labels = {label.get_text() for label in picture.figure.axes[0].get_yticklabels(which="both")}
    assert {"0.01", "0.1"} <= labels
    assert not any("10" in label and "^" in label for label in labels)


def test_a_figure_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """It once ended a command with a plea for a bug report, and left a part of the picture behind."""
    (tmp_path / "file").touch()
    with pytest.raises(
        DiskError, match=r"a\.png cannot be written \(a file stands where its folder should be\); make room"
    ):
        style.save_png(style.new_figure(1.0), tmp_path / "file" / "a.png")

    class Torn:
        def savefig(self, path: Path, **_: object) -> None:
            path.write_bytes(b"half")
            raise OSError(28, os.strerror(28))

    with pytest.raises(DiskError, match="No space left"):
        style.save_png(Torn(), tmp_path / "b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
