"""Scenes: the same from the same seed, labelled as they look, and split so that what is held out stays unseen."""

import itertools
import shutil

import numpy as np
import pytest
import torch

from sam3lab.errors import UserError
from sam3lab.scenes import build, grammar, prompts, specification
from sam3lab.scenes.grammar import ANY, ATTRIBUTES, COLOURS, HELD_OUT, SHAPES, SIZES, TEXTURES
from sam3lab.scenes.render import VISIBLE, boxes, render
from sam3lab.scenes.specification import OBJECT, SETTING, SPLITS, Scene
from sam3lab.scenes.store import SCENES, STORED, load_split

SEEDS = range(400)
FIRST_PROMPTS = ["small striped red cross, striped red cross", "heart", "pink star", "small pink shape"]
FIRST_OBJECT = [7, 4, 0, 1]


@pytest.fixture(scope="module")
def drawn():
    return [prompts.scene(seed) for seed in SEEDS]


def paint(scenes, side=96):
    return render({name: torch.from_numpy(array) for name, array in specification.stack(scenes).items()}, side)


def make(*objects, background=(0.5, 0.5, 0.5)):
    """A scene without noise, blur or shading; objects are (shape, x, y, radius, angle, rgb[, texture])."""
    rows, attributes = [], []
    for shape, x, y, radius, angle, rgb, *texture in objects:
        row = dict.fromkeys(OBJECT, 0.0) | {"x": x, "y": y, "radius": radius, "angle": angle, "period": 0.06}
        row |= dict(zip(("red", "green", "blue"), rgb, strict=True))
        row |= dict(zip(("red2", "green2", "blue2"), (1.0, 1.0, 1.0), strict=True))
        rows.append([row[name] for name in OBJECT])
        attributes.append([SHAPES.index(shape), 0, TEXTURES.index(*texture or ("plain",)), 1])
    setting = dict.fromkeys(SETTING, 0.0) | {"crop": 1.0, "mirror": 1.0, "contrast": 1.0}
    for end in ("", "2"):
        setting |= dict(zip((f"red{end}", f"green{end}", f"blue{end}"), background, strict=True))
    return Scene(
        seed=7,
        attributes=np.array(attributes, dtype=np.int64).reshape(-1, 4),
        objects=np.array(rows, dtype=np.float32).reshape(-1, len(OBJECT)),
        photograph=-1,
        setting=np.array([setting[name] for name in SETTING], dtype=np.float32),
    )


def hits(text, attributes):
    return grammar.matches(grammar.parse(text), np.array(attributes)).tolist()


# --- grammar


def attributes(text):
    size, texture, colour, shape = text.split()
    return [SHAPES.index(shape), COLOURS.index(colour), TEXTURES.index(texture), SIZES.index(size)]


def test_a_prompt_means_what_it_says():
    scene = [attributes(t) for t in ("small plain red circle", "large striped red circle", "large plain blue star")]
    assert hits("circle", scene) == [True, True, False]
    assert hits("red circle", scene) == [True, True, False]
    assert hits("large circle", scene) == [False, True, False]
    assert hits("plain shape", scene) == [True, False, True]
    assert hits("large striped red circle", scene) == [False, True, False]
    assert hits("blue circle", scene) == [False, False, False]
    assert hits("small circle, blue star", scene) == [True, False, True]
    assert hits("shape", scene) == [True, True, True]
    assert hits("red circle, green heart, small star", scene) == [True, True, False]


def test_texts_and_prompts_are_each_others_inverse(drawn):
    for _, asked in drawn:
        for prompt in asked:
            assert grammar.parse(grammar.text(prompt)) == prompt
    assert grammar.parse("Large Striped Red Star")[0] == (SHAPES.index("star"), 0, 1, 1)


@pytest.mark.parametrize(
    "text", ["cat", "", "red", "red red circle", "circle red", "red circle,", "striped large star"]
)
def test_other_prompts_are_refused(text):
    with pytest.raises(UserError, match="no prompt for the scenes"):
        grammar.parse(text)


# --- what is drawn


