"""One training sample: this project's two sources against five peers and two limits, in one run.

    python benchmarks/bench_loader.py [DATA_ROOT] [ROUNDS]

Random scale 0.5 to 2, crop, mirror, from 1024x2048 files; no photometric distortion on any side.
Peers deliver what their users get: floats where they normalise on the CPU, else uint8. Process CPU
time of one thread, medians over interleaved rounds over the same images. The raw cache, a peer too,
has whole images in an uncompressed file, scaled, then cropped, uint8 out as ours. Images are as
drawn (more noise and a faster encoder than camera files have), and copies that are smoothed and
encoded by Pillow, so that they have the size of Cityscapes' own, 2.1 MiB. Then, in wall time:
threads against memcpy with threads, and first (cold) reads against second (warm) ones.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import albumentations
import cv2
import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import functional as F1
from torchvision.transforms import v2
from tqdm import tqdm

from benchmarks.measure import median_seconds, pack_into
from datasets import PackedDataset, SegmentationDataset, build_dataset
from utils.errors import run_command
from utils.files import REPOSITORY
from utils.labels import IGNORE
from utils.listing import Files
from utils.loader import Batches
from utils.packing import PackedFile
from utils.transforms import IMAGENET_MEAN, IMAGENET_STD

SCALE = (0.5, 2.0)
MEAN, STD = (tuple(value / 255 for value in values) for values in (IMAGENET_MEAN, IMAGENET_STD))
Crop = tuple[int, int]
Peer = Callable[[Files, Crop, np.random.Generator], object]


def torchvision_v1(files: Files, crop: Crop, rng: np.random.Generator) -> object:
    """As torchvision's reference training does it: Pillow images, functional transforms."""
    image, label = Image.open(files.image).convert("RGB"), Image.open(files.label)
    factor = rng.uniform(*SCALE)
    size = [round(image.height * factor), round(image.width * factor)]
    image = F1.resize(image, size)
    label = F1.resize(label, size, interpolation=F1.InterpolationMode.NEAREST)
    if rng.random() < 0.5:
        image, label = F1.hflip(image), F1.hflip(label)
    padding = [0, 0, max(0, crop[1] - size[1]), max(0, crop[0] - size[0])]
    image, label = F1.pad(image, padding, 0), F1.pad(label, padding, IGNORE)
    place = [int(rng.integers(max(1, s - c + 1))) for s, c in zip(size, crop, strict=True)]
    image, label = F1.crop(image, *place, *crop), F1.crop(label, *place, *crop)
    image = F1.normalize(F1.convert_image_dtype(F1.pil_to_tensor(image)), MEAN, STD)
    return image, torch.as_tensor(np.array(label), dtype=torch.int64)


