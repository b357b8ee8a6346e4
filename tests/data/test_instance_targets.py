"""What a panoptic network learns from a crop: against loops over pixels and instances."""

import cv2
import numpy as np
import pytest
import torch
from helpers import preprocess, write_cityscapes

from datasets import build_dataset
from utils.base.errors import UserError
from utils.data.augment import PLANES, crop_plane, sample_params
from utils.data.batches import Batches, empty_targets
from utils.data.instance_targets import TARGETS, draw_targets
from utils.data.label_table import CITYSCAPES
from utils.data.packed import packed_path
from utils.data.prepare import pack_split

ROAD, VOID, CAR_GROUP, CARAVAN = 7, 4, 26, 29001


def drawn(instances: np.ndarray) -> dict[str, np.ndarray]:
    batch = empty_targets((1, *instances.shape), set(TARGETS) - {"thing"})
    targets = {name: x[0].numpy() for name, x in batch.items()}
    for values in targets.values():
        values.fill(9)  # all of them are overwritten
    draw_targets(instances, CITYSCAPES, **targets)
    return targets


def naive(instances: np.ndarray) -> dict[str, np.ndarray]:
    """The definition: Panoptic-DeepLab, section 3.2."""
    region, heat = np.zeros(instances.shape, np.uint8), np.zeros(instances.shape)
    offset = np.zeros((2, *instances.shape))
    ys, xs = np.indices(instances.shape)
    for number in np.unique(instances):
        mask, label = instances == number, number // 1000 if number >= 1000 else number
        thing = label in (24, 25, 26, 27, 28, 31, 32, 33)
        if label not in CITYSCAPES.ids or (thing and number < 1000):
            continue
        region[mask] = 1 if not thing else 3 if mask.sum() < 4096 else 2
        if thing:
            y, x = ys[mask].mean(), xs[mask].mean()
            offset[:, mask] = y - ys[mask], x - xs[mask]
            squares = (ys - np.rint(y)) ** 2 + (xs - np.rint(x)) ** 2
            near = np.maximum(abs(ys - np.rint(y)), abs(xs - np.rint(x))) <= 25
            heat = np.maximum(heat, np.exp(-squares / 128) * near)
    return {"region": region, "heat": heat, "offset": offset}


def scene(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    instances = np.full((120, 200), ROAD, np.uint16)
    for number in range(12):
        top, left = rng.integers(0, 110), rng.integers(0, 190)
        kind = rng.choice([24000 + number, 26000 + number, 33000, CAR_GROUP, CARAVAN, VOID, 24])
        instances[top : top + rng.integers(2, 90), left : left + rng.integers(2, 120)] = kind
    return instances


@pytest.mark.parametrize("seed", range(8))
def test_targets_are_their_definition(seed):
    found, expected = drawn(scene(seed)), naive(scene(seed))
    assert (found["region"] == expected["region"]).all()
    for name in ("heat", "offset"):
        assert np.abs(found[name] - expected[name]).max() <= 1e-4


def test_a_crop_without_instances_has_none():
    found = drawn(np.full((40, 60), ROAD, np.uint16))
    assert (found["region"] == 1).all() and not found["heat"].any() and not found["offset"].any()
    found = drawn(np.full((40, 60), CAR_GROUP, np.uint16))
    assert not found["region"].any() and not found["heat"].any()


@pytest.fixture
def root(tmp_path):
    root = write_cityscapes(tmp_path / "data")
    preprocess(root)
    return root


def test_batches_hold_the_targets_of_their_crops(root):
    """From the cropped instance ids, mirrored with them."""
    dataset = build_dataset("cityscapes", root, "train", instances=True)
    how = {"crop": (48, 80), "scale": (0.7, 1.6), "flip": True}
    more = {"batch_size": 4, "workers": 2, "device": torch.device("cpu"), "seed": 3}
    batches = Batches(dataset, planes=("label", *TARGETS), **how, **more)
    batch = next(batches.run(0, 1))
    for place, key in enumerate(batch.keys):
        sample, size = dataset[key[1]], dataset[key[1]]["label"].shape
        params = sample_params(3, *key, size=size, **how)
        instances = np.empty((48, 80), np.uint16)
        crop_plane(sample["instance"], params, instances, PLANES["instance"])
        for name, expected in naive(instances).items():
            assert np.abs(batch.targets[name][place].numpy() - expected).max() <= 1e-4
    assert any((batch.targets["region"] > 1).flatten(1).any(1))
    plain = Batches(build_dataset("cityscapes", root, "train"), **how, **more)
    plain = next(plain.run(0, 1))
    assert torch.equal(plain.images, batch.images)
    assert torch.equal(plain.targets["label"], batch.targets["label"])


def test_packed_with_instances_it_is_the_same(root):
    files = build_dataset("cityscapes", root, "train", packed=False, instances=True)
    how = {"workers": 1, "overwrite": False}
    pack_split(build_dataset("cityscapes", root, "train", packed=False), root, "train", **how)
    without = build_dataset("cityscapes", root, "train", instances=True)
    assert without.source == "image files"  # the packed file has no instance ids
    pack_split(files, root, "train", **how)
    assert build_dataset("cityscapes", root, "train").source.startswith("packed")
    packed = build_dataset("cityscapes", root, "train", instances=True)
    assert packed.source.startswith("packed")
    for index in range(len(files)):
        for plane in ("image", "label", "instance"):
            assert np.array_equal(packed[index][plane], files[index][plane])
    # Instance ids that changed are noticed, folders that were deleted are not needed.
    path = files.files[0].instances
    content = path.read_bytes()
    cv2.imwrite(str(path), np.full((64, 128), 7, np.uint16))
    with pytest.raises(UserError, match=r"train.pack was made.*--instances true"):
        build_dataset("cityscapes", root, "train", instances=True)
    path.write_bytes(content)
    for file in files.files:
        file.instances.unlink()
    assert build_dataset("cityscapes", root, "train", instances=True).source == packed.source
    packed_path(root, "train").unlink()
    with pytest.raises(UserError, match="train has no instance ids"):
        build_dataset("cityscapes", root, "train", instances=True)
