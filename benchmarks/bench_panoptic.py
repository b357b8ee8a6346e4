"""Compare panoptic quality with cityscapesScripts and torchmetrics; time and memory of segments.

    python benchmarks/bench_panoptic.py [--root SYNTHETIC_SET]

Predictions are made from the truth of the synthetic val set: shifted by 3 rows and 5 columns, 15 %
of the things void, 15 % of another class. Measures process CPU time of one thread per 1024x2048
image; set RAYON_NUM_THREADS=1 for hotcoco. hotcoco and torchmetrics are left out if they are not
installed. The official scorer decodes its files again for every call; in memory it gets their
arrays.
"""

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import cv2
import numpy as np
import torch
from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as official

from benchmarks import measure
from benchmarks.render import Rows, table, times
from evaluation import panoptic
from evaluation.grouping import group
from evaluation.inference import Predictor
from evaluation.panoptic_files import categories_of, of_instances, read_instances, read_segments
from evaluation.panoptic_quality import TP, Segments, count_segments, panoptic_results
from evaluation.task import TASKS
from model import build_model
from utils.base.errors import run_command
from utils.data.cityscapes import find_files
from utils.data.image_files import read_ids, write_png
from utils.data.label_table import CITYSCAPES

CATEGORIES = categories_of(CITYSCAPES)
IDS = CITYSCAPES.ids


def predict(truth: Segments, rng: np.random.Generator) -> Segments:
    things = np.array([category.thing for category in CATEGORIES])[truth.categories]
    kept = ~(things & (rng.random(len(things)) < 0.15))
    kinds = np.where(
        rng.random(len(things)) < 0.15, rng.integers(0, 19, len(things)), truth.categories
    )
    table = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.uint16)
    numbers = np.roll(cv2.LUT(truth.numbers, np.resize(table, 1 << 16)), (3, 5), (0, 1))
    return Segments(numbers, kinds[kept], np.zeros(kept.sum(), bool))


def entry(segments: Segments, path: Path) -> dict:
    """An image of COCO's format; its PNG is written."""
    pixels = np.stack([segments.numbers & 255, segments.numbers >> 8, segments.numbers * 0], -1)
    write_png(path, pixels.astype(np.uint8))
    areas = np.bincount(segments.numbers.ravel(), minlength=len(segments.categories) + 1)[1:]
    rows = zip(segments.categories.tolist(), segments.crowd.tolist(), areas.tolist(), strict=True)
    infos = [
        {"id": number, "category_id": int(IDS[kind]), "iscrowd": int(crowd), "area": area}
        for number, (kind, crowd, area) in enumerate(rows, 1)
    ]
    return {"image_id": path.stem, "file_name": path.name, "segments_info": infos}


def hotcoco(
    pairs: list[list[dict]], names: dict[int, dict], places: list[Path]
) -> tuple[dict, Callable[[int], object]]:
    """Its result for all images, and its call for one image."""
    from hotcoco.panoptic import pq_compute

    def files(chosen: list[list[dict]], name: str) -> list[Path]:
        kinds = [{"id": key, **kind} for key, kind in names.items()]
        images = [{"id": number} for number in range(len(chosen))]  # it takes numbers only
        written = [place.with_name(f"{name}_{place.name}.json") for place in places]
        for path, entries in zip(written, zip(*chosen, strict=True), strict=True):
            annotations = [{**x, "image_id": number} for number, x in enumerate(entries)]
            common = {"images": images, "categories": kinds}
            path.write_text(json.dumps({**common, "annotations": annotations}, default=int))
        return written

    single = [files([pair], pair[0]["image_id"]) for pair in pairs]
    whole = pq_compute(*files(pairs, "all"), *places)
    return whole, lambda number: pq_compute(*single[number % len(pairs)], *places)


