"""What an image file says of itself before anything is decoded, and the part of it that draws the picture.

Whoever sends a file writes its metadata too, and a decoder that reads them can be kept busy or filled with them: a
JPEG of 1 MB whose EXIF names the same bytes a thousand times costs Pillow gigabytes as it opens it, text chunks and
colour profiles unpack to many times their size, an empty segment costs four bytes and a turn of a loop. So the three
formats are walked here, as far as their tables go, and only what the pixels need goes on to the decoder.
"""

import struct
from dataclasses import dataclass

from sam3lab.errors import UserError

PARTS = 65_536  # chunks or segments; 20 MB of PNG in the smallest chunks that writers use are a third of it
SCANS = 64  # of a progressive JPEG, each a pass over all pixels; encoders write some ten
EXIF_BYTES = 65_536  # what a JPEG segment can hold

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # JPEG's SOF markers
_TABLES = {0xC4, 0xCC, 0xDB, 0xDD}  # Huffman, arithmetic, quantisation, restart interval
_WEBP_PICTURE = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"}
_WEBP_NO_METADATA = 0xFF ^ (0x20 | 0x08 | 0x04)  # the flags of VP8X that announce ICC, EXIF and XMP


@dataclass(frozen=True)
class Picture:
    """A file without its metadata.

    format: "JPEG", "PNG" or "WEBP", as Pillow calls them. size: (width, height) as stored. orientation: EXIF's, 1 to 8.
    data: the bytes to decode; of an animation, those of its first frame.
    """

    format: str
    size: tuple[int, int]
    orientation: int
    data: bytes


def read(data: bytes) -> Picture:
    """Raises UserError for another format, for a file that ends too soon, and for one with absurdly many parts."""
    try:
        if data.startswith(_PNG):
            return _png(data)
        if data.startswith(_JPEG):
            return _jpeg(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
    except (struct.error, IndexError) as error:
        raise UserError("the image ends in the middle of its header; send the whole file") from error
    raise UserError("the file is no JPEG, PNG or WebP image; convert it to one of these")


def _png(data: bytes) -> Picture:
    size, orientation, position, kept = (0, 0), 1, len(_PNG), [_PNG]
    for _ in range(PARTS):
        length, kind = struct.unpack_from(">I4s", data, position)
        start, end = position + 8, position + 12 + length
        if end > len(data):
            raise UserError("the PNG is cut short; send the whole file")
        if (kind == b"IHDR") != (len(kept) == 1):
            raise UserError("the PNG does not begin with its one header; save it again")
        if kind == b"IHDR":
            size = struct.unpack_from(">II", data, start)
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[position:end])
        elif kind == b"eXIf":
            orientation = _orientation(data[start : start + min(length, EXIF_BYTES)])
        if kind == b"IEND":
            return Picture("PNG", size, orientation, b"".join(kept))
        position = end
    raise UserError(f"the PNG has more than {PARTS} chunks; save it again")


def _jpeg(data: bytes) -> Picture:
    size, orientation, position, kept = None, None, 2, [data[:2]]
    for _ in range(PARTS):
        if data[position] != 0xFF:
            raise UserError("the JPEG is damaged: bytes between its segments; save it again")
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker <= 0x01 or 0xD0 <= marker <= 0xD9:  # these have no place and no length before the first scan
            raise UserError("the JPEG is damaged: it has no picture; save it again")
        (length,) = struct.unpack_from(">H", data, position + 2)
        end = position + 2 + length
        if length < 2 or end > len(data):
            raise UserError("the JPEG is cut short; send the whole file")
        segment = data[position:end]
        if marker in _FRAMES:
            if size is not None:
                raise UserError("the JPEG is damaged: it gives its size twice; save it again")
            height, width = struct.unpack_from(">HH", segment, 5)
            size = width, height
        elif marker == 0xE1 and segment[4:10] == b"Exif\0\0" and orientation is None:
            orientation = _orientation(segment[10:])
        if marker == 0xDA:
            if size is None:
                raise UserError("the JPEG is damaged: it has no size; save it again")
            # In a scan's own data 0xFF is followed by 0, so that its marker is found by searching.
            if data.count(b"\xff\xda", position) > SCANS:
                raise UserError(f"the JPEG has more than {SCANS} scans; save it again")
            return Picture("JPEG", size, orientation or 1, b"".join([*kept, data[position:]]))
        # JFIF's segment and Adobe's say which colours the three or four channels are.
        colours = segment[4:8] == b"JFIF" if marker == 0xE0 else marker == 0xEE and segment[4:9] == b"Adobe"
        if marker in _FRAMES or marker in _TABLES or colours:
            kept.append(segment)
        position = end
    raise UserError(f"the JPEG has more than {PARTS} segments; save it again")


def _webp(data: bytes) -> Picture:
    total = struct.unpack_from("<I", data, 4)[0] + 8
    if total > len(data):
        raise UserError("the WebP is cut short; send the whole file")
    size, orientation, position, kept, frames = None, 1, 12, [], 0
    for _ in range(PARTS):
        if position + 8 > total:
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        start, end = position + 8, position + 8 + length
        if end > total:
            raise UserError("the WebP is cut short; send the whole file")
        frames += kind == b"ANMF"
        if size is None:
            size = _webp_size(kind, data, start)
        if kind == b"EXIF":
            orientation = _orientation(data[start : start + min(length, EXIF_BYTES)])
        if kind in _WEBP_PICTURE and not (kind == b"ANMF" and frames > 1):
            body = data[start:end]
            if kind == b"VP8X":
                body = bytes([body[0] & _WEBP_NO_METADATA]) + body[1:]
            kept.append(struct.pack("<4sI", kind, length) + body + b"\0" * (length % 2))
        position = end + length % 2
    else:
        raise UserError(f"the WebP has more than {PARTS} chunks; save it again")
    if size is None:
        raise UserError("the WebP is damaged: it has no picture; save it again")
    chunks = b"".join(kept)
    return Picture("WEBP", size, orientation, b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks)


def _webp_size(kind: bytes, data: bytes, start: int) -> tuple[int, int]:
    """(width, height) in a WebP's first chunk."""
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[start + at : start + at + 3], "little") + 1 for at in (4, 7))
    elif kind == b"VP8L" and data[start] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, start + 1)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 " and data[start + 3 : start + 6] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, start + 6))
    else:
        raise UserError("the WebP is damaged: it does not begin with a picture; save it again")
    return width, height


def _orientation(exif: bytes) -> int:
    """The tag 0x0112 of the first directory, 1 to 8; 1, upright, where there is none or it makes no sense."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, directory)
        for place in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, place)
            if tag == 0x0112:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, place + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
