import json
from dataclasses import replace

import numpy as np
import pytest

from sam3lab.bench import inputs, matching, parity, records
from sam3lab.bench.case import Case, accuracy_case
from sam3lab.bench.stages import Stages

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
@pytest.mark.parametrize(("precision", "bar"), [("fp32", 1e-4), ("tf32", 1e-2), ("fp16", 2e-2), ("bf16", 4e-2)])
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
    reference["presence"][:] = 0.017  # as random weights give it: a constant must not pass for it
    assert not verdict(tmp_path, shift(-0.017), "bf16", reference=reference)[1]["presence"]["passed"]
    assert verdict(tmp_path, shift(-0.007), "bf16", reference=reference)[1]["presence"]["passed"]


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


def state(verdict, precision="int8"):
    """parity.verdicts of one made-up case with that verdict."""
    import pandas as pd

    about = {"case": "other", "label": "", "reference": "native", "backend": "onnxruntime", "precision": precision}
    rows = pd.DataFrame([about | row for row in verdict["rows"]], columns=list(parity.COLUMNS))
    return parity.verdicts(parity.judged(rows.astype(parity.COLUMNS)))["other"]


def test_only_a_lack_of_detections_leaves_int8_not_judged(tmp_path):
    reference = raw()
    reference["logits"][:] = -6
    changes = {
        "not judged": lambda outputs: None,
        "failed": lambda outputs: outputs["masks"].__setitem__((0, 0), np.nan),
        "failed too": lambda outputs: outputs.update(masks=outputs["masks"][..., :8]),
        "failed as well": lambda outputs: outputs.pop("features_0"),
    }
    for known, change in changes.items():
        other = {name: array.copy() for name, array in reference.items()}
        change(other)
        for name, outputs in (("a", reference), ("b", other)):
            np.savez(tmp_path / f"{name}.npz", inputs=np.array("same"), text_mask=text_mask(), **outputs)
        found = parity.compare(tmp_path / "a.npz", tmp_path / "b.npz", "int8")
        assert not found["passed"] and known.startswith(state(found))


def test_a_reference_that_is_not_finite_proves_nothing(tmp_path):
    reference = raw()
    reference["semantic"][0] = np.nan
    passed, rows = verdict(tmp_path, lambda outputs: None, "int8", reference=reference)
    assert not passed and "not finite in the reference" in rows["semantic"]["reason"]


def found_in_scenes(run_dir, *sides):
    """judge() of an accuracy case whose predictions, and the reference's before, are the entries given for pair 1."""
    native, other = accuracy_case(Case()), accuracy_case(Case(backend="pytorch"))
    for case, entries in zip((native, other), sides, strict=True):
        path = records.outputs_path(run_dir, case)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(entries))
    return parity.judge(run_dir, other, native)


def entry(score, left=0):
    box = {"bbox": [left, 0, 5, 5], "area": 25, "segmentation": {"size": [10, 10], "counts": "0U3"}}
    return {"image_id": 1, "category_id": 1, "score": score} | box


@pytest.mark.parametrize("sides", [([], []), ([entry(0.4)], [entry(0.07, left=5)])])
def test_scenes_without_any_detection_prove_nothing(tmp_path, sides):
    found = found_in_scenes(tmp_path, *sides)
    assert not found["passed"] and found["rows"][0]["reason"] == parity.NOTHING and state(found) == "not judged"
    alike = [entry(0.9)], [entry(0.895)]
    assert not found_in_scenes(tmp_path, *alike)["passed"]  # it was judged before
    parity.forget(tmp_path, accuracy_case(Case(backend="pytorch")))
    assert found_in_scenes(tmp_path, *alike)["passed"]


