"""What INT8 graphs are calibrated on: scenes that training draws from, and no test does."""

from pathlib import Path

from sam3lab.export.quantize import Sample, sample

SCENES = 32
_CHUNK = 8  # scenes rendered at a time


def samples(checkpoint: Path, resolution: int, count: int = SCENES) -> list[Sample]:
    """The first `count` training scenes, rendered at the resolution, each with its own prompts; always the same on one
    machine. Rendering may differ in a last bit between machines, which shows in quantize.digest and so in the cache's key.

    A checkpoint other than sam3-nano is calibrated on the same scenes, with its own tokenizer: their photographs,
    gradients and shapes span the pixels' range, and their prompts are plain English.
    """
    import torch

    from sam3lab.model.tokenizer import load_tokenizer
    from sam3lab.scenes import grammar, prompts
    from sam3lab.scenes.render import render
    from sam3lab.scenes.specification import SPLITS, stack

    tokenizer = load_tokenizer(checkpoint)
    made = []
    for start in range(0, count, _CHUNK):
        drawn = [prompts.scene(seed) for seed in SPLITS["train"][start : min(start + _CHUNK, count)]]
        scenes = {name: torch.from_numpy(array) for name, array in stack([scene for scene, _ in drawn]).items()}
        pictures = render(scenes, resolution).image.permute(0, 2, 3, 1).numpy()
        for picture, (_, asked) in zip(pictures, drawn, strict=True):
            made.append(sample(picture, [grammar.text(prompt) for prompt in asked], tokenizer, resolution))
    return made