def test_the_same_seed_gives_the_same_scene(drawn):
    for seed in (0, 5, SPLITS["test"].start):
        (one, first), (two, second) = prompts.scene(seed), prompts.scene(seed)
        assert first == second
        for name, array in specification.stack([one]).items():
            np.testing.assert_array_equal(array, specification.stack([two])[name])
    # and on every machine: the committed weights were trained on these
    assert [grammar.text(prompt) for prompt in drawn[0][1]] == FIRST_PROMPTS
    assert drawn[0][0].attributes[0].tolist() == FIRST_OBJECT
    texts = {tuple(grammar.text(prompt) for prompt in asked) for _, asked in drawn}
    assert len(texts) == len(drawn)


def test_everything_occurs(drawn):
    everything = np.concatenate([scene.attributes for scene, _ in drawn])
    for column, table in zip(everything.T, ATTRIBUTES, strict=True):
        counts = np.bincount(column, minlength=len(table))
        assert counts.min() > 0.5 * counts.max() * (1 if len(table) > 2 else 0.8), (table, counts)
    assert {len(scene.attributes) for scene, _ in drawn} == set(range(13))
    assert {scene.photograph for scene, _ in drawn} == {-1, *range(len(specification.PHOTOGRAPHS))}
    asked = [prompt for _, many in drawn for prompt in many]
    assert {len(prompt) for prompt in asked} == {1, 2, 3}
    named = np.array([phrase for prompt in asked for phrase in prompt])
    for column, table in zip(named.T, ATTRIBUTES, strict=True):
        assert set(column.tolist()) == {ANY, *range(len(table))}
    answered = np.mean([grammar.matches(p, scene.attributes).any() for scene, many in drawn for p in many])
    assert 0.5 < answered < 0.75


def test_sizes_are_apart(drawn):
    for scene, _ in drawn:
        radius, large = scene.objects[:, OBJECT.index("radius")], scene.attributes[:, 3] == SIZES.index("large")
        assert (radius[large] > 1.4 * specification.RADII[0][1]).all()
        assert (radius[~large] <= specification.RADII[0][1]).all()


def test_every_scene_has_four_different_prompts(drawn):
    for _, asked in drawn:
        assert len(set(asked)) == prompts.PER_SCENE == 4


# --- splits


def test_splits_are_disjoint():
    for (_, a), (_, b) in itertools.combinations(SPLITS.items(), 2):
        assert a.stop <= b.start or b.stop <= a.start
    assert [specification.split_of(seeds.stop - 1) for seeds in SPLITS.values()] == list(SPLITS)
    with pytest.raises(UserError, match="no split"):
        specification.split_of(SPLITS["compositional"].stop)


def test_one_combination_in_ten_is_held_out_and_every_pair_is_left():
    whole = set(itertools.product(range(len(SHAPES)), range(len(COLOURS)), range(len(TEXTURES))))
    assert 0.08 < len(HELD_OUT) / len(whole) < 0.12
    kept = whole - HELD_OUT
    for i, j in itertools.combinations(range(3), 2):
        assert {(c[i], c[j]) for c in kept} == {(c[i], c[j]) for c in whole}
    for i in range(3):
        assert {c[i] for c in HELD_OUT} == {c[i] for c in whole}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_held_out_combinations_stay_unseen(split):
    for seed in SPLITS[split][:256]:
        scene, asked = prompts.scene(seed)
        assert not {tuple(row[:3]) for row in scene.attributes.tolist()} & HELD_OUT
        assert not any(phrase[:3] in HELD_OUT for prompt in asked for phrase in prompt)


def test_compositional_scenes_ask_for_what_is_held_out():
    pairs = [prompts.scene(seed) for seed in SPLITS["compositional"][:16]]
    rendered = paint([scene for scene, _ in pairs])
    for (scene, asked), present in zip(pairs, rendered.present, strict=True):
        held = [tuple(row[:3]) in HELD_OUT for row in scene.attributes.tolist()]
        assert held[-1]
        answers = [np.flatnonzero(grammar.matches(p, scene.attributes) & present.numpy()[: len(held)]) for p in asked]
        assert grammar.asks_held_out(asked[0]) and answers[0].size and all(held[i] for i in answers[0])
        assert not answers[2].size and grammar.asks_held_out(asked[2])


# --- rendering


