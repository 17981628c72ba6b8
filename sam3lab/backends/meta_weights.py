"""How the state dict of Meta's package `sam3` is made of a checkpoint in facebook/sam3's format.

Both know the same numbers. Meta fuses the projections of an attention, keeps one more row of position embeddings (a
class token's, which it drops before use), CLIP's text projection transposed, and other names, which are those of
transformers' convert_sam3_to_hf.py.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lab.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_FEEDFORWARD = {"linear1": "mlp.fc1", "linear2": "mlp.fc2", "out_proj": "o_proj"}
_NORMS = {f"norm{i}": f"layer_norm{i}" for i in (1, 2, 3)}
_FUSION = _FEEDFORWARD | _NORMS | {"cross_attn_image": "cross_attn"}
_MLP = {f"layers.{i}": f"layer{i + 1}" for i in (0, 1, 2)}
_VISION, _TEXT = "backbone.vision_backbone.", "backbone.language_backbone."
# Meta's prefix, the reference's, and what components below it are called there; the first prefix that fits counts.
_MODULES = (
    (_VISION + "trunk.blocks.", "vision_encoder.backbone.layers.", _NORMS | {"attn": "attention", "proj": "o_proj"}),
    (
        _VISION + "trunk.",
        "vision_encoder.backbone.",
        {
            "pos_embed": "embeddings.position_embeddings",
            "patch_embed.proj": "embeddings.patch_embeddings.projection",
            "ln_pre": "layer_norm",
        },
    ),
    (
        _VISION + "convs.",
        "vision_encoder.neck.fpn_layers.",
        {
            "dconv_2x2_0": "scale_layers.0",
            "dconv_2x2_1": "scale_layers.2",  # 1 is the activation
            "dconv_2x2": "scale_layers.0",
            "conv_1x1": "proj1",
            "conv_3x3": "proj2",
        },
    ),
    (
        _TEXT + "encoder.transformer.resblocks.",
        "text_encoder.text_model.encoder.layers.",
        {"attn": "self_attn", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "c_fc": "fc1", "c_proj": "fc2"},
    ),
    (_TEXT + "encoder.text_projection", "text_encoder.text_projection.weight", {}),
    (
        _TEXT + "encoder.",
        "text_encoder.text_model.",
        {
            "token_embedding": "embeddings.token_embedding",
            "positional_embedding": "embeddings.position_embedding.weight",
            "ln_final": "final_layer_norm",
        },
    ),
    (_TEXT + "resizer.", "text_projection.", {}),
    ("geometry_encoder.encode.", "geometry_encoder.layers.", _FUSION),
    (
        "geometry_encoder.",
        "geometry_encoder.",
        {"img_pre_norm": "vision_layer_norm", "norm": "prompt_layer_norm", "encode_norm": "output_layer_norm"},
    ),
    ("transformer.encoder.", "detr_encoder.", _FUSION),
    (
        "transformer.decoder.layers.",
        "detr_decoder.layers.",
        _FEEDFORWARD
        | {
            "ca_text": "text_cross_attn",
            "cross_attn": "vision_cross_attn",
            "norm1": "vision_cross_attn_layer_norm",
            "catext_norm": "text_cross_attn_layer_norm",
            "norm2": "self_attn_layer_norm",
            "norm3": "mlp_layer_norm",
        },
    ),
    (
        "transformer.decoder.",
        "detr_decoder.",
        _MLP
        | {
            "bbox_embed": "box_head",
            "boxRPB_embed_x": "box_rpb_embed_x",
            "boxRPB_embed_y": "box_rpb_embed_y",
            "norm": "output_layer_norm",
            "presence_token_head": "presence_head",
            "presence_token_out_norm": "presence_layer_norm",
        },
    ),
    (
        "dot_prod_scoring.",
        "dot_product_scoring.",
        _MLP
        | {
            "prompt_mlp.out_norm": "text_mlp_out_norm",
            "prompt_mlp": "text_mlp",
            "prompt_proj": "text_proj",
            "hs_proj": "query_proj",
        },
    ),
    (
        "segmentation_head.",
        "mask_decoder.",
        {
            "mask_predictor.mask_embed": "mask_embedder",
            "instance_seg_head": "instance_projection",
            "semantic_seg_head": "semantic_projection",
            "cross_attend_prompt": "prompt_cross_attn",
            "cross_attn_norm": "prompt_cross_attn_norm",
            "out_proj": "o_proj",
        },
    ),
)
# Tensors of Meta's image model that keep what its constructor gave them, and why.
KEPT = {
    r".*\.freqs_cis$": "a table that is computed",
    r"geometry_encoder\.points_": "point prompts, of which the checkpoint holds nothing and a text prompt none",
}
# Tensors of the checkpoint that Meta's image model has no place for, and why.
UNUSED = {
    r"tracker_model\.|tracker_neck\.": "the video tracker",
    r".*\.(position_ids|inv_freq|original_inv_freq)$": "a table that is computed",
}


def sources(name: str) -> list[str]:
    """The checkpoint's tensors that Meta's tensor `name` is made of, in order; none for one that is KEPT.

    Raises UserError for a name that the image model of version 0.1.4 does not have.
    """
    if any(re.match(pattern, name) for pattern in KEPT):
        return []
    module = next((module for module in _MODULES if name.startswith(module[0])), None)
    if module is None:
        raise UserError(f"this version of Meta's package has a tensor {name}: pip install sam3==0.1.4, which has none")
    prefix, reference, components = module
    longest = sorted(components, key=len, reverse=True)
    pattern = rf"(?<![^.])({'|'.join(map(re.escape, longest)) or '(?!)'})(?![^.])"
    renamed = reference + re.sub(pattern, lambda match: components[match[0]], name[len(prefix) :])
    fused = re.fullmatch(r"(.*\.)(?:in_proj_|qkv\.)(weight|bias)", renamed)
    return [f"{fused[1]}{part}_proj.{fused[2]}" for part in "qkv"] if fused else [renamed]


def from_reference(wanted: Mapping[str, "Tensor"], tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """What Meta's image model, whose state dict is `wanted`, loads to compute with a checkpoint's `tensors` by name.

    Raises UserError naming a tensor that is absent, unknown or of a wrong shape, such as another architecture has.
    """
    import torch

    plan = {name: sources(name) for name in wanted}
    needed = {source for names in plan.values() for source in names}
    _refuse("lacks", needed - tensors.keys())
    unknown = (name for name in tensors.keys() - needed if not any(re.match(pattern, name) for pattern in UNUSED))
    _refuse("has unknown tensors", unknown)
    state = {}
    for name, names in plan.items():
        parts = [tensors[source] for source in names] or [wanted[name]]
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        if name.endswith(".pos_embed"):
            value = torch.nn.functional.pad(value, (0, 0, 1, 0))
        elif name.endswith(".text_projection"):
            value = value.T
        if value.shape != wanted[name].shape:
            raise UserError(
                f"Meta's package builds the published architecture only, where {name} is {_shape(wanted[name])}: the "
                f"checkpoint's {names[0]} makes it {_shape(value)}; use facebook/sam3, or sam3 (random weights)"
            )
        state[name] = value
    return state


def read(directory: Path) -> dict[str, "Tensor"]:
    """The tensors of a checkpoint by the reference's names, without the prefix that the video model gives its detector;
    unlike model.checkpoint.read_tensors with those of the geometry encoder. On the CPU, as Meta's own loader does: on the
    device they would count as its memory. Raises UserError for an absent or damaged file.
    """
    from safetensors import SafetensorError, safe_open

    from sam3lab.model.checkpoint import weight_files

    tensors = {}
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                for stored in file.keys():  # noqa: SIM118 (not a mapping)
                    name = stored.removeprefix("detector_model.")
                    if not any(re.match(pattern, name) for pattern in UNUSED):
                        tensors[name] = file.get_tensor(stored)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a whole safetensors file ({error}): download it again") from error
    return tensors


def _refuse(what: str, names: Iterable[str]) -> None:
    names = sorted(names)
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise UserError(f"for Meta's package the checkpoint {what}: {shown}; is it a whole facebook/sam3 checkpoint?")


def _shape(tensor: "Tensor") -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
