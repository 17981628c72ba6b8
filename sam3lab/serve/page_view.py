"""An answer as the page shows it: masks over the picture, a table of instances, where the time went, and notices."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sam3lab.draw import colour, is_light
from sam3lab.model.checkpoint import is_random
from sam3lab.serve.page_picture import Picture, mask_uri
from sam3lab.serve.request import FLOOR, Answer, Candidates

MOST = 60  # instances drawn: more can be neither told apart nor sent to a phone
# Steps that a page's answer goes through, each with its colour in the bar; others are grey.
STEPS = {
    "decode": "#9AA5B1",
    "queue": "#C8CDD3",
    "preprocess": "#CC79A7",
    "image": "#0072B2",
    "text": "#E69F00",
    "detect": "#009E73",
    "postprocess": "#56B4E9",
    "draw": "#56B4E9",
}


@dataclass(frozen=True)
class Kept:
    """An answer that can be drawn again, with the picture it is about and what it took to decode that."""

    answer: Answer
    picture: Picture
    decode_ms: float

    @property
    def nbytes(self) -> int:
        return self.picture.nbytes + sum(
            each.scores.nbytes + each.boxes.nbytes + each.masks.nbytes for each in self.answer.candidates
        )


@dataclass(frozen=True)
class Instance:
    """One object that was found. box: x0 y0 x1 y1 in the photograph's pixels; share: of the photograph's area that the
    mask covers, 0..1; mask: bool [h,w] as large as the picture is shown; number: its place in the list, from 1.
    """

    number: int
    prompt: str
    score: float
    box: tuple[float, float, float, float]
    share: float
    rgb: tuple[int, int, int]
    mask: np.ndarray

    @property
    def label(self) -> str:
        return f"{self.number}  {self.prompt}  {self.score:.2f}"

    @property
    def hex(self) -> str:
        return "#{:02x}{:02x}{:02x}".format(*self.rgb)

    @property
    def ink(self) -> str:
        """The colour of text on its colour."""
        return "#1a1a1a" if is_light(self.rgb) else "#ffffff"


def instances(kept: Kept, threshold: float, fineness: float) -> tuple[list[Instance], int]:
    """The instances that score over `threshold`, with the pixels that are more probable than `fineness`, by prompt and
    score; and how many more there were than MOST, the ones of least score, which are left out. No model runs.

    Raises UserError for a number outside 0..1.
    """
    answer, size = kept.answer, kept.picture.size
    scores = np.sort(np.concatenate([each.scores for each in answer.candidates] or [np.zeros(0)]))[::-1]
    left_out = max(0, int(np.count_nonzero(scores > threshold)) - MOST)
    if left_out:
        least = scores[MOST - 1]
        answer = replace(answer, candidates=tuple(_over(each, least) for each in answer.candidates))
    drawn = replace(answer, size=kept.picture.shown_size)
    scale = np.tile((size[1] / drawn.size[1], size[0] / drawn.size[0]), 2)
    found = []
    for place, (prompt, objects) in enumerate(drawn.detections(threshold, fineness)):
        for index, (score, box, mask) in enumerate(zip(objects.scores, objects.boxes, objects.masks, strict=True)):
            corners = tuple((box * scale).tolist())
            rgb = colour(place, index)
            found.append(Instance(len(found) + 1, prompt, float(score), corners, float(mask.mean()), rgb, mask))
    return found[:MOST], left_out + max(0, len(found) - MOST)


def annotated(picture: Picture, found: Sequence[Instance]) -> tuple[dict, dict[str, str]]:
    """The value of a Gradio AnnotatedImage, with every image inside it, and its map from label to colour."""
    taken: list = []
    layers = [{"image": {"url": mask_uri(one.mask, one.rgb, one.number, taken)}, "label": one.label} for one in found]
    return {"image": {"url": picture.shown}, "annotations": layers}, {one.label: one.hex for one in found}


def table(kept: Kept, found: Sequence[Instance], left_out: int, threshold: float) -> str:
    """The instances as an HTML table, and below it the prompts that have none."""
    parts = []
    if found:
        rows = "".join(
            f'<tr><td class="n"><span class="number" style="background:{one.hex};color:{one.ink}">{one.number}</span></td>'
            f'<td class="prompt">{escape(one.prompt)}</td><td class="n">{one.score:.3f}</td>'
            f'<td class="n">{" ".join(f"{value:.0f}" for value in one.box)}</td>'
            f'<td class="n">{100 * one.share:.2f}</td></tr>'
            for one in found
        )
        parts.append(
            '<div class="scroll" tabindex="0" role="region" aria-label="instances"><table><caption>'
            f"{_count(len(found), 'instance')} in {escape(kept.picture.title)}, {kept.picture.size[1]} × "
            f'{kept.picture.size[0]}</caption><thead><tr><th scope="col" class="n">#</th>'
            '<th scope="col">prompt</th><th scope="col" class="n">score</th>'
            '<th scope="col" class="n">box x0 y0 x1 y1, px</th>'
            f'<th scope="col" class="n">area, %</th></tr></thead><tbody>{rows}</tbody></table></div>'
        )
    if left_out:
        parts.append(f"<p>{left_out} more of lower score are not drawn; raise the detection threshold.</p>")
    named = {one.prompt for one in found}
    missing = [prompt for prompt in kept.answer.prompts if prompt not in named] if not left_out else []
    if missing:
        names = ", ".join(f"“{escape(prompt)}”" for prompt in missing)
        lower = "; a lower detection threshold shows more" if threshold > FLOOR else ""
        parts.append(f"<p>Nothing scores over {threshold:g} for {names}{lower}.</p>")
    return "".join(parts)


def timing(kept: Kept, draw_ms: float) -> str:
    """Who answered and why, and a bar of the milliseconds that each step took."""
    answer = kept.answer
    steps: Mapping[str, float] = {"decode": kept.decode_ms, **answer.milliseconds, "draw": draw_ms}
    total = sum(steps.values())
    cached = [f"{answer.cached_prompts} of {_count(len(answer.prompts), 'prompt')}"] if answer.cached_prompts else []
    cached += ["the image"] if answer.cached_image else []
    facts = [f"Answered by <strong>{escape(answer.engine)}</strong> in {total:.0f} ms"]
    facts += [f"with {_count(answer.batch - 1, 'other request')} in the batch"] if answer.batch > 1 else []
    facts += [f"{' and '.join(cached)} from the cache"] if cached else []
    why = f'<p class="why">Why not the first engine: {escape(answer.reason)}</p>' if answer.reason else ""
    bar = "".join(
        f'<span style="flex:{value:.4f} 0 0;background:{STEPS.get(step, "#6B7280")}"></span>'
        for step, value in steps.items()
        if value > 0
    )
    names = "".join(
        f'<li><span class="swatch" style="background:{STEPS.get(step, "#6B7280")}"></span>{escape(step)} '
        f"<b>{value:.1f}</b></li>"
        for step, value in steps.items()
    )
    return (
        f'<p>{", ".join(facts)}.</p>{why}<div class="bar" aria-hidden="true">{bar}</div>'
        f'<ul class="steps" aria-label="milliseconds by step">{names}</ul>'
    )


def notice(text: str, kind: str = "error") -> str:
    """A message in place; kind: "error" is announced at once by screen readers, "note" politely. Empty text: nothing."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="notice {kind}" role="{role}">{escape(sentence(text))}</div>' if text else ""


