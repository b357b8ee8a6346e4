"""The task of networks that detect instances: an oracle, each rule, average precision."""

import math

import numpy as np
import pytest
import torch
from helpers import ALONE
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import masks_to_boxes

from datasets import build_dataset
from evaluation import detected
from evaluation.average_precision import average_precision, found_objects, true_objects
from evaluation.panoptic_files import of_instances
from evaluation.panoptic_quality import Segments
from evaluation.semantic import Counted
from model.panoptic.joining import INSTANCE, join, not_covered, paste, segment
from model.panoptic.mask_rcnn import at_corners
from utils.data.label_table import CITYSCAPES, IGNORE
from utils.data.synthetic import generate

THINGS = torch.from_numpy(CITYSCAPES.is_thing)
SURE = 10.0  # logit
ROAD, SKY, PERSON, CAR, TRUCK = 0, 10, 11, 13, 14


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Synthetic streets, 1024x2048."""
    root = tmp_path_factory.mktemp("scenes")
    generate(root, train=1, val=3, workers=1)
    return build_dataset("synthetic", root, "val", instances=True)


def oracle(sample: dict) -> detected.Prediction:
    """The prediction from true boxes, masks and classes of pixels, as a network would give them."""
    true = of_instances(sample["instance"], CITYSCAPES)
    numbers = np.flatnonzero(CITYSCAPES.is_thing[true.categories] & ~true.crowd)
    masks = torch.from_numpy(true.numbers[None] == (numbers + 1)[:, None, None]).float()
    boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])
    # What training teaches, so training and prediction must agree where a pixel lies.
    shares = project_masks_on_boxes(at_corners(masks), boxes, torch.arange(len(boxes)), 28)
    height, width = masks.shape[1:]
    label = torch.from_numpy(sample["label"]).long()
    logits = F.one_hot(label.clamp(max=19), 20)[..., :19].permute(2, 0, 1) * 2 * SURE - SURE
    found = {
        "boxes": boxes / torch.tensor([width, height] * 2),
        "classes": torch.from_numpy(true.categories[numbers]),
        "scores": torch.linspace(1, 0.9, len(numbers)),
        "masks": SURE * (2 * shares - 1),
    }
    outputs = {"out": logits[None], "detections": [found], "is_thing": THINGS}
    size = (height, width)
    arrays = {name: x.numpy() for name, x in detected.predict(outputs, size).items()}
    return detected.finish(arrays, size, CITYSCAPES)


def test_an_oracle_finds_every_instance_and_class(scenes):
    counts = Counted(CITYSCAPES)
    for index in range(len(scenes)):
        sample = scenes[index]
        prediction = oracle(sample)
        counts.add(index, detected.count(sample, prediction, CITYSCAPES))
        true = of_instances(sample["instance"], CITYSCAPES)
        pair = (prediction.segments, true)
        classes = [np.r_[IGNORE, x.categories][x.numbers] for x in pair]
        known = (classes[1] != IGNORE) & ~np.r_[False, true.crowd][true.numbers]
        assert (classes[0] == classes[1])[known].mean() >= 0.999
    scores = detected.scores(detected.total(counts, CITYSCAPES, ALONE), CITYSCAPES)
    assert scores.panoptic["Things"]["rq"] == 1 and scores.panoptic["All"]["pq"] > 0.95
    assert scores.detection["boxes"]["ap50"] == 1 and scores.detection["masks"]["ap"] > 0.9
    assert scores.plain()["detection"]["boxes"]["ap"] == scores.detection["boxes"]["ap"]
    assert "mask AP" in scores.table() and scores.best == scores.panoptic["All"]["pq"]


def one(logits: dict[int, torch.Tensor | float], *, size=(40, 60)) -> torch.Tensor:
    """(19,h,w) semantic logits; the others are -SURE."""
    full = torch.full((19, *size), -SURE)
    for number, value in logits.items():
        full[number] = value
    return full


def instance(box: list[float], number: int, mask: float = SURE) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor([box], dtype=torch.float32),
        "classes": torch.tensor([number]),
        "masks": torch.full((1, 28, 28), mask),
    }


def both(*found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([x[name] for x in found]) for name in found[0]}


def codes(logits: torch.Tensor, found: dict[str, torch.Tensor]) -> torch.Tensor:
    return segment(logits, **found, things=THINGS, size=tuple(logits.shape[1:]))[0]


NONE = {"boxes": torch.zeros(0, 4), "classes": torch.zeros(0, dtype=torch.int64)}
NONE["masks"] = torch.zeros(0, 28, 28)


def test_things_that_no_instance_explains_are_void():
    logits = one({ROAD: 2.0, CAR: SURE})
    assert (codes(logits, NONE) == 0).all()
    found = codes(logits, instance([10, 10, 30, 30], CAR))
    assert (found[10:30, 10:30] == INSTANCE).all() and (found == 0).sum() == 40 * 60 - 400


def test_joined_logits_are_those_of_the_equations():
    """Section 3.2, with loops over pixels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(19, 12, 16, generator=generator)
    boxes = torch.tensor([[2.3, 1.2, 9.9, 8.4], [5.0, 4.0, 15.5, 11.5]])
    classes, masks = torch.tensor([CAR, PERSON]), torch.randn(2, 28, 28, generator=generator)
    found = join(logits, boxes, classes, masks, THINGS)
    assert found.shape == (11 + 2 + 1, 12, 16)
    for y, x in np.ndindex(12, 16):
        explained = []
        for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
            inside = left <= x + 0.5 < right and top <= y + 0.5 < bottom
            own = logits[classes[number], y, x].item() if inside else 0.0
            explained.append(own)
            places = ((y + 0.5 - top) / (bottom - top), (x + 0.5 - left) / (right - left))
            row, column = (min(max(28 * share - 0.5, 0), 27) for share in places)
            below, beside = min(int(row) + 1, 27), min(int(column) + 1, 27)
            part = masks[number]
            upper = torch.lerp(part[int(row), int(column)], part[int(row), beside], column % 1)
            lower = torch.lerp(part[below, int(column)], part[below, beside], column % 1)
            mask = torch.lerp(upper, lower, row % 1).item() if inside else 0.0
            assert found[11 + number, y, x].item() == pytest.approx(own + mask, abs=1e-4)
        unknown = logits[THINGS, y, x].max().item() - max(explained)
        assert found[-1, y, x].item() == pytest.approx(unknown, abs=1e-5)
    assert torch.equal(found[:11], logits[~THINGS])


