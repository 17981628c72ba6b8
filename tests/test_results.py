import multiprocessing
import os

import pandas as pd
import pytest

from sam3lab import atomic
from sam3lab.bench import environment, records, results
from sam3lab.bench.case import FIELDS, Case
from sam3lab.errors import UserError
from tests.bench_run import REFERENCE, case, make_checkpoint, short


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two backends that agree, one that does not, one that crashes, one that is not there."""
    folder = tmp_path_factory.mktemp("results")
    checkpoint = make_checkpoint(folder / "checkpoint")
    names = (REFERENCE, "tests.fakes:Other", "tests.fakes:Wrong", "tests.fakes:Segfault", "tests.fakes:Absent")
    short([case(checkpoint, name) for name in names], folder / "run", rounds=2)
    return folder / "run"


def test_rows_are_tidy_and_complete(run):
    rows = results.load(run)
    columns = ["run_id", "case", "label", "round", "stage", "phase", "metric", "value", "unit", "sample", "parity"]
    assert set(rows.columns) == {*columns, *FIELDS}
    assert rows["value"].notna().all() and rows["run_id"].nunique() == 1
    key = ["case", "round", "stage", "phase", "metric", "sample"]
    assert not rows.duplicated(key).any()
    one = rows[(rows["backend"] == "tests.fakes:Other") & (rows["round"] == 1)]
    steady = one[(one["phase"] == "steady") & (one["metric"] == "wall")]
    assert list(steady["stage"].unique()) == ["pipeline", "image", "text", "detect", "pipeline_cached"]
    # in every mode alike, before a stage that is called alone takes memory of its own
    assert one[one["phase"] == "memory"].index.max() < steady[steady["stage"] == "image"].index.min()
    assert (steady.groupby("stage").size() >= 2).all() and (steady["unit"] == "ms").all()
    first = one[one["phase"] == "first"]
    assert list(first["stage"]) == ["image", "text", "detect", "pipeline"]
    parts = first.set_index("stage")["value"]
    assert parts["pipeline"] >= parts[["image", "text", "detect"]].sum()
    start = one[one["phase"] == "load"].set_index("metric")["value"]
    assert start["startup"] > start["process_start"] + start["import"] + start["load"] > 0
    memory = one[one["phase"] == "memory"].set_index("metric")
    assert (memory.loc[["rss", "rss_peak", "rss_peak_startup"], "value"] > 5).all() and set(memory["unit"]) == {"MB"}
    assert Case.from_json({name: one[name].iloc[0] for name in ("backend", "prompts", "images")}).prompts == ("cat",)


def test_every_row_says_whether_its_case_agrees(run):
    rows = results.load(run)
    verdicts = rows.groupby("backend")["parity"].unique().map(set).to_dict()
    assert verdicts == {
        REFERENCE: {"reference", "passed"},
        "tests.fakes:Other": {"passed"},
        "tests.fakes:Wrong": {"failed"},
    }
    assert set(rows.loc[rows["replica"] == 1, "parity"]) == {"passed"}


def test_failures_say_what_and_why_and_where(run):
    found = results.failures(run).set_index("backend")
    assert found["status"].to_dict() == {
        "tests.fakes:Wrong": "parity",
        "tests.fakes:Segfault": "failed",
        "tests.fakes:Absent": "skipped",
    }
    assert "SIGSEGV" in found.loc["tests.fakes:Segfault", "reason"] and found.loc["tests.fakes:Segfault", "round"] == 0
    assert "Segmentation fault" in (run / found.loc["tests.fakes:Segfault", "log"]).read_text()
    assert "boxes: relative error" in found.loc["tests.fakes:Wrong", "reason"]
    assert "install it" in found.loc["tests.fakes:Absent", "reason"]


def test_environment_lies_beside_the_rows(run):
    assert results.environment(run)["version_numpy"]


def test_consolidated_rows_read_like_the_run(run, tmp_path):
    results.consolidate(run, tmp_path / "one")
    results.consolidate(run, tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["environment.json", "failures.parquet", "parity.parquet", "results.parquet"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for read in (results.load, results.failures, results.parity_rows):
        pd.testing.assert_frame_equal(read(tmp_path / "one"), read(run))
    assert results.environment(tmp_path / "one") == results.environment(run)


def test_a_damaged_file_is_not_read(run, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    damaged = next((copy / "results").glob("*.parquet"))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(UserError, match="damaged; measure again"):
        results.load(copy)


@pytest.mark.parametrize("name", ["results.parquet", "parity.parquet", "failures.parquet", "environment.json"])
def test_stored_results_that_are_damaged_or_not_whole_are_named_with_a_remedy(run, tmp_path, name):
    results.consolidate(run, tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            for read in (results.load, results.failures, results.parity_rows, results.environment):
                read(tmp_path)
        assert name in str(caught.value) and "--publish" in str(caught.value) and "git checkout" in str(caught.value)
    results.consolidate(run, tmp_path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("after", range(4))
def test_a_kill_while_results_are_exchanged_leaves_nothing_that_is_read(run, tmp_path, monkeypatch, after):
    results.consolidate(run, tmp_path)
    write, count = atomic.write, iter(range(9))

    def killed(path, data):
        if next(count) == after:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(atomic, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        results.consolidate(run, tmp_path)
    for read in (results.load, results.failures, results.parity_rows, results.environment):
        with pytest.raises(UserError, match=r"without environment\.json"):
            read(tmp_path)


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        results.load(tmp_path / "nowhere")
    assert results.load(tmp_path).empty and results.failures(tmp_path).empty
    with pytest.raises(UserError, match="nothing was measured"):
        results.environment(tmp_path)


def _hold(path, held, release):
    with records.locked(path):
        held.set()
        release.wait(20)


def test_one_measure_at_a_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, held, release))
    other.start()
    assert held.wait(20)
    with pytest.raises(UserError, match=f"process {other.pid}"), records.locked(tmp_path):
        pass
    release.set()
    other.join(20)
    with records.locked(tmp_path):
        pass


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    atomic.write(path, b"old")
    child = os.fork()
    if child == 0:
        os.fsync = lambda descriptor: os._exit(9)
        atomic.write(path, b"new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert path.read_bytes() == b"old"


def _slowed(run_dir, rounds):
    """A made-up run: of each round the stages that it measured, in as many ms as its number, and how far each was slowed."""
    measured = case(make_checkpoint(run_dir.parent / "made-up"))
    digest = records.adopt_environment(run_dir, environment.collect())
    for number, stages in enumerate(rounds):
        rows = [
            {"stage": stage, "phase": "steady", "metric": metric, "unit": unit, "values": values}
            for stage, share in stages.items()
            for metric, unit, values in (
                ("wall", "ms", [float(number)] * 3),
                ("energy", "J", [float(number)]),
                ("slowed", "1", [share]),
            )
        ]
        outputs = records.outputs_path(run_dir, measured)
        outputs.parent.mkdir(exist_ok=True)
        outputs.write_bytes(b"outputs")
        records.record(run_dir, measured, number, rows, environment=digest)
    return run_dir


def test_a_slowed_round_counts_only_among_the_three_that_were_slowed_the_least(tmp_path):
    shares = [(0.4, 1.0), (0.9, 0.8), (0.0, 1.0), (0.0, 1.0), (0.5, 0.7)]
    run = _slowed(tmp_path / "run", [{"image": image, "text": text} for image, text in shares])
    rows = results.load(run)
    counted = (
        rows[rows["phase"] == "steady"].groupby(["stage", "metric"])["round"].agg(lambda found: sorted(set(found)))
    )
    assert counted["image", "wall"] == counted["image", "energy"] == [0, 2, 3, 4]  # half of it slowed is not most
    assert counted["text", "wall"] == counted["text", "energy"] == [0, 1, 4]  # of those slowed alike the first
    assert counted["image", "slowed"] == counted["text", "slowed"] == [0, 1, 2, 3, 4]
    apart = rows[rows["phase"] == "disturbed"]
    assert len(apart) == 4 + 8 and set(apart.loc[apart["stage"] == "image", "value"]) == {1.0}
    results.consolidate(run, tmp_path / "stored")
    pd.testing.assert_frame_equal(results.load(tmp_path / "stored"), rows)
    assert "disturbed" not in set(pd.read_parquet(tmp_path / "stored" / results.ROWS)["phase"])  # as it was measured
    assert len(results.load(_slowed(tmp_path / "nothing", []))) == 0


def test_no_more_than_three_slowed_rounds_count_all(tmp_path):
    rows = results.load(_slowed(tmp_path / "run", [{"image": 1.0}, {"image": 0.0}, {"image": 0.8}]))
    assert set(rows.loc[rows["metric"] == "wall", "phase"]) == {"steady"}
