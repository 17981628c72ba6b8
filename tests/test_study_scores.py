"""Accuracy in the study: what counts as failed, what is told of it, and the gallery's scenes."""

import json

import numpy as np
import pandas as pd
import pytest

from sam3lab.bench import records, results
from sam3lab.bench.case import Case, accuracy_case
from sam3lab.bench.parity import NOTHING
from sam3lab.bench.statistics import Estimate
from sam3lab.postprocess import Detections
from sam3lab.scenes import store
from sam3lab.study import checks, gallery, scores
from tests import study_samples


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    cases = study_samples.cases("cpu", ("transformers", "onnxruntime", "openvino"))
    return study_samples.store(tmp_path_factory.mktemp("stored") / "run", cases, failed=("openvino",))


def speed(stored):
    samples = results.load(stored)
    base = samples["mode"].isin(["speed", "pipeline"]) & (samples["resolution"] == 252) & (samples["batch"] == 1)
    return samples[base & (samples["replica"] == 0)]


def state(samples):
    return samples.groupby(scores.BY)["parity"].first().to_dict()


def test_scores_are_out_of_a_hundred_with_their_intervals(stored):
    scored = results.accuracy(stored)
    ap = scores.frame(scored, "ap").set_index(scores.BY)
    assert ap.loc[("onnxruntime", "int8"), ["value", "low", "high"]].tolist() == pytest.approx([80, 75, 85])
    assert scores.frame(scored, "cgf1", scores.BY)["value"].max() == 91


def test_tensors_and_detections_must_both_agree(stored):
    samples, scored = speed(stored), results.accuracy(stored)
    assert state(samples)["onnxruntime", "int8"] == "passed"
    found = state(scores.judged(samples, scored))
    assert found["transformers", "fp32"] == "reference"
    assert found["onnxruntime", "fp32"] == "passed" and found["onnxruntime", "int8"] == "failed"
    assert state(scores.judged(samples, scored.iloc[:0])) == state(samples)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("own", ["failed", "missing", "not judged"])
def test_scenes_make_good_nothing_but_a_lack_of_what_to_judge_by(stored, own, same):
    samples, scored = speed(stored).assign(parity=own), results.accuracy(stored)
    fine = state(scores.judged(samples, scored.assign(parity="passed"), same))  # as if they showed no difference
    wrong = state(scores.judged(samples, scored.assign(parity="failed"), same))
    unknown = state(scores.judged(samples, scored.assign(parity="not judged"), same))
    assert fine["onnxruntime", "int8"] == ("passed" if own == "not judged" else own)
    assert wrong["onnxruntime", "int8"] == "failed" and unknown["onnxruntime", "int8"] == own
    if own != "not judged":
        assert fine["onnxruntime", "fp32"] == own


def test_the_two_verdicts_stand_in_columns_of_their_own(stored):
    samples, scored = speed(stored), results.accuracy(stored)
    wrong = scored.assign(parity=["failed" if each == "passed" else each for each in scored["parity"]])
    for same in (True, False):
        judged = scores.judged(samples, wrong, same)
        table = scores.build(judged, {"Size": {}}).set_index(["Runtime", "Precision"])
        assert list(table) == ["Size", "Tensors", "Detections"]
        assert table.loc[("PyTorch (transformers)", "bf16")].tolist()[1:] == ["passed", "FAILED"]
        assert table.loc[("OpenVINO", "fp32")].tolist()[1:] == ["FAILED", "FAILED"]
        assert table.loc[("PyTorch (transformers)", "fp32")].tolist()[1:] == ["reference", "reference"]
        assert ("transformers", "bf16") in scores.unlike(judged)
        assert (("transformers", "bf16") in scores.unproven(judged)) is same
        ratio = scores.key(samples, wrong, same).set_index(["Runtime", "Precision"])["Times as fast"]
        assert isinstance(ratio["ONNX Runtime", "fp32"], Estimate) is not same
    assert list(scores.build(scores.judged(samples, scored.iloc[:0]), {})) == ["Runtime", "Precision", "Tensors"]


def test_another_checkpoints_detections_decide_only_where_tensors_do_not(stored):
    samples, scored = speed(stored), results.accuracy(stored)
    wrong = scored.assign(parity="failed")
    assert state(scores.judged(samples, wrong))["onnxruntime", "fp32"] == "failed"
    found = state(scores.judged(samples, wrong, same=False))
    assert found["onnxruntime", "fp32"] == "passed" and found["onnxruntime", "int8"] == "failed"


def test_what_failed_keeps_its_time_beside_its_accuracy_but_is_not_told(stored):
    samples, scored = speed(stored), results.accuracy(stored)
    timed, judged = scores.timed(samples, scored), scores.judged(samples, scored)
    assert set(timed["parity"]) == {"passed"} and len(timed) == len(samples)
    assert scores.timed(samples, scored.iloc[:0]) is samples
    frame = scored[scores.BY].assign(value=1.0)
    told = set(scores.only(frame, judged)[scores.BY].itertuples(index=False, name=None))
    assert told == {("transformers", "fp32"), ("transformers", "bf16"), ("onnxruntime", "fp32")}
    for state in ("not judged", "missing"):
        assert scores.only(frame, judged.assign(parity=state)).empty


