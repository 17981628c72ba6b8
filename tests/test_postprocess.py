"""Post-processing against a hand-made case, plain NumPy, and the very code of transformers."""

import ast
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from sam3lab.backends.base import RawOutputs
from sam3lab.backends.sleep import SleepBackend
from sam3lab.errors import UserError
from sam3lab.postprocess import at_image_size, chosen, detections


def logit(probability):
    probability = np.asarray(probability, dtype=np.float64)
    return np.log(probability / (1 - probability)).astype(np.float32)


def random_outputs(pairs=3, queries=12, side=18, seed=0):
    random = np.random.default_rng(seed)
    corners = np.sort(random.random((pairs, queries, 2, 2)), axis=2).reshape(pairs, queries, 4)
    return RawOutputs(
        logits=random.normal(0, 2, (pairs, queries)).astype(np.float32),
        presence=random.normal(2, 1, (pairs, 1)).astype(np.float32),
        boxes=corners.astype(np.float32),
        masks=random.normal(0, 3, (pairs, queries, side, side)).astype(np.float32),
        semantic=np.zeros((pairs, 1, side, side), np.float32),
    )


def transformers_post_process():
    """Sam3ImageProcessor.post_process_instance_segmentation, taken out of a module that needs torchvision to import."""
    root = Path(importlib.util.find_spec("transformers").origin).parent
    tree = ast.parse((root / "models/sam3/image_processing_sam3.py").read_text(encoding="utf-8"))
    wanted = {"_scale_boxes", "post_process_instance_segmentation"}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in wanted]
    scope = {"torch": torch}
    exec(compile(ast.Module(functions, []), "image_processing_sam3.py", "exec"), scope)
    return lambda *arguments, **options: scope["post_process_instance_segmentation"](None, *arguments, **options)


def test_hand_made_case():
    masks = np.full((1, 3, 2, 2), -50.0, np.float32)
    masks[0, 0, :, 1] = 50  # right half
    masks[0, 2, 0, :] = 50  # upper half
    outputs = {
        "logits": logit([[0.5, 0.1, 0.9]]),
        "presence": logit([[0.8]]),
        "boxes": np.array([[[0.5, 0, 1.2, 1], [0, 0, 1, 1], [-0.1, 0, 1, 0.5]]], np.float32),
        "masks": masks,
    }
    (found,) = detections(outputs, (4, 8))
    np.testing.assert_allclose(found.scores, [0.72, 0.4], rtol=1e-6)
    np.testing.assert_allclose(found.boxes, [[0, 0, 8, 2], [4, 0, 8, 4]], atol=1e-6)
    assert found.scores.dtype == found.boxes.dtype == np.float32 and found.masks.dtype == bool
    upper, right = np.zeros((2, 4, 8), bool)
    upper[:2], right[:, 4:] = True, True
    np.testing.assert_array_equal(found.masks, [upper, right])
    first, second = found.to_coco(image_id=7, category_id=3)
    assert (first["image_id"], first["category_id"], first["area"], second["area"]) == (7, 3, 16, 16)
    assert first["bbox"] == [0, 0, 8, 2] and second["bbox"] == [4, 0, 4, 4]
    assert first["score"] == pytest.approx(0.72, rel=1e-6)


@pytest.mark.parametrize(("score_threshold", "mask_threshold"), [(0.3, 0.5), (0.0, 0.2), (0.6, 0.9)])
def test_equals_the_code_of_transformers(score_threshold, mask_threshold):
    outputs, sizes = random_outputs(), [(37, 61), (120, 45), (18, 18)]
    reference = transformers_post_process()(
        SimpleNamespace(
            pred_logits=torch.from_numpy(outputs.logits),
            presence_logits=torch.from_numpy(outputs.presence),
            pred_boxes=torch.from_numpy(outputs.boxes),
            pred_masks=torch.from_numpy(outputs.masks),
        ),
        threshold=score_threshold,
        mask_threshold=mask_threshold,
        target_sizes=sizes,
    )
    found = detections(outputs, sizes, score_threshold, mask_threshold)
    assert sum(map(len, found)) > 0
    for ours, theirs in zip(found, reference, strict=True):
        order = theirs["scores"].argsort(descending=True, stable=True)
        np.testing.assert_array_equal(ours.scores, theirs["scores"][order].numpy())
        np.testing.assert_array_equal(ours.boxes, theirs["boxes"][order].numpy())
        assert len(ours.masks) == len(order)
        if len(order):  # transformers leaves an empty set of masks at the model's size
            np.testing.assert_array_equal(ours.masks, theirs["masks"][order].numpy().astype(bool))


