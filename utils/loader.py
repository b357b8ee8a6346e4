"""Training batches in an order that is a pure function of (seed, step), read ahead by threads.

Threads, not worker processes: decoding, scaling and copying release the interpreter lock, and
there is nothing to pickle, no shared memory to run out of and no worker left behind by a kill.
"""

import atexit
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from utils.class_uniform import ClassUniform
from utils.errors import UserError
from utils.progress import progress
from utils.transforms import (
    SampleParams,
    color_matrix,
    crop_sample,
    largest_class_share,
    sample_params,
)

ORDER, DROPOUT = 1, 3  # keep these random streams apart from the augmentation's (2)
READ_AHEAD = 2  # batches
ATTEMPTS = 10  # windows drawn for a crop
GRACE = 2.0  # seconds that threads have to finish what they are doing
READ_TIMEOUT = 120.0  # seconds until a sample that does not arrive is an error
Key = tuple[int, int]  # (epoch, index)
Item = TypeVar("Item")
Result = TypeVar("Result")


class Dataset(Protocol):
    """What a data set must offer: a length, decoded samples and their labels, from any thread."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def label(self, index: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Batch:
    """N crops, and where they come from."""

    images: torch.Tensor  # (N,H,W,3) uint8 RGB
    labels: torch.Tensor  # (N,H,W) uint8 train ids or 255
    keys: list[Key]
    colors: torch.Tensor | None = None  # (N,3,4) float32, see color_matrix


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng((ORDER, seed, epoch)).permutation(n)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """A pure function, so that a resumed run draws the same dropout without stored generators."""
    return int(np.random.SeedSequence((DROPOUT, seed, step, rank)).generate_state(1)[0])


def batch_indices(
    seed: int, step: int, rank: int, world: int, batch_size: int, n: int
) -> list[Key]:
    """The `batch_size` samples of process `rank` in `step`; a pure function.

    Epochs follow each other without a gap, so every index comes once per epoch, no sample is
    dropped and `world` processes together take the samples that one process would.
    """
    first = step * batch_size * world
    places = (divmod(first + i, n) for i in range(rank, batch_size * world, world))
    return [(epoch, int(permutation(seed, epoch, n)[place])) for epoch, place in places]


def read_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    ahead: int = 4,
    describe: Callable[[Item], str] = str,
) -> Iterator[Result]:
    """Results in the items' order, up to `ahead` of them computed in advance by `workers` threads.

    An error in a thread is raised here; a result that takes too long is a UserError with
    describe(item). A thread that hangs in a read does not keep the process from ending.
    """
    if workers == 0:
        yield from map(function, items)
        return
    jobs: SimpleQueue[tuple[Future[Result], Item] | None] = SimpleQueue()
    threads = [Thread(target=work, args=(function, jobs), daemon=True) for _ in range(workers)]
    pending: deque[tuple[Future[Result], Item]] = deque()

    def close() -> None:
        for future, _ in pending:
            future.cancel()
        for _ in threads:
            jobs.put(None)
        deadline = time.monotonic() + GRACE
        for thread in threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    atexit.register(close)  # a daemon that is at work when Python ends takes the process down
    try:
        for thread in threads:
            thread.start()
        for item in items:
            pending.append((Future(), item))
            jobs.put(pending[-1])
            if len(pending) > ahead:
                yield wait(*pending.popleft(), describe)
        while pending:
            yield wait(*pending.popleft(), describe)
    finally:
        close()
        atexit.unregister(close)


def work(
    function: Callable[[Item], Result], jobs: SimpleQueue[tuple[Future[Result], Item] | None]
) -> None:
    """What a thread does: results and errors into their futures, until there is no more."""
    while (job := jobs.get()) is not None:
        future, item = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(item))
            except BaseException as error:
                future.set_exception(error)
        del job, future, item  # or an idle thread would keep an image


def wait(future: Future[Result], item: Item, describe: Callable[[Item], str]) -> Result:
    try:
        return future.result(timeout=READ_TIMEOUT)
    except TimeoutError as error:
        raise UserError(
            f"{describe(item)}: no answer for {READ_TIMEOUT:.0f} s. Check the disk or network drive"
        ) from error


def read_labels(dataset: Dataset, *, workers: int, enabled: bool = True) -> Iterator[np.ndarray]:
    """All labels, (H,W) uint8 train ids each, in order; UserError names the first faulty one."""
    with progress(len(dataset), unit="image", label="labels", enabled=enabled) as bar:
        for label in read_ahead(dataset.label, range(len(dataset)), workers=workers):
            bar.update()
            yield label


class Batches:
    """`batches.run(start, stop)` yields the batches of steps start..stop-1, from any step."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        crop: tuple[int, int],
        scale: tuple[float, float],
        flip: bool,
        seed: int,
        workers: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        photometric: bool = False,
        max_class_share: float = 1.0,
        class_uniform: ClassUniform | None = None,
    ) -> None:
        self.dataset = dataset
        self.crop = crop
        self.augmentation = partial(sample_params, seed, crop=crop, scale=scale, flip=flip)
        self.keys = partial(
            batch_indices, seed, rank=rank, world=world, batch_size=batch_size, n=len(dataset)
        )
        self.colors = partial(color_matrix, seed) if photometric else None
        self.max_class_share = max_class_share
        self.class_uniform = class_uniform
        self.batch_size = batch_size
        self.workers = workers
        self.device = device

    def run(self, start: int, stop: int) -> Iterator[Batch]:
        steps = range(start, stop)
        places = (place for step in steps for place in self.new_batch(step))
        ahead = READ_AHEAD * self.batch_size
        filled = read_ahead(
            self.fill, places, workers=self.workers, ahead=ahead, describe=self.describe
        )
        complete = ([*islice(filled, self.batch_size)][-1] for _ in steps)
        return complete if self.device.type == "cpu" else copied_ahead(complete, self.device)

    def names(self, step: int) -> list[str]:
        """Names of the images in the batch of `step`."""
        return [self.dataset.names[self.shown(*key)[0]] for key in self.keys(step)]

    def new_batch(self, step: int) -> list[tuple[Batch, int]]:
        """The places of an empty batch, which the threads fill without a copy in between."""
        pinned = self.device.type == "cuda"
        images, labels = (
            torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
            for shape in ((self.batch_size, *self.crop, 3), (self.batch_size, *self.crop))
        )
        colors = torch.empty(self.batch_size, 3, 4, pin_memory=pinned) if self.colors else None
        batch = Batch(images, labels, self.keys(step), colors)
        return [(batch, place) for place in range(self.batch_size)]

    def describe(self, item: tuple[Batch, int]) -> str:
        batch, place = item
        return f"image {self.dataset.names[self.shown(*batch.keys[place])[0]]}"

    def fill(self, item: tuple[Batch, int]) -> Batch:
        """Read and augment one sample into its place."""
        batch, place = item
        epoch, index = batch.keys[place]
        shown, around = self.shown(epoch, index)
        sample = self.dataset[shown]
        params = self.window(epoch, index, sample["label"], around)
        out = batch.images.numpy()[place], batch.labels.numpy()[place]
        crop_sample(sample["image"], sample["label"], params, *out)
        if batch.colors is not None:
            batch.colors[place] = torch.from_numpy(self.colors(epoch, index))
        return batch

    def shown(self, epoch: int, index: int) -> tuple[int, tuple[int, int] | None]:
        """The image that a crop is cut from and, for a class-uniform one, the pixel it holds."""
        if self.class_uniform is None:
            return index, None
        return self.class_uniform.draw(epoch, index)

    def window(
        self, epoch: int, index: int, label: np.ndarray, around: tuple[int, int] | None
    ) -> SampleParams:
        """The first of ten draws in which no class has more than its share, or the last."""
        for attempt in range(ATTEMPTS):
            params = self.augmentation(
                epoch, index, size=label.shape, attempt=attempt, around=around
            )
            share = self.max_class_share
            if share == 1 or largest_class_share(label, params) <= share:
                break
        return params


def copied_ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on the GPU; the next one is copied on a stream of its own while one is used."""
    side = torch.cuda.Stream(device)
    waiting: deque[tuple[Batch, torch.cuda.Event]] = deque()

    def tensors(batch: Batch) -> list[torch.Tensor]:
        return [x for x in (batch.images, batch.labels, batch.colors) if x is not None]

    def hand_over() -> Batch:
        batch, copied = waiting.popleft()
        main = torch.cuda.current_stream(device)
        main.wait_event(copied)
        for tensor in tensors(batch):
            tensor.record_stream(main)  # or its memory is reused while the main stream reads it
        return batch

    for batch in batches:
        with torch.cuda.stream(side):
            images, labels, *colors = (x.to(device, non_blocking=True) for x in tensors(batch))
            moved = Batch(images, labels, batch.keys, *colors)
            waiting.append((moved, side.record_event()))
        if len(waiting) > 1:
            yield hand_over()
    while waiting:
        yield hand_over()
