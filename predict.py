"""Predict images, folders, videos, a camera or a data set's split with a trained network.

    python predict.py street.jpg                                  best checkpoint of the newest run
    python predict.py photos/ --checkpoint RUN --output out       all images below a folder
    python predict.py clips/*.mp4 --checkpoint RUN                one video each
    python predict.py leftImg8bit/demoVideo/stuttgart_00          Cityscapes' demo: one video
    python predict.py 0                                           a camera, until Ctrl-C
    python predict.py --split test --checkpoint RUN               for the test server, as an archive

Writes to --output: labels/<name>_pred_label_img.png (the data set's own label ids),
colors/<name>_color.png, overlays/<name>_overlayed.png, and <name>.webm for a video; of a panoptic
network also panoptic.json and panoptic/<name>_panoptic.png, segments in COCO's format. Skips files
that it cannot read or write, reports each on stderr, and then exits with code 2.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

if __name__ == "__main__":  # PYTHONSAFEPATH keeps this folder out of sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np

from datasets import build_dataset, find_data_set
from evaluation.inference import Predictor
from evaluation.panoptic_files import SegmentWriter
from evaluation.submission import write_submission
from evaluation.task import Prediction
from evaluation.trained import PredictionOptions, Trained
from evaluation.video import ENDING, read_video, write_video
from evaluation.visualize import overlay, save_as_ids, with_legend
from utils.base.errors import Faults, UserError, run_command, warn
from utils.base.find import find, listing
from utils.base.lock import hold
from utils.base.parser import check, parse
from utils.base.paths import make_folder, resolve_log_root
from utils.base.progress import progress
from utils.base.threads import read_ahead
from utils.data.image_files import read_image, write_png
from utils.data.label_table import LabelTable

IMAGES = {".png", ".jpg", ".jpeg"}
VIDEOS = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg"}
# Name of an image's results, which may contain folders -> function that reads the image.
Readers = dict[str, Callable[[], np.ndarray]]
# Name of a video's result -> video file, number of a camera, or the images to make it from.
Videos = dict[str, Path | int | Readers]
DEMO_VIDEO = re.compile(r"stuttgart_\d\d_\d{6}_\d{6}_leftImg8bit\.png")


@dataclass(frozen=True)
class PredictConfig(PredictionOptions):
    """Options of predict.py."""

    source: list[str] = field(
        default_factory=list,
        metadata={"nargs": "*", "help": "Images, folders, patterns, videos; or a camera number."},
    )
    split: Literal["train", "val", "test"] | None = None
    """Predict this split of the checkpoint's data set instead of a SOURCE; test also writes the
    archive for the test server of Cityscapes or VOC."""
    output: Path | None = None
    """Folder to write to. Default: predictions/ in --log_root."""
    pictures: bool = True
    """Also write colour maps and overlays, not only label ids."""
    confidence: bool = False
    """Also write confidence/<name>_confidence.png: 255 times the probability of the class."""
    video: bool | None = None
    """Write one video per folder of images, in the order of their names, instead of PNG files.
    Default: only for the demoVideo folders of Cityscapes."""
    fps: float = 17.0
    """Frames per second of a video made from images; Cityscapes recorded 17."""
    frames: int | None = None
    """Stop after this many frames of a video or camera."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "fps", lambda fps: 0 < fps <= 1000, "above 0, at most 1000")
        check(self, "frames", lambda frames: frames >= 1, "at least 1")


