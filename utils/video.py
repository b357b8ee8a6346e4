"""Frames of video files and cameras, read and written through the FFmpeg that comes with OpenCV."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, takewhile
from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError
from utils.loader import read_ahead

# Royalty-free, encoded by libvpx (BSD licence), played by every browser.
CODEC, ENDING = "VP80", ".webm"
USUAL_RATE = 25.0  # frames per second, where a camera does not tell


class VideoReader:
    """Frames of a video file or of the camera of that number, one after the other."""

    def __init__(self, source: Path | int) -> None:
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        with quiet():
            self.capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self.capture.isOpened():
            raise UserError(
                f"{self.name}: cannot be opened as a video. Give another file or camera"
            )
        rate = self.capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else USUAL_RATE
        frames = int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frames = frames if frames > 0 else None  # as the file says, which may be wrong

    def read(self) -> np.ndarray | None:
        """The next (H,W,3) uint8 RGB frame; None after the last one."""
        whole, frame = self.capture.read()
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if whole else None

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames that are left, read ahead by a thread."""
        frames = read_ahead(lambda _: self.read(), count(), workers=1)
        return takewhile(lambda frame: frame is not None, frames)


class VideoWriter:
    """A WebM file that gets its name once it is whole; `write` takes frames of one even size."""

    def __init__(self, path: Path, *, rate: float) -> None:
        self.path, self.rate = path, rate
        self.temporary = path.with_name(f".tmp-{path.name}")
        self.writer: cv2.VideoWriter | None = None
        self.size = ""

    def write(self, frame: np.ndarray) -> None:
        """(H,W,3) uint8 RGB."""
        size = f"{frame.shape[1]}x{frame.shape[0]}"
        if self.writer is None:
            self.size = size
            with quiet():
                self.writer = cv2.VideoWriter(
                    str(self.temporary),
                    cv2.CAP_FFMPEG,
                    cv2.VideoWriter_fourcc(*CODEC),
                    self.rate,
                    frame.shape[1::-1],
                )
            if not self.writer.isOpened():
                raise UserError(
                    f"{self.path}: cannot be written as a video. Choose another --output"
                )
        if size != self.size:  # OpenCV would leave it out without a word
            what = f"frames of {self.size} and {size}"
            raise UserError(f"{self.path}: {what}. Give images of one size")
        self.writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.writer is not None:
            self.writer.release()
            if kind is None:
                os.replace(self.temporary, self.path)
            else:
                self.temporary.unlink(missing_ok=True)


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
