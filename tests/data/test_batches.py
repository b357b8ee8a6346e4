"""The order of samples as a pure function, and batches that follow it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.base.errors import UserError
from utils.base.threads import read_ahead
from utils.data.batches import (
    Batch,
    Batches,
    Stages,
    batch_indices,
    dropout_seed,
    read_all_train_ids,
)
from utils.data.class_uniform import TILE, ClassUniform, centroids
from utils.data.label_table import IGNORE


class Squares:
    """A data set of constant images, each of its own index."""

    def __init__(self, n: int = 7, broken: int | None = None) -> None:
        self.n, self.broken = n, broken
        self.names = [str(index) for index in range(n)]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict:
        if index == self.broken:
            raise UserError(f"{index}.png: damaged. Replace it")
        image = np.full((40, 50, 3), index, np.uint8)
        return {"image": image, "label": image[..., 0], "name": str(index)}


def batches(dataset=None, **changes) -> Batches:
    options = {
        "batch_size": 2, "crop": (16, 16), "scale": (1.0, 1.0), "flip": True, "seed": 0,
        "workers": 0, "device": torch.device("cpu"),
    }  # fmt: skip
    return Batches(dataset or Squares(), **(options | changes))


def same_pixels(one: Batch, other: Batch) -> None:
    assert torch.equal(one.images, other.images)
    assert one.targets.keys() == other.targets.keys()
    for plane, target in one.targets.items():
        assert torch.equal(target, other.targets[plane])


def indices(seed: int, number: int, rank: int, world: int, batch: int, n: int) -> list:
    return batch_indices(seed, number, rank=rank, world_size=world, batch_size=batch, n=n)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    n=st.integers(1, 40), batch=st.integers(1, 9), world=st.integers(1, 4), seed=st.integers(0, 9)
)
def test_each_index_comes_once_per_epoch_whatever_the_world(n, batch, world, seed):
    steps = -(-3 * n // (batch * world))
    stream = []
    for step in range(steps):
        parts = [indices(seed, step, rank, world, batch, n) for rank in range(world)]
        assert all(len(part) == batch for part in parts)
        stream += [key for keys in zip(*parts, strict=True) for key in keys]
    assert stream == [
        key for step in range(steps) for key in indices(seed, step, 0, 1, batch * world, n)
    ]
    for epoch in range(3):
        assert sorted(index for e, index in stream if e == epoch) == list(range(n))


def test_seeds_and_epochs_shuffle_differently():
    def order(seed, epoch):
        return [i for s in range(10) for _, i in indices(seed, 10 * epoch + s, 0, 1, 10, 100)]

    orders = {tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_the_same_from_any_start_with_any_workers(workers):
    expected = list(batches().run(0, 9))
    for start in (0, 4):
        found = list(batches(workers=workers).run(start, 9))
        assert len(found) == 9 - start
        for one, other in zip(found, expected[start:], strict=True):
            assert one.keys == other.keys
            same_pixels(one, other)


def test_a_batch_holds_uint8_crops_of_its_keys():
    for batch in batches(workers=2).run(0, 5):
        assert batch.images.shape == (2, 16, 16, 3) and batch.images.dtype == torch.uint8
        labels = batch.targets["label"]
        assert labels.shape == (2, 16, 16) and labels.dtype == torch.uint8
        for (_, index), label in zip(batch.keys, labels, strict=True):
            assert (label == index).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_the_users_error_in_one_piece(workers):
    with pytest.raises(UserError, match=r"^3\.png: damaged\. Replace it$"):
        list(batches(Squares(broken=3), workers=workers).run(0, 20))


@pytest.mark.parametrize("workers", [0, 2])
def test_read_ahead_keeps_the_order(workers):
    assert list(read_ahead(lambda x: x * x, range(20), workers=workers)) == [
        x * x for x in range(20)
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_on_a_gpu_are_those_on_the_cpu():
    expected = list(batches().run(0, 9))
    found = batches(workers=2, device=torch.device("cuda")).run(0, 9)
    for one, other in zip(found, expected, strict=True):
        torch.cuda._sleep(10**7)  # the main stream is busy while the next batch is copied
        assert one.keys == other.keys and one.images.is_cuda
        assert torch.equal(one.images.cpu(), other.images)
        assert torch.equal(one.targets["label"].cpu(), other.targets["label"])


def test_order_dropout_and_class_uniform_crops_draw_from_their_streams():
    order = np.random.default_rng((1, 7, 3)).permutation(20)
    assert indices(7, 30, 0, 1, 2, 20) == [(3, order[0]), (3, order[1])]
    assert dropout_seed(7, 3, 1) == np.random.SeedSequence((3, 7, 3, 1)).generate_state(1)[0]
    chosen = ClassUniform([place_classes() for _ in range(9)], share=0.5, seed=7)
    for index in range(20):
        rng = np.random.default_rng((5, 7, 3, index))
        assert (chosen.draw(3, index)[1] is None) == (rng.random() >= 0.5)


class Things(Squares):
    """Squares whose pixels also belong to an instance."""

    def __getitem__(self, index: int) -> dict:
        label = np.kron(np.arange(20).reshape(4, 5), np.ones((10, 10))).astype(np.uint8)
        instances = label.astype(np.uint16) * 1000 + index
        return super().__getitem__(index) | {"label": label, "instance": instances}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_holds_the_planes_it_is_asked_for(workers):
    options = {"scale": (0.5, 2.0), "workers": workers, "crop": (32, 64)}
    both = batches(Things(), planes=("label", "instance"), **options)
    for batch, plain in zip(both.run(0, 5), batches(Things(), **options).run(0, 5), strict=True):
        assert list(batch.targets) == ["label", "instance"] and list(plain.targets) == ["label"]
        assert torch.equal(batch.targets["label"], plain.targets["label"])
        instances = batch.targets["instance"].int()
        inside = batch.targets["label"] != IGNORE
        assert batch.targets["instance"].dtype == torch.uint16 and not instances[~inside].any()
        wanted = batch.targets["label"].int() * 1000
        wanted += torch.tensor([index for _, index in batch.keys])[:, None, None]
        assert torch.equal(instances[inside], wanted[inside])
        moved = batch.to(torch.device("cpu"))
        assert moved.keys == batch.keys and len(moved.tensors()) == 3
        same_pixels(moved, batch)


def test_all_train_ids_come_in_order():
    found = list(read_all_train_ids(RareSpot(), workers=2, enabled=False))
    assert len(found) == 10 and [bool((x == 7).any()) for x in found].index(True) == 3


def test_dropout_seeds_differ_between_steps_and_ranks():
    seeds = {dropout_seed(s, step, rank) for s in (0, 1) for step in range(50) for rank in (0, 1)}
    assert len(seeds) == 200


class HalfRoad:
    """Two thirds of every image are of one class, the right third of many."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict:
        label = np.zeros((48, 96), np.uint8)
        label[:, 64:] = 1 + np.arange(32) // 5
        label[:6] = 255
        return {"image": np.zeros((48, 96, 3), np.uint8), "label": label, "name": str(index)}


