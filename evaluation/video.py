"""Read videos and cameras, write predicted videos, with the FFmpeg inside OpenCV."""

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
USUAL_RATE = 25.0  # frames per second, if the camera or file reports none


def read_video(source: Path | int) -> tuple[Iterator[np.ndarray], float, int | None]:
    """Frames, frame rate and number of frames of a video file or of a camera, given its number.

    A thread reads frames ahead, (H,W,3) uint8 RGB; frames of a file come at a constant rate. The
    number is the one stored in the file, which may be wrong; None for a camera.
    """
    if isinstance(source, Path):
        require_utf8(source)
    with quiet():
        # Absolute path, because FFmpeg reads the "a" in a:b.mp4 as a protocol.
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


def require_utf8(path: Path) -> None:
    """UserError for a name that would crash OpenCV."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: its name is not UTF-8. Rename it") from None


def even(
    timed: Iterator[tuple[float, np.ndarray]], rate: float, source: Path
) -> Iterator[np.ndarray]:
    """Frames with their times in seconds -> the latest frame at every 1 / rate seconds.

    At a constant rate nothing changes. A frame without a valid time comes 1 / rate after the last.
    """
    first, last, place, given, shown, said = 0.0, inf, -1, 0, None, False
    for number, (time, frame) in enumerate(timed):
        first = time if number == 0 else first
        place = round((time - first) * rate) if time > last else place + 1
        if place != number and not said:
            said = True
            what = f"variable frame rate, converted to {rate:g} frames per second"
            print(f"{source}: {what}: frames are repeated or left out")
        yield from [shown] * (place - given)
        given, last, shown = max(given, place), time, frame
    if shown is not None:
        yield shown


@contextmanager
def open_video(
    path: Path, *, size: tuple[int, int], rate: float
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that writes a frame, (H,W,3) uint8 RGB of an even `size`, to a WebM file.

    `path` appears when the file is complete. UserError if the file lacks frames, because OpenCV
    does not report a full disk.
    """
    written = 0

    def write(frame: np.ndarray) -> None:
        nonlocal written
        if frame.shape[:2] != size:  # OpenCV would skip it silently
            sizes = " and ".join(f"{width}x{height}" for height, width in (size, frame.shape[:2]))
            raise UserError(f"{path}: frames of {sizes}. Give images of one size")
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        written += 1

    require_utf8(path)
    with whole(path) as temporary:
        code, file = cv2.VideoWriter_fourcc(*CODEC), str(temporary)
        with quiet():
            writer = cv2.VideoWriter(file, cv2.CAP_FFMPEG, code, rate, size[::-1])
        if not writer.isOpened():
            raise UserError(f"{path}: cannot be written as a video. Give another --output")
        # Else OpenCV warns about every frame that it cannot write to a full disk.
        level = cv2.utils.logging.setLogLevel(ERRORS)
        try:
            yield write
        finally:
            writer.release()
            cv2.utils.logging.setLogLevel(level)
        with quiet():
            number = sum(1 for _ in iter(cv2.VideoCapture(file, cv2.CAP_FFMPEG).grab, False))
        with temporary.open("rb+") as video:
            os.fsync(video.fileno())  # a full network drive reports an error only here
        if number < written:
            what = f"only {number} of {written} frames could be written"
            raise DiskError(f"{path}: {what}. Free space there or give another --output")


def write_video(
    path: Path,
    frames: Iterator[np.ndarray],
    total: int | None,
    rate: float,
    predictor: Predictor,
    classes: LabelTable,
) -> int:
    """Write image, prediction, overlay and legend of each frame; return the number of frames.

    Threads read, draw and encode while frames are predicted. If `total` is None, as for a camera,
    Ctrl-C ends the video; otherwise Ctrl-C leaves no file.
    """
    first = next(frames, None)
    if first is None:
        return 0
    predicted = (
        (frame, predictor.predict(frame, size=panel_size(frame.shape[:2])))
        for frame in chain([first], frames)
    )
    paint = predictor.task.paint
    drawn = read_ahead(
        lambda pair: panels(pair[0], paint(pair[1], classes), classes), predicted, workers=1
    )
    height, width = panel_size(first.shape[:2])
    with (
        open_video(path, size=(2 * height, 2 * width), rate=rate) as write,
        progress(total, unit="frame", label=path.name) as bar,
    ):
        try:
            for _ in read_ahead(write, drawn, workers=1):
                bar.update()
                seconds = max(1e-9, bar.format_dict["elapsed"])
                bar.set_postfix_str(f"{bar.n / seconds:.1f} fps", refresh=False)
        except KeyboardInterrupt:
            if total is not None:
                raise
    return bar.n


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress FFmpeg's messages on stderr, which ignore OpenCV's log level."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
