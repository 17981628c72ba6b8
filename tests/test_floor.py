from dataclasses import replace

import pytest

from sam3lab.bench import floor
from sam3lab.bench.case import Case
from sam3lab.model.config import ARCHITECTURES, CONTEXT, parse_config

NANO = Case(resolution=252)


def ceilings(product=1000.0, copy=100.0, precision="fp32"):
    rows = [("copy", "bytes", copy), ("matmul", precision, product)]
    return [{"ceiling": ceiling, "precision": kind, "value": value} for ceiling, kind, value in rows]


@pytest.mark.parametrize("prompts", [1, 3])
def test_the_text_stage_is_counted_as_by_hand(prompts):
    text, hidden = (config := parse_config(ARCHITECTURES["sam3-nano"], "")).text, config.hidden
    width, mlp, tokens = text.width, text.mlp, prompts * CONTEXT
    layer = 2 * tokens * (4 * width * width + 2 * width * mlp) + 2 * 2 * tokens * CONTEXT * width
    parameters = text.layers * (4 * width * width + 4 * width + 2 * width * mlp + mlp + width + 4 * width)
    parameters += CONTEXT * width + 2 * width + width * hidden + hidden
    found = floor.work(replace(NANO, prompts=("a", "b", "c")[:prompts]))["text"]
    assert found.operations == text.layers * layer + 2 * tokens * width * hidden
    assert found.bytes == 4 * parameters + tokens * (8 + 1 + 4 * hidden)


def test_images_prompts_and_pairs_count_where_they_are_worked_on():
    one, more = floor.work(NANO), floor.work(replace(NANO, batch=2, prompts=("a", "b", "c")))
    times = {stage: more[stage].operations / one[stage].operations for stage in one}
    assert times["image"] == 2 and times["text"] == 3
    assert times["detect"] == pytest.approx(6, rel=0.01)
    # weights are read once, however many images there are
    assert all(one[stage].bytes < more[stage].bytes < times[stage] * one[stage].bytes for stage in one)


def test_half_precision_halves_bytes_and_leaves_operations():
    whole, half = floor.work(NANO), floor.work(replace(NANO, precision="fp16"))
    eighth = floor.work(replace(NANO, precision="int8"))
    for stage in whole:
        assert half[stage].operations == whole[stage].operations
        assert 0.5 <= half[stage].bytes / whole[stage].bytes < 0.55
        assert eighth[stage].bytes < whole[stage].bytes


def test_the_slower_of_the_two_ceilings_counts_and_wholes_are_sums():
    work = floor.work(NANO)
    fast = floor.milliseconds(NANO, ceilings(product=1e9, copy=10))
    slow = floor.milliseconds(NANO, ceilings(product=10, copy=1e9))
    for stage, each in work.items():
        assert fast[stage] == pytest.approx(each.bytes / 10e9 * 1e3)
        assert slow[stage] == pytest.approx(each.operations / 10e9 * 1e3)
    assert slow["pipeline"] == pytest.approx(slow["image"] + slow["text"] + slow["detect"])
    assert slow["pipeline_cached"] == pytest.approx(slow["image"] + slow["detect"])


def test_there_is_no_floor_where_no_ceiling_is_known():
    assert floor.milliseconds(replace(NANO, precision="int8"), ceilings()) == {}
    assert floor.milliseconds(NANO, ceilings(precision="bf16")) == {}
    assert floor.milliseconds(replace(NANO, precision="bf16"), ceilings(precision="bf16"))


def test_the_published_architecture_is_counted_without_writing_its_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("SAM3LAB_CACHE", str(tmp_path))
    found = floor.work(Case(checkpoint="sam3", resolution=1008, precision="fp16"))
    assert not list(tmp_path.rglob("*.safetensors"))
    # the encoders' 454 M and 353 M parameters, without the table of 49408 tokens, in two bytes each
    assert found["image"].bytes == pytest.approx(2 * 454e6, rel=0.08)
    assert found["text"].bytes == pytest.approx(2 * (353e6 - 49408 * 1024), rel=0.02)
    assert 5e12 < sum(stage.operations for stage in found.values()) < 7e12


def test_a_random_checkpoint_has_the_shape_that_is_written_for_it():
    from transformers import Sam3Config

    for name in ("sam3", "sam3-huge"):
        full = Sam3Config(**ARCHITECTURES[name]).to_dict()
        assert parse_config(full, "") == parse_config(ARCHITECTURES[name], "")