def main() -> None:
    config = parse(PredictConfig, __doc__)
    if bool(config.source) == bool(config.split):
        raise UserError("predict.py: what to predict? Give either a SOURCE or a --split")
    if config.video and config.split:
        raise UserError("predict.py: --video true is for a SOURCE. Leave it out")
    output = config.output or resolve_log_root(config.log_root) / "predictions"
    output = Path(os.path.realpath(output))
    images, videos = find_sources(config.source, output) if config.source else ({}, {})
    pictures = without_sequences(images, videos, config.video)
    if config.confidence and videos:
        warn("--confidence true: writes nothing for videos")
    trained = Trained.open(config)
    name, root, classes = trained.dataset_name, trained.root, trained.classes
    if config.split is not None:
        data_set, dataset = find_data_set(name, root), build_dataset(name, root, config.split)
        trained.require_classes(dataset.classes)
        pictures = {x: partial(dataset.image, index) for index, x in enumerate(dataset.names)}
    print(f"checkpoint {trained.path} (step {trained.state['step']})")

    predictor = trained.predictor(windows_if_needed=True)
    if config.confidence and trained.task.segments:
        raise UserError("--confidence true: not for a panoptic network. Leave it out")
    work = Work(output, predictor, classes, config)
    with hold(output):
        for title, source in videos.items():
            named = title if isinstance(source, dict) else source
            work.attempt(named, work.video, title, source)
        if pictures:
            work.pictures(pictures)
        if work.left_out:
            counts = [len(x) if isinstance(x, dict) else 1 for x in (pictures, *videos.values())]
            what = f"{work.left_out} of {sum(counts)} files could not be predicted, see above"
            start = " ".join(config.source[:3]) or root
            raise UserError(f"{start}: {what}. Replace or rename them")
        if config.split == "test" and data_set.server is not None and not dataset.has_labels:
            archive = write_submission(output / "labels", dataset, output, data_set.server)
            print(f"for the test server: {archive}")


def find_sources(sources: list[str], output: Path) -> tuple[dict[str, Path], Videos]:
    """Images and videos of SOURCE; reports other files and empty folders on stderr."""
    if len(sources) == 1 and sources[0].isdecimal() and not Path(sources[0]).exists():
        return {}, {f"camera_{sources[0]}": int(sources[0])}
    files: dict[str, Path] = {}  # absolute path -> path, so that no file is predicted twice
    roots = []
    for source in sources:
        if not source:
            raise UserError("predict.py: a SOURCE is empty. Give an image, folder, video or camera")
        if not (found := find(Path(), os.path.expanduser(source))):
            raise UserError(f"{source}: does not exist. Give an image, folder, video or camera")
        for path in found:
            if path.is_dir() and output.is_relative_to(os.path.realpath(path)):
                raise UserError(f"{output}: inside the source folder. Give another --output")
            roots.append(os.path.abspath(path if path.is_dir() else path.parent))
            files |= {os.path.abspath(file): file for file in find(path, "**/*") or (path,)}
    root, pictures = os.path.commonpath(roots), {}
    videos: Videos = {}
    for absolute, file in sorted(files.items(), key=lambda item: by_number(item[1])):
        kind, name = file.suffix.lower(), os.path.splitext(os.path.relpath(absolute, root))[0]
        place = pictures if kind in IMAGES else videos if kind in VIDEOS else None
        if file.is_dir() or place is None:
            if not listing(file):
                what = "an empty folder" if file.is_dir() else "neither PNG, JPEG nor a video"
                print(f"skipped: {file}: {what}", file=sys.stderr)
        elif (first := place.setdefault(Path(name).as_posix(), file)) != file:
            raise UserError(f"{file}: its result would overwrite {first.name}'s. Rename one")
        elif os.path.realpath(output / f"{name}{ENDING}") == os.path.realpath(file):
            raise UserError(f"{file}: would be overwritten. Give another --output")
    if not pictures and not videos:
        raise UserError(f"{sources[0]}: no PNG, JPEG or video. Give an image, a folder or a video")
    return pictures, videos