def test_masks_agree_with_the_image():
    red, blue = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)
    scene = make(("circle", 0.3, 0.5, 0.2, 0, red), ("square", 0.45, 0.5, 0.15, 0.4, blue))
    rendered = paint([scene], 128)
    image, (circle, square) = rendered.image[0].float() / 255, rendered.masks[0, :2]
    assert not (rendered.masks.sum(1) > 1).any()
    torch.testing.assert_close(image[:, square].mean(1), torch.tensor(blue), atol=0.03, rtol=0)
    torch.testing.assert_close(image[:, circle].mean(1), torch.tensor(red), atol=0.03, rtol=0)
    outside = ~(circle | square)
    assert (image[:, outside] - 0.5).abs().mean() < 0.02
    assert circle.sum() < torch.pi * 0.2**2 * 128**2 * 0.95  # the square hides a part of it
    assert abs(square.sum() / (0.27 * 128) ** 2 - 1) < 0.03


@pytest.mark.parametrize("side", [84, 252])
def test_any_resolution_renders_the_same_scene(side, drawn):
    scenes = [scene for scene, _ in drawn[:4]]
    rendered, finer = paint(scenes, side), paint(scenes, 2 * side)
    assert rendered.image.shape == (4, 3, side, side) and rendered.image.dtype == torch.uint8
    coarser = finer.masks.float().unflatten(3, (side, 2)).unflatten(2, (side, 2)).mean((3, 5)) > 0.5
    both, either = (coarser & rendered.masks).sum((2, 3)), (coarser | rendered.masks).sum((2, 3))
    clear = rendered.present & finer.present
    assert (both / either)[clear].mean() > 0.9


def test_batches_do_not_matter(drawn):
    scenes = [scene for scene, _ in drawn[:3]]
    together, alone = paint(scenes), paint(scenes[1:2])
    assert torch.equal(together.masks[1:2], alone.masks)
    assert (together.image[1:2].int() - alone.image.int()).abs().max() <= 1


def test_what_is_mostly_hidden_is_no_ground_truth():
    red, blue = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)
    for shift, seen in ((0.0, 0.0), (0.3, 0.3 / 0.36), (0.16, 0.16 / 0.36), (0.12, 0.12 / 0.36)):
        back, front = ("square", 0.4, 0.5, 0.2, 0, red), ("square", 0.4 + shift, 0.5, 0.2, 0, blue)
        rendered = paint([make(back, front)], 128)
        assert rendered.present[0, :2].tolist() == [seen >= VISIBLE, True], shift
        area = rendered.masks[0, :2].sum((1, 2)) / 128**2
        assert abs(area[1] - 0.36**2) < 0.004
        assert abs(area[0] - (seen * 0.36**2 if seen >= VISIBLE else 0)) < 0.004


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_where_they_should_be(shape):
    masks = [paint([make((shape, 0.6, 0.4, 0.15, turn, (0.9, 0.1, 0.1)))], 128).masks[0, 0] for turn in (0, np.pi / 2)]
    upright, turned = masks
    area = upright.sum() / 128**2 / 0.15**2
    assert 1.2 < area < 3.4  # of comparable size, whatever the shape
    rows, columns = upright.nonzero().float().mean(0) / 128
    assert abs(rows - 0.4) < 0.09 and abs(columns - 0.6) < 0.09
    turned = torch.roll(torch.rot90(upright, -1), (0, 0), (0, 1)), turned
    assert abs(int(turned[0].sum()) - int(turned[1].sum())) < 0.02 * upright.sum() + 8
    assert bool(upright[int(0.4 * 128), int(0.6 * 128)]) == (shape not in ("ring", "crescent"))


def test_shapes_differ():
    masks = [paint([make((shape, 0.5, 0.5, 0.2, 0, (1, 0, 0)))], 96).masks[0, 0] for shape in SHAPES]
    for a, b in itertools.combinations(masks, 2):
        assert (a & b).sum() / (a | b).sum() < 0.9


def test_textures_show():
    images = {texture: paint([make(("circle", 0.5, 0.5, 0.3, 0, (0.8, 0, 0), texture))], 128) for texture in TEXTURES}
    spread = {name: r.image[0][:, r.masks[0, 0]].float().std(dim=1)[1].item() for name, r in images.items()}
    assert spread["plain"] < 15 < 60 < min(spread["striped"], spread["dotted"])
    striped = images["striped"].image[0, 1].float()
    assert striped[50:78, 64].std() < 5 < striped[64, 50:78].std()  # along a stripe, and across


def test_an_empty_scene_renders():
    rendered = paint([make()], 42)
    assert not rendered.present.any() and not rendered.masks.any()
    assert (rendered.image == 128).all()


