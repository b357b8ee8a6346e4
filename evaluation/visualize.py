"""Pictures of predictions: overlays, error maps, contact sheets."""

from pathlib import Path

import cv2
import numpy as np

from datasets import Dataset
from evaluation.counts import Counts
from utils.errors import UserError
from utils.labels import IGNORE, LabelTable

SHEET_WIDTH = 480  # pixels of one picture in a contact sheet
TITLES = ("image", "truth", "prediction", "error (red)")


def save_png(path: Path, image: np.ndarray) -> None:
    """(H,W,3) RGB or (H,W) uint8 -> PNG file."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    try:
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
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
        sample, draw = self.dataset[self.wanted[name]], self.dataset.classes.draw
        image, truth = sample["image"], sample["label"]
        pictures = (image, draw(truth), draw(labels), error_map(truth, labels))
        size = (SHEET_WIDTH, round(SHEET_WIDTH * image.shape[0] / image.shape[1]))
        small = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures]
        self.rows[name] = np.hstack(small)

    def save(self, path: Path) -> None:
        """Titles, a row per image, and every class's colour and name below."""
        path.parent.mkdir(exist_ok=True)
        below = legend(self.dataset.classes, width=SHEET_WIDTH * len(TITLES))
        rows = [self.rows[name] for name in self.wanted if name in self.rows]
        save_png(path, np.vstack([titles(), *rows, below]))


def titles() -> np.ndarray:
    bar = np.full((36, SHEET_WIDTH * len(TITLES), 3), 255, np.uint8)
    for number, title in enumerate(TITLES):
        write(bar, title, (number * SHEET_WIDTH + 12, 25))
    return bar


def legend(classes: LabelTable, *, width: int) -> np.ndarray:
    columns = 8
    lines = -(-classes.num_classes // columns)
    bar = np.full((34 * lines + 8, width, 3), 255, np.uint8)
    for number, name in enumerate(classes.names):
        x, y = width // columns * (number % columns) + 12, 34 * (number // columns) + 8
        cv2.rectangle(bar, (x, y), (x + 26, y + 22), classes.colors[number].tolist(), -1)
        cv2.rectangle(bar, (x, y), (x + 26, y + 22), (90, 90, 90), 1)
        write(bar, name, (x + 36, y + 18))
    return bar


def write(picture: np.ndarray, text: str, place: tuple[int, int]) -> None:
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (30, 30, 30), 1, cv2.LINE_AA)
