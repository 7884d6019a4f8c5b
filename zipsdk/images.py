"""Files, PIL images and arrays -> uint8 RGB and back: the only place that knows value ranges, EXIF, alpha and 16 bit.

Everything else in zipsdk sees uint8 (H, W, 3) RGB, C-contiguous. Nothing about the input is guessed: a dtype fixes its
range, the layout of an array is declared, and what cannot be read without a guess is refused with what to do.
"""

from __future__ import annotations

import io
import os
import secrets
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from zipsdk.arrays import SHAPES, U8, Picture, check_array, check_clean, from_8bit, grey, read_array, to_8bit
from zipsdk.errors import InputError, PictureError

DEFAULT_MAX_PIXELS = 100_000_000

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF")

# format -> the suffixes it is written for, the modes it holds without loss of a channel or of depth, options
_WRITERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": (".jpg .jpeg .jpe .jfif", "L RGB", {"quality": 95, "subsampling": "4:4:4"}),
    "PNG": (".png", "1 L LA P RGB RGBA I;16", {}),
    "WEBP": (".webp", "L LA RGB RGBA", {"lossless": True, "exact": True}),  # exact: the colours below alpha 0 too
    "TIFF": (".tif .tiff", "1 L LA RGB RGBA I;16", {}),
    "BMP": (".bmp", "1 L RGB", {}),
    "PPM": (".ppm .pgm .pbm .pnm", "1 L RGB I;16", {}),
    "AVIF": (".avif", "L RGB RGBA", {"quality": 95, "subsampling": "4:4:4"}),
}

#: Pixels a side at most: what libwebp and libjpeg write.
_MOST = {"WEBP": 16_383, "JPEG": 65_500}

#: Bytes of EXIF at most: a segment of a JPEG. The others that are written hold any.
_MOST_EXIF = {"JPEG": 65_533}

#: Suffixes of the files that are read, for whoever lists a folder. The content decides how a file is decoded.
SUFFIXES = frozenset([".gif", ".apng", *(s for suffixes, _, _ in _WRITERS.values() for s in suffixes.split())])

#: Lower-case suffixes of image files that are not read, for whoever counts what was skipped in a folder.
UNREAD_SUFFIXES = frozenset(
    """
    .heic .heif .hif .avci .avcs .avifs .jxl .jp2 .j2k .j2c .jpc .jpf .jpx .jph .jls .jxr .wdp .hdp
    .psd .psb .xcf .kra .ora .ai .eps .ps .svg .svgz .pdf .wmf .emf .cdr
    .dng .cr2 .cr3 .crw .nef .nrw .arw .sr2 .srf .raf .orf .rw2 .rwl .pef .ptx .srw .3fr .fff .iiq .mos .mrw .erf
    .kdc .dcr .k25 .x3f .gpr .mef .raw
    .exr .hdr .rgbe .pic .dds .ktx .ktx2 .tga .icb .vda .vst .ico .cur .icns .pcx .dcx .sgi .rgb .rgba .bw .ras .sun
    .pam .pfm .xbm .xpm .qoi .flif .bpg .fits .fit .fts .dcm .dicom .nii .djvu .mng .jng .dib .wbmp .jbig .jbig2 .jb2
    """.split()
)


