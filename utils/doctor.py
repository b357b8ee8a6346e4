"""Show on one screen what this machine has, what is missing, and what to do next.

    python utils/doctor.py
    python utils/doctor.py --file report.txt      the same for a bug report, without user name, host
                                                  name and paths outside the repository

Runs before any package is installed: a section reports the package that it needs, and argparse
replaces jsonargparse. Counts the files of data sets, and reads them only if their size or time
changed since they were packed or converted, as after copying them.
"""

import argparse
import json
import os
import platform
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

if __name__ == "__main__":  # run by path, Python looks for modules in utils/ first
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from utils.base.environment import lacks_to_build, nvidia_gpus, why_no_gpu
from utils.base.errors import UserError, run_command
from utils.base.find import find
from utils.base.paths import REPOSITORY, require_file_name, resolve_log_root, to_path, write_text

Rows = Iterator[tuple[str, str]]  # name and text of the screen's rows; STEP as name marks advice
STEP = "Next:"
MODULES = "torch torchvision numpy cv2 PIL cityscapesscripts jsonargparse tensorboard matplotlib"
NO_DATA = "put Cityscapes into data/cityscapes (README.md), or try without data: make demo"


def machine() -> Rows:
    yield "Python", f"{platform.python_version()}, {platform.platform()}"
    if (memory := Path("/proc/meminfo")).is_file():
        kib = dict(re.findall(r"(\w+): +(\d+) kB", memory.read_text()))
        free, total = (int(kib[name]) >> 20 for name in ("MemAvailable", "MemTotal"))
        yield "Memory", f"{free} of {total} GiB free, {os.cpu_count()} cores"
    for name, folder in (("Disk", REPOSITORY), ("Shared mem", Path("/dev/shm"))):  # noqa: S108
        if folder.is_dir():
            total, _, free = shutil.disk_usage(folder)
            yield name, f"{free >> 30} of {total >> 30} GiB free"
    lacks = lacks_to_build("C++") or lacks_to_build("C")
    yield "Compilers", f"torch.compile lacks {lacks}" if lacks else "C, C++ and Python.h"


def packages() -> Rows:
    if missing := [name for name in MODULES.split() if find_spec(name) is None]:
        yield "Packages", f"missing: {', '.join(missing)}"
        ready = (REPOSITORY / ".venv" / "ready").is_file() and ".venv" not in sys.prefix
        yield STEP, "source .venv/bin/activate" if ready else "make demo installs what is missing"
    import cv2

    yield "OpenCV", cv2.__version__


def gpus() -> Rows:
    for gpu in nvidia_gpus():
        yield "nvidia-smi", ", ".join(gpu.values())
    import torch

    from utils.training.distributed import usable_gpu

    cuda, codes = torch.version.cuda, " ".join(torch.cuda.get_arch_list())
    yield "PyTorch", f"{torch.__version__} for {f'CUDA {cuda}, {codes}' if cuda else 'CPUs'}"
    if not torch.cuda.is_available():
        yield from zip(("GPU", STEP), why_no_gpu(cuda) or ("none, or hidden",), strict=False)
        return
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        text = f"{card.name}, {card.total_memory >> 30} GiB, capability {card.major}.{card.minor}"
        yield f"GPU {number}", f"{text}, {'' if card.major >= 8 else 'no '}bf16"
        usable_gpu(number)  # UserError with the reason if it is not
    yield "cuDNN", str(torch.backends.cudnn.version())


def data_sets() -> Rows:
    import datasets

    absent = []
    for name in datasets.data_set_names():
        root = datasets.resolve_data_root(name, None)
        if root.is_relative_to(REPOSITORY / "data") and not root.exists():
            absent.append(name)
        else:
            yield from attempt(name, data_set, name, root)
    yield "No data of", ", ".join(absent)


