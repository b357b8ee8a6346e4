"""Pictures of predictions: overlays, error maps, contact sheets."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from datasets import Dataset
from evaluation.counts import Counts
from utils.errors import UserError
from utils.labels import IGNORE, LabelTable, voc_palette

SHEET_WIDTH = 480  # pixels of one picture in a contact sheet
LEGEND_COLUMN = 150  # pixels that the longest names need
TITLES = ("image", "truth", "prediction", "error (red)")


def save_png(path: Path, image: np.ndarray) -> None:
    """(H,W,3) RGB or (H,W) uint8 -> PNG file."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    try:
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}). Free the place") from error


def save_ids(path: Path, labels: np.ndarray, classes: LabelTable) -> None:
    """(H,W) uint8 train ids -> PNG file of ids, with a palette where the set's own have one."""
    ids = classes.to_ids(labels)
    if not classes.palette:
        save_png(path, ids)
        return
    indexed = Image.fromarray(ids)
    indexed.putpalette(voc_palette().tobytes())
    try:
        indexed.save(path, "PNG")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}). Free the place") from error


def overlay(image: np.ndarray, labels: np.ndarray, classes: LabelTable) -> np.ndarray:
    """(H,W,3) RGB, (H,W) train ids -> (H,W,3): 0.35 image + 0.65 class colour."""
    return cv2.addWeighted(image, 0.35, classes.draw(labels), 0.65, 0)


def error_map(truth: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(H,W) train ids twice -> (H,W,3): red where wrong, white where right, black where ignored."""
    colors = np.zeros((*truth.shape, 3), np.uint8)
    colors[truth != IGNORE] = (255, 255, 255)
    colors[(truth != IGNORE) & (truth != labels)] = (220, 30, 30)
    return colors


class ContactSheet:
    """Image, truth, prediction and error of a few images spread over a data set, in one picture."""

    def __init__(self, dataset: Dataset, *, images: int = 4) -> None:
        self.dataset = dataset
        indices = np.linspace(0, len(dataset) - 1, images).round().astype(int).tolist()
        self.wanted = {dataset.names[index]: index for index in indices}
        self.rows: dict[str, np.ndarray] = {}

    def add(self, name: str, _counts: Counts, labels: np.ndarray) -> None:
        """`evaluate`'s on_image: keep the images that the sheet shows."""
        if name not in self.wanted:
            return
        self.rows[name] = sheet_row(self.dataset[self.wanted[name]], labels, self.dataset.classes)

    def save(self, path: Path) -> None:
        """Titles, a row per image, and every class's colour and name below."""
        path.parent.mkdir(exist_ok=True)
        below = legend(self.dataset.classes, width=SHEET_WIDTH * len(TITLES))
        rows = [self.rows[name] for name in self.wanted if name in self.rows]
        save_png(path, np.vstack([titles(), *rows, below]))


def sheet_row(sample: dict[str, Any], labels: np.ndarray, classes: LabelTable) -> np.ndarray:
    """A data set's sample and its predicted train ids -> the four pictures of TITLES in a row."""
    image, truth = sample["image"], sample["label"]
    pictures = (image, classes.draw(truth), classes.draw(labels), error_map(truth, labels))
    size = (SHEET_WIDTH, round(SHEET_WIDTH * image.shape[0] / image.shape[1]))
    return np.hstack([cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in pictures])


def titles() -> np.ndarray:
    bar = np.full((36, SHEET_WIDTH * len(TITLES), 3), 255, np.uint8)
    for number, title in enumerate(TITLES):
        write(bar, title, (number * SHEET_WIDTH + 12, 25))
    return bar


def legend(classes: LabelTable, *, width: int, height: int = 0) -> np.ndarray:
    """(h,width,3) with every class's colour and name; h is what they need, or `height`."""
    columns = min(8, max(1, width // LEGEND_COLUMN))
    lines = -(-classes.num_classes // columns)
    bar = np.full((max(34 * lines + 8, height), width, 3), 255, np.uint8)
    for number, name in enumerate(classes.names):
        x, y = width // columns * (number % columns) + 12, 34 * (number // columns) + 8
        cv2.rectangle(bar, (x, y), (x + 26, y + 22), classes.colors[number].tolist(), -1)
        cv2.rectangle(bar, (x, y), (x + 26, y + 22), (90, 90, 90), 1)
        write(bar, name, (x + 36, y + 18))
    return bar[: height or None]


def with_legend(picture: np.ndarray, classes: LabelTable) -> np.ndarray:
    """(H,W,3) -> the same with the legend below; a narrow picture gets white at its right."""
    width = max(picture.shape[1], LEGEND_COLUMN)
    wide = cv2.copyMakeBorder(
        picture, 0, 0, 0, width - picture.shape[1], cv2.BORDER_CONSTANT, value=(255, 255, 255)
    )
    return np.vstack([wide, legend(classes, width=width)])


def panel_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image -> those of its four panels in a video: even, 480 to 960."""
    factor = np.clip(max(size), 480, 960) / max(size)
    return tuple(max(2, 2 * round(length * factor / 2)) for length in size)


def panels(image: np.ndarray, labels: np.ndarray, classes: LabelTable) -> np.ndarray:
    """(H,W,3) RGB, (h,w) train ids -> (2h,2w,3): image, prediction, overlay, legend."""
    height, width = labels.shape
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    drawn = classes.draw(labels)
    blend = cv2.addWeighted(small, 0.35, drawn, 0.65, 0)
    key = legend(classes, width=width, height=height)
    return np.vstack([np.hstack([small, drawn]), np.hstack([blend, key])])


def write(picture: np.ndarray, text: str, place: tuple[int, int]) -> None:
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (30, 30, 30), 1, cv2.LINE_AA)
