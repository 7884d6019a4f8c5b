"""Find the images of files, folders and patterns, and choose the names of their outputs."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from zipsdk import images
from zipsdk.batch.globs import expand, split_pattern
from zipsdk.batch.manifest import MANIFEST, Job
from zipsdk.errors import InputError
from zipsdk.images.contact_sheet import is_sheet

#: Formats that are read but not written -> the format of their outputs.
_KEPT_AS = {".gif": ".png", ".apng": ".png"}

_AGAIN = "pass it as an input to purify it again"


def find_jobs(
    inputs: Sequence[str],
    out: Path,
    output_format: str,
    on_error: Callable[[str], None],
    on_warning: Callable[[str], None],
    sheet: Path | None = None,
    on_skip: Callable[[Path], None] = lambda path: None,
) -> list[Job]:
    """List the images of files, folders and patterns, with their outputs.

    Hidden files, links to folders, OUT itself and the sheet of an earlier run at the same path are left out of folders.
    So are the output folders of other runs, unless one is an input itself: their images are purified already.
    An input that exists is taken literally, even if its name looks like a pattern; `zipsdk.batch.globs` documents what
    a pattern matches.

    Args:
        inputs: paths of files and folders, and patterns.
        out: the output folder OUT; it need not exist.
        output_format: "keep", or the suffix of all outputs without its dot.
        on_error: called with a message for each folder that cannot be read.
        on_warning: called with a message for each link to a folder and each output folder that is left out.
        sheet: path of the sheet of this run.
        on_skip: called with each file in a folder or a pattern with the suffix of an image format that is not read.

    Raises:
        InputError: an input does not exist or holds no image, OUT is an input, two images have the same output, or an
            output is an input.
    """
    search = _Search(out, on_error, on_warning, on_skip)
    by_name: dict[str, Job] = {}
    caseless = _caseless(out)
    for text in inputs:
        found = 0
        for base, source in search.sources(text):
            if sheet and source != Path(text) and same_file(source, sheet) and is_sheet(source):
                continue
            found += 1
            name = _output_name(source.relative_to(base), output_format)
            job = by_name.setdefault(name.casefold() if caseless else name, Job(source, name))
            if job.source != source and not _same_source(job.source, source):
                raise InputError(
                    f"{job.source} and {source}: got two inputs with the same output {out / name}, expected one; "
                    "rename one of them, or use an output folder for each"
                )
        if not found:
            raise InputError(search.describe_failure(text))
    jobs = list(by_name.values())
    # only for outputs that exist, because a check of every input is slow in a folder of 100,000
    existing = [(job, entry) for job in jobs if (entry := _entry(out / job.name))]
    if existing:
        entries = {_entry(path) for job in jobs for path in (job.source, Path(os.path.realpath(job.source)))}
        for job, entry in existing:
            if entry in entries:
                raise InputError(f"{out / job.name}: got an output that is also an input; use another output folder")
    return jobs


def describe_skipped(paths: Iterable[Path]) -> str:
    """Describe files of image formats that are not read: ``3 files skipped: .heic (2), .jxl (1): ...``."""
    suffixes = Counter(path.suffix.lower() for path in paths)
    listed = ", ".join(f"{suffix} ({n})" for suffix, n in sorted(suffixes.items(), key=lambda s: (-s[1], s[0])))
    files = "1 file" if suffixes.total() == 1 else f"{suffixes.total()} files"
    return f"{files} skipped: {listed}: zipsdk does not read these; convert them to PNG or JPEG"


def same_file(a: Path, b: Path) -> bool:
    """Tell whether two paths lead to the same file or folder; False if one of them does not exist."""
    try:
        return a.samefile(b)
    except OSError:
        return False


def _same_source(a: Path, b: Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b) or same_file(a, b)


def _caseless(folder: Path) -> bool:
    """Tell whether a.png and A.png are the same file in a folder, as on most disks of Windows and macOS.

    The test uses the nearest folder that exists and has letters in its name.
    """
    for current in (folder.absolute(), *folder.absolute().parents):
        if current.name.swapcase() != current.name and current.exists():
            return same_file(current, current.with_name(current.name.swapcase()))
    return sys.platform == "win32"


def _entry(path: Path) -> tuple[int, ...] | None:
    """Identify a file and its folder independent of spelling, without following a link; None if it does not exist."""
    try:
        folder, file = path.parent.stat(), path.lstat()
    except OSError:
        return None
    return folder.st_dev, folder.st_ino, file.st_dev, file.st_ino


def _output_name(relative: Path, output_format: str) -> str:
    suffix = relative.suffix
    if output_format != "keep":
        suffix = f".{output_format}"
    elif suffix.lower() not in images.SUFFIXES:
        suffix = ".png"
    return relative.with_suffix(_KEPT_AS.get(suffix.lower(), suffix)).as_posix()


class _Search:
    """Search the inputs of one run for images; see `find_jobs` for the arguments."""

    def __init__(
        self,
        out: Path,
        on_error: Callable[[str], None],
        on_warning: Callable[[str], None],
        on_skip: Callable[[Path], None],
    ):
        self._out, self._on_error, self._on_warning, self._on_skip = out, on_error, on_warning, on_skip
        self._skipped: list[Path] = []  # of the current input
        self._found_outputs: list[Path] = []
        self._in_out: dict[Path, bool] = {}
        self._is_output_folder: dict[Path, bool] = {}

    def sources(self, text: str) -> Iterator[tuple[Path, Path]]:
        """Yield (base folder of the output names, image) for each image of one input."""
        self._skipped, self._found_outputs = [], []
        path = Path(text)
        if path.is_dir():
            if same_file(path, self._out):
                raise InputError(f"{text}: got the output folder as an input; use another output folder")
            for file in self._walk(path):
                yield path, file
            return
        if os.path.lexists(path):
            yield path.parent, path
            return
        base, parts = split_pattern(path)
        if not parts:
            raise InputError(f"{text}: got no such file or folder; check the path")
        if ".." in parts:  # the output would lie outside OUT
            raise InputError(f"{text}: got '..' after a pattern, expected names only; pass the folder itself")
        around = self._inside_out(Path(os.path.realpath(base)))
        for match in expand(base, parts, self._unreadable):
            if (self._inside_out(match) and not around) or self._inside_output(base, match):
                continue
            if match.is_dir():
                for file in self._walk(match):
                    yield base, file
            elif self._is_image(match):
                yield base, match

    def describe_failure(self, text: str) -> str:
        """Describe the search for an input that gave no image."""
        if self._skipped:
            return f"{text}: got no image that zipsdk reads; {describe_skipped(self._skipped)}"
        if self._found_outputs:
            return f"{text}: got no image outside of {self._found_outputs[0]}, the output folder of a run; {_AGAIN}"
        expected = f"expected some of {' '.join(sorted(images.SUFFIXES))}"
        base, parts = split_pattern(Path(text))
        if os.path.lexists(text) or not parts:
            return f"{text}: got no image; {expected}"
        pattern = Path(*parts)
        if not base.is_dir():
            return f"{text}: got no image, because {base} is not a folder; check the path"

        def listed(caseless: bool) -> list[Path]:
            found = expand(base, parts, lambda e: None, caseless)
            return list(dict.fromkeys(m for m in found if not self._inside_out(m)))

        if matches := listed(caseless=False):
            found = f"{len(matches)} matches of {pattern} in {base}, such as {matches[0]}"
            return f"{text}: got no image, but {found}; {expected}"
        message = f"{text}: got no image: nothing in the folder {base} matches {pattern}"
        if others := listed(caseless=True):
            return f"{message}; {others[0]} matches if case is ignored: use the case of the names"
        return f"{message}; check the pattern (hidden names are matched only by patterns that start with a dot)"

    def _walk(self, folder: Path) -> Iterator[Path]:
        for root, folders, files in os.walk(folder, onerror=self._unreadable):
            current = Path(root)
            visible = sorted(f for f in folders if not f.startswith(".") and not same_file(current / f, self._out))
            for linked in (f for f in visible if (current / f).is_symlink()):
                self._on_warning(
                    f"{current / linked}: got a link to a folder, which is not followed; pass it as an input"
                )
            folders[:] = [f for f in visible if not (current / f).is_symlink() and not self._is_output(current / f)]
            for name in sorted(files):
                if not name.startswith(".") and self._is_image(current / name):
                    yield current / name

    def _is_image(self, path: Path) -> bool:
        suffix = path.suffix.lower()
        if suffix in images.UNREAD_SUFFIXES:
            self._skipped.append(path)
            self._on_skip(path)
        return suffix in images.SUFFIXES

    def _is_output(self, folder: Path) -> bool:
        """Tell whether a folder is the output folder of a run; warn about each once."""
        if folder not in self._is_output_folder:
            self._is_output_folder[folder] = (folder / MANIFEST).is_file()
            if self._is_output_folder[folder]:
                self._on_warning(f"{folder}: got the output folder of an earlier run, which is left out; {_AGAIN}")
        if self._is_output_folder[folder]:
            self._found_outputs.append(folder)
        return self._is_output_folder[folder]

    def _inside_output(self, base: Path, path: Path) -> bool:
        """Tell whether a path below a base folder is the output folder of a run, or is inside one below the base."""
        inner = path.relative_to(base)
        folders = (*inner.parents[:-1], inner) if path.is_dir() else inner.parents[:-1]  # [-1] is the base
        return any(self._is_output(base / folder) for folder in folders)

    def _unreadable(self, e: OSError) -> None:
        self._on_error(f"{e.filename}: cannot be read ({e.strerror}); check its permissions")

    def _inside_out(self, path: Path) -> bool:
        """Tell whether a path is OUT or is inside OUT; links among its folders are resolved, its last part is not."""
        if path.parent not in self._in_out:
            folder = Path(os.path.realpath(path.parent))
            self._in_out[path.parent] = any(same_file(p, self._out) for p in (folder, *folder.parents))
        return self._in_out[path.parent] or same_file(Path(os.path.realpath(path.parent), path.name), self._out)