def test_the_head_has_the_right_gradient():
    generator = torch.Generator().manual_seed(0)
    how = {"generator": generator, "dtype": torch.float64}
    logits = torch.randn(19, 4, 5, **how).requires_grad_()
    masks = torch.randn(2, 28, 28, **how).requires_grad_()
    boxes = torch.tensor([[0.2, 0.1, 3.3, 3.4], [1.5, 1.1, 4.9, 4.0]], dtype=torch.float64)
    classes = torch.tensor([CAR, PERSON])
    assert torch.autograd.gradcheck(
        lambda x, y: join(x, boxes, classes, y, THINGS), (logits, masks)
    )


def test_an_instance_that_others_of_its_class_cover_is_left_out():
    first, second = instance([10, 10, 30, 30], CAR), instance([16, 10, 36, 30], CAR)
    assert 14 / 20 > 0.3
    logits = one({ROAD: 0.0, CAR: SURE, TRUCK: SURE})
    assert set(codes(logits, both(first, second)).unique().tolist()) == {0, INSTANCE}
    other = instance([16, 10, 36, 30], TRUCK)
    assert INSTANCE + 1 in codes(logits, both(first, other))
    little = instance([26, 10, 46, 30], CAR)  # a fifth is covered
    assert INSTANCE + 1 in codes(logits, both(first, little))
    empty = instance([10, 10, 30, 30], CAR, mask=-1.0)
    masks = paste(
        both(first, empty)["masks"], both(first, empty)["boxes"], *2 * [torch.arange(40.0)]
    )
    assert not_covered(masks > 0, torch.tensor([CAR, TRUCK])).tolist() == [True, False]


def test_a_thing_between_the_cells_of_the_logits_is_found():
    logits = one({ROAD: 0.0, CAR: SURE}, size=(16, 32))
    found = segment(logits, **instance([45, 50, 51, 90], CAR), things=THINGS, size=(128, 256))[0]
    assert (found[50:90, 45:51] == INSTANCE).all()


def test_an_instance_does_not_reach_beyond_its_box():
    """Where all of stuff is below 0, as void may look."""
    found = codes(one({CAR: -SURE / 2}), instance([10, 10, 30, 30], CAR, mask=2 * SURE))
    inside = torch.zeros(40, 60, dtype=torch.bool)
    inside[10:30, 10:30] = True
    assert torch.equal(found == INSTANCE, inside)


