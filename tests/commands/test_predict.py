"""predict.py and report.py as users run them, on files good and bad."""

import json
import os
import re
import shutil
import zipfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import fails, limit_files, run, tiny, train, write_cityscapes
from PIL import Image

from datasets import build_dataset
from evaluation.inference import Predictor
from model.deeplabv3 import DeepLabV3
from utils.data.image_files import read_ids, read_image
from utils.data.label_table import CITYSCAPES


@pytest.fixture(scope="module")
def trained(cityscapes_root, tmp_path_factory) -> list[str]:
    """Options that name a network of one step, and the folder of runs."""
    logs = tmp_path_factory.mktemp("logs")
    train(tiny(cityscapes_root, logs, steps=1, warmup_steps=0))
    return ["--checkpoint", "run", "--log_root", str(logs), "--device", "cpu"]


@pytest.fixture
def picture(cityscapes_root) -> Path:
    return sorted(cityscapes_root.glob("leftImg8bit/val/*/*.png"))[0]


def test_a_folder_with_faults_is_predicted_but_for_them(trained, picture, tmp_path):
    source, output = tmp_path / "ein ordner", tmp_path / "out"
    (source / "größe").mkdir(parents=True)
    (source / "empty").mkdir()
    shutil.copy(picture, source / "größe" / "straße 1.png")
    shutil.copy(picture, source / "b.PNG")
    (source / "cut.png").write_bytes(picture.read_bytes()[:900])
    (source / "notes.txt").write_text("no image")
    cv2.imwrite(str(source / "deep.png"), np.zeros((64, 128), np.uint16))
    done = run("predict.py", source, *trained, "--output", output, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert {"skipped", "error"} <= {line.split(":")[0] for line in done.stderr.splitlines()}
    for name in ("cut.png", "deep.png", "notes.txt", "empty"):
        assert len(re.findall(rf"(?:skipped|left out): \S* ?\S*/{name}: ", done.stderr)) == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {source}: 2 of 4 files")
    made = sorted(str(path.relative_to(output)) for path in output.rglob("*.png"))
    assert made == [
        "colors/b_color.png", "colors/größe/straße 1_color.png",
        "labels/b_pred_label_img.png", "labels/größe/straße 1_pred_label_img.png",
        "overlays/b_overlayed.png", "overlays/größe/straße 1_overlayed.png",
    ]  # fmt: skip
    labels = cv2.imread(str(output / "labels" / "b_pred_label_img.png"), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (64, 128) and set(np.unique(labels)) <= set(CITYSCAPES.ids.tolist())
    colors = read_image(output / "colors" / "b_color.png")
    assert (colors == CITYSCAPES.draw(CITYSCAPES.id_to_train[labels])).all()


def test_predictions_of_a_split_score_as_its_evaluation(trained, cityscapes_root, tmp_path):
    done = run("predict.py", "--split", "val", *trained, "--output", tmp_path, cwd=Path("/"))
    assert done.returncode == 0, done.stderr
    labels = tmp_path / "labels"
    score = run("evaluation/score.py", "--predictions", labels, "--data_root", cityscapes_root)
    logs = trained[trained.index("--log_root") + 1]
    other = run("evaluation/eval_on_val_for_metrics.py", *trained, "--log_root", logs)
    table = score.stdout[: score.stdout.index("pixel accuracy")]
    assert len(table) > 500 and table in other.stdout


def test_label_ids_without_instance_ids_are_scored(trained, cityscapes_root, tmp_path):
    """All but nIoU is the same, and one line says what is missing."""
    root = shutil.copytree(cityscapes_root, tmp_path / "data")
    for path in root.glob("gtFine/*/*/*instanceIds.png"):
        path.unlink()
    logs = shutil.copytree(trained[trained.index("--log_root") + 1], tmp_path / "logs")
    printed, scores = [], []
    for folder in (cityscapes_root, root):
        options = [*trained, "--log_root", logs, "--data_root", folder, "--overlays", "false"]
        done = run("evaluation/eval_on_val_for_metrics.py", *options)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout + done.stderr)
        scores.append(json.loads((logs / "model_eval_val" / "scores.json").read_text()))
    whole, done = printed
    assert "nIoU" in whole and "official score:" in whole and "left out" not in whole
    assert done.count("nIoU") == done.count("nIoU is left out") == 1 and "official" not in done
    whole, done = scores
    assert whole["iiou"] is not None and done["iiou"] is None and done["miou"] > 0
    others = ("iiou", "category_iiou", "instance_classes", "instance_categories", "data_root")
    assert all(whole[name] == done[name] for name in whole if name not in others)


def test_the_test_split_becomes_a_checked_archive(trained, tmp_path):
    root = write_cityscapes(tmp_path / "data", val=2)
    shutil.copytree(root / "leftImg8bit" / "val", root / "leftImg8bit" / "test")
    output = tmp_path / "sent"
    done = run("predict.py", "--split", "test", *trained, "--data_root", root, "--output", output)
    assert done.returncode == 0, done.stderr
    dataset = build_dataset("cityscapes", root, "test")
    with zipfile.ZipFile(tmp_path / "sent.zip") as archive:
        assert sorted(archive.namelist()) == [f"{x}_pred_label_img.png" for x in dataset.names]
        for name in archive.namelist():
            assert archive.read(name) == (output / "labels" / name).read_bytes()
    assert "2 images, the server expects 1525" in done.stdout
    assert not list(tmp_path.rglob(".tmp-*"))


def test_images_are_written_whole_or_not_at_all(trained, tmp_path):
    """A file may have 3 kB: label ids do, pictures with their legend do not, as on a full disk."""
    source, output = tmp_path / "photos", tmp_path / "out"
    source.mkdir()
    for name in ("a", "b", "c"):
        write_noise(source / f"{name}.png")
    command = ["predict.py", source, *trained, "--output", output, "--workers", "1"]
    earlier = output / "overlays" / "a_overlayed.png"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("earlier")
    fails(
        run(*command, first=partial(limit_files, 3000)), ".png: cannot be written (File too large"
    )
    assert earlier.read_text() == "earlier"
    for path in output.rglob("*_pred_label_img.png"):
        assert read_ids(path, np.uint8).shape == (64, 128)
    assert (output / "labels" / "a_pred_label_img.png").is_file()
    for path in output.rglob("*_color.png"):
        read_image(path)
    assert not list(output.rglob(".tmp-*"))
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in output.rglob("*.png")) == sorted(
        f"{name}_{kind}.png" for name in "abc" for kind in ("color", "overlayed", "pred_label_img")
    )
    assert read_image(earlier).shape[1] >= 128


