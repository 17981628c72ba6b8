"""Checkpoints are found by name, read whole, and refused with a reason when something is off."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sam3lab.backends import Artifacts
from sam3lab.backends.transformers import TransformersBackend
from sam3lab.errors import UserError
from sam3lab.model import checkpoint, random, weights
from sam3lab.model.config import ARCHITECTURES, read_config
from sam3lab.model.sam3 import Sam3
from tests.conftest import SMALL


@pytest.fixture
def copy(small_checkpoint, tmp_path):
    """A checkpoint to damage, its tensors, and how to store them."""
    directory = tmp_path / "checkpoint"
    shutil.copytree(small_checkpoint, directory)
    tensors = load_file(directory / "model.safetensors")
    return directory, tensors, lambda changed: save_file(changed, directory / "model.safetensors")


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_sharded_and_whole_are_the_same(copy, small_checkpoint):
    directory, tensors, _ = copy
    names = sorted(tensors)
    shards = {"a.safetensors": names[:100], "b.safetensors": names[100:]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, directory / file)
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(checkpoint.load_model(directory), checkpoint.load_model(small_checkpoint))

    (directory / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b\.safetensors"):
        checkpoint.load_model(directory)
    index["weight_map"][names[0]] = "../a.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside"):
        checkpoint.load_model(directory)


def test_the_published_layout_with_its_tracker(copy, small_checkpoint):
    """facebook/sam3 is a sam3_video checkpoint: the detector under a prefix and a key, beside a tracker."""
    directory, tensors, store = copy
    stored = {f"detector_model.{name}": tensor for name, tensor in tensors.items()}
    store(stored | {"tracker_model.memory": torch.ones(2), "tracker_neck.conv": torch.ones(2)})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": config}))
    assert same(checkpoint.load_model(directory), checkpoint.load_model(small_checkpoint))


def test_unknown_absent_and_misshapen_tensors_are_named(copy):
    directory, tensors, store = copy
    name = "detr_decoder.box_head.layer2.weight"
    store(tensors | {"detr_decoder.box_head.layer9.weight": torch.ones(1)})
    with pytest.raises(UserError, match=r"unknown tensors: detr_decoder\.box_head\.layer9\.weight"):
        checkpoint.load_model(directory)
    store({key: value for key, value in tensors.items() if key != name})
    with pytest.raises(UserError, match=r"lacks: detr_decoder\.box_head\.layer2\.weight"):
        checkpoint.load_model(directory)
    store(tensors | {name: torch.ones(32, 31)})
    with pytest.raises(UserError, match=r"layer2\.weight has shape \(32, 31\).*\(32, 32\)"):
        checkpoint.load_model(directory)


def test_the_reference_refuses_them_too_and_computes_on_no_random_numbers(copy):
    directory, tensors, store = copy

    def load():
        TransformersBackend().load(Artifacts(directory, 84))

    name = "detr_decoder.box_head.layer2.weight"
    store({key: value for key, value in tensors.items() if key != name})
    with pytest.raises(UserError, match=r"lacks: detr_decoder\.box_head\.layer2\.weight; is it a .* checkpoint, whole"):
        load()
    store(tensors | {name: torch.ones(32, 31)})
    with pytest.raises(UserError, match=r"tensors of other shapes: detr_decoder\.box_head\.layer2\.weight; is it"):
        load()
    store(tensors)
    whole = (directory / "model.safetensors").read_bytes()
    for damaged in (b"", whole[: len(whole) // 2]):
        (directory / "model.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{directory} are no whole safetensors files .*download"):
            load()


def test_of_a_single_file_and_shards_the_lean_model_reads_what_the_reference_does(copy):
    directory, tensors, _ = copy
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, directory / "other.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "other.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    backend = TransformersBackend()
    backend.load(Artifacts(directory, 84))
    lean = checkpoint.load_model(directory).text_encoder.projection.bias
    assert torch.equal(lean, backend.model.text_projection.bias)
    assert checkpoint.weight_files(directory) == [directory / "model.safetensors"]  # which the fingerprint is of


def test_one_part_of_a_fused_projection_misshapen(copy):
    directory, tensors, store = copy
    names = [f"detr_encoder.layers.0.self_attn.{part}_proj.bias" for part in "qk"]
    store(tensors | {names[0]: torch.ones(40), names[1]: torch.ones(24)})  # 64 in all, as two of 32
    with pytest.raises(UserError, match=r"q_proj\.bias has shape \(40,\)"):
        checkpoint.load_model(directory)


def test_damaged_files(copy):
    directory, _, _ = copy
    weights = directory / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\x80\x04pickle" + whole):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors is not a whole safetensors file"):
            checkpoint.load_model(directory)
    weights.write_bytes(whole)
    (directory / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        checkpoint.load_model(directory)
    (directory / "config.json").unlink()
    for read in (checkpoint.load_model, checkpoint.fingerprint):
        with pytest.raises(UserError, match=r"no config\.json"):
            read(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "it holds no JSON object"),
        (None, "it holds no JSON object"),
        ("sam3", "it holds no JSON object"),
        ({"detector_config": [1]}, r"detector_config is \[1\], not an object"),
        ({"vision_config": "x"}, "vision_config is 'x', not an object"),
        ({"vision_config": {"backbone_config": 3}}, "backbone_config is 3, not an object"),
        ({"detr_encoder_config": []}, r"detr_encoder_config is \[\], not an object"),
        (
            {"vision_config": {"backbone_config": {"hidden_size": "1024"}}},
            "hidden_size is '1024', not a positive whole",
        ),
        (
            {"vision_config": {"backbone_config": {"num_attention_heads": 0}}},
            "num_attention_heads is 0, not a positive",
        ),
        ({"vision_config": {"backbone_config": {"window_size": 0}}}, "window_size is 0, not a positive"),
        ({"vision_config": {"backbone_config": {"image_size": [1008, 504]}}}, r"image_size is \[1008, 504\], not"),
        ({"vision_config": {"backbone_config": {"image_size": []}}}, r"image_size is \[\], not"),
        ({"vision_config": {"backbone_config": {"global_attn_indexes": 3}}}, "not iterable"),
        ({"vision_config": {"backbone_config": {"rope_theta": "much"}}}, "could not convert"),
        ({"detr_decoder_config": {"num_queries": None}}, "num_queries is None, not a positive"),
        ({"detr_encoder_config": {"num_attention_heads": 7}}, "256 is no multiple of the num_attention_heads, 7"),
    ],
)
def test_a_configuration_that_is_none(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as refusal:
        read_config(tmp_path)
    assert str(refusal.value).startswith(f"{path}: ") and "facebook/sam3" in str(refusal.value)


def test_pickles_are_refused_and_nothing_is_not_taken_for_weights(copy):
    directory, _, _ = copy
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        checkpoint.load_model(directory)
    torch.save({}, directory / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin, a pickle"):
        checkpoint.load_model(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "sam2"}, "not sam3"),
        ({"vision_config": {"backbone_config": {"patch_size": 16}}}, "patch_size is 16"),
        ({"text_config": {"hidden_act": "swish"}}, "hidden_act 'swish' is not supported"),
    ],
)
def test_a_model_that_is_not_computed_here(copy, change, message):
    directory, _, _ = copy
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        checkpoint.load_model(directory)


def test_defaults_are_the_published_architecture(tmp_path):
    from transformers import Sam3Config

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3"}))
    bare = read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(Sam3Config().to_dict()))
    assert read_config(tmp_path) == bare
    assert (bare.vit.layers, bare.vit.width, bare.vit.mlp, bare.window) == (32, 1024, 4736, 24)
    assert (bare.text.layers, bare.queries, bare.hidden, bare.image_size) == (24, 200, 256, 1008)


def test_a_text_config_has_clips_defaults_for_what_it_leaves_out(tmp_path):
    from transformers import Sam3Config

    for own in ({"max_position_embeddings": 32}, {"max_position_embeddings": 32, "hidden_act": "gelu"}):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3", "text_config": own}))
        theirs, ours = Sam3Config(text_config=own).text_config, read_config(tmp_path).text
        assert ours.activation == theirs.hidden_act
        assert (ours.layers, ours.width, ours.mlp, ours.heads, ours.eps) == (
            theirs.num_hidden_layers,
            theirs.hidden_size,
            theirs.intermediate_size,
            theirs.num_attention_heads,
            theirs.layer_norm_eps,
        )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3", "text_config": {}}))
    with pytest.raises(UserError, match="max_position_embeddings is 77"):
        read_config(tmp_path)


def test_names(tmp_path, monkeypatch):
    assert checkpoint.resolve("sam3-nano") == checkpoint.resolve("sam3-nano")
    assert checkpoint.image_size(checkpoint.resolve("sam3-nano")) == 252
    assert checkpoint.resolve(str(tmp_path)) == tmp_path.resolve()
    with pytest.raises(UserError, match="facebook/sam3, sam3, sam3-huge, sam3-nano"):
        checkpoint.resolve("sam4")
    monkeypatch.setattr(checkpoint, "DATA", tmp_path)
    shipped = tmp_path / "checkpoints" / "sam3-nano"
    shipped.mkdir(parents=True)
    (shipped / "config.json").write_text("{}")
    assert checkpoint.resolve("sam3-nano") == shipped


@pytest.mark.parametrize("gated", [True, False])
def test_a_hub_checkpoint_out_of_reach_says_what_to_do(monkeypatch, gated):
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_, **__):
        if gated:
            raise GatedRepoError("403", response=httpx.Response(403, request=httpx.Request("GET", "https://hub")))
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=r"accept its licence.*hf auth login.*--checkpoint sam3") as refusal:
        checkpoint.resolve("facebook/sam3")
    assert ("is gated" in str(refusal.value)) == gated
    assert "\n" not in str(refusal.value)


def test_fingerprint_follows_content_not_place(copy, small_checkpoint):
    directory, tensors, store = copy
    assert checkpoint.fingerprint(directory) == checkpoint.fingerprint(small_checkpoint)
    name = "text_projection.bias"
    store(tensors | {name: tensors[name] + 1})
    assert checkpoint.fingerprint(directory) != checkpoint.fingerprint(small_checkpoint)


@pytest.mark.parametrize("left", [b"", b"0123", b"\xc3" * 64], ids=["empty", "cut", "garbage"])
def test_a_digest_that_was_noted_in_part_is_not_believed(small_checkpoint, tmp_path, monkeypatch, left):
    known = checkpoint.fingerprint(small_checkpoint)
    monkeypatch.setenv("SAM3LAB_CACHE", str(tmp_path))
    assert checkpoint.fingerprint(small_checkpoint) == known
    (note,) = (tmp_path / "fingerprints").iterdir()
    note.write_bytes(left)
    assert checkpoint.fingerprint(small_checkpoint) == known
    assert note.read_text() == known


def test_a_digest_is_noted_whole_or_not_at_all(small_checkpoint, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    known = checkpoint.fingerprint(small_checkpoint)
    monkeypatch.setenv("SAM3LAB_CACHE", str(tmp_path))
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            checkpoint.fingerprint(small_checkpoint)
    assert list((tmp_path / "fingerprints").iterdir()) == []
    assert checkpoint.fingerprint(small_checkpoint) == known


def test_a_random_checkpoint_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("SAM3LAB_CACHE", str(tmp_path))
    monkeypatch.setitem(ARCHITECTURES, "sam3-nano", SMALL)
    with monkeypatch.context() as broken:
        broken.setattr(random, "save_file", full)
        with pytest.raises(OSError, match="No space"):
            random.cached("sam3-nano")
    assert list((tmp_path / "checkpoints").iterdir()) == []
    made = random.cached("sam3-nano")
    assert list((tmp_path / "checkpoints").iterdir()) == [made] == [random.cached("sam3-nano")]
    assert checkpoint.image_size(made) == 84


def test_trained_weights_that_are_absent_are_not_replaced_by_random_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("SAM3LAB_CACHE", str(tmp_path / "cache"))
    assert not checkpoint.is_random("sam3-nano")
    monkeypatch.setattr(checkpoint, "DATA", tmp_path)  # as an installed wheel sees it
    with pytest.raises(UserError, match=r"has no sam3-nano.*SAM3LAB_ROOT"):
        checkpoint.resolve("sam3-nano")
    assert not (tmp_path / "cache").exists()

    monkeypatch.setitem(ARCHITECTURES, "sam3-huge", SMALL)
    assert checkpoint.is_random("sam3-huge")
    assert checkpoint.image_size(checkpoint.resolve("sam3-huge")) == 84


def test_random_weights_depend_on_the_seed_alone(tmp_path, small_checkpoint):
    from sam3lab.model.random import write_random

    write_random(tmp_path / "again", SMALL, seed=3)
    write_random(tmp_path / "other", SMALL, seed=4)
    again, other = (checkpoint.fingerprint(tmp_path / name) for name in ("again", "other"))
    assert again == checkpoint.fingerprint(small_checkpoint) != other


def test_random_weights_in_shards(tmp_path, small_checkpoint, monkeypatch):
    monkeypatch.setattr(random, "SHARD", 100_000)
    random.write_random(tmp_path, SMALL, seed=3)
    assert len(checkpoint.weight_files(tmp_path)) > 2
    assert same(checkpoint.load_model(tmp_path), checkpoint.load_model(small_checkpoint))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_known_architectures_have_the_sizes_they_promise(name):
    from sam3lab.model.config import parse_config
    from sam3lab.model.sam3 import Sam3

    with torch.device("meta"):
        model = Sam3(parse_config(ARCHITECTURES[name], name))
    millions = {
        stage: sum(p.numel() for p in module.parameters()) / 1e6
        for stage, module in (("image", model.image_encoder), ("text", model.text_encoder), ("detect", model.detector))
    }
    published = {"image": 454, "text": 353, "detect": 24}  # without the 8 M of the detector's box-prompt encoder
    if name == "sam3":
        assert all(abs(millions[stage] - size) < 1.5 for stage, size in published.items()), millions
    if name == "sam3-nano":
        table = 49408 * 96 / 1e6
        assert 3.5 < sum(millions.values()) - table < 4.5
    if name == "sam3-huge":
        assert millions["image"] > 600


def test_tensors_are_rounded_as_they_are_read_and_held_once(small_checkpoint):
    tensors = checkpoint.read_tensors(small_checkpoint, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in tensors.values() if tensor is not None} == {torch.bfloat16}
    with torch.device("meta"):
        model = Sam3(read_config(small_checkpoint))
    state = weights.from_reference(model, tensors)
    assert all(weights.unused(name) for name in tensors)  # what was used is the state's alone
    whole = checkpoint.load_model(small_checkpoint)
    assert all(torch.equal(state[name], value.bfloat16()) for name, value in whole.state_dict().items())