def test_a_verdict_does_not_outlive_its_limits(tmp_path, monkeypatch):
    native, other = Case(), Case(backend="pytorch")
    for case, change in ((native, lambda outputs: None), (other, add_noise("boxes", 5e-5))):
        outputs, path = raw(), records.outputs_path(tmp_path, case)
        change(outputs)
        path.parent.mkdir(exist_ok=True)
        np.savez(path, inputs=np.array("same"), text_mask=text_mask(), **outputs)
    assert parity.judge(tmp_path, other, native)["passed"]
    kept = parity.load(tmp_path)
    path = records.verdict_path(tmp_path, other)
    written = path.read_text()
    assert parity.judge(tmp_path, other, native)["passed"] and path.read_text() == written

    with monkeypatch.context() as patch:
        patch.setitem(parity.LIMITS, "fp32", replace(parity.LIMITS["fp32"], relative=1e-5, score=1e-4))
        assert not parity.load(tmp_path)["passed"].all() and not parity.judged(kept)["passed"].all()
        assert parity.judge(tmp_path, other, native)["rows"][4]["output"] == "boxes"
        assert json.loads(path.read_text())["limits"]["relative"] == 1e-5  # it was compared again
        path.write_text(written)
        records.outputs_path(tmp_path, native).unlink()
        found = parity.judge(tmp_path, other, native)  # from what was measured
        assert not found["passed"] and [row["output"] for row in found["rows"] if not row["passed"]] == ["boxes"]
    assert parity.judge(tmp_path, other, native)["passed"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The outputs of the lean model with sam3-nano on scenes, as a function: of a backend and inputs changed by one that
    it is given, whose outputs pass through another.
    """
    from PIL import Image

    from sam3lab import backends
    from sam3lab.model.checkpoint import resolve
    from sam3lab.scenes import store

    folder = tmp_path_factory.mktemp("trained")
    names = []
    for number, scene in enumerate(store.load_split("test")[:3]):
        names.append(str(folder / f"{number}.png"))
        Image.fromarray(scene.image).save(names[-1])
    case = Case(backend="pytorch", images=tuple(names), prompts=("shape", "circle"), batch=3)
    fed = inputs.build(case, resolve(case.checkpoint))

    def outputs(name, breaks=lambda backend: None, changes=lambda outputs: None):
        backend = backends.get("pytorch")()
        backend.load(backends.Artifacts(resolve(case.checkpoint), case.resolution, threads=1))
        breaks(backend)
        found = Stages(backend, fed).outputs()
        changes(found)
        np.savez(folder / f"{name}.npz", inputs=np.array(fed.digest), **found)
        return folder / f"{name}.npz"

    return outputs


def one_layer_less(backend):
    layers = backend.stages["detect"].decoder.layers
    del layers[len(layers) - 1]


def one_block_less(backend):
    layers = backend.stages["image"].layers
    del layers[len(layers) // 2]


def first_prompt_only(backend):
    detect = backend.detect
    backend.detect = lambda features, text, mask, image, index: detect(features, text, mask, image, index * 0)


def other_image(backend):
    detect = backend.detect
    backend.detect = lambda features, text, mask, image, index: detect(features, text, mask, image.flip(0), index)


def permuted(outputs):
    outputs["boxes"] = np.roll(outputs["boxes"], 1, axis=1)


def empty(outputs):
    outputs["masks"] = np.zeros_like(outputs["masks"])


def overflown(outputs):
    with np.errstate(over="ignore"):
        outputs["masks"] = (outputs["masks"] * 1e4).astype(np.float16).astype(np.float32)


def absent_everywhere(outputs):
    outputs["presence"] = np.full_like(outputs["presence"], -10)


BROKEN = [one_layer_less, one_block_less, first_prompt_only, other_image]
SPOILT = [permuted, empty, overflown, absent_everywhere]


def test_a_broken_runtime_fails_in_every_precision_and_a_whole_one_passes(trained):
    reference = trained("reference")
    whole = parity.compare(reference, trained("whole"), "fp32")
    assert whole["passed"] and whole["rows"][-1]["matched"] > 10
    made = [trained(each.__name__, breaks=each) for each in BROKEN]
    made += [trained(each.__name__, changes=each) for each in SPOILT]
    for path in made:
        for precision in parity.LIMITS:
            found = parity.compare(reference, path, precision)
            assert not found["passed"], (path.stem, precision, found["rows"][-1])
            assert state(found, precision) == "failed"


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
