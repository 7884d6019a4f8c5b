"""Find the images of files, folders and patterns, and name their outputs."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from zipsdk import images
from zipsdk.batch.globs import expand, split_pattern
from zipsdk.batch.manifest import Job
from zipsdk.errors import InputError
from zipsdk.images.contact_sheet import is_sheet

# what is read but not written in its own format
_KEPT_AS = {".gif": ".png", ".apng": ".png"}


def find_jobs(inputs: Sequence[str], out: Path, form: str, on_error: Callable[[str], None],
              on_warning: Callable[[str], None], sheet: Path | None = None,
              on_skip: Callable[[Path], None] = lambda path: None) -> list[Job]:  # fmt: skip
    """List the images of files, folders and patterns, with their outputs.

    Folders are walked without following links to folders, and without hidden files, OUT itself and the sheet that an
    earlier run left where this one's will be. An input that exists is taken as it is, also where its name looks like a
    pattern; `zipsdk.batch.globs` says what a pattern matches.

    Args:
        form: "keep", or the suffix of all outputs without its dot.
        on_error: called with a message for each folder that cannot be read.
        on_warning: called with a message for each linked folder that is left out.
        sheet: where this run's sheet will be.
        on_skip: called with each file in a folder or of a pattern that is an image by its suffix, but is not read.

    Raises:
        InputError: an input that is not there or holds no image, OUT among the inputs, two images with one output, or
            an output that is an input.
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
            name = _output_name(source.relative_to(base), form)
            job = by_name.setdefault(name.casefold() if caseless else name, Job(source, name))
            if job.source != source and not _same_source(job.source, source):
                raise InputError(
                    f"{job.source} and {source} would both be written to {out / name}; "
                    "rename one of them, or use an output folder for each"
                )
        if not found:
            raise InputError(search.nothing(text))
    jobs = list(by_name.values())
    # most outputs are not there yet, and looking at every input takes long in a folder of 100,000
    there = [(job, entry) for job in jobs if (entry := _entry(out / job.name))]
    if there:
        entries = {_entry(path) for job in jobs for path in (job.source, Path(os.path.realpath(job.source)))}
        for job, entry in there:
            if entry in entries:
                raise InputError(f"{out / job.name} is an input and would be overwritten; use another output folder")
    return jobs


def describe_skipped(paths: Iterable[Path]) -> str:
    """``3 files skipped: .heic (2), .jxl (1): ...`` for files whose suffixes are images that are not read."""
    suffixes = Counter(path.suffix.lower() for path in paths)
    listed = ", ".join(f"{suffix} ({n})" for suffix, n in sorted(suffixes.items(), key=lambda s: (-s[1], s[0])))
    files = "1 file" if suffixes.total() == 1 else f"{suffixes.total()} files"
    return f"{files} skipped: {listed}: zipsdk does not read these; convert them to PNG or JPEG"


def same_file(a: Path, b: Path) -> bool:
    """Tell whether two paths lead to one file or folder, however they are spelled; what is not there is none."""
    try:
        return a.samefile(b)
    except OSError:
        return False


def _same_source(a: Path, b: Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b) or same_file(a, b)


def _caseless(folder: Path) -> bool:
    """Tell whether a.png and A.png are one file there, as on most disks of Windows and macOS: asked of the nearest
    folder that is there and has letters in its name."""
    for here in (folder.absolute(), *folder.absolute().parents):
        if here.name.swapcase() != here.name and here.exists():
            return same_file(here, here.with_name(here.name.swapcase()))
    return sys.platform == "win32"


def _entry(path: Path) -> tuple[int, ...] | None:
    """A file, itself and not what it links to, in its folder, however both are spelled; None where nothing is."""
    try:
        folder, file = path.parent.stat(), path.lstat()
    except OSError:
        return None
    return folder.st_dev, folder.st_ino, file.st_dev, file.st_ino


def _output_name(relative: Path, form: str) -> str:
    suffix = relative.suffix
    if form != "keep":
        suffix = f".{form}"
    elif suffix.lower() not in images.SUFFIXES:
        suffix = ".png"
    return relative.with_suffix(_KEPT_AS.get(suffix.lower(), suffix)).as_posix()