def by_number(path: Path) -> list[str | int]:
    """Sort key that puts frame2 before frame10."""
    return [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", path.as_posix())]


def without_sequences(images: dict[str, Path], videos: Videos, video: bool | None) -> Readers:
    """Images to predict one by one; adds images that become a video to `videos`."""
    others: Readers = {}
    origins: dict[str, object] = {**videos}
    for name, path in images.items():
        group = others
        if video or (video is None and DEMO_VIDEO.fullmatch(path.name)):
            folder, title = Path(os.path.abspath(path)).parent, Path(name).parent.as_posix()
            title = folder.name if title == "." else title
            if origins.setdefault(title, folder) != folder:
                what = f"its video would overwrite that of {origins[title]}"
                raise UserError(f"{folder}: {what}. Rename one")
            group = videos.setdefault(title, {})
        group[name] = partial(read_image, path)
    return others


@dataclass
class Work(Faults):
    """Predicts images and videos and writes the results."""

    output: Path
    predictor: Predictor
    classes: LabelTable
    config: PredictConfig

    def __post_init__(self) -> None:
        self.task, self.writer = self.predictor.task, SegmentWriter(self.output, self.classes)

    def read(self, pictures: Readers) -> Iterator[tuple[str, np.ndarray]]:
        """Name and pixels of every readable image; threads read ahead."""
        workers = self.config.workers
        images = read_ahead(lambda x: self.attempt(x, pictures[x]), pictures, workers=workers)
        pairs = zip(pictures, images, strict=True)
        return ((name, image) for name, image in pairs if image is not None)

    def pictures(self, pictures: Readers) -> None:
        """Write label ids, colour map and overlay of each image."""
        predictor, confidence = self.predictor, self.config.confidence
        predict = predictor.with_confidence if confidence else predictor.predict
        predicted = ((name, x, self.attempt(name, predict, x)) for name, x in self.read(pictures))
        threads = {"workers": self.config.workers}
        counts = read_ahead(lambda x: self.attempt(x[0], self.write, *x), predicted, **threads)
        with progress(len(pictures), unit="image", label="predict") as bar:
            for written in counts:
                bar.update(written or 0)
        if self.task.segments:
            self.writer.finish(self.writer.images)
        print(f"{bar.n} images: {self.output}")

    def write(self, name: str, image: np.ndarray, prediction: Prediction | None) -> int:
        """Write the files of one image; return 1, or 0 if it could not be predicted."""
        if prediction is None:
            return 0
        if self.config.confidence:
            prediction, confidence = np.ascontiguousarray(np.moveaxis(prediction, 2, 0))
            write_png(self.place(f"confidence/{name}_confidence.png"), confidence)
        train_ids, path = self.task.train_ids(prediction), f"labels/{name}_pred_label_img.png"
        save_as_ids(self.place(path), train_ids, self.classes)
        if self.task.segments:
            self.writer.add(name, self.task.segments(prediction))
        if self.config.pictures:
            painted = self.task.paint(prediction, self.classes)
            blend = with_legend(overlay(image, painted), self.classes)
            write_png(self.place(f"colors/{name}_color.png"), painted)
            write_png(self.place(f"overlays/{name}_overlayed.png"), blend)
        return 1

    def place(self, name: str) -> Path:
        """Path of a file in the output folder; creates the parent folders."""
        path = self.output / name
        make_folder(path.parent)
        return path

    def video(self, name: str, source: Path | int | Readers) -> None:
        """Write the predicted video of a video file, a camera or images."""
        if made := isinstance(source, dict):
            frames = (image for _, image in self.read(source))
            rate, number = self.config.fps, len(source)
        else:
            frames, rate, number = read_video(source)
        frames = islice(frames, self.config.frames)
        total = min(filter(None, (number, self.config.frames)), default=None)
        path = self.place(f"{name}{ENDING}")
        done = write_video(path, frames, total, rate, self.predictor, self.classes)
        if done:
            print(f"{done} frames: {path}")
        if not made and done < 0.9 * (total or 1):  # self.read reports unreadable images itself
            what = f"only {done} of {total} frames can be read"
            raise UserError(f"{source}: {what}. Replace the damaged file")


if __name__ == "__main__":
    run_command(main)