def data_set(name: str, root: Path) -> Rows:
    """Rows of an existing data set, and its next step. Lists and counts image files."""
    import datasets
    from utils.data.dataset import NoImages
    from utils.data.prepare import current_class_weights

    found, counts = datasets.find_data_set(name, root), {}
    for split in found.splits:
        with suppress(NoImages):
            counts[split] = len(found.find(root, split)["image"])
    of = {split: f" of {number}" for split, number in found.images.items()}
    images = ", ".join(f"{x} {counts.get(x, 0)}{of.get(x, '')}" for x in {**of, **counts})
    packed = all(datasets.packed_path(root, split).is_file() for split in ("train", "val"))
    yield name, f"{images}; {'' if packed else 'not '}packed; {root}"
    option = "" if name == "cityscapes" else f" --dataset {name}"
    prepare = f"python utils/preprocess_data.py{option}"
    if any(counts.get(x, n) < n for x, n in found.images.items() if x != "test" and counts):
        yield STEP, f"{prepare} --check true"
    for split in ("train", "val"):  # the checks of a training
        datasets.build_dataset(name, root, split)
    current_class_weights(found, root)
    yield name, "preprocessed"
    if name != "synthetic":  # make demo does all its steps
        pack = nvidia_gpus() and not packed
        yield STEP, f"{prepare} --pack true" if pack else f"python train.py{option}"


def files() -> Rows:
    weights = [path.name for path in find(REPOSITORY / "pretrained_models", "*.pth*")]
    yield "Weights", ", ".join(weights) or "none yet; the first training downloads them"
    configs = find(resolve_log_root(None), "*/config.yaml")
    for config in sorted(configs, key=lambda path: path.stat().st_mtime)[-3:]:
        file = config.with_name("results.json")
        text = "results.json is broken" if file.exists() else "not evaluated"
        with suppress(OSError, ValueError, KeyError, TypeError):
            results = json.loads(file.read_bytes())
            text = f"mIoU {100 * results['miou']:.1f} at step {results['step']}"
        yield f"Run {config.parent.name}", text


def attempt(name: str, section: Callable[..., Rows], *arguments: object) -> Rows:
    """The rows of a section; an error becomes a row, so that the other sections still appear."""
    try:
        yield from section(*arguments)
    except UserError as error:
        yield from zip((name, STEP), str(error).rsplit(". ", 1), strict=True)
    except Exception as error:
        yield name, f"needs {error.name}" if isinstance(error, ImportError) else repr(error)


def screen(rows: list[tuple[str, str]], *, public: bool) -> str:
    steps, lines = [text for name, text in rows if name == STEP] + [NO_DATA], []
    for name, text in [*(row for row in rows if row[0] != STEP), (STEP, steps[0])]:
        text = text.replace(f"{REPOSITORY}{os.sep}", "")
        name, text = (without_names(x) if public else x for x in (name, text))
        indent = 6 if name == STEP else max(13, len(name) + 2)
        options = {"subsequent_indent": " " * indent, "max_lines": 4, "break_on_hyphens": False}
        lines += textwrap.wrap(f"{name:{indent}}{text}", 100, **options)
    return "\n".join(lines) + "\n"


def without_names(text: str) -> str:
    """`text` without absolute paths (which may contain spaces), user name and host name."""
    path = r"(?<![\w.:/\\])([A-Za-z]:)?[/\\][^:,;()'\"]+"
    text = re.sub(path, "outside the repository", text)
    names = {Path.home().name, platform.node(), *map(os.environ.get, ("LOGNAME", "USER"))}
    for name in names - {"", "root", None}:
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "...", text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--file", type=to_path, help="New file for a bug report.")
    file = parser.parse_args().file
    if file is not None:
        require_file_name(file)
        if file.exists():
            raise UserError(f"{file}: exists. Give another file, or delete it")
    sections = {"Machine": machine, "OpenCV": packages, "PyTorch": gpus, "Data": data_sets}
    sections["Files"] = files
    rows = [row for name in sections for row in attempt(name, sections[name])]
    print(screen(rows, public=False), end="")
    if file is not None:
        write_text(file, screen(rows, public=True))


if __name__ == "__main__":
    run_command(main)
