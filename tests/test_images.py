"""Images of every sort come in as upright RGB; what is no image is refused by name."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sam3lab import images
from sam3lab.errors import UserError

# Four quarters of distinct colours, 6 × 4: which way is up can be seen.
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
QUARTERS = np.repeat(np.repeat(np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8), 3, axis=0), 2, axis=1)


def corners(image):
    return [tuple(image[y, x].tolist()) for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1))]


def test_bundled_photographs_load_without_a_network():
    assert {"astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "retina", "coins", "camera"} <= set(
        images.names()
    )
    assert len(images.names()) >= 15
    for name in images.names():
        image = images.load(name)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, name
        assert image.flags.writeable and image.std() > 1, name
    assert images.load("astronaut").shape == (512, 512, 3)
    assert images.load("chelsea").shape == (300, 451, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, orientation):
    # How a camera held that way stores the upright picture (EXIF 2.3, tag 0x0112).
    stored = {
        1: QUARTERS,
        2: QUARTERS[:, ::-1],
        3: QUARTERS[::-1, ::-1],
        4: QUARTERS[::-1],
        5: QUARTERS.transpose(1, 0, 2),
        6: np.rot90(QUARTERS, 1),
        7: QUARTERS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(QUARTERS, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(np.ascontiguousarray(stored[orientation])).save(path, exif=exif)
    np.testing.assert_array_equal(images.load(path), QUARTERS)


def test_grey_palette_bilevel_and_cmyk_become_rgb(tmp_path):
    colour = Image.fromarray(QUARTERS)
    for mode, suffix in (("L", "png"), ("P", "png"), ("1", "png"), ("CMYK", "tif"), ("P", "gif"), ("RGB", "webp")):
        path = tmp_path / f"{mode}.{suffix}"
        colour.convert(mode).save(path, **({"lossless": True} if suffix == "webp" else {}))
        image = images.load(path)
        assert image.shape == QUARTERS.shape and image.dtype == np.uint8
        if mode in ("P", "RGB"):
            assert corners(image) == [RED, GREEN, BLUE, WHITE], path
        if mode == "L":
            assert corners(image) == [(value,) * 3 for value in (76, 150, 29, 255)]


def test_transparency_is_laid_on_white(tmp_path):
    clear = np.zeros((1, 3, 4), np.uint8)
    clear[0, 1] = (200, 100, 0, 255)
    clear[0, 2] = (0, 0, 0, 128)
    Image.fromarray(clear).save(tmp_path / "rgba.png")
    expected = [WHITE, (200, 100, 0), (127, 127, 127)]
    assert [tuple(pixel) for pixel in images.load(tmp_path / "rgba.png")[0].tolist()] == expected
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([9, 9, 9, 10, 20, 30])
    palette.save(tmp_path / "p.png", transparency=0)
    assert [tuple(pixel) for pixel in images.load(tmp_path / "p.png")[0].tolist()] == [WHITE, (10, 20, 30)]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_range(tmp_path, suffix):
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16)).save(path)
    assert images.load(path)[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_integers_and_floats_without_a_range_are_stretched(tmp_path):
    Image.fromarray(np.array([[-1000, 0, 1000]], np.int32)).save(tmp_path / "i.tif")
    assert images.load(tmp_path / "i.tif")[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0.5, np.nan, 1.5, np.inf]], np.float32)).save(tmp_path / "f.tif")
    assert images.load(tmp_path / "f.tif")[0, :, 0].tolist() == [0, 0, 255, 255]
    Image.fromarray(np.full((2, 2), 7, np.float32)).save(tmp_path / "flat.tif")
    assert not images.load(tmp_path / "flat.tif").any()


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert corners(images.load(tmp_path / "two.gif")) == [RED] * 4


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "notes.jpg").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    whole = images.jpeg(images.load("coffee"))
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(QUARTERS).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:50])
    for name in ("notes.jpg", "empty.png", "cut.jpg", "cut.png", "absent.jpg"):
        with pytest.raises(UserError, match=rf"{name}.*astronaut"):
            images.load(tmp_path / name)
    with pytest.raises(UserError, match="folder"):
        images.load(tmp_path)
    for nothing in ("", "astronout"):
        with pytest.raises(UserError, match="astronaut, "):
            images.load(nothing)


def test_an_image_beyond_pillows_limit_is_refused(tmp_path, monkeypatch):
    Image.fromarray(QUARTERS).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(UserError, match=r"bomb\.png"):
        images.load(tmp_path / "bomb.png")


def test_expand(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    (folder / "sub.jpg").mkdir(parents=True)
    for name in ("b.JPG", "a.png", "notes.txt", "._a.png"):
        (folder / name).touch()
    (tmp_path / "odd.name").touch()
    (tmp_path / "coffee").mkdir()
    monkeypatch.chdir(tmp_path)
    assert images.expand(["rocket", "photos", "odd.name", "coffee"]) == [
        "rocket",
        "photos/a.png",
        "photos/b.JPG",
        "odd.name",
        "coffee",
    ]
    with pytest.raises(UserError, match="has no images"):
        images.expand(["./coffee"])
    with pytest.raises(UserError, match=r"absent.*astronaut"):
        images.expand(["rocket", "absent"])


def test_jpeg_round_trip_and_decode():
    image = images.load("chelsea")
    data = images.jpeg(image)
    assert data[:2] == b"\xff\xd8"
    assert len(images.jpeg(image, quality=30)) < len(data)
    back = images.decode(data)
    assert back.shape == image.shape and back.dtype == np.uint8
    assert np.abs(back.astype(int) - image).mean() < 3
    with pytest.raises(UserError, match="no image"):
        images.decode(data[:500])
    with pytest.raises(UserError, match="no image"):
        images.decode(b"")


@pytest.mark.parametrize("resolution", [98, 252, 1008])
def test_pixels_are_an_antialiased_bilinear_stretch(resolution):
    image = images.load("chelsea")
    pixels = images.pixels(image, resolution)
    assert pixels.shape == (3, resolution, resolution) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    # Pillow's bilinear is antialiased too, and rounds its weights otherwise: off by one at most, and rarely.
    pillow = np.array(Image.fromarray(image).resize((resolution, resolution), Image.Resampling.BILINEAR))
    difference = np.abs(pixels.transpose(1, 2, 0).astype(int) - pillow)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_pixels_take_any_array_in_memory_and_keep_it():
    image = images.load("chelsea")
    before = image.copy()
    strided, frozen = image[:, ::-1], image[:, ::-1].copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(images.pixels(strided, 56), images.pixels(frozen, 56))
    np.testing.assert_array_equal(image, before)
    square = images.load("astronaut")[:56, :56]
    np.testing.assert_array_equal(images.pixels(square, 56), square.transpose(2, 0, 1))


def test_pixels_refuse_what_is_not_rgb():
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(UserError, match="uint8"):
            images.pixels(wrong, 56)
    with pytest.raises(UserError, match="resolution"):
        images.pixels(QUARTERS, 0)


def test_loading_needs_neither_torch_nor_scikit_image():
    code = (
        "import sys; from sam3lab import images; images.decode(images.jpeg(images.load('astronaut')));"
        "print({'torch', 'skimage', 'pooch'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
