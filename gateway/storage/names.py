"""A client's file name made harmless: a name, never a path. Pure.

Whatever comes in, one name of one directory comes out, which Linux, macOS and Windows all take.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from pathlib import PurePosixPath
from typing import Final

#: NAME_MAX of Linux's file systems, in bytes of UTF-8, less room for "-9999" when the name is taken.
_MAX_BYTES: Final = 255 - 5
_MAX_SUFFIX_BYTES: Final = 32
_UNSAFE: Final = re.compile(r'[<>:"|?*\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]')
# Windows opens the device for these names, with any extension.
_DEVICE: Final = re.compile(r"(?i:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(?:\..*)?")


def safe_name(filename: str) -> str:
    """Return a name that is safe to create in a directory, as close to the client's as that allows.

    Directories are dropped in either spelling, leading dots too (they hide files, and ours that are unfinished);
    control and direction characters become `_`; a name with nothing left is `upload`.
    """
    name = filename.replace("\\", "/").rpartition("/")[2]
    name = unicodedata.normalize("NFC", name)
    name = _UNSAFE.sub("_", name).strip().lstrip(".").rstrip(". ")
    if _DEVICE.fullmatch(name):
        name = "_" + name
    return _shorten(name) or "upload"


def random_name(filename: str) -> str:
    """Return a fresh UUID with the extension of the client's name, where that is a plain one."""
    suffix = PurePosixPath(safe_name(filename)).suffix
    return uuid.uuid4().hex + (suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,16}", suffix) else "")


def numbered(name: str, number: int) -> str:
    """Return the name with a number before its extension: a.txt, a-1.txt, a-2.txt."""
    path = PurePosixPath(name)
    return f"{path.stem}-{number}{path.suffix}"


def _shorten(name: str) -> str:
    """Cut the stem, not the extension, to what a file system takes."""
    if len(name.encode()) <= _MAX_BYTES:
        return name
    path = PurePosixPath(name)
    suffix = path.suffix if len(path.suffix.encode()) <= _MAX_SUFFIX_BYTES else ""
    stem = name[: len(name) - len(suffix)].encode()[: _MAX_BYTES - len(suffix.encode())]
    return stem.decode(errors="ignore") + suffix
