"""Numbers in prose come from numbers.json, and from nowhere else."""

import json

import pytest

from sam3lab.bench.statistics import Estimate
from sam3lab.errors import UserError
from sam3lab.study import numbers


@pytest.mark.parametrize(
    ("value", "low", "high", "unit", "text"),
    [
        (12.34, 12.11, 12.58, "ms", "12.3 [12.1, 12.6] ms"),
        (1234.0, 1200.0, 1300.0, "ms", "1.23 [1.20, 1.30] s"),
        (0.6451, 0.6, 1.02, "×", "0.645 [0.600, 1.020]×"),
        (2300.0, None, None, "MB", "2.30 GB"),
        (12345.0, None, None, "images/s", "12\u2009300 images/s"),
        (-0.5, None, None, "%", "−0.500%"),
        (3.21e-6, None, None, "", "3.2e-06"),
        (float("nan"), 1.0, 2.0, "ms", "– ms"),
        (0.0, 0.0, 0.0, "", "0.00 [0.00, 0.00]"),
    ],
)
def test_an_estimate_is_written_with_one_unit_and_one_precision(value, low, high, unit, text):
    assert numbers.interval(value, low, high, unit) == text


@pytest.mark.parametrize(
    "prose",
    [
        "It takes 5 ms.",
        "2.3 times as fast",
        "grew by 12%",
        "12 per cent more",
        "three times the memory",
        "twice as fast",
        "needs 18 GB",
        "a ratio of 1.56",
        "1.5× the time",
        "9x faster",
        "in 45 seconds",
        "reaches 11 images/s",
        "a 3-fold gain, or 4 fold",
    ],
)
def test_a_measurement_typed_by_hand_is_found(prose):
    assert numbers.measurements(prose)
    with pytest.raises(UserError, match="typed by hand"):
        numbers.fill(prose, {})


@pytest.mark.parametrize(
    "prose",
    [
        "See section 4.1, with 95% intervals.",
        "sides of 126, 252 and 378 pixels, in patches of 14",
        "{runtimes.speedup.onnxruntime} times as fast, {x|value} ms",
        "padded to 32 tokens; 2n³ operations",
        "`timeout=5 s` is code",
        "one and one and a half",
    ],
)
def test_what_is_no_measurement_may_stand(prose):
    assert numbers.measurements(prose) == []


def test_a_template_is_filled_with_what_was_recorded():
    known = {"a.b": numbers.number(Estimate(2.0, 1.9, 2.1), "ms"), "a.b.words": numbers.number("faster than")}
    assert (
        numbers.fill("{a.b.words} that: {a.b}, {a.b|value}", known) == "faster than that: 2.00 [1.90, 2.10] ms, 2.00 ms"
    )


def test_a_key_that_nobody_recorded_is_refused_and_the_nearest_one_is_named():
    with pytest.raises(UserError, match=r"runtimes\.spedup.*runtimes\.speedup"):
        numbers.fill("{runtimes.spedup}", {"runtimes.speedup": numbers.number(1.0)})


def test_a_notebooks_numbers_replace_its_own_and_no_others(tmp_path):
    path = tmp_path / "numbers.json"
    numbers.merge(path, "one", {"a": numbers.number(1.0), "b": numbers.number(2.0)})
    numbers.merge(path, "two", {"c": numbers.number(3.0)})
    numbers.merge(path, "one", {"a": numbers.number(4.0)})
    known = numbers.load(path)
    assert {key: (record["value"], record["notebook"]) for key, record in known.items()} == {
        "a": (4.0, "one"),
        "c": (3.0, "two"),
    }
    with pytest.raises(UserError, match="two"):
        numbers.merge(path, "one", {"c": numbers.number(5.0)})
    assert json.loads(path.read_text()) == known
    assert [file.name for file in tmp_path.iterdir()] == ["numbers.json"]


def test_a_missing_numbers_file_holds_nothing(tmp_path):
    assert numbers.load(tmp_path / "numbers.json") == {}
