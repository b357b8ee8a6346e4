"""The panoptic task: grouping against loops over pixels, an oracle, and its commands."""

import json
import resource
import time

import cv2
import numpy as np
import pytest
import torch
from helpers import ALONE, fails, randomize, run, tiny, train, write_cityscapes

from datasets import build_dataset
from evaluation import panoptic
from evaluation.evaluate import evaluate
from evaluation.grouping import find_centers, group
from evaluation.inference import Predictor
from evaluation.panoptic_files import categories_of, of_instances, read_format
from evaluation.panoptic_quality import Segments
from evaluation.semantic import Counted
from evaluation.task import TASKS
from model import build_model
from model.panoptic.panoptic_deeplab import peaks
from utils.base.errors import UserError
from utils.data.batches import empty_targets
from utils.data.instance_targets import draw_targets
from utils.data.label_table import CITYSCAPES, IGNORE
from utils.data.synthetic import generate

THINGS = np.isin(CITYSCAPES.ids, [*CITYSCAPES.instance_sizes])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Synthetic streets, 1024x2048."""
    root = tmp_path_factory.mktemp("scenes")
    generate(root, train=1, val=6, workers=1)
    return build_dataset("synthetic", root, "val", instances=True)


def highest(heat: np.ndarray, window: int) -> np.ndarray:
    return peaks(torch.from_numpy(heat)[None, None], window)[0, 0].numpy()


def oracle(sample: dict, *, stuff_area: int) -> panoptic.Prediction:
    """The prediction of a network that has learned everything, and predicts no class for void and
    for groups of things without instance ids."""
    instances, label = sample["instance"], sample["label"]
    batch = empty_targets((1, *instances.shape), ("region", "heat", "offset"))
    targets = {name: x[0].numpy() for name, x in batch.items()}
    draw_targets(instances, CITYSCAPES, **targets)
    train_ids = np.where(targets["region"] > 0, label, IGNORE).astype(np.uint8)
    how = {"things": THINGS, "stuff_area": stuff_area}
    heat = highest(targets["heat"], 13)
    return panoptic.Prediction(train_ids, group(train_ids, heat, targets["offset"], **how))


def quality(scenes, stuff_area: int) -> dict:
    counts = Counted(CITYSCAPES)
    for index in range(len(scenes)):
        sample = scenes[index]
        found = oracle(sample, stuff_area=stuff_area)
        counts.add(index, panoptic.count(sample, found, CITYSCAPES))
    return panoptic.scores(panoptic.total(counts, CITYSCAPES, ALONE), CITYSCAPES).panoptic


def test_an_oracle_finds_every_segment(scenes):
    """PQ 1 for every class; a rule of small stuff areas can cost a part of it."""
    found = quality(scenes, stuff_area=0)
    assert found["All"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 19}
    assert all(row["pq"] == 1.0 for row in found["per_class"].values())
    assert quality(scenes, stuff_area=2048) == found  # no class has so few pixels in these scenes
    with_rule = quality(scenes, stuff_area=200_000)
    assert with_rule["Things"]["pq"] == 1.0 and 0 < with_rule["Stuff"]["pq"] < 1


def naive(train_ids, heat, offset, stuff_area):
    """The published rules, one pixel and one center at a time; small sizes only."""
    height, width = train_ids.shape
    scales = height / heat.shape[0], width / heat.shape[1]
    moves = [cv2.resize(x, (width, height)) * s for x, s in zip(offset, scales, strict=True)]
    centers = []
    for y, x in np.ndindex(heat.shape):
        window = heat[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        if heat[y, x] > 0.1 and heat[y, x] == window.max():
            centers.append((-heat[y, x], 4 * y + 1.5, 4 * x + 1.5))
    centers = [(y, x) for _, y, x in sorted(centers)[:200]]
    members = {number: [] for number in range(len(centers))}
    for y, x in zip(*np.nonzero((train_ids < 19) & THINGS[train_ids.clip(max=18)]), strict=True):
        where = y + moves[0][y, x], x + moves[1][y, x]
        far = [(where[0] - a) ** 2 + (where[1] - b) ** 2 for a, b in centers]
        if far:
            members[int(np.argmin(far))].append((y, x))
    segments = []
    for pixels in filter(None, members.values()):
        votes = np.bincount([train_ids[place] for place in pixels], minlength=19)
        segments.append((int(votes.argmax()), frozenset(pixels)))
    for number in np.flatnonzero(~THINGS):
        pixels = [*zip(*np.nonzero(train_ids == number), strict=True)]
        if len(pixels) >= stuff_area and pixels:
            segments.append((int(number), frozenset(pixels)))
    return set(segments)


@pytest.mark.parametrize("seed", range(6))
def test_segments_are_those_of_the_published_rules(seed):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 21, (6, 8)).astype(np.uint8)  # 19 and 20 are no classes
    train_ids = cv2.resize(small, (56, 36), interpolation=cv2.INTER_NEAREST)
    heat = rng.normal(0.0, 0.3, (9, 14)).astype(np.float32)
    offset = rng.normal(0, 2, (2, 9, 14)).astype(np.float32)
    found = group(train_ids, highest(heat, 3), offset, things=THINGS, stuff_area=30)
    sets = {
        (int(category), frozenset(zip(*np.nonzero(found.numbers == number + 1), strict=True)))
        for number, category in enumerate(found.categories)
    }
    assert sets == naive(train_ids, heat, offset, 30) and len(sets) == len(found.categories)
    assert not found.crowd.any()


def test_without_a_center_all_things_are_void_and_stuff_stays():
    train_ids = np.full((64, 64), 13, np.uint8)
    train_ids[32:] = 0
    found = group(train_ids, np.zeros((16, 16), np.float32), np.zeros((2, 16, 16), np.float32),
                  things=THINGS, stuff_area=1)  # fmt: skip
    assert found.categories.tolist() == [0]
    assert (found.numbers[32:] == 1).all() and not found.numbers[:32].any()


def test_a_plateau_is_one_center_and_the_highest_200_are_kept():
    heat = np.zeros((64, 64), np.float32)
    heat[10:14, 20:26] = 0.5  # as in bfloat16, where neighbours can be equal
    assert find_centers(highest(heat, 13), [1, 1]).tolist() == [[11.5, 22.5]]
    heat = np.zeros((200, 200), np.float32)
    heat[4::9, 4::9] = np.random.default_rng(0).uniform(0.2, 1, (22, 22))
    centers = find_centers(highest(heat, 7), [1, 1])
    values = heat[tuple(centers.astype(int).T)]
    assert len(centers) == 200 and (np.diff(values) <= 0).all()
    assert values.min() == np.sort(heat.ravel())[-200]


def test_grouping_is_fast_and_its_memory_does_not_grow_with_the_centers():
    """1024x2048, 200 centers, 15 % things; docs/results.md has the time of a quiet core."""
    train_ids = np.zeros((1024, 2048), np.uint8)
    heat, number = np.zeros((256, 512), np.float32), 0
    for y in range(10, 256, 25):
        for x in range(12, 512, 25):
            heat[y, x], number = 1.0, number + 1
            train_ids[4 * y - 20 : 4 * y + 20, 4 * x - 20 : 4 * x + 20] = 11 + number % 8
    heat = cv2.GaussianBlur(heat, (0, 0), 2)
    heat = highest(heat / heat.max(), 3)
    offset = np.zeros((2, 256, 512), np.float32)
    assert 0.14 < (train_ids > 10).mean() < 0.17
    group(train_ids[:64], heat[:16], offset[:, :16], things=THINGS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    found = group(train_ids, heat, offset, things=THINGS)
    assert time.process_time() - begin < 2  # seconds; 0.12 on a quiet core
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert (found.categories > 10).sum() == number == 200 and mib < 150


def test_painted_things_have_outlines_and_void_is_black():
    numbers = np.zeros((20, 30), np.uint16)
    numbers[5:15, 5:15], numbers[:, 20:] = 1, 2
    segments = Segments(numbers, np.array([13, 0]), np.zeros(2, bool))
    picture = panoptic.paint(
        panoptic.Prediction(np.zeros((20, 30), np.uint8), segments), CITYSCAPES
    )
    assert picture[10, 10].tolist() == CITYSCAPES.colors[13].tolist()
    assert picture[10, 25].tolist() == CITYSCAPES.colors[0].tolist()
    assert not picture[0, 0].any() and (picture[5, 5:15] == 255).all()
    assert (picture[:, 20] == CITYSCAPES.colors[0]).all()  # stuff has none


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tree, and the options of a run of two steps on it."""
    root = tmp_path_factory.mktemp("panoptic")
    write_cityscapes(root / "data", train=2, val=3, seed=5)
    done = run("utils/preprocess_data.py", "--data_root", root / "data")
    assert done.returncode == 0, done.stderr
    config = tiny(root / "data", root, steps=2, eval_every=2, model="panoptic_deeplab")
    train(config)
    return root / "data", ("--log_root", root, "--checkpoint", "run")


