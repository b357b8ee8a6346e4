"""Training batches in an order that is a pure function of (seed, step), read ahead by threads.

Threads, not worker processes: decoding, scaling and copying release the interpreter lock, and
there is nothing to pickle, no shared memory to run out of and no worker left behind by a kill.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from utils.errors import UserError
from utils.transforms import crop_sample, sample_params

ORDER, DROPOUT = 1, 3  # keep these random streams apart from the augmentation's (2)
READ_AHEAD = 2  # batches
READ_TIMEOUT = 120.0  # seconds until a sample that does not arrive is an error
Key = tuple[int, int]  # (epoch, index)
Item = TypeVar("Item")
Result = TypeVar("Result")


class Dataset(Protocol):
    """What a data set must offer: a length and decoded samples, from any thread."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Batch:
    """N crops on the device, and where they come from."""

    images: torch.Tensor  # (N,H,W,3) uint8 RGB
    labels: torch.Tensor  # (N,H,W) uint8 train ids or 255
    keys: list[Key]


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
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int = 4
) -> Iterator[Result]:
    """Results in the items' order, up to `ahead` of them computed in advance by `workers` threads.

    An error in a thread is raised here; a result that takes too long is a UserError.
    """
    if workers == 0:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="reader")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield wait(pending.popleft())
        while pending:
            yield wait(pending.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def wait(future: Future[Result]) -> Result:
    try:
        return future.result(timeout=READ_TIMEOUT)
    except TimeoutError as error:
        raise UserError(
            f"data set: nothing read for {READ_TIMEOUT:.0f} s. Check the disk or network drive"
        ) from error


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
    ) -> None:
        self.dataset = dataset
        self.crop = crop
        self.augmentation = partial(sample_params, seed, crop=crop, scale=scale, flip=flip)
        self.keys = partial(
            batch_indices, seed, rank=rank, world=world, batch_size=batch_size, n=len(dataset)
        )
        self.batch_size = batch_size
        self.workers = workers
        self.device = device

    def run(self, start: int, stop: int) -> Iterator[Batch]:
        keys = (key for step in range(start, stop) for key in self.keys(step))
        ahead = READ_AHEAD * self.batch_size
        samples = read_ahead(self.load, keys, workers=self.workers, ahead=ahead)
        for step in range(start, stop):
            yield self.assemble(self.keys(step), list(islice(samples, self.batch_size)))

    def load(self, key: Key) -> tuple[np.ndarray, np.ndarray]:
        """One augmented sample: (h,w,3) and (h,w) uint8."""
        sample = self.dataset[key[1]]
        params = self.augmentation(*key, size=sample["image"].shape[:2])
        return crop_sample(sample["image"], sample["label"], params, self.crop)

    def assemble(self, keys: list[Key], samples: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
        images, labels = (torch.from_numpy(np.stack(part)) for part in zip(*samples, strict=True))
        if self.device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
        move = partial(torch.Tensor.to, device=self.device, non_blocking=True)
        return Batch(move(images), move(labels), keys)
