"""How good a trained network is on samples it has not seen: scores of each, their means, pictures."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpfwi.config import TO_BE_GIVEN
from hpfwi.errors import ConfigError, DataError
from hpfwi.physics.openfwi import FASTEST_MPS, SLOWEST_MPS
from hpfwi.store.atomic import new_folder
from hpfwi.store.openfwi import PairStore, open_pairs
from hpfwi.training.forward import in_mps
from hpfwi.training.geometry import difference
from hpfwi.training.lpips import Lpips, read_lpips
from hpfwi.training.metrics import Scores, benchmark_scores, published_scores, scores_in_mps
from hpfwi.training.normalise import scale_in_words
from hpfwi.training.pictures import draw_predictions, draw_profiles
from hpfwi.training.settings import VALIDATION, TrainConfig, samples_of, split_of
from hpfwi.training.sound import require_sound
from hpfwi.training.trained import Trained, Which
from hpfwi.training.weights import open_network

CONFIDENCE = 0.95
EVALUATION = "evaluation"
PUBLISHED = "published_"
"""Prefix of the scores as AMFMS and its rivals publish them, which are not comparable with those in m/s."""
BENCHMARK = "benchmark_"
"""Prefix of the scores as OpenFWI's benchmark computes them, of networks that predict m/s."""
NOT_COMPUTED = "not computed"
_AT_ONCE = 64
"""Samples read at a time: about 100 MB of OpenFWI's records."""


@dataclass(frozen=True)
class Mean:
    """A mean over samples and half the width of its confidence interval (Student's t, 95 %).

    samples     with a finite score; 0 gives a mean of NaN
    """

    mean: float
    half_width: float
    samples: int


@dataclass(frozen=True)
class Evaluation:
    """Scores of a network on a split.

    samples     numbers in the store, in the order of the scores
    scores      by name, float64[sample]
    means       by name; `benchmark_rmse`, the root of a mean, is here alone
    scale       of the network's velocities, in words
    """

    folder: Path
    samples: tuple[int, ...]
    scores: Scores
    means: dict[str, Mean]
    scale: str