def test_segments_of_the_commands_have_the_official_score(trained, tmp_path):
    root, options = trained
    logs = options[1]
    done = run("evaluation/eval_on_val_for_metrics.py", *options)
    assert done.returncode == 0, done.stderr
    assert "csCreatePanopticImgs" in done.stdout and "csEvalPanopticSemantic" in done.stdout
    scores = json.loads((logs / "model_eval_val" / "scores.json").read_text())
    found = logs / "model_eval_val_panoptic"
    score = ("evaluation/score.py", "--data_root", root, "--panoptic", "true", "--predictions")
    done = run(*score, found, "--check_official", "true", "--json", tmp_path / "score.json")
    assert done.returncode == 0, done.stderr + done.stdout
    official = json.loads((tmp_path / "score.json").read_text())
    assert scores["panoptic"]["All"] == pytest.approx(official["All"], abs=1e-12)
    rows = (logs / "run" / "metrics.csv").read_text().splitlines()
    assert float(rows[-1].split(",")[-1]) == pytest.approx(scores["pq"], abs=0.01)
    done = run("evaluation/score.py", "--data_root", root, "--predictions",
               logs / "model_eval_val_for_metrics", "--json", tmp_path / "pixels.json")  # fmt: skip
    pixels = json.loads((tmp_path / "pixels.json").read_text())
    assert pixels["averageScoreClasses"] == pytest.approx(scores["miou"])
    done = run("predict.py", "--split", "val", *options, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    categories = categories_of(CITYSCAPES)
    one, other = (
        read_format(x / "panoptic.json", categories)[0] for x in (found, tmp_path / "out")
    )
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name]().numbers == other[name]().numbers).all()
    done = run("evaluation/report.py", *options, "--output", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "r.html").read_text()
    assert "Things" in page and "matched" in page


