"""What this machine can run, and why not the rest."""

from typing import Any

from sam3lab import backends
from sam3lab.bench import environment
from sam3lab.bench.case import DEVICES, PRECISIONS
from sam3lab.errors import UserError
from sam3lab.nvml import gpu, users
from sam3lab.paths import DATA, RUNS, cache_dir

_RUNTIMES = (
    "torch",
    "transformers",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "pycuda",
    "nvidia-ml-py",
)


def report(console) -> None:
    """Print machine, versions, folders, and a table of every backend on every device in every precision."""
    from rich.table import Table

    for title, facts in (("Machine", machine()), ("Runtimes", versions()), ("Folders", folders())):
        console.print(f"[bold]{title}[/bold]")
        for name, value in facts.items():
            console.print(f"  {name:<16} {value}", highlight=False, markup=False)
        console.print()

    reasons = availability()
    table = Table(title="What runs here", title_justify="left", title_style="bold")
    for column in ("backend", "device", *PRECISIONS):
        table.add_column(column)
    for name in backends.names():
        for device in DEVICES:
            marks = ["yes" if reasons[name, device, precision] is None else "no" for precision in PRECISIONS]
            table.add_row(name, device, *marks)
    console.print(table)

    console.print("\n[bold]Why not[/bold]")
    for reason, places in grouped(reasons).items():
        console.print(f"  {', '.join(places)}: {reason}", highlight=False, markup=False)


def availability() -> dict[tuple[str, str, str], str | None]:
    """For each backend, device and precision, why it cannot run here; None where it can."""
    reasons = {}
    for name in backends.names():
        try:
            ask = backends.get(name).unavailable
        except UserError as error:
            missing = str(error)
            ask = lambda device, precision, missing=missing: missing  # noqa: E731
        for device in DEVICES:
            for precision in PRECISIONS:
                reasons[name, device, precision] = ask(device, precision)
    return reasons


def grouped(reasons: dict[tuple[str, str, str], str | None]) -> dict[str, list[str]]:
    """Each reason with where it holds: "backend on device" if in every precision, else with the precisions."""
    places: dict[str, dict[tuple[str, str], list[str]]] = {}
    for (name, device, precision), reason in reasons.items():
        if reason is not None:
            # Reasons that name nothing but the precision itself are one.
            reason = reason.replace(f"precision {precision} ", "the precision ")
            places.setdefault(reason, {}).setdefault((name, device), []).append(precision)
    return {
        reason: [
            f"{name} on {device}" + ("" if len(found) == len(PRECISIONS) else f" in {' '.join(found)}")
            for (name, device), found in where.items()
        ]
        for reason, where in places.items()
    }


def machine() -> dict[str, Any]:
    facts = environment.collect()
    graphics = gpu()
    memory = f", {facts['gpu_memory_gb']} GB, driver {facts['gpu_driver']}" if graphics else ""
    return {
        "CPU": f"{facts['cpu']}{' (virtual)' if facts['virtual'] else ''}",
        "instructions": facts["cpu_isa"] or "none of those that matter here",
        "threads": f"{facts['threads']} of {facts['cores']} cores",
        "memory": f"{facts['ram_gb']} GB",
        "GPU": f"{facts['gpu']}{memory}" if graphics else "none that the NVIDIA driver shows",
        **({"GPU used by": users(graphics) or "no other process"} if graphics else {}),
        "system": f"{facts['os']}, kernel {facts['kernel']}, Python {facts['python']}",
    }


def versions() -> dict[str, str]:
    return {name: environment.version(name) or "not installed" for name in _RUNTIMES}


def folders() -> dict[str, Any]:
    return {"cache": cache_dir("").resolve(), "runs": RUNS, "data": DATA}