def test_crops_of_one_class_are_drawn_again():
    shares = []
    for share in (1.0, 0.6):
        found = batches(HalfRoad(), crop=(32, 32), max_class_share=share, batch_size=20)
        labels = next(found.run(0, 1)).targets["label"].numpy().reshape(20, -1)
        counts = np.stack([np.bincount(crop, minlength=256)[:255] for crop in labels])
        shares.append(counts.max(1) / counts.sum(1))
    assert (shares[0] > 0.7).sum() >= 8 and (shares[1] > 0.7).sum() <= 2
    kept = shares[0] < 0.6  # a window that was good at once stays
    assert kept.sum() >= 3 and np.array_equal(shares[0][kept], shares[1][kept])


def test_colours_belong_to_their_sample():
    whole = batches(photometric=True)
    first, second = whole.run(0, 2)
    again = next(batches(photometric=True, workers=2).run(1, 2))
    assert first.colors.shape == (2, 3, 4) and not torch.equal(first.colors[0], first.colors[1])
    assert torch.equal(second.colors, again.colors)
    assert next(batches().run(0, 1)).colors is None


def place_classes(h: int = 200, w: int = 300) -> np.ndarray:
    """Class 0 all over, class 7 in one small spot, a stripe that is ignored."""
    label = np.zeros((h, w), np.uint8)
    label[150:160, 40:56] = 7
    label[:, 280:] = 255
    return label


