"""Meta's package as a backend: its weights from a checkpoint's, its outputs against transformers' on the same weights.

What needs the package itself is skipped where it is not installed; it is then made small, so that a CPU can run it.
"""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sam3lab.backends import Artifacts, meta, meta_weights
from sam3lab.backends.transformers import TransformersBackend
from sam3lab.bench.stages import Stages
from sam3lab.errors import UserError
from sam3lab.model.config import ARCHITECTURES
from sam3lab.model.random import write_random
from sam3lab.model.tokenizer import load_tokenizer
from tests.conftest import SMALL
from tests.test_backends import make_inputs, relative_error, run

PROMPTS = ["shipping container", "cat", "the red fox's den, 2 cubs (asleep)"]
INSTALLED = not [name for name in meta.PACKAGES if not importlib.util.find_spec(name)]
needs_package = pytest.mark.skipif(not INSTALLED, reason="Meta's package is not installed: make meta")


def listed():
    """The state dict of build_sam3_image_model() of sam3 0.1.4, without its numbers. A line is `name AxB`; {0-2,7} in a
    name stands for each of these numbers."""
    state = {}
    for line in (Path(__file__).parent / "meta_state_dict.txt").read_text().splitlines():
        name, shape = line.split()
        span = re.search(r"{(.*)}", name)
        ends = [part.split("-") for part in span[1].split(",")] if span else []
        numbers = [i for first, *last in ends for i in range(int(first), int(last[0] if last else first) + 1)]
        for each in [name.replace(span[0], str(i)) for i in numbers] if span else [name]:
            state[each] = torch.empty([int(side) for side in shape.split("x")], device="meta")
    return state


def tensors_of(architecture):
    """The reference's tensors of an architecture, without their numbers."""
    from transformers import Sam3Config, Sam3Model

    with torch.device("meta"):
        return Sam3Model(Sam3Config(**ARCHITECTURES[architecture])).state_dict()


def test_every_tensor_has_its_source_and_every_source_its_use():
    wanted, tensors = listed(), tensors_of("sam3")
    assert len(wanted) == 1134
    state = meta_weights.from_reference(wanted, tensors)
    assert {name: value.shape for name, value in state.items()} == {name: v.shape for name, v in wanted.items()}
    kept = {name for name, value in state.items() if value is wanted[name]}
    assert {re.sub(r"\d+", "#", name) for name in kept} == {
        "backbone.vision_backbone.trunk.blocks.#.attn.freqs_cis",
        *(f"geometry_encoder.points_{what}_project.{kind}"
          for what in ("direct", "pool", "pos_enc") for kind in ("weight", "bias")),
    }  # fmt: skip
    used = [source for name in wanted for source in meta_weights.sources(name)]
    assert sorted(used) == sorted(tensors)  # each once: nothing is left out, nothing is read twice


def test_what_does_not_fit_is_named():
    wanted, tensors = listed(), tensors_of("sam3")
    lost = dict(tensors)
    del lost["geometry_encoder.cls_embed.weight"]
    with pytest.raises(UserError, match=r"lacks: geometry_encoder\.cls_embed\.weight"):
        meta_weights.from_reference(wanted, lost)
    with pytest.raises(UserError, match="unknown tensors: adapter"):
        meta_weights.from_reference(wanted, tensors | {"adapter": torch.empty(1)})
    meta_weights.from_reference(wanted, tensors | {"tracker_neck.fpn_layers.0.proj1.bias": torch.empty(1)})
    with pytest.raises(UserError, match=r"published architecture only.*use facebook/sam3"):
        meta_weights.from_reference(wanted, tensors_of("sam3-huge"))
    with pytest.raises(UserError, match=r"no_such\.weight: pip install sam3==0\.1\.4"):
        meta_weights.sources("no_such.weight")


def test_all_tensors_are_read_but_those_of_the_tracker(tmp_path):
    names = ["detector_model.geometry_encoder.cls_embed.weight", "tracker_model.x", "tracker_neck.y", "detr_encoder.z"]
    save_file({name: torch.full((2,), float(i)) for i, name in enumerate(names)}, tmp_path / "model.safetensors")
    tensors = meta_weights.read(tmp_path)
    assert {name: value.tolist() for name, value in tensors.items()} == {
        "geometry_encoder.cls_embed.weight": [0, 0],
        "detr_encoder.z": [3, 3],
    }
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        meta_weights.read(tmp_path)


