"""Networks that other projects published, by name: hub:NAME, listed in published.yaml."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from utils.base.download import download
from utils.base.errors import UserError
from utils.base.paths import REPOSITORY

PRETRAINED = REPOSITORY / "pretrained_models"
HUB = "hub:"
FILE = re.compile(r"(\w+?)_([\w-]+?)(?:_\d{8}_\d{6})?-[0-9a-f]{8}\.pth")  # model, the rest
SHORT = re.compile(r"r(\d+)(?:-d8)?_(?:512x1024_80k_(cityscapes)|512x512_40k_(voc)12aug)")


@dataclass(frozen=True)
class Published:
    """A published network: its file, where it is, what its project says about it."""

    name: str
    file: str
    url: str
    miou: float  # published, in per cent
    project: str
    data: str  # of miou, with the protocol
    terms: str  # licence, and terms of the data
    align_corners: bool | None = None  # for convert()


@cache
def published() -> dict[str, Published]:
    """Name -> network, those of torchvision first."""
    networks = {}
    for group in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")):
        files, url = group.pop("files"), group.pop("url")
        for file, miou in files.items():
            model, rest = FILE.fullmatch(file).groups()
            config = f"{model}_{rest}"
            short = SHORT.fullmatch(rest)
            name = f"{model}_resnet{short[1]}_{short[2] or short[3]}" if short else config
            address = url.format(model=model, config=config, file=file)
            networks[name] = Published(name, file, address, miou, **group)
    return networks


def find_published(spec: str) -> tuple[Published, str | None]:
    """hub:NAME or hub:NAME@DIGITS -> the network, and the first digits of the SHA-256 to accept."""
    name, at, digits = spec.removeprefix(HUB).partition("@")
    if name not in published():
        raise UserError(f"{spec}: unknown. List the names: python utils/convert_checkpoint.py hub:")
    digits = digits.strip().lower()
    if at and not re.fullmatch("[0-9a-f]{8,64}", digits):
        raise UserError(f"{spec}: {digits!r} are not 8 to 64 digits of a SHA-256. Correct them")
    return published()[name], digits or None


def published_file(spec: str) -> Path:
    """Path of the network's file in pretrained_models/, downloaded if it is missing."""
    network, digits = find_published(spec)
    right = f"; if the digits in its name are wrong, give {HUB}{network.name}@ and the right ones"
    how = {"terms": f"({network.terms})", "digits": digits, "otherwise": right}
    return download(network.url, PRETRAINED / network.file, **how)
