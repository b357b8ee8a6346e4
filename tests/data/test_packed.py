"""Packed files: the same samples as from image files; whole, or refused."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import fails, forks, run, tiny, train

import datasets
from datasets import PackedDataset, SegmentationDataset, build_dataset, find_data_set
from utils.base.errors import UserError
from utils.data import packed as packing
from utils.data.batches import Batches
from utils.data.packed import packed_path
from utils.data.prepare import current_class_weights, pack_split, weigh


@pytest.fixture
def root(cityscapes_root, tmp_path):
    return shutil.copytree(cityscapes_root, tmp_path / "tree")


def pack(root: Path, name: str = "cityscapes") -> None:
    for split in ("train", "val"):
        dataset = build_dataset(name, root, split, packed=False)
        pack_split(dataset, root, split, workers=2, overwrite=False)


def write_camvid(root: Path, sizes: list[tuple[int, int]]) -> Path:
    """JPEG and PNG images with index labels; sizes differ from image to image."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        for number, size in enumerate(sizes):
            suffix = "jpg" if number % 2 else "png"
            image = cv2.resize(rng.integers(0, 255, (5, 6, 3), np.uint8), size[::-1])
            cv2.imwrite(str(root / split / f"x{number}.{suffix}"), image)
            label = rng.integers(0, 12, size).astype(np.uint8)
            cv2.imwrite(str(root / f"{split}annot" / f"x{number}.png"), label)
    return root


def same_samples(one, other) -> None:
    assert one.names == other.names and len(one) > 0
    for index in range(len(one)):
        first, second = one[index], other[index]
        assert first.keys() == second.keys()
        for key in first.keys() - {"name"}:
            assert first[key].dtype == second[key].dtype, key
            assert np.array_equal(first[key], second[key]), key
        assert np.array_equal(one.image(index), other.image(index))


def both(name: str, root: Path, split: str):
    return [build_dataset(name, root, split, packed=packed) for packed in (False, True)]


def test_a_packed_split_holds_the_same_samples(root):
    pack(root)
    for split in ("train", "val"):
        files, packed = both("cityscapes", root, split)
        assert isinstance(files, SegmentationDataset) and isinstance(packed, PackedDataset)
        same_samples(files, packed)


def test_images_of_unequal_sizes_pack_and_train(tmp_path):
    root = write_camvid(tmp_path / "camvid", [(40, 60), (33, 71), (64, 64), (20, 90), (48, 48)])
    pack(root, "camvid")
    for split in ("train", "val"):
        same_samples(*both("camvid", root, split))
    dataset = build_dataset("camvid", root, "train", packed=False)
    weigh(dataset, root, workers=2)
    weights = current_class_weights(find_data_set("camvid", root), root)
    assert weights.dtype == np.float32
    labels = np.concatenate([
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED).ravel()
        for path in sorted((root / "trainannot").glob("*.png"))
    ])  # fmt: skip
    share = np.bincount(labels, minlength=12)[:11] / labels.size  # 11 is void
    np.testing.assert_allclose(weights, 1 / np.log(1.02 + share), rtol=1e-6)
    config = tiny(root, tmp_path / "logs", dataset="camvid", steps=2)
    train(config)
    assert json.loads((tmp_path / "logs" / "run" / "results.json").read_text())["step"] == 2


def batches(dataset, workers: int) -> Batches:
    return Batches(
        dataset, batch_size=3, crop=(48, 64), scale=(0.3, 2.0), flip=True, seed=5, workers=workers,
        device=torch.device("cpu"),
    )  # fmt: skip


def test_batches_are_bit_identical_for_any_source_workers_and_start(root):
    pack(root)
    files, packed = both("cityscapes", root, "train")
    expected = list(batches(files, 0).run(0, 8))
    for dataset, workers, start in ((packed, 0, 0), (packed, 1, 3), (packed, 3, 5), (files, 2, 6)):
        found = list(batches(dataset, workers).run(start, 8))
        assert len(found) == 8 - start
        for one, other in zip(found, expected[start:], strict=True):
            assert one.keys == other.keys
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.targets["label"], other.targets["label"])


@pytest.mark.slow
def test_a_run_goes_on_from_the_other_source_with_the_same_bits(root, tmp_path):
    train(tiny(root, tmp_path, run_name="whole"))
    train(tiny(root, tmp_path, run_name="part", eval_every=2))
    last = tmp_path / "part" / "checkpoints"
    for path in [*last.glob("step_00000006*"), last / "last.pth", last / "best.pth"]:
        path.unlink()
    (step4,) = last.glob("step_00000004*")
    pack(root)
    train(tiny(root, tmp_path, run_name="part", eval_every=2, resume=str(step4)))
    whole, part = (
        torch.load(next((tmp_path / n / "checkpoints").glob("step_00000006*")), weights_only=True)
        for n in ("whole", "part")
    )
    assert whole["model"].keys() == part["model"].keys()
    assert all(torch.equal(whole["model"][key], part["model"][key]) for key in whole["model"])


def slow_disk() -> None:
    """Each image takes half a second."""
    read = datasets.read_image

    def read_slowly(path: Path) -> np.ndarray:
        time.sleep(0.5)
        return read(path)

    datasets.read_image = read_slowly


