"""Accuracy on cases computed by hand, and against pycocotools on the same files."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam3lab.bench import average_precision, coco
from sam3lab.bench.accuracy import evaluate
from sam3lab.errors import UserError
from sam3lab.postprocess import Detections
from tests import coco_samples

SIDE = 8


def mask(*pixels):
    """A mask of those pixels, counted row by row."""
    flat = np.zeros(SIDE * SIDE, bool)
    flat[list(pixels)] = True
    return flat.reshape(SIDE, SIDE)


def found(*scored):
    """Detections of (score, mask) couples."""
    masks = np.array([each for _, each in scored]).reshape(-1, SIDE, SIDE)
    return Detections(np.array([score for score, _ in scored], np.float32), coco_samples.boxes(masks), masks)


def files(*pairs):
    """Ground truth and predictions of pairs (true masks, detections), each on an image of its own."""
    truth = coco_samples.ground_truth(
        (f"{i}.png", "thing", np.array(masks).reshape(-1, SIDE, SIDE)) for i, (masks, _) in enumerate(pairs)
    )
    return truth, coco.predictions([image["id"] for image in truth["images"]], [detections for _, detections in pairs])


def score(*pairs):
    return evaluate(*files(*pairs))


def by_pycocotools(truth, predicted):
    """AP and AP50 by plain COCOeval, as an outside evaluator would have them."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(json.dumps(truth))
        gt.createIndex()
        work = COCOeval(gt, gt.loadRes(json.loads(json.dumps(predicted))), "segm")
        work.evaluate()
        work.accumulate()
        work.summarize()
    return work.stats[0], work.stats[1]


A, B, C = mask(*range(0, 10)), mask(*range(16, 26)), mask(*range(40, 60))
NEGATIVE = ([], found())


def random_pairs(count=30, seed=0):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        true = [mask(*range(start, start + int(rng.integers(3, 12)))) for start in rng.integers(0, 50, rng.integers(4))]
        near = [(rng.random(), each & (rng.random((SIDE, SIDE)) < 0.85)) for each in true if rng.random() < 0.8]
        far = [(0.7 * rng.random(), rng.random((SIDE, SIDE)) < 0.1) for _ in range(rng.integers(3))]
        pairs.append((true, found(*near, *far)))
    return pairs


def test_perfect():
    a = score(([A, B], found((0.9, B), (0.8, A))), ([C], found((0.5, C))), NEGATIVE)
    assert (a.cgf1, a.il_mcc, a.pmf1, a.pmf1_50, a.mean_iou) == (100, 1, 1, 1, 1)
    assert a.ap == pytest.approx(1) and a.ap50 == pytest.approx(1)
    assert (a.pairs, a.positive, a.objects, a.predictions, a.matched) == (3, 2, 3, 3, 3)
    assert (a.true_positive, a.false_positive, a.false_negative, a.true_negative) == (2, 0, 0, 1)
    assert a.cgf1_high == 100 and a.ap_low == pytest.approx(1)


@pytest.mark.parametrize("detections", [found(), found((0.9, A))])
def test_no_ground_truth_at_all(detections):
    a = score(NEGATIVE, ([], detections))
    assert (a.cgf1, a.il_mcc, a.pmf1) == (0, 0, 0)
    assert (a.positive, a.false_positive, a.true_negative) == (0, len(detections), 2 - len(detections))
    assert all(math.isnan(value) for value in (a.ap, a.ap50, a.ap_low, a.mean_iou))


def test_no_prediction():
    a = score(([A, B], found()), NEGATIVE)
    assert (a.cgf1, a.il_mcc, a.pmf1, a.ap, a.ap50) == (0, 0, 0, 0, 0)
    assert (a.false_negative, a.true_negative, a.objects, a.predictions) == (1, 1, 2, 0)
    assert math.isnan(a.mean_iou)


def test_a_positive_pair_without_prediction_loses_all_its_masks():
    a = score(([A], found((0.9, A))), ([A, B, C], found()), NEGATIVE)
    assert a.pmf1 == pytest.approx(2 * 1 / (2 * 1 + 0 + 3))
    assert a.il_mcc == pytest.approx((1 * 1 - 0) / math.sqrt(1 * 2 * 1 * 2))
    assert a.cgf1 == pytest.approx(100 * a.pmf1 * a.il_mcc)


def test_a_prediction_on_a_negative_pair_counts_in_presence_alone():
    right = ([A], found((0.9, A)))
    a = score(right, right, NEGATIVE, ([], found((0.8, B), (0.7, C))))
    assert (a.true_positive, a.false_positive, a.false_negative, a.true_negative) == (2, 1, 0, 1)
    assert a.pmf1 == 1
    assert a.il_mcc == pytest.approx(2 / math.sqrt(3 * 2 * 2 * 1))
    assert a.cgf1 == pytest.approx(57.735, abs=1e-3)


def test_presence_ignores_how_good_the_masks_are():
    a = score(([A], found((0.9, B))), NEGATIVE)
    assert (a.il_mcc, a.pmf1, a.cgf1, a.matched) == (1, 0, 0, 0)


