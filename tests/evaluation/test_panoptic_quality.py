"""Panoptic quality against the official scorer, on random predictions and faults of the files."""

import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as official
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from helpers import fails, run, write_cityscapes
from PIL import Image

from evaluation.panoptic_files import (
    categories_of,
    cityscapes_truth,
    count_all,
    match,
    of_instances,
    read_format,
)
from evaluation.panoptic_quality import (
    FATES,
    FN,
    FP,
    IOU,
    TP,
    Category,
    Segments,
    count_segments,
    fates_table,
    panoptic_results,
    panoptic_table,
)
from utils.data.label_table import CITYSCAPES

CATEGORIES = categories_of(CITYSCAPES)
SCORE = "evaluation/score.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A tree with three val images, and their truth as csCreatePanopticImgs writes it."""
    root = write_cityscapes(tmp_path_factory.mktemp("panoptic"), train=1, val=3, seed=5)
    with redirect_stdout(io.StringIO()):
        convert2panoptic(str(root / "gtFine"), setNames=["val"])
    return root


def truth_of(root: Path) -> tuple[dict, Path]:
    path = root / "gtFine" / "cityscapes_panoptic_val.json"
    return json.loads(path.read_text()), path.with_suffix("")


def changed(ids: np.ndarray, kinds: dict[int, int], rng: np.random.Generator) -> dict:
    """True segment ids and their categories, shifted, lost, split, merged, of other classes, with
    segments on void: the ids in place, and the new categories."""
    shift = rng.integers(-6, 7, 2)
    ids = np.roll(ids, shift, (0, 1)) if rng.random() < 0.7 else ids.copy()
    kinds = {number: kind for number, kind in kinds.items() if (ids == number).any()}
    for number in [*kinds]:
        draw, mask = rng.random(), ids == number
        if draw < 0.15:  # lost
            ids[mask], _ = 0, kinds.pop(number)
        elif draw < 0.3:  # split
            half = mask & (np.arange(ids.shape[1]) < np.nonzero(mask)[1].mean())
            ids[half], kinds[number + 2**17] = number + 2**17, kinds[number]
        elif draw < 0.4:  # another class
            kinds[number] = int(rng.choice(CITYSCAPES.ids))
        elif draw < 0.5 and len(kinds) > 1:  # merged
            other = int(rng.choice([x for x in kinds if x != number]))
            ids[mask], _ = other, kinds.pop(number)
    for number in (2**20, 2**24 - 1):  # anywhere, void and crowds too
        top, left = rng.integers(0, 40), rng.integers(0, 90)
        ids[top : top + 20, left : left + 30] = number
        kinds[number] = int(rng.choice(CITYSCAPES.ids))
    kinds = {number: kind for number, kind in kinds.items() if (ids == number).any()}
    return {"ids": ids, "kinds": kinds}


def write_predictions(root: Path, folder: Path, rng: np.random.Generator) -> Path:
    """Changed truth in COCO's panoptic format below `folder`."""
    content, pictures = truth_of(root)
    place = folder / "cityscapes_panoptic_val"
    place.mkdir(parents=True, exist_ok=True)
    annotations = []
    for image in content["annotations"]:
        ids = official.rgb2id(np.array(Image.open(pictures / image["file_name"])))
        kinds = {x["id"]: x["category_id"] for x in image["segments_info"]}
        found = changed(ids, kinds, rng)
        colors = np.stack([found["ids"] >> 8 * place & 255 for place in range(3)], -1)
        name = f"{image['image_id']}.png"
        Image.fromarray(colors.astype(np.uint8)).save(place / name)
        segments = [{"id": int(k), "category_id": v} for k, v in found["kinds"].items()]
        annotations.append(
            {"image_id": image["image_id"], "file_name": name, "segments_info": segments}
        )
    path = folder / "cityscapes_panoptic_val.json"
    path.write_text(json.dumps({"annotations": annotations}))
    return path


