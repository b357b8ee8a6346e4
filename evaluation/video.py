"""Videos and cameras: read, predicted, drawn and written through the FFmpeg that OpenCV brings."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, count, takewhile
from math import inf
from pathlib import Path

import cv2
import numpy as np

from evaluation.inference import Predictor
from evaluation.visualize import panel_size, panels
from utils.base.errors import DiskError, UserError
from utils.base.paths import whole
from utils.base.progress import progress
from utils.base.threads import read_ahead
from utils.data.label_table import LabelTable

# Royalty-free, encoded by libvpx (BSD licence), played by every browser.
CODEC, ENDING = "VP80", ".webm"
ERRORS = 2  # OpenCV's log level: no warnings
USUAL_RATE = 25.0  # frames per second, where a camera does not tell


def read_video(source: Path | int) -> tuple[Iterator[np.ndarray], float, int | None]:
    """A video file, or the camera of that number: its frames, frames a second, number of frames.

    The frames, (H,W,3) uint8 RGB, are read ahead by a thread; of a file at a constant rate. Their
    number is what the file says, which may be wrong; None of a camera.
    """
    with quiet():
        # Absolute: FFmpeg takes the a of a:b.mp4 for a protocol.
        capture = cv2.VideoCapture(source if isinstance(source, int) else os.path.abspath(source))
    if not capture.isOpened():
        name = f"camera {source}" if isinstance(source, int) else source
        raise UserError(f"{name}: cannot be opened as a video. Give another file or camera")

    def read(_: int) -> tuple[float, np.ndarray] | None:
        whole, frame = capture.read()
        time = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return (time, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)) if whole else None

    timed = takewhile(lambda pair: pair is not None, read_ahead(read, count(), workers=1))
    told, number = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    rate = told if 0 < told < 1000 else USUAL_RATE
    frames = (frame for _, frame in timed) if isinstance(source, int) else even(timed, rate, source)
    return frames, rate, round(number * rate / told) if told > 0 and number > 0 else None


def even(
    timed: Iterator[tuple[float, np.ndarray]], rate: float, source: Path
) -> Iterator[np.ndarray]:
    """Frames with their times in seconds -> one for each 1 / rate seconds, the newest by then.

    Those of a constant rate are each given once. Where a time is missing, the next place is taken.
    """
    first, last, place, given, shown, said = 0.0, inf, -1, 0, None, False
    for number, (time, frame) in enumerate(timed):
        first = time if number == 0 else first
        place = round((time - first) * rate) if time > last else place + 1
        if place != number and not said:
            said = True
            what = f"variable frame rate, made {rate:g} a second to keep the timing"
            print(f"{source}: {what}: frames are repeated or left out")
        yield from [shown] * (place - given)
        given, last, shown = max(given, place), time, frame
    if shown is not None:
        yield shown


@contextmanager
def open_video(
    path: Path, *, size: tuple[int, int], rate: float
) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that writes a frame, (H,W,3) uint8 RGB of an even `size`, to a WebM file.

    The file gets its name once it is whole. UserError where frames are missing in it: OpenCV does
    not tell of a full disk.
    """
    written = 0

    def write(frame: np.ndarray) -> None:
        nonlocal written
        if frame.shape[:2] != size:  # OpenCV would leave it out without a word
            sizes = " and ".join(f"{width}x{height}" for height, width in (size, frame.shape[:2]))
            raise UserError(f"{path}: frames of {sizes}. Give images of one size")
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        written += 1

    with whole(path) as temporary:
        code, file = cv2.VideoWriter_fourcc(*CODEC), str(temporary)
        with quiet():
            writer = cv2.VideoWriter(file, cv2.CAP_FFMPEG, code, rate, size[::-1])
        if not writer.isOpened():
            raise UserError(f"{path}: cannot be written as a video. Choose another --output")
        # Or each frame that a full disk does not take would be a warning.
        level = cv2.utils.logging.setLogLevel(ERRORS)
        try:
            yield write
        finally:
            writer.release()
            cv2.utils.logging.setLogLevel(level)
        with quiet():
            number = sum(1 for _ in iter(cv2.VideoCapture(file, cv2.CAP_FFMPEG).grab, False))
        with temporary.open("rb+") as video:
            os.fsync(video.fileno())  # network drives tell only now that they are full
        if number < written:
            what = f"only {number} of {written} frames could be written"
            raise DiskError(f"{path}: {what}. Free space there or choose another --output")


def write_video(
    path: Path,
    frames: Iterator[np.ndarray],
    total: int | None,
    rate: float,
    predictor: Predictor,
    classes: LabelTable,
) -> int:
    """Image, prediction, overlay and legend of each frame; the number of frames.

    Frames are read, predicted, drawn and encoded at the same time. Without a `total`, as of a
    camera, Ctrl-C ends the video; otherwise it leaves no file.
    """
    first = next(frames, None)
    if first is None:
        return 0
    predicted = (
        (frame, predictor.train_ids(frame, size=panel_size(frame.shape[:2])))
        for frame in chain([first], frames)
    )
    drawn = read_ahead(lambda pair: panels(*pair, classes), predicted, workers=1)
    height, width = panel_size(first.shape[:2])
    with (
        open_video(path, size=(2 * height, 2 * width), rate=rate) as write,
        progress(total, unit="frame", label=path.name) as bar,
    ):
        try:
            for _ in read_ahead(write, drawn, workers=1):
                bar.update()
                bar.set_postfix_str(f"{bar.format_dict['rate'] or 0:.1f} fps", refresh=False)
        except KeyboardInterrupt:
            if total is not None:
                raise
    return bar.n


@contextmanager
def quiet() -> Iterator[None]:
    """Without FFmpeg's own messages on stderr, which no log level of OpenCV stops."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