def write_noise(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)


def test_videos_are_written_whole_or_not_at_all(trained, tmp_path):
    """A file may have 100 kB; OpenCV's writer gives no sign of a disk that takes no more."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 96, 3), np.uint8)
    write_clip(tmp_path / "clip.mp4", noise)
    output = tmp_path / "out"
    output.mkdir()
    (output / "clip.webm").write_text("earlier")
    command = ["predict.py", tmp_path / "clip.mp4", *trained, "--output", output]
    done = run(*command, first=partial(limit_files, 100_000))
    fails(done, "clip.webm: only", "of 8 frames could be written. Free space")
    assert [path.name for path in output.iterdir()] == ["clip.webm"]
    assert (output / "clip.webm").read_text() == "earlier"
    done = run(*command)
    assert done.returncode == 0 and len(frames_of(output / "clip.webm")) == 8, done.stderr
    assert (output / "clip.webm").stat().st_size > 100_000


def test_a_tagged_image_is_predicted_and_scored_alike(trained, cityscapes_root, tmp_path):
    """Upright by its EXIF orientation, as its label is; tests/data/test_image_files.py has all."""
    root, exif = shutil.copytree(cityscapes_root, tmp_path / "data"), Image.Exif()
    exif[0x0112] = 3
    for path in sorted(root.glob("leftImg8bit/val/*/*.png")):
        Image.fromarray(read_image(path)).rotate(180).save(path, exif=exif)
    done = run("predict.py", root / "leftImg8bit/val", *trained, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    logs = shutil.copytree(trained[trained.index("--log_root") + 1], tmp_path / "logs")
    options = [*trained, "--log_root", logs, "--data_root", root, "--overlays", "false"]
    done = run("evaluation/eval_on_val_for_metrics.py", *options)
    assert done.returncode == 0, done.stderr
    predicted = sorted((tmp_path / "out" / "labels").rglob("*.png"))
    scored = sorted((logs / "model_eval_val_for_metrics").iterdir())
    assert len(predicted) == 3
    assert [x.read_bytes() for x in predicted] == [x.read_bytes() for x in scored]


def limit_images() -> None:
    """Images larger than 32x64 need more memory than there is."""
    forward = DeepLabV3.forward

    def in_small_memory(self, images):
        if images[0, 0].numel() > 32 * 64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(self, images)

    DeepLabV3.forward, Predictor.SMALLEST = in_small_memory, 64


def test_too_little_memory_changes_no_score_but_may_change_a_picture(trained, picture, tmp_path):
    """A line that names --crop; predict.py takes windows."""
    evaluate = "evaluation/eval_on_val_for_metrics.py"
    folder = Path(trained[trained.index("--log_root") + 1]) / "run"
    score_it = ["--checkpoint", folder, "--log_root", tmp_path / "logs", "--device", "cpu"]
    for command in (evaluate, "evaluation/report.py"):
        fails(
            run(command, *score_it, first=limit_images),
            "out of memory with an image of 64x128",
            "--crop",
        )
    assert not [path for path in (tmp_path / "logs").iterdir() if not path.name.startswith(".")]
    done = run(evaluate, *score_it, "--crop", "[32,64]", first=limit_images)
    assert done.returncode == 0 and "Score Average" in done.stdout, done.stderr
    done = run("predict.py", picture, *trained, "--output", tmp_path / "out", first=limit_images)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: too little memory for an image of 64x128 at once") == 1
    assert "predicted in windows of 32x64: results differ slightly" in done.stderr
    wanted = run("predict.py", picture, *trained, "--output", tmp_path / "w", "--crop", "[32,64]")
    assert wanted.returncode == 0 and "warning" not in wanted.stderr
    name = f"labels/{picture.stem}_pred_label_img.png"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "w" / name).read_bytes()


def write_clip(path: Path, frames: np.ndarray) -> None:
    """(N,H,W,3) uint8 -> a video of 12 frames a second."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 12.0, frames.shape[2:0:-1])
    for frame in frames:
        writer.write(frame)
    writer.release()