def per_image(paths: list[Path], folder: Path, rounds: int) -> tuple[Rows, dict[str, float]]:
    rng, places = np.random.default_rng(0), [folder / "truth", folder / "predicted"]
    for place in places:
        place.mkdir()
    truths = [read_instances(path) for path in paths]
    predicted = [predict(truth, rng) for truth in truths]
    pairs = [
        [entry(x, place / f"{path.stem}.png") for x, place in zip(both, places, strict=True)]
        for path, *both in zip(paths, truths, predicted, strict=True)
    ]
    pixels = {str(x): cv2.imread(str(x), cv2.IMREAD_COLOR_RGB) for y in places for x in y.iterdir()}
    names = {int(x.id): {"name": x.name, "isthing": int(x.thing)} for x in CATEGORIES}
    instances = [read_ids(path, np.uint16) for path in paths]

    def referee(number: int, opener: object = official.Image) -> official.PQStat:
        official.Image = opener
        with contextlib.redirect_stdout(io.StringIO()):
            return official.pq_compute_single_core(0, [pairs[number % len(pairs)]], *places, names)

    def from_files(number: int) -> object:
        number %= len(pairs)
        ids = np.arange(1, len(predicted[number].categories) + 1)
        file = places[1] / pairs[number][1]["file_name"]
        own = read_segments(file, ids, predicted[number].categories, predicted[number].crowd)
        return count_segments(read_instances(paths[number]), own, 19)

    memory = SimpleNamespace(open=pixels.__getitem__)
    sides: measure.Sides = {
        "official scorer, two PNG files": lambda n: referee(n, pillow),
        "official scorer, in memory": lambda n: referee(n, memory),
        "ours, two PNG files": from_files,
        "ours, in memory, from instance ids": lambda n: count_segments(
            of_instances(instances[n % len(pairs)], CITYSCAPES), predicted[n % len(pairs)], 19
        ),
        "ours, in memory": lambda n: count_segments(
            truths[n % len(pairs)], predicted[n % len(pairs)], 19
        ),
    }
    pillow = official.Image
    scores, total = {}, official.PQStat()
    for number in range(len(pairs)):
        total += referee(number, pillow)
    scores["official"] = official.average_pq(total, names)["All"]["pq"]
    found = [count_segments(*both, 19) for both in zip(truths, predicted, strict=True)]
    counts = type(found[0]).total(found)
    scores["ours"] = panoptic_results(counts, CATEGORIES)["All"]["pq"]
    assert [x.tp for x in (total[i] for i in names)] == counts.quality[:, TP].tolist()
    if measure.optional_peer("hotcoco"):
        whole, sides["hotcoco, two PNG files"] = hotcoco(pairs, names, places)
        scores["hotcoco"] = whole["All"]["pq"]
    if torchmetrics := measure.optional_peer("torchmetrics"):
        things = {place for place, x in enumerate(CATEGORIES) if x.thing}
        void = 19  # torchmetrics' void is a category it does not know

        def channels(segments: Segments) -> torch.Tensor:
            kinds = np.concatenate([[void], segments.categories])[segments.numbers]
            return torch.from_numpy(np.stack([kinds, segments.numbers.astype(np.int64)], -1))[None]

        tensors = [[channels(x) for x in both] for both in zip(predicted, truths, strict=True)]
        how = {"allow_unknown_preds_category": True}
        peer = torchmetrics.detection.PanopticQuality(things, {*range(19)} - things, **how)
        for both in tensors:
            peer.update(*both)
        scores["torchmetrics"] = float(peer.compute())
        sides["torchmetrics PanopticQuality, in memory"] = lambda n: peer.update(
            *tensors[n % len(pairs)]
        )
    seconds = measure.median_seconds(sides, rounds * len(pairs), warm_up=1)
    rows = [["per image", "ms", "against ours in memory", "against ours from files"]]
    for name, value in seconds.items():
        gains = [value / seconds[f"ours, {own}"] for own in ("in memory", "two PNG files")]
        rows.append([name, f"{1e3 * value:.1f}", *map(times, gains)])
    return rows, scores


def dense_scene() -> tuple[np.ndarray, np.ndarray]:
    """(1024,2048) train ids and (3,256,512) maps: 200 instances on 15 % of the pixels."""
    train_ids, maps = np.zeros((1024, 2048), np.uint8), np.zeros((3, 256, 512), np.float32)
    for number, (y, x) in enumerate(product(range(10, 256, 25), range(12, 512, 25))):
        maps[0, y, x] = 1
        train_ids[4 * y - 20 : 4 * y + 20, 4 * x - 20 : 4 * x + 20] = 11 + number % 8
    return train_ids, maps


def prediction(rounds: int, backbone: str) -> Rows:
    """Time of the grouping, and memory of a whole prediction against that of the network alone."""
    train_ids, maps = dense_scene()
    things = np.array([category.thing for category in CATEGORIES])
    how = {"device": measure.CPU, "task": TASKS["panoptic"], "classes": CITYSCAPES}
    model = build_model("panoptic_deeplab", num_classes=19, backbone=backbone)
    predictor, image = Predictor(model, **how), np.zeros((1024, 2048, 3), np.uint8)
    logits = torch.zeros(1, 19, 256, 512)
    logits[0, 0] = 1
    outputs = torch.cat([logits, torch.from_numpy(maps)[None]], 1)[0].numpy()
    sides: measure.Sides = {
        "classes, then segments": lambda _: panoptic.finish(outputs, train_ids.shape, CITYSCAPES),
        "segments, 200 centers, 15 % things": lambda _: group(
            train_ids, maps[0], maps[1:], things=things
        ),
    }
    seconds = measure.median_seconds(sides, 5 * rounds)
    rows = [["1024x2048", "ms", "MiB"]]
    rows += [[name, f"{1e3 * value:.0f}", ""] for name, value in seconds.items()]
    works = {
        f"forward pass, {backbone}": lambda: predictor.logits(image, size=image.shape[:2]),
        "forward pass and segments": lambda: predictor.predict(image),
    }
    return rows + [[name, "", f"{measure.extra_mib(work):.0f}"] for name, work in works.items()]


def main() -> None:
    given = measure.options(__doc__, root=measure.SYNTHETIC, rounds=2, encoder="resnet50")
    measure.one_thread()
    paths = [*find_files(given.root, "val", "instances").values()]
    with tempfile.TemporaryDirectory() as folder:
        rows, scores = per_image(paths, Path(folder), given.rounds)
    print(f"{measure.machine(measure.CPU)}, {len(paths)} images, {given.rounds} rounds")
    print("PQ: " + ", ".join(f"{name} {100 * pq:.6f}" for name, pq in scores.items()) + "\n")
    print(table(rows))
    print(table(prediction(given.rounds, given.encoder)))


if __name__ == "__main__":
    run_command(main)
