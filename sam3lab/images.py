"""Photographs in, pixels out: scikit-image's bundled ones by name, and any image file or folder of the user's."""

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sam3lab.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What counts as an image file in a folder. A file that is named itself may end in anything."""

# Of what scikit-image keeps in its wheel, the photographs; the rest are charts, logos and test patterns.
_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "horse.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)


def names() -> list[str]:
    """The bundled photographs that are on this disk, sorted; none is ever downloaded."""
    return list(_bundled())


def load(name_or_path: str | Path) -> np.ndarray:
    """An image as RGB, uint8 [H, W, 3], upright as its EXIF orientation says.

    A bundled name ("astronaut") goes before a file of that name, which "./astronaut" reaches. Transparency is laid on
    white, as transformers' image processors do; 16-bit grey keeps its full range (65535 becomes 255); 32-bit integers
    and floats, which have no range of their own, are stretched from their least to their greatest value; of an
    animation or a multi-page file the first image counts. Raises UserError for what is missing or no image.
    """
    path = _path(name_or_path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name one image in it, or pass the folder where several images are taken")
    return _rgb(path, str(path))


def expand(paths: Sequence[str]) -> list[str]:
    """The images that a list of names, files and folders means, in order; a folder stands for the images right in it.

    Raises UserError for what does not exist and for a folder without images.
    """
    images = []
    for entry in paths:
        path = _path(entry)
        if not path.is_dir():
            images.append(str(entry))
            continue
        inside = sorted(
            str(file)
            for file in path.iterdir()
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
        )
        if not inside:
            raise UserError(f"the folder {path} has no images ({', '.join(SUFFIXES)}); name another, or image files")
        images.extend(inside)
    return images


def pixels(image: np.ndarray, resolution: int) -> np.ndarray:
    """The image uint8 [H, W, 3] as the image stage takes it: uint8 [3, S, S], S = resolution, stretched to a square.

    Antialiased bilinear on integers, as transformers' Sam3ImageProcessor does through torchvision on a CPU.
    """
    import torch

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(f"an image is uint8 [height, width, 3], not {image.dtype} {list(image.shape)}; use images.load")
    if resolution < 1:
        raise UserError(f"the resolution {resolution} is no size; give a positive multiple of 14")
    source = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
    resized = torch.nn.functional.interpolate(
        source.unsqueeze(0), size=(resolution, resolution), mode="bilinear", antialias=True
    )
    return resized[0].contiguous().numpy()


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """The image uint8 [H, W, 3] as the bytes of a JPEG file; `quality` is 1 to 95, as Pillow counts it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """An image file's bytes as `load` gives the file: uint8 [H, W, 3]. Raises UserError for what is no image."""
    return _rgb(io.BytesIO(data), f"the {len(data)} bytes given")


def to_rgb(image: Image.Image) -> np.ndarray:
    """A Pillow image of any mode as uint8 [H, W, 3], as `load` says; its orientation is left as it is."""
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low
        image = Image.fromarray(np.rint(values * (255 / (high - low) if high > low else 0)).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _bundled() -> dict[str, Path]:
    # Found without importing scikit-image, whose loaders would download what is not there.
    package = importlib.util.find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        return {}
    folder = Path(package.submodule_search_locations[0]) / "data"
    return {Path(name).stem: folder / name for name in _PHOTOGRAPHS if (folder / name).is_file()}


def _path(name_or_path: str | Path) -> Path:
    bundled = _bundled().get(str(name_or_path))
    if bundled:
        return bundled
    path = Path(name_or_path).expanduser()
    if not str(name_or_path) or not path.exists():
        raise UserError(
            f"no image or folder {str(name_or_path)!r}; give a file, a folder, or a bundled photograph: "
            + ", ".join(names())
        )
    return path


def _rgb(file: Path | BinaryIO, label: str) -> np.ndarray:
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = "empty or of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(
            f"{label} is no image that can be read: {reason}; give a JPEG, PNG or other image file, or a bundled "
            f"photograph: {', '.join(names())}"
        ) from error
    return to_rgb(upright)
