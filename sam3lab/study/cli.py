"""The arguments of `sam3lab study` and `sam3lab figures`; what does the work is imported when it runs."""

import argparse
import sys


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="study", help="folder below runs/ that the study writes (default: study)")
    parser.add_argument("--checkpoint", help="checkpoint by name or directory (default: sam3-nano, on a GPU sam3)")
    parser.add_argument("--backend", action="append", metavar="NAME", help="measure this runtime; may be repeated")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of every case, each in a process of its own")
    parser.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set one parameter of the notebooks that have it, such as: -p resolutions 126,252",
    )
    parser.add_argument("--notebook", action="append", metavar="NAME", help="run this notebook alone; may be repeated")
    parser.add_argument(
        "--publish",
        metavar="DIR",
        help="at the end, store the results for `sam3lab figures` in DIR: data/results/MACHINE, or where the notebooks "
        "are run in several goes, data/results/MACHINE/PART, of which each notebook is shown from the newest that ran it to its end",
    )


def study(args: argparse.Namespace) -> int:
    """Run the notebooks; the exit status is 0 when every cell of each ran, and 130 after Ctrl-C, which loses nothing."""
    from sam3lab.study import run

    given = run.options(args.parameters, checkpoint=args.checkpoint, backends=args.backend, rounds=args.rounds)
    try:
        return run.study(args.name, notebooks=args.notebook, parameters=given, publish=args.publish)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def add_figures_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", metavar="DIR", help="stored results of one machine (default: of every machine in data/results/)"
    )
    parser.add_argument(
        "--out",
        default="figures",
        metavar="DIR",
        help="folder for the figures; of several machines the one shown first has its figures there, and each other in a "
        "folder of its name (default: %(default)s)",
    )


def figures(args: argparse.Namespace) -> int:
    """Render every figure again from stored results; the exit status is 0 when each could be."""
    from sam3lab.study import render

    return render.figures(args.results, args.out)
