"""The user's own image: what is drawn, written and printed, and what is refused."""

import argparse

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from sam3lab import segment as command
from sam3lab.draw import FAMILIES, colour, draw
from sam3lab.errors import UserError
from sam3lab.postprocess import Detections
from tests.coco_samples import boxes
from tests.conftest import SMALL


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small one with random weights whose vocabulary is CLIP's, which the tokenizer has."""
    from sam3lab.model.random import write_random

    directory = tmp_path_factory.mktemp("checkpoint")
    write_random(directory, SMALL | {"text_config": SMALL["text_config"] | {"vocab_size": 49408}}, seed=3)
    return directory


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "photograph.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(path)
    return path


def detections(*scored):
    masks = np.array([mask for _, mask in scored])
    return Detections(np.array([score for score, _ in scored], np.float32), boxes(masks).astype(np.float32), masks)


def square(height, width, top, left, side):
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize(("backend", "queries"), [("pytorch", 7), ("sleep", 4)])
def test_writes_an_image_of_the_same_size_and_run_lengths(checkpoint, photograph, tmp_path, capsys, backend, queries):
    picture, coco_json = tmp_path / "out.png", tmp_path / "out.json"
    options = ["--checkpoint", checkpoint, "--backend", backend, "--threshold", "0", "-o", picture, "--json", coco_json]
    assert run(photograph, "cat", "a red car", "cat", *options) == 0
    with Image.open(picture) as image:
        assert image.size == (90, 60) and image.mode == "RGB"
        assert (np.asarray(image) != np.asarray(Image.open(photograph))).any()
    content = COCO(str(coco_json))
    assert [image["text_input"] for image in content.dataset["images"]] == ["cat", "a red car"]
    assert len(content.anns) == 2 * queries  # all of them for both prompts
    for entry in content.anns.values():
        assert content.annToMask(entry).shape == (60, 90)
        assert content.annToMask(entry).sum() == entry["area"]
        assert 0 < entry["score"] <= 1
    assert content.dataset["settings"]["backend"] == backend
    steps = ["pre-process", "prepare", "load", "image", "text", "detect", "post-process"]
    assert list(content.dataset["milliseconds"]) == steps
    assert all(content.dataset["milliseconds"][step] > 0 for step in steps)
    printed = capsys.readouterr().out
    assert all(step in printed for step in steps) and printed.count("a red car") == queries


def test_nothing_found_leaves_the_image_as_it_is(checkpoint, photograph, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(photograph, "cat", "--checkpoint", checkpoint, "--threshold", "1") == 0
    written = np.asarray(Image.open(tmp_path / "photograph-segmented.png"))
    np.testing.assert_array_equal(written, np.asarray(Image.open(photograph)))
    assert "'cat': nothing scores over 1" in capsys.readouterr().out


def test_a_bundled_photograph_at_another_resolution(checkpoint, tmp_path):
    result = tmp_path / "out.png"
    assert run("cell", "cat", "--checkpoint", checkpoint, "--resolution", "56", "-o", result) == 0
    from sam3lab import images

    assert Image.open(result).size == images.load("cell").shape[1::-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "no-such-file.jpg"}, "no image or folder"),
        ({"prompt": " "}, "is empty"),
        ({"prompt": "word " * 40}, "at most 32"),
        ({"--backend": "tensorflow"}, "known: transformers"),
        ({"--precision": "fp7"}, "pytorch cannot run fp7 on cpu"),
        ({"--checkpoint": "sam9"}, "no checkpoint"),
        ({"--resolution": "100"}, "try 98"),
        ({"--resolution": "0"}, "resolution 0 is not a positive multiple of 14: try 14"),
        ({"--resolution": "-14"}, "resolution -14 is not a positive multiple of 14: try 14"),
        ({"--threshold": "2"}, "score threshold"),
        ({"--mask-threshold": "-1"}, "mask threshold"),
        ({"-o": "out.txt"}, "out.txt ends in none.*name it out.png$"),
        ({"-o": "absent/out"}, "absent/out ends in none.*name it absent/out.png$"),
        ({"-o": "out.psd"}, "out.psd ends in none"),  # Pillow reads it and does not write it
        ({"-o": "out.bufr"}, "out.bufr ends in none"),  # Pillow names it, for others to write
        ({"-o": "."}, ". is a folder; name a file in it, as photograph.png"),
        ({"-o": "absent/out.png"}, "does not exist"),
        ({"--json": "out.png"}, "out.png ends in none.*name it out.json$"),
        ({"-o": "photograph.jpg"}, "is the image itself"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(checkpoint, photograph, monkeypatch, change, message):
    monkeypatch.chdir(photograph.parent)
    arguments = {"image": photograph, "prompt": "cat", "--checkpoint": checkpoint, "-o": "out.png"} | change
    before = photograph.read_bytes()
    positional = arguments.pop("image"), arguments.pop("prompt")
    with pytest.raises(UserError, match=message):
        run(*positional, *(word for pair in arguments.items() for word in pair))
    assert [path.name for path in photograph.parent.iterdir()] == ["photograph.jpg"]
    assert photograph.read_bytes() == before


def test_drawing_fills_outlines_and_labels():
    image = np.full((200, 300, 3), 90, np.uint8)
    before = image.copy()
    mask = square(200, 300, 80, 100, 60)
    drawn = draw(image, [("cat", detections((0.9, mask)))])
    np.testing.assert_array_equal(image, before)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[80, 130], colour(0))  # the outline, inside the mask
    np.testing.assert_allclose(drawn[110, 130], 0.55 * 90 + 0.45 * np.array(colour(0)), atol=0.5)
    assert (drawn[141:, :] == 90).all() or (drawn[:79] == 90).all()  # the label is on one side only
    changed = (drawn != 90).any(axis=2) & ~mask
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert rows[0] < 78 and columns[0] >= 98 and changed.sum() > 200


@pytest.mark.parametrize("size", [(3, 2), (12, 40), (40, 12), (60, 60), (1200, 900)])
def test_any_size_and_anything_at_the_border(size):
    height, width = size
    full, corner, nothing = np.ones(size, bool), square(*size, 0, 0, 1), np.zeros(size, bool)
    found = [("a very long prompt that no small image has room for\n", detections((0.9, full), (0.8, corner)))]
    drawn = draw(np.zeros((height, width, 3), np.uint8), [*found, ("none", detections((0.7, nothing)))])
    assert drawn.shape == (height, width, 3)
    assert drawn.any()


def test_labels_do_not_hide_each_other():
    image, mask = np.zeros((300, 300, 3), np.uint8), square(300, 300, 100, 100, 90)
    one = draw(image, [("cat", detections((0.9, mask)))])
    two = draw(image, [("cat", detections((0.9, mask))), ("dog", detections((0.8, mask)))])
    label = (one[:98] != 0).any(axis=2)
    assert label.any()
    np.testing.assert_array_equal(two[:98][label], one[:98][label])
    assert (two != one)[98:].any()  # the second one went elsewhere


def test_colours_of_prompts_and_objects_differ():
    first = [colour(prompt, index) for prompt in range(len(FAMILIES)) for index in range(5)]
    assert len(set(first)) == len(first)
    assert colour(len(FAMILIES)) == colour(0)