def test_presence_can_be_worse_than_chance():
    a = score(([A, B], found()), ([A], found((0.9, A))), ([], found((0.9, A))))
    assert a.il_mcc == pytest.approx((1 * 0 - 1 * 1) / math.sqrt(2 * 2 * 1 * 1))
    assert a.cgf1 == pytest.approx(100 * (2 / 4) * -0.5)


@pytest.mark.parametrize(
    "pairs",
    [
        [([A], found((0.9, A)))] * 2,  # all positive, all found
        [([A], found((0.9, A))), ([], found((0.9, B)))],  # something found everywhere
        [([A], found()), NEGATIVE],  # nothing found anywhere
    ],
)
def test_correlation_without_a_margin_is_zero(pairs):
    a = score(*pairs)
    assert (a.il_mcc, a.cgf1) == (0, 0)


@pytest.mark.parametrize(("confidence", "takes_part"), [(0.5, True), (0.4999, False)])
def test_confidence(confidence, takes_part):
    a = score(([A], found((confidence, A))), NEGATIVE)
    assert a.cgf1 == (100 if takes_part else 0)
    assert a.ap == pytest.approx(1)  # takes every score


@pytest.mark.parametrize("pixels", range(9, 21))
def test_iou_exactly_at_a_threshold_is_a_match(pixels):
    a = score(([C], found((0.9, mask(*range(40, 40 + pixels))))), NEGATIVE)
    assert a.pmf1 == pytest.approx(max(0, min(10, pixels - 9)) / 10)
    assert a.pmf1_50 == a.matched == (pixels >= 10)
    if pixels >= 10:
        assert a.mean_iou == pytest.approx(pixels / 20)


def test_duplicates():
    a = score(([A], found((0.9, A), (0.8, A))), NEGATIVE)
    assert a.pmf1 == pytest.approx(2 * 1 / (2 * 1 + 1 + 0))
    assert a.ap == pytest.approx(1)  # the false positive ranks below full recall
    assert (a.predictions, a.matched, a.mean_iou) == (2, 1, 1)


def test_one_object_split_in_two():
    a = score(([C], found((0.9, mask(*range(40, 52))), (0.8, mask(*range(52, 60))))), NEGATIVE)  # IoU 0.6 and 0.4
    assert a.pmf1 == pytest.approx(3 / 10 * 2 / 3)
    assert (a.pmf1_50, a.mean_iou) == (pytest.approx(2 / 3), pytest.approx(0.6))


def test_two_objects_merged_into_one():
    a = score(([A, mask(*range(10, 16))], found((0.9, mask(*range(0, 16))))), NEGATIVE)  # IoU 0.625 and 0.375
    assert a.pmf1 == pytest.approx(3 / 10 * 2 / 3)


def test_matching_maximises_the_sum_of_overlaps_whatever_the_scores():
    true = [mask(*range(0, 10)), mask(*range(2, 12))]
    first, second = (
        mask(*range(1, 11)),
        mask(*range(0, 8)),
    )  # the second overlaps the first object by 0.8, the other 0.5
    for scores in ((0.9, 0.8), (0.8, 0.9)):
        a = score((true, found((scores[0], first), (scores[1], second))), NEGATIVE)
        assert a.mean_iou == pytest.approx((9 / 11 + 8 / 10) / 2)
        assert a.pmf1 == pytest.approx(7 / 10)


def test_ties_in_scores():
    right_first, wrong_first = found((0.7, A), (0.7, B)), found((0.7, B), (0.7, A))
    one, other = (files(([A], detections), NEGATIVE) for detections in (right_first, wrong_first))
    assert evaluate(*one).cgf1 == evaluate(*other).cgf1 == pytest.approx(100 * 2 / 3)
    assert (evaluate(*one).ap, evaluate(*other).ap) == (pytest.approx(1), pytest.approx(0.5))  # COCO keeps the order
    for both in (one, other):
        assert evaluate(*both).ap == pytest.approx(by_pycocotools(*both)[0])


def test_empty_masks_overlap_nothing():
    nothing = mask()
    a = score(([nothing], found((0.9, nothing))), ([], found((0.8, nothing))), NEGATIVE)
    assert (a.pmf1, a.ap, a.matched) == (0, 0, 0)
    assert (a.true_positive, a.false_positive, a.true_negative) == (1, 1, 1)


def test_equals_pycocotools_on_the_same_files(tmp_path):
    truth, predicted = files(*random_pairs(60))
    for name, content in (("truth.json", truth), ("predictions.json", predicted)):
        (tmp_path / name).write_text(json.dumps(content))
    a = evaluate(tmp_path / "truth.json", str(tmp_path / "predictions.json"))
    assert (a.ap, a.ap50) == pytest.approx(by_pycocotools(truth, predicted))
    assert 0.05 < a.ap < a.ap50 < 0.95
    assert a == evaluate(truth, predicted)


