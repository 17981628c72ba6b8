import json
import mmap
import os
import subprocess
import sys

import pytest

from sam3lab.bench import environment, memory, records
from sam3lab.cores import available_cores
from sam3lab.errors import UserError


def test_facts_are_flat_json_with_what_a_reader_needs():
    facts = environment.collect()
    assert json.loads(json.dumps(facts)) == facts
    assert not any(isinstance(value, (dict, list)) for value in facts.values())
    assert facts["cpu"] and facts["ram_gb"] >= 1 and facts["threads"] >= 1 and facts["version_torch"] and facts["code"]


def test_fingerprint_changes_with_what_matters_and_not_with_what_changes_by_itself():
    facts = environment.collect("cpu")
    assert environment.fingerprint(facts) == environment.fingerprint(environment.collect("cpu"))
    assert environment.fingerprint(facts) == environment.fingerprint(facts | {"load_average": 9, "git_commit": "abc"})
    for key in ("cpu", "threads", "version_torch", "gpu", "code"):
        assert environment.fingerprint(facts) != environment.fingerprint(facts | {key: "other"}), key


def test_rows_of_another_environment_are_refused_with_the_difference_and_the_remedy(tmp_path):
    facts = environment.collect("cpu")
    assert records.adopt_environment(tmp_path, facts) == records.adopt_environment(tmp_path, facts | {"cpu_mhz": "1"})
    with pytest.raises(UserError) as caught:
        records.adopt_environment(tmp_path, facts | {"version_torch": "9.9", "threads": 77})
    message = str(caught.value)
    assert "version_torch" in message and "9.9" in message and "threads" in message and "another run name" in message
    assert "cpu:" not in message
    assert records.environments(tmp_path) == facts


def test_cores_are_those_this_process_may_use():
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from sam3lab.cores import available_cores; print(available_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))


def test_peak_memory_counts_from_the_reset():
    with mmap.mmap(-1, 60_000_000) as block:  # a mapping of its own: malloc may keep what is freed
        block[::4096] = b"x" * len(block[::4096])
        assert memory.rss_peak() >= memory.rss() >= 60
        before = memory.rss_peak()
    if not memory.reset_rss_peak():
        pytest.skip("this kernel does not let a process reset its peak")
    assert memory.rss_peak() < before - 30


def test_a_distribution_whose_module_another_stands_in_front_of_is_not_there(tmp_path, monkeypatch):
    for folder, name, number in (("near", "onnxruntime_gpu", "1.31.1"), ("far", "onnxruntime", "1.30.0")):
        about = tmp_path / folder / f"{name}-{number}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        (tmp_path / folder / "onnxruntime").mkdir()
        (tmp_path / folder / "onnxruntime" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "near"), str(tmp_path / "far")])
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert environment.version("onnxruntime-gpu") == "1.31.1"
    assert environment.version("onnxruntime") is None
    monkeypatch.setattr(sys, "path", [str(tmp_path / "far")])
    assert environment.version("onnxruntime") == "1.30.0" and environment.version("onnxruntime-gpu") is None
