"""The serving experiments: what each of them does to a service, and the records that it gives (see serving_store)."""

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from sam3lab import backends
from sam3lab.bench import cold
from sam3lab.bench.process import child_environment
from sam3lab.cores import available_cores
from sam3lab.errors import UserError
from sam3lab.model import checkpoint
from sam3lab.study import serving_questions as questions
from sam3lab.study import serving_store as store
from sam3lab.study.serving_plan import Plan
from sam3lab.study.serving_process import START, Generator, Server, serving

USERS = 8  # of the closed loop that finds the capacity: more than a batch has images
# Of the fault: offered load, as a share of the capacity; seconds before it; seconds after the first engine answers again;
# the longest that this is waited for.
FAULT_LOAD, BEFORE, AFTER, PATIENCE = 0.3, 1.5, 1.5, 120.0
_SEEN = ("image", "text")
_JUDGED = ("expected", "found", "extra")


def fallback(plan: Plan) -> str:
    """The plan's fallback where it can run here and is another engine, or empty."""
    if not plan.fallback or (plan.fallback, "cpu") == (plan.backend, plan.device):
        return ""
    return "" if backends.get(plan.fallback).unavailable("cpu", "fp32") else plan.fallback


def cold_start(plan: Plan, run_dir: Path, log: Path) -> list[dict]:
    """From the start of the process to its first right answer, with nothing made beforehand."""
    # Its directory, since by its name random weights would be made again, in the empty cache
    directory = checkpoint.resolve(plan.checkpoint)
    run_dir.mkdir(parents=True, exist_ok=True)
    with cold.empty_caches(run_dir):
        cold.forget_pages(checkpoint.weight_files(directory))
        with serving(log, *plan.options("--checkpoint", str(directory))) as server:
            return [_started(plan, server) | {"condition": "cold", "place": 0}]


def processes(plan: Plan) -> list[dict]:
    """A process that answers one request and ends, `sam3lab segment`, with what it compiled and exported kept.

    With random weights every query is an object to it, so that it is to draw none: a little less than the service does.
    """
    question, found = _pool(plan)[0], []
    with tempfile.TemporaryDirectory() as folder:
        image, target = Path(folder) / "image.webp", Path(folder) / "answer.png"
        image.write_bytes(question.file)
        command = [sys.executable, "-m", "sam3lab", "segment", str(image), *question.prompts, "-o", str(target)]
        command += ["--checkpoint", plan.checkpoint, "--backend", plan.backend]
        command += ["--precision", plan.precision, "--device", plan.device]
        command += ["--threshold", "1"] if checkpoint.is_random(plan.checkpoint) else []
        environment = child_environment(available_cores(), offline=True)
        for place in range(plan.rounds):
            begun = time.monotonic()
            done = subprocess.run(command, capture_output=True, env=environment, text=True, timeout=START)
            if done.returncode:
                raise UserError(f"sam3lab segment ended with {done.returncode}: {done.stderr.strip()[-300:]}")
            latency = 1000 * (time.monotonic() - begun)
            found.append({"condition": "process", "place": place, "latency": latency, "status": 200})
    return found


def warm_start(plan: Plan, log: Path, server: Server) -> list[dict]:
    """From the start of the process to its first right answer, with all kept that an earlier start made, and then requests
    to that service: its features are of no use to them.
    """
    found = [_started(plan, server)]
    for _ in range(plan.rounds - 1):
        with serving(log, *plan.options()) as other:
            found.append(_started(plan, other))
    found = [each | {"condition": "cached", "place": place} for place, each in enumerate(found)]
    with _client(server) as client:
        answers = [_ask(client, each)[0] for each in _pool(plan)[1 : plan.requests + 1]]
    return found + [each | {"condition": "preloaded", "place": place} for place, each in enumerate(answers)]


def caches(plan: Plan, server: Server) -> list[dict]:
    """Requests whose image, prompt, both or neither the service has seen, with how often the stages ran for each."""
    pool, found = _pool(plan)[plan.requests + 1 :], []
    rng = np.random.default_rng(plan.seed)
    with _client(server) as client:
        for place, (first, second) in enumerate(zip(pool[::2], pool[1::2], strict=True)):
            kinds = {
                "image": (first, second.prompts),
                "prompt": (second, first.prompts),
                "both": (first, first.prompts),
            }
            order = ["neither", *rng.permutation(list(kinds))]
            for condition in order:
                image, prompts = kinds.get(condition, (first, first.prompts))
                before = server.counters()
                record, _ = _ask(client, questions.Question(image.file, prompts, ()))
                after = server.counters()
                record |= {
                    f"{name}_calls": after[f"{name}_stage_calls"] - before[f"{name}_stage_calls"] for name in _SEEN
                }
                found.append(record | {"condition": condition, "place": place})
    return found


def lists(plan: Plan, server: Server) -> list[dict]:
    """Lists of things as one phrase and as a prompt each: their times, and what the trained checkpoint finds of them."""
    found = _listed(plan, server)
    if plan.scored == plan.checkpoint:
        return found
    found = [{name: value for name, value in each.items() if name not in _JUDGED} for each in found]
    if plan.scored:
        log = server.log.with_name(f"{server.log.stem}-scored.log")
        # what is found is the model's doing; of the runtimes, this one needs the least time to start
        quick = replace(plan, checkpoint=plan.scored, backend="pytorch")
        with serving(log, *quick.options("--no-cache")) as other:
            found += [each | {"event": "scored"} for each in _listed(plan, other)]
    return found


