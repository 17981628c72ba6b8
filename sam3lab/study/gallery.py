"""A gallery: scenes, prompts, what is there, and the masks that each runtime found, side by side."""

import json
from pathlib import Path

from sam3lab.study.style import look, styled

WIDTH = 170 / 25.4  # inches: the full width of a journal page
COLUMNS = 8
SIDE = 128  # pixels of a picture: enough for its size in print, and the file stays small
IOU = 0.5  # a mask that overlaps a true one by that much has found it
FADED = 0.65  # the share of white in what no mask covers
ROWS = ((1, 3), (3, 2), (2, 1), (0, 3))  # of each: how many objects answer the prompt, how many words it has at least


def choose(scenes) -> list[tuple[int, int]]:
    """(place of the scene, place of the prompt) for each of ROWS: the first that is so, from scenes not chosen yet.

    scenes: scenes.store's. Only the ground truth is looked at, so that what is shown was not picked for its masks.
    """
    chosen: list[tuple[int, int]] = []
    for answers, words in ROWS:
        fit = (
            (place, number)
            for place, scene in enumerate(scenes)
            if place not in {taken for taken, _ in chosen}
            for number, prompt in enumerate(scene.prompts)
            if len(prompt.answers) == answers and len(prompt.text.split()) >= words
        )
        chosen += [found] if (found := next(fit, None)) else []
    return chosen


def collect(run_dir: Path, cases, split: str = "test") -> list[dict]:
    """What the accuracy `cases` found in the chosen scenes, JSON-ready, for `figure`: a few masks of a large file.

    One entry a row: scene, prompt (their places) and found, a list of {"backend", "precision", "masks"}, where masks are
    COCO's run lengths. A case without predictions is left out, and of the others what scores under CONFIDENCE.
    """
    from sam3lab.bench import records
    from sam3lab.bench.accuracy import CONFIDENCE
    from sam3lab.scenes import store

    scenes = store.load_split(split)
    count = cases[0].split[1] or len(scenes)
    truth = json.loads(store.verified(store.SCENES / f"{split}.json", store.SCENES))
    ids: dict[int, list[int]] = {}
    for prompt in truth["prompts"]:
        ids.setdefault(prompt["image_id"], []).append(prompt["id"])
    rows = [{"scene": scene, "prompt": prompt, "found": []} for scene, prompt in choose(scenes[:count])]
    for case in cases:
        path = records.outputs_path(Path(run_dir), case)
        if not path.exists():
            continue
        predictions = [entry for entry in json.loads(path.read_text()) if entry["score"] >= CONFIDENCE]
        for row in rows:
            pair = ids[scenes[row["scene"]].image_id][row["prompt"]]
            masks = [entry["segmentation"] for entry in predictions if entry["image_id"] == pair]
            row["found"].append({"backend": case.backend, "precision": case.precision, "masks": masks})
    return rows


@styled
def figure(rows, split: str = "test"):
    """The figure of what `collect` gave: a row a scene and prompt; the truth, then a column a runtime and precision."""
    from matplotlib.figure import Figure

    from sam3lab.scenes import store

    scenes = store.load_split(split)
    heads = [(each["backend"], each["precision"]) for each in rows[0]["found"]][: COLUMNS - 1]
    columns = 1 + len(heads)
    cell = WIDTH / max(columns, 5)
    made = Figure(figsize=(WIDTH, len(rows) * (cell + 0.2) + 0.5), layout="none")
    height = made.get_figheight()
    titles = ["Ground truth", *(f"{look(backend).short}\n{precision}" for backend, precision in heads)]
    for column, title in enumerate(titles):
        place = ((column + 0.5) * cell / WIDTH, 1 - 0.47 / height)
        made.text(*place, title, ha="center", va="bottom", linespacing=0.95)
    for number, row in enumerate(rows):
        scene = scenes[row["scene"]]
        prompt = scene.prompts[row["prompt"]]
        top = 0.5 + number * (cell + 0.2)
        count = len(prompt.answers)
        said = f"“{prompt.text}”: {count or 'no'} object{'' if count == 1 else 's'}"
        made.text(0.03 / WIDTH, 1 - (top + 0.16) / height, said, va="baseline")
        truth = [scene.annotations[place]["segmentation"] for place in prompt.answers]
        for column, masks in enumerate([truth, *(each["masks"] for each in row["found"][: columns - 1])]):
            box = (column * cell + 0.03, height - top - 0.2 - cell + 0.06, cell - 0.06, cell - 0.06)
            axis = made.add_axes([box[0] / WIDTH, box[1] / height, box[2] / WIDTH, box[3] / height])
            axis.imshow(picture(scene.image, truth, masks), interpolation="none", aspect="auto")
            axis.set_axis_off()
    return made


def picture(image, truth: list[dict], masks: list[dict]):
    """The image, faded but for what the masks cover, uint8 [SIDE,SIDE,3]. Each mask is outlined: dark where it overlaps
    a true one, else in colour.
    """
    import numpy as np
    from PIL import Image
    from pycocotools import mask as coco_mask

    from sam3lab import draw
    from sam3lab.bench import coco

    canvas = np.rint(image * (1 - FADED) + 255 * FADED).astype(np.uint8)
    pixels = [coco_mask.decode(mask).astype(bool) for mask in masks]
    for mask in pixels:
        canvas[mask] = image[mask]
    known = coco.iou(masks, truth).max(axis=1) >= IOU if masks and truth else [False] * len(masks)
    for mask, right in zip(pixels, known, strict=True):
        canvas[mask & ~draw.shrunk(mask, 3)] = draw.INK if right else draw.colour(0)
    return np.asarray(Image.fromarray(canvas).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
