"""Write and check the archive for a data set's test server."""

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils.base.errors import UserError
from utils.base.paths import whole
from utils.base.progress import progress
from utils.data.dataset import Dataset, Server
from utils.data.image_files import decode_ids


def write_submission(folder: Path, dataset: Dataset, output: Path, server: Server) -> Path:
    """Pack <name>_pred_label_img.png of every image of `dataset` into `output` + server.ending.

    Reads the archive again and checks it: every image once, in its size, with evaluated label ids
    only. Otherwise raises UserError and keeps an earlier archive.
    """
    path = output.with_name(output.name + server.ending)
    files = {server.file.format(x): folder / f"{x}_pred_label_img.png" for x in dataset.names}
    with whole(path) as temporary:
        if server.ending == ".zip":
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:  # of small PNGs
                for name, file in files.items():
                    archive.write(file, name)
        else:
            with tarfile.open(temporary, "w:gz") as archive:
                for name, file in files.items():
                    info = tarfile.TarInfo(name)  # without user and time
                    info.size = file.stat().st_size
                    archive.addfile(info, io.BytesIO(file.read_bytes()))
        check_submission(temporary, dataset, server)
    return path


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in an archive."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield name, archive.read(name)
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                yield member.name, archive.extractfile(member).read()


def check_submission(path: Path, dataset: Dataset, server: Server) -> None:
    """UserError unless the archive holds exactly one label id PNG per image of `dataset`."""
    allowed = np.isin(np.arange(256), dataset.classes.ids)
    missing = {server.file.format(name): index for index, name in enumerate(dataset.names)}
    with progress(len(dataset), unit="image", label="check archive") as bar:
        for name, content in contents(path):
            if name not in missing:
                raise UserError(f"{path}: {name} is unknown or a duplicate. Predict again")
            size = dataset.size(missing.pop(name))
            ids = decode_ids(content, f"{path}/{name}", np.uint8)
            if ids.shape != size or not allowed[ids].all():
                raise UserError(f"{path}/{name}: not {size} label ids. Predict again")
            bar.update()
    if missing:
        raise UserError(f"{path}: lacks {next(iter(missing))}. Predict again")
    if len(dataset) != server.images:
        print(f"warning: {len(dataset)} images, the server expects {server.images}")
