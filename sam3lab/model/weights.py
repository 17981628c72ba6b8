"""How the lean model's parameters are made of the reference's tensors, and back.

Both know the same numbers. The lean model fuses projections, orders rotary pairs and sine codes differently, and has
shorter names; everything else is renamed only.
"""

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sam3lab.errors import UserError
from sam3lab.model.sam3 import Sam3

NAMES = (
    ("image_encoder.patch_embed.", "vision_encoder.backbone.embeddings.patch_embeddings.projection."),
    ("image_encoder.position", "vision_encoder.backbone.embeddings.position_embeddings"),
    ("image_encoder.neck.", "vision_encoder.neck.fpn_layers."),
    ("image_encoder.", "vision_encoder.backbone."),
    ("text_encoder.projection.", "text_projection."),
    ("text_encoder.token_embedding.", "text_encoder.text_model.embeddings.token_embedding."),
    ("text_encoder.position_embedding.", "text_encoder.text_model.embeddings.position_embedding."),
    ("text_encoder.layers.", "text_encoder.text_model.encoder.layers."),
    ("text_encoder.", "text_encoder.text_model."),
    ("detector.encoder.", "detr_encoder.layers."),
    ("detector.decoder.", "detr_decoder."),
    ("detector.scoring.", "dot_product_scoring."),
    ("detector.mask_decoder.mask_embedder.layer", "mask_decoder.mask_embedder.layers."),
    ("detector.mask_decoder.", "mask_decoder."),
)
# Tensors of the reference that no stage here reads, and why.
UNUSED = {
    r"tracker_model\.|tracker_neck\.": "the video tracker",
    r"geometry_encoder\.": "box prompts, which are not computed yet (text prompts only)",
    r"vision_encoder\.neck\.fpn_layers\.3\.": "the coarsest feature map, which the detector drops",
    r"mask_decoder\.pixel_decoder\.(conv_layers|norms)\.[2-9]\.": "an upsampling stage that has no feature map left",
    r"text_encoder\.text_projection\.": "CLIP's pooled embedding, in place of which SAM 3 reads every token",
    r".*\.(position_ids|inv_freq|original_inv_freq)$": "a table that is computed",
}


def unused(name: str) -> str | None:
    """Why a tensor of the reference is not needed here, or None if it is or is unknown."""
    return next((why for pattern, why in UNUSED.items() if re.match(pattern, name)), None)


def sources(name: str) -> list[str]:
    """The reference's tensors that the lean parameter `name` is made of, in order."""
    renamed = next(theirs + name[len(ours) :] for ours, theirs in NAMES if name.startswith(ours))
    if "mask_embedder" in renamed:  # counted from 0 there, from 1 here
        renamed = re.sub(r"(?<=layers\.)\d", lambda m: str(int(m[0]) - 1), renamed)
    fused = re.search(r"\b([qkv]{2,3})_proj\b", renamed)
    return [renamed.replace(fused[0], f"{part}_proj") for part in fused[1]] if fused else [renamed]


def from_reference(model: Sam3, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The lean model's state dict from the reference's tensors by name, of which `tensors` loses those that are used, so
    that memory holds them once.

    Raises UserError naming what is absent, unknown or of a wrong shape.
    """
    wanted = model.state_dict()
    plan = {name: sources(name) for name in wanted}
    needed = {source for names in plan.values() for source in names}
    refuse("lacks", needed - tensors.keys())
    refuse("has unknown tensors", (name for name in tensors.keys() - needed if not unused(name)))
    state = {}
    for name, names in plan.items():
        parts = [tensors.pop(source) for source in names]
        rows = wanted[name].shape[0] // len(parts)
        expected = (rows, *wanted[name].shape[1:])
        for source, part in zip(names, parts, strict=True):
            if tuple(part.shape) != expected:
                raise UserError(f"tensor {source} has shape {tuple(part.shape)}, its config.json asks for {expected}")
        state[name] = _order(model, name)(parts[0] if len(parts) == 1 else torch.cat(parts))
    return state


def to_reference(model: Sam3) -> dict[str, Tensor]:
    """The reference's tensors from the lean model's, the inverse of `from_reference` (without those it never read)."""
    tensors = {}
    for name, value in model.state_dict().items():
        names = sources(name)
        for source, part in zip(names, _order(model, name, back=True)(value).chunk(len(names)), strict=True):
            tensors[source] = part.contiguous()
    return tensors


def refuse(what: str, names: Iterable[str]) -> None:
    """Raises UserError that says what is wrong with the tensors of these names, if there are any."""
    names = sorted(names)
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise UserError(
            f"the checkpoint {what}: {shown}; is it a facebook/sam3 checkpoint, whole, with its config.json?"
        )


def _order(model: Sam3, name: str, back: bool = False) -> Callable[[Tensor], Tensor]:
    """How the rows or columns of a parameter are reordered (`back`: from here to the reference)."""
    if "image_encoder" in name and "qkv_proj" in name:
        heads = model.config.vit.heads
        return lambda fused: torch.cat([pairs(x, heads, back) for x in fused.chunk(3)[:2]] + [fused.chunk(3)[2]])
    if name == "detector.decoder.ref_point_head.layer1.weight":
        return lambda weight: pairs(weight.T, 4, back).unflatten(0, (4, -1))[[1, 0, 2, 3]].flatten(0, 1).T.contiguous()
    return lambda tensor: tensor


def pairs(x: Tensor, groups: int, back: bool) -> Tensor:
    """Within each of `groups` equal groups of rows, (0, 1, 2, 3, …) becomes (0, 2, …, 1, 3, …), or `back` again."""
    x = x.unflatten(0, (groups, 2, -1) if back else (groups, -1, 2))
    return x.transpose(1, 2).flatten(0, 2)
