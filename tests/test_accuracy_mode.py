"""Accuracy cases: what a backend finds in a stored split, scored, kept, and compared with the reference."""

import argparse
import contextlib
import io
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sam3lab.backends import Artifacts
from sam3lab.bench import accuracy, cli, plan, predict, records, results, runner, split_parity
from sam3lab.bench.case import FIELDS, Case, accuracy_case
from sam3lab.bench.scene_inputs import SceneInputs
from sam3lab.errors import UserError
from sam3lab.scenes import build, store
from tests import coco_samples
from tests.bench_run import REFERENCE, case, make_checkpoint, short
from tests.fakes import Quick


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    """Speed and accuracy in one plan, over a stored split of three scenes."""
    folder = tmp_path_factory.mktemp("accuracy")
    build.build(folder / "scenes", {"test": 3, "compositional": 1})
    names = ("tests.fakes:Other", "tests.fakes:Shifted", "tests.fakes:LessSure", "tests.fakes:Raises")
    cases = [case(checkpoint, "tests.fakes:Other"), *(accuracy_case(case(checkpoint, name)) for name in names)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SCENES", folder / "scenes")
        short(cases, folder / "run", rounds=2)
        before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("[!.]*.*")}
        short(cases, folder / "run", rounds=2)
    return folder / "run", before


def by_backend(run_dir):
    return results.accuracy(run_dir).set_index("backend")


def test_a_row_has_the_case_the_measures_and_the_agreement(run):
    found = results.accuracy(run[0])
    measures = [field.name for field in fields(accuracy.Accuracy)]
    agreement = ["compared", "agreeing", "mask_iou_mean", "mask_iou_min", "box_iou_min", "score_difference", "reason"]
    assert list(found.columns) == ["case", "label", *FIELDS, "split", "parity", "scenes", *measures, *agreement]
    assert set(found["split"]) == {"test"} and set(found["scenes"]) == {3} and set(found["pairs"]) == {12}
    assert len(found) == 4 and REFERENCE in set(found["backend"])  # the reference was not asked for
    assert (found["predictions"] > 0).all()
    first = json.loads(found.head(1).to_json(orient="records"))[0]
    assert Case.from_json({name: first[name] for name in FIELDS}).id == first["case"]


def test_agreement_over_the_split(run):
    found = by_backend(run[0])
    assert found["parity"].to_dict() == {
        REFERENCE: "reference",
        "tests.fakes:Other": "passed",
        "tests.fakes:Shifted": "failed",
        "tests.fakes:LessSure": "failed",
    }
    other, shifted, unsure = (found.loc[f"tests.fakes:{name}"] for name in ("Other", "Shifted", "LessSure"))
    assert other["agreeing"] == other["compared"] > 0
    assert (other["mask_iou_min"], other["score_difference"]) == (1.0, 0.0)
    assert "mask IoU" in shifted["reason"] and "scores" not in shifted["reason"]
    assert "scores differ" in unsure["reason"] and unsure["mask_iou_mean"] == 1.0
    failures = results.failures(run[0]).set_index("backend")["status"]
    assert failures.to_dict() == {
        "tests.fakes:Shifted": "parity",
        "tests.fakes:LessSure": "parity",
        "tests.fakes:Raises": "failed",
    }


def test_it_runs_once_and_is_not_run_again(run):
    run_dir, before = run
    after = {path: path.stat().st_mtime_ns for path in before}
    assert before == after
    marks = [mark for mark in records.marks(run_dir) if mark["definition"]["mode"] == "accuracy"]
    assert {mark["round"] for mark in marks} == {0} and len(marks) == 5
    rows = results.load(run_dir)
    assert set(rows.loc[rows["phase"] == "accuracy", "stage"]) == {"test"}
    assert set(rows.loc[rows["replica"] == 1, "mode"]) == {"model"}  # of a speed case, not of an accuracy case