def test_masks_equal_plain_bilinear_interpolation():
    outputs, (height, width) = random_outputs(pairs=1, queries=4), (50, 31)
    (found,) = detections(outputs, (height, width), score_threshold=0)
    order = np.argsort(-outputs.logits[0])
    probabilities = 1 / (1 + np.exp(-outputs.masks[0].astype(np.float64)))

    def weights(size, grid=18):
        # Pixel centres on the mask's grid, clamped at the border.
        at = np.clip((np.arange(size) + 0.5) * grid / size - 0.5, 0, grid - 1)
        return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(grid)))

    enlarged = np.einsum("yi,qij,xj->qyx", weights(height), probabilities, weights(width))[order]
    clear = np.abs(enlarged - 0.5) > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found.masks[clear], (enlarged > 0.5)[clear])


def test_every_pair_by_its_own_size_and_one_size_for_all():
    outputs = random_outputs()
    assert [found.masks.shape[1:] for found in detections(outputs, [(5, 9), (9, 5), (7, 7)])] == [
        (5, 9),
        (9, 5),
        (7, 7),
    ]
    assert [found.masks.shape[1:] for found in detections(outputs, (5, 9))] == [(5, 9)] * 3
    for found in detections(outputs, (5, 9), score_threshold=0.1):
        assert (np.diff(found.scores) <= 0).all() and (found.scores > 0.1).all()


def test_run_lengths_round_trip_and_json():
    for found in detections(random_outputs(), [(37, 61), (61, 37), (1, 1)]):
        decoded = [coco.decode(code).astype(bool) for code in found.rle()]
        np.testing.assert_array_equal(np.array(decoded).reshape(found.masks.shape), found.masks)
        records = json.loads(json.dumps(found.to_coco(1, 2)))
        for record, expected in zip(records, found.masks, strict=True):
            assert record["area"] == expected.sum() == coco.area(record["segmentation"])
            assert isinstance(record["segmentation"]["counts"], str)
            assert record["segmentation"]["size"] == list(found.masks.shape[1:])


def test_nothing_found():
    (found,) = detections(random_outputs(pairs=1), (6, 4), score_threshold=1)
    assert len(found) == 0
    assert (found.scores.shape, found.boxes.shape, found.masks.shape) == ((0,), (0, 4), (0, 6, 4))
    assert found.rle() == found.to_coco(1, 2) == []
    assert detections(random_outputs(pairs=0), (6, 4)) == []


def test_invalid_scores_are_not_detections():
    outputs = random_outputs(pairs=1)
    outputs.logits[0, :] = np.nan
    outputs.logits[0, 5] = 4
    (found,) = detections(outputs, (6, 4))
    assert len(found) == 1 and np.isfinite(found.scores).all()


@pytest.mark.parametrize("threshold", [-0.01, 1.01, float("nan"), 50])
def test_thresholds_are_probabilities(threshold):
    with pytest.raises(UserError, match="score threshold"):
        detections(random_outputs(), (4, 4), score_threshold=threshold)
    with pytest.raises(UserError, match="mask threshold"):
        detections(random_outputs(), (4, 4), mask_threshold=threshold)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_what_is_chosen_on_the_device_is_what_all_outputs_give(threshold, dtype, monkeypatch):
    raw, sizes = random_outputs(), [(37, 61), (61, 37), (5, 9)]
    raw = raw._replace(masks=raw.masks.astype(dtype))
    backend, left = SleepBackend(), []
    monkeypatch.setattr(backend, "fetch", lambda value: left.append(len(value)) or value, raising=False)
    found = chosen(backend, raw, [threshold] * 3)
    wanted = detections(raw, sizes, threshold)
    for (scores, boxes, masks), size, whole in zip(found, sizes, wanted, strict=True):
        assert (scores.dtype == boxes.dtype == np.float32 and masks.dtype == dtype) or not len(scores)
        one = at_image_size(scores, boxes, masks, size)
        np.testing.assert_allclose(one.scores, whole.scores, rtol=1e-6)
        np.testing.assert_allclose(one.boxes, whole.boxes, rtol=1e-6)
        np.testing.assert_array_equal(one.masks, whole.masks)
    assert sum(left) == sum(map(len, wanted))  # and no mask of another query leaves it


def test_each_pair_has_a_floor_of_its_own_and_pairs_beyond_the_floors_are_padding():
    raw = random_outputs(pairs=4)
    raw.logits[3] = np.nan  # which nobody reads
    all_of_it, none, best = chosen(SleepBackend(), raw, [0.0, 1.0, 0.0], most=5)
    assert [len(scores) for scores, _, _ in (all_of_it, none, best)] == [5, 0, 5]
    np.testing.assert_array_equal(best[2], raw.masks[2][np.argsort(-raw.logits[2], kind="stable")[:5]])
    raw.logits[0, 0] = np.nan
    with pytest.raises(RuntimeError, match="not finite"):
        chosen(SleepBackend(), raw, [0.0, 1.0, 0.0])
