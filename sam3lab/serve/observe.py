"""What is known of the service from outside: a line a request in the log, and Prometheus' metrics."""

import logging
import re
import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sam3lab.serve import problems
from sam3lab.serve.tally import OF_ENGINES, OF_SERVICE

PATHS = ("/v1/segment", "/healthz", "/readyz", "/metrics", "/openapi.json")
STAGES = ("decode", "queue", "preprocess", "image", "text", "detect", "download", "postprocess", "total")
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

log = logging.getLogger("sam3lab.serve")


class Metrics:
    """The metrics of one application. Every label's values are from a set that requests cannot enlarge."""

    def __init__(self, service):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "sam3lab_requests", "requests by path and how they ended", ("path", "outcome"), registry=self.registry
        )
        self.stages = Histogram(
            "sam3lab_stage_seconds",
            "time of answered requests by stage; those from image to download are of the whole batch",
            ("stage",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        for outcome in problems.OUTCOMES:
            self.requests.labels("/v1/segment", outcome)
        for stage in STAGES:
            self.stages.labels(stage)
        ProcessCollector(registry=self.registry)
        self.registry.register(_ServiceCollector(service))

    def answered(self, milliseconds: Mapping[str, float]) -> None:
        """Count an answer's stages."""
        for stage, value in milliseconds.items():
            if stage in STAGES:
                self.stages.labels(stage).observe(value / 1000)


class _ServiceCollector:
    """What the service says of itself at the moment of the scrape."""

    def __init__(self, service):
        self.service = service

    def collect(self) -> Iterator[Metric]:
        for name, value in sorted(self.service.counters().items()):
            sentence = OF_SERVICE.get(name) or OF_ENGINES.get(name, name)
            yield CounterMetricFamily(f"sam3lab_service_{_metric(name)}", sentence, value=value)
        status = self.service.status()
        for name, sentence in OF_ENGINES.items():
            counts = CounterMetricFamily(f"sam3lab_engine_{name}", sentence, labels=["engine"])
            for engine, each in status["engines"].items():
                counts.add_metric([engine], each.get("counts", {}).get(name, 0))
            yield counts
        yield GaugeMetricFamily("sam3lab_ready", "1 where a request would be taken", value=bool(status["ready"]))
        yield GaugeMetricFamily("sam3lab_queued", "requests that wait for an engine", value=status["queued"])
        answers = GaugeMetricFamily("sam3lab_engine_answers", "1 for the engine that answers now", labels=["engine"])
        states = GaugeMetricFamily("sam3lab_engine_state", "1 for the engine's state", labels=["engine", "state"])
        for name in self.service.engines:
            answers.add_metric([name], name == status["engine"])
            state = status["engines"].get(name, {}).get("state")
            if state is not None:
                states.add_metric([name, str(state)], 1)
        yield from (answers, states)


def _metric(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_").lower()


class Observe:
    """ASGI middleware: counts each request and logs method, path, status and milliseconds, and nothing that the client
    wrote; a path that the API does not have is the page's.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begin, status = time.perf_counter(), 499

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"] if scope["path"] in PATHS else "page"
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
        try:
            await self.app(scope, receive, watched)
        except Exception:
            status = 500
            raise
        finally:
            outcome = problems.outcome(scope, status)
            self.metrics.requests.labels(path, outcome).inc()
            log.info("%s %s %d %s %.0f ms", method, path, status, outcome, (time.perf_counter() - begin) * 1000)
