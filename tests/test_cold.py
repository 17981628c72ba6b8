import os
import time
from pathlib import Path

import pytest

from sam3lab.bench import cold, records, results
from sam3lab.bench.case import Case
from sam3lab.errors import UserError
from sam3lab.paths import cache_dir
from tests.bench_run import case, make_checkpoint, short
from tests.fakes import Quick

EXPORT, BUILD, FIRST = 0.3, 0.2, 0.1


class Building(Quick):
    """Exports and builds what the caches do not have, and compiles in its first call."""

    @classmethod
    def prepare(cls, artifacts):
        graphs = cache_dir("graphs") / "some"
        if not graphs.exists():
            time.sleep(EXPORT)
            graphs.mkdir()
            (graphs / "manifest.json").write_text("{}")
        engine = cache_dir("engines") / "some"
        if not engine.exists():
            time.sleep(BUILD)
            engine.touch()
        return artifacts

    def load(self, artifacts):
        super().load(artifacts)
        assert artifacts.graphs is None
        self.compiled = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", os.environ["SAM3LAB_CACHE"])) / "kernel"

    def image(self, pixels):
        if not self.compiled.exists():
            time.sleep(FIRST)
            self.compiled.touch()
        return super().image(pixels)


@pytest.fixture
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("SAM3LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    (tmp_path / "inductor").mkdir()
    return tmp_path


def test_every_cold_start_makes_everything_anew_and_tells_how_long_it_took(caches):
    cases = [
        case(make_checkpoint(caches / "checkpoint"), "tests.test_cold:Building", mode=m) for m in ("model", "cold")
    ]
    (caches / "run" / "work" / "cold-left").mkdir(parents=True)
    rows = short(cases, caches / "run", rounds=2, reference="tests.test_cold:Building")
    assert results.failures(caches / "run").empty
    start = rows[rows["case"] == cases[1].id]
    assert set(zip(start["stage"], start["phase"], start["unit"], strict=True)) == {("process", "cold", "s")}
    assert set(start["parity"]) <= {"reference", "passed"}
    for _, taken in start.groupby("round"):
        assert taken["metric"].is_unique
        seconds = dict(zip(taken["metric"], taken["value"], strict=True))
        # what is slept is the least it can take; a file's time is that of the kernel's last tick
        assert seconds["export"] >= EXPORT - 0.02 and seconds["build"] >= BUILD and seconds["first"] >= FIRST
        assert seconds["prepare"] == pytest.approx(seconds["export"] + seconds["build"])
        parts = ("process_start", "import", "prepare", "load", "first")
        assert sum(seconds[part] for part in parts) <= seconds["startup"]
    warm = rows[(rows["mode"] == "model") & (rows["metric"] == "startup") & (rows["replica"] == 0)]
    assert set(warm["phase"]) == {"load"}
    # the warm ones find what `prepare` and the first of them made
    assert warm["value"].min() < start.loc[start["metric"] == "startup", "value"].min()
    assert not list((caches / "run" / "work").glob("cold-*"))


def test_caches_are_empty_within_and_as_before_after(caches):
    (cache_dir("fingerprints") / "some").write_text("digest")
    (cache_dir("graphs") / "old").touch()
    with cold.empty_caches(caches):
        assert not list(cache_dir("graphs").iterdir())
        assert (cache_dir("fingerprints") / "some").read_text() == "digest"
        assert all(Path(os.environ[name]).is_dir() for name in cold.CACHES)
        assert cold.last_export() is None
    assert os.environ["SAM3LAB_CACHE"] == str(caches / "cache") and (cache_dir("graphs") / "old").exists()
    assert "TRITON_CACHE_DIR" not in os.environ and not list(caches.glob("cold-*"))


def test_pages_of_a_file_leave_memory(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(1 << 22))
    if cold.resident([file]) is None:
        pytest.skip("this system does not tell which pages it holds")
    assert cold.resident([file]) == 1
    cold.forget_pages([file])
    left = cold.resident([file])
    if left == 1:
        pytest.skip("this file system holds its files in memory")
    assert left < 0.5
    file.read_bytes()
    assert cold.resident([file]) == 1
    assert cold.resident([]) is None


def test_a_cold_case_says_so():
    one = Case(mode="cold")
    assert one.label.endswith("(cold)") and not one.once and one.id != Case().id
    with pytest.raises(UserError, match="cold"):
        Case(mode="frozen")


def test_facts_tell_of_the_page_cache(caches):
    one = case(make_checkpoint(caches / "checkpoint"), mode="cold")
    short([one], caches / "run")
    mark = records.read_mark(records.mark_path(caches / "run", one, 0))
    assert set(mark["worker"]["page_cache"]) == {"before", "after"} and mark["worker"]["inputs"]
