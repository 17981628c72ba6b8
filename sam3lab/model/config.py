"""The shape of a SAM 3: what its config.json says, and the architectures known by name."""

import json
from dataclasses import dataclass
from pathlib import Path

from sam3lab.errors import UserError

PATCH = 14  # pixels a patch side; resolutions are multiples of it
CONTEXT = 32  # tokens a prompt is padded to


@dataclass(frozen=True)
class Encoder:
    """A stack of transformer layers: how many, their width, MLP width, heads and activation."""

    layers: int
    width: int
    mlp: int
    heads: int
    activation: str
    eps: float = 1e-5


@dataclass(frozen=True)
class Config:
    """What the lean model needs to know; facebook/sam3's values are in `ARCHITECTURES["sam3"]`.

    vit, text, encoder, decoder: the four stacks. window: side of an attention window, in patches. global_layers: the
    ViT layers that attend to the whole image. position_grid: side of the learnt position embedding, in patches.
    rope_theta: base of the rotary frequencies. image_size: the native resolution, in pixels. mask_heads: heads of the
    mask decoder's attention to the prompt.
    """

    vit: Encoder
    text: Encoder
    encoder: Encoder
    decoder: Encoder
    window: int
    global_layers: tuple[int, ...]
    position_grid: int
    rope_theta: float
    image_size: int
    vocabulary: int
    queries: int
    mask_heads: int

    @property
    def hidden(self) -> int:
        """Width of the detector and of the features between the stages."""
        return self.encoder.width


def config_file(directory: Path) -> Path:
    """The config.json in `directory`. Raises UserError if there is none."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise UserError(f"{directory} has no config.json: give a directory in facebook/sam3's format")
    return path


def read_config(directory: Path) -> Config:
    """The configuration in `directory`/config.json, of a `sam3` model or of a `sam3_video` one with its detector.

    Raises UserError if the file is absent, is no JSON, or describes no model or one that this code does not compute.
    """
    path = config_file(directory)
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): download the checkpoint again") from error
    return parse_config(raw, path)


def parse_config(raw: object, source: object) -> Config:
    """`raw`, the content of a sam3 or sam3_video config.json, as a Config; absent keys have transformers' defaults.

    Raises UserError, which names `source`, where it describes no model or one that this code does not compute.
    """
    try:
        return _config(raw)
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: {error}: give a configuration like facebook/sam3's") from error


def _config(raw: object) -> Config:
    """Raises ValueError or TypeError that says what is no good, and why."""
    if not isinstance(raw, dict):
        raise ValueError("it holds no JSON object")
    raw = _section(raw, "detector_config") or raw
    if raw.get("model_type", "sam3") != "sam3":
        raise ValueError(f"it is for a model of type {raw['model_type']!r}, not sam3")
    vision, text, masks = (_section(raw, name) for name in ("vision_config", "text_config", "mask_decoder_config"))
    vit, detr = _section(vision, "backbone_config"), (6, 256, 2048, 8, "relu")
    decoder = _section(raw, "detr_decoder_config")
    # a text_config of its own has CLIP's defaults for what it leaves out, not SAM 3's
    clip = raw.get("text_config") is not None
    config = Config(
        vit=_stack(vit, 32, 1024, 4736, 16, "gelu", eps=1e-6),
        text=_stack(text, *((12, 512, 2048, 8, "quick_gelu") if clip else (24, 1024, 4096, 16, "gelu"))),
        encoder=_stack(_section(raw, "detr_encoder_config"), *detr, depth="num_layers"),
        decoder=_stack(decoder, *detr, depth="num_layers"),
        window=_count(vit, "window_size", 24),
        global_layers=tuple(vit.get("global_attn_indexes") or (7, 15, 23, 31)),
        position_grid=_count(vit, "pretrain_image_size", 336) // PATCH,
        rope_theta=float(_section(vit, "rope_parameters").get("rope_theta", vit.get("rope_theta", 10000.0))),
        image_size=_count(vit, "image_size", 1008),
        vocabulary=_count(text, "vocab_size", 49408),
        queries=_count(decoder, "num_queries", 200),
        mask_heads=_count(masks, "num_attention_heads", 8),
    )
    expected = {
        "patch_size": (_count(vit, "patch_size", PATCH), PATCH),
        "scale_factors": (vision.get("scale_factors") or [4.0, 2.0, 1.0, 0.5], [4.0, 2.0, 1.0, 0.5]),
        "max_position_embeddings": (text.get("max_position_embeddings", 77 if clip else CONTEXT), CONTEXT),
        "fpn_hidden_size": (vision.get("fpn_hidden_size", 256), config.hidden),
        "decoder hidden_size": (config.decoder.width, config.hidden),
        "mask decoder hidden_size": (masks.get("hidden_size", 256), config.hidden),
    }
    for key, (found, wanted) in expected.items():
        if found != wanted:
            raise ValueError(f"{key} is {found}, and only {wanted} is computed here")
    return config


def check_resolution(resolution: int) -> int:
    """The resolution itself if it is a positive multiple of the patch size; else UserError with the nearest one."""
    if resolution < PATCH or resolution % PATCH:
        near = max(PATCH, round(resolution / PATCH) * PATCH)
        positive = "positive " * (resolution < PATCH)
        raise UserError(f"resolution {resolution} is not a {positive}multiple of {PATCH}: try {near}")
    return resolution


def _section(raw: dict, name: str) -> dict:
    section = raw.get(name)
    if not isinstance(section, dict | None):
        raise ValueError(f"{name} is {section!r}, not an object")
    return section or {}


def _stack(
    raw: dict, layers: int, width: int, mlp: int, heads: int, act: str, depth: str = "num_hidden_layers", eps=1e-5
) -> Encoder:
    stack = Encoder(
        layers=_count(raw, depth if depth in raw else "num_hidden_layers", layers),
        width=_count(raw, "hidden_size", width),
        mlp=_count(raw, "intermediate_size", mlp),
        heads=_count(raw, "num_attention_heads", heads),
        activation=raw.get("hidden_act", act),
        # the DETR stacks of the reference use LayerNorm's default, whatever their configuration says
        eps=eps if depth == "num_layers" else float(raw.get("layer_norm_eps", eps)),
    )
    if stack.width % stack.heads:
        raise ValueError(f"hidden_size {stack.width} is no multiple of the num_attention_heads, {stack.heads}")
    return stack


def _count(raw: dict, name: str, default: int) -> int:
    """A positive whole number, of which a size may give two, a square's sides."""
    value = raw.get(name, default)
    sides = value if isinstance(value, list) and value else [value]
    if any(type(side) is not int or side < 1 or side != sides[0] for side in sides):
        raise ValueError(f"{name} is {value!r}, not a positive whole number")
    return sides[0]


