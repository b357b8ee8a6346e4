"""Files from the web: resumed after a cut, checked by hash, downloaded by one process for all."""

import hashlib
import os
import re
import time
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
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
WHOLE = re.compile(r"[0-9a-f]{64}\b")


def download(
    url: str,
    path: Path,
    *,
    terms: str = "",
    digits: str | None = None,
    advice: str = "",
    otherwise: str = "",
) -> Path:
    """`path`, downloaded from `url` if it is missing. A download prints the address and `terms`.

    Its SHA-256 must begin with `digits`; default: those in <path>.sha256, which a download writes
    whole, else those in the file's name. A cut download leaves <path>.part, which the next call
    continues. advice: what else the user can do, for a UserError; otherwise: the same if the digits
    are wrong. Proxies: http_proxy, https_proxy and no_proxy of the environment.
    """
    hashed, part = (path.with_name(f"{path.name}.{kind}") for kind in ("sha256", "part"))
    for one in (path, part):
        if one.exists() and not one.is_file():
            raise UserError(f"{one}: not a plain file. Delete it")
    expected = digits or DIGITS.search(path.name)[1]
    if not path.is_file():
        with hold(path.parent, wait=True):
            if not path.is_file():  # another process may have downloaded it meanwhile
                address = url
                try:
                    address = mirrored(url)
                    print(f"{address} {terms}".strip())
                    fetch(address, part)
                except (OSError, HTTPException, ValueError) as error:
                    why = error.reason if type(error) is URLError else error
                    what = f"{path}: cannot be downloaded ({why}). Put {address} there by hand"
                    raise UserError(f"{what}, or name a mirror in {MIRROR}{advice}") from error
                found = sha256(part)
                if not found.startswith(expected):
                    if digits is None:
                        part.unlink()
                    what = "kept as .part" if digits else "removed"
                    what += f", its SHA-256 is {found}, expected is {expected}..."
                    raise UserError(f"{path}: {what}. Download it again{advice}{otherwise}")
                write_text(hashed, found)
                with writing(path):
                    os.replace(part, path)
                return path
    elif hashed.is_file() and digits is None:
        noted = WHOLE.match(read_bytes(hashed).decode("ascii", "replace").strip().lower())
        expected = noted[0] if noted else expected
    found = sha256(path)
    if not found.startswith(expected):
        what = f"damaged or another file, its SHA-256 is {found}, expected is {expected}..."
        raise UserError(f"{path}: {what}. Delete it and {hashed.name}{advice}{otherwise}")
    return path


def mirrored(url: str) -> str:
    """The address at the mirror, if there is one. ValueError for a mirror that is none."""
    place = urlsplit(url)
    mirror = os.environ.get(MIRROR) or f"{place.scheme}://{place.netloc}"
    if not mirror.isascii() or urlsplit(mirror).scheme not in ("http", "https"):
        raise ValueError(f"{MIRROR} is {mirror}, it must begin with https:// or http://")
    return f"{mirror.rstrip('/')}{place.path}"


def sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Delete it") from error


def fetch(url: str, part: Path) -> None:
    """Complete the file `part`; OSError, HTTPException or ValueError if TRIES attempts fail."""
    for seconds in range(TRIES):
        try:
            return append(url, part)
        except (OSError, HTTPException) as error:
            code = getattr(error, "code", 500)  # of an HTTPError; below 500 the server refuses
            if code == 416 and part.is_file():  # nothing is missing
                return None
            if code < 500 or seconds == TRIES - 1:
                raise
            print(f"{error}; trying again")
        time.sleep(seconds)


def append(url: str, part: Path) -> None:
    """Download what `part` lacks; OSError if the connection ends too early."""
    start = part.stat().st_size if part.is_file() else 0
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310
    with urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310 (our address, or a mirror)
        if answer.headers.get_content_type() == "text/html":
            raise OSError("the server sends a web page instead of the file")
        if answer.status != 206:  # the server sends the whole file
            start = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise OSError("the server sends another part of the file than asked for")
        total = None if answer.length is None else start + answer.length
        with writing(part):
            file = part.open("ab" if start else "wb", buffering=0)
        with file, progress(total, start=start, unit="B", label="download") as bar:
            while block := answer.read1(1 << 16):
                with writing(part):
                    file.write(block)
                bar.update(len(block))
    if total not in (None, size := part.stat().st_size):
        raise OSError(f"cut after {size:,} of {total:,} bytes")
