"""Checkpoints with seeded random weights: the speed and memory of an architecture without its gated weights."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sam3lab import atomic
from sam3lab.model.config import ARCHITECTURES
from sam3lab.paths import cache_dir

SEED, SHARD = 0, 1 << 30  # bytes of a weights file


def cached(name: str) -> Path:
    """The directory of a named architecture with random weights, made on first use."""
    config = ARCHITECTURES[name]
    key = hashlib.sha256(json.dumps([config, SEED, Path(__file__).read_text()]).encode()).hexdigest()[:12]
    target = cache_dir("checkpoints") / f"{name}-random-{key}"
    return atomic.folder(target, lambda work: write_random(work, config))


def write_random(directory: Path, config: dict, seed: int = SEED) -> None:
    """Write config.json and float32 weights, every tensor that transformers' Sam3Model has, into `directory`.

    config: content of a sam3 config.json, without its model type. Values depend on the seed and the tensor's name alone.
    """
    from transformers import Sam3Config, Sam3Model

    full = Sam3Config(**config)
    with torch.device("meta"):
        reference = Sam3Model(full)
    directory.mkdir(parents=True, exist_ok=True)
    content = full.to_dict() | {"architectures": ["Sam3Model"]}
    (directory / "config.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")

    shards: list[list[str]] = [[]]
    size, shapes = 0, {name: value.shape for name, value in reference.state_dict().items()}
    for name, shape in shapes.items():
        size += 4 * shape.numel()
        if size > SHARD and shards[-1]:
            shards.append([])
            size = 4 * shape.numel()
        shards[-1].append(name)
    if len(shards) == 1:
        return save_file(
            {name: draw(name, shape, seed) for name, shape in shapes.items()}, directory / "model.safetensors"
        )
    places = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: draw(name, shapes[name], seed) for name in names}, directory / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(4 * s.numel() for s in shapes.values())}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return None


def draw(name: str, shape: torch.Size, seed: int) -> Tensor:
    """A random float32 tensor: weights scaled by their fan-in, so that signals neither fade nor grow through the layers;
    norms near 1; biases and embeddings small but never 0, so that a wrong mapping shows."""
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little") >> 1
    value = torch.randn(shape, generator=torch.Generator().manual_seed(key))
    if name.endswith("weight") and len(shape) >= 2 and "embed." not in name and "embedding." not in name:
        fan_in = shape[0] * shape[2:].numel() / 4 if "scale_layers" in name else shape[1:].numel()
        return value * fan_in**-0.5
    if "reference_points" in name:
        return value
    if name.endswith("weight") and len(shape) == 1:
        return 1 + 0.1 * value
    return 0.1 * value if "bias" in name else 0.5 * value