def test_the_reference_token_is_what_transformers_gives_for_a_masked_box(small_checkpoint, monkeypatch):
    from transformers.models.sam3 import modeling_sam3

    def roi_align(features, boxes, size):  # a CPU build of torchvision is rare, and what a masked box holds is not read
        return torch.ones(sum(map(len, boxes)), features.shape[1], size, size)

    ops = SimpleNamespace(ops=SimpleNamespace(roi_align=roi_align))
    monkeypatch.setattr(modeling_sam3, "torchvision", ops, raising=False)
    backend = meta.TransformersGeometryBackend()
    backend.load(Artifacts(small_checkpoint, 84))
    inputs = make_inputs(5)
    found = run(backend, inputs)

    values = {name: torch.from_numpy(array) for name, array in inputs.items()}
    pairs = len(inputs["image_index"])
    with torch.inference_mode():
        expected = backend.model(
            pixel_values=((values["pixels"].float() / 255 - 0.5) / 0.5)[values["image_index"]],
            input_ids=values["ids"][values["text_index"]],
            attention_mask=values["mask"][values["text_index"]],
            input_boxes=torch.full((pairs, 1, 4), 0.5),
            input_boxes_labels=torch.full((pairs, 1), -10),
        )
    assert relative_error(found["logits"], expected.pred_logits.numpy()) < 1e-5
    assert relative_error(found["masks"], expected.pred_masks.numpy()) < 1e-5

    without = TransformersBackend()
    without.load(Artifacts(small_checkpoint, 84))
    assert relative_error(found["logits"], run(without, inputs)["logits"]) > 1e-2