def test_on_a_gpu_they_answer_side_by_side_and_again_alone_after_a_failure(checkpoint, tmp_path, monkeypatch):
    build.build(tmp_path / "scenes", {"test": 1, "compositional": 1})
    (tmp_path / "meeting").mkdir()
    monkeypatch.setenv("SAM3LAB_TEST_MEETING", str(tmp_path / "meeting"))
    monkeypatch.setattr(store, "SCENES", tmp_path / "scenes")
    monkeypatch.setattr(runner, "available_cores", lambda: 2 * runner.CORES_A_JOB)
    names = ("tests.fakes:AnswersBeside", "tests.fakes:NeedsAll")
    cases = [accuracy_case(case(checkpoint, name, device="cuda")) for name in names]
    short(cases, tmp_path / "run", reference="tests.fakes:OnGpu")
    assert results.failures(tmp_path / "run").empty
    assert {mark["case"] for mark in records.marks(tmp_path / "run")} > {each.id for each in cases}


def test_a_backend_that_compiles_gets_one_prompt_at_a_time(run):
    calls = []

    class Compiles(Quick):
        compiles = True

        def image(self, pixels):
            calls.append("image")
            return super().image(pixels)

        def detect(self, features, text, mask, image_index, text_index):
            calls.append(len(image_index))
            return super().detect(features, text, mask, image_index, text_index)

    plain = next(path for path in (run[0] / "inputs").glob("*.npz") if "scene" in np.load(path).files)
    inputs, backend = SceneInputs.load(plain), Compiles()
    backend.load(Artifacts(Path(), 28))
    found = predict.predictions(backend, inputs, 28)
    assert calls == (["image"] + [1] * 4) * 3
    assert {entry["image_id"] for entry in found} <= set(inputs.pair.tolist())


def test_lost_predictions_are_made_again(run, checkpoint):
    run_dir = run[0]
    one = accuracy_case(case(checkpoint, "tests.fakes:Other"))
    path = records.outputs_path(run_dir, one)
    content = path.read_bytes()
    path.unlink()
    short([one], run_dir)
    assert path.read_bytes() == content


def test_consolidated_results_tell_the_same(run, tmp_path):
    results.consolidate(run[0], tmp_path)
    pd.testing.assert_frame_equal(results.accuracy(tmp_path), results.accuracy(run[0]))


def test_a_run_without_accuracy_has_no_rows(checkpoint, tmp_path):
    short([case(checkpoint)], tmp_path)
    assert results.accuracy(tmp_path).empty


def test_the_trained_checkpoint_and_plain_pycocotools(tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    one = accuracy_case(Case(backend="pytorch"), scenes=6)
    short([one], tmp_path, reference="pytorch")
    row = results.accuracy(tmp_path).iloc[0]
    assert row["cgf1"] > 75 and row["mean_iou"] > 0.85 and (row["scenes"], row["pairs"]) == (6, 24)
    truth, predicted = tmp_path / "predictions" / "truth-test-6.json", records.outputs_path(tmp_path, one)
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(truth))
        outside = COCOeval(known, known.loadRes(str(predicted)), "segm")
        outside.evaluate()
        outside.accumulate()
        outside.summarize()
    assert outside.stats[0] == pytest.approx(row["ap"], abs=1e-9) and outside.stats[1] == pytest.approx(row["ap50"])
    assert accuracy.evaluate(truth, predicted).cgf1 == row["cgf1"]
    assert min(entry["score"] for entry in json.loads(predicted.read_text())) > 0.05


def box(left, score, pair=1, width=20):
    from sam3lab.bench import coco
    from sam3lab.postprocess import Detections

    masks = np.zeros((1, 40, 40), dtype=bool)
    masks[:, 5:25, left : left + width] = True
    return coco.predictions([pair], [Detections(np.array([score]), coco_samples.boxes(masks), masks)])[0]


def agreement(reference, other):
    sides = [{1: side} if side else {} for side in (reference, other)]
    return split_parity.agreement(*sides)