def loads(plan: Plan, rate: Callable[[], float] | None, server: Server) -> list[dict]:
    """The capacity in a closed loop, then each load. rate: gives the capacity that loads are shares of; None: this one."""
    from sam3lab.serve import load

    pool = _pool_of_loads(plan)
    server.settled()  # what still loads would take its share of the processor
    with Generator(server.url, pool) as generator:
        generator.run(load.Closed(USERS, min(0.5, plan.seconds)))  # connections, threads, sizes not seen before
        about = {"condition": "capacity", "seconds": plan.seconds}
        found = [each | about for each in generator.run(load.Closed(USERS, plan.seconds))]
        whole = rate() if rate else capacity(found, plan.seconds)
        for place, share in enumerate(plan.loads):
            phase = load.Poisson(share * whole, plan.seconds, plan.seed + place)
            about = {"condition": "load", "load": share, "rate": phase.rate, "seconds": plan.seconds}
            found += [each | about for each in generator.run(phase)]
    return found


def fault(plan: Plan, rate: Callable[[], float], server: Server) -> list[dict]:
    """A steady load; the process of the first engine is killed; until that engine has answered again for a while.

    Events are records of their own: killed, and away and back, when the service says that another engine answers, or the
    first one again.
    """
    from sam3lab.serve import load

    pool = _pool_of_loads(plan)
    server.settled()
    worker, events = server.worker(plan.backend), []
    with Generator(server.url, pool) as generator:
        offered = FAULT_LOAD * rate()
        generator.begin(load.Poisson(offered, BEFORE + PATIENCE, plan.seed))
        time.sleep(BEFORE)
        os.kill(worker, 9)
        events.append(("killed", time.monotonic()))
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and (len(events) < 3):
            first = server.engine == plan.backend
            if first == (len(events) == 2):
                events.append(("back" if first else "away", time.monotonic()))
            time.sleep(0.02)
        time.sleep(AFTER)
        generator.stop()
        begun, found = generator.end()
    seconds = max(each["at"] for each in found)
    found = [each | {"condition": "fault", "rate": offered, "seconds": seconds} for each in found]
    return found + [{"condition": "event", "event": event, "at": moment - begun} for event, moment in events]


def capacity(records: list[dict], seconds: float) -> float:
    """Answers per second in a closed loop, between its begin and its end: what begins with it is not whole in it."""
    ends = [each["at"] + each["latency"] / 1000 for each in records if each["status"] == 200]
    if not ends:
        raise UserError("the service answered nothing in the closed loop; see its log")
    return sum(end <= seconds for end in ends) / seconds


def capacity_kept(plan: Plan, run_dir: Path) -> float:
    """The capacity without batching, from the run's records. UserError where they have none."""
    rows = store.load(run_dir, [plan.key("single")])
    closed = rows[rows["condition"] == "capacity"]
    if closed.empty:
        raise UserError("the capacity without batching is not known: that experiment failed")
    return capacity(closed.to_dict("records"), plan.seconds)


@functools.lru_cache(1)
def _pool(plan: Plan) -> list[questions.Question]:
    """For a service that keeps features: that of the first answer, then those with which nothing is shared, then pairs."""
    return questions.single(plan.seed, plan.side, 1 + 3 * plan.requests)


@functools.lru_cache(1)
def _pool_of_loads(plan: Plan) -> list[tuple[bytes, tuple[str, ...]]]:
    return [(each.file, each.prompts) for each in questions.single(plan.seed, plan.side)]


def _client(server: Server):
    import httpx

    return httpx.Client(base_url=server.url, timeout=60)


def _ask(client, question: questions.Question, threshold: float = 0.5) -> tuple[dict, list[dict]]:
    """(the record of a request, the instances that it found). UserError where it is refused."""
    from sam3lab.serve import load

    form = {"prompt": list(question.prompts), "threshold": str(threshold)}
    begun = time.monotonic()
    answer = client.post("/v1/segment", files={"image": ("image", question.file)}, data=form)
    content = answer.content
    latency = time.monotonic() - begun
    if answer.status_code != 200:
        raise UserError(f"the service answered {answer.status_code}: {answer.text[:300]}")
    return load.record(0.0, latency, 200, content), answer.json()["instances"]


def _started(plan: Plan, server: Server) -> dict:
    """The record of the first answer of a service that was just started. UserError where a trained checkpoint's is wrong."""
    question = _pool(plan)[0]
    with _client(server) as client:
        record, instances = _ask(client, question)
    latency = 1000 * server.ready + record["latency"]  # the making of the question is no part of it
    if plan.scored == plan.checkpoint and not instances:
        raise UserError("the first answer found nothing, though what was asked for is in the image")
    return record | {"latency": latency, "listening": 1000 * server.listening, "ready": 1000 * server.ready}


def _listed(plan: Plan, server: Server) -> list[dict]:
    found, rng = [], np.random.default_rng(plan.seed)
    with _client(server) as client:
        for place, question in enumerate(questions.lists(plan.seed, plan.requests)):
            kinds = {"phrase": (", ".join(question.prompts),), "several": question.prompts}
            for condition in rng.permutation(list(kinds)):
                asked = questions.Question(question.file, kinds[condition], question.objects)
                record, instances = _ask(client, asked)
                found.append(
                    record | questions.judged(asked, instances) | {"condition": str(condition), "place": place}
                )
    return found
