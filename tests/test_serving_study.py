"""What serving costs and gains: the load that is made, the experiments, what is kept of them, and what is said."""

import argparse
import contextlib
import dataclasses
import http.server
import io
import json
import os
import subprocess
import threading
import time

import numpy as np
import papermill
import pytest
from scipy import stats

from sam3lab import paths
from sam3lab.bench import results
from sam3lab.errors import UserError
from sam3lab.model import checkpoint
from sam3lab.serve import cli, load
from sam3lab.study import claims, judging, numbers, presets, run, serving, serving_experiments, serving_run
from sam3lab.study import serving_numbers as estimates
from sam3lab.study import serving_questions as questions
from sam3lab.study import serving_store as store
from sam3lab.study.serving_plan import EXPERIMENTS, Plan
from sam3lab.study.serving_process import Generator
from sam3lab.study.serving_process import serving as running
from tests import study_samples

PLAN = Plan(
    "sam3-nano", 252, "cpu", "tests.serve_faults:Quick", "fp32", "tests.serve_faults:Steady", "", (0.5,), 1.0, 2, 1, 0
)
REPRODUCED, CONTRADICTED, UNTESTED = claims.VERDICTS


# Load


def test_arrivals_are_a_seeded_poisson_process_of_the_rate_asked_for():
    phase = load.Poisson(50.0, 200.0, 7)
    times = np.array(load.arrivals(phase))
    assert load.arrivals(phase) == times.tolist() != load.arrivals(load.Poisson(50.0, 200.0, 8))
    assert abs(len(times) - 10_000) < 4 * 100  # four standard deviations of a Poisson count
    assert times.min() > 0 and times.max() < 200 and (np.diff(times) > 0).all()
    gaps = np.diff(times)
    assert stats.kstest(gaps, "expon", (0, 1 / 50)).pvalue > 1e-3
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.05  # one tells nothing of the next


def test_an_answer_is_kept_with_its_stages_and_a_refusal_with_its_status():
    answer = {"milliseconds": {"queue": 1.0, "image": 2.0, "other": 9.0}, "engine": "e", "reason": "", "batch": 3}
    answer |= {"cached": {"prompts": 1, "image": True}, "instances": []}
    known = load.record(0.5, 0.02, 200, json.dumps(answer).encode())
    assert known == {"at": 0.5, "latency": 20.0, "status": 200, "queue": 1.0, "image": 2.0, "engine": "e"} | {
        "reason": "", "batch": 3, "cached_prompts": 1, "cached_image": True
    }  # fmt: skip
    assert load.record(0.5, 0.02, 429, b"{}") == {"at": 0.5, "latency": 20.0, "status": 429}


