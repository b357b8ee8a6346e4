"""The zip file that the Cityscapes test server takes, checked before it is there."""

import os
import zipfile
from pathlib import Path

import numpy as np

from datasets import Dataset
from utils.archives import Member
from utils.errors import UserError
from utils.files import decode_grey
from utils.progress import progress

OFFICIAL_TEST_IMAGES = 1525


def write_submission(folder: Path, dataset: Dataset, path: Path) -> None:
    """Predictions <name>_*.png of every image of `dataset` -> a zip file at `path`.

    The archive is read again and compared with the data set: every image once, of its size, with
    evaluated label ids only. UserError otherwise, and an earlier file stays as it was.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed
        for name in dataset.names:
            file = folder / f"{name}_pred_label_img.png"
            archive.write(file, file.name)
    try:
        check_submission(temporary, dataset)
    except UserError:
        temporary.unlink()
        raise
    os.replace(temporary, path)


def check_submission(path: Path, dataset: Dataset) -> None:
    """UserError unless the archive holds just one label id PNG per image of `dataset`."""
    allowed = np.isin(np.arange(256), dataset.classes.ids)
    with (
        zipfile.ZipFile(path) as archive,
        progress(len(dataset), unit="image", label="check zip") as bar,
    ):
        members = [Member(archive, info) for info in archive.infolist()]
        found = {
            member.info.filename.removesuffix("_pred_label_img.png"): member for member in members
        }
        if len(members) != len(dataset) or sorted(found) != sorted(dataset.names):
            raise UserError(
                f"{path}: {len(members)} files for {len(dataset)} images. Predict again"
            )
        for index, name in enumerate(dataset.names):
            ids, size = (
                decode_grey(found[name].read_bytes(), found[name], np.uint8),
                dataset.size(index),
            )
            if ids.shape != size or not allowed[ids].all():
                raise UserError(f"{found[name]}: not {size} label ids. Predict again")
            bar.update()
    if len(dataset) != OFFICIAL_TEST_IMAGES:
        print(f"warning: {len(dataset)} images, the server expects {OFFICIAL_TEST_IMAGES}")
