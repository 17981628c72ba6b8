"""The prompts of a scene: what is in it, what is nearly in it, and lists of several things."""

import numpy as np

from sam3lab.scenes.grammar import ANY, ATTRIBUTES, HELD_OUT, SIZE, Phrase, Prompt, asks_held_out, matches
from sam3lab.scenes.specification import Scene, draw, split_of

PER_SCENE = 4
POSITIVE = 0.68  # share of the prompts drawn from an object; occlusion makes negatives of a few
NAMED = np.array([0.75, 0.6, 0.4, 0.35])  # how often a phrase names the shape, colour, texture and size
LENGTHS = (0.8, 0.93, 1.0)  # cumulative share of prompts of one, two and three phrases
TRIES = 30


def scene(seed: int) -> tuple[Scene, list[Prompt]]:
    """A seed's scene and its four prompts, all different.

    Prompts of a compositional scene ask for its foremost object, whose combination is held out; those of other scenes
    name no such combination.
    """
    drawn, rng = draw(seed)
    split, prompts = split_of(seed), []
    for place in range(PER_SCENE):
        while True:
            prompt = _compositional(rng, drawn, place) if split == "compositional" else _prompt(rng, drawn)
            allowed = split == "compositional" or not asks_held_out(prompt)
            if allowed and prompt not in prompts:
                prompts.append(prompt)
                break
    return drawn, prompts


def _prompt(rng: np.random.Generator, scene: Scene) -> Prompt:
    objects = scene.attributes
    length = int(np.searchsorted(LENGTHS, rng.random())) + 1
    if len(objects) and rng.random() < POSITIVE:
        found = [_masked(rng, objects[int(rng.integers(len(objects)))])]
        while len(found) < length:
            phrase = _near_miss(rng, objects) if rng.random() < 0.5 else _masked(rng, _some(rng, objects))
            if phrase not in found:
                found.append(phrase)
        return tuple(found[i] for i in rng.permutation(length))
    found = []
    for _ in range(TRIES):
        phrase = _near_miss(rng, objects)
        if phrase not in found and not matches((phrase,), objects).any():
            found.append(phrase)
        if len(found) == length:
            break
    return tuple(found) or (_masked(rng, _anything(rng)),)


def _compositional(rng: np.random.Generator, scene: Scene, place: int) -> Prompt:
    """Two prompts name the foremost object, one a held-out combination near its own, one is as any other."""
    objects = scene.attributes
    held = objects[-1]
    if place < 2:
        size = int(held[SIZE]) if place else ANY
        return ((*held[:SIZE].tolist(), size),)
    if place == 2:
        others = sorted(HELD_OUT - {tuple(row[:SIZE].tolist()) for row in objects})
        near = [other for other in others if sum(a == b for a, b in zip(other, held[:SIZE], strict=True)) >= 1]
        return ((*near[int(rng.integers(len(near)))], ANY),)
    return _prompt(rng, scene)


def _anything(rng: np.random.Generator) -> np.ndarray:
    return np.array([int(rng.integers(len(table))) for table in ATTRIBUTES])


def _some(rng: np.random.Generator, objects: np.ndarray) -> np.ndarray:
    return objects[int(rng.integers(len(objects)))] if len(objects) else _anything(rng)


def _masked(rng: np.random.Generator, attributes: np.ndarray, least: int = 1) -> Phrase:
    """A phrase that names some of the attributes, at least `least` of them."""
    while True:
        named = rng.random(4) < NAMED
        if named.sum() >= least:
            return tuple(np.where(named, attributes, ANY).tolist())


def _near_miss(rng: np.random.Generator, objects: np.ndarray) -> Phrase:
    """An object's description with one attribute changed; now and then anything at all."""
    if rng.random() < 0.2:
        return _masked(rng, _anything(rng))
    phrase = list(_masked(rng, _some(rng, objects), least=2))
    changed = int(rng.choice([i for i in range(4) if phrase[i] != ANY]))
    shift = int(rng.integers(1, len(ATTRIBUTES[changed])))
    phrase[changed] = (phrase[changed] + shift) % len(ATTRIBUTES[changed])
    return tuple(phrase)