def test_most_pixels_of_an_instance_can_make_it_stuff():
    box = instance([10, 10, 30, 30], CAR, mask=40.0)
    seen_as_road = codes(one({ROAD: SURE, CAR: 0.0}), box)
    assert (seen_as_road == ROAD + 1).all()
    seen_as_truck = codes(one({ROAD: 0.0, CAR: 0.0, TRUCK: SURE}), box)
    assert (seen_as_truck[10:30, 10:30] == INSTANCE).all()
    logits = one({ROAD: 0.0, SKY: 0.0, CAR: -1.0, TRUCK: -1.0})
    logits[ROAD, :, 10:19], logits[SKY, :, 19:25], logits[CAR, :, 25:] = 5, 5, 5
    mixed = codes(logits, box)  # 45 % road, 30 % sky
    assert (mixed[10:30, 10:30] == INSTANCE).all()


def test_small_areas_of_stuff_are_void():
    logits = one({ROAD: SURE}, size=(64, 64))
    logits[ROAD, :10, :10], logits[SKY, :10, :10] = 0, SURE
    found = segment(logits, **NONE, things=THINGS, size=(64, 64))[0].numpy()
    arrays = {"codes": found, "train_ids": found, "classes_of_codes": np.zeros(0, np.int64)}
    arrays |= dict.fromkeys(("boxes", "classes", "scores", "masks"), np.zeros(0))
    segments = detected.finish(arrays, (64, 64), CITYSCAPES).segments
    assert segments.categories.tolist() == [ROAD] and (segments.numbers == 0).sum() == 100


def test_a_low_score_or_a_better_box_at_the_same_place_is_no_segment():
    found = both(
        instance([0.2, 0.2, 0.6, 0.6], CAR),
        instance([0.2, 0.2, 0.6, 0.62], TRUCK),
        instance([0.7, 0.7, 0.9, 0.9], CAR),
    )
    found["scores"] = torch.tensor([0.9, 0.8, 0.59])
    outputs = {"out": one({ROAD: 0.0, CAR: SURE, TRUCK: SURE})[None]}
    outputs |= {"detections": [found], "is_thing": THINGS}
    arrays = {name: x.numpy() for name, x in detected.predict(outputs, (80, 120)).items()}
    prediction = detected.finish(arrays, (80, 120), CITYSCAPES)
    assert prediction.segments.categories.tolist() == [CAR]
    assert len(prediction.detections["scores"]) == 3  # average precision counts all


def test_average_precision_counts_as_coco_does():
    numbers = np.ones((40, 60), np.uint16)
    numbers[5:15, 5:20], numbers[20:35, 30:50], numbers[0:8, 40:60] = 2, 3, 4
    crowd = np.array([False, False, False, True])
    true = true_objects(Segments(numbers, np.array([0, 2, 2, 1]), crowd), np.array([0, 1, 1], bool))
    assert [x["area"] for x in true] == [150, 300, 160] and true[2]["iscrowd"] == 1
    boxes = np.array([[5, 5, 20, 15], [30, 20, 50, 35], [41, 1, 45, 5]], float)
    masks = np.full((3, 28, 28), SURE, np.float32)
    names = {1: "a", 2: "b"}

    def quality(*scores):
        classes = np.array([2, 2, 1])
        found = found_objects(boxes, classes, np.array(scores), masks, (40, 60))
        return average_precision([true, []], [found, []], names)

    perfect = quality(0.9, 0.8, 0.7)  # a box in a crowd is no error
    assert perfect["boxes"]["ap"] == perfect["masks"]["ap75"] == 1
    assert (
        math.isnan(perfect["masks"]["per_class"]["a"]) and perfect["masks"]["per_class"]["b"] == 1
    )
    boxes[1] += 50  # one of two is lost, and one is wrong
    lost = quality(0.9, 0.8, 0.7)
    assert lost["boxes"]["ap50"] == pytest.approx(51 / 101)
    worse = quality(0.8, 0.9, 0.7)  # the wrong one comes first
    assert worse["boxes"]["ap50"] == pytest.approx(51 / 101 / 2)
    nothing = average_precision([true, []], [[], []], names)
    assert nothing["boxes"]["ap"] == 0 and math.isnan(nothing["boxes"]["per_class"]["a"])
