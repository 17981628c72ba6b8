import numpy as np
import pytest

from sam3lab.bench import matching, parity

PAIRS, QUERIES, SIDE = 2, 6, 16


def raw(seed=0):
    """Outputs in which each pair has three detections with boxes and masks of their own, and three other queries."""
    rng = np.random.default_rng(seed)
    corners = np.array([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [0.5, 0.5], [0.2, 0.2], [0.4, 0.4]])
    boxes = np.concatenate([corners, corners + 0.4], -1)[None].repeat(PAIRS, 0)
    masks = np.full((PAIRS, QUERIES, SIDE, SIDE), -5.0)
    for q, (x, y) in enumerate((corners * SIDE).astype(int)):
        masks[:, q, y : y + 6, x : x + 6] = 5.0
    outputs = {
        "features_0": rng.normal(size=(1, 8, 32, 32)),
        "text": rng.normal(size=(2, 32, 8)),
        "logits": np.array([3.0, 2.0, 1.0, -4.0, -5.0, -6.0])[None].repeat(PAIRS, 0),
        "presence": np.full((PAIRS, 1), 2.0),
        "boxes": boxes,
        "masks": masks,
        "semantic": rng.normal(size=(PAIRS, 1, SIDE, SIDE)),
    }
    return {name: array.astype(np.float32) for name, array in outputs.items()}


def text_mask():
    mask = np.zeros((2, 32), bool)
    mask[:, :5] = True
    return mask


def verdict(tmp_path, change, precision="fp32", digest="same", reference=None):
    """compare() of raw() with raw() after `change(outputs)`; and its rows by output."""
    reference, other = reference or raw(), raw()
    change(other)
    np.savez(tmp_path / "a.npz", inputs=np.array("same"), text_mask=text_mask(), **reference)
    np.savez(tmp_path / "b.npz", inputs=np.array(digest), text_mask=text_mask(), **other)
    found = parity.compare(tmp_path / "a.npz", tmp_path / "b.npz", precision)
    return found["passed"], {row["output"]: row for row in found["rows"]}


def add_noise(name, relative):
    """A change of a tensor by noise of exactly that relative error."""

    def change(outputs):
        noise = np.random.default_rng(1).normal(size=outputs[name].shape)
        noise *= relative * np.linalg.norm(outputs[name]) / np.linalg.norm(noise)
        outputs[name] = (outputs[name] + noise).astype(np.float32)

    return change


def test_equal_outputs_pass(tmp_path):
    passed, rows = verdict(tmp_path, lambda outputs: None)
    assert passed
    assert rows["logits"]["relative_error"] == 0 and rows["logits"]["cosine"] == 1
    assert rows["detections"]["expected"] == rows["detections"]["matched"] == 2 * 3 * PAIRS


@pytest.mark.parametrize("name", ["features_0", "text", "logits", "boxes", "masks", "semantic"])
@pytest.mark.parametrize(("precision", "bar"), [("fp32", 1e-4), ("tf32", 1e-2), ("fp16", 2e-2), ("bf16", 1e-1)])
def test_relative_error_is_over_the_whole_tensor_and_barred_by_precision(tmp_path, name, precision, bar):
    if name == "text":  # whose padding does not count
        under, over = bar * 0.5, bar * 5
    else:
        under, over = bar * 0.9, bar * 1.2
    _, rows = verdict(tmp_path, add_noise(name, under), precision)
    assert rows[name]["passed"]
    if name != "text":
        assert rows[name]["relative_error"] == pytest.approx(under, rel=0.01)
    passed, rows = verdict(tmp_path, add_noise(name, over), precision)
    assert not passed and not rows[name]["passed"] and "relative error" in rows[name]["reason"]


def test_padding_of_text_does_not_count_but_tokens_do(tmp_path):
    def padding(outputs):
        outputs["text"][:, 5:] = 100

    def token(outputs):
        outputs["text"][1, 4] = 100

    assert verdict(tmp_path, padding)[0]
    assert not verdict(tmp_path, token)[0]