def head(checkpoint: str, status: Mapping) -> str:
    """The page's title, what its weights are good for, and one line on what answers, from the service's status."""
    note = ""
    if is_random(checkpoint):
        note = f"<p><strong>The weights are random</strong>: what {escape(checkpoint)} finds means nothing.</p>"
    elif checkpoint == "sam3-nano":
        note = "<p>sam3-nano was trained on rendered shapes: ask for “red star”, not for “cat”.</p>"
    return (
        f"<h1>sam3lab</h1><p>Say what to find; SAM 3 outlines every instance of it.</p>{note}"
        f"{_status(checkpoint, status)}"
    )


def _status(checkpoint: str, status: Mapping) -> str:
    engines = status.get("engines") or {}
    named = [f"{name} ({details})" if (details := _details(each)) else name for name, each in engines.items()]
    named = named or [str(status.get("engine") or "")]
    line = " on ".join(escape(part) for part in (checkpoint, named[0]) if part) or "sam3lab"
    line += "".join(f", else on {escape(other)}" for other in named[1:])
    ready, reason = status.get("ready"), escape(str(status.get("reason") or ""))
    if ready and reason:
        line += f": {escape(str(status.get('engine')))} answers now, because {reason}"
    state = "ready" if ready else f"not ready yet: {reason}" if reason else "not ready yet"
    return f'<p class="status"><span class="dot {"ready" if ready else "starting"}"></span>{line} · {state}</p>'


def sentence(text: str) -> str:
    """A message of the program as a sentence: capital letter, full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text[-1:] in ".!?…" else ".") if text else ""


def escape(text: str) -> str:
    """For HTML, and for Gradio's templates, which would read {{…}} and ${…} in it."""
    return html.escape(text).replace("{", "&#123;").replace("$", "&#36;")


def _over(each: Candidates, least: float) -> Candidates:
    kept = each.scores >= least
    return Candidates(each.scores[kept], each.boxes[kept], each.masks[kept])


def _details(engine: object) -> str:
    if not isinstance(engine, Mapping):
        return ""
    return ", ".join(str(engine[name]) for name in ("precision", "device") if engine.get(name))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
