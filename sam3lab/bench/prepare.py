"""Before anything is timed: can this machine run it, and is what it loads on disk?

As a process: `python -m sam3lab.bench.prepare JOB.json SPAWNED_NS`, because a runtime may crash or hang while it builds.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from sam3lab import backends
from sam3lab.bench import artifacts, child, inputs
from sam3lab.bench.case import Case
from sam3lab.bench.stages import Stages
from sam3lab.errors import UserError
from sam3lab.model import checkpoint


def main(job_file: str, spawned: str) -> None:
    """Write what `prepare` says of the job's case to the job's `out`."""
    job = json.loads(Path(job_file).read_text())
    child.tie_to_parent(job["parent"])
    answer = prepare(Case.from_json(job["case"]), job["threads"])
    Path(job["out"]).write_text(json.dumps(answer))


def prepare(case: Case, threads: int) -> dict[str, Any]:
    """artifacts and checkpoint_sha256; or status and reason.

    status: skipped (this machine cannot run it), failed (its artifacts cannot be built), or refused (there is no such
    backend or checkpoint, which is the caller's mistake).
    """
    try:
        kind = backends.get(case.backend)
        unavailable = kind.unavailable(case.device, case.precision)
        if unavailable:
            return {"status": "skipped", "reason": unavailable}
        directory = checkpoint.resolve(case.checkpoint)
        sha256 = checkpoint.fingerprint(directory)
    except UserError as error:
        return {"status": "refused", "reason": str(error)}
    wanted = backends.Artifacts(directory, case.resolution, case.precision, case.device, threads)
    try:
        made = kind.prepare(wanted)
        if compiles(case) and case.mode != "cold":
            _first_call(kind, made, case)
    except UserError as error:
        return {"status": "failed", "reason": str(error)}
    return {"artifacts": artifacts.to_json(made), "checkpoint_sha256": sha256}


def compiles(case: Case) -> bool:
    """Whether the backend compiles in its first call, for the shapes of that call; what it compiled is then on disk."""
    try:
        return getattr(backends.get(case.backend), "compiles", False)
    except UserError:  # there is no such backend, which `prepare` says
        return False


def _first_call(kind: Any, made: backends.Artifacts, case: Case) -> None:
    if case.mode == "accuracy":  # whose prompts come one by one, see bench.predict
        case = dataclasses.replace(case, mode="model", prompts=Case.prompts, images=Case.images)
    backend = kind()
    backend.load(made)
    Stages(backend, inputs.build(case, made.checkpoint)).pipeline()
    backend.synchronize()
    backend.close()


if __name__ == "__main__":
    child.guard(main, *sys.argv[1:])
