"""The HTTP API: what it answers, how it says no, who may ask, and how it starts and ends."""

import argparse
import base64
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import Future

import httpx
import numpy as np
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from pycocotools import mask as coco
from starlette.testclient import TestClient

from sam3lab import images
from sam3lab.cli import main
from sam3lab.errors import UserError
from sam3lab.paths import DATA, ROOT
from sam3lab.serve import server, work
from sam3lab.serve.api import create_app
from sam3lab.serve.cli import add_arguments, engines
from sam3lab.serve.observe import STAGES
from sam3lab.serve.protocol import protocol
from sam3lab.serve.request import Answer, Busy, Candidates, Late, NotReady, ServiceError, WorkerLost
from sam3lab.serve.settings import KEY_VARIABLE, Settings, is_loopback, read_key
from tests.fake_service import FakeService
from tests.serve_process import fake, serving

JPEG = images.jpeg(images.load("chelsea"))  # 451 × 300
KEY = "a-key-for-the-tests-alone"


def client_of(service=None, settings=None, **options) -> TestClient:
    app = create_app(service or FakeService(), settings or Settings())
    return TestClient(app, "http://127.0.0.1:8000", **options)


def segment(client, image=JPEG, prompt=("cat",), **rest):
    fields = {name: rest.pop(name) for name in ("threshold", "mask_threshold", "engine") if name in rest}
    return client.post("/v1/segment", files={"image": ("x.jpg", image)}, data={"prompt": list(prompt)} | fields, **rest)


# Answers


def test_an_answer_has_everything_that_was_found():
    service = FakeService()
    response = segment(client_of(service), prompt=["a  cat", "dog ", "dog"], threshold=0.2, engine="openvino")
    assert response.status_code == 200
    answer = response.json()
    assert answer["prompts"] == ["a cat", "dog"] and (answer["width"], answer["height"]) == (451, 300)
    assert [found["prompt"] for found in answer["instances"]] == ["a cat", "a cat", "dog", "dog"]
    assert [round(found["score"], 5) for found in answer["instances"]] == [0.9, 0.3, 0.9, 0.3]
    assert answer["instances"][0]["box"] == [112.75, 75.0, 338.25, 225.0]
    mask = coco.decode(answer["instances"][0]["segmentation"])
    assert mask.shape == (300, 451) and mask.sum() == answer["instances"][0]["area"]
    assert mask[150, 225] and not mask[20, 20] and abs(mask.sum() / (225.5 * 150) - 1) < 0.02
    assert answer["engine"] == "openvino" and answer["reason"] == "" and answer["batch"] == 1
    assert answer["cached"] == {"prompts": 0, "image": False} and answer["omitted"] == 0
    steps = ["decode", "queue", "preprocess", "image", "text", "detect", "postprocess", "total"]
    assert list(answer["milliseconds"]) == steps and answer["milliseconds"]["image"] == 5
    (request,) = service.requests
    assert request.prompts == ("a cat", "dog") and request.engine == "openvino" and request.score_threshold == 0.2
    assert Settings().timeout - 5 < request.timeout < Settings().timeout  # decoding took its part
    np.testing.assert_array_equal(request.photograph, images.decode(JPEG))


def test_thresholds_choose():
    client = client_of()
    assert len(segment(client).json()["instances"]) == 1
    assert len(segment(client, threshold=0.95).json()["instances"]) == 0
    areas = [segment(client, mask_threshold=value).json()["instances"][0]["area"] for value in (0.01, 0.5, 0.99)]
    assert areas[0] > areas[1] > areas[2] > 0