def test_noise_and_blur_are_the_scenes_own():
    scene = make(("circle", 0.5, 0.5, 0.3, 0, (0.8, 0, 0)))
    noisy, blurred = (scene.setting.copy() for _ in range(2))
    noisy[SETTING.index("noise")], blurred[SETTING.index("blur")] = 0.05, 0.004
    others = [Scene(seed, scene.attributes, scene.objects, -1, s) for seed, s in ((7, noisy), (8, noisy), (7, blurred))]
    plain, one, two, soft = paint([scene, *others], 252).image.float()
    noise = (one - plain)[:, :60]  # background
    assert abs(noise.std() / 255 - 0.05) < 0.003 and abs(noise.mean()) < 0.5
    assert abs(np.corrcoef(noise.flatten(), (two - plain)[:, :60].flatten())[0, 1]) < 0.03
    assert soft[0].diff().abs().max() < plain[0].diff().abs().max()


def test_boxes_are_tight():
    masks = torch.zeros(2, 10, 10, dtype=torch.bool)
    masks[0, 2:5, 1:9] = True
    assert boxes(masks).tolist() == [[pytest.approx(v) for v in (0.1, 0.2, 0.9, 0.5)], [0, 0, 0, 0]]


# --- what is stored


@pytest.mark.parametrize(("name", "count"), [("test", 256), ("compositional", 128)])
def test_stored_splits_are_whole(name, count):
    scenes = load_split(name)
    assert [scene.image_id for scene in scenes] == list(range(1, count + 1))
    assert {len(scene.prompts) for scene in scenes} == {4}
    negatives = np.mean([not prompt.answers for scene in scenes for prompt in scene.prompts])
    assert 0.25 <= negatives <= 0.55
    for scene in scenes[:: count // 16]:
        assert scene.image.shape == (252, 252, 3)
        assert scene.masks.sum(0).max(initial=0) <= 1
        for annotation, mask in zip(scene.annotations, scene.masks, strict=True):
            assert annotation["area"] == mask.sum()
        rows = [
            attributes(f"{a['size']} {a['texture']} {a['colour']} {SHAPES[a['category_id'] - 1]}")
            for a in scene.annotations
        ]
        for prompt in scene.prompts:
            truth = hits(prompt.text, np.array(rows).reshape(-1, 4))
            assert prompt.answers == tuple(np.flatnonzero(truth))


def test_stored_scenes_are_the_seeds_scenes():
    scenes = load_split("test")[:3]
    fresh = [prompts.scene(seed) for seed in SPLITS["test"][:3]]
    rendered = paint([scene for scene, _ in fresh], 252)
    for stored, image, masks, present, (_, asked) in zip(
        scenes, rendered.image, rendered.masks, rendered.present, fresh, strict=True
    ):
        assert [prompt.text for prompt in stored.prompts] == [grammar.text(prompt) for prompt in asked]
        masks = masks[present].numpy()
        assert (masks != stored.masks).mean() < 1e-3
        # WebP halves the resolution of colour, hence compare the brightness
        error = stored.image.mean(2) - image.permute(1, 2, 0).float().mean(2).numpy()
        assert np.abs(error).mean() < 8


def test_stored_splits_are_small():
    assert sum(path.stat().st_size for path in SCENES.iterdir()) < 6_000_000


@pytest.mark.parametrize("victim", ["test.zip", "test.json", "SHA256SUMS"])
def test_damage_is_refused(tmp_path, victim):
    for path in SCENES.iterdir():
        shutil.copy(path, tmp_path)
    load_split("test", tmp_path)
    content = bytearray((tmp_path / victim).read_bytes())
    content[len(content) - 70] ^= 1
    (tmp_path / victim).write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|cannot read"):
        load_split("test", tmp_path)
    (tmp_path / victim).unlink()
    with pytest.raises(UserError, match="cannot read the scenes"):
        load_split("test", tmp_path)


def test_unknown_splits_are_refused():
    with pytest.raises(UserError, match="test, compositional"):
        load_split("train")


def test_sets_can_be_built_again(tmp_path):
    build.build(tmp_path / "a", dict.fromkeys(STORED, 2))
    build.build(tmp_path / "b", dict.fromkeys(STORED, 2))
    assert len(load_split("test", tmp_path / "a")) == 2
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
