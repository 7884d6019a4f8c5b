"""Detect the format of an image file from its first bytes; name the formats that are not read."""

from __future__ import annotations

#: Formats that are read, by Pillow's names.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF")

#: Lower-case suffixes of image formats that are not read, to count skipped files in a folder.
UNREAD_SUFFIXES = frozenset(
    [
        *(".heic", ".heif", ".hif", ".avci", ".avcs", ".avifs", ".jxl", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf"),
        *(".jpx", ".jph", ".jls", ".jxr", ".wdp", ".hdp", ".psd", ".psb", ".xcf", ".kra", ".ora", ".ai", ".eps", ".ps"),
        *(".svg", ".svgz", ".pdf", ".wmf", ".emf", ".cdr", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw"),
        *(".sr2", ".srf", ".raf", ".orf", ".rw2", ".rwl", ".pef", ".ptx", ".srw", ".3fr", ".fff", ".iiq", ".mos"),
        *(".mrw", ".erf", ".kdc", ".dcr", ".k25", ".x3f", ".gpr", ".mef", ".raw", ".exr", ".hdr", ".rgbe", ".pic"),
        *(".dds", ".ktx", ".ktx2", ".tga", ".icb", ".vda", ".vst", ".ico", ".cur", ".icns", ".pcx", ".dcx", ".sgi"),
        *(".rgb", ".rgba", ".bw", ".ras", ".sun", ".pam", ".pfm", ".xbm", ".xpm", ".qoi", ".flif", ".bpg", ".fits"),
        *(".fit", ".fts", ".dcm", ".dicom", ".nii", ".djvu", ".mng", ".jng", ".dib", ".wbmp"),
        *(".jbig", ".jbig2", ".jb2"),
    ]
)

#: Bytes at the start of a file that are searched for its format.
HEAD = 1024

_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC"),
    **dict.fromkeys((b"avci", b"avcs"), "AVC in HEIF"),
    b"crx ": "Canon CR3 raw",
    b"jp2 ": "JPEG 2000",
}
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\xd8\xff\xf7", "JPEG-LS"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"%PDF-", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"8BPS", "Photoshop"),
    (b"gimp xcf", "GIMP"),
    (b"\x1f\x8b", "gzip (perhaps SVGZ)"),
    (b"FUJIFILMCCD-RAW", "Fujifilm RAF raw"),
    (b"IIRO", "Olympus ORF raw"),
    (b"IIRS", "Olympus ORF raw"),
    (b"MMOR", "Olympus ORF raw"),
    (b"IIU\0", "Panasonic RW2 raw"),
    (b"FOVb", "Sigma X3F raw"),
    (b"\0MRM", "Minolta MRW raw"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"\xabKTX", "KTX"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\2\0", "CUR"),
    (b"icns", "ICNS"),
    (b"qoif", "QOI"),
    (b"FLIF", "FLIF"),
    (b"BPG\xfb", "BPG"),
    (b"\x8aMNG", "MNG"),
    (b"\x8bJNG", "JNG"),
    (b"SIMPLE  =", "FITS"),
    (b"AT&TFORM", "DjVu"),
    (b"P7\n", "PAM"),
    (b"Pf\n", "PFM"),
    (b"PF\n", "PFM"),
    (b"\x01\xda", "SGI"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"/* XPM */", "XPM"),
    (b"PK\x03\x04", "zip"),
)
_VECTOR = ("SVG", "PDF", "PostScript", "WMF", "gzip (perhaps SVGZ)")


def format_in(head: bytes) -> str | None:
    """Return Pillow's name of the format of a file with these first bytes; None if the format is not read."""
    if head[:3] == b"\xff\xd8\xff" and head[3:4] != b"\xf7":
        return "JPEG"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") and head[8:10] != b"CR":
        return "TIFF"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\r\n\f\v#":
        return "PPM"
    if head[:2] == b"BM":
        return "BMP"
    if head[4:8] == b"ftyp" and not _brand(head):
        return "AVIF"  # or a movie, which the AVIF decoder refuses
    return None


def unread_format(head: bytes) -> str:
    """Return the name of a format that is not read; "" if the first bytes match no known format."""
    if head[:4] in (b"II*\0", b"MM\0*") and head[8:10] == b"CR":
        return "Canon CR2 raw"
    if head[4:8] == b"ftyp":
        return _brand(head)
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[128:132] == b"DICM":
        return "DICOM"
    if b"<svg" in head and head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<":
        return "SVG"
    return ""


def conversion_hint(name: str) -> str:
    """Describe how to convert a file of a format that is not read."""
    if name in _VECTOR:
        return "render it to PNG at the input size of the classifier"
    if name.endswith(" raw"):
        return "develop it to PNG or JPEG"
    if name == "HEIC":
        return "convert it to PNG or JPEG; or open it with pillow-heif and pass the PIL image, not the path"
    return "convert it to PNG or JPEG"


def _brand(head: bytes) -> str:
    """Return the format of an ISO media file by its brands, the major one first; "" for AVIF and unknown brands."""
    length = max(16, min(int.from_bytes(head[:4], "big"), len(head)))
    brands = [head[8:12], *(head[i : i + 4] for i in range(16, length - 3, 4))]
    if b"avif" in brands or b"avis" in brands:
        return ""
    for brand in brands:
        if brand in _BRANDS:
            return _BRANDS[brand]
    return "HEIF" if head[8:12] in (b"mif1", b"msf1") else "MPEG-4 movie" if head[8:10] in (b"is", b"mp") else ""