def test_what_segments_do_not_allow_is_one_line(trained, tmp_path):
    root, options = trained
    predict = ("predict.py", root / "leftImg8bit" / "val", *options, "--output", tmp_path)
    fails(run(*predict, "--flip", "true"), "--flip, --crop and several --scales", "Leave them out")
    fails(run(*predict, "--scales", "[0.5,1]"), "give one of --scales")
    fails(run(*predict, "--confidence", "true"), "not for a panoptic network")
    fails(run(*predict, "--output_stride", "16"), "do not fit --output_stride 16")
    config = tiny(root, tmp_path, model="panoptic_deeplab")
    for changes, word in (
        ({"dice": 1.0}, "--dice: not for panoptic_deeplab"),
        ({"class_weights_from": 0.5}, "--class_weights_from: not for panoptic_deeplab"),
        ({"eval_scales": (0.5, 1.0)}, "one of --scales or --eval_scales"),
        ({"aux": True}, "--aux"),
    ):
        with pytest.raises(UserError, match=word):
            train(type(config)(**(vars(config) | changes)))
    for path in (root / "gtFine").rglob("*train*/**/*_instanceIds.png"):
        path.rename(tmp_path / path.name)
    with pytest.raises(UserError, match="train has no instance ids"):
        train(config)


def test_scores_do_not_depend_on_threads_or_the_order_of_images(trained):
    dataset = build_dataset("cityscapes", trained[0], "val", instances=True)
    torch.manual_seed(0)
    model = build_model("panoptic_deeplab", num_classes=19, backbone="resnet18")
    randomize(model)
    how = {"world": ALONE, "task": TASKS["panoptic"]}
    one, other = (evaluate(model, dataset, workers=n, **how).plain() for n in (0, 3))
    assert one == other and one["panoptic"]["All"]["n"] > 10
    image = dataset[0]["image"]
    predictor = Predictor(model, device=ALONE.device, task=how["task"], classes=CITYSCAPES)
    small = predictor.predict(image, size=(32, 64))
    assert small.train_ids.shape == small.segments.numbers.shape == (32, 64)
    truth = of_instances(dataset[0]["instance"], CITYSCAPES)
    perfect = panoptic.Prediction(dataset[0]["label"], truth)
    counts = panoptic.count(dataset[0], perfect, CITYSCAPES)
    assert counts.segments.quality[:, 2:].sum() == 0
