import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sam3lab.bench import process, records, results, runner, statistics
from sam3lab.bench.case import Case, accuracy_case
from sam3lab.bench.progress import Progress
from sam3lab.bench.stages import MASKS
from sam3lab.errors import UserError
from tests.bench_run import REFERENCE, case, make_checkpoint, short

DRIVER = """
import sys
from tests.bench_run import case, short
checkpoint, run_dir, *backends = sys.argv[1:]
short([case(checkpoint, name) for name in backends], run_dir, rounds=3, min_samples=30, timeout=20)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def case_rounds(run_dir):
    """(case, round) of every mark, with its content."""
    return {(mark["case"], mark["round"]): mark for mark in records.marks(run_dir)}


def stamps(run_dir):
    return {path.name: path.stat().st_mtime_ns for path in (run_dir / "results").glob("*.parquet")}


def workers_of(run_dir):
    found = []
    for running in psutil.process_iter(["cmdline"]):
        if str(run_dir) in " ".join(running.info["cmdline"] or []) and "sam3lab.bench" in " ".join(
            running.info["cmdline"]
        ):
            found.append(running)
    return found


def drive(checkpoint, run_dir, *backends):
    command = [sys.executable, "-c", DRIVER, checkpoint, str(run_dir), *backends]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_killed_three_times_ends_like_an_unbroken_run(checkpoint, tmp_path):
    names = (REFERENCE, "tests.fakes:Wrong", "tests.fakes:Raises")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    unbroken = drive(checkpoint, whole, *names)
    assert unbroken.wait(60) == 0, unbroken.stderr.read()
    expected = set(case_rounds(whole))
    assert len(expected) == 3 * 3 + 1  # with the A/A twin; the one that raises is tried once

    rng = random.Random(os.urandom(8))
    finished = {}
    for _ in range(3):
        run = drive(checkpoint, broken, *names)
        wanted, deadline = len(finished) + rng.choice([1, 2]), time.monotonic() + 30
        while len(case_rounds(broken)) < min(wanted, len(expected) - 1) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.4))
        run.send_signal(signal.SIGKILL)
        assert run.wait(10) == -signal.SIGKILL
        gone = time.monotonic() + 5
        while workers_of(broken) and time.monotonic() < gone:
            time.sleep(0.02)
        assert not workers_of(broken)
        marks = case_rounds(broken)
        assert finished.items() <= marks.items()
        finished = marks
    assert 0 < len(finished) < len(expected)

    kept = stamps(broken)
    assert drive(checkpoint, broken, *names).wait(60) == 0
    marks = case_rounds(broken)
    assert set(marks) == expected
    assert finished.items() <= marks.items()
    assert {name: stamp for name, stamp in stamps(broken).items() if name in kept} == kept
    rows, other = results.load(broken), results.load(whole)
    key = ["case", "round", "stage", "phase", "metric", "sample"]
    assert not rows.duplicated(key).any()
    verdicts = [r.groupby("case")["parity"].first().to_dict() for r in (rows, other)]
    assert verdicts[0] == verdicts[1] and set(verdicts[0].values()) == {"reference", "passed", "failed"}


def test_a_finished_run_is_not_measured_again_and_a_new_case_is(checkpoint, tmp_path):
    short([case(checkpoint)], tmp_path, rounds=2)
    before = stamps(tmp_path)
    assert len(before) == 4
    again = short([case(checkpoint)], tmp_path, rounds=2)
    assert stamps(tmp_path) == before and again["case"].nunique() == 2
    more = short([case(checkpoint), case(checkpoint, "tests.fakes:Other")], tmp_path, rounds=3)
    after = stamps(tmp_path)
    assert before.items() <= after.items() and len(after) == 9
    assert list(more["label"].unique())[1].count("tests.fakes:Other")


def test_a_damaged_or_lost_file_is_made_anew(checkpoint, tmp_path):
    short([case(checkpoint)], tmp_path)
    own, twin = sorted((tmp_path / "results").glob("*.parquet"))
    own.write_bytes(own.read_bytes()[:-1])
    (tmp_path / "outputs" / f"{twin.name[:12]}.npz").unlink()
    (tmp_path / "parity" / f"{twin.name[:12]}.json").unlink()
    before = stamps(tmp_path)
    short([case(checkpoint)], tmp_path)
    after = stamps(tmp_path)
    assert set(after) == set(before) and all(after[name] > before[name] for name in before)
    assert set(results.load(tmp_path)["parity"]) == {"reference", "passed"}


def test_a_run_without_its_raw_outputs_goes_on_and_only_the_reference_answers_again(checkpoint, tmp_path):
    one = case(checkpoint, "tests.fakes:Other")
    short([case(checkpoint), one], tmp_path)
    shutil.rmtree(tmp_path / "outputs")
    before = stamps(tmp_path)
    short([case(checkpoint), one], tmp_path)
    assert stamps(tmp_path) == before
    rows = short([case(checkpoint), one, case(checkpoint, "tests.fakes:Wrong")], tmp_path)
    after = stamps(tmp_path)
    renewed = {name[:12] for name in before if after[name] > before[name]}
    assert renewed == {rows.loc[(rows["parity"] == "reference"), "case"].iloc[0]} and len(after) == len(before) + 1
    assert rows.groupby("backend")["parity"].first()["tests.fakes:Wrong"] == "failed"


@pytest.mark.parametrize(
    ("backend", "status", "reason", "logged"),
    [
        ("Segfault", "failed", "killed by SIGSEGV", "in image"),
        ("Raises", "failed", "exit code 1: RuntimeError: no text today", "no text today"),
        ("Exits", "failed", "ended without an answer", ""),
        ("CrashesAtExit", "failed", "killed by SIGABRT", ""),
        ("Hangs", "timeout", "no end after 3 s", "in detect"),
        ("CannotPrepare", "failed", "its graphs cannot be made", ""),
        ("CrashesInPrepare", "failed", "while preparing: killed by SIGABRT", "in prepare"),
        ("Absent", "skipped", "this runtime is not installed: install it", ""),
    ],
)
def test_what_goes_wrong_is_recorded_once_and_the_run_goes_on(checkpoint, tmp_path, backend, status, reason, logged):
    cases = [case(checkpoint, f"tests.fakes:{backend}"), case(checkpoint)]
    rows = short(cases, tmp_path, rounds=2, timeout=3 if status == "timeout" else 60)
    found = results.failures(tmp_path)
    assert list(found["case"]) == [cases[0].id]
    assert found["status"].item() == status and found["reason"].item() == reason
    assert logged in (tmp_path / found["log"].item()).read_text()
    assert sorted(rows["case"].unique()) == sorted([cases[1].id, rows.loc[rows["replica"] == 1, "case"].iloc[0]])
    assert rows.groupby("case")["round"].nunique().eq(2).all()
    assert rows.loc[rows["replica"] == 1, "backend"].unique().tolist() == [cases[1].backend]
    assert not workers_of(tmp_path)


def test_a_failure_is_tried_again_when_asked(checkpoint, tmp_path, monkeypatch):
    mood = tmp_path / "mood"
    monkeypatch.setenv("SAM3LAB_TEST_MOOD", str(mood))
    mood.touch()
    cases = [case(checkpoint), case(checkpoint, "tests.fakes:Moody")]
    short(cases, tmp_path / "run", rounds=2)
    mood.unlink()
    short(cases, tmp_path / "run", rounds=2)
    assert results.failures(tmp_path / "run")["status"].tolist() == ["failed"]
    rows = short(cases, tmp_path / "run", rounds=2, retry_failed=True)
    assert results.failures(tmp_path / "run").empty
    assert rows[rows["case"] == cases[1].id]["round"].nunique() == 2


def test_a_failure_that_is_released_is_tried_once_more(checkpoint, tmp_path, monkeypatch):
    mood, run = tmp_path / "mood", tmp_path / "run"
    monkeypatch.setenv("SAM3LAB_TEST_MOOD", str(mood))
    mood.touch()
    cases = [case(checkpoint), case(checkpoint, "tests.fakes:Moody"), case(checkpoint, "tests.fakes:CannotPrepare")]
    assert runner.release(run) == [] and not run.exists()
    short(cases, run)
    tried = {mark["case"]: mark for mark in records.marks(run) if mark["status"] == "failed"}
    assert sorted(runner.release(run)) == sorted(each.label for each in cases[1:])
    assert len(results.failures(run)) == 2  # told until it is tried
    short(cases[:1], run)  # of another case
    assert len(results.failures(run)) == 2
    short(cases, run)
    stamp = records.failure(run, cases[1])
    assert "released" not in stamp and records.failure(run, cases[2])["during"] == "prepare" and len(tried) == 2
    mood.unlink()
    short(cases, run)
    assert records.failure(run, cases[1]) == stamp  # it was tried, and is not again by itself
    before = stamps(run)
    runner.release(run)
    rows = short(cases, run)
    assert results.failures(run)["label"].tolist() == [cases[2].label] and cases[1].id in set(rows["case"])
    assert before.items() <= stamps(run).items()


def test_what_was_skipped_is_released_when_its_backend_refuses_no_more(checkpoint, tmp_path, monkeypatch):
    cases = [case(checkpoint), case(checkpoint, "tests.fakes:Absent")]
    short(cases, tmp_path)
    assert runner.release(tmp_path) == []
    monkeypatch.setattr("tests.fakes.Absent.unavailable", lambda device, precision: None)
    assert runner.release(tmp_path) == [cases[1].label]
    facts = runner.environment.collect()
    monkeypatch.setattr(runner.environment, "collect", lambda: facts | {"version_torch": "another"})
    with pytest.raises(UserError, match="version_torch"):
        runner.release(tmp_path)


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_a_failure_to_prepare_keeps_the_rounds_that_are_done(checkpoint, tmp_path, monkeypatch, status):
    one = case(checkpoint, "tests.fakes:Other")
    short([case(checkpoint), one], tmp_path, rounds=2)
    done, marks = stamps(tmp_path), case_rounds(tmp_path)
    ask = runner._Run._ask

    def refuses(self, case):
        if case.id != one.id:
            return ask(self, case)
        return {"status": status, "reason": "no space left on device", "log": ""}

    with monkeypatch.context() as patch:
        patch.setattr(runner._Run, "_ask", refuses)
        rows = short([case(checkpoint), one], tmp_path, rounds=3)
    assert done.items() <= stamps(tmp_path).items() and marks.items() <= case_rounds(tmp_path).items()
    found = results.failures(tmp_path)
    assert found[["case", "status", "round"]].to_numpy().tolist() == [[one.id, status, 2]]
    assert rows[rows["case"] == one.id]["round"].nunique() == 2 and set(rows["parity"]) == {"reference", "passed"}
    runner.release(tmp_path)
    rows = short([case(checkpoint), one], tmp_path, rounds=3)
    assert rows.groupby("case")["round"].nunique().eq(3).all() and results.failures(tmp_path).empty
    assert done.items() <= stamps(tmp_path).items()


def test_a_reference_that_cannot_answer_again_keeps_its_rounds_and_its_verdict(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SAM3LAB_TEST_MOOD", str(tmp_path / "mood"))
    reference, one = case(checkpoint, "tests.fakes:Moody"), case(checkpoint, "tests.fakes:Other")
    how = {"rounds": 2, "reference": "tests.fakes:Moody"}
    short([reference], tmp_path / "run", **how)
    done = stamps(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "outputs")
    (tmp_path / "mood").touch()
    rows = short([reference, one], tmp_path / "run", **how)
    assert done.items() <= stamps(tmp_path / "run").items()
    own = rows[rows["replica"] == 0]
    assert own.groupby("case")["parity"].first()[[reference.id, one.id]].tolist() == ["reference", "missing"]
    assert results.failures(tmp_path / "run")["round"].tolist() == [2]


def test_what_was_skipped_is_measured_once_it_can_be(checkpoint, tmp_path, monkeypatch):
    cases = [case(checkpoint, "tests.fakes:Moody"), case(checkpoint)]
    monkeypatch.setenv("SAM3LAB_TEST_MOOD", str(tmp_path / "none"))
    record = {"during": "prepare", "log": None, "environment": ""}
    records.record_failure(tmp_path, cases[0], 0, "skipped", "not installed", **record)
    assert short(cases, tmp_path)["backend"].nunique() == 2
    assert results.failures(tmp_path).empty


def test_twins_are_measured_and_agree_with_the_reference(checkpoint, tmp_path):
    rows = short([case(checkpoint)], tmp_path, rounds=3, min_samples=30)
    table = statistics.aa_check(rows)
    assert list(table["stage"]) == ["pipeline", "image", "text", "detect", "pipeline_cached"]
    assert table["ratio"].between(0.5, 2).all()
    assert set(rows.loc[rows["replica"] == 1, "parity"]) == {"passed"}
    planned = [case(checkpoint, "tests.fakes:Other"), case(checkpoint, "tests.fakes:Other", replica=1)]
    mixed = short([case(checkpoint), case(checkpoint, "tests.fakes:Other", precision="bf16")], tmp_path / "mixed")
    assert set(mixed.loc[mixed["replica"] == 1, "precision"]) == {"bf16"}
    rows = short(planned, tmp_path / "given")
    assert rows["case"].nunique() == 2  # no further twin; and the reference, which was not asked for, has no rows
    assert set(rows["parity"]) == {"passed"}


def test_a_worker_imports_no_runtime_but_its_own_and_has_its_threads(checkpoint, tmp_path):
    cases = [case(checkpoint, "tests.fakes:ChecksThreads", threads=threads) for threads in (0, 1)]
    short(cases, tmp_path)
    for mark in records.marks(tmp_path):
        assert mark["status"] == "done", mark
        if mark["definition"]["mode"] == "model":
            assert mark["worker"]["imported"] == []
            assert mark["worker"]["threads"] == (mark["definition"]["threads"] or len(os.sched_getaffinity(0)))


def test_speed_ends_with_end_to_end_on_every_pair(checkpoint, tmp_path):
    images = ("astronaut", "coffee")
    one = case(checkpoint, mode="speed", batch=2, prompts=("cat", "dog"), images=images, replica=1)
    rows = short([one], tmp_path)
    steady = rows[(rows["case"] == one.id) & (rows["phase"] == "steady")]
    pairs, queries = 4, 4
    assert set(steady.loc[steady["metric"] == "masks", "value"]) == {pairs * min(MASKS, queries)}
    steady = steady[steady["metric"] == "wall"]
    assert list(steady["stage"].unique())[-1] == "end_to_end" and (steady.groupby("stage").size() >= 3).all()
    import numpy as np

    with np.load(records.outputs_path(tmp_path, one)) as outputs:
        assert outputs["logits"].shape == (4, 4) and outputs["masks"].shape == (4, 4, 8, 8)
        assert outputs["text"].shape[:2] == (2, 32) and outputs["features_0"].shape[0] == 2


def test_bad_input_is_refused_before_anything_is_measured(checkpoint, tmp_path):
    for cases, options, words in (
        ([], {}, "no cases"),
        ([case(checkpoint)], {"rounds": 0}, "rounds"),
        ([case(checkpoint)], {"timeout": 0}, "timeout"),
        ([case(checkpoint)], {"timeout": math.nan}, "timeout"),
        ([case(checkpoint)], {"min_seconds": math.nan}, "min_seconds"),
        ([case(checkpoint)], {"min_seconds": math.inf}, "min_seconds"),
        ([case(checkpoint, "nonsense")], {}, "nonsense"),
        ([case("no/such/checkpoint")], {}, "no/such/checkpoint"),
        ([case(checkpoint, images=("no-such-image.png",))], {}, "no-such-image.png"),
        ([case(checkpoint, prompts=("word " * 40,))], {}, "32"),
    ):
        with pytest.raises(UserError) as caught:
            short(cases, tmp_path, **options)
        assert words in str(caught.value)
    assert results.load(tmp_path).empty


def test_an_unknown_runtime_or_split_is_refused_before_anything_is_prepared(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(runner._Run, "_child", None)
    for cases, options, words in (
        ([case(checkpoint), case(checkpoint, "nonsense")], {}, "nonsense"),
        ([case(checkpoint)], {"reference": "bogus"}, "bogus"),
        ([case(checkpoint), accuracy_case(case(checkpoint), "tset")], {}, "tset"),
    ):
        with pytest.raises(UserError, match=words):
            short(cases, tmp_path, **options)


def test_changed_weights_are_refused(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    short([case(checkpoint)], tmp_path / "run")
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(UserError, match="SHA-256 has changed"):
        short([case(checkpoint, "tests.fakes:Other")], tmp_path / "run")


def test_interrupting_ends_the_worker_and_lets_go_of_the_run(checkpoint, tmp_path):
    run = drive(checkpoint, tmp_path, "tests.fakes:Hangs")
    deadline = time.monotonic() + 30
    while not (tmp_path / "logs").exists() or not list((tmp_path / "logs").glob("*-r0.log")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    assert run.wait(10) != 0
    assert "KeyboardInterrupt" in run.stderr.read()
    assert not workers_of(tmp_path)
    with records.locked(tmp_path):
        pass


def test_children_of_a_child_do_not_outlive_it(tmp_path):
    # `python -m this` would do nothing; `timeit` runs the given statement.
    note = tmp_path / "pid"
    code = f"import subprocess; p = subprocess.Popen(['sleep', '100']); open({str(note)!r}, 'w').write(str(p.pid))"
    assert process.run("timeit", ["-n1", "-r1", code], tmp_path / "log", 30, 1, offline=True).status == "done"
    pid = int(note.read_text())
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_estimate_of_time_left_follows_each_case():
    slow, quick = Case(), Case(backend="pytorch")
    steps = [(each, round_) for round_ in range(3) for each in (slow, quick)]
    progress = Progress(steps, shown=False)
    assert progress.estimate() == "no estimate yet"
    progress.end(slow, 0, 30.0)
    progress.end(quick, 0, 2.0)
    assert progress.estimate() == "about 64 s left"
    resumed = Progress(steps, shown=False, past={slow.id: [10.0, 20.0], quick.id: []})
    assert resumed.estimate() == "about 90 s left"


def test_progress_tells_plainly_where_there_is_no_terminal(checkpoint, tmp_path, capsys):
    short([case(checkpoint), case(checkpoint, "tests.fakes:Raises")], tmp_path, progress=True)
    told = capsys.readouterr().err
    assert (
        "[3/3]" in told and "s left" in told and "measured in" in told and "no text today" in told and "r0.log" in told
    )
    short([case(checkpoint)], tmp_path, progress=True)
    assert "1 of 1 case-rounds are there already" in capsys.readouterr().err
    short([case(checkpoint), case(checkpoint, "tests.fakes:CannotPrepare")], tmp_path, progress=True)
    assert "1 of 2 case-rounds are there already" in capsys.readouterr().err


def test_marks_name_what_was_measured(checkpoint, tmp_path):
    short([case(checkpoint)], tmp_path)
    mark = json.loads(next((tmp_path / "results").glob("*-r0.json")).read_text())
    assert Case.from_json(mark["definition"]).id == mark["case"]
    assert len(mark["checkpoint_sha256"]) == 64 and len(mark["sha256"]) == 64 and mark["rows"] > 20
    assert (tmp_path / "results" / f"environment-{mark['environment']}.json").exists()


def test_cases_are_prepared_at_the_same_time_where_there_are_cores(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "meeting").mkdir()
    monkeypatch.setenv("SAM3LAB_TEST_MEETING", str(tmp_path / "meeting"))
    monkeypatch.setattr(runner, "available_cores", lambda: 2 * runner.CORES_A_JOB)
    cases = [case(checkpoint)] + [case(checkpoint, "tests.fakes:MeetsAnother", resolution=side) for side in (42, 56)]
    rows = short(cases, tmp_path / "run")
    assert {each.id for each in cases} <= set(rows["case"])
    assert results.failures(tmp_path / "run").empty


def test_a_backend_that_compiles_has_compiled_before_it_is_measured(checkpoint, tmp_path, monkeypatch):
    compiled = tmp_path / "compiled"
    monkeypatch.setenv("SAM3LAB_TEST_COMPILED", str(compiled))
    seen = []
    run = process.run

    def watched(module, *arguments, **how):
        seen.append((module, compiled.read_text() if compiled.exists() else ""))
        return run(module, *arguments, **how)

    monkeypatch.setattr(process, "run", watched)
    short([case(checkpoint, "tests.fakes:Compiles", batch=batch) for batch in (1, 2)], tmp_path / "run")
    assert compiled.read_text() == "1\n2\n"
    assert all(text == "1\n2\n" for module, text in seen if module == "sam3lab.bench.worker")


def test_a_case_whose_median_is_not_sure_gets_further_rounds(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "TOLERANCE", 0.4)
    (tmp_path / "drift").mkdir()
    monkeypatch.setenv("SAM3LAB_TEST_DRIFT", str(tmp_path / "drift"))
    sure, unsure = (case(checkpoint, name) for name in ("sleep", "tests.fakes:Drifts"))
    cases, options = [sure, unsure], {"rounds": 3, "min_seconds": 0.0, "reference": "sleep"}

    def measured(most_rounds):
        rows = short(cases, tmp_path / "run", **options, most_rounds=most_rounds)
        return rows[rows["replica"] == 0].groupby("case")["round"].nunique().to_dict()

    assert measured(2) == {sure.id: 3, unsure.id: 3}  # no fewer than asked for
    assert measured(5) == {sure.id: 3, unsure.id: 5}
    before = stamps(tmp_path / "run")
    assert measured(5) == {sure.id: 3, unsure.id: 5} and stamps(tmp_path / "run") == before
    with pytest.raises(UserError, match="most_rounds must be a finite number of at least 0, not -1"):
        short(cases, tmp_path / "run", most_rounds=-1)


def test_a_single_round_is_left_at_that(checkpoint, tmp_path):
    rows = short([case(checkpoint)], tmp_path / "run", most_rounds=3)
    assert set(rows["round"]) == {0}
