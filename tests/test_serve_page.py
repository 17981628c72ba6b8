"""The page as a browser's requests see it: its events, what it refuses, and that Gradio's other doors are shut."""

import base64
import io
import json
import math
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
import zlib
from functools import cached_property
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from sam3lab import images
from sam3lab.errors import UserError
from sam3lab.serve import page, page_gate, page_shelf, page_view, work
from sam3lab.serve.api import create_app
from sam3lab.serve.page_examples import examples
from sam3lab.serve.page_picture import mask_uri, picture
from sam3lab.serve.page_shelf import Shelf
from sam3lab.serve.request import FLOOR, Answer, Candidates, Late, NotReady, ServiceError, WorkerLost
from sam3lab.serve.settings import Settings
from sam3lab.serve.waiting import Job, busy
from tests.fake_service import FakeService

API = "/gradio_api"


class Visitor:
    """What the page's JavaScript does, without a browser."""

    def __init__(self, url: str, service: FakeService):
        self.url, self.service = url, service
        self.http = httpx.Client(base_url=url, timeout=20)
        self.config = self.http.get("/config").json()
        self.numbers = {each["api_name"]: each["id"] for each in self.config["dependencies"]}

    def join(self, name: str, *data, session: str = "nobody", **event) -> httpx.Response:
        body = {"fn_index": self.numbers[name], "session_hash": session, "data": list(data), **event}
        return self.http.post(f"{API}/queue/join", json=body)

    def event(self, name: str, *data, **event) -> list:
        """The raw outputs of an event."""
        return self.outputs(self.begin(name, *data, **event))

    def begin(self, name: str, *data, **event) -> str:
        """The event's session, one of its own: the page keeps nothing in Gradio's."""
        session = secrets.token_hex(8)
        answer = self.join(name, *data, session=session, **event)
        assert answer.status_code == 200, answer.text
        return session

    def outputs(self, session: str) -> list:
        """The raw outputs of the event that has begun in that session, when it has ended."""
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as stream:
            messages = [json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line]
        (done,) = [message for message in messages if message["msg"] == "process_completed"]
        assert done["success"], done
        return done["output"]["data"]

    def upload(self, data: bytes, name: str = "image.png") -> dict:
        answer = self.http.post(f"{API}/upload", files={"files": (name, data)})
        assert answer.status_code == 200, answer.text
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}, "orig_name": name}

    @cached_property
    def key(self) -> str:
        """The key of an image of 48 × 64 pixels that was let in."""
        return self.accept(png())

    def accept(self, data: bytes) -> str:
        """The key of that image."""
        _, key, *_, notice = self.event("accept", self.upload(data), "", "")
        assert notice == ""
        return key

    def run(
        self, key: str, prompts: str = "cup", engine: str = "automatic", threshold=0.5, fineness=0.5, old: str = ""
    ):
        return self.event("run", key, prompts, engine, threshold, fineness, old)