def read(
    batch: Any, *, layout: str = "NHWC", max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[list[Picture], Callable[[list[U8]], Any]]:
    """Read a batch of pictures.

    Args:
        batch: one of
            - an array (N, H, W, C), (H, W, C) or (H, W), with C = 1 (grey), 3 (RGB) or 4 (RGBA). Its dtype says its
              range: uint8 0..255; uint16 0..65535, inside x / 257; float16, float32, float64 0..1, inside x * 255.
              Both are rounded to 8 bit, half to even. N = 0 is fine;
            - a PIL image or a path (str, os.PathLike); see `read_one`;
            - a list or a tuple of PIL images, paths and single arrays, of mixed sizes.
        layout: "NHWC" or "NCHW": where arrays have their channels. It is never guessed.
        max_pixels: the largest width * height of a picture, checked before it is decoded.

    Returns:
        The pictures, and a function: it takes the purified pictures (uint8 (H, W, 3), in the same order) and gives back
        one thing of the type, size, dtype and layout of `batch` (a list for a list or a tuple). Grey is the mean of the
        three colours; the alpha of an array is put back as it came, bit for bit.

    Raises:
        InputError: an array or an object that cannot be used as given.
        PictureError: a file or a PIL image that cannot be read.
    """
    _check_options(layout, max_pixels)
    if isinstance(batch, (list, tuple)):
        pictures = [_read_item(x, layout, max_pixels, f"item {i} of the list: ") for i, x in enumerate(batch)]
        return pictures, lambda clean: [p.restore(c) for p, c in zip(pictures, _counted(clean, pictures), strict=True)]
    if isinstance(batch, np.ndarray) and batch.ndim == 4:
        array = np.asarray(batch)
        check_array(array, layout, max_pixels, "")
        pictures = [read_array(x, layout, (i,)) for i, x in enumerate(array)]
        shape, dtype = array.shape, array.dtype

        def back(clean: list[U8]) -> Any:
            # not np.stack, which would change the byte order of a big-endian batch and cannot stack nothing
            out = np.empty(shape, dtype)
            for i, (picture, c) in enumerate(zip(pictures, _counted(clean, pictures), strict=True)):
                out[i] = picture.restore(c)
            return out

        return pictures, back
    one = _read_item(batch, layout, max_pixels, "")
    return [one], lambda clean: one.restore(_counted(clean, [one])[0])


def read_one(item: Any, *, layout: str = "NHWC", max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
    """Read one picture.

    A PIL image and a path give back a PIL image with `info["icc_profile"]` and `info["exif"]` where there were any (the
    tags of a TIFF are not kept):

    - it is upright: the EXIF orientation is applied and its tag dropped (so width and height may have changed places).
      Malformed EXIF is left out, with a UserWarning, and the picture is as it is stored;
    - 1 and L come back as L, with transparency as LA; RGB, YCbCr, HSV and LAB as RGB; RGBA as RGBA; a palette as RGB,
      or as RGBA where it has transparency. Alpha is kept bit for bit;
    - 16-bit grey is scaled by 257 and comes back as I;16 (its colour key, if any, is lost). Pillow itself reads
      pictures of 16 bit a colour in 8 bit, so they come back in 8 bit;
    - CMYK comes back as RGB (sRGB): through its ICC profile, or, with a UserWarning, without one.

    Animated files and files of many pages are refused. Of a JPEG that carries further pictures (MPO: previews, the
    other eye) the first one is read, as every viewer does.

    Args:
        item: a PIL image, a path (str, os.PathLike) or one array (H, W), (H, W, C); see `read` for dtypes.
        layout: "NHWC" or "NCHW", for arrays.
        max_pixels: the largest width * height, checked before anything is decoded.

    Raises:
        InputError: an array or an object that cannot be used as given.
        PictureError: a file or a PIL image that cannot be read.
    """
    _check_options(layout, max_pixels)
    return _read_item(item, layout, max_pixels, "")


def save(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture whole or not at all: to a temporary file in the same folder, which then takes the name.

    The suffix decides the format: JPEG with quality 95 and no chroma subsampling (AVIF alike), PNG, WebP, TIFF, BMP and
    PPM without loss. `info["icc_profile"]` and `info["exif"]` are written where the format has a place for them; a
    picture whose EXIF has an orientation is turned upright and written without it. Malformed EXIF, and for JPEG what is
    longer than 65,533 bytes, is left out, with a UserWarning.

    Raises:
        InputError: the suffix is not one that is written, or the format cannot hold the mode or size of the picture.
        PictureError: the file cannot be written; what was there before is untouched.
    """
    if not isinstance(image, Image.Image):
        raise InputError(f"image to save: got {type(image).__name__}, wanted a PIL image: use Image.fromarray(array)")
    target = Path(path)
    kind = format_of(target, image.mode, image.size)
    options = _WRITERS[kind][2]
    # in the same folder, because a rename is atomic within one file system only
    temporary = target.with_name(f".zipsdk-{secrets.token_hex(8)}.tmp")
    try:
        with _pillow_silent():
            image, info, caution = _upright(image, str(target))
        exif, most = len(info.get("exif", b"")), _MOST_EXIF.get(kind)
        if most is not None and exif > most:
            del info["exif"]
            caution = (
                f"{target}: its EXIF has {exif} bytes, and {kind} holds at most {most}: it is left out; "
                "write a .png to keep it"
            )
        with temporary.open("xb") as f:
            image.save(f, kind, **options, **info)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(target)
    except Exception as exc:
        raise PictureError(
            f"{target}: cannot be written ({type(exc).__name__}: {exc}): "
            f"check that the folder is there, that you may write to it, and that the disk has room"
        ) from exc
    finally:
        # gone already when all went well; `finally`, so that Ctrl-C leaves nothing behind either
        with suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)
    if caution:
        warnings.warn(caution, UserWarning, stacklevel=2)


def format_of(path: str | os.PathLike[str], mode: str, size: tuple[int, int]) -> str:
    """The format that `save` writes a picture of this PIL mode and size in, by the suffix; nothing is written.

    Raises:
        InputError: the suffix is not one that is written, or the format cannot hold the mode or the size.
    """
    suffix = Path(path).suffix
    kind = next((k for k, (suffixes, _, _) in _WRITERS.items() if suffix.lower() in suffixes.split()), None)
    if kind is None:
        known = " ".join(suffixes for suffixes, _, _ in _WRITERS.values())
        raise InputError(f"{path}: got the suffix {suffix!r}, wanted one of {known}: write a .png, for example")
    modes = _WRITERS[kind][1]
    if mode not in modes.split():
        raise InputError(
            f"{path}: got a picture of mode {mode}, wanted one of {modes}, which is what {kind} holds: "
            f"write a .png, or convert the picture"
        )
    most = _MOST.get(kind, max(size))
    if max(size) > most:
        raise InputError(
            f"{path}: got a picture of {size[0]} x {size[1]} pixels, wanted at most {most} a side, which is what "
            f"{kind} holds: write a .png, or make it smaller"
        )
    return kind


def _check_options(layout: str, max_pixels: int) -> None:
    if layout not in SHAPES:
        raise InputError(f'layout: got {layout!r}, wanted "NHWC" (channels last) or "NCHW" (channels first)')
    if not isinstance(max_pixels, int) or max_pixels < 1:
        raise InputError(f"max_pixels: got {max_pixels!r}, wanted a whole number of at least 1")


def _counted(clean: list[U8], pictures: list[Picture]) -> list[U8]:
    if len(clean) != len(pictures):
        raise InputError(f"purified pictures: got {len(clean)}, wanted {len(pictures)}, one for each that was read")
    return clean


def _read_item(item: Any, layout: str, max_pixels: int, where: str) -> Picture:
    if isinstance(item, np.ndarray):
        array = np.asarray(item)
        if array.ndim == 4:
            raise InputError(
                f"{where}got an array of shape {array.shape}, wanted one picture: "
                f"pass the batch itself, or a list of its pictures, to run()"
            )
        check_array(array, layout, max_pixels, where)
        return read_array(array, layout, (), where)
    if isinstance(item, (Image.Image, str, os.PathLike)):
        return _read_pil(item, max_pixels, where)
    kind = f"{type(item).__module__}.{type(item).__qualname__}"
    hint = "convert it with np.asarray(...)"
    if kind.startswith("torch."):
        hint = 'pass tensor.numpy() (tensor.cpu().numpy() from a GPU), with layout="NCHW" where channels come first'
    raise InputError(f"{where}got a {kind}, wanted a NumPy array, a PIL image, a path or a list of these: {hint}")


# ---- files and PIL images

_one_at_a_time = threading.Lock()


def _free_after_fork() -> None:
    """The thread that held the lock may not exist in the child, which would wait for it for ever."""
    global _one_at_a_time
    _one_at_a_time = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_free_after_fork)


@contextmanager
def _pillow_silent() -> Iterator[None]:
    """Pillow warns about sizes, which `max_pixels` governs here, and about metadata, which is not what is purified.

    Filters belong to the whole process, hence the lock, and hence only warnings that come from Pillow's own modules.
    """
    with _one_at_a_time, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(f for f in _FORMATS if f in Image.OPEN)  # AVIF is not in every build of Pillow


def _read_pil(item: Image.Image | str | os.PathLike[str], max_pixels: int, where: str) -> Picture:
    name = where + str(getattr(item, "filename", "") or "PIL image" if isinstance(item, Image.Image) else item)
    try:
        with _pillow_silent():
            if isinstance(item, Image.Image):
                picture, caution = _decode(item, name, max_pixels)
            else:
                with _file(Path(item), name).open("rb") as f:
                    picture, caution = _decode(Image.open(f, formats=_formats()), name, max_pixels)
    except Exception as exc:
        raise _refusal(name, exc) from exc
    if caution:
        warnings.warn(caution, UserWarning, stacklevel=4)
    return picture


def _file(path: Path, name: str) -> Path:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise PictureError(f"{name}: got a folder, wanted a picture file: pass the files in it")
    if not stat.S_ISREG(mode):  # a pipe would block, and a device may never end
        raise PictureError(f"{name}: got a special file, wanted a picture file: copy it to a file first")
    return path


def _refusal(name: str, exc: Exception) -> PictureError:
    """Whatever went wrong with a file, in words. Decoders raise nearly anything on a damaged file."""
    if isinstance(exc, PictureError):
        return exc
    got, hint = f"{type(exc).__name__}: {exc}", "the file is damaged or incomplete; fetch or save it again"
    if isinstance(exc, FileNotFoundError):
        got, hint = "no such file", "check the path"
    elif isinstance(exc, PermissionError):
        got, hint = "a file that may not be read", "check its permissions"
    elif isinstance(exc, Image.DecompressionBombError):
        hint = "make it smaller, or cut it into parts; the limit is PIL.Image.MAX_IMAGE_PIXELS"
    elif isinstance(exc, UnidentifiedImageError):
        got, hint = "a file that is none of these, or a damaged one", "convert it to PNG or JPEG"
    elif isinstance(exc, MemoryError):
        hint = "not enough memory; make it smaller, or cut it into parts"
    return PictureError(f"{name}: got {got}, wanted a picture ({', '.join(_formats())}): {hint}")


def _decode(im: Image.Image, name: str, max_pixels: int) -> tuple[Picture, str]:
    """A PIL image -> Picture, and what the caller should be warned of ("" for nothing)."""
    width, height = im.size
    if width < 1 or height < 1:
        raise PictureError(f"{name}: got {width} x {height} pixels, wanted at least 1 x 1: leave it out")
    if width * height > max_pixels:
        raise PictureError(
            f"{name}: got {width} x {height} pixels, wanted at most {max_pixels} pixels: "
            f"make it smaller, or cut it into parts"
        )
    frames = 1 if im.format == "MPO" else getattr(im, "n_frames", 1)
    if frames > 1:
        raise PictureError(f"{name}: got {frames} frames, wanted one: choose a frame and save it by itself")
    kind = im.format
    im, info, caution = _upright(im, name)
    mode = im.mode
    if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM")):  # the formats whose mode I has 16 bit
        deep = np.asarray(im)
        if deep.min() < 0 or deep.max() > 65535:
            raise PictureError(f"{name}: got mode {mode} with values beyond 0..65535, wanted 16 bit: scale it")
        levels = to_8bit(deep.astype(np.uint16))
        return _pil_picture(np.repeat(levels[:, :, None], 3, axis=2), "I;16", None, info), caution
    if mode in ("I", "F"):
        raise PictureError(
            f"{name}: got mode {mode} (32 bit), whose range nothing tells, wanted 8 or 16 bit: "
            f"scale it to 0..255 and convert it to L, or pass a float array in [0, 1]"
        )
    if mode in ("CMYK", "LAB"):
        im, colours = _to_srgb(im, name)
        caution = "; ".join(filter(None, (caution, colours)))
        info.pop("icc_profile", None)  # it described the colours that are gone
    elif im.has_transparency_data:
        im = im.convert("LA" if mode in ("1", "L", "LA", "La") else "RGBA")
    elif mode in ("1", "L"):
        im = im.convert("L")
    else:
        im = im.convert("RGB")
    alpha = im.getchannel("A") if im.mode in ("LA", "RGBA") else None
    # Pillow repeats grey exactly and drops alpha as it is
    return _pil_picture(np.array(im.convert("RGB"), np.uint8, order="C"), im.mode, alpha, info), caution


def _pil_picture(rgb: U8, mode: str, alpha: Image.Image | None, info: dict[str, bytes]) -> Picture:
    def restore(clean: U8) -> Image.Image:
        check_clean(clean, rgb)
        if mode in ("RGB", "RGBA"):
            out = Image.fromarray(clean)
        elif mode == "I;16":
            out = Image.fromarray(from_8bit(grey(clean), np.dtype(np.uint16)))
        else:
            out = Image.fromarray(grey(clean))
        if alpha is not None:
            out.putalpha(alpha)
        out.info.update(info)
        return out

    return Picture(rgb, restore)


def _upright(im: Image.Image, name: str) -> tuple[Image.Image, dict[str, Any], str]:
    """A new image with its EXIF orientation applied, the ICC profile and the EXIF to keep, without that tag, and what
    the caller should be warned of ("" for nothing)."""
    im.load()  # so that whatever fails below is the EXIF's fault, and not that of the pixels
    try:
        Image.Exif().load(im.info.get("exif", b""))  # where Pillow has failed once, it says nothing the second time
        upright = ImageOps.exif_transpose(im)
        info: dict[str, Any] = {k: upright.info[k] for k in ("icc_profile", "exif") if upright.info.get(k)}
        exif = upright.getexif()
        turned = exif.pop(ExifTags.Base.Orientation, None) is not None  # 1, or a number that means nothing
        if turned or (exif and "exif" not in info):
            info["exif"] = exif.tobytes()
        return upright, info, ""
    except MemoryError:
        raise
    except Exception as exc:  # Pillow raises nearly anything on it
        caution = f"{name}: its EXIF is malformed ({exc}): it is left out, and an orientation in it is not applied"
        return im.copy(), {k: im.info[k] for k in ("icc_profile",) if im.info.get(k)}, caution


def _to_srgb(im: Image.Image, name: str) -> tuple[Image.Image, str]:
    """CMYK or LAB -> RGB; the second value is a warning, or "" """
    srgb = ImageCms.createProfile("sRGB")
    if im.mode == "LAB":
        source: Any = ImageCms.createProfile("LAB")
        return _converted(im, source, srgb), ""
    profile, why = im.info.get("icc_profile"), "it has no ICC profile"
    if profile:
        try:
            return _converted(im, ImageCms.ImageCmsProfile(io.BytesIO(profile)), srgb), ""
        except (ImageCms.PyCMSError, OSError) as exc:
            why = f"its ICC profile cannot be used ({exc})"
    return im.convert("RGB"), f"{name}: CMYK is converted to RGB by a plain formula, because {why}: colours may be off"


def _converted(im: Image.Image, source: Any, srgb: Any) -> Image.Image:
    out = ImageCms.profileToProfile(im, source, srgb, outputMode="RGB")
    if out is None:
        raise OSError("no conversion")
    return out
