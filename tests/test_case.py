import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest

from sam3lab.bench import plan
from sam3lab.bench.case import Case
from sam3lab.errors import UserError


def test_survives_json():
    case = Case(prompts=("cat", "black cat on sofa"), images=("coffee", "a/b.jpg"), batch=2, threads=1, replica=1)
    assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case


def test_id_is_the_same_in_another_process_and_differs_for_every_field():
    code = "from sam3lab.bench.case import Case; print(Case(prompts=['chat', 'à table']).id)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    case = Case(prompts=("chat", "à table"))
    assert printed == case.id and len(case.id) == 12
    others = [
        replace(case, **change)
        for change in (
            {"checkpoint": "sam3"},
            {"backend": "pytorch"},
            {"precision": "bf16"},
            {"resolution": 504},
            {"batch": 2},
            {"prompts": ("chat",)},
            {"images": ("coffee",)},
            {"mode": "model"},
            {"mode": "cold"},
            {"device": "cuda"},
            {"threads": 1},
            {"replica": 1},
        )
    ]
    assert len({case.id, *(other.id for other in others)}) == 13


def test_inputs_are_shared_by_what_runs_on_them():
    case = Case()
    assert case.inputs_id == replace(case, backend="openvino", precision="int8", threads=1, replica=1).inputs_id
    assert case.inputs_id != replace(case, prompts=("dog",)).inputs_id


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"resolution": 250}, "250 is not a multiple of 14; use 252"),
        ({"resolution": 0}, "resolution"),
        ({"batch": 0}, "batch"),
        ({"batch": True}, "batch"),
        ({"prompts": ()}, "prompts"),
        ({"prompts": ("cat", " ")}, "prompts"),
        ({"prompts": "cat"}, "write ['cat']"),
        ({"prompts": None}, "must be a list of texts, not None"),
        ({"images": 3}, "must be a list of texts, not 3"),
        ({"images": ()}, "images"),
        ({"mode": "fast"}, "speed, model, pipeline, reference, accuracy, cold"),
        ({"precision": "fp64"}, "fp32, tf32"),
        ({"device": "tpu"}, "cpu, cuda"),
        ({"backend": ""}, "backend"),
        ({"threads": -1}, "threads"),
    ],
)
def test_bad_fields_are_named(fields, words):
    with pytest.raises(UserError, match=None) as caught:
        Case(**fields)
    assert words in str(caught.value)


def test_unknown_fields_are_refused():
    with pytest.raises(UserError, match="presicion"):
        Case.from_json({"presicion": "fp16"})


def test_is_frozen_and_hashable_from_lists():
    case = Case(prompts=["cat", "dog"])
    assert {case: 1}[Case(prompts=("cat", "dog"))] == 1
    with pytest.raises(FrozenInstanceError):
        case.batch = 2


def test_pairs():
    assert Case(batch=3, prompts=("cat", "dog")).pairs == 6


def cases():
    return [
        Case(backend=name, resolution=size) for name in ("transformers", "pytorch", "openvino") for size in (252, 504)
    ]


def test_every_round_has_all_cases_in_an_order_of_its_own():
    steps = plan.steps(cases(), rounds=6, seed=0)
    orders = [[case for case, round_ in steps if round_ == k] for k in range(6)]
    assert [round_ for _, round_ in steps] == sorted(round_ for _, round_ in steps)
    assert all(set(order) == set(cases()) and len(order) == 6 for order in orders)
    assert len({tuple(order) for order in orders}) > 3


def test_order_depends_on_cases_rounds_and_seed_alone():
    assert plan.steps(cases(), 3, 7) == plan.steps(cases()[::-1], 3, 7)
    assert plan.steps(cases(), 3, 7) != plan.steps(cases(), 3, 8)
    fewer = [step for step in plan.steps(cases(), 3, 7) if step[0] != cases()[2]]
    assert plan.steps([case for case in cases() if case != cases()[2]], 3, 7) == fewer


def test_reference_is_added_only_where_there_is_none():
    planned = [Case(backend="transformers"), Case(backend="pytorch"), Case(backend="pytorch", prompts=("dog",))]
    whole = plan.with_references(planned)
    assert whole[:3] == planned and len(whole) == 4
    assert (whole[3].backend, whole[3].mode, whole[3].prompts) == ("transformers", "reference", ("dog",))
    assert plan.reference_of(planned[1], whole) == planned[0]
    assert plan.reference_of(planned[2], whole) == whole[3]
    assert [step for step in plan.steps(whole, 3, 0) if step[0] == whole[3]] == [(whole[3], 0)]


def test_metas_package_has_a_reference_of_its_own():
    planned = [Case(), Case(backend="meta", precision="bf16"), Case(backend="meta-compiled", precision="bf16")]
    whole = plan.with_references(planned)
    assert [case.backend for case in whole[3:]] == ["transformers-geometry"]
    assert {plan.reference_of(case, whole) for case in whole[1:]} == {whole[3]}
    assert plan.reference_of(whole[0], whole) == whole[0]


def test_reference_is_fp32_and_no_twin_and_on_the_same_device_if_it_can():
    fp32, cuda = Case(), Case(device="cuda")
    planned = [Case(precision="bf16"), Case(replica=1), fp32, cuda]
    assert plan.reference_of(Case(backend="pytorch"), planned) == fp32
    assert plan.reference_of(Case(backend="pytorch", device="cuda"), planned) == cuda
    assert plan.reference_of(Case(backend="pytorch", device="cuda"), planned[:3]) == fp32
