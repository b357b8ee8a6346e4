"""Predict images, folders, videos, a camera or a data set's split with a trained network.

    python predict.py street.jpg                                  best checkpoint of the newest run
    python predict.py photos/ --checkpoint RUN --output out       all images below a folder
    python predict.py 'clips/*.mp4' --checkpoint RUN              one video each
    python predict.py leftImg8bit/demoVideo/stuttgart_00          Cityscapes' demo: one video
    python predict.py 0                                           a camera, until Ctrl-C
    python predict.py --split test --checkpoint RUN               for the test server, as an archive

Writes into --output: labels/<name>_pred_label_img.png (the data set's own label ids),
colors/<name>_color.png, overlays/<name>_overlayed.png, <name>.webm of a video. A file that cannot
be read is named and left out; the exit code is then 2.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from datasets import build_dataset, label_table
from evaluation.inference import Predictor, Trained
from evaluation.submission import SERVERS, write_submission
from evaluation.visualize import overlay, panel_size, panels, save_ids, save_png, with_legend
from utils.config import PredictionOptions
from utils.errors import UserError, run_command
from utils.files import make_folder, resolve_log_root
from utils.images import read_image
from utils.labels import LabelTable
from utils.loader import read_ahead
from utils.parser import check, parse
from utils.progress import progress
from utils.video import ENDING, VideoReader, VideoWriter

IMAGES = {".png", ".jpg", ".jpeg"}
VIDEOS = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg"}
DEMO_VIDEO = re.compile(r"stuttgart_\d\d_\d{6}_\d{6}_leftImg8bit\.png")


@dataclass(frozen=True)
class PredictConfig(PredictionOptions):
    """Options of predict.py."""

    source: str | None = field(
        default=None,
        metadata={"help": "Image, folder, pattern ('*.png'), video or number of a camera."},
    )
    split: Literal["train", "val", "test"] | None = None
    """Predict this part of the checkpoint's data set instead of a SOURCE; test also makes the
    archive that the server of Cityscapes or VOC takes."""
    output: Path | None = None
    """Folder to write to. Default: predictions/ in --log_root."""
    pictures: bool = True
    """Also write colour maps and overlays, not only label ids."""
    video: bool | None = None
    """Make one video of each folder's images, in the order of their names, instead of PNG files.
    Default: of Cityscapes' demoVideo folders."""
    fps: float = 17.0
    """Images per second of such a video; Cityscapes recorded 17."""
    frames: int | None = None
    """Stop after this many frames of a video or camera."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "fps", lambda fps: 0 < fps <= 1000, "above 0, at most 1000")
        check(self, "frames", lambda frames: frames >= 1, "at least 1")


@dataclass(frozen=True)
class Picture:
    """An image to predict; its name, which may hold folders, names what is written."""

    name: str
    read: Callable[[], np.ndarray]


def predict(config: PredictConfig) -> None:
    if (config.source is None) == (config.split is None):
        raise UserError("predict.py: what to predict? Give either a SOURCE or a --split")
    output = (config.output or resolve_log_root(config.log_root) / "predictions").resolve()
    pictures: list[Picture] = []
    sequences: dict[str, list[Picture]] = {}
    videos: dict[str, Path | int] = {}
    if config.source is not None:
        pictures, videos = find_source(config.source, output)
        sequences, pictures = as_sequences(pictures, config.video)
    trained = Trained.open(config)
    name, root = trained.state["config"]["dataset"], trained.root()
    if config.split is not None:
        dataset = build_dataset(name, root, config.split)
        pictures = [Picture(x, partial(dataset.image, i)) for i, x in enumerate(dataset.names)]
    print(f"checkpoint {trained.path} (step {trained.state['step']})")

    make_folder(output)
    work = Work(output, trained.predictor(), label_table(name, root), config)
    for folder, members in sequences.items():
        work.sequence(folder, members)
    for title, source in videos.items():
        work.video(title, source)
    if pictures:
        work.pictures(pictures)
    if work.faults:
        total = len(pictures) + len(videos) + sum(map(len, sequences.values()))
        what = f"{len(work.faults)} of {total} files could not be predicted, named above"
        raise UserError(f"{config.source or root}: {what}. Replace them")
    if config.split == "test" and name in SERVERS and not dataset.has_labels:
        archive = write_submission(output / "labels", dataset, output, SERVERS[name])
        print(f"for the test server: {archive}")


def find_source(source: str, output: Path) -> tuple[list[Picture], dict[str, Path | int]]:
    """Images and videos that SOURCE names; other files and empty folders are told on stderr."""
    path = Path(source)
    if source.isdecimal() and not path.exists():
        return [], {f"camera_{source}": int(source)}
    if path.is_dir():
        if output.is_relative_to(path.resolve()):
            raise UserError(f"{output}: in the folder of the images. Choose another --output")
        root, files = path, sorted(path.rglob("*"))
    else:
        files = [path] if path.exists() else sorted(map(Path, glob(source, recursive=True)))
        if not files:
            raise UserError(f"{source}: does not exist. Name an image, folder, video or camera")
        root = Path(os.path.commonpath([file.parent for file in files]))
    pictures: dict[str, Path] = {}
    videos: dict[str, Path | int] = {}
    for file in files:
        inner = file.relative_to(root)
        if any(part.startswith(".") for part in inner.parts):
            continue
        kind = file.suffix.lower()
        name = inner.with_suffix("").as_posix()
        found = pictures if kind in IMAGES else videos if kind in VIDEOS else None
        if file.is_dir():
            if not any(file.iterdir()):
                print(f"skipped: {file}: an empty folder", file=sys.stderr)
        elif found is None:
            print(f"skipped: {file}: neither PNG, JPEG nor a video", file=sys.stderr)
        elif name in found:
            raise UserError(f"{file}: would be written as {found[name].name} is. Rename one")
        else:
            found[name] = file
    if not pictures and not videos:
        raise UserError(f"{source}: no PNG, JPEG or video. Name an image, folder, video or camera")
    reads = {name: partial(read_image, file, upright=True) for name, file in pictures.items()}
    return [Picture(name, read) for name, read in reads.items()], videos


def as_sequences(
    pictures: list[Picture], video: bool | None
) -> tuple[dict[str, list[Picture]], list[Picture]]:
    """Images that become videos, by the videos' names, and the others."""
    sequences: dict[str, list[Picture]] = {}
    others: list[Picture] = []
    for picture in pictures:
        file = picture.read.args[0]
        if video or (video is None and DEMO_VIDEO.fullmatch(file.name)):
            folder = Path(picture.name).parent
            name = file.resolve().parent.name if folder == Path() else folder.as_posix()
            sequences.setdefault(name, []).append(picture)
        else:
            others.append(picture)
    return sequences, others