def _nano() -> dict:
    """A SAM 3 of about 4 M parameters with a native resolution of 252, small enough for a CPU."""
    detr = {"hidden_size": 96, "num_layers": 3, "num_attention_heads": 4, "intermediate_size": 384, "dropout": 0.0}
    return {
        "vision_config": {
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 192,
                "intermediate_size": 384,
                "num_hidden_layers": 6,
                "num_attention_heads": 4,
                "window_size": 6,
                "global_attn_indexes": [2, 5],
                "image_size": 252,
                "pretrain_image_size": 84,
            },
            "fpn_hidden_size": 96,
            "backbone_feature_sizes": [[72, 72], [36, 36], [18, 18]],
        },
        "text_config": _clip(width=96, mlp=384, layers=3, heads=4),
        "geometry_encoder_config": detr | {"num_layers": 1, "roi_size": 2},
        "detr_encoder_config": detr,
        "detr_decoder_config": detr | {"num_queries": 40},
        "mask_decoder_config": {"hidden_size": 96, "num_attention_heads": 4},
    }


def _clip(width: int = 1024, mlp: int = 4096, layers: int = 24, heads: int = 16) -> dict:
    return {
        "model_type": "clip_text_model",
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": mlp,
        "projection_dim": width // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "gelu",
    }


# config.json of the architectures that can be had with random weights: the published one is the defaults of
# transformers' Sam3Config; "huge" widens its ViT to ViT-H (Dosovitskiy et al. 2021, table 1).
ARCHITECTURES = {
    "sam3": {"text_config": _clip()},
    "sam3-huge": {
        "text_config": _clip(),
        "vision_config": {
            "backbone_config": {"model_type": "sam3_vit_model", "hidden_size": 1280, "intermediate_size": 5120}
        },
    },
    "sam3-nano": _nano(),
}