def png(height: int = 48, width: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server():
    """A Visitor of a real server on a port of its own, around a FakeService."""
    patch = pytest.MonkeyPatch()
    patch.setattr(page, "SWEEP", (1, 1))
    service = FakeService()
    settings = Settings(checkpoint="sam3-nano", timeout=7.0)
    app = page.mount(create_app(service, settings), service, settings)
    listener = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield Visitor(f"http://127.0.0.1:{listener.getsockname()[1]}", service)
    running.should_exit = True
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert not page.upload_folder().exists()
    patch.undo()


@pytest.fixture
def visitor(server):
    server.service.refusal, server.service.seconds = None, 0.0
    server.service.requests.clear()
    return server


class Brake:
    """Holds the decoding of images of more than `over` pixels from when it has `begun` until `released`."""

    def __init__(self):
        self.over, self._to_rgb = math.inf, images.to_rgb
        self.begun, self.released = threading.Event(), threading.Event()

    def to_rgb(self, image: Image.Image) -> np.ndarray:
        if image.width * image.height > self.over:
            self.begun.set()
            self.released.wait(30)
            self.released.set()  # for all, so that a test that fails ends
        return self._to_rgb(image)


@pytest.fixture
def brake(visitor, monkeypatch):
    brake = Brake()
    monkeypatch.setattr(images, "to_rgb", brake.to_rgb)
    yield brake
    brake.released.set()


def is_kept(output) -> bool:
    return output["__type__"] == "update" and "value" not in output


def test_the_page_is_served_and_may_load_from_nowhere_else(visitor):
    answer = visitor.http.get("/")
    assert answer.status_code == 200 and "<gradio-app" in answer.text
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert not any("http" in sources or "*" in sources for sources in policy.values())
    assert answer.headers["x-frame-options"] == "DENY"
    assert "fonts.googleapis" not in answer.text and "fonts.gstatic" not in visitor.http.get("/theme.css").text


def test_an_open_page_holds_no_connection_that_a_server_would_wait_for_at_its_end(visitor):
    assert visitor.config["connect_heartbeat"] is False and visitor.config["analytics_enabled"] is False


def test_the_api_goes_before_the_page(visitor):
    assert visitor.http.get("/healthz").json() == {"status": "ok"}
    assert visitor.http.get("/openapi.json").json()["info"]["title"] == "sam3lab"


def test_only_what_the_page_needs_of_gradio_is_open(visitor):
    """Gradio's routes, each asked for; what a new release adds is shut too, or fails here."""
    from gradio.routes import App

    gradio = App.create_app(page.build(page.Handlers(visitor.service, work.Pools(1, 1), [], "", 1.0)))
    routes = []
    for route in gradio.routes:
        included = getattr(route, "original_router", None)
        routes += [(route.path, route.methods)] if included is None else [(r.path, r.methods) for r in included.routes]
    assert len(routes) > 60
    opened = set()
    for path, methods in routes:
        filled = path.replace("{path_or_url:path}", "x").replace("{path:path}", "x.js")
        for method in set(methods) - {"HEAD"}:
            answer = visitor.http.request(method, re.sub(r"[{}]", "", filled), follow_redirects=False)
            if "nothing here" not in answer.text:
                opened.add((method, path))
    # 404s of Gradio's own, without the gate's words, are open routes for which there is nothing of that name.
    assert {path for method, path in opened if method == "POST"} == {
        f"{API}/queue/join",
        f"{API}/cancel",
        f"{API}/reset",
        f"{API}/upload",
    }
    assert {path for method, path in opened if method == "GET"} == {
        "/",
        "/config",
        "/theme.css",
        "/favicon.ico",
        "/robots.txt",
        "/manifest.json",
        "/pwa_icon",
        "/svelte/{path:path}",
        "/static/{path:path}",
        "/assets/{path:path}",
        "/openapi.json",  # the API's own, which goes before
        f"{API}/info",
        f"{API}/upload_progress",
        f"{API}/queue/data",
        f"{API}/file={{path_or_url:path}}",
    }


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "//etc/passwd",
        "%2Fetc%2Fpasswd",
        "{folder}/../../etc/passwd",
        "{folder}/%2e%2e/%2e%2e/etc/passwd",
        "{folder}x/y",
        "file:///etc/passwd",
        "http://127.0.0.1:{port}/secret",
        "..",
        "x" * 5000,
        "{folder}/%00",
    ],
)
def test_no_file_of_the_servers_is_read(visitor, path, listener):
    path = path.replace("{folder}", str(page.upload_folder())).replace("{port}", str(listener.port))
    answer = httpx.get(f"{visitor.url}{API}/file={path}", timeout=10)
    assert answer.status_code in (403, 404) and "root:" not in answer.text
    assert listener.asked == 0


@pytest.fixture(scope="module")
def listener():
    """A port that nobody may connect to, in all tests that name it."""

    class Listener:
        asked = 0

    counter, sock = Listener(), socket.create_server(("127.0.0.1", 0))
    counter.port = sock.getsockname()[1]
    sock.settimeout(0.1)
    ended = threading.Event()

    def count():
        while not ended.is_set():
            try:
                sock.accept()[0].close()
                counter.asked += 1
            except TimeoutError:
                continue

    thread = threading.Thread(target=count)
    thread.start()
    yield counter
    time.sleep(0.5)  # for what would be fetched in the background
    ended.set()
    thread.join()
    sock.close()
    assert counter.asked == 0


