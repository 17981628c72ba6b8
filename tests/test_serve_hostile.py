"""What is sent to do harm is refused in a sentence, costs next to nothing, and leaves nothing behind."""

import contextlib
import os
import random
import resource
import selectors
import socket
import threading
import time
import tracemalloc
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from sam3lab import images
from sam3lab.errors import UserError
from sam3lab.serve import container
from sam3lab.serve.decode import MAX_BYTES, decode, normalise_prompts
from tests import hostile_files as files
from tests.serve_process import Server, fake, serving

GOOD = files.saved(files.picture(), "JPEG")
WITHIN = 1.0  # seconds in which hostile requests are refused and good ones answered


# Pixels


def _ordinary() -> dict[str, bytes]:
    """Images as people have them, by a name."""
    photograph = Image.fromarray(images.load("chelsea")).resize((90, 60))
    found = {}
    for mode in ("RGB", "L", "P", "1", "RGBA", "LA"):
        found[f"png {mode}"] = files.saved(photograph.convert(mode), "PNG")
    found["png 16 bit"] = files.saved(Image.fromarray(np.arange(6000, dtype=np.uint16).reshape(60, 100) * 10), "PNG")
    for mode in ("RGB", "L", "CMYK"):
        found[f"jpeg {mode}"] = files.saved(photograph.convert(mode), "JPEG")
    found["jpeg progressive"] = files.saved(photograph, "JPEG", progressive=True)
    clear = photograph.convert("RGBA")
    clear.putalpha(100)
    found["png clear"] = files.saved(clear, "PNG")
    for name, image in (("webp", photograph), ("webp clear", clear)):
        found[name] = files.saved(image, "WEBP")
        found[f"{name} lossless"] = files.saved(image, "WEBP", lossless=True)
    frames = {"save_all": True, "append_images": [photograph.rotate(90), photograph.rotate(180)]}
    for form in ("PNG", "WEBP", "MPO"):
        found[f"frames {form}"] = files.saved(photograph, form, **frames)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        for form in ("PNG", "JPEG", "WEBP"):
            more = {"icc_profile": b"p" * 999, "xmp": b"<x/>"} if form == "WEBP" else {}
            found[f"{form} orientation {turn}"] = files.saved(photograph, form, exif=exif.tobytes(), **more)
    return found


ORDINARY = _ordinary()


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_images_decode_as_elsewhere_in_the_package(name):
    np.testing.assert_array_equal(decode(ORDINARY[name]), images.decode(ORDINARY[name]))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_the_decoder_gets_no_metadata(form):
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    data = files.saved(files.picture(), form, exif=exif, icc_profile=b"profile" * 99, xmp=b"<secret/>")
    assert b"secret" in data
    stripped = container.read(data).data
    assert b"secret" not in stripped and b"profile" not in stripped and len(stripped) < len(data)