def test_presence_near_zero_is_judged_by_its_absolute_error(tmp_path):
    reference = raw()
    reference["presence"][:] = 1e-4

    def shift(by):
        return lambda outputs: outputs.update(presence=reference["presence"] + np.float32(by))

    passed, rows = verdict(tmp_path, shift(5e-5), reference=reference)
    assert rows["presence"]["relative_error"] > 0.1 and passed
    assert not verdict(tmp_path, shift(5e-3), reference=reference)[1]["presence"]["passed"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_fails(tmp_path, value):
    def change(outputs):
        outputs["semantic"][0, 0, 3, 3] = value

    passed, rows = verdict(tmp_path, change, "int8")
    assert not passed and "not finite" in rows["semantic"]["reason"]


def test_wrong_shapes_absent_outputs_and_other_inputs_fail(tmp_path):
    passed, rows = verdict(tmp_path, lambda outputs: outputs.update(masks=outputs["masks"][..., :8]))
    assert not passed and "shape" in rows["masks"]["reason"]
    passed, rows = verdict(tmp_path, lambda outputs: outputs.pop("features_0"))
    assert not passed and rows["features_0"]["reason"] == "absent"
    passed, rows = verdict(tmp_path, lambda outputs: None, digest="other")
    assert not passed and "different inputs" in rows["inputs"]["reason"]


def test_one_pair_in_two_that_is_wrong_shows(tmp_path):
    def change(outputs):
        outputs["masks"][1] = outputs["masks"][1, ::-1]

    assert not verdict(tmp_path, change, "bf16")[0]


def test_nonsense_of_an_overflowing_engine_fails_in_every_precision(tmp_path):
    def change(outputs):
        rng = np.random.default_rng(5)
        for name, array in raw().items():
            outputs[name] = rng.normal(size=array.shape).astype(np.float32)

    for precision in parity.LIMITS:
        assert not verdict(tmp_path, change, precision)[0]


def test_int8_is_judged_by_what_it_detects(tmp_path):
    def slightly_off(outputs):
        for name in ("features_0", "text", "semantic"):
            add_noise(name, 0.5)(outputs)
        outputs["boxes"] += np.float32(0.01)
        outputs["logits"] += np.float32(0.1)

    def one_lost(outputs):
        outputs["logits"][:, 0] = -6

    assert verdict(tmp_path, slightly_off, "int8")[0]
    assert not verdict(tmp_path, slightly_off, "fp32")[0]
    passed, rows = verdict(tmp_path, one_lost, "int8")
    assert not passed and "matched" in rows["detections"]["reason"]


def test_int8_cannot_pass_by_detecting_nothing(tmp_path):
    reference = raw()
    reference["logits"][:] = -6
    passed, rows = verdict(
        tmp_path, lambda outputs: outputs.update(logits=reference["logits"]), "int8", reference=reference
    )
    assert not passed and "nothing" in rows["detections"]["reason"]


def test_queries_may_change_places():
    reference = raw()
    order = [2, 0, 1, 3, 5, 4]
    other = {name: reference[name][:, order] for name in ("logits", "boxes", "masks")} | {
        "presence": reference["presence"]
    }
    found = matching.agreement(reference, other, 0.01)
    assert found.matched == found.expected == 12 and found.mask_iou_min == 1 and found.score_difference < 1e-6


def test_a_score_at_the_threshold_may_fall_on_either_side():
    reference, other = raw(), raw()
    at = np.log(0.3 / (1 / (1 + np.exp(-2.0))) / (1 - 0.3 / (1 / (1 + np.exp(-2.0)))))
    reference["logits"][:, 2], other["logits"][:, 2] = at + 1e-3, at - 1e-3
    found = matching.agreement(reference, other, score_tolerance=0.01)
    assert found.matched == found.expected == 2 * 5
    assert matching.agreement(reference, other, score_tolerance=0.0).matched < 2 * 5


def test_overlap_of_boxes_and_masks():
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0, 0]], np.float32)
    assert matching.box_iou(boxes, np.array([[0.5, 0, 1.5, 1]], np.float32)).ravel() == pytest.approx([1 / 3, 0])
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2] = True
    assert matching.mask_iou(masks, masks) == pytest.approx(np.array([[1, 0], [0, 1]]))


def test_differences_are_right_across_blocks():
    a = np.arange((1 << 22) + 3, dtype=np.float32)
    b = a.copy()
    b[-1] += 10
    cosine, relative, worst = parity.differences(a, b)
    norm = np.linalg.norm(a.astype(np.float64))
    assert relative == pytest.approx(10 / norm) and worst == 10 and cosine == pytest.approx(1)
    assert parity.differences(np.zeros(3), np.zeros(3)) == (1.0, 0.0, 0.0)
    assert parity.differences(np.zeros(3), np.ones(3))[1] == float("inf")
