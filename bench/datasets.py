"""Pictures from where data sets keep them: zip archives and folders."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def read_files(source: str | Path) -> Iterator[bytes]:
    """The picture files of a zip archive or of a folder and the folders in it, in the order of their names."""
    source = Path(source)
    if source.is_dir():
        for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES):
            yield path.read_bytes()
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for name in sorted(n for n in archive.namelist() if Path(n).suffix.lower() in SUFFIXES):
                yield archive.read(name)
    else:
        raise SystemExit(f"{source}: got neither a folder nor a zip archive of pictures; name one of these")