@pytest.fixture
def slow_server():
    """Answers 429 after 0.3 s; `most`: the most requests that it had at a time."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        now = most = 0
        lock = threading.Lock()
        bodies: list[bytes] = []  # noqa: RUF012

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with Handler.lock:
                Handler.bodies.append(body)
                Handler.now += 1
                Handler.most = max(Handler.most, Handler.now)
            time.sleep(0.3)
            with Handler.lock:
                Handler.now -= 1
            self.send_response(429)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.alone
def test_slow_answers_do_not_thin_the_arrivals_and_a_closed_loop_waits_for_them(slow_server):
    handler, url = slow_server
    with Generator(url, [(b"image-1", ("cat",)), (b"image-2", ("a dog", "cat"))]) as generator:
        phase = load.Poisson(60.0, 1.5, 3)
        due, records = load.arrivals(phase), generator.run(phase)
        assert [each["at"] for each in records] == pytest.approx(due, abs=1e-6)
        assert {each["status"] for each in records} == {429} and handler.most > 8
        assert 300 <= np.median([each["latency"] for each in records]) < 450
        assert {b"image-1" in body for body in handler.bodies} == {True, False}
        assert all((b"a dog" in body) == (b"image-2" in body) for body in handler.bodies)
        handler.most = 0
        closed = generator.run(load.Closed(3, 1.0))
        assert handler.most == 3 and 9 <= len(closed) <= 12
        generator.begin(load.Poisson(20.0, 60.0, 3))
        time.sleep(0.8)
        generator.stop()
        begun, stopped = generator.end()
        assert time.monotonic() - begun < 5 and 3 < len(stopped) < 40


# What is asked


def test_single_questions_are_all_different_and_their_objects_are_known():
    asked = questions.single(0, 252)
    assert len({each.file for each in asked}) == len({each.prompts for each in asked}) == questions.IMAGES
    assert questions.single(0, 252, 5) == asked[:5] != questions.single(1, 252, 5)
    for each in asked[:5]:
        seen = [{"segmentation": segmentation} for segmentation in each.objects]
        assert questions.judged(each, seen) == {"expected": len(seen), "found": len(seen), "extra": 0}
        assert questions.judged(each, seen[:1] * 2) == {"expected": len(seen), "found": 1, "extra": 1}
        assert questions.judged(each, []) == {"expected": len(seen), "found": 0, "extra": 0}
    with pytest.raises(UserError, match="1000 images"):
        questions.single(0, 252, 1000)


def test_images_are_enlarged_to_what_the_model_takes():
    from PIL import Image

    (small,), (large,) = questions.single(0, 252, 1), questions.single(0, 1008, 1)
    assert small.prompts == large.prompts
    assert Image.open(io.BytesIO(small.file)).size == (252, 252)
    assert Image.open(io.BytesIO(large.file)).size == (1008, 1008)


def test_a_list_names_three_things_that_are_there():
    for each in questions.lists(0, 10):
        assert len(set(each.prompts)) == questions.LISTED <= len(each.objects)
        assert all(len(prompt.split()) == 2 and "," not in prompt for prompt in each.prompts)


# The experiments, on a backend that takes a millisecond a stage


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("serving")
    serving_run.run(PLAN, run_dir)
    return run_dir


@pytest.mark.alone
def test_every_experiment_gives_its_records(measured):
    rows = store.load(measured, PLAN.keys)
    assert rows[rows["error"] != ""][["experiment", "error"]].values.tolist() == []
    assert set(rows["experiment"]) == set(EXPERIMENTS)
    counts = rows.groupby(["experiment", "condition"]).size()
    for name, condition, count in (("cold", "cold", 1), ("process", "process", 1), ("start", "cached", 1)):
        assert counts[name, condition] == count
    assert all(counts["caches", condition] == PLAN.requests for condition in estimates.CACHED)
    assert counts["start", "preloaded"] == counts["list", "phrase"] == counts["list", "several"] == PLAN.requests
    start = rows[rows["condition"] == "cached"].iloc[0]
    assert 0 < start["listening"] < start["ready"] < start["latency"]


@pytest.mark.alone
def test_a_cached_prompt_skips_the_text_stage_and_a_cached_image_the_image_stage(measured):
    rows = store.load(measured, PLAN.keys)
    assert estimates.calls(rows, "text") == {"neither": 2, "image": 2, "prompt": 0, "both": 0}
    assert estimates.calls(rows, "image") == {"neither": 2, "image": 0, "prompt": 2, "both": 0}
    cached = rows[rows["experiment"] == "caches"].groupby("condition")[["cached_prompts", "cached_image"]].mean()
    assert cached["cached_prompts"].to_dict() == {"neither": 0, "image": 0, "prompt": 1, "both": 1}
    assert cached["cached_image"].to_dict() == {"neither": 0, "image": 1, "prompt": 0, "both": 1}


@pytest.mark.alone
def test_under_load_caches_are_off_and_batches_only_where_they_are_asked_for(measured):
    rows = store.load(measured, PLAN.keys)
    loads = rows[rows["condition"].isin(["load", "capacity"])]
    assert (loads["status"] == 200).mean() > 0.9
    assert loads["cached_prompts"].max() == loads["cached_image"].max() == 0
    batches = loads.groupby("experiment")["batch"].max()
    assert batches["single"] == 1 < batches["batched"]
    offered = loads[loads["condition"] == "load"].groupby("experiment")["rate"].first()
    closed = loads[(loads["condition"] == "capacity") & (loads["experiment"] == "single")]
    whole = serving_experiments.capacity(closed.to_dict("records"), PLAN.seconds)
    assert offered.tolist() == [0.5 * whole] * 2  # both alike, whatever batching makes of the capacity


@pytest.mark.alone
def test_a_killed_engine_is_replaced_and_comes_back(measured):
    (fault,) = estimates.faults(store.load(measured, PLAN.keys)).values()
    assert fault["moved"] > 0 and fault["answered"] > 90 and fault["lost"] <= 4
    assert 0 <= fault["away"] < 2 < fault["back"] < 30


@pytest.mark.alone
def test_what_is_measured_is_not_measured_again_and_what_failed_is(measured, capsys):
    capsys.readouterr()
    path = measured / store.FOLDER / f"{PLAN.key('process')}.json"
    known = {each.name: each.read_bytes() for each in path.parent.glob("*.json")}
    serving_run.run(PLAN, measured)
    assert capsys.readouterr().out == ""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"records": [], "error": "it broke"}))
    serving_run.run(PLAN, measured)
    assert capsys.readouterr().out.splitlines() == [f"serving {PLAN.backend} fp32: process"]
    assert json.loads(path.read_text())["error"] == "" and {each.name for each in path.parent.glob("*.json")} == set(
        known
    )
    assert all((path.parent / name).read_bytes() == data for name, data in known.items() if name != path.name)


def test_a_service_that_does_not_start_is_told_and_leaves_nothing_behind(tmp_path):
    options = ("--backend", "nothing", "--fallback", "none")
    with pytest.raises(UserError, match=r"did not start: .*nothing"), running(tmp_path / "log", *options):
        raise AssertionError("it runs")


def test_experiments_whose_service_does_not_start_are_kept_with_the_reason(tmp_path):
    plan = Plan("sam3-nano", 252, "cpu", "nothing", "fp32", "", "", (0.5,), 1.0, 1, 1, 0)
    serving_run._sitting(plan, tmp_path, {"caches": None, "start": None}, plan.options(), tmp_path / "log")
    rows = store.load(tmp_path, plan.keys)
    assert rows["experiment"].tolist() == ["caches", "start"] and rows["error"].str.contains("nothing").all()
    assert not store.is_done(tmp_path, plan.key("caches"))


# What is kept


def test_an_experiment_is_known_by_what_decides_it_and_by_nothing_else():
    other = {**PLAN.__dict__, "loads": (0.5, 1.0)}
    changed = {name for name in EXPERIMENTS if Plan(**other).key(name) != PLAN.key(name)}
    assert changed == {"single", "batched"}
    assert len({Plan(**PLAN.__dict__ | {"seed": 1}).key(name) for name in EXPERIMENTS} & set(PLAN.keys)) == 0


def test_a_failure_is_kept_with_its_reason_and_a_broken_file_counts_as_none(tmp_path):
    def fails():
        raise OSError("no space")

    store.keep(tmp_path, "fault.quick.fp32-0", {}, fails)
    store.keep(tmp_path, "list.quick.fp32-0", {}, lambda: [{"condition": "phrase", "status": 200, "latency": 2.5}])
    (tmp_path / store.FOLDER / "cold.quick.fp32-0.json").write_text('{"key": ')
    assert store.is_done(tmp_path, "list.quick.fp32-0")
    assert not store.is_done(tmp_path, "fault.quick.fp32-0") and not store.is_done(tmp_path, "cold.quick.fp32-0")
    rows = store.load(tmp_path, ["fault.quick.fp32-0", "list.quick.fp32-0", "cold.quick.fp32-0"])
    assert rows["error"].tolist() == ["OSError: no space", ""] and rows["latency"].tolist()[1] == 2.5
    assert rows["experiment"].tolist() == ["fault", "list"] and set(rows["precision"]) == {"fp32"}
    assert store.load(tmp_path, ["list.quick.fp32-0"])["key"].unique().tolist() == ["list.quick.fp32-0"]


def test_published_records_are_the_runs_and_their_bytes_depend_on_it_alone(tmp_path):
    given = parameters("cpu")
    study_samples.store_serving(tmp_path / "run", given, [("onnxruntime", "fp32")])
    for name in ("one", "two"):
        store.consolidate(tmp_path / "run", tmp_path / name)
    files = [(tmp_path / name / store.PUBLISHED).read_bytes() for name in ("one", "two")]
    assert files[0] == files[1] and len(files[0]) < 400_000
    (tmp_path / "run" / store.PUBLISHED).unlink()
    keys = serving.plan(given, 252, "sam3-nano", ("onnxruntime", "fp32")).keys
    own, published = (store.load(tmp_path / name, keys) for name in ("run", "one"))
    assert own.equals(published) and len(own) > 500
    store.consolidate(tmp_path, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_study_publishes_them_with_the_rest(tmp_path, monkeypatch):
    study_samples.store_serving(tmp_path / "run", parameters("cpu"), [("onnxruntime", "fp32")])
    (tmp_path / "run" / store.PUBLISHED).unlink()
    (tmp_path / "run" / "facts.json").write_text("{}")
    monkeypatch.setattr(results, "consolidate", lambda run_dir, directory: directory.mkdir())
    run.publish_results(tmp_path / "run", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {store.PUBLISHED, "facts.json"}


# Estimates


def parameters(device):
    return presets.resolved("08_serving", run.defaults("08_serving") | {"device": device}, {})


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    directory, given = tmp_path_factory.mktemp("made-up"), parameters("cpu")
    study_samples.store_serving(directory, given, [("onnxruntime", "fp32")])
    return store.load(directory, serving.plan(given, 252, "sam3-nano", ("onnxruntime", "fp32")).keys)


ABOUT = {
    "backend": "b",
    "precision": "fp32",
    "experiment": "single",
    "condition": "load",
    "rate": 10.0,
    "seconds": 10.0,
}


def test_percentiles_are_those_of_the_answers_and_are_not_told_of_few():
    import pandas as pd

    lines = [ABOUT | {"load": 0.5, "at": at / 10, "status": 200, "latency": float(at), "batch": 1} for at in range(100)]
    lines += [ABOUT | {"load": 1.0, "at": at / 10, "status": 200, "latency": 5.0, "batch": 1} for at in range(39)]
    lines += [ABOUT | {"load": 1.0, "at": 5.0, "status": 429, "latency": 1.0}] * 39
    lines += [
        ABOUT | {"load": 1.0, "at": 5.0, "status": status, "latency": 30_000.0} for status in [500] * 12 + [503] * 10
    ]
    half, whole = estimates.curve(pd.DataFrame(lines), 0.0495).to_dict("records")
    assert half["p50"].value == 49.5 and half["p95"].value == pytest.approx(94.05)
    assert half["in_time"] == 0.5 and (half["asked"], half["answered"]) == (100, 100)
    assert half["refused"] == half["failed"] == 0
    assert whole["p95"] is None and whole["p50"].value == 5.0
    # what came too late, a 503, was not refused at once
    assert (whole["refused"], whole["failed"], whole["in_time"]) == (39.0, 22.0, 0.39)
    assert (whole["asked"], whole["answered"]) == (100, 39)
    assert (whole["load"], whole["share"], whole["rate"]) == (1.0, 1.0, 10.0)


def test_what_was_offered_is_counted_since_arrivals_are_random():
    import pandas as pd

    lines = [ABOUT | {"load": 0.5, "at": at / 8, "status": 200, "latency": 5.0, "batch": 1} for at in range(80)]
    (line,) = estimates.curve(pd.DataFrame(lines), 1.0).to_dict("records")
    assert (line["load"], line["share"], line["rate"], line["in_time"]) == (0.5, 0.4, 8.0, 1.0)


@pytest.mark.parametrize(
    ("load", "count", "median", "p95"),
    [(0.5, 60, True, False), (0.5, 199, True, False), (0.5, 200, True, True), (1.0, 300, False, False)],
)
def test_what_few_requests_or_a_growing_queue_cannot_tell_has_no_interval(load, count, median, p95):
    import pandas as pd

    latencies = np.random.default_rng(0).lognormal(3, 0.3, count)
    lines = [
        ABOUT | {"load": load, "at": 10 * place / count, "status": 200, "latency": latency, "batch": 1}
        for place, latency in enumerate(latencies)
    ]
    (found,) = estimates.curve(pd.DataFrame(lines), 1.0).to_dict("records")
    # blocks that differ by a request have the same weight
    assert found["p50"].value == pytest.approx(np.median(latencies), rel=2e-4)
    assert found["p95"].value == pytest.approx(np.quantile(latencies, 0.95), rel=2e-4)
    assert [not np.isnan(found[name].low) for name in ("p50", "p95")] == [median, p95]
    for name in ("p50", "p95"):
        assert np.isnan(found[name].low) or found[name].low < found[name].value < found[name].high


def test_starts_are_rounds_and_one_start_has_no_interval(made_up):
    (cold,) = estimates.medians(made_up, "cold").to_dict("records")
    assert np.isnan(cold["low"]) and np.isnan(cold["high"]) and cold["value"] > 0
    (ratio,) = estimates.ratios(made_up, "cold", "preloaded").to_dict("records")
    assert np.isnan(ratio["low"]) and ratio["verdict"] == "ambiguous"
    (several,) = estimates.medians(made_up, "process").to_dict("records")
    assert several["low"] < several["value"] < several["high"]
    (frame,) = estimates.timed(made_up, "preloaded").values()
    assert frame["round"].nunique() == 5 and frame["round"].is_monotonic_increasing


def test_intervals_know_that_what_is_near_in_time_is_alike():
    rng = np.random.default_rng(0)
    steady = np.sort(rng.uniform(0, 10, 1000))
    bursts = np.concatenate([rng.uniform(0, 2, 800), rng.uniform(2, 10, 200)])
    even, uneven = estimates.rate(steady, 10.0), estimates.rate(bursts, 10.0)
    assert even.value == uneven.value == 100 and even.low < 100 < even.high
    assert uneven.high / uneven.low > 10 * even.high / even.low and uneven.low > 0
    assert estimates.rate([], 10.0).value == 0


def test_ratios_are_of_medians_with_their_words(made_up):
    (process,) = estimates.ratios(made_up, "process", "preloaded").to_dict("records")
    assert process["value"] == pytest.approx(125, rel=0.1) and process["verdict"] == "slower"
    (both,) = estimates.ratios(made_up, "both", "neither").to_dict("records")
    assert both["value"] == pytest.approx(0.3, rel=0.05) and both["verdict"] == "faster"
    assert estimates.ratios(made_up, "nothing", "neither").empty
    found = estimates.found_of_lists(made_up)
    assert found["phrase"]["share"] == pytest.approx(200 / 3) and found["several"] == {
        "share": 100,
        "extra": 0,
        "expected": 60,
    }
    assert estimates.faults(made_up)["onnxruntime", "fp32"] == {"requests": 180, "answered": pytest.approx(100 * 179 / 180)} | {
        "refused": 0, "lost": 1, "moved": 89, "away": pytest.approx(0.1), "back": 6.0
    }  # fmt: skip


# What is said


def rendered(tmp_path, device, **more):
    cases = study_samples.cases() if device == "cpu" else study_samples.gpu_cases()
    study_samples.store(tmp_path / "stored", cases, notebooks=["08_serving"], **more)
    given = {"measure": False, "results": str(tmp_path / "stored"), "run": str(tmp_path / "run"), "device": device}
    study_samples.execute({"08_serving": given}, tmp_path)
    return {key: each["value"] for key, each in numbers.load(tmp_path / "run" / "numbers.json").items()}


def test_the_notebook_is_rendered_from_stored_records(tmp_path):
    known = rendered(tmp_path, "cpu")
    assert known["serving.times.process.onnxruntime.fp32"] == pytest.approx(125, rel=0.1)
    assert known["serving.batching.onnxruntime.fp32"] == pytest.approx(1.6, rel=0.05)
    assert known["serving.calls.text.cached"] == 0 and known["serving.calls.text.new"] == 40
    assert known["serving.cached.both.onnxruntime.fp32.words"] == "faster than"
    assert known["serving.list.phrase"] == pytest.approx(200 / 3) and known["serving.fault.lost.onnxruntime.fp32"] == 1
    units = {key: each["unit"] for key, each in numbers.load(tmp_path / "run" / "numbers.json").items()}
    assert units["serving.goodput.onnxruntime.fp32"] == "× an idle request's rate"
    assert units["serving.half.onnxruntime.fp32"] == "× an idle request's time"
    assert (
        known["serving.half.onnxruntime.fp32"]
        == pytest.approx(1, rel=0.1)
        == known["serving.half.p50.single.onnxruntime.fp32"]
    )
    assert known["serving.capacity.single.onnxruntime.fp32"] == pytest.approx(1, rel=0.1)  # 50 of 20 ms a second
    assert known["serving.goodput.onnxruntime.fp32"] == pytest.approx(1.5, rel=0.1)
    assert known["serving.count.cold.onnxruntime.fp32"] == "1 start"
    assert known["serving.count.process.onnxruntime.fp32"] == "2 processes"
    assert known["serving.fault.trial.onnxruntime.fp32"] == "5 s" and known["serving.fault.load"] == "30%"
    assert not [
        key for key, unit in units.items() if unit == "ms" or "seconds" in key
    ]  # a shared processor's: ratios alone
    names = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert names == {"serving_costs", "serving_load", "serving_fault"}
    heads = (tmp_path / "run" / "tables" / "serving_load.csv").read_text().splitlines()[0]
    assert '"Offered, of capacity","In time, of capacity","p50, × idle"' in heads and '"p95, × idle"' in heads
    assert {path.stem for path in (tmp_path / "run" / "tables").iterdir()} >= {"serving_load", "serving_lists"}


def test_on_a_gpu_times_are_told_as_they_are(tmp_path):
    known = rendered(tmp_path, "cuda")
    assert known["serving.idle.pytorch-compiled.fp16"] == pytest.approx(20 * 0.6, rel=0.1)
    assert known["serving.seconds.cold.onnxruntime.fp16"] == pytest.approx(30 * 0.55, rel=0.1)
    assert known["serving.capacity.single.onnxruntime.fp16"] == pytest.approx(50 / 0.55, rel=0.1)
    assert known["serving.half.pytorch-compiled.fp16"] == pytest.approx(20 * 0.6, rel=0.2)


def test_it_runs_in_a_kernel_and_what_nobody_measured_is_refused(tmp_path):
    study_samples.store(tmp_path / "stored", study_samples.cases(), notebooks=["08_serving"])
    given = {"measure": False, "results": str(tmp_path / "stored"), "run": str(tmp_path / "run")}
    how = {"progress_bar": False, "kernel_name": "python3"}
    papermill.execute_notebook(paths.NOTEBOOKS / "08_serving.ipynb", tmp_path / "out.ipynb", given, **how)
    assert run.is_complete(tmp_path / "out.ipynb")
    with pytest.raises(UserError, match="holds no records of 08_serving"):
        study_samples.execute({"08_serving": given | {"seed": 3}}, tmp_path)


def test_what_fails_parity_is_not_compared_and_what_failed_is_told(tmp_path):
    known = rendered(tmp_path, "cpu", failed=("onnxruntime",))
    assert not [key for key in known if "onnxruntime" in key]
    given = parameters("cpu")
    study_samples.store(tmp_path / "stored", study_samples.cases(), notebooks=["08_serving"])
    study_samples.store_serving(
        tmp_path / "stored", given, [("onnxruntime", "fp32")], ("fault", "caches", "cold", "list")
    )
    scope = {"measure": False, "results": str(tmp_path / "stored"), "run": str(tmp_path / "other")}
    study_samples.execute({"08_serving": scope}, tmp_path)
    told = (tmp_path / "other" / "tables" / "serving_failures.csv").read_text()
    assert all(f"{name},it gave no records" in told for name in ("fault", "caches", "cold", "list"))
    known = numbers.load(tmp_path / "other" / "numbers.json")
    assert "serving.half.onnxruntime.fp32" in known and "serving.fault.back.onnxruntime.fp32" not in known


def test_without_an_idle_request_to_compare_with_ratios_are_not_told(tmp_path):
    given = parameters("cpu")
    study_samples.store(tmp_path / "stored", study_samples.cases(), notebooks=["08_serving"])
    study_samples.store_serving(tmp_path / "stored", given, [("onnxruntime", "fp32")], ("start",))
    scope = {"measure": False, "results": str(tmp_path / "stored"), "run": str(tmp_path / "run")}
    study_samples.execute({"08_serving": scope}, tmp_path)
    known = numbers.load(tmp_path / "run" / "numbers.json")
    assert not [key for key in known if key.startswith(("serving.half", "serving.capacity", "serving.times"))]
    assert "serving.fault.back.onnxruntime.fp32" in known and not list((tmp_path / "run").glob("figures/serving_[lf]*"))


def judged(known):
    setting = judging.Setting("cpu", "a CPU", "sam3-nano", 252, "fp32")
    return {each.claim.id: each for each in judging.judged(known, setting)}


def record(value, low, high):
    return numbers.number(estimates.Estimate(value, low, high), "×")


@pytest.mark.parametrize(("low", "verdict"), [(5.0, REPRODUCED), (0.9, UNTESTED)])
def test_preloading_is_judged_by_what_a_process_for_each_request_takes(low, verdict):
    found = judged({"serving.times.process.onnxruntime.fp32": record(20.0, low, 30.0)})["C1"]
    assert found.verdict == verdict and "ONNX Runtime: 20.0" in found.here


@pytest.mark.parametrize(("cached", "verdict"), [(0, REPRODUCED), (20, CONTRADICTED)])
def test_caching_is_judged_by_whether_the_stage_ran(cached, verdict):
    known = {"serving.calls.text.new": numbers.number(40), "serving.calls.text.cached": numbers.number(cached)}
    found = judged(known | {"serving.cached.prompt.onnxruntime.fp32": record(0.95, 0.9, 1.0)})["C2"]
    assert found.verdict == verdict and f"ran {cached} times" in found.why and "0.950" in found.here


def test_random_weights_are_held_to_a_few_candidates():
    trained, random = (dataclasses.replace(PLAN, checkpoint=name).options() for name in ("sam3-nano", "sam3"))
    assert "--candidates" not in trained
    assert int(random[random.index("--candidates") + 1]) < 200


def test_a_cold_start_makes_no_random_weights(tmp_path, monkeypatch):
    """They lie in a cache, which it empties."""
    monkeypatch.setenv("SAM3LAB_CACHE", str(tmp_path / "cache"))
    weights, asked = tmp_path / "weights", []
    weights.mkdir()
    (weights / "model.safetensors").touch()
    monkeypatch.setattr(checkpoint, "resolve", lambda name: weights)

    @contextlib.contextmanager
    def serves(log, *options):
        asked.append((cli.engines(_arguments(options))[0].checkpoint, os.environ["SAM3LAB_CACHE"]))
        yield

    monkeypatch.setattr(serving_experiments, "serving", serves)
    monkeypatch.setattr(serving_experiments, "_started", lambda plan, server: {"latency": 1.0})
    plan = dataclasses.replace(PLAN, checkpoint="sam3")
    (record,) = serving_experiments.cold_start(plan, tmp_path / "run", tmp_path / "log")
    assert record == {"latency": 1.0, "condition": "cold", "place": 0}
    ((name, cache),) = asked
    assert name == str(weights) and cache.startswith(str(tmp_path / "run"))


def _arguments(options):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(options)


def test_a_process_for_a_request_draws_no_mask_of_random_weights(monkeypatch):
    asked = []

    def ran(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", ran)
    for name in ("sam3-nano", "sam3"):
        serving_experiments.processes(dataclasses.replace(PLAN, checkpoint=name))
    trained, random = asked
    assert "--threshold" not in trained and random[random.index("--threshold") + 1] == "1"