def test_the_reason_and_the_size_are_told(stored):
    samples, scored = speed(stored), results.accuracy(stored)
    cases = [Case(backend="onnxruntime", precision=each, images=("chelsea",)) for each in ("fp32", "int8")]
    size = {("onnxruntime", "fp32"): 30.0, ("onnxruntime", "int8"): 10.0}
    judged = scores.judged(samples, scored)
    said = scores.said(cases, judged, scored, size, scored)
    assert said["checkpoint"] == ("sam3-nano",)
    assert said["smaller.onnxruntime.int8"] == (3.0, "×") and "smaller.onnxruntime.fp32" not in said
    right = scored[scored["parity"] == "reference"].iloc[0]
    assert said["iou"] == (right["mean_iou"],) and said["unseen"][0].value == right["cgf1"]
    assert "scores differ" in said["why.onnxruntime.int8"][0] and "why.onnxruntime.fp32" not in said
    wrong = scored.assign(parity="failed", reason="scores differ")
    elsewhere = scores.said(cases, scores.judged(samples, wrong, same=False), wrong, size, scored)
    assert elsewhere["unlike.onnxruntime.fp32"] == ("scores differ",) and "why.onnxruntime.fp32" not in elsewhere
    for own, words in (("failed", "outputs are not"), ("missing", "compared with nothing")):
        judged = scores.judged(samples.assign(parity=own), scored)
        assert words in scores.said(cases, judged, scored, size, scored)["why.onnxruntime.fp32"][0]


def test_the_table_of_detections_has_a_row_for_each_but_the_reference(stored):
    table = scores.parity(results.accuracy(stored))
    none = scores.parity(results.accuracy(stored).assign(parity="not judged"))
    assert set(none["Verdict"]) == {"not judged"}
    assert len(table) == 5 and table.loc[table["Runtime"] == "OpenVINO", "Verdict"].tolist() == ["FAILED"] * 2
    assert set(table["Detections matched"]) == {"4 of 4"}


def test_of_several_numbers_of_scenes_the_most_count(stored):
    scored = results.accuracy(stored)
    scored = scored[scored["split"] == "test"]
    twice = pd.concat([scored.assign(scenes=8, cgf1=1.0), scored, scored.assign(split="compositional", scenes=99)])
    assert scores.widest(twice)["cgf1"].min() == 89 and len(scores.widest(twice)) == len(scored)


def test_int8_without_any_detection_is_not_judged_and_accuracy_cases_are_no_rows(stored):
    rows, samples = results.parity_rows(stored), results.load(stored)
    nothing = {"expected": 0.0, "matched": 0.0, "passed": False, "reason": NOTHING}
    rows.loc[(rows["precision"] == "int8") & (rows["output"] == "detections"), list(nothing)] = list(nothing.values())
    spoilt = (rows["backend"] == "openvino") & (rows["precision"] == "int8") & (rows["output"] == "masks")
    rows.loc[spoilt, ["passed", "reason"]] = [False, "9 of 9 values are not finite"]
    table = checks.parity(rows, samples)
    found = table[table["Precision"] == "int8"].set_index("Runtime")["Verdict"].to_dict()
    assert found == {"ONNX Runtime": "not judged", "OpenVINO": "FAILED"}
    assert "*" not in set(table["Prompt"])


def test_the_gallery_is_chosen_by_the_truth_and_holds_what_was_found(tmp_path):
    scenes = store.load_split("test")[:16]
    chosen = gallery.choose(scenes)
    assert len(chosen) == len(gallery.ROWS) == len({scene for scene, _ in chosen})
    assert [len(scenes[a].prompts[b].answers) for a, b in chosen] == [answers for answers, _ in gallery.ROWS]

    cases = [accuracy_case(Case(backend=name), scenes=16) for name in ("pytorch", "openvino", "onnxruntime")]
    scene, number = chosen[0]
    (pair,) = [
        entry["id"]
        for entry in json.loads((store.SCENES / "test.json").read_text())["prompts"]
        if (entry["image_id"], entry["text"]) == (scenes[scene].image_id, scenes[scene].prompts[number].text)
    ]
    masks = scenes[scene].masks[list(scenes[scene].prompts[number].answers)]
    found = Detections(np.array([0.9], np.float32), np.zeros((1, 4), np.float32), masks).to_coco(pair, 1)
    for case, score in zip(cases[:2], (0.9, 0.4), strict=True):  # the last has no predictions
        path = records.outputs_path(tmp_path, case)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([found[0] | {"score": score}]))
    rows = gallery.collect(tmp_path, cases)
    assert [(each["backend"], len(each["masks"])) for each in rows[0]["found"]] == [("pytorch", 1), ("openvino", 0)]
    assert all(not each["masks"] for row in rows[1:] for each in row["found"])


def test_a_mask_is_in_full_colour_and_one_that_nobody_asked_for_is_outlined_in_colour():
    from sam3lab import draw

    image = np.full((252, 252, 3), 40, np.uint8)
    mask = np.zeros((1, 252, 252), bool)
    mask[:, 60:190, 60:190] = True
    code = Detections(np.ones(1), np.zeros((1, 4)), mask).rle()
    right, wrong = gallery.picture(image, code, code), gallery.picture(image, [], code)
    middle = gallery.SIDE // 2
    assert right[middle, middle].tolist() == [40] * 3 and right[2, 2].min() > 100
    edge = round(61 * gallery.SIDE / 252)
    assert right[middle, edge].max() < 60
    assert np.abs(wrong[middle, edge].astype(int) - draw.colour(0)).max() < 40
