"""predict.py and report.py as users run them, on files good and bad."""

import re
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import randomize, run, tiny, write_cityscapes
from test_evaluate import ALONE
from torchvision.models.segmentation import deeplabv3_resnet50

from benchmarks.measure import extra_mib
from datasets import build_dataset
from evaluation.bootstrap import ImageCounts
from evaluation.evaluate import evaluate
from evaluation.inference import Predictor, load_model
from evaluation.submission import SERVERS, check_submission
from evaluation.visualize import legend, panel_size, panels, with_legend
from model import build_model
from train import train
from utils.checkpoint import save_checkpoint
from utils.errors import UserError
from utils.images import read_image
from utils.labels import CAMVID, CITYSCAPES


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
    told = {line.split(":")[0] for line in done.stderr.splitlines()}
    assert {"skipped", "error"} <= told
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


def test_the_test_split_becomes_a_checked_archive(trained, tmp_path):
    root = write_cityscapes(tmp_path / "data", val=2)
    shutil.copytree(root / "leftImg8bit" / "val", root / "leftImg8bit" / "test")
    output = tmp_path / "sent"
    done = run("predict.py", "--split", "test", *trained, "--data_root", root, "--output", output)
    assert done.returncode == 0, done.stderr
    dataset = build_dataset("cityscapes", root, "test")
    archive = tmp_path / "sent.zip"
    with zipfile.ZipFile(archive) as opened:
        assert sorted(opened.namelist()) == [f"{x}_pred_label_img.png" for x in dataset.names]
    assert "2 images, the server expects 1525" in done.stdout
    content = archive.read_bytes()
    for fault in ("missing", "size", "ids", "extra"):
        archive.write_bytes(content)
        change_archive(archive, fault)
        with pytest.raises(UserError, match=r"Predict again"):
            check_submission(archive, dataset, SERVERS["cityscapes"])


def change_archive(path: Path, fault: str) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    first = next(iter(members))
    wrong = {"size": np.full((32, 128), 7, np.uint8), "ids": np.full((64, 128), 18, np.uint8)}
    if fault == "missing":
        del members[first]
    elif fault == "extra":
        members["notes.png"] = members[first]
    else:
        members[first] = cv2.imencode(".png", wrong[fault])[1].tobytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_clip(path: Path, frames: int, size=(96, 64)) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 12.0, size)
    for number in range(frames):
        writer.write(np.full((size[1], size[0], 3), 40 + 20 * number, np.uint8))
    writer.release()


def frames_of(path: Path) -> list[np.ndarray]:
    video = cv2.VideoCapture(str(path))
    assert round(video.get(cv2.CAP_PROP_FPS)) in (12, 17)
    frames = []
    while (frame := video.read())[0]:
        frames.append(frame[1])
    return frames


def test_a_video_becomes_a_video_of_four_pictures(trained, tmp_path):
    write_clip(tmp_path / "clip.mp4", frames=9)
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
    assert not list((tmp_path / "w").iterdir())
    (folder / "wide.png").unlink()
    done = run("predict.py", folder, *trained, "--output", tmp_path / "p", "--video", "false")
    assert done.returncode == 0 and len(list((tmp_path / "p" / "labels").iterdir())) == 3


def test_mistakes_are_one_line(trained, picture, tmp_path):
    shutil.copy(picture, tmp_path / "a.png")
    shutil.copy(picture, tmp_path / "a.jpg")
    (tmp_path / "nothing").mkdir()
    for arguments, words in (
        ([], "Give either a SOURCE or a --split"),
        (["a.png", "--split", "val"], "Give either a SOURCE or a --split"),
        (["missing.png"], "missing.png: does not exist"),
        (["7"], "camera 7: cannot be opened"),
        (["nothing"], "no PNG, JPEG or video"),
        (["a.*"], "would be written as a.jpg is"),
        ([".", "--output", "out"], "in the folder of the images"),
        (["a.png", "--fps", "0"], "--fps must be above 0"),
        (["a.png", "--output", "a.jpg"], "cannot be created"),
    ):
        done = run("predict.py", *arguments, *trained, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr, (arguments, done.stderr)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in done.stderr


def test_a_network_trained_at_stride_16_predicts_at_8_as_torchvision_s(tmp_path):
    """torchvision's has stride 8 and rates 12, 24, 36: those of 16 doubled (section 4.1)."""
    network = {"name": "deeplabv3", "num_classes": 19, "backbone": "resnet50", "output_stride": 16}
    model = build_model(**network).eval()
    randomize(model)
    path = save_checkpoint(
        tmp_path,
        {"step": 1, "network": network, "model": model.state_dict(), "config": {}, "classes": []},
    )
    reference = deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=19, aux_loss=False
    ).eval()
    reference.load_state_dict(model.state_dict())
    found = load_model(path, output_stride=8)[0]
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = reference.classifier(reference.backbone(images)["out"])
        logits = found(images)["out"]
        assert logits.shape[2:] == (8, 12)
        assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
        coarse = load_model(path)[0](images)["out"]
    assert coarse.shape[2:] == (4, 6)


def test_predicting_a_whole_image_takes_the_memory_of_the_network_alone():
    model = build_model("deeplabv3", num_classes=19, output_stride=16)
    predictor = Predictor(model, device=torch.device("cpu"))
    image = np.random.default_rng(0).integers(0, 256, (512, 1024, 3), np.uint8)
    inputs = torch.zeros(1, 3, 512, 1024).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward() -> None:
        predictor.model(inputs)

    for work in (forward, lambda: predictor.labels(image)):
        work()
    alone, whole = extra_mib(forward), extra_mib(lambda: predictor.labels(image))
    assert alone > 20
    assert whole <= 1.3 * alone, (whole, alone)


def test_image_counts_give_the_score_s_miou(cityscapes_root):
    dataset = build_dataset("cityscapes", cityscapes_root, "val")
    found = []
    model = build_model("deeplabv3", num_classes=19, output_stride=32)
    scores = evaluate(
        model, dataset, world=ALONE, on_image=lambda name, counts, _: found.append(counts.confusion)
    )
    assert float(ImageCounts.of(found, dataset.classes).miou()) == pytest.approx(scores.miou)


def test_the_report_holds_everything_and_compares(trained, tmp_path):
    output = tmp_path / "report.html"
    options = ["--output", output, "--worst", "2", "--compare", "run"]
    done = run("evaluation/report.py", *trained, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = output.read_text()
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    assert page.count("data:image/jpeg") == 2 + 2 and page.count("data:image/png") == 2
    for words in ("95 % interval", "may be an accident", "The 2 worst images", "Score Average"):
        assert words in page
    assert "minus run: +0.00 % (95 % interval +0.00 to +0.00, p = 1.000)" in done.stdout
    done = run("evaluation/report.py", *trained, "--output", tmp_path)
    assert done.returncode == 2 and "no file in an existing folder" in done.stderr


@pytest.mark.parametrize("classes", [CITYSCAPES, CAMVID])
@pytest.mark.parametrize("size", [(48, 60), (360, 480), (1024, 2048), (900, 400)])
def test_legends_hold_every_class_at_any_size(classes, size):
    image, labels = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    below = with_legend(image, classes)[size[0] :]
    four = panels(image, np.zeros(panel_size(size), np.uint8), classes)
    height, width = panel_size(size)
    assert four.shape == (2 * height, 2 * width, 3) and height % 2 == width % 2 == 0
    for key in (below, four[height:, width:], legend(classes, width=1920)):
        for color in classes.colors:
            assert (key == color).all(-1).any()
    assert labels.shape == size