def torchvision_v2(files: Files, crop: Crop, _rng: np.random.Generator) -> object:
    """torchvision's own decoder and transforms.v2."""
    read = torchvision.io.decode_image
    image = tv_tensors.Image(read(str(files.image)))
    label = tv_tensors.Mask(read(str(files.label)))
    transform = v2.Compose([
        v2.ScaleJitter((1024, 2048), SCALE, antialias=True),
        v2.RandomCrop(crop, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}),
        v2.RandomHorizontalFlip(),
        v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
        v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    return transform(image, label)


def albumentations_2(files: Files, crop: Crop, _rng: np.random.Generator) -> object:
    image = cv2.cvtColor(cv2.imread(str(files.image)), cv2.COLOR_BGR2RGB)
    label = cv2.imread(str(files.label), cv2.IMREAD_UNCHANGED)
    return albumentations_transform(crop)(image=image, mask=label)


@cache
def albumentations_transform(crop: Crop) -> albumentations.Compose:
    return albumentations.Compose([
        albumentations.RandomScale((SCALE[0] - 1, SCALE[1] - 1), p=1),
        albumentations.PadIfNeeded(*crop, border_mode=0, fill=0, fill_mask=IGNORE),
        albumentations.RandomCrop(*crop),
        albumentations.HorizontalFlip(),
        albumentations.Normalize(MEAN, STD),
    ])  # fmt: skip


def random_window(label: np.ndarray, crop: Crop, rng: np.random.Generator) -> tuple:
    starts = [int(rng.integers(max(1, s - c + 1))) for s, c in zip(label.shape, crop, strict=True)]
    return tuple(slice(p, p + c) for p, c in zip(starts, crop, strict=True))


def scale_then_crop(
    image: np.ndarray, label: np.ndarray, crop: Crop, rng: np.random.Generator, tries: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Whole image scaled in OpenCV; the first of `tries` crops with at most 75 % of one class."""
    factor = rng.uniform(*SCALE)
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    for left_over in reversed(range(tries)):
        window = random_window(label, crop, rng)
        if not left_over:
            break
        counts = cv2.calcHist([label[window]], [0], None, [256], [0, 256])[:255]
        if counts.max() < 0.75 * max(1, counts.sum()):
            break
    image, label = image[window], label[window]
    if rng.random() < 0.5:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    below, right = crop[0] - label.shape[0], crop[1] - label.shape[1]
    if below or right:
        border = (0, below, 0, right, cv2.BORDER_CONSTANT)
        image = cv2.copyMakeBorder(image, *border, value=0)
        label = cv2.copyMakeBorder(label, *border, value=IGNORE)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


def mmsegmentation_like(files: Files, crop: Crop, rng: np.random.Generator) -> object:
    """OpenCV, uint8 out, CHW: mmsegmentation 1.x normalises on the device."""
    image, label = cv2.imread(str(files.image)), cv2.imread(str(files.label), -1)
    image, label = scale_then_crop(image, label, crop, rng, tries=10)
    return np.ascontiguousarray(image.transpose(2, 0, 1)), label.astype(np.int64)


def fregu856_like(files: Files, crop: Crop, rng: np.random.Generator) -> object:
    """fregu856/deeplabv3's steps at full resolution: nearest scaling, floats on the CPU."""
    image = cv2.imread(str(files.image), -1)
    label = cv2.imread(str(files.label), -1)
    if rng.random() < 0.5:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    factor = rng.uniform(*SCALE)
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    image, label = (cv2.resize(x, size, interpolation=cv2.INTER_NEAREST) for x in (image, label))
    window = random_window(label, crop, rng)
    image, label = (image[window] / 255.0 - MEAN) / STD, label[window]
    image = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
    return image, torch.from_numpy(label.astype(np.int64))


PEERS: dict[str, Peer] = {
    "PIL + torchvision v1": torchvision_v1,
    "torchvision decode_image + transforms.v2": torchvision_v2,
    "albumentations": albumentations_2,
    "mmsegmentation-like, OpenCV": mmsegmentation_like,
    "fregu856-like at full resolution": fregu856_like,
}


def camera_like(dataset: SegmentationDataset, folder: Path) -> SegmentationDataset:
    """The data set with files of Cityscapes' size."""
    copies = []
    for files in tqdm(dataset.files, "encode", leave=False):
        label, image = folder / f"{files.name}_label.png", folder / f"{files.name}.png"
        pixels = cv2.GaussianBlur(cv2.imread(str(files.image)), (0, 0), 0.75)
        Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).save(image)
        Image.open(files.label).save(label)
        copies.append(Files(files.name, image, label))
    return SegmentationDataset(copies, dataset.classes, label_lut=None)


def batches(dataset: object, crop: Crop, **changes: object) -> Batches:
    options = {
        "batch_size": 8, "crop": crop, "scale": SCALE, "flip": True, "seed": 0, "workers": 0,
        "device": torch.device("cpu"),
    }  # fmt: skip
    return Batches(dataset, **(options | changes))


def per_sample(
    dataset: SegmentationDataset, packed: PackedDataset, crop: Crop, rounds: int
) -> None:
    """Print the median CPU time of every side."""
    mib = statistics.mean(files.image.stat().st_size for files in dataset.files) / 2**20
    print(f"\n{len(dataset)} images, {mib:.2f} MiB each, {rounds} rounds")
    files, rng = dataset.files, np.random.default_rng(0)
    raw = [(packed[i]["image"], packed[i]["label"]) for i in range(len(files))]
    from_png, from_pack = batches(dataset, crop), batches(packed, crop)
    places = {source: source.new_batch(0) for source in (from_png, from_pack)}
    target = np.empty((8, crop[0] * crop[1] * 4), np.uint8)
    source = np.random.default_rng(0).integers(0, 255, (16, target.shape[1]), np.uint8)

    def ours(loader: Batches, number: int) -> None:
        batch, place = places[loader][number % 8]
        batch.keys[place] = (number // len(files), number % len(files))
        loader.fill((batch, place))

    def raw_cache(number: int) -> object:
        image, label = (np.array(plane) for plane in raw[number % len(files)])
        return scale_then_crop(image, label, crop, rng)

    sides: dict[str, Callable[[int], object]] = {
        name: lambda number, peer=peer: peer(files[number % len(files)], crop, rng)
        for name, peer in PEERS.items()
    }
    sides["raw cache, scale-then-crop"] = raw_cache
    sides["ours, PNG files"] = partial(ours, from_png)
    sides["ours, packed"] = partial(ours, from_pack)
    sides["memcpy of the crop"] = lambda n: np.copyto(target[n % 8], source[n % 16])
    times = median_seconds(sides, rounds, warm_up=3)
    best = min(times[name] for name in PEERS)
    print(f"{f'crop {crop[0]}x{crop[1]}':<42} {'ms':>7} {'packed is':>12} {'PNG is':>10}")
    for name, value in times.items():
        ratios = [value / times[f"ours, {kind}"] for kind in ("packed", "PNG files")]
        print(f"{name:<42} {1e3 * value:7.2f} {ratios[0]:10.1f} x {ratios[1]:8.2f} x")
    print(f"packed against the best PNG peer {best / times['ours, packed']:.1f} x")


def threads(packed: PackedDataset, crop: Crop, rounds: int) -> None:
    """Speed-up from one to two threads: packed batches, and memcpy of as many bytes."""
    target = np.empty((8, crop[0] * crop[1] * 4), np.uint8)
    source = np.random.default_rng(0).integers(0, 255, (64, target.shape[1]), np.uint8)

    def copy(count: int) -> None:
        with ThreadPoolExecutor(count) as pool:
            for _ in pool.map(lambda n: np.copyto(target[n % 8], source[n % 64]), range(4000)):
                pass

    def load(count: int) -> None:
        for _ in batches(packed, crop, workers=count).run(0, 50):
            pass

    print(f"\n{'two threads, crop ' + str(crop):<30} one        two    speed-up")
    for name, side in {"packed": load, "memcpy": copy}.items():
        wall: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for count in (1, 2):
                begin = time.perf_counter()
                side(count)
                wall[count - 1].append(time.perf_counter() - begin)
        one, two = map(statistics.median, wall)
        print(f"{name:<24} {one:8.2f} s {two:8.2f} s {one / two:8.2f} x")


def forget(path: Path) -> None:
    """Take a file out of the system's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def cold_and_warm(dataset: SegmentationDataset, packed: PackedDataset, crop: Crop) -> None:
    """Wall time of a first pass over all images, files not in memory, and of a second one."""
    print(f"\n{'wall ms per sample, one thread':<34} cold     warm")
    for name, source in (("ours, PNG files", dataset), ("ours, packed", packed)):
        loader, times = batches(source, crop, batch_size=1), []
        for _ in range(2):
            begin = time.perf_counter()
            for _ in loader.run(0, len(dataset)):
                pass
            times.append((time.perf_counter() - begin) / len(dataset))
        print(f"{name:<30} {1e3 * times[0]:8.2f} {1e3 * times[1]:8.2f}")


def main() -> None:
    given = sys.argv[1:]
    root = Path(given[0]) if given else REPOSITORY / "data" / "synthetic"
    rounds = int(given[1]) if given[1:] else 64
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    dataset = build_dataset("synthetic", root, "train", packed=False)
    packages = ("torchvision", "albumentations", "opencv-python-headless", "pillow", "numpy")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    print(f"{os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(dir=root) as folder:
        camera = camera_like(dataset, Path(folder))
        packed = pack_into(Path(folder), camera)
        per_sample(camera, packed, (768, 768), rounds)
        per_sample(camera, packed, (512, 1024), rounds)
        per_sample(dataset, packed, (768, 768), rounds)
        threads(packed, (768, 768), 9)
        del packed  # the pages of an open mapping would stay in memory
        for path in Path(folder).iterdir():
            forget(path)
        again = PackedFile(Path(folder) / "set.pack", dataset.classes)
        cold_and_warm(camera, PackedDataset(again, dataset.classes), (768, 768))


if __name__ == "__main__":
    run_command(main)