def test_what_is_answered_does_not_grow_without_bound(monkeypatch):
    generator = np.random.default_rng(0)

    def found(count):
        scores = np.sort(generator.random(count).astype(np.float32))[::-1]
        return Candidates(scores, np.zeros((count, 4), np.float32), generator.random((count, 8, 8)).astype(np.float16))

    candidates = (found(150), found(150))
    answer = Answer(("a", "b"), candidates, (20, 10), "x")
    every = work.segmentation(answer, 0.0, 0.5, {}, 0.0, 1e12, threading.Event())
    assert len(every.instances) == work.MAX_INSTANCES == 200 and every.omitted == 100
    kept = sorted((each.score for each in every.instances), reverse=True)
    assert kept == sorted(np.concatenate([each.scores for each in candidates]).tolist(), reverse=True)[:200]
    assert [each.prompt for each in every.instances] == sorted(each.prompt for each in every.instances)
    # the same masks as those that the answer itself makes, all at once
    (_, first), (_, second) = answer.detections(0.0, 0.5)
    codes = [code["counts"] for code in (*first.rle(), *second.rle())]
    assert all(each.segmentation.counts in codes for each in every.instances)
    monkeypatch.setattr(work, "MAX_MASK_PIXELS", 20 * 10 * 7 + 1)
    few = work.segmentation(answer, 0.0, 0.5, {}, 0.0, 1e12, threading.Event())
    assert len(few.instances) == 7 and few.omitted == 293


def test_masks_that_nobody_waits_for_are_not_made():
    one = Candidates(np.ones(1, np.float32), np.zeros((1, 4), np.float32), np.zeros((1, 8, 8), np.float16))
    answer, gone = Answer(("a",), (one,), (20, 10), "x"), threading.Event()
    with pytest.raises(Late, match="in time"):
        work.segmentation(answer, 0.5, 0.5, {}, 0.0, time.monotonic() - 1, gone)
    gone.set()
    with pytest.raises(Late):
        work.segmentation(answer, 0.5, 0.5, {}, 0.0, time.monotonic() + 60, gone)


def test_openapi_says_what_is_taken_and_answered_without_anything_from_elsewhere():
    client = client_of()
    schema = client.get("/openapi.json").json()
    operation, parts = schema["paths"]["/v1/segment"]["post"], schema["components"]["schemas"]
    form = parts["SegmentForm"]
    assert operation["requestBody"]["content"]["multipart/form-data"]["schema"]["$ref"].endswith("/SegmentForm")
    assert form["required"] == ["image", "prompt"] and form["additionalProperties"] is False
    assert (form["properties"]["threshold"]["minimum"], form["properties"]["threshold"]["maximum"]) == (0, 1)
    answer = segment(client).json()
    assert set(parts["Segmentation"]["required"]) == set(answer)
    assert set(parts["Instance"]["required"]) == set(answer["instances"][0])
    for status in ("400", "401", "413", "415", "422", "429", "503"):
        said = operation["responses"][status]
        assert said["content"] == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        assert ("Retry-After" in said.get("headers", {})) == (status in ("429", "503"))
    assert set(parts["Problem"]["properties"]) == set(client.get("/nothing").json())
    assert "Retry-After" in schema["paths"]["/readyz"]["get"]["responses"]["503"]["headers"]
    assert list(schema["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]
    assert "head" not in schema["paths"]["/healthz"] and "32 tokens" in form["properties"]["prompt"]["description"]
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


def test_openapi_says_how_the_key_is_sent():
    assert "security" not in client_of().get("/openapi.json").text
    schema = client_of(settings=Settings(KEY)).get("/openapi.json", headers={"x-api-key": KEY}).json()
    schemes = {
        name: (each["type"], each.get("scheme"), each.get("name"))
        for name, each in schema["components"]["securitySchemes"].items()
    }
    assert set(schemes.values()) == {("http", "bearer", None), ("apiKey", None, "X-API-Key")}
    asked = {
        path: [next(iter(each)) for each in operation.get("security", [])]
        for path, operations in schema["paths"].items()
        for operation in operations.values()
    }
    assert asked == {"/v1/segment": [*schemes], "/metrics": [*schemes], "/healthz": [], "/readyz": []}


# Refusals


@pytest.mark.parametrize(
    ("error", "status", "code", "after"),
    [
        (Busy("the queue is full", 2.3), 429, "busy", "3"),
        (Late("too late", 1), 503, "late", "1"),
        (WorkerLost("it died", 0.2), 503, "worker_lost", "1"),
        (NotReady("still starting", 5), 503, "not_ready", "5"),
        (ServiceError("something else", 4), 503, "not_ready", "4"),
        (ServiceError("an engine failed on it", None), 503, "not_ready", None),
    ],
)
def test_a_service_that_says_no(error, status, code, after):
    service = FakeService()

    def submit(request):
        future = Future()
        future.set_exception(error)
        return future

    for name in ("at once", "later"):
        if name == "at once":
            service.refusal = error
        else:
            service.refusal, service.submit = None, submit
        response = segment(client_of(service))
        assert (response.status_code, response.headers.get("retry-after")) == (status, after), name
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        again = f"; try again in {after} s" if after else ""
        assert problem["detail"] == f"{error}{again}" and problem["code"] == code and problem["status"] == status
        assert problem["type"] == "about:blank" and problem["title"]


def test_what_the_service_says_is_wrong_with_a_request():
    service = FakeService()
    service.refusal = UserError("prompt 1 has 40 tokens; use at most 32")
    service.check_admission = lambda: None
    service.submit = lambda request: (_ for _ in ()).throw(service.refusal)
    response = segment(client_of(service))
    assert response.status_code == 422 and response.json()["detail"] == "prompt 1 has 40 tokens; use at most 32"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"threshold": "nan"}, "'threshold': Input should be a finite number"),
        ({"threshold": "1.5"}, "'threshold': Input should be less than or equal to 1"),
        ({"mask_threshold": "-1"}, "'mask_threshold': Input should be greater than or equal to 0"),
        ({"threshold": "half"}, "'threshold': Input should be a valid number"),
        ({"thresold": "0.5"}, "'thresold': Extra inputs are not permitted"),
        ({"engine": "x" * 101}, "'engine': String should have at most 100 characters"),
        ({"prompt": []}, "'prompt': Field required"),
        ({"prompt": [" "]}, "prompt 1 is empty; name a thing to find"),
    ],
)
def test_a_wrong_field_is_named_and_its_value_is_not_repeated(fields, sentence):
    data = {"prompt": ["cat"]} | fields
    response = client_of().post("/v1/segment", files={"image": JPEG}, data=data)
    assert response.status_code == 422 and response.json()["detail"].startswith(sentence)
    assert response.json()["code"] == "invalid"