def test_centroids_lie_in_the_middle_of_each_class_and_tile():
    found = centroids(place_classes())
    assert found[found[:, 0] == 7].tolist() == [[7, 154, 46]]
    assert len(found[found[:, 0] == 0]) == 6 and 255 not in found[:, 0]
    for tile, (_, y, x) in zip(np.ndindex(2, 3), found[found[:, 0] == 0], strict=True):
        assert (y // TILE, x // TILE) == tile


class RareSpot:
    """Ten images of class 0, one of which has a spot of class 7."""

    def __len__(self) -> int:
        return 10

    def train_ids(self, index: int) -> np.ndarray:
        return place_classes() if index == 3 else np.zeros((200, 300), np.uint8)

    def __getitem__(self, index: int) -> dict:
        image = np.full((200, 300, 3), index, np.uint8)
        return {"image": image, "label": self.train_ids(index), "name": str(index)}


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 3), (0.5, 20, 45), (1.0, 55, 80)])
def test_class_uniform_crops_show_rare_classes(share, low, high):
    """With a share of 1, half of 128 crops are cut around either class."""
    dataset = RareSpot()
    chosen = ClassUniform(map(dataset.train_ids, range(10)), share=share, seed=0)
    options = {"crop": (64, 64), "scale": (1.0, 1.0), "batch_size": 128, "class_uniform": chosen}
    batch = next(batches(dataset, **options).run(0, 1))
    shown = (batch.targets["label"] == 7).flatten(1).any(1)
    assert low <= shown.sum() <= high
    assert (batch.images[shown] == 3).all()
    if share == 0:
        plain = next(batches(dataset, **(options | {"class_uniform": None})).run(0, 1))
        same_pixels(batch, plain)


def test_class_uniform_choices_are_a_pure_function():
    labels = [place_classes() for _ in range(5)]
    first, again, other = (ClassUniform(labels, share=0.5, seed=s) for s in (1, 1, 2))
    keys = [(epoch, index) for epoch in range(4) for index in range(5)]
    drawn = [[chosen.draw(*key) for key in keys] for chosen in (first, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    untouched = [
        index
        for (_, index), (image, around) in zip(keys, drawn[0], strict=True)
        if around is None and image == index
    ]
    assert 4 < len(untouched) < 16


def test_a_set_without_any_labelled_pixel_is_drawn_as_it_is():
    nothing = ClassUniform([np.full((40, 40), 255, np.uint8)], share=1.0, seed=0)
    assert nothing.draw(0, 0) == (0, None)


def stages(dataset=None, **changes) -> Stages:
    """Micro-batches 0 to 2 of two small crops, 3 and 4 of three larger ones."""
    small = batches(dataset, flip=False, **changes)
    return Stages([(3, small), (5, replace(small, batch_size=3, crop=(32, 24)))])


def test_stages_have_their_own_sizes_and_one_stream_of_samples():
    parts = [*stages().run(0, 5)]
    assert [part.images.shape[:3] for part in parts] == [(2, 16, 16)] * 3 + [(3, 32, 24)] * 2
    stream = [key for part in parts for key in part.keys]
    assert stream == indices(0, 0, 0, 1, 12, 7)
    assert [stages().images(number) for number in range(6)] == [0, 2, 4, 6, 9, 12]
    for number, part in enumerate(parts):
        assert stages().names(number) == [str(index) for _, index in part.keys]


@pytest.mark.parametrize("start", range(5))
def test_stages_resume_at_every_batch(start):
    parts = [*stages().run(0, 5)]
    again = [*stages().run(start, 5)]
    assert [part.keys for part in again] == [part.keys for part in parts[start:]]
    for one, other in zip(again, parts[start:], strict=True):
        same_pixels(one, other)


def test_stages_of_two_processes_share_the_stream():
    both = [[*stages(rank=rank, world_size=2).run(0, 5)] for rank in (0, 1)]
    stream = [
        key
        for parts in zip(*both, strict=True)
        for keys in zip(*(part.keys for part in parts), strict=True)
        for key in keys
    ]
    assert stream == indices(0, 0, 0, 1, 24, 7)
    assert stages(world_size=2).images(5) == 24
