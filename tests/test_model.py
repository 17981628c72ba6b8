"""The lean model computes what transformers' Sam3Model computes, and nothing in it waits for the host."""

import pytest
import torch
from transformers import Sam3Config, Sam3Model

from sam3lab.errors import UserError
from sam3lab.model.checkpoint import load_model, resolve
from sam3lab.model.layers import NarrowLinear
from sam3lab.model.weights import to_reference

BAR = 1e-5  # relative error of every output in float32
OUTPUTS = ("pred_logits", "presence_logits", "pred_boxes", "pred_masks", "semantic_seg")


def load_reference(directory, resolution):
    config = Sam3Config.from_pretrained(directory)
    config.image_size = resolution
    return Sam3Model.from_pretrained(directory, config=config).eval()


def make_inputs(resolution, batch, prompts, vocabulary, padded=True):
    generator = torch.Generator().manual_seed(resolution + batch + prompts)
    pixels = torch.randint(0, 256, (batch, 3, resolution, resolution), dtype=torch.uint8, generator=generator)
    ids = torch.randint(0, vocabulary, (prompts, 32), generator=generator)
    lengths = torch.tensor([5, 17, 2][:prompts]) if padded else torch.full((prompts,), 32)
    mask = torch.arange(32) < lengths[:, None]
    pairs = torch.cartesian_prod(torch.arange(batch), torch.arange(prompts))
    return pixels, ids, mask, pairs[:, 0].contiguous(), pairs[:, 1].contiguous()


def relative_error(value, reference):
    return ((value.double() - reference.double()).norm() / reference.double().norm()).item()


def compare(directory, resolution, batch, prompts, vocabulary, padded=True):
    model, reference = load_model(directory, resolution), load_reference(directory, resolution)
    pixels, ids, mask, image_index, text_index = make_inputs(resolution, batch, prompts, vocabulary, padded)
    values = (pixels.float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        features, text = model.image_encoder(pixels), model.text_encoder(ids, mask)
        outputs = model.detector(*features, text, mask, image_index, text_index)
        whole = reference(pixel_values=values[image_index], input_ids=ids[text_index], attention_mask=mask[text_index])
        maps = reference.get_vision_features(values).fpn_hidden_states
        words = reference.get_text_features(ids, attention_mask=mask).pooler_output
    errors = {name: relative_error(out, getattr(whole, name)) for name, out in zip(OUTPUTS, outputs, strict=True)}
    errors |= {
        f"features_{i}": relative_error(ours, theirs)
        for i, (ours, theirs) in enumerate(zip(features, maps[:3], strict=True))
    }
    return errors | {"text": relative_error(text, words)}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("batch", "prompts"), [(1, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("resolution", [84, 126, 98])  # 98: 7 patches a side, in windows of 3
def test_exact_against_transformers(small_checkpoint, resolution, batch, prompts, padded):
    errors = compare(small_checkpoint, resolution, batch, prompts, vocabulary=60, padded=padded)
    assert max(errors.values()) <= BAR, errors


def test_exact_at_nano(tmp_path):
    errors = compare(resolve("sam3-nano"), 252, 1, 2, vocabulary=500)
    assert max(errors.values()) <= BAR, errors


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_exact_at_the_published_architecture():
    errors = compare(resolve("sam3"), 504, 1, 1, vocabulary=49408)  # 36 patches a side, in windows of 24
    assert max(errors.values()) <= BAR, errors


@pytest.mark.parametrize("resolution", [84, 98])
def test_stages_trace_and_never_read_back_from_the_device(small_checkpoint, resolution):
    model = load_model(small_checkpoint, resolution)
    pixels, ids, mask, image_index, text_index = make_inputs(resolution, 2, 3, 60)
    features, text = model.image_encoder(pixels), model.text_encoder(ids, mask)
    stages = {
        model.image_encoder: (pixels,),
        model.text_encoder: (ids, mask),
        model.detector: (*features, text, mask, image_index, text_index),
    }
    for stage, arguments in stages.items():
        exported = torch.export.export(stage, arguments).module()
        for ours, theirs in zip(stage(*arguments), exported(*arguments), strict=True):
            torch.testing.assert_close(ours, theirs)
        shape = [out.shape for out in stage(*arguments)]
        # tensors on the meta device have no values: anything that asked for one would raise
        assert [out.shape for out in stage.to("meta")(*(x.to("meta") for x in arguments))] == shape


def test_pairs_choose_image_and_prompt(small_checkpoint):
    model = load_model(small_checkpoint)
    pixels, ids, mask, image_index, text_index = make_inputs(84, 2, 3, 60)
    with torch.inference_mode():
        whole = model(pixels, ids, mask, image_index, text_index)
        one = model(pixels[1:], ids[2:], mask[2:], torch.tensor([0]), torch.tensor([0]))
    for everything, alone in zip(whole, one, strict=True):
        torch.testing.assert_close(everything[5:], alone, rtol=1e-4, atol=1e-5)
    assert relative_error(whole[3][0], whole[3][3]) > 0.01  # the images differ
    assert relative_error(whole[3][0], whole[3][1]) > 1e-4  # the prompts differ


def test_a_narrow_layer_computes_what_it_was_made_of():
    source = torch.nn.Linear(2, 8)
    x = torch.randn(3, 5, 2)
    assert torch.allclose(NarrowLinear(source)(x), source(x), atol=1e-6)


def test_half_precision_stays_near(small_checkpoint):
    inputs = make_inputs(84, 1, 3, 60)
    with torch.inference_mode():
        exact = load_model(small_checkpoint)(*inputs)
        rounded = load_model(small_checkpoint, dtype=torch.bfloat16)(*inputs)
    assert rounded[2].dtype == torch.float32  # boxes
    assert rounded[3].dtype == torch.bfloat16
    assert 1e-5 < relative_error(rounded[3], exact[3]) < 0.1
    assert relative_error(rounded[2], exact[2]) < 0.1


def test_weights_survive_the_way_back(small_checkpoint):
    from safetensors.torch import load_file

    original = load_file(small_checkpoint / "model.safetensors")
    tensors = to_reference(load_model(small_checkpoint))
    assert len(tensors) > 200
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, original[name], rtol=0, atol=0)


@pytest.mark.parametrize("resolution", [100, 13, -14])
def test_a_resolution_off_the_grid_is_refused(small_checkpoint, resolution):
    with pytest.raises(UserError, match="multiple of 14"):
        load_model(small_checkpoint, resolution)