def test_an_unexpected_error_is_a_problem_that_tells_nothing_of_the_inside():
    service = FakeService()
    service.submit = lambda request: 1 / 0
    response = segment(client_of(service, raise_server_exceptions=False))
    assert response.status_code == 500 and response.json()["code"] == "error"
    assert "division" not in response.text


@pytest.mark.parametrize("page", [False, True])
def test_other_paths_and_methods_are_problems_too(page):
    service, settings = FakeService(), Settings()
    app = create_app(service, settings)
    if page:
        from sam3lab.serve.page import mount

        app = mount(app, service, settings)
    client = TestClient(app, "http://127.0.0.1:8000")
    assert client.get("/nothing").status_code == 404
    probes = ("/healthz", "/readyz", "/metrics", "/openapi.json")
    wrong = [("GET", "/v1/segment"), ("PUT", "/v1/segment"), ("OPTIONS", "/v1/segment"), ("BREW", "/v1/segment")]
    for method, path in (*wrong, *(("POST", path) for path in probes)):
        response = client.request(method, path, headers={"origin": "http://127.0.0.1:8000"})
        assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed"), (method, path)
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["allow"] == ("POST" if path == "/v1/segment" else "GET, HEAD")
    for path in probes:
        assert client.head(path).status_code == client.get(path).status_code == 200, path


def test_as_many_come_at_once_as_may_wait_for_an_engine(monkeypatch):
    """--queue 40 takes 40 requests together, whose images wait to be decoded first."""
    asked, release, entered = [], threading.Event(), threading.Semaphore(0)
    monkeypatch.setattr(server, "run", lambda service, settings, *_, **__: asked.append(settings))
    assert main(["serve", "--queue", "40", "--fallback", "none", "--device", "cpu"]) == 0
    assert asked[0].decodes_waiting == 40
    service, statuses = FakeService(), []
    service.check_admission = entered.release
    monkeypatch.setattr("sam3lab.serve.api.pixels", lambda picture: release.wait(30) and np.zeros((8, 8, 3), np.uint8))
    with client_of(service, asked[0]) as client:
        threads = [threading.Thread(target=lambda: statuses.append(segment(client).status_code)) for _ in range(40)]
        for thread in threads:
            thread.start()
        assert all(entered.acquire(timeout=30) for _ in threads)
        release.set()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 40