@pytest.mark.slow
def test_waiting_for_image_files_is_told_once_with_what_helps(root, tmp_path):
    """With a slow disk a training waits most of its time."""
    done = train(tiny(root, tmp_path, run_name="files", steps=3), first=slow_disk)
    command = f"preprocess_data.py --dataset cityscapes --data_root {root} --pack true"
    assert done.stderr.count(command) == 1
    pack(root)
    done = train(tiny(root, tmp_path, run_name="packed", steps=3), first=slow_disk)
    assert "--pack true" not in done.stderr and f"packed file {root}" in done.stdout


def test_a_second_run_writes_nothing_and_a_changed_source_is_seen(root, capsys):
    pack(root)
    before = packed_path(root, "train").stat().st_mtime_ns
    pack(root)
    assert "complete already" in capsys.readouterr().out
    assert packed_path(root, "train").stat().st_mtime_ns == before
    label = sorted((root / "meta" / "label_imgs").glob("aachen*"))[1]
    cv2.imwrite(str(label), np.zeros((64, 128), np.uint8))
    with pytest.raises(UserError, match=f"{label.name}: changed.*train.pack.*--pack true"):
        build_dataset("cityscapes", root, "train")
    pack(root)
    same_samples(*both("cityscapes", root, "train"))
    shutil.rmtree(root / "leftImg8bit")
    assert len(build_dataset("cityscapes", root, "train")) == 4


def damage(content: bytes, kind: str) -> bytes:
    flip = {"magic": 3, "length": 9, "header checksum": 13, "header": 40}
    if kind in flip:
        place = flip[kind]
        return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
    return {"cut": content[:-64], "longer": content + bytes(64), "empty": b"", "zip": b"PK"}[kind]


@pytest.mark.parametrize(
    "kind", ["magic", "length", "header checksum", "header", "cut", "longer", "empty", "zip"]
)
def test_a_damaged_file_is_refused_at_opening(root, kind):
    pack(root)
    path = packed_path(root, "train")
    path.write_bytes(damage(path.read_bytes(), kind))
    with pytest.raises(UserError, match=r"train\.pack: .*--pack true"):
        build_dataset("cityscapes", root, "train")


def test_classes_of_another_data_set_are_refused(root):
    pack(root)
    with pytest.raises(UserError, match="other classes"):
        build_dataset("camvid", root, "train")


def test_too_little_disk_is_said_before_a_byte_is_written(root, monkeypatch):
    usage = shutil.disk_usage(root)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"GiB needed, 0\.0 GiB free"):
        pack(root)
    assert not list((root / "packed").iterdir())


class Dying:
    """A file whose process is killed in the middle of a write, after `left` bytes."""

    def __init__(self, file, left: int) -> None:
        self.file, self.left = file, left

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __enter__(self) -> "Dying":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        if self.left < len(content):
            self.file.write(content[: self.left])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= len(content)
        self.file.write(content)


def pack_and_die(root: Path, left: int) -> None:
    """In a process of its own."""

    class DyingPath(type(Path())):
        def open(self, *mode):
            return Dying(Path(self).open(*mode), left)

    part_path = packing.part_path
    packing.part_path = lambda path: DyingPath(part_path(path))
    pack(root)


def test_killed_at_any_byte_and_run_again_gives_the_same_file(root):
    """20 kills at random bytes; half of the time what is left is itself gone on with and killed."""
    pack(root)
    path, rng = packed_path(root, "train"), np.random.default_rng(0)
    part, expected = packing.part_path(path), path.read_bytes()
    kills, sizes = 0, set()
    while kills < 20:
        path.unlink(missing_ok=True)
        left = int(rng.integers(len(expected)))
        victim = forks.Process(target=pack_and_die, args=(root, left))
        victim.start()
        victim.join(60)
        if victim.exitcode == -signal.SIGKILL:
            kills += 1
            assert not path.exists()
            sizes.add(part.stat().st_size)
            if rng.random() < 0.5:
                continue
            pack(root)
        assert path.read_bytes() == expected
        assert not part.exists()
    pack(root)
    assert path.read_bytes() == expected and len(sizes) > 10


def test_the_command_packs_checks_and_names_faults(root):
    data = ["--data_root", root]
    done = run("utils/preprocess_data.py", *data, "--pack", "true")
    assert done.returncode == 0 and "GiB free" in done.stdout, done.stderr
    done = run("utils/preprocess_data.py", "--dataset", "synthetic", *data, "--check", "true")
    assert done.returncode == 0 and "27 files, no fault" in done.stdout, done.stdout + done.stderr
    path = packed_path(root, "train")
    whole = path.read_bytes()
    content = bytearray(whole)
    content[-5000] ^= 1
    path.write_bytes(content)
    done = run("utils/preprocess_data.py", *data, "--check", "true")
    assert done.returncode == 2
    assert f"{path}: image aachen_000003_000019 is damaged" in done.stdout
    assert "4 train images, cityscapes has 2975: 2971 missing" in done.stdout
    assert "3 val images, cityscapes has 500: 497 missing" in done.stdout
    fails(done, "3 faults")
    again = run("utils/preprocess_data.py", *data, "--pack", "true", "--overwrite", "true")
    assert again.returncode == 0 and path.read_bytes() == whole