def official_counts(root: Path, predictions: Path) -> np.ndarray:
    """(19,4) as PanopticCounts.quality."""
    content, pictures = truth_of(root)
    categories = {x["id"]: x for x in content["categories"]}
    own = {x["image_id"]: x for x in json.loads(predictions.read_text())["annotations"]}
    pairs = [(x, own[x["image_id"]]) for x in content["annotations"]]
    with redirect_stdout(io.StringIO()):
        stats = official.pq_compute_single_core(
            0, pairs, pictures, predictions.with_suffix(""), categories
        )
    return np.array([
        [x.iou, x.tp, x.fp, x.fn] for x in (stats[category.id] for category in CATEGORIES)
    ])  # fmt: skip


def our_counts(root: Path, predictions: Path):
    read, _ = read_format(predictions, CATEGORIES)
    pairs = match(cityscapes_truth(root, "val"), read, predictions)
    return count_all(pairs, CATEGORIES, workers=2)


def random_sets(root: Path, folder: Path, seeds: range) -> None:
    total = np.zeros((19, 4))
    for seed in seeds:
        path = write_predictions(root, folder / str(seed), np.random.default_rng(seed))
        expected, found = official_counts(root, path), our_counts(root, path)
        assert np.array_equal(found.quality[:, TP:], expected[:, TP:])
        assert np.abs(found.quality[:, IOU] - expected[:, IOU]).max() < 1e-9
        assert np.array_equal(found.fates[..., FATES.index("matched")].sum(1), expected[:, TP])
        assert np.array_equal(found.fates.sum((1, 2)), expected[:, [TP, FN]].sum(1))
        total += expected
    assert (total[:, [TP, FN]].sum(1) > 0).sum() > 15 and total[:, FP].sum() > 0


def test_counts_are_those_of_the_official_scorer(root, tmp_path):
    random_sets(root, tmp_path, range(25))


@pytest.mark.slow
def test_counts_are_those_of_the_official_scorer_often(root, tmp_path):
    random_sets(root, tmp_path, range(25, 225))


def test_truth_is_what_the_official_conversion_writes(root):
    """Every segment: pixels, category, crowd."""
    content, pictures = truth_of(root)
    truth = cityscapes_truth(root, "val")
    crowds = 0
    for image in content["annotations"]:
        ids = official.rgb2id(np.array(Image.open(pictures / image["file_name"])))
        found = truth[image["image_id"]]()
        assert len(found.categories) == len(image["segments_info"])
        for number, one in enumerate(image["segments_info"]):
            assert np.array_equal(found.numbers == number + 1, ids == one["id"])
            assert CATEGORIES[found.categories[number]].id == one["category_id"]
            assert found.crowd[number] == bool(one["iscrowd"])
            crowds += one["iscrowd"]
        assert np.array_equal(found.numbers == 0, ids == 0)
    assert crowds > 0
    things = {x["id"]: bool(x["isthing"]) for x in content["categories"]}
    assert {x.id: x.thing for x in CATEGORIES} == things