def test_too_many_images_to_decode_are_refused(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr("sam3lab.serve.api.pixels", lambda picture: release.wait(20) and np.zeros((8, 8, 3), np.uint8))
    client, statuses = client_of(settings=Settings(decoders=1, decodes_waiting=1)), []
    with client:
        threads = [threading.Thread(target=lambda: statuses.append(segment(client).status_code)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(200):
            if len(statuses) == 2:
                break
            time.sleep(0.02)
        assert client.get("/healthz").status_code == 200  # the event loop waits for none of them
        release.set()
        for thread in threads:
            thread.join()
    assert sorted(statuses) == [200, 200, 429, 429]


# Who may ask


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"authorization": f"bearer  {KEY} "}, 200),
        ({"x-api-key": KEY}, 200),
        ({"authorization": _basic("anyone", KEY)}, 200),
        ({"authorization": _basic("", KEY)}, 200),
        ({"authorization": _basic(KEY, "")}, 401),
        ({"authorization": f"Bearer {KEY}x"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Basic !!!"}, 401),
        ({"authorization": "Basic é".encode()}, 401),
        ({"authorization": KEY}, 401),
        ({"x-api-key": KEY[:-1]}, 401),
        ({"x-api-key": ""}, 401),
    ],
)
def test_a_key_opens_everything_and_nothing_else_does(headers, status):
    client = client_of(settings=Settings(KEY))
    response = segment(client, headers=headers)
    assert response.status_code == status
    for path in ("/metrics", "/openapi.json"):
        assert client.get(path, headers=headers).status_code == status
    assert client.get("/", headers=headers).status_code == (404 if status == 200 else 401)  # where the page would be
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    if status == 401:
        assert "Basic realm" in response.headers["www-authenticate"] and KEY not in response.text


def test_without_the_key_no_body_is_read():
    service = FakeService()
    with running(service, Settings(KEY)) as url, httpx.Client() as client:
        begin = time.monotonic()
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
            connection.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999\r\n\r\n--a")
            assert b" 401 " in connection.recv(4096)
        service.refusal = Busy("full", 1)
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
            head = b"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: " + KEY.encode()
            kind = b"\r\nContent-Type: multipart/form-data; boundary=a\r\nContent-Length: 99999\r\n\r\n--a"
            connection.sendall(head + kind)
            assert b" 429 " in connection.recv(4096)
        assert time.monotonic() - begin < 5 and client.get(f"{url}/healthz").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("LOCALHOST:8000", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("127.0.0.1@evil.example", 400),
        ("127.0.0.1:80:80", 400),
        ("127.0.0.1:x", 400),
        ("[::1", 400),
        ("", 400),
    ],
)
def test_names_by_which_the_service_is_called(host, status):
    assert client_of().get("/healthz", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200),
        ("http://127.0.0.1:9000", 403),
        ("http://localhost:8000", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("file://", 403),
        ("https://lab.example", 200),
        ("https://lab.example.evil.example", 403),
        ("https://[", 403),
    ],
)
def test_pages_of_other_sites_may_not_ask(origin, status):
    settings = Settings(hosts=("127.0.0.1", "localhost", "lab.example"))
    response = segment(client_of(settings=settings), headers={"origin": origin})
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers


def test_web_sockets_are_refused():
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), client_of().websocket_connect("/v1/segment"):
        pass


# What is seen from outside


def _samples(client) -> dict[tuple, float]:
    text = client.get("/metrics").text
    families = text_string_to_metric_families(text)
    return {
        (each.name, *(value for _, value in sorted(each.labels.items()))): each.value
        for family in families
        for each in family.samples
    }


