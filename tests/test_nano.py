"""The checkpoint that is published: the file is the one of its card, and it finds what it is said to find."""

import hashlib
import json

import pytest

from sam3lab.bench import results, runner
from sam3lab.bench.case import Case, accuracy_case
from sam3lab.paths import DATA

NANO = DATA / "checkpoints" / "sam3-nano"
SCENES, CGF1 = 64, 90.17  # the first scenes of the test split, and what every runtime scores on them in fp32


def test_the_card_names_the_file():
    weights = (NANO / "model.safetensors").read_bytes()
    assert len(weights) < 10e6
    assert hashlib.sha256(weights).hexdigest() in (NANO / "README.md").read_text()
    assert json.loads((NANO / "config.json").read_text())["vision_config"]["backbone_config"]["image_size"] == 252


def test_its_accuracy(tmp_path):
    case = accuracy_case(Case(checkpoint=str(NANO), backend="pytorch"), scenes=SCENES)
    runner.measure([case], tmp_path, rounds=1, progress=False, reference="pytorch")
    row = results.accuracy(tmp_path).iloc[0]
    assert row["cgf1"] == pytest.approx(CGF1, abs=0.5)
    assert row["mean_iou"] >= 0.85
