"""Training batches: threads read them ahead, in an order that is a pure function of (seed, number).

Threads, not worker processes: decoding, scaling and copying release the interpreter lock. Threads
need no pickling and no shared memory, and a kill leaves none of them behind.
"""

from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch

from utils.base.progress import progress
from utils.base.threads import read_ahead
from utils.data import augment
from utils.data.augment import PLANES, SampleParams, Stream
from utils.data.class_uniform import ClassUniform
from utils.data.dataset import Dataset
from utils.data.instance_targets import TARGETS, draw_numbers, draw_targets

READ_AHEAD = 2  # batches
ATTEMPTS = 10  # most draws of a crop's window
Key = tuple[int, int]  # (epoch, index)
Pixel = tuple[int, int]  # (y, x)


@dataclass(frozen=True)
class Batch:
    """N crops and their sources."""

    images: torch.Tensor  # (N,H,W,3) uint8 RGB
    # Plane of a sample -> (N,H,W), such as "label", uint8 train ids; those of TARGETS (N,...,H,W).
    targets: dict[str, torch.Tensor]
    keys: list[Key]
    colors: torch.Tensor | None = None  # (N,3,4) float32, see color_matrix

    def tensors(self) -> list[torch.Tensor]:
        return [x for x in (self.images, *self.targets.values(), self.colors) if x is not None]

    def to(self, device: torch.device, *, copy: bool = False) -> "Batch":
        """The batch on `device`; the copy may still be in progress when this returns."""
        how = {"device": device, "non_blocking": True, "copy": copy}
        targets = {k: x.to(**how) for k, x in self.targets.items()}
        colors = None if self.colors is None else self.colors.to(**how)
        return Batch(self.images.to(**how), targets, self.keys, colors)


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng((Stream.ORDER, seed, epoch)).permutation(n)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """A pure function, so that a resumed run draws the same dropout without stored generators."""
    return int(np.random.SeedSequence((Stream.DROPOUT, seed, step, rank)).generate_state(1)[0])


def batch_indices(
    seed: int, number: int, *, rank: int, world_size: int, batch_size: int, n: int, skip: int = 0
) -> list[Key]:
    """The `batch_size` samples of process `rank` in micro-batch `number`, after `skip` samples; a
    pure function.

    A batch may span two epochs, so that every index occurs once per epoch and no sample is dropped.
    `world_size` processes together take the same samples as one process.
    """
    first = skip + number * batch_size * world_size
    places = (divmod(first + i, n) for i in range(rank, batch_size * world_size, world_size))
    return [(epoch, int(permutation(seed, epoch, n)[place])) for epoch, place in places]


def read_all_train_ids(
    dataset: Dataset, *, workers: int, enabled: bool = True
) -> Iterator[np.ndarray]:
    """All labels in order, each (H,W) uint8 train ids; UserError for the first faulty label."""
    labels = read_ahead(dataset.train_ids, range(len(dataset)), workers=workers)
    yield from progress(len(dataset), labels, unit="image", label="labels", enabled=enabled)


def empty_targets(
    shape: tuple[int, int, int], planes: Iterable[str], **how: Any
) -> dict[str, torch.Tensor]:
    """Unfilled targets of N crops; shape: (N,H,W), how: of torch.empty."""
    kinds = {plane: TARGETS.get(plane) or (PLANES[plane].dtype, ()) for plane in planes}
    return {
        plane: torch.empty(shape[0], *more, *shape[1:], dtype=dtype, **how)
        for plane, (dtype, more) in kinds.items()
    }