def test_metrics_count_outcomes_and_stages():
    service = FakeService()
    service.counters = lambda: {"text_cache_hits": 3.0, "worker restarts": 1.0}
    service.status = lambda: {
        "ready": True,
        "engine": "openvino",
        "reason": "",
        "queued": 4,
        "engines": {"onnxruntime": {"state": "failed"}, "openvino": {"state": "ready"}},
    }
    client = client_of(service)
    segment(client)
    segment(client, image=b"no image")
    service.refusal = Busy("full", 1)
    segment(client)
    found = _samples(client)
    for outcome in ("ok", "invalid", "busy"):
        assert found["sam3lab_requests_total", outcome, "/v1/segment"] == 1, outcome
    assert found["sam3lab_requests_total", "late", "/v1/segment"] == 0  # there before it happens
    assert found["sam3lab_stage_seconds_count", "image"] == 1
    assert found["sam3lab_stage_seconds_sum", "image"] == pytest.approx(0.005)
    assert found["sam3lab_service_text_cache_hits_total",] == 3
    assert found["sam3lab_service_worker_restarts_total",] == 1
    assert found["sam3lab_queued",] == 4 and found["sam3lab_ready",] == 1
    assert found["sam3lab_engine_answers", "onnxruntime"] == 0 and found["sam3lab_engine_answers", "openvino"] == 1
    assert found["sam3lab_engine_state", "onnxruntime", "failed"] == 1
    assert found["process_resident_memory_bytes",] > 1e6


def test_counts_are_told_by_engine_and_in_words():
    service = FakeService()
    status = service.status()
    engines = {"onnxruntime": {"state": "ready", "counts": {"text_cache_hits": 2}}, "openvino": {"state": "ready"}}
    service.status = lambda: status | {"engines": engines}
    client = client_of(service)
    found = _samples(client)
    assert found["sam3lab_engine_text_cache_hits_total", "onnxruntime"] == 2
    assert found["sam3lab_engine_text_cache_hits_total", "openvino"] == 0
    families = list(text_string_to_metric_families(client.get("/metrics").text))
    assert all(" " in family.documentation for family in families if family.name.startswith("sam3lab"))
    assert not [family for family in families if family.name.removeprefix("sam3lab_service_") in family.documentation]


def test_metrics_do_not_grow_with_what_is_asked():
    client = client_of()
    client.get("/nothing"), client.request("BREW", "/nothing"), client.get("/metrics"), segment(client)
    before = set(_samples(client))
    for number in range(50):
        client.get(f"/path/{number}"), client.request(f"METHOD{number}", "/v1/segment")
        segment(client, prompt=[f"thing {number}"])
    added = set(_samples(client)) - before
    assert {name[1:] for name in added if name[0] == "sam3lab_requests_total"} <= {
        ("/v1/segment", "method_not_allowed")
    }
    assert {name[0] for name in added} <= {"sam3lab_requests_total", "sam3lab_requests_created"}


def test_the_log_has_a_line_a_request_and_nothing_of_its_content(caplog):
    client = client_of(settings=Settings(KEY))
    with caplog.at_level(logging.INFO):
        segment(client, prompt=["a private thing"], headers={"x-api-key": KEY})
        client.get("/private/path?private=1", headers={"authorization": "Bearer private"})
    ours = [record.getMessage() for record in caplog.records if record.name == "sam3lab.serve"]
    assert len(ours) == 2 and ours[0].startswith("POST /v1/segment 200 ok ")
    assert ours[1].startswith("GET page 401 unauthorized ")
    assert "private" not in "".join(ours) and KEY not in caplog.text.replace("testclient", "")
    assert KEY not in repr(Settings(KEY))


def test_the_log_says_which_engines_are_ready(caplog):
    for states, line in (({"a": "ready", "b": "restarting"}, ["ready: a"]), ({"a": "closed"}, [])):
        service, caught = FakeService(), len(caplog.records)
        status = service.status() | {"engines": {name: {"state": state} for name, state in states.items()}}
        started = threading.Event()
        service.status = lambda status=status, started=started: started.set() or status
        with caplog.at_level(logging.INFO), client_of(service):
            assert started.wait(20)
        time.sleep(0.1)
        said = [record.getMessage() for record in caplog.records[caught:]]
        assert [each for each in said if each.startswith("ready")] == line