def evaluate(
    network: Path,
    split: str = "test",
    *,
    which: Which = "best",
    data: Path | None = None,
    device: str = "cpu",
    lpips: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, samples: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Evaluation:
    """Score a trained network and write scores.csv, summary.json and two figures to a folder (see `evaluations_of`).

    network     folder of a training run, or a file of `hpfwi export`
    split       of the store, or 'validation', the samples that validated the training
    which       checkpoint of a run
    data        another store than the one the network was trained on, or the place where that one lies now; a file
                names none
    lpips       weights of the perceptual distance (see `hpfwi.training.lpips`); None: it is not computed
    progress    told after every part how many samples of how many are done
    say         told where the store's records were made otherwise than those that trained

    raises      ConfigError: no such split, or it holds samples that trained, or no store; DataError: another shape of
                records, weights that cannot be used, a disk that refuses
    """
    perceptual = None if lpips is None else read_lpips(lpips)
    trained = open_network(network, which, device=device)
    if data is None and trained.config.data.pairs == TO_BE_GIVEN:
        raise ConfigError(f"{network} does not say where pairs to judge it by are; name a store with --data PATH.zarr.")
    store = open_pairs(data or trained.config.data.pairs)
    own = data is None or trained.trained_on.sha256 == store.manifest["sha256"]  # which may lie elsewhere by now
    samples = _samples(trained.config, store, split, own=own)
    trained.require_shapes(store)
    if (differs := difference(trained.trained_on.physics or {}, store)) is not None:
        say(f"{differs}: the scores say how well it does on such records.")
    parts: list[Scores] = []
    for first in range(0, len(samples), _AT_ONCE):
        part = samples[first : first + _AT_ONCE]
        predicted, true = _predicted(trained, store, part)
        parts.append(_all_scores(trained.config, predicted, true, perceptual))
        progress(first + len(part), len(samples))
    scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    name = split if own else f"{split}-of-{store.path.stem}"
    folder = evaluations_of(network) / name
    means = {name: mean_of(values) for name, values in scores.items()}
    if f"{BENCHMARK}mse" in means:
        means[f"{BENCHMARK}rmse"] = root_of(means[f"{BENCHMARK}mse"])
    scale = scale_in_words(trained.config.training.normalisation)
    found = Evaluation(folder, tuple(samples), scores, means, scale)
    summary = {
        "run": trained.config.name,
        "network": trained.config.network.name,
        "parameters": trained.parameters,
        "checkpoint": which,
        "step": trained.step,
        "store": str(store.path),
        "store_sha256": store.manifest["sha256"],
        "split": split,
        "samples": len(samples),
        "confidence": CONFIDENCE,
        "normalisation": trained.config.training.normalisation.normalisation,
        "scale": scale,
        "lpips": NOT_COMPUTED if lpips is None else str(lpips),
        "means": {name: _finite(asdict(mean)) for name, mean in found.means.items()},
    }
    title = f"{trained.config.name} on {store.family}, {split}, after step {trained.step}"
    with new_folder(folder, overwrite=True) as temporary:
        temporary.mkdir()
        (temporary / "scores.csv").write_text(_as_csv(found), "utf-8")
        (temporary / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", "utf-8")
        _draw(trained, store, found, temporary, title)
    return found


def evaluations_of(network: Path) -> Path:
    """The folder with a folder for each evaluation of a network: in that of a run, or beside a file.

    >>> evaluations_of(Path("weights/amfms.safetensors")).as_posix()
    'weights/amfms-evaluation'
    """
    return network / EVALUATION if network.is_dir() else network.with_name(f"{network.stem}-{EVALUATION}")


def mean_of(values: NDArray[np.float64]) -> Mean:
    """Mean of the finite values with its confidence interval; infinite scores, of perfect maps, are left out.

    >>> found = mean_of(np.array([1.0, 2.0, 3.0, np.nan]))
    >>> found.mean, round(found.half_width, 6), found.samples
    (2.0, 2.484138, 3)
    """
    from scipy.special import stdtrit

    kept = values[np.isfinite(values)]
    if not len(kept):
        return Mean(math.nan, math.nan, 0)
    if len(kept) == 1:
        return Mean(float(kept[0]), math.nan, 1)
    quantile = float(stdtrit(len(kept) - 1, 0.5 + CONFIDENCE / 2))
    return Mean(float(kept.mean()), quantile * float(kept.std(ddof=1)) / math.sqrt(len(kept)), len(kept))


def root_of(mean: Mean) -> Mean:
    """The root of a mean, its interval to first order.

    >>> root_of(Mean(4.0, 0.4, 9))
    Mean(mean=2.0, half_width=0.1, samples=9)
    """
    root = math.sqrt(mean.mean)
    return Mean(root, mean.half_width / (2 * root) if root > 0 else mean.half_width, mean.samples)


def read_scores(folder: Path) -> tuple[tuple[int, ...], Scores]:
    """Samples and scores of a scores.csv.

    raises      DataError: missing or damaged
    """
    file = folder / "scores.csv"
    try:
        header, *rows = list(csv.reader(file.read_text("utf-8").splitlines()))
        table = np.array([[float(cell) for cell in row] for row in rows])
        samples = tuple(int(value) for value in table[:, 0])
        return samples, {name: table[:, column] for column, name in enumerate(header) if column}
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{file} cannot be read ({error}); make it again with `hpfwi evaluate`.") from error


def _samples(config: TrainConfig, store: PairStore, split: str, *, own: bool) -> range:
    """Samples of a split that did not train; a network may be judged on any split of a store it has never seen."""
    if not own:
        return split_of(store, split)
    if split == VALIDATION:
        return samples_of(config, store)[1]
    if split == config.data.train:
        raise ConfigError(
            f"Split {split!r} trained this network and cannot judge it; take --split {VALIDATION} or another split of "
            f"{store.path}: {', '.join(name for name in store.splits if name != split) or 'it has none'}."
        )
    return split_of(store, split)


def _predicted(
    trained: Trained, store: PairStore, samples: range | list[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Predicted and true velocities of some samples, float32[sample, z, x], m/s."""
    records, true = store.read(list(samples))
    require_sound(store, samples, records, true)  # a score of NaN would be left out of a mean
    return in_mps(trained.config.training, trained.predict(records), true), true


def _all_scores(
    config: TrainConfig, predicted: NDArray[np.float32], true: NDArray[np.float32], lpips: Lpips | None
) -> Scores:
    kind = config.training.normalisation.normalisation
    published = published_scores(predicted, true, per_sample=kind != "none", lpips=lpips)
    # A network that needs each sample's own range would be told it here, which OpenFWI's are not.
    benchmark = {} if kind == "per-sample" else benchmark_scores(predicted, true, (SLOWEST_MPS, FASTEST_MPS))
    return (
        scores_in_mps(predicted, true)
        | {f"{PUBLISHED}{name}": values for name, values in published.items()}
        | {f"{BENCHMARK}{name}": values for name, values in benchmark.items()}
    )


def _as_csv(found: Evaluation) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sample", *found.scores])
    columns = [values.tolist() for values in found.scores.values()]
    for row, sample in enumerate(found.samples):
        writer.writerow([sample, *(repr(column[row]) for column in columns)])
    return text.getvalue()


def _draw(trained: Trained, store: PairStore, found: Evaluation, folder: Path, title: str) -> None:
    """Draw the best, the median and the worst sample by mean absolute error, and profiles through them."""
    order = np.argsort(found.scores["mae_mps"], kind="stable")
    places = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    samples = [found.samples[place] for place in places.values()]
    predicted, true = _predicted(trained, store, samples)
    names = list(places)
    draw_predictions(folder / "predictions.png", predicted, true, samples, store.physics, title, names=names)
    draw_profiles(folder / "profiles.png", predicted, true, samples, store.physics, title, names=names)


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