META = {"meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "value",
    [
        {"path": "/etc/passwd"},
        {"path": "/etc/passwd", **META},
        {"path": "{folder}/../../etc/passwd", **META},
        {"path": "http://127.0.0.1:{port}/x.png", **META},
        {"path": "", "url": "http://127.0.0.1:{port}/x.png", **META},
        {"path": None, "url": "http://127.0.0.1:{port}/x.png", **META},
        {"path": "{folder}/x", "url": "http://127.0.0.1:{port}/gradio_api/file=/etc/passwd", **META},
        {"path": "file:///etc/passwd", **META},
        {"path": "https://huggingface.co/x.png", **META},
        {"path": "relative.png", **META},
        {"deep": [[{"path": "/proc/self/environ", **META}]]},
        {"path": {"path": "/etc/passwd", **META}},
        {"path": "\x00", **META},
    ],
)
@pytest.mark.parametrize(
    "name", ["accept", "redraw"]
)  # the image's own event, and one of components that take no files
def test_no_path_and_no_url_is_an_input(visitor, listener, value, name):
    text = json.dumps(value).replace("{folder}", str(page.upload_folder())).replace("{port}", str(listener.port))
    data = [json.loads(text), "", ""] if name == "accept" else ["", json.loads(text), 0.5]
    answer = visitor.join(name, *data)
    assert answer.status_code == 403 and "no URL" in answer.text