def frames_of(path: Path) -> list[np.ndarray]:
    video = cv2.VideoCapture(str(path))
    assert round(video.get(cv2.CAP_PROP_FPS)) in (12, 17)
    frames = []
    while (frame := video.read())[0]:
        frames.append(frame[1])
    return frames


def test_a_video_becomes_a_video_of_four_pictures(trained, tmp_path):
    grey = 40 + 20 * np.arange(9, dtype=np.uint8)  # brighter and brighter
    write_clip(tmp_path / "clip.mp4", np.broadcast_to(grey[:, None, None, None], (9, 64, 96, 3)))
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:200])
    done = run("predict.py", str(tmp_path / "*.mp4"), *trained, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert "cut.mp4: cannot be opened as a video" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "1 of 2 files" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip.webm"]
    frames = frames_of(tmp_path / "out" / "clip.webm")
    assert len(frames) == 9 and frames[0].shape == (640, 960, 3)
    for number, frame in enumerate(frames):  # in order: the upper left grows brighter
        assert abs(frame[20:300, 20:460].mean() - 40 - 20 * number) < 10
    whole = len(frames)
    options = ["--frames", "4", "--output", tmp_path / "four"]
    done = run("predict.py", tmp_path / "clip.mp4", *trained, *options)
    assert done.returncode == 0 and len(frames_of(tmp_path / "four" / "clip.webm")) == 4 < whole


def set_times(source: Path, path: Path, places: list[int]) -> None:
    """The frames of a video, each at its place in twelfths of a second."""
    options = [cv2.CAP_PROP_FORMAT, -1]  # packets, as they are
    packets = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG, options)
    code, size = int(packets.get(cv2.CAP_PROP_FOURCC)), (96, 64)
    raw = [cv2.VIDEOWRITER_PROP_RAW_VIDEO, 1]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, 12.0, size, raw)
    for place in places:
        writer.set(cv2.VIDEOWRITER_PROP_PTS, place)
        writer.write(packets.read()[1])
    writer.release()