@dataclass
class Batches:
    """`batches.run(start, stop)` yields micro-batches start..stop-1."""

    dataset: Dataset
    _: KW_ONLY
    batch_size: int
    crop: tuple[int, int]  # height, width
    scale: tuple[float, float]  # smallest and largest
    flip: bool
    seed: int
    workers: int
    device: torch.device
    rank: int = 0
    world_size: int = 1
    planes: tuple[str, ...] = ("label",)  # needed besides the image
    photometric: bool = False
    max_class_share: float = 1.0
    class_uniform: ClassUniform | None = None
    begin: int = 0  # number of the first micro-batch
    skip: int = 0  # samples of all processes before it

    def run(self, start: int, stop: int) -> Iterator[Batch]:
        numbers = range(start, stop)
        places = (place for number in numbers for place in self.new_batch(number))
        ahead = READ_AHEAD * self.batch_size
        filled = read_ahead(
            self.fill, places, workers=self.workers, ahead=ahead, describe=self.describe
        )
        complete = ([*islice(filled, self.batch_size)][-1] for _ in numbers)
        return complete if self.device.type == "cpu" else copied_ahead(complete, self.device)

    def keys(self, number: int) -> list[Key]:
        options = {"rank": self.rank, "world_size": self.world_size, "batch_size": self.batch_size}
        options |= {"n": len(self.dataset), "skip": self.skip}
        return batch_indices(self.seed, number - self.begin, **options)

    def names(self, number: int) -> list[str]:
        """Names of the images in micro-batch `number`."""
        return [self.image_name(key) for key in self.keys(number)]

    def image_name(self, key: Key) -> str:
        return self.dataset.names[self.source(key)[0]]

    def new_batch(self, number: int) -> list[tuple[Batch, int]]:
        """(batch, place) pairs of an empty batch, which the threads fill without another copy."""
        pinned = self.device.type == "cuda"
        shape = (self.batch_size, *self.crop)
        images = torch.empty(*shape, 3, dtype=torch.uint8, pin_memory=pinned)
        targets = empty_targets(shape, self.planes, pin_memory=pinned)
        colors = torch.empty(self.batch_size, 3, 4, pin_memory=pinned) if self.photometric else None
        batch = Batch(images, targets, self.keys(number), colors)
        return [(batch, place) for place in range(self.batch_size)]

    def describe(self, item: tuple[Batch, int]) -> str:
        batch, place = item
        return f"image {self.image_name(batch.keys[place])}"

    def fill(self, item: tuple[Batch, int]) -> Batch:
        """Read and augment one sample, and write it to its place in the batch."""
        batch, place = item
        key = batch.keys[place]
        image, pixel = self.source(key)
        sample = self.dataset[image]
        params = self.window(key, sample["label"], pixel)
        augment.crop_plane(sample["image"], params, batch.images.numpy()[place], PLANES["image"])
        targets = {plane: target.numpy()[place] for plane, target in batch.targets.items()}
        for plane in targets.keys() - TARGETS.keys():
            augment.crop_plane(sample[plane], params, targets[plane], PLANES[plane])
        if drawn := {plane: targets[plane] for plane in targets.keys() & TARGETS.keys()}:
            instances = np.empty(self.crop, np.uint16)
            augment.crop_plane(sample["instance"], params, instances, PLANES["instance"])
            if "thing" in drawn:
                draw_numbers(instances, self.dataset.classes, thing=drawn.pop("thing"))
            if drawn:
                draw_targets(instances, self.dataset.classes, **drawn)
        if batch.colors is not None:
            batch.colors[place] = torch.from_numpy(augment.color_matrix(self.seed, *key))
        return batch

    def source(self, key: Key) -> tuple[int, Pixel | None]:
        """The image of a crop and, for a class-uniform crop, the pixel that it must contain."""
        return (key[1], None) if self.class_uniform is None else self.class_uniform.draw(*key)

    def window(self, key: Key, train_ids: np.ndarray, around: Pixel | None) -> SampleParams:
        """The first of ten draws in which no class exceeds max_class_share, else the last draw."""
        size, share = train_ids.shape, self.max_class_share
        options = {"crop": self.crop, "scale": self.scale, "flip": self.flip, "around": around}
        for attempt in range(ATTEMPTS):
            params = augment.sample_params(self.seed, *key, size=size, attempt=attempt, **options)
            if share == 1 or augment.largest_class_share(train_ids, params) <= share:
                break
        return params


class Stages:
    """The batches of a training's stages as one sequence. The stream of samples has no gap."""

    def __init__(self, parts: list[tuple[int, Batches]]) -> None:
        """parts: of each stage, the micro-batch at which it ends, and its batches."""
        self.parts: list[tuple[int, Batches]] = []
        begin = skip = 0
        for end, batches in parts:
            self.parts.append((end, replace(batches, begin=begin, skip=skip)))
            begin, skip = end, self.images(end)

    def part(self, number: int) -> Batches:
        return next(batches for end, batches in self.parts if number <= end)

    def images(self, number: int) -> int:
        """Samples of all processes before micro-batch `number`."""
        part = self.part(number)
        return part.skip + (number - part.begin) * part.batch_size * part.world_size

    def names(self, number: int) -> list[str]:
        """Names of the images in micro-batch `number`."""
        return self.part(number + 1).names(number)

    def run(self, start: int, stop: int) -> Iterator[Batch]:
        """Micro-batches start..stop-1."""
        for end, part in self.parts:
            if start < end:
                yield from part.run(max(start, part.begin), min(stop, end))


def copied_ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on the GPU; a side stream copies each one while the GPU computes the step before."""
    side = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(side):
            copy = batch.to(device)
        main = torch.cuda.current_stream(device)
        main.wait_stream(side)
        for tensor in copy.tensors():
            tensor.record_stream(main)  # or its memory may be reused too early
        yield copy
