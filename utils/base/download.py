"""Files from the web: resumed after a cut, checked by hash, downloaded by one process for all."""

import hashlib
import os
import re
import time
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from utils.base.errors import UserError
from utils.base.lock import hold
from utils.base.paths import read_bytes, write_text, writing
from utils.base.progress import progress

TIMEOUT = 30.0  # seconds without a byte
TRIES = 5
MIRROR = "WEIGHTS_MIRROR"  # environment variable that replaces https://host of every address
DIGITS = re.compile(r"-([0-9a-f]{8,64})\.")  # of a published file's SHA-256, in its name


def download(
    url: str,
    path: Path,
    *,
    terms: str = "",
    digits: str | None = None,
    advice: str = "",
    otherwise: str = "",
) -> Path:
    """`path`, downloaded from `url` unless it exists; then prints the address and `terms`.

    Its SHA-256 must begin with `digits`; default: those in <path>.sha256, which a download writes
    whole, else those in the file's name, if it has any. A cut download leaves <path>.part, which
    the next call continues. advice: what else the user can do, for a UserError; otherwise: the same
    if the digits are wrong. Proxies: http_proxy, https_proxy and no_proxy of the environment.
    """
    whole_hash = path.with_name(f"{path.name}.sha256")
    if not path.is_file():
        with hold(path.parent, wait=True):
            if not path.is_file():  # another process may have downloaded it meanwhile
                part = path.with_name(f"{path.name}.part")
                address = mirrored(url)
                print(f"{address} {terms}".strip())
                try:
                    fetch(address, part)
                except (OSError, HTTPException) as error:
                    what = f"{path}: cannot be downloaded ({error})"
                    where = f"Put {address} there by hand, or name a mirror in {MIRROR}"
                    raise UserError(f"{what}. {where}{advice}") from error
                write_text(whole_hash, require(part, digits or digits_of(path), advice + otherwise))
                os.replace(part, path)
                return path
    elif whole_hash.is_file() and digits is None:
        digits = read_bytes(whole_hash).decode().strip()
    require(path, digits or digits_of(path), advice + otherwise)
    return path


def mirrored(url: str) -> str:
    mirror = os.environ.get(MIRROR)
    return f"{mirror.rstrip('/')}{urlsplit(url).path}" if mirror else url


def digits_of(path: Path) -> str:
    found = DIGITS.findall(path.name)
    return found[-1] if found else ""


def require(path: Path, digits: str, advice: str) -> str:
    """The file's SHA-256; UserError if it does not begin with `digits`. Removes a download."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(digits):
        what = f"its SHA-256 begins with {found[:8]}, expected is {digits[:8]}"
        if path.suffix == ".part":
            path.unlink()
            raise UserError(f"{path.with_suffix('')}: removed, {what}. Download it again{advice}")
        raise UserError(f"{path}: damaged or another file, {what}. Delete it{advice}")
    return found


def fetch(url: str, part: Path) -> None:
    """Complete the file `part`; OSError or HTTPException if TRIES attempts fail."""
    for seconds in range(TRIES):
        try:
            return append(url, part)
        except (OSError, HTTPException) as error:
            refused = isinstance(error, HTTPError) and error.code < 500
            if refused and error.code == 416:  # nothing is missing
                return None
            if refused or seconds == TRIES - 1:
                raise
        time.sleep(seconds)


def append(url: str, part: Path) -> None:
    """Download what `part` lacks; OSError if the connection ends too early."""
    start = part.stat().st_size if part.is_file() else 0
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310
    with urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310 (our address, or a mirror)
        start = start if answer.status == 206 else 0  # 200: the server sends the whole file
        total = None if answer.length is None else start + answer.length
        with writing(part):
            file = part.open("ab" if start else "wb", buffering=0)
        with file, progress(total, start=start, unit="B", label="download") as bar:
            while block := answer.read(1 << 20):
                with writing(part):
                    file.write(block)
                bar.update(len(block))
    if total not in (None, size := part.stat().st_size):
        raise OSError(f"cut after {size:,} of {total:,} bytes")
