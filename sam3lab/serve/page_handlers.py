"""What the page does when something is clicked. Every failure ends as a notice in words; the rest of the page stays."""

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import numpy as np

from sam3lab.errors import UserError
from sam3lab.serve import page_view as view
from sam3lab.serve.decode import MAX_BYTES, decode, examine, normalise_prompts
from sam3lab.serve.page_examples import Example
from sam3lab.serve.page_picture import Picture, picture
from sam3lab.serve.page_shelf import Shelf
from sam3lab.serve.request import FLOOR, Late, Request, ServiceError
from sam3lab.serve.work import Pools

LOGGER = logging.getLogger(__name__)
KEPT_BYTES = 128 << 20  # of pictures, and as much of answers, for all visitors together
LIFE = 3600.0  # seconds for which one is kept, if there is room

AUTOMATIC = "automatic"
THRESHOLDS, FINENESS = (FLOOR, 0.99), (0.05, 0.95)  # the ends of the sliders
NO_ANSWER = None, "", "", ""  # result, table, timing, answer's key


class Handlers:
    """The page's events over a service. Those that Gradio calls are coroutines, so that no thread waits for the model.

    They decode and draw in the server's `pools`, which are not theirs to close. They return raw values of the
    components, as the browser takes them (Gradio's own conversions write files). The browser has keys of the picture
    and of the last answer that are kept here. Gradio's own sessions would keep a connection open for as long as a page
    is, and with it a server that shall stop.
    """

    def __init__(self, service, pools: Pools, examples: list[Example], checkpoint: str, timeout: float):
        self.service, self.pools, self.examples = service, pools, examples
        self.checkpoint, self.timeout = checkpoint, timeout
        self.pictures: Shelf[Picture] = Shelf(KEPT_BYTES, LIFE)
        self.answers: Shelf[view.Kept] = Shelf(KEPT_BYTES, LIFE)

    def head(self) -> str:
        """The page's head as things stand."""
        return view.head(self.checkpoint, self.service.status())

    async def status(self):
        """How things stand. Returns head, and the timer that asks again until the service is ready."""
        return self.head(), gr.update(active=not self.service.ready)

    async def accept(self, upload: dict | None, old: str, answer: str):
        """An image was dropped, pasted or picked: decode it, keep it, show it, and nothing of the one before.

        Returns image, picture's key, result, table, timing, answer's key, notice.
        """
        return await self._guard(lambda: self._accept(upload, old, answer), (None, "", *_keep(4)))

    async def choose(self, event: gr.SelectData, old: str):
        """An example was picked. Returns image, its prompts, picture's key, notice."""
        return await self._guard(lambda: self._choose(event.index, old), _keep(3))

    async def forget(self, old: str, answer: str):
        """The image was cleared. Returns picture's key, result, table, timing, answer's key, notice."""
        self.pictures.drop(old)
        self.answers.drop(answer)
        return "", *NO_ANSWER, ""

    async def run(self, picture_key: str, text: str, engine: str, threshold: float, fineness: float, old: str):
        """Ask the model. Returns result, table, timing, answer's key, notice."""
        return await self._guard(lambda: self._run(picture_key, text, engine, threshold, fineness, old), _keep(4))

    async def redraw(self, key: str, threshold: float, fineness: float):
        """A threshold was moved: draw the last answer again; no model runs. Returns result, table, timing, notice."""
        if not key:
            return _keep(4)
        return await self._guard(lambda: self._redraw(key, threshold, fineness), _keep(3))

    async def _guard(self, work: Callable, otherwise: tuple) -> tuple:
        """The outputs of `work` with an empty notice, or `otherwise` with one that says what went wrong."""
        try:
            return *await work(), ""
        except UserError as error:
            return *otherwise, view.notice(str(error))
        except ServiceError as error:
            again = "" if error.seconds is None else f" Try again in {_seconds(error.seconds)}."
            return *otherwise, view.notice(view.sentence(str(error)) + again)
        except Exception as error:
            LOGGER.exception("the page failed")
            return *otherwise, view.notice(
                f"Something failed in the server ({type(error).__name__}); its log says what. What you entered is "
                "still here: try again"
            )

    async def _accept(self, upload: dict | None, old: str, answer: str):
        self.pictures.drop(old)
        path = upload.get("path") if isinstance(upload, dict) else None
        if not isinstance(path, str):
            raise UserError("there is no image: drop one, paste one, or pick an example")
        kept = self._keep(await self._picture(lambda: _file(Path(path)), "your image"))
        self.answers.drop(answer)
        return *kept, *NO_ANSWER

    async def _choose(self, index: object, old: str):
        if not isinstance(index, int) or not 0 <= index < len(self.examples):
            raise UserError(f"there is no such example; pick one of the {len(self.examples)}")
        example = self.examples[index]
        new = await self._picture(lambda: example.data, example.title)
        self.pictures.drop(old)
        shown, key = self._keep(new)
        return shown, "\n".join(example.prompts), key

    async def _picture(self, read: Callable[[], bytes], title: str) -> Picture:
        """A Picture of the image file's bytes that `read` returns. Raises UserError as `decode` does, and Busy."""
        data, pixels = await self.pools.decoding(0).run(_examined, read)
        return await self.pools.decoding(pixels).run(lambda: picture(data, decode(data), title))

    def _keep(self, new: Picture):
        return {"url": new.shown, "path": None, "orig_name": None}, self.pictures.put(new)

    async def _run(self, picture_key: str, text: str, engine: str, threshold: float, fineness: float, old: str):
        deadline = time.monotonic() + self.timeout
        numbers = number(threshold, "detection threshold", THRESHOLDS), number(fineness, "mask fineness", FINENESS)
        if not picture_key:
            raise UserError("there is no image yet: drop one, paste one, or pick an example")
        prompts = normalise_prompts(split(text))
        chosen = self.pictures.get(picture_key)
        if chosen is None:
            raise UserError("the image is not kept any more: give it again")
        self.service.check_admission()
        decoding = self.pools.decoding(math.prod(chosen.size))
        future, decode_ms = await decoding.run(self._submit, chosen, prompts, engine, numbers[0], deadline)
        # Cancelled with this coroutine, so that nobody's request is not run for nobody.
        answer = await asyncio.wrap_future(future)
        kept = view.Kept(answer, chosen, decode_ms)
        outputs = await self._drawn(kept, *numbers)
        self.answers.drop(old)
        return *outputs, self.answers.put(kept)

    def _submit(self, chosen: Picture, prompts: tuple[str, ...], engine: str, threshold: float, deadline: float):
        begin = time.perf_counter()
        photograph: np.ndarray = decode(chosen.data)
        decode_ms = 1e3 * (time.perf_counter() - begin)
        name, left = "" if engine == AUTOMATIC else engine, deadline - time.monotonic()
        if left <= 0:
            wait = self.pools.decoding(math.prod(chosen.size)).wait
            raise Late(f"there was no answer within {self.timeout:g} s", wait)
        return self.service.submit(Request(photograph, prompts, threshold, name, left)), decode_ms

    async def _redraw(self, key: str, threshold: float, fineness: float):
        numbers = number(threshold, "detection threshold", THRESHOLDS), number(fineness, "mask fineness", FINENESS)
        kept = self.answers.get(key)
        if kept is None:
            raise UserError("the last answer is not kept any more: press Segment again")
        return await self._drawn(kept, *numbers)

    async def _drawn(self, kept: view.Kept, threshold: float, fineness: float):
        # Masks are drawn as large as the picture is shown, however large the photograph is.
        encoding = self.pools.encoding(math.prod(kept.picture.shown_size))
        return await encoding.run(self._draw, kept, threshold, fineness)

    def _draw(self, kept: view.Kept, threshold: float, fineness: float):
        begin = time.perf_counter()
        found, left_out = view.instances(kept, threshold, fineness)
        value, colours = view.annotated(kept.picture, found)
        draw_ms = 1e3 * (time.perf_counter() - begin)
        result = gr.update(value=value, color_map=colours)
        return result, view.table(kept, found, left_out, threshold), view.timing(kept, draw_ms)