def test_event_data_may_name_no_file_either(visitor):
    answer = visitor.join("choose", "", event_data={"index": 0, "value": {"path": "/etc/passwd", **META}})
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"x" * (page_gate.BODY + 1), 413),
        (b"{}x", 400),
        (b"[]", 403),
        (b"[" * 60_000, 400),
        (b"\xff\xfe", 400),
        (b"", 400),
    ],
)
def test_events_are_small_and_json(visitor, body, status):
    answer = visitor.http.post(f"{API}/queue/join", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status


@pytest.mark.alone
def test_a_megabyte_of_prompt_is_refused_at_once(visitor):
    begin = time.monotonic()
    assert visitor.join("run", "", "x" * 1_000_000, "automatic", 0.5, 0.5, "").status_code == 413
    assert time.monotonic() - begin < 1


def test_an_upload_is_shown_inline_and_its_file_goes(visitor):
    file = visitor.upload(images.jpeg(images.load("coffee")), "coffee.jpg")
    image, key, result, table, timing, answer, notice = visitor.event("accept", file, "", "")
    assert notice == "" and len(key) >= 16 and result is None and table == timing == answer == ""
    assert image["path"] is None and image["url"].startswith("data:image/jpeg;base64,")
    shown = images.decode(base64.b64decode(image["url"].split(",")[1]))
    assert max(shown.shape) == 768  # 600 × 400, enlarged so that outlines are smooth
    wait_for_the_sweep()
    assert visitor.run(key)[-1] == ""  # without the file


def wait_for_the_sweep():
    for _ in range(60):
        if not any(each.is_file() for each in page.upload_folder().rglob("*")):
            return
        time.sleep(0.1)
    pytest.fail("uploaded files are still there")


def bomb(width: int, height: int) -> bytes:
    """A PNG of so many black pixels, small as a file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((1, 0, 0, 0, 0))
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    content = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@pytest.mark.alone
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bomb(13_000, 13_000), "13000 × 13000 pixels"),
        (png()[:80], "cut short"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ""),
        (b"", ""),
        (b"GIF89a" + bytes(200), ""),
    ],
)
def test_a_bad_file_is_refused_in_words_and_at_once(visitor, data, words):
    begin = time.monotonic()
    image, key, *answer, notice = visitor.event("accept", visitor.upload(data), "", "")
    assert time.monotonic() - begin < 1.5  # with the upload
    assert image is None and key == "" and all(map(is_kept, answer))
    assert 'role="alert"' in notice and words in notice


def test_too_large_a_file_is_not_taken(visitor):
    answer = visitor.http.post(f"{API}/upload", files={"files": ("x.jpg", bytes(22_000_000))})
    assert answer.status_code == 413


def test_uploads_cannot_fill_the_disk(visitor, monkeypatch):
    wait_for_the_sweep()
    monkeypatch.setattr(page_gate, "HELD", 0)
    visitor.upload(png(301, 302))
    answer = visitor.http.post(f"{API}/upload", files={"files": ("y.png", png(303, 304))})
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0


def test_what_uploads_leave_behind_is_deleted(tmp_path):
    gate = page_gate.Gate(lambda *_: None, tmp_path)
    (tmp_path / "part").write_bytes(b"12345")
    assert gate._held() == 5
    old = time.time() - page_gate.AGE - 1
    os.utime(tmp_path / "part", (old, old))
    assert gate._held() == 0 and not (tmp_path / "part").exists()


def test_a_run_asks_the_service_and_shows_what_it_found(visitor):
    key = visitor.key
    result, table, timing, answer_key, notice = visitor.run(key, "cup; red  star\n\ncup", "openvino", 0.25, 0.5)
    (request,) = visitor.service.requests
    assert request.prompts == ("cup", "red star")
    assert request.photograph.shape == (48, 64, 3) and request.photograph.dtype == np.uint8
    assert (request.engine, request.score_threshold) == ("openvino", 0.25) and 6 < request.timeout < 7
    labels = [each["label"] for each in result["value"]["annotations"]]
    assert labels == ["1  cup  0.90", "2  cup  0.30", "3  red star  0.90", "4  red star  0.30"]
    assert set(result["color_map"]) == set(labels) and len(set(result["color_map"].values())) == 4
    assert all(each["image"]["url"].startswith("data:image/png;base64,") for each in result["value"]["annotations"])
    assert table.count("<tr>") == 5 and '<td class="n">16 12 48 36</td>' in table
    assert "<strong>openvino</strong>" in timing and all(
        step in timing for step in ("decode", "image", "detect", "draw")
    )
    assert notice == "" and answer_key


def test_automatic_leaves_the_engine_to_the_service(visitor):
    visitor.run(visitor.key)
    assert visitor.service.requests[0].engine == ""


def test_moving_a_threshold_draws_again_without_the_model(visitor):
    key = visitor.key
    *_, answer, _ = visitor.run(key, "cup")
    assert len(visitor.service.requests) == 1
    few, *_ = visitor.event("redraw", answer, 0.5, 0.5)
    many, table, timing, notice = visitor.event("redraw", answer, 0.1, 0.5)
    tight, *_ = visitor.event("redraw", answer, 0.5, 0.95)
    none, empty, *_ = visitor.event("redraw", answer, 0.95, 0.5)
    assert [len(each["value"]["annotations"]) for each in (few, many, tight, none)] == [1, 2, 1, 0]
    assert few["value"]["annotations"][0]["image"] != tight["value"]["annotations"][0]["image"]
    assert "Nothing scores over 0.95 for “cup”" in empty and notice == "" and table and timing
    assert len(visitor.service.requests) == 1


def test_a_threshold_moved_before_there_is_an_answer_does_nothing(visitor):
    assert all(map(is_kept, visitor.event("redraw", "", 0.3, 0.5)))


@pytest.mark.parametrize("key", ["gone", 7, ["x"], {"a": 1}])
def test_an_answer_that_is_not_kept_any_more_is_said(visitor, key):
    *outputs, notice = visitor.event("redraw", key, 0.5, 0.5)
    assert all(map(is_kept, outputs)) and "press Segment again" in notice
    *outputs, notice = visitor.event("run", key, "cup", "automatic", 0.5, 0.5, key)
    assert all(map(is_kept, outputs)) and "give it again" in notice


def test_keys_of_pictures_open_no_answers(visitor):
    picture_key = visitor.key
    assert "press Segment again" in visitor.event("redraw", picture_key, 0.5, 0.5)[-1]


def late(timeout: float, retry_after: float) -> Late:
    job = Job({}, (), (1, 1), 0.5, timeout)
    job.late(retry_after)
    return job.future.exception()


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (busy(3, 3.2), "3 requests are waiting already. Try again in 4 seconds."),
        (late(7.0, 0.5), "No engine answered within 7.0 s. Try again in a second."),
        (ServiceError("the request was not answered: x failed", None), "The request was not answered: x failed.</div>"),
        (NotReady("the service is closing"), "The service is closing. Try again in a second."),
        (UserError("the prompt has 40 tokens; shorten it"), "The prompt has 40 tokens; shorten it."),
        (RuntimeError("<secret>"), "Something failed in the server (RuntimeError)"),
    ],
)
def test_failures_are_said_in_place_and_leave_the_last_result(visitor, refusal, words, caplog):
    key = visitor.key
    answer = visitor.run(key)[3]
    visitor.service.refusal = refusal
    *outputs, notice = visitor.run(key)
    assert all(map(is_kept, outputs))
    assert 'role="alert"' in notice and words in notice and "secret" not in notice
    assert visitor.event("redraw", answer, 0.5, 0.5)[-1] == ""


def test_a_failure_in_the_future_is_said_too(visitor, monkeypatch):
    def lost(request):
        raise WorkerLost("the worker died with the request")

    monkeypatch.setattr(visitor.service, "_answer", lost)
    assert "The worker died with the request." in visitor.run(visitor.key)[-1]


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ("", "There is no prompt"),
        (" ;\n; ", "There is no prompt"),
        (7, "no text"),
        (None, "no text"),
        ("a" * 500, "Prompt 1"),
        ("\n".join(map(str, range(40))), "prompts"),
        ("bell\x07", "Prompt 1"),
    ],
)
def test_bad_prompts_are_said(visitor, prompts, words):
    *outputs, notice = visitor.run(visitor.key, prompts)
    assert all(map(is_kept, outputs)) and words in notice
    assert not visitor.service.requests


@pytest.mark.parametrize("value", ["NaN", "x", None, True, [0.5], {"a": 1}])
@pytest.mark.parametrize("place", [0, 1])
def test_bad_thresholds_are_said(visitor, value, place):
    numbers = [0.5, 0.5]
    numbers[place] = value
    assert "is no number; move the slider" in visitor.run(visitor.key, "cup", "automatic", *numbers)[-1]
    assert not visitor.service.requests


def test_a_number_beyond_the_slider_is_its_end(visitor):
    *_, answer, notice = visitor.run(visitor.key, "cup", "automatic", -3, 0.5)
    assert notice == "" and visitor.service.requests[0].score_threshold == FLOOR
    for value, end in ((2, 0.99), (10**30, 0.99), (-0.1, FLOOR), (0, FLOOR)):
        given, same = visitor.event("redraw", answer, value, 0.5), visitor.event("redraw", answer, end, 0.5)
        assert given[0] == same[0] and given[-1] == ""
    (beyond, *_), (end, *_) = (visitor.event("redraw", answer, 0.5, value) for value in (7, 0.95))
    assert beyond == end and beyond["value"]["annotations"]


def test_not_a_number_is_no_threshold():
    from sam3lab.serve.page_handlers import number

    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(UserError, match="is no number"):
            number(value, "detection threshold", (0.0, 1.0))


def test_no_image_is_said(visitor):
    assert "no image yet" in visitor.run("")[-1]
    assert "no image" in visitor.event("accept", None, "", "")[-1]


def test_examples_bring_their_prompts(visitor):
    there = examples()
    assert [each.title for each in there][:2] == ["scene 15", "scene 18"] and len(there) == 8
    image, prompts, key, notice = visitor.event("choose", "", event_data={"index": 1, "value": None})
    assert image["url"].startswith("data:image/jpeg") and prompts.split("\n") == list(there[1].prompts)
    assert visitor.run(key, prompts)[-1] == "" == notice
    gallery = next(each for each in visitor.config["components"] if each["type"] == "gallery")
    assert len(gallery["props"]["value"]) == 8


@pytest.mark.parametrize("index", [-1, 8, "0", None, [1, 2], 1.5])
def test_there_is_no_example_of_another_number(visitor, index):
    assert "no such example" in visitor.event("choose", "", event_data={"index": index, "value": None})[-1]


def test_a_cleared_image_is_forgotten(visitor):
    key = visitor.accept(png())
    answer = visitor.run(key)[3]
    assert visitor.event("forget", key, answer) == ["", None, "", "", "", ""]
    assert "not kept any more" in visitor.run(key)[-1]
    assert "not kept any more" in visitor.event("redraw", answer, 0.5, 0.5)[-1]


def test_a_new_image_takes_the_answer_of_the_one_before_away(visitor):
    key = visitor.accept(png())
    answer = visitor.run(key)[3]
    *_, notice = visitor.event("accept", visitor.upload(b"no image"), key, answer)
    assert "no JPEG" in notice and visitor.event("redraw", answer, 0.5, 0.5)[-1] == ""
    _, _, result, table, timing, kept, notice = visitor.event("accept", visitor.upload(png()), "", answer)
    assert (result, table, timing, kept, notice) == (None, "", "", "", "")
    assert "not kept any more" in visitor.event("redraw", answer, 0.5, 0.5)[-1]


@pytest.mark.alone
def test_requests_run_beside_each_other(visitor):
    """Eight visitors at once wait for the model together, not one after the other."""
    key, begin = visitor.key, time.monotonic()
    visitor.service.seconds = 0.5
    notices = []

    def one(number: int):
        other = Visitor(visitor.url, visitor.service)
        notices.append(other.run(key)[-1])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert notices == [""] * 8 and len(visitor.service.requests) == 8
    assert time.monotonic() - begin < 8 * 0.5  # the fake has four threads


def test_small_images_do_not_wait_for_large_ones(visitor, brake):
    large = bomb(2_000, work.LARGE // 2_000 + 1)
    key = visitor.accept(large)
    brake.over = work.LARGE
    waiting = [visitor.begin("run", key, "cup", "automatic", 0.5, 0.5, "") for _ in range(2)]
    waiting += [visitor.begin("accept", visitor.upload(large), "", "") for _ in range(2)]
    assert brake.begun.wait(20)
    *_, answer, notice = visitor.run(visitor.accept(png()))
    assert notice == "" and visitor.event("redraw", answer, 0.1, 0.5)[-1] == ""
    assert not brake.released.is_set() and len(visitor.service.requests) == 1  # the large ones are still being decoded
    brake.released.set()
    assert [visitor.outputs(session)[-1] for session in waiting] == [""] * 4


def test_the_page_and_the_api_share_the_bound_of_images_to_decode(visitor, brake, monkeypatch):
    key, entered = visitor.key, threading.Semaphore(0)
    *_, answer, _ = visitor.run(key)
    monkeypatch.setattr(visitor.service, "check_admission", entered.release)  # the last thing before a place is taken
    brake.over = 0

    def ask() -> httpx.Response:
        files, data = {"image": ("x.png", png())}, {"prompt": "cup"}
        return httpx.post(f"{visitor.url}/v1/segment", files=files, data=data, timeout=60)

    api = threading.Thread(target=ask)
    api.start()
    assert brake.begun.wait(20) and entered.acquire(timeout=20)
    places = Settings().decoders + Settings().decodes_waiting
    waiting = [visitor.begin("run", key, "cup", "automatic", 0.5, 0.5, "") for _ in range(places - 1)]
    assert all(entered.acquire(timeout=20) for _ in waiting)
    *outputs, notice = visitor.run(key)
    assert all(map(is_kept, outputs))
    assert "Too many images wait to be decoded. Try again in a second." in notice
    image, refused, *_, notice = visitor.event("accept", visitor.upload(png()), "", "")
    assert image is None and refused == "" and "Try again in a second." in notice
    response = ask()
    assert response.status_code == 429 and response.json()["code"] == "busy"
    assert response.json()["detail"] == "too many images wait to be decoded; try again in 1 s"
    assert visitor.event("redraw", answer, 0.1, 0.5)[-1] == ""  # what has been computed is drawn
    assert not brake.released.is_set()
    brake.released.set()
    assert [visitor.outputs(session)[-1] for session in waiting] == [""] * len(waiting)
    api.join()


def test_the_head_asks_again_until_the_service_is_ready(visitor):
    visitor.service.ready = False
    head, timer = visitor.event("status")
    assert "not ready yet" in head and timer["active"] is True
    visitor.service.ready = True
    head, timer = visitor.event("status")
    assert "not ready" not in head and timer["active"] is False


def test_the_head_says_what_answers_and_what_the_weights_are():
    status = {
        "ready": True,
        "engine": "b",
        "reason": "out of <memory>",
        "engines": {"a": {"precision": "fp16"}, "b": {}},
    }
    head = page_view.head("sam3-nano", status)
    assert "rendered shapes" in head and "sam3-nano on a (fp16), else on b" in head
    assert "b answers now, because out of &lt;memory&gt;" in head and "dot ready" in head
    assert "not ready yet: loading" in page_view.head("x", {"ready": False, "engine": "", "reason": "loading"})
    assert "The weights are random" in page_view.head("sam3", {"ready": False})
    assert "random" not in page_view.head("facebook/sam3", {"ready": False, "engine": "", "reason": ""})


def test_text_of_users_stays_text():
    nasty = "<img src=x onerror=alert(1)> {{value}} ${1+1} \"'"
    for shown in (page_view.notice(nasty), page_view.head(nasty, {"engine": nasty, "reason": nasty})):
        assert "<img" not in shown and "{{" not in shown and "${" not in shown
    kept = page_view.Kept(some(prompts=(nasty,)), picture(png(), images.decode(png()), nasty), 1.0)
    found, left_out = page_view.instances(kept, 0.5, 0.5)
    for shown in (page_view.table(kept, found, left_out, 0.5), page_view.table(kept, [], 0, 0.5)):
        assert "<img" not in shown and "{{" not in shown and "${" not in shown


def some(count: int = 3, prompts: tuple[str, ...] = ("cup",), size: tuple[int, int] = (300, 500)) -> Answer:
    """An answer with so many candidates a prompt, each a soft disc."""
    generator = np.random.default_rng(1)
    rows, columns = np.mgrid[:36, :36]
    masks = [6 - np.hypot(rows - y, columns - x) for y, x in generator.uniform(6, 30, (count, 2))]
    scores = np.sort(generator.uniform(0.55, 0.99, count).astype(np.float32))[::-1]
    boxes = np.sort(generator.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)
    candidates = Candidates(scores, boxes, np.array(masks, dtype=np.float16))
    return Answer(prompts, (candidates,) * len(prompts), size, "onnxruntime", "", {"image": 1.0})


def test_what_is_drawn_is_what_the_answer_says():
    answer = some(5, ("cup", "star"), (1500, 2500))
    kept = page_view.Kept(answer, picture(b"", np.zeros((1500, 2500, 3), np.uint8), "x"), 0.0)
    found, left_out = page_view.instances(kept, 0.6, 0.7)
    exact = [
        (p, *each) for p, d in answer.detections(0.6, 0.7) for each in zip(d.scores, d.boxes, d.masks, strict=True)
    ]
    assert len(found) == len(exact) > 2 and left_out == 0
    for one, (prompt, score, box, mask) in zip(found, exact, strict=True):
        assert (one.prompt, one.score) == (prompt, pytest.approx(float(score)))
        assert one.box == pytest.approx(box.tolist(), abs=0.01)  # pixels of the photograph, not of what is shown
        assert one.share == pytest.approx(mask.mean(), abs=2e-4)
        assert one.mask.shape == kept.picture.shown_size == (768, 1280)


def test_of_too_many_instances_the_best_are_drawn():
    kept = page_view.Kept(some(70, ("cup", "star")), picture(b"", np.zeros((30, 50, 3), np.uint8), "x"), 0.0)
    found, left_out = page_view.instances(kept, 0.05, 0.5)
    assert (len(found), left_out) == (page_view.MOST, 140 - page_view.MOST)
    best = np.sort(np.concatenate([each.scores for each in kept.answer.candidates]))[::-1][: page_view.MOST]
    assert sorted(one.score for one in found) == pytest.approx(sorted(best.tolist()), abs=1e-5)
    assert f"{left_out} more of lower score" in page_view.table(kept, found, left_out, 0.05)


def test_why_another_engine_answered_is_said():
    answer = Answer(("a", "b"), (), (3, 4), "openvino", "onnxruntime ran out of memory", {"image": 2.0}, 3, 1, True)
    text = page_view.timing(page_view.Kept(answer, picture(b"", np.zeros((3, 4, 3), np.uint8), "x"), 0.0), 1.0)
    assert "<strong>openvino</strong>" in text and "onnxruntime ran out of memory" in text
    assert "with 2 other requests in the batch" in text and "1 of 2 prompts and the image from the cache" in text


def test_a_mask_is_filled_outlined_and_numbered():
    mask = np.zeros((200, 300), dtype=bool)
    mask[60:160, 100:200] = True
    taken: list = []
    first = _layer(mask_uri(mask, (10, 200, 30), 1, taken))
    assert first.shape == (200, 300, 4)
    assert first[110, 150].tolist() == [10, 200, 30, 115]  # translucent inside
    assert first[110, 100].tolist() == [10, 200, 30, 255]  # its outline
    assert first[10, 10, 3] == 0
    mask_uri(mask, (10, 200, 30), 2, taken)
    assert len(taken) == 2 and (taken[0][2] <= taken[1][0] or taken[1][2] <= taken[0][0])  # side by side
    assert not _layer(mask_uri(np.zeros((20, 30), bool), (1, 2, 3), 3, taken))[..., 3].any()
    tiny = _layer(mask_uri(np.ones((3, 2), bool), (1, 2, 3), 4, []))
    assert tiny.shape == (3, 2, 4)


def test_a_mask_leaves_the_numbers_of_those_below_open():
    mask, taken = np.zeros((200, 300), dtype=bool), []
    mask[60:160, 100:200] = True
    mask_uri(mask, (10, 200, 30), 1, taken)
    ((x0, y0, x1, y1),) = taken
    upper = _layer(mask_uri(np.ones_like(mask), (200, 10, 30), 2, taken))
    assert not upper[y0 : y1 + 1, x0 : x1 + 1, 3].any()
    assert upper[y1 + 20, x0, 3] and upper[y0, x1 + 60, 3]


def test_a_lower_threshold_is_advised_where_there_is_one():
    kept = page_view.Kept(some(1), picture(b"", np.zeros((30, 50, 3), np.uint8), "x"), 0.0)
    assert "a lower detection threshold shows more" in page_view.table(kept, [], 0, 0.06)
    assert page_view.table(kept, [], 0, FLOOR) == "<p>Nothing scores over 0.05 for “cup”.</p>"


def _layer(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))


class Thing:
    def __init__(self, nbytes: int):
        self.nbytes = nbytes


def test_the_shelf_keeps_what_was_used_last_and_no_more_than_it_may():
    shelf = Shelf(100, 60.0)
    keys = [shelf.put(Thing(40)), shelf.put(Thing(40))]
    assert shelf.get(keys[0]) is not None
    keys.append(shelf.put(Thing(40)))
    assert [shelf.get(key) is not None for key in keys] == [True, False, True] and shelf.used == 80
    assert shelf.get(shelf.put(Thing(101))) is None and shelf.used == 80 and len(shelf) == 2  # the others stay
    key = shelf.put(Thing(10))
    shelf.drop(key)
    shelf.drop(key)
    shelf.drop(None)
    assert shelf.used == 80 and shelf.get(key) is None and shelf.get(["x"]) is None


def test_the_shelf_keeps_nothing_for_ever(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(
        page_shelf, "time", SimpleNamespace(monotonic=lambda: now[0])
    )  # the server's loop has the real one
    shelf = Shelf(100, 60.0)
    old, other = shelf.put(Thing(1)), shelf.put(Thing(1))
    now[0] += 61
    assert shelf.get(old) is None and len(shelf) == 1
    shelf.put(Thing(1))
    assert len(shelf) == 1 and shelf.used == 1 and shelf.get(other) is None


OFFLINE = """
import socket, sys
asked = []
def hook(event, arguments):
    if event == "socket.connect" and arguments[0].family != socket.AF_UNIX or event == "socket.getaddrinfo":
        asked.append((event, arguments[1:]))
sys.addaudithook(hook)
from starlette.testclient import TestClient
from sam3lab.serve.api import create_app
from sam3lab.serve.page import mount, upload_folder
from sam3lab.serve.settings import Settings
from tests.fake_service import FakeService
service, settings = FakeService(), Settings()
app = mount(create_app(service, settings), service, settings)
with TestClient(app, base_url="http://localhost") as client:
    assert client.get("/").status_code == 200
    assert client.get("/theme.css").status_code == 200
    assert upload_folder().exists()
assert not upload_folder().exists()
import time
time.sleep(1)  # for threads that would ask in the background
print(asked)
"""


def test_the_server_asks_no_other_host():
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"
