"""Find the folders in which the kernel keeps the limits of this process's control groups.

Sources: the Linux kernel's documentation of cgroup v1 and v2, and proc(5) for cgroup and mountinfo.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def group_folders(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Yield the folders of this process's groups, each followed by its parents up to the mount; none outside Linux.

    Args:
        controller: a controller of cgroup v1, such as "memory"; a folder of v2 has the files of all controllers.
        root: folder to read the kernel's files in, instead of ``/``.
    """
    own: dict[str, str] = {}  # controller of v1, or "" for v2 -> the group's path
    for line in read_text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if separator and number.isdigit():
            own.update(dict.fromkeys(controllers.split(","), path))
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        group = None
        if kind[0] == "cgroup2":
            group = own.get("")
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            group = own.get(controller)
        if group is None:
            continue
        top = root / _unescape(fields[4]).lstrip("/")
        try:
            inside = PurePosixPath(group).relative_to(_unescape(fields[3]))
        except ValueError:  # in a container: the mount is the group, the path is the host's
            inside = PurePosixPath()
        if ".." in inside.parts:  # the group is outside this namespace's root
            inside = PurePosixPath()
        folder = top / inside
        yield folder
        yield from (above for above in folder.parents if above.is_relative_to(top))


def read_text(path: Path) -> str:
    """Read a kernel file; return "" where it is missing or unreadable."""
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:
        return ""


def _unescape(text: str) -> str:
    r"""Undo the octal escapes of mountinfo: ``\040`` is a space."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)
