"""The serving experiments, run: which of them share a service, and what is kept of those that fail."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from sam3lab.study import serving_experiments as experiments
from sam3lab.study import serving_store as store
from sam3lab.study.serving_plan import Plan
from sam3lab.study.serving_process import serving


def run(plan: Plan, run_dir: Path) -> None:
    """Measure what `run_dir` does not hold yet; each experiment that fails is kept with its reason, and the others go on."""
    logs = run_dir / "logs" / f"serving-{plan.backend}-{plan.precision}"
    rate = partial(experiments.capacity_kept, plan, run_dir)
    _keep(plan, run_dir, {"cold": partial(experiments.cold_start, plan, run_dir, logs / "cold.log")})
    _keep(plan, run_dir, {"process": partial(experiments.processes, plan)})
    _sitting(
        plan,
        run_dir,
        {
            "start": partial(experiments.warm_start, plan, logs / "start.log"),
            "caches": partial(experiments.caches, plan),
        },
        plan.options(),
        logs / "caches.log",
    )
    _sitting(
        plan,
        run_dir,
        {"list": partial(experiments.lists, plan), "single": partial(experiments.loads, plan, None)},
        plan.options("--no-cache", "--no-batching"),
        logs / "single.log",
    )
    _sitting(
        plan,
        run_dir,
        {"batched": partial(experiments.loads, plan, rate), "fault": partial(experiments.fault, plan, rate)},
        plan.options("--no-cache", "--fallback", experiments.fallback(plan) or "none"),
        logs / "batched.log",
    )


def _sitting(plan: Plan, run_dir: Path, wanted: dict[str, Callable], options: list[str], log: Path) -> None:
    """What of these is missing, on one service."""
    missing = {name: measure for name, measure in wanted.items() if not store.is_done(run_dir, plan.key(name))}
    if not missing:
        return
    with ExitStack() as stack:
        try:
            server = stack.enter_context(serving(log, *options))
        except Exception as error:  # whatever kept it from starting is why none of them could be measured
            missing = {name: partial(_fail, error) for name in missing}
        else:
            missing = {name: partial(measure, server) for name, measure in missing.items()}
        _keep(plan, run_dir, missing)


def _keep(plan: Plan, run_dir: Path, wanted: dict[str, Callable[[], list[dict]]]) -> None:
    for name, measure in wanted.items():
        if not store.is_done(run_dir, plan.key(name)):
            print(f"serving {plan.backend} {plan.precision}: {name}", flush=True)
            store.keep(run_dir, plan.key(name), plan.definition(name), measure)


def _fail(error: Exception) -> list[dict]:
    raise error