def _file(path: Path) -> bytes:
    """The file's bytes; of one with more than MAX_BYTES just one more, for which it is refused."""
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _examined(read: Callable[[], bytes]) -> tuple[bytes, int]:
    """The bytes, and how many pixels their header announces. Raises UserError as `examine` does."""
    data = read()
    return data, math.prod(examine(data).size)


def split(text: object) -> list[str]:
    """The prompts of the text box, one a line or between semicolons, each once. Raises UserError where there is none."""
    if not isinstance(text, str):
        raise UserError("the prompts are no text: type what to find, as “red star”")
    prompts = [part for part in (part.strip() for part in re.split(r"[\n;]", text)) if part]
    if not prompts:
        raise UserError("there is no prompt: type what to find, as “red star”")
    return list(dict.fromkeys(prompts))


def number(value: object, name: str, ends: tuple[float, float]) -> float:
    """A slider's value: what its field becomes when a number beyond the slider's ends is typed into it.

    Raises UserError for what is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        raise UserError(f"the {name} {value!r:.40} is no number; move the slider")
    return float(min(max(value, ends[0]), ends[1]))


def _keep(count: int) -> tuple[dict, ...]:
    """Outputs that stay as they are."""
    return tuple(gr.skip() for _ in range(count))


def _seconds(number: int) -> str:
    return "a second" if number == 1 else f"{number} seconds"
