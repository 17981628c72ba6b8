"""The model before its first step: sam3-nano's configuration with the vocabulary of its own, and initial weights."""

import copy
import math

import torch
from torch import Tensor, nn

from sam3lab.model.config import ARCHITECTURES, parse_config
from sam3lab.model.sam3 import Sam3
from sam3lab.train.vocabulary import SIZE

PRIOR = 0.1  # probability that an untrained query gives: most queries find nothing


def nano() -> dict:
    """Content of sam3-nano's config.json: the architecture of that name with a vocabulary of 1024."""
    raw = copy.deepcopy(ARCHITECTURES["sam3-nano"])
    raw["text_config"] |= {
        "vocab_size": SIZE,
        "bos_token_id": SIZE - 2,
        "eos_token_id": SIZE - 1,
        "pad_token_id": SIZE - 1,
    }
    return raw


def build(raw: dict, seed: int, resolution: int | None = None) -> Sam3:
    """A model of the configuration `raw` with initial weights, float32 on the CPU; they depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Sam3(parse_config(raw, "the configuration to train"), resolution)
        initialise(model)
    return model


@torch.no_grad()
def initialise(model: Sam3) -> None:
    """Draw the initial weights from torch's generator."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _xavier(module.weight)
            nn.init.zeros_(module.bias)
    for stack in (model.image_encoder.layers, model.text_encoder.layers, model.detector.encoder):
        for name, weight in stack.named_parameters():  # what a layer adds to the stream, so that depth does not add up
            if name.endswith(("o_proj.weight", "out_proj.weight", "mlp.fc2.weight")):
                weight /= math.sqrt(2 * len(stack))
    _xavier(model.image_encoder.patch_embed.weight)
    nn.init.normal_(model.image_encoder.position, std=0.1)
    nn.init.normal_(model.text_encoder.token_embedding.weight, std=0.5)
    nn.init.normal_(model.text_encoder.position_embedding.weight, std=0.1)

    decoder, scoring = model.detector.decoder, model.detector.scoring
    nn.init.normal_(decoder.presence_token.weight, std=0.5)
    nn.init.normal_(decoder.query_embed.weight, std=0.5)
    decoder.reference_points.weight.copy_(spread(decoder.reference_points.num_embeddings))
    nn.init.zeros_(decoder.box_head.layer3.weight)  # the first boxes are the reference points
    for head in (decoder.box_rpb_embed_x, decoder.box_rpb_embed_y):
        head.layer2.weight *= 0.5
    masks = model.detector.mask_decoder
    masks.mask_embedder.layer3.weight *= (
        0.1  # a product over all channels: uncertain at first, not wrong and sure of it
    )
    nn.init.constant_(masks.semantic_projection.bias, math.log(PRIOR / (1 - PRIOR)))
    # the class logit is a product of two projections: their biases make its prior, and their weights start small
    width = scoring.query_proj.out_features
    level = math.sqrt(math.log(1 / PRIOR - 1) / math.sqrt(width))
    for projection, sign in ((scoring.query_proj, 1), (scoring.text_proj, -1)):
        projection.weight *= 0.5
        nn.init.constant_(projection.bias, sign * level)


def _xavier(weight: Tensor) -> None:
    """Xavier's uniform range (Glorot and Bengio 2010); each projection of a fused one counts for itself."""
    fan_out, fan_in = weight.shape[0], weight[0].numel()
    fan_out = fan_in if fan_out in (2 * fan_in, 3 * fan_in) and weight.ndim == 2 else fan_out
    bound = math.sqrt(6 / (fan_in + fan_out))
    nn.init.uniform_(weight, -bound, bound)


def spread(count: int) -> Tensor:
    """Reference points [count,4] before the sigmoid: centres spread evenly over the image, sides a fifth of it.

    The centres are the R₂ sequence (Roberts 2018), evenly spread for any count.
    """
    root = 1.32471795724474602596  # of x³ = x + 1
    steps = torch.tensor([1 / root, 1 / root**2], dtype=torch.float64)
    centres = (0.5 + torch.arange(1, count + 1, dtype=torch.float64)[:, None] * steps) % 1
    sides = torch.full((count, 2), 0.2, dtype=torch.float64)
    return torch.cat([0.04 + 0.92 * centres, sides], dim=1).logit().float()


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay acts on a parameter: on matrices and kernels, not on biases, norms and embeddings."""
    embedding = any(part in name for part in ("embedding.", "query_embed", "reference_points", "presence_token"))
    return parameter.ndim > 1 and not embedding and not name.endswith("position")