class _Search:
    """The search for the images of one run's inputs; see `find_jobs` for the arguments."""

    def __init__(self, out: Path, on_error: Callable[[str], None], on_warning: Callable[[str], None],
                 on_skip: Callable[[Path], None]):  # fmt: skip
        self._out, self._on_error, self._on_warning, self._on_skip = out, on_error, on_warning, on_skip
        self._skipped: list[Path] = []  # of the current input
        self._in_out: dict[Path, bool] = {}

    def sources(self, text: str) -> Iterator[tuple[Path, Path]]:
        """Yield (the folder that names are relative to, an image) for each image of one input."""
        self._skipped = []
        path = Path(text)
        if path.is_dir():
            if same_file(path, self._out):
                raise InputError(f"{text}: the output folder is an input; use another output folder")
            for file in self._walk(path):
                yield path, file
            return
        if os.path.lexists(path):
            yield path.parent, path
            return
        base, parts = split_pattern(path)
        if not parts:
            raise InputError(f"{text}: no such file or folder; check the path")
        if ".." in parts:  # the output's name would lead out of OUT
            raise InputError(f"{text}: got '..' behind a pattern, expected names only; give the folder itself")
        around = self._inside_out(Path(os.path.realpath(base)))
        for match in expand(base, parts, self._unreadable):
            if self._inside_out(match) and not around:
                continue
            if match.is_dir():
                for file in self._walk(match):
                    yield base, file
            elif self._is_image(match):
                yield base, match

    def nothing(self, text: str) -> str:
        """Say what was tried for an input that gave no image."""
        if self._skipped:
            return f"{text}: no picture there that zipsdk reads; {describe_skipped(self._skipped)}"
        wanted = f"wanted some of {' '.join(sorted(images.SUFFIXES))}"
        base, parts = split_pattern(Path(text))
        if os.path.lexists(text) or not parts:
            return f"{text}: no picture there; {wanted}"
        pattern = Path(*parts)
        if not base.is_dir():
            return f"{text}: no picture there, because {base} is no folder; check the path"

        def listed(caseless: bool) -> list[Path]:
            found = expand(base, parts, lambda e: None, caseless)
            return list(dict.fromkeys(m for m in found if not self._inside_out(m)))

        if matches := listed(caseless=False):
            some = f"{len(matches)} matches of {pattern} in {base}, such as {matches[0]}"
            return f"{text}: no picture there, but {some}; {wanted}"
        tried = f"{text}: no picture there: nothing in the folder {base} matches {pattern}"
        if others := listed(caseless=True):
            return f"{tried}; {others[0]} does if letter case is ignored: write the pattern as the names are"
        return f"{tried}; check the pattern (a hidden name is matched only where the pattern has the dot)"

    def _walk(self, folder: Path) -> Iterator[Path]:
        for root, folders, files in os.walk(folder, onerror=self._unreadable):
            here = Path(root)
            visible = sorted(f for f in folders if not f.startswith(".") and not same_file(here / f, self._out))
            for linked in (f for f in visible if (here / f).is_symlink()):
                self._on_warning(f"{here / linked}: a link to a folder is not followed; name it as an input of its own")
            folders[:] = [f for f in visible if not (here / f).is_symlink()]
            for name in sorted(files):
                if not name.startswith(".") and self._is_image(here / name):
                    yield here / name

    def _is_image(self, path: Path) -> bool:
        suffix = path.suffix.lower()
        if suffix in images.UNREAD_SUFFIXES:
            self._skipped.append(path)
            self._on_skip(path)
        return suffix in images.SUFFIXES

    def _unreadable(self, e: OSError) -> None:
        self._on_error(f"{e.filename}: cannot be read ({e.strerror}); check its permissions")

    def _inside_out(self, path: Path) -> bool:
        """Tell whether a path is OUT or leads into it, by the links of its folders but not by its own."""
        if path.parent not in self._in_out:
            folder = Path(os.path.realpath(path.parent))
            self._in_out[path.parent] = any(same_file(p, self._out) for p in (folder, *folder.parents))
        return self._in_out[path.parent] or same_file(Path(os.path.realpath(path.parent), path.name), self._out)
