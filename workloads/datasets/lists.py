"""A list of a published data set as text, or what is wrong with the file."""

from __future__ import annotations

from pathlib import Path

from workloads.mistakes import Mistake


def read(path: Path, field: str) -> str:
    """Return the text of a list; `field` names its folder in a Mistake."""
    try:
        content = path.read_bytes()
    except OSError as error:
        what = f"{field}: {path.name}: {(error.strerror or str(error)).lower()}"
        raise Mistake(what, "it should be a file that can be read") from error
    try:
        return content.decode("utf-8-sig")  # -sig: spreadsheets write a BOM
    except UnicodeDecodeError as error:
        row = error.object.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{error.object[error.start]:02x}"
        what = f"{field}: {path.name}: row {row} is not UTF-8 ({byte})"
        raise Mistake(what, "save the list as UTF-8") from error