def test_the_command_equals_the_official_one(root, tmp_path):
    """Table, JSON, picture and comparison; then the same with the truth as a JSON file."""
    path = write_predictions(root, tmp_path / "p", np.random.default_rng(7))
    out = ("--json", tmp_path / "s.json", "--segments", tmp_path / "s.png")
    command = (SCORE, "--panoptic", "true", "--check_official", "true", "--predictions")
    done = run(*command, path.parent, "--data_root", root, *out, fork=False)
    assert done.returncode == 0, done.stderr + done.stdout
    difference = float(done.stdout.rsplit(":", 1)[1])
    assert difference < 1e-12 and "in 69 results" in done.stdout
    results = json.loads((tmp_path / "s.json").read_text())
    assert {*results} == {"All", "Things", "Stuff", "per_class"} and results["All"]["n"] > 15
    with redirect_stdout(io.StringIO()) as printed:
        official.print_results(
            {**results, "per_class": {int(k): v for k, v in results["per_class"].items()}},
            {x.id: {"name": x.name} for x in CATEGORIES},
        )
    assert all(line in done.stdout for line in printed.getvalue().splitlines())
    assert (tmp_path / "s.png").stat().st_size > 10_000
    truth = root / "gtFine" / "cityscapes_panoptic_val.json"
    again = run(*command, path, "--truth", truth, fork=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[:30] == done.stdout.splitlines()[:30]
    plain = tmp_path / "plain.json"  # the official scorer needs iscrowd
    content = json.loads(truth.read_text())
    for image in content["annotations"]:
        for segment in image["segments_info"]:
            del segment["iscrowd"]
    plain.write_text(json.dumps(content))
    shutil.copytree(truth.with_suffix(""), plain.with_suffix(""))
    fails(run(*command, path, "--truth", plain, fork=False), "plain.json: a segment without ")


def restated(truth: Segments, own: Segments, categories: int) -> np.ndarray:
    """The definition, pair by pair over masks (Kirillov et al., section 4.1)."""
    counts, void = np.zeros((categories, 4)), truth.numbers == 0
    hits, found = set(), set()
    for i, kind in enumerate(truth.categories):
        for j, other in enumerate(own.categories):
            mine, its = truth.numbers == i + 1, own.numbers == j + 1
            iou = (mine & its).sum() / max(1, (mine | its & ~void).sum())
            if kind == other and not truth.crowd[i] and iou > 0.5:
                counts[kind] += (iou, 1, 0, 0)
                hits.add(i), found.add(j)
    for i, kind in enumerate(truth.categories):
        counts[kind, FN] += i not in hits and not truth.crowd[i]
    for j, kind in enumerate(own.categories):
        its, ignored = own.numbers == j + 1, void.copy()
        for i, crowd in enumerate(truth.crowd):
            ignored |= (truth.numbers == i + 1) & bool(crowd and truth.categories[i] == kind)
        counts[kind, FP] += j not in found and (its & ignored).sum() <= its.sum() / 2
    return counts


@pytest.mark.parametrize("seed", range(40))
def test_counts_are_those_of_the_definition(seed):
    """133 categories as in COCO, crowds, absent classes; once more pairs than 16 bits hold."""
    rng = np.random.default_rng(seed)
    many = 300 if seed == 0 else 12
    sides = []
    for crowds in (0.2, 0.0):
        cells = rng.integers(0, many + 1, (20, 30)).astype(np.uint16)
        used = np.unique(cells[cells > 0])
        table = np.zeros(many + 1, np.uint16)
        table[used] = np.arange(1, len(used) + 1)
        kinds = rng.choice(rng.integers(0, 133, 3), len(used))
        crowd = rng.random(len(used)) < crowds
        crowd &= [list(kinds[:i][crowd[:i]]).count(k) == 0 for i, k in enumerate(kinds)]
        sides.append(Segments(table[cells].repeat(3, 0), kinds, crowd))
    truth, own = sides
    if seed % 2:  # mostly alike
        own = Segments(np.where(rng.random(truth.numbers.shape) < 0.7, truth.numbers, 0).astype(
            np.uint16), truth.categories, np.zeros(len(truth.crowd), bool))  # fmt: skip
    found = count_segments(truth, own, 133).quality
    assert np.allclose(found, restated(truth, own, 133), rtol=0, atol=1e-12)


def test_what_becomes_of_true_segments():
    """One matched, one split in two, two merged, one missed; a crowd is none of them."""
    truth, predicted = np.zeros((2, 8, 80), np.uint16)
    for number in range(6):
        truth[:, 10 * number : 10 * number + 10] = number + 1
    predicted[:, 1:10], predicted[:, 10:15], predicted[:, 15:20] = 1, 2, 3
    predicted[:, 20:40], predicted[:, 60:70] = 4, 5
    crowd = np.arange(6) == 5
    found = count_segments(
        Segments(truth, np.zeros(6, np.int64), crowd),
        Segments(predicted, np.zeros(5, np.int64), np.zeros(5, bool)), 1,
    )  # fmt: skip
    assert dict(zip(FATES, found.fates[0, 0].tolist(), strict=True)) == {
        "matched": 1, "split": 1, "merged": 2, "missed": 1,
    }  # fmt: skip
    assert found.quality.tolist() == [[0.9, 1, 3, 4]]  # the one on void does not count
    categories = [Category(1, "thing", thing=True)]
    results = panoptic_results(found, categories)
    assert results["All"]["pq"] == pytest.approx(0.9 / 4.5) and np.isnan(results["Stuff"]["pq"])
    assert "thing" in panoptic_table(results, categories)
    assert fates_table(found, categories).splitlines()[1].split()[1:] == ["|", "1", "1", "2", "1"]


def test_an_own_prediction_of_truth_is_perfect(root):
    instances = cv2.imread(str(next(root.glob("gtFine/val/*/*_instanceIds.png"))), -1)
    truth = of_instances(instances, CITYSCAPES)
    kept = ~truth.crowd
    table = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.uint16)
    own = Segments(table[truth.numbers], truth.categories[kept], truth.crowd[kept])
    found = count_segments(truth, own, 19).quality
    assert found[:, TP].sum() == kept.sum() and found[:, [FP, FN]].sum() == 0
    assert np.array_equal(found[:, IOU], found[:, TP])