@dataclass
class Work:
    """Predicts and writes; what cannot be read is told on stderr, noted and left out."""

    output: Path
    predictor: Predictor
    classes: LabelTable
    config: PredictConfig
    faults: list[UserError] = field(default_factory=list)

    def report(self, error: UserError) -> None:
        print(f"left out: {error}", file=sys.stderr)
        self.faults.append(error)

    def read(self, pictures: list[Picture]) -> Iterator[tuple[Picture, np.ndarray]]:
        """Those images that can be read, read ahead by threads."""

        def read_one(picture: Picture) -> np.ndarray | UserError:
            try:
                return picture.read()
            except UserError as error:
                return error

        results = read_ahead(
            read_one, pictures, workers=self.config.workers, describe=lambda x: x.name
        )
        for picture, image in zip(pictures, results, strict=True):
            if isinstance(image, UserError):
                self.report(image)
            else:
                yield picture, image

    def pictures(self, pictures: list[Picture]) -> None:
        """Label ids, colour map and overlay of each."""
        predicted = (
            (picture.name, image, self.predictor.labels(image))
            for picture, image in self.read(pictures)
        )
        written = 0
        with progress(len(pictures), unit="image", label="predict") as bar:
            for _ in read_ahead(self.write, predicted, workers=self.config.workers):
                written += 1
                bar.update()
        print(f"{written} images: {self.output}")

    def write(self, result: tuple[str, np.ndarray, np.ndarray]) -> None:
        name, image, labels = result
        save_ids(self.place("labels", f"{name}_pred_label_img.png"), labels, self.classes)
        if self.config.pictures:
            blend = with_legend(overlay(image, labels, self.classes), self.classes)
            save_png(self.place("colors", f"{name}_color.png"), self.classes.draw(labels))
            save_png(self.place("overlays", f"{name}_overlayed.png"), blend)

    def place(self, folder: str, name: str) -> Path:
        path = self.output / folder / name
        make_folder(path.parent)
        return path

    def sequence(self, name: str, pictures: list[Picture]) -> None:
        """A video of images."""
        frames = islice((image for _, image in self.read(pictures)), self.config.frames)
        total = min(len(pictures), self.config.frames or len(pictures))
        self.encode(name, frames, total, self.config.fps)

    def video(self, name: str, source: Path | int) -> None:
        """A video of a video, or of a camera's frames."""
        try:
            video = VideoReader(source)
        except UserError as error:
            self.report(error)
            return
        total = min(filter(None, (video.frames, self.config.frames)), default=None)
        done = self.encode(name, islice(video, self.config.frames), total, video.rate)
        if done < 0.9 * (total or 1):
            self.report(UserError(f"{source}: only {done} frames can be read of {total}"))

    def encode(
        self, name: str, frames: Iterable[np.ndarray], total: int | None, rate: float
    ) -> int:
        path = self.output / f"{name}{ENDING}"
        make_folder(path.parent)
        done = write_video(path, frames, total, rate, self.predictor, self.classes)
        if done:
            print(f"{done} frames: {path}")
        return done


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    total: int | None,
    rate: float,
    predictor: Predictor,
    classes: LabelTable,
) -> int:
    """Image, prediction, overlay and legend of each frame; the number of frames.

    Frames are read, predicted, drawn and encoded at the same time. Without a `total`, as of a
    camera, Ctrl-C ends the video; otherwise it leaves no file.
    """
    done = 0
    predicted = (
        (frame, predictor.labels(frame, size=panel_size(frame.shape[:2]))) for frame in frames
    )
    drawn = read_ahead(lambda pair: panels(*pair, classes), predicted, workers=1)
    with (
        VideoWriter(path, rate=rate) as writer,
        progress(total, unit="frame", label=path.name) as bar,
    ):
        try:
            for _ in read_ahead(writer.write, drawn, workers=1):
                done += 1
                bar.update()
                bar.set_postfix_str(f"{bar.format_dict['rate'] or 0:.1f} fps", refresh=False)
        except KeyboardInterrupt:
            if total is not None:
                raise
    return done


def main() -> None:
    predict(parse(PredictConfig, __doc__))


if __name__ == "__main__":
    run_command(main)