@pytest.mark.parametrize(("ending", "places", "expected"), [
    (".mkv", range(8), range(8)),
    (".webm", (0, 1, 2, 7, 8, 9, 10, 14), (0, 1, 2, 2, 2, 2, 2, 3, 4, 5, 6, 6, 6, 6, 7)),
    (".mkv", (0, 20, 21, 22, 23, 24, 25, 26), (*[0] * 20, *range(1, 8))),
])  # fmt: skip
def test_a_video_keeps_its_timing(trained, tmp_path, ending, places, expected):
    """Frames of a variable rate are repeated, and that is said."""
    made, clip = tmp_path / "made.mkv", tmp_path / f"clip{ending}"
    grey = 40 + 20 * np.arange(8, dtype=np.uint8)
    code, size = cv2.VideoWriter_fourcc(*"VP80"), (96, 64)
    writer = cv2.VideoWriter(str(made), cv2.CAP_FFMPEG, code, 12.0, size)
    for shade in grey:
        writer.write(np.full((64, 96, 3), shade))
    writer.release()
    set_times(made, clip, list(places))
    done = run("predict.py", clip, *trained, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert ("variable frame rate, converted to 12 frames" in done.stdout) == (len(expected) > 8)
    shades = [frame[20:300, 20:460].mean() for frame in frames_of(tmp_path / "out" / "clip.webm")]
    assert np.abs(np.array(shades) - grey[list(expected)]).max() < 10


def test_frames_come_in_the_order_of_their_numbers(trained, tmp_path):
    """frame2 before frame10, in a folder and as a pattern."""
    source = tmp_path / "clip"
    source.mkdir()
    for number in (1, 2, 9, 10, 11, 100):
        shade = np.full((64, 128, 3), 2 * number, np.uint8)
        cv2.imwrite(str(source / f"frame{number}.png"), shade)
    for place in (source, f"{source}/*.png"):
        done = run("predict.py", place, *trained, "--output", tmp_path / "o", "--video", "true")
        assert done.returncode == 0, done.stderr
        video, shades = cv2.VideoCapture(str(tmp_path / "o" / "clip.webm")), []
        while (frame := video.read())[0]:
            shades.append(frame[1][: len(frame[1]) // 2, : frame[1].shape[1] // 2].mean())
        assert len(shades) == 6 and shades == sorted(shades)


def test_demo_video_folders_become_videos(trained, picture, tmp_path):
    folder = tmp_path / "demoVideo" / "stuttgart_00"
    folder.mkdir(parents=True)
    for number in range(3):
        shutil.copy(picture, folder / f"stuttgart_00_000000_{number:06d}_leftImg8bit.png")
    for source, name in ((folder.parent, "stuttgart_00.webm"), (folder, "stuttgart_00.webm")):
        output = tmp_path / f"out of {source.name}"
        done = run("predict.py", source, *trained, "--output", output)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in output.iterdir()] == [name]
        assert len(frames_of(output / name)) == 3
    cv2.imwrite(str(folder / "wide.png"), np.zeros((64, 256, 3), np.uint8))
    done = run("predict.py", folder, *trained, "--output", tmp_path / "w", "--video", "true")
    assert done.returncode == 2 and "frames of 960x480 and 960x240" in done.stderr
    assert not (tmp_path / "w").exists()
    (folder / "wide.png").unlink()
    done = run("predict.py", folder, *trained, "--output", tmp_path / "p", "--video", "false")
    assert done.returncode == 0 and len(list((tmp_path / "p" / "labels").iterdir())) == 3


def test_one_bad_item_does_not_cost_the_rest(trained, picture, tmp_path):
    """Images of two sizes as one video, a name too long for the system, a file in the way."""
    wide, source, output = np.zeros((64, 256, 3), np.uint8), tmp_path / "in", tmp_path / "out"
    for name in ("a/1.png", "a/2.png", "b/1.png", "c/1.png"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, source / name)
    cv2.imwrite(str(source / "a/2.png"), wide)
    write_clip(source / "clip.mp4", np.zeros((3, 64, 96, 3), np.uint8))
    (output / "c.webm").mkdir(parents=True)
    done = run("predict.py", source, *trained, "--output", output, "--video", "true")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(r"left out: \S*/a.webm: frames of 960x480 and 960x240", done.stderr)
    assert re.search(r"left out: \S*/c.webm: cannot be written", done.stderr)
    assert "2 of 5 files could not be predicted, see above" in done.stderr.splitlines()[-1]
    made = sorted(path.name for path in output.iterdir())
    assert made == ["b.webm", "c.webm", "clip.webm"] and (output / "c.webm").is_dir()

    photos, output = tmp_path / "photos", tmp_path / "labels"
    photos.mkdir()
    for name in ("a", "b" * 240, "c", "d"):
        shutil.copy(picture, photos / f"{name}.png")
    (output / "colors" / "c_color.png").mkdir(parents=True)
    done = run("predict.py", photos, *trained, "--output", output)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("left out: ") == 2 and "File name too long" in done.stderr
    assert re.search(r"left out: \S*/c_color.png: cannot be written", done.stderr)
    assert "2 images: " in done.stdout and (output / "overlays" / "d_overlayed.png").is_file()


def test_a_comparison_with_a_bad_checkpoint_costs_no_scoring(trained, tmp_path):
    for bad in ("none", str(tmp_path)):
        done = run("evaluation/report.py", *trained, "--compare", bad)
        fails(done, "no checkpoint")
        assert " images, " not in done.stdout


@pytest.mark.slow
def test_a_comparison_across_classes_is_refused(tmp_path):
    """Two data sets of one's own with images of the same names."""
    for name, classes in (("first", "[road, sky]"), ("second", "[cell, wall]")):
        root = tmp_path / name
        for split in ("train", "val"):
            for kind, shape in (("images", (32, 64, 3)), ("labels", (32, 64))):
                (root / kind / split).mkdir(parents=True)
                pixels = np.random.default_rng(0).integers(0, 2, shape, np.uint8)
                for number in range(2):
                    cv2.imwrite(str(root / kind / split / f"{number}.png"), pixels)
        lines = [f"{kind}: {kind}/{{split}}/{{name}}.png" for kind in ("images", "labels")]
        (root / "dataset.yaml").write_text("\n".join([*lines, f"classes: {classes}"]))
        options = {"dataset": "custom", "class_weights": False, "run_name": name, "steps": 1}
        train(tiny(root, tmp_path / "logs", **options))
    words = ("--checkpoint", "first", "--compare", "second", "--log_root", tmp_path / "logs")
    fails(run("evaluation/report.py", *words), "would be scored on other classes than")


def test_mistakes_are_one_line(trained, picture, tmp_path):
    shutil.copy(picture, tmp_path / "a.png")
    shutil.copy(picture, tmp_path / "a.jpg")
    (tmp_path / "nothing").mkdir()
    for arguments, words in (
        ([], "Give either a SOURCE or a --split"),
        (["a.png", "--split", "val"], "Give either a SOURCE or a --split"),
        (["--split", "val", "--video", "true"], "--video true is for a SOURCE"),
        (["missing.png"], "missing.png: does not exist"),
        ([""], "a SOURCE is empty"),
        (["7"], "camera 7: cannot be opened"),
        (["nothing"], "no PNG, JPEG or video"),
        (["a.*"], "its result would overwrite a.jpg's"),
        ([".", "--output", "out"], "inside the source folder"),
        (["a.png", "--fps", "0"], "--fps must be above 0"),
        (["a.png", "--output", "a.jpg"], "cannot be created"),
    ):
        done = run("predict.py", *arguments, *trained, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr, (arguments, done.stderr)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in done.stderr


def test_a_video_whose_name_is_not_utf8_is_left_out(trained, tmp_path):
    path = Path(os.fsdecode(bytes(tmp_path) + b"/a\xdf.webm"))
    path.write_bytes(b"")
    done = run("predict.py", path, *trained, fork=False)
    assert done.returncode == 2 and "webm: its name is not UTF-8. Rename it" in done.stderr


def loop(folder: Path) -> None:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")


SOURCES = {  # images in a folder, links (place -> target), sources, names that are written
    "several": (["a.png", "b/c.png"], {}, ["a.png", "b/c.png"], ["a", "b/c"]),
    "a folder and an image": (["a.png", "b/c.png"], {}, ["b", "a.png"], ["a", "b/c"]),
    "one twice": (["a.png"], {}, ["a.png", "./a.png", "*.png"], ["a"]),
    "folders that a pattern names": (["d/a.png", "d/e/b.png"], {}, ["d/*"], ["a", "e/b"]),
    "any number of folders": (["d/a.png", "d/e/b.png"], {}, ["d/**/*.PNG"], ["a", "e/b"]),
    "of one name": (["d/a.png", "e/a.png"], {}, ["d", "e"], ["d/a", "e/a"]),
    "brackets": (["a[1].png", "a1.png"], {}, ["a[1].png"], ["a[1]"]),
    "brackets that are none": (["a1.png", "a2.png", "a3.png"], {}, ["a[12].png"], ["a1", "a2"]),
    "a folder with signs": (["a[1] *?#%&+ b/1 2.png"], {}, ["a[1] *?#%&+ b"], ["1 2"]),
    "linked folder": (["far/a.png"], {"d/e": "../far"}, ["d"], ["e/a"]),
    "loop": (["d/a.png"], {"d/e": "."}, ["d"], ["a"]),
    "hidden": (["d/a.png", "d/._a.png", "d/.b/c.png", "d/__MACOSX/a.png"], {}, ["d"], ["a"]),
    "hidden but named": ([".a.png"], {}, [".a.png"], [".a"]),
    "home": (["home/a.png"], {}, ["~/*.png"], ["a"]),
    "longest name": ([f"{'a' * 232}.png"], {}, ["."], ["a" * 232]),
}  # fmt: skip


@pytest.mark.parametrize("case", SOURCES)
def test_images_as_people_name_them(case, trained, picture, tmp_path):
    images, links, sources, names = SOURCES[case]
    for name in images:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, tmp_path / "in" / name)
    for name, target in links.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).symlink_to(target)
    output = tmp_path / "out"
    where = {"cwd": tmp_path / "in", "HOME": str(tmp_path / "in" / "home")}
    done = run("predict.py", *sources, *trained, f"--output={output}", "--pictures=false", **where)
    assert done.returncode == 0 and "skipped" not in done.stderr, done.stderr
    written = (x.relative_to(output / "labels") for x in output.rglob("*.png"))
    assert sorted(x.as_posix() for x in written) == [f"{x}_pred_label_img.png" for x in names]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["d", "--video", "true"], "d/e: its video would overwrite that of d/e.mp4. Rename"),
        (["d/d", "--video", "true"], "d/d/d: its video would overwrite that of "),
        (["c.webm", "--output", "."], "c.webm: would be overwritten. Give another --output"),
        (["loop/a"], "loop/a: "),
        ([f"{'a' * 300}.png"], "does not exist"),
        ([f"{'a' * 240}.png"], "cannot be written (File name too long)"),
        (["e/a.png", "e/a.jpg"], "its result would overwrite a.jpg's"),
    ],
)
def test_nothing_is_overwritten_by_the_same_call(arguments, words, trained, picture, tmp_path):
    for name in ("d/e.mp4", "d/e/1.png", "d/d/1.png", "d/d/d/1.png", "c.webm", "e/a.png", "e/a.jpg",
                 f"{'a' * 240}.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, tmp_path / name)
    (tmp_path / "loop").mkdir()
    loop(tmp_path / "loop")
    options = [*trained, "--output", "out", *arguments]
    done = run("predict.py", *options, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and words in done.stderr
    assert (tmp_path / "c.webm").read_bytes() == picture.read_bytes()


def test_the_report_holds_everything_and_compares(trained, tmp_path):
    output = tmp_path / "report.html"
    options = ["--output", output, "--worst", "2", "--compare", "run"]
    done = run("evaluation/report.py", *trained, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = output.read_text()
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    assert page.count("data:image/jpeg") == 2 + 2 and page.count("data:image/png") == 3
    for words in (
        "Expected calibration error",
        "Objects by size",
        "95 % interval",
        "may be due to chance",
        "The 2 worst images",
        "Score Average",
    ):
        assert words in page
    assert "&quot;step&quot;: 1" in page and "<td>against<td>" in page
    assert "minus run: +0.00 % (95 % interval +0.00 to +0.00, p = 1.000)" in done.stdout
    done = run("evaluation/report.py", *trained, "--output", tmp_path)
    assert done.returncode == 2 and "not a file name in an existing folder" in done.stderr
