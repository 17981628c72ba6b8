"""A service in the test's own process that finds one box in the middle for each prompt, or says no as it is told."""

import concurrent.futures
import time

import numpy as np

from sam3lab.serve.request import Answer, Candidates, Request


class FakeService:
    """Looks like sam3lab.serve.service.Service. `refusal`: an exception to raise from now on; `seconds`: how long it takes."""

    engines = ("onnxruntime", "openvino")

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.refusal, self.ready, self.requests = seconds, None, True, []
        self._pool = concurrent.futures.ThreadPoolExecutor(4)

    def start(self) -> None:
        self.ready = True

    def close(self) -> None:
        self._pool.shutdown()

    def check_admission(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def submit(self, request: Request) -> "concurrent.futures.Future[Answer]":
        self.check_admission()
        self.requests.append(request)
        return self._pool.submit(self._answer, request)

    def status(self) -> dict:
        return {"ready": self.ready, "engine": self.engines[0], "reason": "", "queued": 0, "engines": {}}

    def counters(self) -> dict[str, float]:
        return {"text_cache_hits": 0.0, "image_cache_hits": 0.0}

    def _answer(self, request: Request) -> Answer:
        time.sleep(self.seconds)
        grid = np.full((2, 24, 24), -6, dtype=np.float16)
        grid[:, 6:18, 6:18] = 6
        boxes = np.array([[0.25, 0.25, 0.75, 0.75], [0.25, 0.25, 0.5, 0.5]], dtype=np.float32)
        found = Candidates(np.array([0.9, 0.3], dtype=np.float32), boxes, grid)
        times = {"queue": 0.1, "preprocess": 1.0, "image": 5.0, "text": 2.0, "detect": 3.0}
        size = request.photograph.shape[:2]
        name = request.engine or self.engines[0]
        return Answer(request.prompts, (found,) * len(request.prompts), size, name, "", times)