def test_ready_when_the_service_is_and_alive_before():
    service, go = FakeService(), threading.Event()
    service.ready, begin = False, service.start

    def start():
        go.wait(20)
        begin()

    service.start = start
    with client_of(service) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        response = client.get("/readyz")
        assert response.status_code == 503 and response.headers["retry-after"] == "1"
        assert response.json()["detail"] == "the service is starting; try again in 1 s"
        go.set()
        for _ in range(200):
            if (response := client.get("/readyz")).status_code == 200:
                break
            time.sleep(0.02)
        assert response.json() == {"ready": True, "engine": "onnxruntime", "reason": ""}


# A real server


@contextlib.contextmanager
def running(service, settings):
    """The URL of a server in a thread."""
    listener = server._listener("127.0.0.1", 0)
    config = uvicorn.Config(create_app(service, settings), http=protocol(settings), ws="none", log_config=None)
    real = uvicorn.Server(config)
    thread = threading.Thread(target=real.run, args=([listener],))
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        while httpx.get(f"{url}/readyz").status_code != 200:
            time.sleep(0.02)
        yield url
    finally:
        real.should_exit = True
        thread.join()
        listener.close()


def test_a_client_that_goes_in_the_middle_of_its_body_is_gone():
    head = b"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999\r\n"
    head += b"Content-Type: multipart/form-data; boundary=a\r\n\r\n"
    part = b'--a\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nhalf'
    with running(FakeService(), Settings()) as url, httpx.Client(base_url=url) as client:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
                connection.sendall(head + part)
                time.sleep(0.2)
        for _ in range(100):
            if (found := _samples(client))["sam3lab_requests_total", "gone", "/v1/segment"] == 3:
                break
            time.sleep(0.02)
        assert found["sam3lab_requests_total", "gone", "/v1/segment"] == 3
        assert found["sam3lab_requests_total", "bad_request", "/v1/segment"] == 0


def test_a_client_that_goes_is_dropped():
    service, pending = FakeService(), Future()
    service.submit = lambda request: pending
    with running(service, Settings()) as url:
        with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=url, timeout=0.5) as client:
            segment(client)
        for _ in range(100):
            if pending.cancelled():
                break
            time.sleep(0.02)
        assert pending.cancelled()
        with httpx.Client(base_url=url) as client:
            assert _samples(client)["sam3lab_requests_total", "gone", "/v1/segment"] == 1


def test_a_service_that_never_answers_is_late(monkeypatch):
    monkeypatch.setattr("sam3lab.serve.api.GRACE", 0.1)
    service, pending = FakeService(), Future()
    service.submit = lambda request: pending
    response = segment(client_of(service, Settings(timeout=0.2)))
    assert response.status_code == 503 and response.json()["code"] == "late" and pending.cancelled()
    assert response.json()["detail"] == "there was no answer within 0.2 s; try again in 1 s"


@pytest.mark.alone
@pytest.mark.parametrize(
    ("decoding", "waiting", "encoding", "status"),
    [(0.5, 0.0, 0.0, 200), (1.5, 0.0, 0.0, 503), (0.5, 0.8, 0.0, 503), (0.4, 0.0, 0.8, 503)],
)
def test_decoding_waiting_and_encoding_have_one_time_together(monkeypatch, decoding, waiting, encoding, status):
    monkeypatch.setattr("sam3lab.serve.api.GRACE", 0.1)
    service, segmentation = FakeService(waiting), work.segmentation

    def pixels(picture):
        time.sleep(decoding)
        return np.zeros((8, 8, 3), np.uint8)

    def encoded(*arguments):
        time.sleep(encoding)
        return segmentation(*arguments)

    with client_of(service, Settings(timeout=1.0)) as client:
        monkeypatch.setattr("sam3lab.serve.api.pixels", pixels)
        monkeypatch.setattr(work, "segmentation", encoded)
        begun = time.monotonic()
        response = segment(client)
        assert response.status_code == status and time.monotonic() - begun < 1.4
    assert all(0 < request.timeout <= 1 - decoding for request in service.requests)
    assert len(service.requests) == (decoding < 1)


