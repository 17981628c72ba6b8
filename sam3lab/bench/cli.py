"""`sam3lab measure` and `sam3lab doctor`."""

import argparse
import sys

MODES_HELP = (
    "speed; model, all but end to end; pipeline, that stage alone; cold, starting up with nothing made before; "
    "or accuracy, on scenes (default: %(default)s)"
)


def add_measure_arguments(parser: argparse.ArgumentParser) -> None:
    """A case is measured for each combination of the backends, precisions, resolutions and batches that are named."""

    def texts(text: str) -> list[str]:
        if found := [item.strip() for item in text.split(",") if item.strip()]:
            return found
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")

    def numbers(text: str) -> list[int]:
        return [int(item) for item in texts(text)]

    many = {"action": "extend", "help": argparse.SUPPRESS}
    add = parser.add_argument
    add(
        "--cases",
        metavar="FILE",
        help="a JSON file with a list of cases (tables of fields) in place of the options up to --mode",
    )
    add("--checkpoint", default="sam3-nano", help="name or directory (default: %(default)s)")
    add(
        "--backend",
        type=texts,
        **many | {"help": "names, comma-separated or repeated (default: every one that runs here)"},
    )
    add("--precision", type=texts, **many | {"help": "fp32, tf32, bf16, fp16, int8, fp8 (default: fp32)"})
    add("--resolution", type=numbers, **many | {"help": "pixels, multiples of 14 (default: the checkpoint's own)"})
    add("--batch", type=numbers, **many | {"help": "images a call (default: 1)"})
    add("--prompt", action="append", help="repeat it for several prompts in one call (default: cat)")
    add("--image", action="append", help="a bundled photograph, a file or a folder; repeatable (default: astronaut)")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU, else cpu")
    add("--threads", type=int, default=0, help="CPU threads (default: every core this process may use)")
    add("--mode", default="speed", help=MODES_HELP)
    add("--split", help="of the stored scenes, for mode accuracy: test or compositional (default: test)")
    add("--scenes", type=int, metavar="N", help="the first N scenes of the split (default: all)")
    add("--rounds", type=int, default=5, help="processes a case, interleaved with the others' (default: %(default)s)")
    add(
        "--most-rounds",
        type=int,
        default=0,
        help="of a case whose median is not sure to within 2%% after --rounds (default: no more than these)",
    )
    add("--min-samples", type=int, default=50, help="a stage, over all rounds (default: %(default)s)")
    add("--min-seconds", type=float, default=2.0, help="a stage, over all rounds (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the order of cases (default: %(default)s)")
    add("--timeout", type=float, default=900.0, help="seconds for one round of one case (default: %(default)s)")
    add(
        "--reference",
        metavar="BACKEND",
        default="transformers",
        help="whose fp32 outputs are right (default: %(default)s)",
    )
    add("--retry-failed", action="store_true", help="try again what crashed or hung before")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--name", default="measure", help="of the run, a directory in runs/ (default: %(default)s)")
    where.add_argument("--run-dir", metavar="DIR", help="where to keep the run instead")


def measure(args: argparse.Namespace) -> int:
    """Measure and print. 0 if all was measured and agrees; 1 if a case failed, was skipped though named, or does not agree
    with the reference; 130 after Ctrl-C, which keeps every finished case-round. Raises UserError for bad input.
    """
    try:
        return _measure(args)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of a look into ONNX Runtime's graphs."""
    from sam3lab.bench.graph_doctor import add_arguments

    add_arguments(parser)


def doctor(args: argparse.Namespace) -> int:
    """Print what runs here, or where a checkpoint's graphs do. Raises UserError for options of the other."""
    from rich.console import Console

    from sam3lab.bench import doctor, graph_doctor
    from sam3lab.errors import UserError

    given = [name for name in ("checkpoint", "precision", "resolution", "device") if getattr(args, name) is not None]
    if given and not args.graph:
        raise UserError(f"--{given[0]} says whose graphs are looked into: add --graph, or leave it out")
    console = Console() if sys.stdout.isatty() else Console(width=180)
    if args.graph:
        graph_doctor.report(console, args)
    else:
        doctor.report(console)
    return 0


def _measure(args: argparse.Namespace) -> int:
    from pathlib import Path

    from rich.console import Console

    from sam3lab.bench import records, results, tables
    from sam3lab.bench.runner import measure

    run_dir = Path(args.run_dir) if args.run_dir else records.named(args.name)
    cases, named = _cases(args)
    rows = measure(
        cases,
        run_dir,
        rounds=args.rounds,
        most_rounds=args.most_rounds,
        min_samples=args.min_samples,
        min_seconds=args.min_seconds,
        seed=args.seed,
        timeout=args.timeout,
        retry_failed=args.retry_failed,
        reference=args.reference,
    )
    failures = results.failures(run_dir)
    mine = {case.id for case in cases} | set(rows["case"])
    failures = failures[failures["case"].isin(mine)]
    if not named:
        failures = failures[failures["status"] != "skipped"]
    console = Console() if sys.stdout.isatty() else Console(width=180)
    found = results.accuracy(run_dir)
    place = {case: number for number, case in enumerate(rows["case"].unique())}
    found = found[found["case"].isin(place)].sort_values("case", key=lambda ids: ids.map(place))
    rows = rows[rows["phase"] != "accuracy"]
    if len(found):
        console.print(tables.accuracy(found, run_dir))
    if len(rows):
        console.print(tables.medians(rows))
        console.print(tables.twins(rows))
    if len(failures):
        console.print(tables.failures(failures, run_dir))
    return 1 if len(failures) else 0


def _cases(args: argparse.Namespace) -> tuple[list, bool]:
    """The cases, and whether their backends were named, so that one that cannot run here is a failure."""
    import itertools
    import json
    from pathlib import Path

    from sam3lab import backends, images
    from sam3lab.bench.case import Case, accuracy_case
    from sam3lab.errors import UserError
    from sam3lab.model import checkpoint
    from sam3lab.nvml import gpu

    if args.cases:
        try:
            fields = json.loads(Path(args.cases).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read cases from {args.cases}: {error}") from error
        if not isinstance(fields, list):
            raise UserError(f"{args.cases} must hold a list of cases, each a table of fields")
        return [Case.from_json(case) for case in fields], True
    resolutions = args.resolution or [checkpoint.image_size(checkpoint.resolve(args.checkpoint))]
    chosen = itertools.product(
        args.backend or backends.names(), args.precision or ["fp32"], resolutions, args.batch or [1]
    )
    common = {
        "checkpoint": args.checkpoint,
        "prompts": args.prompt or ["cat"],
        "images": images.expand(args.image or ["astronaut"]),
        "device": args.device or ("cuda" if gpu() else "cpu"),
        "threads": args.threads,
    }
    if args.mode != "accuracy" and (args.split or args.scenes is not None):
        raise UserError("--split and --scenes say what accuracy is measured on; add --mode accuracy")
    if args.mode == "accuracy" and (args.prompt or args.image or args.batch):
        raise UserError(
            "a split has images and prompts of its own, one image a call; leave out --prompt, --image, --batch"
        )
    mode = "model" if args.mode == "accuracy" else args.mode
    cases = [
        Case(backend=backend, precision=precision, resolution=resolution, batch=batch, mode=mode, **common)
        for backend, precision, resolution, batch in chosen
    ]
    if args.mode == "accuracy":
        cases = [accuracy_case(case, args.split or "test", args.scenes) for case in cases]
    return cases, args.backend is not None