def test_ids_do_not_matter():
    truth, predicted = files(*random_pairs())
    before = evaluate(truth, predicted)
    for entry in (*truth["annotations"], *truth["images"]):
        entry["id"] -= 1  # COCOeval alone takes a match with annotation 0 for none
    for entry in (*truth["annotations"], *predicted):
        entry["image_id"] -= 1
    assert evaluate(truth, predicted) == before


def test_weighted_ranking_is_that_of_copies():
    pairs = random_pairs(6)
    times = np.array([2, 0, 1, 3, 1, 0])
    ranking = average_precision.rank(coco.read(*files(*pairs)))
    copies = [pair for pair, n in zip(pairs, times, strict=True) for _ in range(n)]
    found_ap = ranking.resampled(np.arange(6), np.stack([np.ones(6, int), times]))
    assert found_ap == pytest.approx([ranking.precision.mean(), by_pycocotools(*files(*copies))[0]], abs=1e-6)


def test_intervals():
    truth, predicted = files(*random_pairs(60))
    a = evaluate(truth, predicted)
    assert a.cgf1_low < a.cgf1 < a.cgf1_high and a.ap_low < a.ap < a.ap_high
    assert a == evaluate(truth, predicted, seed=0) != evaluate(truth, predicted, seed=1)
    for image in truth["images"]:
        image["file_name"] = f"{image['id'] % 6}.png"  # six images of ten pairs: fewer to draw from
    fewer = evaluate(truth, predicted)
    assert fewer.cgf1 == a.cgf1 and fewer.cgf1_low != a.cgf1_low
    for image in truth["images"]:
        image["file_name"] = "one.png"
    one = evaluate(truth, predicted)
    assert one.cgf1_low == pytest.approx(one.cgf1) == one.cgf1_high
    assert one.ap_low == pytest.approx(one.ap) == one.ap_high


def test_crowds_and_pairs_that_are_not_exhaustive_are_left_out():
    kept = [([A], found((0.9, A))), NEGATIVE]
    truth, predicted = files(*kept, ([B], found((0.9, C))), ([C], found()))
    truth["images"][2]["is_instance_exhaustive"] = 0
    truth["annotations"][2]["iscrowd"] = 1  # makes a negative pair of the last one
    a, b = evaluate(truth, predicted), score(*kept, NEGATIVE)
    assert (a.cgf1, a.ap, a.pairs, a.objects) == (b.cgf1, b.ap, b.pairs, b.objects)


def test_ground_truth_of_whole_images():
    """One image of three objects, asked for two of them, for one, and for none."""
    truth, _ = files(([A, B, C], found()))
    truth["images"][0].pop("text_input")
    asked = [("pair", [1, 3]), ("one", [3]), ("none", [])]
    truth["prompts"] = [
        {"id": number, "image_id": 1, "text": text, "annotation_ids": ids}
        for number, (text, ids) in enumerate(asked, 7)
    ]
    pairs = coco.read(truth, [])
    assert [(pair.id, pair.file_name, pair.prompt, len(pair.masks)) for pair in pairs] == [
        (7, "0.png", "pair", 2),
        (8, "0.png", "one", 1),
        (9, "0.png", "none", 0),
    ]
    predicted = coco.predictions([7, 8, 9], [found((0.9, A), (0.8, C)), found((0.9, C)), found()])
    assert evaluate(truth, predicted).cgf1 == evaluate(coco.by_prompt(truth), predicted).cgf1 == 100
    assert by_pycocotools(coco.by_prompt(truth), predicted)[0] == pytest.approx(1)


def break_score(truth, predicted):
    predicted[0]["score"] = 1.5


def break_nan(truth, predicted):
    predicted[0]["score"] = float("nan")


def break_pair(truth, predicted):
    predicted[0]["image_id"] = 99


def break_size(truth, predicted):
    predicted[0]["segmentation"]["size"] = [4, 16]


def break_polygon(truth, predicted):
    truth["annotations"][0]["segmentation"] = [[0, 0, 1, 0, 1, 1]]


def break_field(truth, predicted):
    del truth["images"][0]["text_input"]


def break_id(truth, predicted):
    truth["images"][1]["id"] = truth["images"][0]["id"]


def break_everything(truth, predicted):
    truth["images"], truth["annotations"] = [], []
    predicted.clear()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_score, "score 1.5"),
        (break_nan, "score nan"),
        (break_pair, "the pair 99"),
        (break_size, r"\[4, 16\] pixels"),
        (break_polygon, "run lengths"),
        (break_field, "text_input"),
        (break_id, "two pairs with the id 1"),
        (break_everything, "no pairs"),
    ],
)
def test_what_cannot_be_scored_is_refused(damage, message):
    truth, predicted = files(([A], found((0.9, A))), NEGATIVE)
    damage(truth, predicted)
    with pytest.raises(UserError, match=message):
        evaluate(truth, predicted)


def test_files_that_are_no_coco_files(tmp_path):
    truth, predicted = files(([A], found((0.9, A))))
    with pytest.raises(UserError, match=r"absent\.json cannot be read"):
        evaluate(tmp_path / "absent.json", predicted)
    with pytest.raises(UserError, match="predictions are a JSON list"):
        evaluate(truth, truth)