# name: (the file, what the refusal says)
REFUSED = {
    "169 MP in 20 KB": (files.png(13_000, 13_000, 1, 0), "13000 × 13000 pixels; send at most 40 million"),
    "400 MP": (files.png(20_000, 20_000, 1, 0), "20000 × 20000"),
    "400 MP jpeg": (files.jpeg_claiming(65_500, 6_107), "65500 × 6107"),
    "268 MP webp": (files.webp_claiming(16_384, 16_384), "16384 × 16384"),
    "long side": (files.png(40_000, 1, 1, 0), "32768 a side"),
    "no pixels": (files.png(0, 5, 8, 0), "no pixels"),
    "two headers": (files.png(8, 8, extra=files.chunk(b"IHDR", b"\0\0\xff\xff" * 2 + b"\x08\2\0\0\0")), "one header"),
    "png chunks": (files.png(8, 8, extra=files.chunk(b"abCd", b"") * 100_000), "65536 chunks"),
    "jpeg segments": (files.jpeg(b"\xff\xfe\0\2" * 1_000_000), "65536 segments"),
    "jpeg padding": (files.jpeg(b"\xff" * 10_000_000), "65536 segments"),
    "jpeg scans": (files.scan_flood(), "64 scans"),
    "empty": (b"", "no JPEG, PNG or WebP"),
    "gif": (files.saved(files.picture(), "GIF"), "no JPEG, PNG or WebP"),
    "tiff": (files.saved(files.picture(), "TIFF"), "no JPEG, PNG or WebP"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "no JPEG, PNG or WebP"),
    "pdf": (b"%PDF-1.7\n" + GOOD, "no JPEG, PNG or WebP"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no JPEG, PNG or WebP"),
    "gif named png": (b"\x89PNG\r\n\x1a\n" + files.saved(files.picture(), "GIF"), "cut short"),
    "too many bytes": (GOOD + bytes(MAX_BYTES), "at most 20 MB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_harmful_files_are_refused(name):
    data, sentence = REFUSED[name]
    with pytest.raises(UserError, match=sentence):
        decode(data)


@pytest.mark.parametrize("name", ["png RGB", "jpeg RGB", "jpeg progressive", "webp", "webp lossless", "frames WEBP"])
def test_a_file_that_is_cut_short_anywhere_is_refused(name):
    data = ORDINARY[name]
    for length in {*range(0, len(data), max(1, len(data) // 100)), *range(len(data) - 3, len(data))}:
        with pytest.raises(UserError):
            decode(data[:length])


def test_damaged_files_give_pixels_or_a_sentence():
    chance, outcomes = random.Random(7), {"pixels": 0, "refused": 0}
    for data in [*ORDINARY.values()] * 8:
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 3, 10))):
            damaged[chance.randrange(chance.choice((len(data), 60)))] = chance.randrange(256)
        try:
            pixels = decode(bytes(damaged))
        except UserError:
            outcomes["refused"] += 1
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
            outcomes["pixels"] += 1
    assert min(outcomes.values()) > 20, outcomes


# name: a file that has something harmful beside its picture, which is 64 × 64
HARMLESS = {
    "exif bomb": files.exif_bomb(),
    "unpacking text": files.png(
        64, 64, extra=files.chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000), 9)) * 5_000
    ),
    "unpacking profile": files.png(
        64, 64, extra=files.chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(100_000_000), 9)) * 2
    ),
    "jpeg and zip": GOOD + b"PK\x03\x04" + bytes(1_000) + b"PK\x05\x06" + bytes(18),
    "png and html": files.png(64, 64) + b"<script>alert(1)</script>",
    "html in a comment": files.jpeg(files.segment(0xFE, b"<script>alert(1)</script>")),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_of_a_file_with_more_than_a_picture_the_picture_is_taken(name):
    tracemalloc.start()
    try:
        assert decode(HARMLESS[name]).shape == (64, 64, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(HARMLESS[name]) + 10_000_000


def test_of_an_animation_one_frame_is_decoded():
    colours = [Image.new("RGB", (64, 64), (step % 256, step // 256 * 40, 90)) for step in range(300)]
    data = files.saved(colours[0], "WEBP", save_all=True, append_images=colours[1:], lossless=True, minimize_size=False)
    assert data.count(b"ANMF") == 300 and container.read(data).data.count(b"ANMF") == 1
    assert decode(data)[5, 5].tolist() == [0, 0, 90]


# Prompts


def test_prompts_are_trimmed_composed_and_taken_once():
    assert normalise_prompts(["  red \n\t star ", "cafe\u0301", "red star", "日本"]) == ("red star", "café", "日本")
    assert normalise_prompts([f"thing {number}" for number in range(16)])[15] == "thing 15"
    assert normalise_prompts([" " * 500 + "a" * 200])[0] == "a" * 200


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([], "no prompt"),
        (["cat", " \n "], "prompt 2 is empty"),
        (["a" * 201], "prompt 1 has 201 characters"),
        (["\ufdfa" * 200, "\u0390" * 201], "prompt 2 has 201"),
        (["a" * 10_000_000], "10000000 characters"),
        (["cat"] * 17, "more than 16"),
        (["a\0b"], r"U\+0000"),
        (["a\x1bb"], r"U\+001B"),
        (["a\x85b"], r"U\+0085"),
        (["a\ud800"], r"U\+D800"),
        (["a\u202eb"], r"U\+202E"),
    ],
)
def test_harmful_prompts_are_refused(texts, sentence):
    with pytest.raises(UserError, match=sentence) as refusal:
        normalise_prompts(texts)
    assert len(str(refusal.value)) < 120  # nothing of what was sent is repeated


# A server


class Good:
    """Good requests, one after another, from a thread, while the block runs."""

    def __init__(self, server: Server):
        self.server, self.seconds, self.wrong = server, [], []
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._ask)

    def __enter__(self):
        self._thread.start()
        while not self.seconds:  # the connection is there before anything else is done
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        assert self.seconds and not self.wrong, self.wrong[:3]
        assert max(self.seconds) < WITHIN, sorted(self.seconds)[-5:]

    def _ask(self):
        with httpx.Client(base_url=self.server.url, timeout=10) as client:
            while not self._stop.is_set():
                begin = time.perf_counter()
                try:
                    answer = client.post("/v1/segment", files={"image": GOOD}, data={"prompt": ["cat"]})
                    if answer.status_code != 200 or len(answer.json()["instances"]) != 1:
                        self.wrong.append(answer.text)
                except Exception as error:
                    self.wrong.append(repr(error))
                self.seconds.append(time.perf_counter() - begin)
                time.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """With limits of time short enough to be waited for; its temporary directory is in the variable `tmp`."""
    folder = tmp_path_factory.mktemp("uploads")
    command = fake(0.01, header_seconds=4.0, body_idle=2.0, body_seconds=5.0)
    with (
        open(tmp_path_factory.mktemp("log") / "log", "w+") as log,
        serving(command, {"TMPDIR": str(folder)}, log) as server,
    ):
        server.tmp = folder
        for _ in range(3):
            httpx.post(f"{server.url}/v1/segment", files={"image": GOOD}, data={"prompt": "cat"}).raise_for_status()
        yield server
        log.seek(0)
        assert "Traceback" not in log.read()


def _form(*parts: bytes, boundary: bytes = b"frontier") -> dict:
    body = b"".join(b"--" + boundary + b"\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
    return {
        "content": body + b"--" + boundary + b"--\r\n",
        "headers": {"content-type": b"multipart/form-data; boundary=" + boundary},
    }


def _send(image: bytes = GOOD, name: str = "a.png", **fields) -> dict:
    return {"files": {"image": (name, image)}, "data": {"prompt": "cat"} | fields}


NESTED = (
    b'name="image"; filename="x"\r\nContent-Type: multipart/mixed; boundary=inner\r\n\r\n'
    b'--inner\r\nContent-Disposition: file; filename="a.jpg"\r\n\r\n' + GOOD + b"\r\n--inner--\r\n"
)
PROMPT = b'name="prompt"\r\n\r\ncat'
IMAGE = b'name="image"; filename="a"\r\n\r\n' + GOOD

# name: (what httpx posts, the status)
REQUESTS = {
    **{name: (_send(data), 422) for name, (data, _) in REFUSED.items() if name != "too many bytes"},
    "an image of over 20 MB": (_send(GOOD + bytes(MAX_BYTES)), 413),
    "truncated png": (_send(ORDINARY["png RGB"][:-20]), 422),
    "60 MB": (_send(bytes(60_000_000)), 413),
    "20 MB file name": (_form(b'name="image"; filename="' + b"a" * 20_000_000 + b'"\r\n\r\n' + GOOD, PROMPT), 400),
    "20 MB header of a part": (_form(b'name="prompt"\r\nX-A: ' + b"a" * 20_000_000 + b"\r\n\r\ncat", IMAGE), 400),
    "1 MB prompt": (_send(prompt="a" * 1_000_000), 400),
    "control character": (_send(prompt="a\0b"), 422),
    "17 prompts": (_send(prompt=["cat"] * 17), 422),
    "no image": ({"data": {"prompt": "cat"}}, 415),
    "image as text": (_form(b'name="image"\r\n\r\nhello', PROMPT), 422),
    "image as a path": (_form(b'name="image"\r\n\r\n/etc/passwd', PROMPT), 422),
    "image as a URL": (_form(b'name="image"\r\n\r\nhttp://127.0.0.1/', PROMPT), 422),
    "two images": (_form(IMAGE, IMAGE, PROMPT), 400),
    "another file": (_form(IMAGE, b'name="mask"; filename="b"\r\n\r\n' + GOOD, PROMPT), 400),
    "another field": (_send(path="/etc/passwd"), 422),
    "nested": (_form(NESTED, PROMPT), 422),
    "100,000 parts": (_form(*[PROMPT] * 100_000), 400),
    "a part without a name": (_form(b"\r\n\r\ncat", IMAGE), 400),
    "no end": (_form(IMAGE, PROMPT) | {"content": _form(IMAGE, PROMPT)["content"][:-20]}, 422),
    "no boundary": ({"content": b"a", "headers": {"content-type": "multipart/form-data"}}, 415),
    "long boundary": (_form(IMAGE, PROMPT, boundary=b"a" * 10_000), 400),
    "other charset": (
        _form(IMAGE, PROMPT) | {"headers": {"content-type": "multipart/form-data; boundary=frontier; charset=idna"}},
        415,
    ),
    "JSON": ({"json": {"image": "/etc/passwd", "prompt": "cat"}}, 415),
    "urlencoded": ({"data": {"image": "x", "prompt": "cat"}}, 415),
    "gzip": (
        {"content": zlib.compress(bytes(9_000_000)), "headers": {"content-encoding": "gzip", "content-type": "x/y"}},
        415,
    ),
    **{
        f"threshold {value}": (_send(threshold=value), 422)
        for value in ("nan", "inf", "-inf", "-0.1", "1.1", "1e999", "x")
    },
    "mask threshold nan": (_send(mask_threshold="nan"), 422),
}


@pytest.mark.alone
def test_hostile_requests_are_refused_at_once_while_good_ones_go_on(server):
    before = server.memory()
    with Good(server), httpx.Client(base_url=server.url, timeout=20) as client:
        for name, (request, status) in REQUESTS.items():
            begin = time.perf_counter()
            answer = client.post("/v1/segment", **request)
            seconds = time.perf_counter() - begin
            assert answer.status_code == status, (name, answer.text[:500])
            assert answer.headers["content-type"] == "application/problem+json", name
            assert len(answer.json()["detail"]) < 400, name
            if name != "60 MB":  # which takes the client some time to send
                assert seconds < WITHIN, (name, seconds)
    assert server.memory() - before < 200e6


@pytest.mark.alone
def test_files_with_more_than_a_picture_are_answered(server):
    before = server.memory()
    with Good(server), httpx.Client(base_url=server.url, timeout=20) as client:
        for name, data in HARMLESS.items():
            begin = time.perf_counter()
            answer = client.post("/v1/segment", **_send(data, name="../../../etc/\x00passwd"))
            assert answer.status_code == 200 and answer.json()["width"] == 64, (name, answer.text[:500])
            assert time.perf_counter() - begin < WITHIN, name
    assert server.memory() - before < 200e6


@pytest.mark.alone
def test_large_images_stand_in_nobodys_way(server):
    large = {
        "png": files.png(8_000, 5_000, 16, 6),
        "webp": files.saved(Image.new("RGB", (16_000, 2_500), "red"), "WEBP", lossless=True, method=0, quality=0),
        "jpeg": files.saved(Image.new("RGB", (8_000, 5_000), "red"), "JPEG"),
    }
    before, answers = server.memory(), []

    def ask(image: bytes) -> None:
        answers.append(httpx.post(f"{server.url}/v1/segment", **_send(image), timeout=30))

    with Good(server) as good:
        threads = [threading.Thread(target=ask, args=(image,)) for image in large.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(good.seconds) > 20
    assert [answer.status_code for answer in answers] == [200] * 3
    assert all(answer.json()["width"] * answer.json()["height"] == 40_000_000 for answer in answers)
    assert server.memory() - before < 300e6  # one photograph of 120 MB is the fake service's


def _raw(server: Server, request: bytes, seconds: float = 10) -> bytes:
    """What the server answers to these bytes before it closes the connection, or has nothing more to say for a while."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
        found = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            while b"\r\n\r\n" not in found and (some := connection.recv(65_536)):
                found += some
        return found


HEAD = b"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=frontier\r\n"


@pytest.mark.alone
def test_bodies_and_heads_beyond_all_bounds(server):
    chunk = b"%x\r\n" % 1_000_000 + bytes(1_000_000) + b"\r\n"
    start = b"%x\r\n" % len(IMAGE) + IMAGE + b"\r\n"
    part = b'--frontier\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    with Good(server):
        begin = time.perf_counter()
        # announced, and never sent
        assert b" 413 " in _raw(server, HEAD + b"Content-Length: 9999999999\r\n\r\n")
        # never announced: the server does not wait for the end
        endless = b"%x\r\n" % len(part) + part + b"\r\n" + chunk * 30
        assert b" 413 " in _raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + endless)
        # two lengths, which two servers in a row could read differently
        both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert b" 400 " in _raw(server, HEAD + both + start)
        assert b" 400 " in _raw(server, HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello")
        # heads without an end
        assert b" 400 " in _raw(server, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X-A: a\r\n" * 300_000)[:20]
        assert b" 200 " not in _raw(server, b"GET /" + b"a" * 3_000_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b" 200 " not in _raw(server, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 9_000_000)
        # trailers without an end, after a body that is fine
        body = _form(IMAGE, PROMPT)["content"]
        trailers = b"%x\r\n" % len(body) + body + b"\r\n0\r\n" + b"X-A: a\r\n" * 300_000
        assert b" 200 " not in _raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + trailers)
        assert time.perf_counter() - begin < 8 * WITHIN


@pytest.mark.alone
def test_a_thousand_slow_clients(server):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2_000:
        pytest.skip(f"this process may open {hard} files, and needs 2,000")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2_000), hard))
    before = server.memory()
    kinds = {
        "says nothing": b"",
        "head": HEAD,
        "body": HEAD + b"Content-Length: 1000000\r\n\r\n--frontier\r\n",
        "stalled body": HEAD + b"Content-Length: 1000000\r\n\r\n" + _form(IMAGE)["content"][:-20],
    }
    connections, closed = {}, selectors.DefaultSelector()
    try:
        with Good(server) as good:
            opened = time.perf_counter()
            for number in range(1_000):
                kind = list(kinds)[number % 4]
                connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
                connection.sendall(kinds[kind])
                connection.setblocking(False)
                connections[connection] = kind
                closed.register(connection, selectors.EVENT_READ)
            asked = len(good.seconds)
            answers = {kind: set() for kind in kinds}
            left, drip = len(connections), time.perf_counter()
            while left and time.perf_counter() - opened < 20:
                for key, _ in closed.select(0.2):
                    with contextlib.suppress(ConnectionError):
                        answers[connections[key.fileobj]].add(key.fileobj.recv(4_096)[9:12])
                    closed.unregister(key.fileobj)
                    key.fileobj.close()
                    left -= 1
                if time.perf_counter() - drip > 0.5:
                    drip = time.perf_counter()
                    for key in list(closed.get_map().values()):
                        if connections[key.fileobj] in ("head", "body"):
                            with contextlib.suppress(OSError):
                                key.fileobj.send(b"a")
            assert not left, f"{left} are still connected"
            assert len(good.seconds) - asked > 20
        # bodies that do not come are refused with the right status, and heads that do not are cut
        assert answers["body"] == answers["stalled body"] == {b"408"}, answers
        assert server.memory() - before < 100e6
    finally:
        for connection in connections:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _is_cut(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.alone
def test_more_connections_than_there_may_be():
    with serving(fake(connections=40)) as server, Good(server), contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(100)]
        time.sleep(1)
        cut = 0
        for connection in silent:
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                cut += _is_cut(connection)
        assert cut >= 50


@pytest.mark.alone
def test_bodies_that_are_held_are_bounded_together():
    part = b'--frontier\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + bytes(900_000)
    with serving(fake(held_bytes=10_000_000)) as server, contextlib.ExitStack() as stack:
        for _ in range(11):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            connection.sendall(HEAD + b"Content-Length: 2000000\r\n\r\n" + part)
        time.sleep(0.5)
        refused = httpx.post(f"{server.url}/v1/segment", **_send(GOOD + bytes(1_000_000)))
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        stack.close()
        time.sleep(0.5)
        assert httpx.post(f"{server.url}/v1/segment", **_send(GOOD + bytes(1_000_000))).status_code == 200


def _temporary(server: Server) -> list[str]:
    """Files of the server in its temporary directory, those without a name too."""
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    opened = []
    for each in descriptors.iterdir():
        with contextlib.suppress(OSError):
            opened.append(os.readlink(each))
    return [name for name in opened if name.startswith(str(server.tmp))] + [str(path) for path in server.tmp.iterdir()]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to see files without a name")
def test_nothing_is_left_of_uploads(server):
    def until(number: int) -> bool:
        for _ in range(100):
            if len(_temporary(server)) == number:
                return True
            time.sleep(0.05)
        return False

    assert until(0)
    part = b'--frontier\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + bytes(5_000_000)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(HEAD + b"Content-Length: 9000000\r\n\r\n" + part)
        assert until(1)  # a large one is on disk while it comes
    assert until(0)  # and gone when its client is
    large = GOOD + bytes(5_000_000)
    assert httpx.post(f"{server.url}/v1/segment", **_send(large)).status_code == 200
    assert httpx.post(f"{server.url}/v1/segment", **_send(large, prompt="\0")).status_code == 422
    assert httpx.post(f"{server.url}/v1/segment", **_send(bytes(5_000_000))).status_code == 422
    assert until(0)
