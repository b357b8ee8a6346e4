"""Time a training sample: this project's two sources, four peers and memcpy, in one run.

    python benchmarks/bench_loader.py [--root SYNTHETIC_SET] [--crops 768x768 512x1024]

Random scale 0.5 to 2, crop and mirror, from 1024x2048 files. Peers return what their users get:
floats if they normalise on the CPU, else uint8. Measures process CPU time of one thread over the
images of the data set, which are smoothed and saved by Pillow to match Cityscapes' file sizes.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.io import decode_image
from torchvision.transforms import v2

from benchmarks import measure
from benchmarks.render import Rows, table, times
from datasets import SegmentationDataset, build_dataset
from model.normalize import IMAGENET_MEAN, IMAGENET_STD
from utils.base.errors import run_command
from utils.data.batches import Batches
from utils.data.dataset import Dataset, Files
from utils.data.image_files import read_image
from utils.data.label_table import IGNORE
from utils.data.prepare import pack_split

SCALE = (0.5, 2.0)
MEAN, STD = (tuple(value / 255 for value in values) for values in (IMAGENET_MEAN, IMAGENET_STD))
Crop = tuple[int, int]


def torchvision(crop: Crop, files: Files) -> object:
    """torchvision's decoder and transforms.v2."""
    image, label = (decode_image(str(path)) for path in (files.image, files.train_ids))
    transform = v2.Compose([
        v2.ScaleJitter((1024, 2048), SCALE, antialias=True),
        v2.RandomCrop(crop, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}),
        v2.RandomHorizontalFlip(),
        v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
        v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    return transform(tv_tensors.Image(image), tv_tensors.Mask(label))


def albumentations(module: ModuleType, crop: Crop) -> Callable[[Files], object]:
    transform = module.Compose([
        module.RandomScale((SCALE[0] - 1, SCALE[1] - 1), p=1),
        module.PadIfNeeded(*crop, border_mode=0, fill=0, fill_mask=IGNORE),
        module.RandomCrop(*crop),
        module.HorizontalFlip(),
        module.Normalize(MEAN, STD),
    ])  # fmt: skip
    return lambda files: transform(
        image=cv2.cvtColor(cv2.imread(str(files.image)), cv2.COLOR_BGR2RGB),
        mask=cv2.imread(str(files.train_ids), -1),
    )


def mmsegmentation(crop: Crop, rng: np.random.Generator, files: Files) -> object:
    """OpenCV, uint8 output in CHW, because mmsegmentation 1.x normalises on the device."""
    image, label = cv2.imread(str(files.image)), cv2.imread(str(files.train_ids), -1)
    image, label = scale_then_crop(crop, rng, image, label)
    return np.ascontiguousarray(image.transpose(2, 0, 1)), label.astype(np.int64)


def scale_then_crop(
    crop: Crop, rng: np.random.Generator, image: np.ndarray, label: np.ndarray
) -> list[np.ndarray]:
    """Scale the whole image with OpenCV, then crop and mirror it."""
    factor = rng.uniform(*SCALE)
    size = [round(length * factor) for length in label.shape]
    starts = [rng.integers(max(1, s - c + 1)) for s, c in zip(size, crop, strict=True)]
    window = tuple(slice(s, s + c) for s, c in zip(starts, crop, strict=True))
    border = [0, max(0, crop[0] - size[0]), 0, max(0, crop[1] - size[1]), cv2.BORDER_CONSTANT]
    mirrored, made = rng.random() < 0.5, []
    for pixels, kind, padding in ((image, cv2.INTER_LINEAR, 0), (label, cv2.INTER_NEAREST, IGNORE)):
        cut = cv2.resize(pixels, size[::-1], interpolation=kind)[window]
        cut = cv2.flip(cut, 1) if mirrored else cut
        cut = cv2.copyMakeBorder(cut, *border, value=padding) if any(border[:4]) else cut
        made.append(np.ascontiguousarray(cut))
    return made


def ours(dataset: Dataset, crop: Crop) -> Callable[[int], object]:
    options = {"crop": crop, "scale": SCALE, "flip": True, "seed": 0, "workers": 0}
    samples = Batches(dataset, batch_size=1, **options, device=measure.CPU).run(0, 1 << 30)
    return lambda _: next(samples)


def per_sample(dataset: SegmentationDataset, packed: Dataset, crop: Crop, rounds: int) -> Rows:
    """Table with the median CPU time of every side."""
    files, images = dataset.files, len(dataset)
    raw = [(packed[index]["image"], packed[index]["label"]) for index in range(images)]
    scaled = partial(scale_then_crop, crop, np.random.default_rng(0))
    peers: dict[str, Callable[[Files], object]] = {
        "torchvision decode_image + transforms.v2": partial(torchvision, crop),
        "OpenCV, as in mmsegmentation": partial(mmsegmentation, crop, np.random.default_rng(0)),
    }
    if module := measure.optional_peer("albumentations"):
        peers["albumentations"] = albumentations(module, crop)
    sides = {name: lambda n, peer=peer: peer(files[n % images]) for name, peer in peers.items()}
    sides["raw cache: uncompressed images"] = lambda n: scaled(*map(np.array, raw[n % images]))
    sides |= {"ours, image files": ours(dataset, crop), "ours, packed": ours(packed, crop)}
    source, target = np.ones((2, 16, crop[0] * crop[1] * 4), np.uint8)
    sides["memcpy of the crop"] = lambda n: np.copyto(target[n % 8], source[n % 16])
    seconds = measure.median_seconds(sides, rounds, warm_up=3)
    mib = sum(x.image.stat().st_size for x in files) / images / 2**20
    what = f"crop {crop[0]}x{crop[1]}, {images} images of {mib:.2f} MiB"
    rows = [[what, "ms per sample", "packed is", "image files are"]]
    for name, value in seconds.items():
        gains = [times(value / seconds[f"ours, {own}"]) for own in ("packed", "image files")]
        rows.append([name, f"{1e3 * value:.2f}", *gains])
    return rows


def main() -> None:
    crops = ("768x768", "512x1024")
    given = measure.options(__doc__, root=measure.SYNTHETIC, crops=crops, rounds=64)
    measure.one_thread()
    dataset = build_dataset("synthetic", given.root, "train", packed=False)
    print(f"{measure.machine(measure.CPU)}, {given.rounds} rounds\n")
    with tempfile.TemporaryDirectory(dir=given.root) as name:
        root = Path(name)
        for files in dataset.files:
            copies = [root / x.relative_to(given.root) for x in (files.image, files.train_ids)]
            for path in copies:
                path.parent.mkdir(parents=True, exist_ok=True)
            pixels = cv2.GaussianBlur(read_image(files.image), (0, 0), 0.75)
            Image.fromarray(pixels).save(copies[0])
            Image.open(files.train_ids).save(copies[1])
        camera = build_dataset("synthetic", root, "train", packed=False)
        pack_split(camera, root, "train", workers=1, overwrite=False)
        packed = build_dataset("synthetic", root, "train")
        for crop in given.crops:
            size = tuple(map(int, crop.split("x")))
            print(table(per_sample(camera, packed, size, given.rounds)))


if __name__ == "__main__":
    run_command(main)