@pytest.mark.alone
def test_large_images_that_could_not_be_answered_in_time_are_refused_at_once(monkeypatch):
    monkeypatch.setattr(work, "LARGE", 1000)
    seconds, answers = 0.5, []

    def slow(picture):
        time.sleep(seconds)
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr("sam3lab.serve.api.pixels", slow)

    def ask():
        begun = time.monotonic()
        answers.append((segment(client), time.monotonic() - begun))

    with client_of(settings=Settings(timeout=1.8)) as client:
        ask()  # from here on it is known how long one takes
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    refused = [(response, took) for response, took in answers if response.status_code == 429]
    assert len(refused) in (5, 6) and all(response.status_code in (200, 429) for response, _ in answers)
    for response, took in refused:
        assert took < 1.0 and response.headers["retry-after"] == "2"  # three are there, of half a second each
        assert response.json()["detail"] == "too many images wait to be decoded; try again in 2 s"
    assert max(took for _, took in answers) < 1.8 + 0.5


def test_sigterm_lets_what_was_taken_be_answered():
    with serving(fake(seconds=2.0)) as running, httpx.Client(base_url=running.url, timeout=20) as client:
        statuses = []
        asking = threading.Thread(target=lambda: statuses.append(segment(client).status_code))
        asking.start()
        silent = socket.create_connection(("127.0.0.1", running.port))  # does not hold the end up
        time.sleep(1)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert asking.is_alive()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{running.url}/healthz")
        asking.join()
        assert statuses == [200] and running.process.wait(10) == 0
        silent.close()


@pytest.mark.skipif(sys.platform != "linux", reason="sends a process signals of POSIX")
def test_a_second_interrupt_tells_who_waits_that_the_service_closes(tmp_path):
    command = [sys.executable, "-m", "sam3lab", "serve", "--port", "0", "--fallback", "none", "--no-page"]
    command += ["--backend", "tests.serve_faults:Quick", "--device", "cpu"]
    environment, answers = {"SAM3LAB_TEST_FAULT": str(tmp_path / "fault")}, []
    with open(tmp_path / "log", "w+") as log:
        with serving(command, environment, log) as running, httpx.Client(base_url=running.url, timeout=60) as client:
            (tmp_path / "fault").write_text("hang")
            threads = [threading.Thread(target=lambda: answers.append(segment(client))) for _ in range(12)]
            for thread in threads:
                thread.start()
            time.sleep(2)
            for _ in range(2):
                running.process.send_signal(signal.SIGINT)
                time.sleep(0.5)
            for thread in threads:
                thread.join()
            assert {(each.status_code, each.json()["code"]) for each in answers} == {(503, "not_ready")}
            assert len(answers) == 12 and running.process.wait(20) == 130
        log.seek(0)
        assert "Traceback" not in log.read()


TOLD_AT_ONCE = """
import os, signal, uvicorn
from sam3lab.serve import server
from sam3lab.serve.settings import Settings
from tests.fake_service import FakeService

printed, begun, run = [], [], uvicorn.server.asyncio_run

def end():
    if printed and begun:
        os.kill(os.getpid(), signal.SIGTERM)

def tell(*arguments, **options):
    os.write(1, b"printed")
    printed.append(arguments)
    end()

def begin(*arguments, **options):
    begun.append(arguments)
    end()
    return run(*arguments, **options)

server.print, uvicorn.server.asyncio_run = tell, begin
server.run(FakeService(), Settings(), "127.0.0.1", 0, page=False)
"""


def test_sigterm_as_soon_as_the_address_is_there_is_no_failure():
    done = subprocess.run([sys.executable, "-c", TOLD_AT_ONCE], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "printed", "")


