"""Pictures of predictions: overlays, error maps, contact sheets."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from evaluation.counts import Counts
from evaluation.task import Prediction, Sample, Task
from utils.base.paths import make_folder, whole
from utils.data.dataset import Dataset
from utils.data.image_files import write_png
from utils.data.label_table import IGNORE, LabelTable, voc_palette

SHEET_WIDTH = 480  # pixels, of one picture in a contact sheet
TALLEST = 4 * SHEET_WIDTH  # maximum height; taller pictures are squeezed
LEGEND_COLUMN = 150  # pixels, fits the longest class names
SHEET_TITLES = ("image", "truth (black: ignored)", "prediction", "error (red)")


def save_as_ids(path: Path, train_ids: np.ndarray, classes: LabelTable) -> None:
    """Write (H,W) uint8 train ids as a label id PNG, with a palette if the data set uses one."""
    ids = classes.to_ids(train_ids)
    if not classes.palette:
        write_png(path, ids)
        return
    indexed = Image.fromarray(ids)
    indexed.putpalette(voc_palette().tobytes())
    with whole(path) as temporary:
        indexed.save(temporary, "PNG")


def overlay(image: np.ndarray, painted: np.ndarray) -> np.ndarray:
    """(H,W,3) RGB image and colours of its classes -> (H,W,3): 0.35 image + 0.65 colour."""
    return cv2.addWeighted(image, 0.35, painted, 0.65, 0)


def error_map(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(H,W) train ids twice -> (H,W,3): red where wrong, white where right, black where ignored."""
    colors = np.zeros((*truth.shape, 3), np.uint8)
    colors[truth != IGNORE] = (255, 255, 255)
    colors[(truth != IGNORE) & (truth != prediction)] = (220, 30, 30)
    return colors


class ContactSheet:
    """One picture of image, truth, prediction and error for images spread over a data set."""

    def __init__(self, dataset: Dataset, task: Task, *, images: int = 4) -> None:
        self.classes, self.task = dataset.classes, task
        indices = np.linspace(0, len(dataset) - 1, images).round().astype(int).tolist()
        self.wanted = list(dict.fromkeys(dataset.names[index] for index in indices))
        self.rows: dict[str, np.ndarray] = {}

    def add(self, sample: Sample, _counts: Counts, prediction: Prediction) -> None:
        """on_image callback of evaluate(): keep the images of the sheet."""
        if sample["name"] in self.wanted:
            self.rows[sample["name"]] = sheet_row(sample, prediction, self.classes, self.task)

    def save(self, path: Path) -> None:
        """Write titles, one row per image, and the legend of the classes."""
        make_folder(path.parent)
        below = legend(self.classes, width=SHEET_WIDTH * len(SHEET_TITLES))
        rows = [self.rows[name] for name in self.wanted if name in self.rows]
        write_png(path, np.vstack([titles(), *rows, below]))


def sheet_row(
    sample: Sample, prediction: Prediction, classes: LabelTable, task: Task
) -> np.ndarray:
    """Sample and prediction -> one row with the four pictures of SHEET_TITLES."""
    image, truth = sample["image"], task.paint(task.truth(sample, classes), classes)
    errors = error_map(sample["label"], task.train_ids(prediction))
    pictures = (image, truth, task.paint(prediction, classes), errors)
    height = round(SHEET_WIDTH * image.shape[0] / image.shape[1])
    size = (SHEET_WIDTH, min(max(1, height), TALLEST))
    return np.hstack([cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in pictures])


def titles() -> np.ndarray:
    bar = np.full((36, SHEET_WIDTH * len(SHEET_TITLES), 3), 255, np.uint8)
    for number, title in enumerate(SHEET_TITLES):
        put_text(bar, title, (number * SHEET_WIDTH + 12, 25))
    return bar


def legend(classes: LabelTable, *, width: int, height: int = 0) -> np.ndarray:
    """(h,width,3) picture of all class colours and names; h: as needed, or `height`."""
    columns = min(8, max(1, width // LEGEND_COLUMN))
    lines = -(-classes.num_classes // columns)
    bar = np.full((max(34 * lines + 8, height), width, 3), 255, np.uint8)
    for number, name in enumerate(classes.names):
        x, y = width // columns * (number % columns) + 12, 34 * (number // columns) + 8
        cv2.rectangle(bar, (x, y), (x + 26, y + 22), classes.colors[number].tolist(), -1)
        cv2.rectangle(bar, (x, y), (x + 26, y + 22), (90, 90, 90), 1)
        put_text(bar, name, (x + 36, y + 18))
    return bar[: height or None]


def with_legend(picture: np.ndarray, classes: LabelTable) -> np.ndarray:
    """(H,W,3) -> picture with the legend below; white pads a narrow picture at the right."""
    width = max(picture.shape[1], LEGEND_COLUMN)
    missing = (0, 0), (0, width - picture.shape[1]), (0, 0)
    wide = np.pad(picture, missing, constant_values=255)
    return np.vstack([wide, legend(classes, width=width)])


def panel_size(size: tuple[int, int]) -> tuple[int, int]:
    """Size of an image -> size of each of its panels in a video: even, longer side 480 to 960."""
    factor = np.clip(max(size), 480, 960) / max(size)
    return tuple(max(2, 2 * round(length * factor / 2)) for length in size)


def panels(image: np.ndarray, painted: np.ndarray, classes: LabelTable) -> np.ndarray:
    """(H,W,3) RGB, (h,w,3) colours -> (2h,2w,3): image, prediction, overlay, legend."""
    height, width = painted.shape[:2]
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    above = np.hstack([small, painted])
    below = overlay(small, painted), legend(classes, width=width, height=height)
    return np.vstack([above, np.hstack(below)])


def put_text(picture: np.ndarray, text: str, place: tuple[int, int]) -> None:
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (30, 30, 30), 1, cv2.LINE_AA)