def png(change) -> callable:
    def apply(folder: Path, _content: dict) -> None:
        path = sorted(folder.glob("*/*.png"))[0]
        pixels = change(np.array(Image.open(path)))
        Image.fromarray(pixels).save(path)

    return apply


def entry(change) -> callable:
    def apply(_folder: Path, content: dict) -> None:
        change(content["annotations"])

    return apply


def first(annotations: list) -> list:
    return annotations[0]["segments_info"]


def gone(folder: Path, _content: dict) -> None:
    sorted(folder.glob("*/*.png"))[0].unlink()


def cut(folder: Path, _content: dict) -> None:
    path = sorted(folder.glob("*/*.png"))[0]
    path.write_bytes(path.read_bytes()[:-30])


FAULTS = {  # what is wrong with a perfect prediction, and what is said about it
    "size": (png(lambda x: x[:-1]), ("128 x 63 instead of 128 x 64 pixels",)),
    "no colours": (png(lambda x: x[..., 0]), ("8 bits, not segment ids", "R + 256 G + 65536 B")),
    "reversed": (png(lambda x: x[..., ::-1].copy()), ("Red and blue are exchanged",)),
    "not listed": (entry(lambda x: first(x).pop()), ("are not in the JSON file", "segments_info")),
    "no pixels": (
        entry(lambda x: first(x).append({"id": 9, "category_id": 7})), ("9 of the JSON file",),
    ),
    "category": (
        entry(lambda x: first(x)[0].update(category_id=99)), ("has the category 99", "7, 8, 11"),
    ),
    "void id": (entry(lambda x: first(x)[0].update(id=0)), ("segment ids 0",)),
    "double id": (entry(lambda x: first(x).append(first(x)[0])), ("each segment its own id",)),
    "missing": (entry(lambda x: x.pop()), ("1 of 3 images are missing",)),
    "double": (entry(lambda x: x.append(x[0])), ("occurs twice",)),
    "extra": (entry(lambda x: x.append({**x[0], "image_id": "a_1_2"})), ("such as a_1_2",)),
    "no file name": (entry(lambda x: x[0].pop("file_name")), ("not COCO's panoptic format",)),
    "nothing": (entry(lambda x: x.clear()), ("not COCO's panoptic format",)),
    "gone": (gone, ("cannot be read",)),
    "cut": (cut, ("not a whole PNG",)),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), FAULTS.values(), ids=FAULTS)
def test_faults_of_the_files_are_one_line(root, tmp_path, change, words):
    content, pictures = truth_of(root)
    folder = tmp_path / "p"
    shutil.copytree(pictures, folder / pictures.name)
    change(folder, content)
    (folder / "cityscapes_panoptic_val.json").write_text(json.dumps(content))
    command = (SCORE, "--panoptic", "true", "--data_root", root, "--predictions", folder)
    fails(run(*command), *words)


def test_mistakes_in_the_options_are_one_line(root, tmp_path):
    panoptic = (SCORE, "--panoptic", "true", "--data_root", root, "--predictions")
    fails(run(*panoptic, tmp_path / "none"), "no such folder")
    fails(run(*panoptic, tmp_path), "no JSON file", "panoptic format")
    for name in "ab":
        (tmp_path / f"{name}.json").write_text("{}")
    fails(run(*panoptic, tmp_path), "2 JSON files", "a.json")
    fails(run(*panoptic, tmp_path / "a.json"), "a.json: not COCO's panoptic format")
    fails(run(*panoptic, tmp_path, "--confusion", "x.png"), "--confusion: only without --panoptic")
    fails(run(SCORE, "--truth", "x.json"), "--truth: only with --panoptic true")