def test_the_command_serves_what_the_model_finds():
    truth = json.loads((DATA / "scenes" / "test.json").read_text())
    # a simple prompt, of which there are two: the model is not asked for what is hard here
    prompt = next(each for each in truth["prompts"] if "," not in each["text"] and len(each["annotation_ids"]) == 2)
    name = next(image["file_name"] for image in truth["images"] if image["id"] == prompt["image_id"])
    scene = zipfile.ZipFile(DATA / "scenes" / "test.zip").read(name)
    command = [sys.executable, "-m", "sam3lab", "serve", "--port", "0", "--fallback", "none", "--no-page"]
    with serving(command) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        answers = [segment(client, scene, [prompt["text"]]).json() for _ in range(2)]
        masks = {each["id"]: each["segmentation"] for each in truth["annotations"]}
        wanted = [masks[each] for each in prompt["annotation_ids"]]
        for answer in answers:
            found = [each["segmentation"] for each in answer["instances"]]
            assert len(found) == len(wanted)
            assert coco.iou(found, wanted, [0] * len(wanted)).max(axis=0).min() > 0.8
            assert set(answer["milliseconds"]) <= set(STAGES) and answer["engine"] == "onnxruntime"
        assert answers[1]["cached"] == {"prompts": 1, "image": True}
        assert segment(client, prompt=["word " * 39]).json()["detail"].startswith("the prompt 'word word")
        assert client.get("/").status_code == 404


def test_a_start_that_fails_ends_the_server():
    done = subprocess.run(
        fake(fail="there is no such checkpoint"), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stdout.endswith("refused: there is no such checkpoint\n")


def test_a_port_that_is_taken_is_named():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match=rf"cannot listen on 127\.0\.0\.1, port {taken.getsockname()[1]}: .*--port"),
    ):
        server.run(FakeService(), Settings(), "127.0.0.1", taken.getsockname()[1], page=False)
    for host, port in (("127.0.0.1", 99_999), ("no.such.host.invalid", 8000)):
        with pytest.raises(UserError, match="cannot listen"):
            server.run(FakeService(), Settings(), host, port, page=False)


# The command


def _arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.0.0.5", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "", "192.168.1.2", "localhost.evil.example", "example.org")))


def test_other_machines_need_a_key(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "an API key is needed; make one:" in capsys.readouterr().err
    assert read_key(None, "127.0.0.1") == ""
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    assert read_key(file, "0.0.0.0") == KEY
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert read_key(None, "0.0.0.0") == KEY and KEY_VARIABLE not in os.environ
    for content, sentence in (
        ("", "no API key"),
        ("short", "16 or more"),
        ("two words are not a key", "16"),
        ("é" * 20, "16"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=sentence):
            read_key(file, "127.0.0.1")
    with pytest.raises(UserError, match="cannot read"):
        read_key(tmp_path / "absent", "127.0.0.1")


def test_engines_by_device(monkeypatch):
    monkeypatch.setattr("sam3lab.nvml.gpu", lambda: None)
    primary, fallback = engines(_arguments("--threads", "2"))
    assert (primary.backend, primary.precision, primary.device, primary.threads) == ("onnxruntime", "fp32", "cpu", 2)
    assert (fallback.backend, fallback.precision, fallback.device) == ("openvino", "fp32", "cpu")
    assert engines(_arguments("--fallback", "none"))[1] is None
    assert engines(_arguments("--backend", "openvino"))[1] is None
    monkeypatch.setattr("sam3lab.backends.onnxruntime.OnnxRuntimeBackend.unavailable", lambda *_: None)
    monkeypatch.setattr("sam3lab.nvml.gpu", lambda: object())
    primary, fallback = engines(_arguments("--fallback", "onnxruntime"))
    assert (primary.precision, primary.device, primary.name) == ("fp16", "cuda", "onnxruntime")
    assert (fallback.precision, fallback.device, fallback.name) == ("fp32", "cpu", "onnxruntime-cpu")
    for words in (["--backend", "openvino", "--device", "cpu", "--fallback", "openvino"], ["--fallback", "nothing"]):
        with pytest.raises(UserError):
            engines(_arguments(*words))
    monkeypatch.setattr("sam3lab.backends.openvino.OpenVinoBackend.unavailable", lambda *_: "it is not installed")
    assert engines(_arguments())[1] is None  # by default it is an offer, by name it is asked for
    with pytest.raises(UserError, match="it is not installed"):
        engines(_arguments("--fallback", "openvino"))