def test_a_score_that_crosses_the_threshold_still_has_its_partner():
    found = agreement([box(2, 0.502)], [box(2, 0.498)])
    assert (found.expected, found.matched) == (1, 1) and found.score_difference == pytest.approx(0.004)


def test_what_only_one_side_finds_has_no_partner():
    for sides in (([box(2, 0.9)], []), ([], [box(2, 0.9)]), ([box(0, 0.9)], [box(19, 0.9)])):
        found = agreement(*sides)
        assert found.matched == 0 < found.expected
    assert agreement([box(2, 0.4)], []).expected == 0


def test_duplicates_are_told_apart_by_their_scores():
    found = agreement([box(2, 0.9), box(2, 0.3)], [box(2, 0.3), box(2, 0.9)])
    assert (found.expected, found.matched, found.score_difference) == (2, 2, 0.0)


def test_two_empty_masks_agree():
    empty = box(2, 0.9, width=0) | {"bbox": [2, 5, 20, 20]}
    found = agreement([empty], [empty])
    assert (found.matched, found.mask_iou_min) == (2, 1.0)


def test_the_accuracy_twin_of_a_case():
    speed = Case(backend="openvino", precision="int8", batch=4, prompts=("cat", "dog"), threads=1, replica=1)
    twin = accuracy_case(speed, "compositional", 64)
    assert twin == accuracy_case(twin, "compositional", 64)
    assert twin.split == ("compositional", 64) and accuracy_case(speed).split == ("test", None)
    kept = ("checkpoint", "backend", "precision", "resolution", "device", "threads")
    assert all(getattr(twin, name) == getattr(speed, name) for name in kept)
    assert Case.from_json(json.loads(json.dumps(twin.to_json()))) == twin and "scenes/compositional:64" in twin.label
    whole = plan.with_references([speed, twin])
    assert (whole[-1].backend, whole[-1].precision, whole[-1].mode) == ("transformers", "fp32", "accuracy")
    assert plan.reference_of(twin, whole) == whole[-1]


@pytest.mark.parametrize(
    "change", [{"images": ("astronaut",)}, {"images": ("scenes/test:0",)}, {"prompts": ("cat",)}, {"batch": 2}]
)
def test_an_accuracy_case_is_of_a_split(change):
    with pytest.raises(UserError, match=r"scenes/test|prompts"):
        replace(accuracy_case(Case()), **change)


@pytest.mark.parametrize(("split", "scenes", "words"), [("nowhere", None, "no stored split"), ("test", 9999, "9999")])
def test_what_is_not_stored_is_refused(checkpoint, tmp_path, split, scenes, words):
    with pytest.raises(UserError, match=words):
        short([accuracy_case(case(checkpoint), split, scenes)], tmp_path)


def measure(checkpoint, run_dir, *options):
    parser = argparse.ArgumentParser()
    cli.add_measure_arguments(parser)
    fixed = ["--checkpoint", checkpoint, "--run-dir", str(run_dir), "--resolution", "28", "--reference", REFERENCE]
    return cli.measure(parser.parse_args([*fixed, "--backend", REFERENCE, *options]))


def test_the_command_prints_measures_and_where_the_predictions_are(checkpoint, tmp_path, capsys):
    assert measure(checkpoint, tmp_path, "--mode", "accuracy", "--scenes", "2") == 0
    printed = capsys.readouterr().out
    assert "cgF1" in printed and "reference" in printed and "predictions" in printed and "Medians" not in printed
    assert len(list((tmp_path / "predictions").glob("*.json"))) == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--split", "test"],
        ["--scenes", "2"],
        ["--mode", "accuracy", "--prompt", "cat"],
        ["--mode", "accuracy", "--scenes", "0"],
    ],
)
def test_options_that_do_not_go_together_are_refused(checkpoint, tmp_path, options):
    with pytest.raises(UserError):
        measure(checkpoint, tmp_path, *options)
