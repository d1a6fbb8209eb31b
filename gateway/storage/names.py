"""File names from clients: made safe to create, numbered where taken, and paths checked. Pure.

Every file name a client sends becomes one name in one directory, never a path, valid on Linux, macOS and Windows.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote_to_bytes

from gateway.config import IfExists, Naming
from gateway.errors import Fault, FaultKind

#: NAME_MAX of Linux's file systems, in bytes of UTF-8, less room for the number "-9999".
_MAX_BYTES: Final = 255 - 5
_MAX_SUFFIX_BYTES: Final = 32
_UNSAFE: Final = re.compile(r'[<>:"|?*\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]')
# Windows opens the device for these names, with any extension.
_DEVICE: Final = re.compile(r"(?i:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(?:\..*)?")


@dataclass(frozen=True, slots=True)
class NameRules:
    """How the files of an upload are named, see the config's `store.name` and `store.if_exists`."""

    naming: Naming = "original"
    if_exists: IfExists = "rename"

    def choose(self, filename: str) -> str:
        """Return the name for a client's file name."""
        return random_name(filename) if self.naming == "uuid" else safe_name(filename)

    def candidates(self, name: str, max_number: int) -> Iterator[str]:
        """Yield the names to try in order, until one is free: a.txt, a-1.txt, a-2.txt; only the first with `reject`."""
        yield name
        if self.if_exists != "reject":
            for number in range(1, max_number + 1):
                yield numbered(name, number)


def safe_name(filename: str) -> str:
    """Return a name that is safe to create in a directory, as close to the client's as that allows.

    Directories are removed, Windows paths included, and leading dots too: dot files are hidden, as unfinished uploads
    are. Control and direction characters become `_`; an empty name becomes `upload`.
    """
    name = filename.replace("\\", "/").rpartition("/")[2]
    name = unicodedata.normalize("NFC", name)
    name = _UNSAFE.sub("_", name).strip().lstrip(".").rstrip(". ")
    if _DEVICE.fullmatch(name):
        name = "_" + name
    return _shorten(name) or "upload"


def random_name(filename: str) -> str:
    """Return a new UUID with the extension of the client's name, if that is 1 to 16 ASCII letters and digits."""
    suffix = PurePosixPath(safe_name(filename)).suffix
    return uuid.uuid4().hex + (suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,16}", suffix) else "")


def numbered(name: str, number: int) -> str:
    """Return the name with a number before its extension: a.txt, a-1.txt, a-2.txt."""
    path = PurePosixPath(name)
    return f"{path.stem}-{number}{path.suffix}"


def path_segments(path: str) -> list[bytes]:
    """Return the decoded segments of a percent-encoded path.

    Raises Fault FILE_NOT_FOUND for a path with a NUL, an empty segment, `.` or `..`.
    """
    name = unquote_to_bytes(path)
    segments = name.split(b"/")
    if b"\0" in name or any(segment in (b"", b".", b"..") for segment in segments):
        raise file_missing()
    return segments


def file_missing() -> Fault:
    """Return the fault for a file that does not exist or may not be served."""
    return Fault(FaultKind.FILE_NOT_FOUND, "There is no such file: check the path after the route's prefix.")


def name_taken(name: str) -> Fault:
    """Return the fault for a name that another file has."""
    return Fault(FaultKind.FILE_EXISTS, f"A file named {name!r} exists: choose another name, or set store.if_exists.")


def name_repeated(name: str) -> Fault:
    """Return the fault for two files of one upload that would replace each other."""
    return Fault(
        FaultKind.FILE_EXISTS,
        f"Two files of the upload are named {name!r}: choose other names, or set store.if_exists.",
    )


def name_blocked(name: str) -> Fault:
    """Return the fault for a name that a directory has."""
    return Fault(FaultKind.FILE_EXISTS, f"{name!r} is a directory, which no file replaces: choose another name.")


def name_refused(name: str) -> Fault:
    """Return the fault for a name that the file system cannot store."""
    return Fault(FaultKind.BAD_FILE_NAME, f"The file name {name!r} cannot be stored: choose a shorter or plainer one.")


def _shorten(name: str) -> str:
    """Cut the stem, not the extension, to the length a file system allows."""
    if len(name.encode()) <= _MAX_BYTES:
        return name
    path = PurePosixPath(name)
    suffix = path.suffix if len(path.suffix.encode()) <= _MAX_SUFFIX_BYTES else ""
    stem = name[: len(name) - len(suffix)].encode()[: _MAX_BYTES - len(suffix.encode())]
    return (stem.decode(errors="ignore") + suffix).rstrip(". ")