def test_what_it_cannot_do_has_a_reason(tmp_path, monkeypatch):
    for backend in (meta.MetaBackend, meta.CompiledMetaBackend):
        assert "on cuda, not on 'cpu'" in backend.unavailable("cpu", "fp32")
        assert "fp32, tf32, bf16" in backend.unavailable("cuda", "fp16")
    with pytest.raises(UserError, match="1008 only, not at 504"):
        meta.MetaBackend().load(Artifacts(tmp_path, 504, "bf16", "cuda"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "open_clip" else find(name))
    assert "run `make meta`" in meta.MetaBackend.unavailable("cuda", "bf16")
    with pytest.raises(UserError, match="open_clip_torch"):
        meta.vocabulary()


def test_the_vocabulary_is_found_beside_a_package_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").write_text("raise ImportError")
    (tmp_path / "open_clip" / meta.VOCABULARY).touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert meta.vocabulary() == tmp_path / "open_clip" / meta.VOCABULARY


# What Meta's builder is given in place of its own numbers, so that it builds the architecture SMALL_META.
WIDTH = {"d_model": 32}
SHRUNK = {
    "ViT": {
        "img_size": 84,
        "pretrain_img_size": 56,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 2,
        "mlp_ratio": 1.25,
        "global_att_blocks": (1, 3),
        "window_size": 3,
    },
    "PositionEmbeddingSine": {"num_pos_feats": 32, "precompute_resolution": None},  # precomputed on a GPU only
    "Sam3DualViTDetNeck": WIDTH,
    "VETextEncoder": {"d_model": 32, "width": 24, "heads": 2, "layers": 2},
    "MultiheadAttention": {"num_heads": 4, "embed_dim": 32},
    "TransformerEncoderLayer": {"d_model": 32, "dim_feedforward": 48},
    "TransformerEncoderFusion": {"d_model": 32, "num_layers": 2},
    "TransformerDecoderLayer": {"d_model": 32, "dim_feedforward": 48, "n_heads": 4},
    "TransformerDecoder": {"d_model": 32, "num_layers": 2, "num_queries": 7, "resolution": None, "stride": None},
    "TransformerWrapper": WIDTH,
    "MLP": {"input_dim": 32, "hidden_dim": 48, "output_dim": 32, "out_norm": torch.nn.LayerNorm(32)},
    "DotProductScoring": {"d_model": 32, "d_proj": 32},
    "PixelDecoder": {"hidden_dim": 32},
    "UniversalSegmentationHead": {"hidden_dim": 32},
    "CXBlock": {"dim": 32},
    "SequenceGeometryEncoder": {"d_model": 32, "num_layers": 1, "roi_size": 2},
}
SMALL_META = SMALL | {
    "text_config": SMALL["text_config"] | {"intermediate_size": 96, "vocab_size": 49408, "projection_dim": 512}
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("meta")
    write_random(directory, SMALL_META, seed=4)
    return directory


@pytest.fixture(scope="module")
def inputs(checkpoint):
    ids, mask = load_tokenizer(checkpoint).encode(PROMPTS)
    return make_inputs(6) | {"ids": ids, "mask": mask}


@pytest.fixture(scope="module")
def backend(checkpoint):
    """Meta's own builder, processor and model, small and on the CPU."""
    from sam3 import model_builder

    def shrink(kind, numbers):
        return lambda *args, **kwargs: kind(*args, **(kwargs | numbers))

    with pytest.MonkeyPatch.context() as patch:
        for name, numbers in SHRUNK.items():
            patch.setattr(model_builder, name, shrink(getattr(model_builder, name), numbers))
        patch.setattr(meta, "RESOLUTION", 84)
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # a GPU's
        backend = meta.MetaBackend()
        backend.load(Artifacts(checkpoint, 84, "fp32", "cpu"))
        yield backend
        backend.close()


@needs_package
def test_every_output_equals_the_reference(backend, checkpoint, inputs):
    reference = meta.TransformersGeometryBackend()
    reference.load(Artifacts(checkpoint, 84))
    expected, found = run(reference, inputs), run(backend, inputs)
    for outputs in (expected, found):
        outputs["text"] = outputs["text"][inputs["mask"]]  # what stands at padding is never read
    errors = {name: relative_error(value, expected[name]) for name, value in found.items()}
    assert {name: value.shape for name, value in found.items()} == {n: value.shape for n, value in expected.items()}
    assert max(errors.values()) < 1e-4, errors


@needs_package
def test_the_api_gives_what_the_parts_give(backend, inputs):
    values = {name: backend.upload(array) for name, array in inputs.items()}
    backend.processor.set_confidence_threshold(0.0)
    parts = run(backend, inputs)
    whole = backend.pipeline(*values.values())
    for name, value in zip(whole._fields, backend.download(tuple(whole)), strict=True):
        np.testing.assert_array_equal(value, parts[name])

    pixels = torch.from_numpy(inputs["pixels"][1])
    state = backend.processor.set_text_prompt(PROMPTS[1], backend.processor.set_image(pixels))  # pair 2
    assert relative_error(state["boxes"].numpy(), parts["boxes"][2] * 84) < 1e-6
    scores = 1 / (1 + np.exp(-parts["logits"][2])) / (1 + np.exp(-parts["presence"][2]))
    assert relative_error(state["scores"].numpy(), scores) < 1e-5


@needs_package
def test_the_stage_pipeline_is_the_api(backend, inputs, monkeypatch):
    stages = Stages(backend, SimpleNamespace(**inputs))
    asked = []
    ask = backend.processor.set_text_prompt
    monkeypatch.setattr(
        backend.processor, "set_text_prompt", lambda words, state: asked.append(words) or ask(words, state)
    )
    arrays = stages.outputs()
    assert asked == [PROMPTS[0], backend.upload(inputs["ids"]).words[2], PROMPTS[1], PROMPTS[0]]
    assert arrays["masks"].shape == (4, 7, 24, 24) and arrays["text"].shape == (3, 32, 32)
    np.testing.assert_array_equal(arrays["logits"], run(backend, inputs)["logits"])


@needs_package
def test_prompts_reach_the_api_in_words(backend, inputs):
    prompts = backend.upload(inputs["ids"])
    assert prompts.words == ["shipping container", "cat", "the red fox 's den , 2 cubs ( asleep )"]
    np.testing.assert_array_equal(backend.download(prompts), inputs["ids"])
    split = inputs["ids"][1:2].copy()
    split[0, 1:4] = [*backend.model.backbone.language_backbone.tokenizer.encode("c at"), split[0, 2]]
    joined = split.copy()
    joined[0, 1] = backend.model.backbone.language_backbone.tokenizer.encoder["c"]  # runs on into the next token
    assert backend.upload(split).words == ["c at"]
    for wrong in (joined, np.zeros((1, 32), np.int64), np.full((1, 32), 60000)):
        with pytest.raises(UserError, match="Meta's tokenizer makes other tokens"):
            backend.upload(wrong)
