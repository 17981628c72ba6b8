"""The web page at "/": an image and prompts in, labelled masks out, over the same service as the API."""

import atexit
import os
import shutil
import tempfile
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from starlette.routing import Mount

from sam3lab.serve.decode import MAX_BYTES
from sam3lab.serve.page_examples import examples
from sam3lab.serve.page_gate import Gate
from sam3lab.serve.page_handlers import AUTOMATIC, FINENESS, THRESHOLDS, Handlers
from sam3lab.serve.settings import Settings

HERE = Path(__file__).parent
SESSIONS = 64  # visitors whose last values Gradio remembers
WAITING = 128  # events that wait in Gradio's own queue
TOGETHER = 32  # events of a kind that may be under way; the service has its own, shorter queue
POLL = 0.02  # seconds that an event may wait for Gradio's queue to look
SWEEP = 5, 30  # seconds: how often uploaded files are looked at, and their age when they are deleted
REFUSAL = '<div id="refusal" class="notice error" role="alert" hidden></div>'  # written by page.js
PRIVATE = {"api_visibility": "private", "preprocess": False, "postprocess": False, "concurrency_limit": TOGETHER}


def mount(app: FastAPI, service, settings: Settings | None = None) -> FastAPI:
    """Put the page at "/" of the API's application, behind its routes: it answers every path that they do not.

    `app` is what sam3lab.serve.api.create_app returns, which closes the pools that the page decodes and draws in too.
    `service` is a sam3lab.serve.service.Service or looks like one. Who may ask, and how large a body may be, is the
    application's to check; its middleware lies around the page too.
    """
    folder, settings = upload_folder(), settings or Settings()
    handlers = Handlers(service, app.state.pools, examples(), settings.checkpoint, settings.timeout)
    blocks = build(handlers)
    blocks.state_session_capacity = SESSIONS
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MAX_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=_theme(),
        css_paths=[HERE / "page.css"],
        js=(HERE / "page.js").read_text(encoding="utf-8").replace("LARGEST", str(MAX_BYTES)),
    )
    gradio = next(route for route in reversed(app.routes) if isinstance(route, Mount))
    gradio.app = Gate(gradio.app, folder)
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def sweeping(app: FastAPI):
        try:
            async with lifespan(app) as state:
                yield state
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    app.router.lifespan_context = sweeping
    return app


@lru_cache(maxsize=1)
def upload_folder() -> Path:
    """Where this process's uploaded files lie for seconds; the server removes it when it stops.

    One for the process, since Gradio reads where it is from the environment each time.
    """
    folder = Path(tempfile.mkdtemp(prefix="sam3lab-page-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


def build(handlers: Handlers) -> gr.Blocks:
    """The page's components and events."""
    with gr.Blocks(title="sam3lab", analytics_enabled=False, delete_cache=SWEEP) as blocks:
        head = gr.HTML(handlers.head(), apply_default_css=False, elem_id="head")
        starting = gr.Timer(1, active=False)
        picture_key, answer_key = gr.Textbox("", visible=False), gr.Textbox("", visible=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                image = gr.Image(
                    label="Image",
                    sources=["upload", "clipboard"],
                    buttons=[],
                    height=240,
                    placeholder="Drop an image here, paste one,\nor click to choose a file\n(JPEG, PNG or WebP)",
                    alt_text="The image that is searched",
                    elem_id="image",
                )
                gallery = gr.Gallery(
                    label="Examples",
                    columns=8,
                    object_fit="cover",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    elem_id="examples",
                )
                # Set here, not above, where Gradio would write them to files.
                gallery.value = [
                    {"image": {"url": each.thumbnail}, "caption": each.title} for each in handlers.examples
                ]
                text = gr.Textbox(
                    label="What to find",
                    placeholder="red star",
                    info="One prompt a line (Shift+Enter), or several between semicolons. Enter runs.",
                    lines=1,
                    max_lines=8,
                    max_length=8000,
                    elem_id="prompts",
                )
                engine = gr.Radio(
                    [AUTOMATIC, *handlers.service.engines],
                    value=AUTOMATIC,
                    label="Engine",
                    info="Automatic takes the first one, and the next where that fails or is too busy.",
                    elem_id="engine",
                )
                button = gr.Button("Segment", variant="primary", elem_id="run")
            with gr.Column(scale=3, min_width=300):
                gr.HTML(REFUSAL, apply_default_css=False, elem_id="client-notice")
                notice = gr.HTML(apply_default_css=False, elem_id="notice")
                result = gr.AnnotatedImage(label="Result", elem_id="result", buttons=["fullscreen"])
                with gr.Row(elem_id="sliders"):
                    threshold = gr.Slider(
                        *THRESHOLDS,
                        0.5,
                        step=0.01,
                        label="Detection threshold",
                        info="Least score of an instance: lower shows more, and more that is wrong. Redraws at once.",
                        min_width=200,
                        elem_id="threshold",
                    )
                    fineness = gr.Slider(
                        *FINENESS,
                        0.5,
                        step=0.01,
                        label="Mask fineness",
                        info="Least probability of a mask's pixel: higher draws masks tighter. Redraws at once.",
                        min_width=200,
                        elem_id="fineness",
                    )
                timing = gr.HTML(apply_default_css=False, elem_id="timing")
                table = gr.HTML(apply_default_css=False, elem_id="table")

        drawn = [result, table, timing]
        ask = {
            "fn": handlers.run,
            "inputs": [picture_key, text, engine, threshold, fineness, answer_key],
            "outputs": [*drawn, answer_key, notice],
            "show_progress_on": [result],
            **PRIVATE,
        }
        gr.on([blocks.load, starting.tick], handlers.status, None, [head, starting], show_progress="hidden", **PRIVATE)
        image.upload(
            handlers.accept,
            [image, picture_key, answer_key],
            [image, picture_key, *drawn, answer_key, notice],
            show_progress="hidden",
            **PRIVATE,
        )
        image.clear(
            handlers.forget,
            [picture_key, answer_key],
            [picture_key, *drawn, answer_key, notice],
            show_progress="hidden",
            **PRIVATE,
        )
        gallery.select(
            handlers.choose, picture_key, [image, text, picture_key, notice], show_progress="hidden", **PRIVATE
        ).success(**ask)
        gr.on([button.click, text.submit], **ask).then(
            handlers.status, None, [head, starting], show_progress="hidden", **PRIVATE
        )
        gr.on(
            [threshold.input, fineness.input],
            handlers.redraw,
            [answer_key, threshold, fineness],
            [*drawn, notice],
            show_progress="hidden",
            trigger_mode="always_last",
            **PRIVATE,
        )
    blocks.queue(api_open=False, max_size=WAITING, default_concurrency_limit=TOGETHER)
    # Gradio's queue looks for events a thousand times a second, which takes 4% of a core from the engines all the time.
    blocks._queue.sleep_when_free, blocks._queue.progress_update_sleep_when_free = POLL, 10 * POLL
    return blocks


def _theme() -> gr.themes.Base:
    # System fonts: Gradio's own would be fetched from Google's servers, or be files of half a megabyte.
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Liberation Sans", "sans-serif"]
    theme = gr.themes.Default(
        primary_hue="sky", secondary_hue="sky", neutral_hue="slate", font=sans, font_mono=["ui-monospace", "monospace"]
    )
    # Small print that can be read: at least 4.5 to 1 on its background.
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )
