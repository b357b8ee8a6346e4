"""Files inside zip archives, read where they are; nothing is ever unpacked."""

import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from utils.errors import UserError

LARGEST = 64 << 20  # bytes of one member: Cityscapes' images have 3 MB
RATIO = 200  # by how much a member may grow: a bomb grows more
ENCRYPTED = 1  # bit of flag_bits, APPNOTE.TXT section 4.4.4


@dataclass(frozen=True)
class Member:
    """A file of an archive, as far as reading it goes like a Path."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def __str__(self) -> str:
        return f"{self.archive.filename}/{self.info.filename}"

    @property
    def size(self) -> int:
        return self.info.file_size

    def open(self, mode: str = "rb") -> IO[bytes]:
        """A stream of the content; reading it to the end compares the archive's checksum."""
        if self.info.flag_bits & ENCRYPTED:
            raise UserError(f"{self}: encrypted. Give the official archive")
        if self.size > LARGEST or self.size > RATIO * max(self.info.compress_size, 4096):
            raise UserError(f"{self}: {self.size} bytes unpacked. Give the official archive")
        try:
            return self.archive.open(self.info)
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise UserError(f"{self}: damaged ({error}). Load the archive again") from error

    def read_bytes(self) -> bytes:
        """Safe to call from several threads."""
        try:
            with self.open() as file:
                return file.read()
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
            raise UserError(f"{self}: damaged ({error}). Load the archive again") from error


def find_members(archives: list[Path], pattern: str) -> dict[str, Member]:
    """Members whose path ends as `pattern`, in which * is any name -> by that ending, sorted.

    UserError for a file that is no zip archive, and where no archive has such a member.
    """
    found: dict[str, Member] = {}
    ending = re.compile(rf"(?:^|/)({re.escape(pattern).replace(re.escape('*'), '[^/]+')})$")
    for path in archives:
        try:
            archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: no zip archive ({error}). Load it again") from error
        for info in archive.infolist():
            match = ending.search(info.filename)
            if match:
                if match[1] in found:
                    raise UserError(f"{path}: a second {match[1]}. Give each archive once")
                found[match[1]] = Member(archive, info)
    if not found:
        names = ", ".join(path.name for path in archives)
        raise UserError(f"{names}: no {pattern}. Give leftImg8bit and gtFine _trainvaltest.zip")
    return dict(sorted(found.items()))
