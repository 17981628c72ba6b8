"""Run the notebooks through papermill: in order, with progress, resumable, and with an honest exit status."""

import ast
import hashlib
import json
import shutil
import time
from pathlib import Path

from sam3lab import paths
from sam3lab.bench.files import write_json
from sam3lab.errors import UserError
from sam3lab.study import serving_store, stored
from sam3lab.study.parameters import OURS, PARAMETERS, check_name, converted


def names() -> list[str]:
    """The notebooks of the study, in the order in which they run."""
    return sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def defaults(notebook: str) -> dict:
    """{name: default} of a notebook's `parameters` cell, but for those that a study sets itself."""
    import papermill

    known = papermill.inspect_notebook(paths.NOTEBOOKS / f"{notebook}.ipynb")
    return {name: ast.literal_eval(about["default"]) for name, about in known.items() if name not in OURS}


def options(pairs, **named) -> dict:
    """The parameters given on a command line, as {name: value}; what is None in `named` was not given.

    UserError on a value that cannot be used, and on a name that no notebook has or that the study sets itself.
    """
    given = dict(pairs) | {name: value for name, value in named.items() if value is not None}
    if ours := [name for name in given if name in OURS]:
        raise UserError(f"the study sets {ours[0]} itself: use --name, --publish, or `sam3lab figures`")
    for name in given:
        check_name(name, [known for known in PARAMETERS if known not in OURS], "the study")
    values = {name: converted(name, value) for name, value in given.items()}
    if "checkpoint" in values and Path(values["checkpoint"]).is_dir():  # the notebooks run in another directory
        values["checkpoint"] = str(Path(values["checkpoint"]).resolve())
    return values


def study(name: str, notebooks=None, parameters: dict | None = None, publish: str | None = None) -> int:
    """Run `notebooks` (all of them if None) into runs/`name` and write report.html; 0 if every cell of each ran.

    A notebook that was run completely with the same parameters and source is not run again, unless one before it was:
    later notebooks read what earlier ones wrote. The last line printed is the path of the report.
    """
    chosen, parameters = _choose(notebooks), parameters or {}
    if publish:
        stored.check_part(Path(publish))
    known = {notebook: defaults(notebook) for notebook in chosen}
    for parameter in parameters:
        check_name(parameter, {each: None for notebook in chosen for each in known[notebook]}, "the notebooks together")
    run_dir = (paths.RUNS / name).absolute()
    tasks = {
        notebook: {key: parameters[key] for key in known[notebook] if key in parameters} | {"run": str(run_dir)}
        for notebook in chosen
    }
    from sam3lab.study import report

    failed = execute(tasks, run_dir)
    page = report.write(run_dir)
    if publish:
        publish_results(run_dir, Path(publish))
    if failed:
        print(f"not completed: {', '.join(failed)}; the report says why")
    print(page)
    return 1 if failed else 0


def publish_results(run_dir: Path, directory: Path) -> None:
    """Store a run's results compactly in `directory`, with what `sam3lab figures` needs to render them anywhere.

    data/results/<machine> for a whole study; data/results/<machine>/<part> for some of its notebooks, where others are
    run at another time (see stored.check_part).
    """
    from sam3lab.bench import results

    results.consolidate(run_dir, directory)
    serving_store.consolidate(run_dir, directory)
    shutil.copy(run_dir / "facts.json", directory / "facts.json")
    print(f"results stored in {directory}")


def _choose(notebooks) -> list[str]:
    """The notebooks asked for, in order. UserError where there is none, or none of that name."""
    if not names():
        raise UserError(f"there are no notebooks in {paths.NOTEBOOKS}: run this from a clone of the project")
    if not notebooks:
        return names()
    asked = [Path(notebook).stem for notebook in notebooks]
    for notebook in asked:
        if notebook not in names():
            raise UserError(f"there is no notebook {notebook!r}: choose among {', '.join(names())}")
    return [notebook for notebook in names() if notebook in asked]


def execute(tasks: dict[str, dict], run_dir: Path) -> list[str]:
    """Run each notebook with its parameters into `run_dir`/notebooks; the names of those not completed."""
    from sam3lab.study.screen import Screen

    failed, changed = [], False
    with Screen(len(tasks)) as screen:
        for number, (notebook, given) in enumerate(tasks.items(), 1):
            if not changed and is_done(run_dir, notebook, given):
                screen.done(number, notebook, "done before")
                continue
            changed, start = True, time.monotonic()
            screen.begin(number, notebook)
            problem = _execute_one(run_dir, notebook, given, screen)
            took = f"{time.monotonic() - start:.0f} s"
            screen.done(number, notebook, f"FAILED after {took}: {problem}" if problem else took)
            if problem:
                failed.append(notebook)
    return failed


def _execute_one(run_dir: Path, notebook: str, given: dict, screen) -> str | None:
    """Run one notebook; what went wrong in one line, or None, in which case it is marked as done."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    copy, mark = _places(run_dir, notebook)
    copy.parent.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    state = _state(notebook, given)
    problem = None
    try:
        papermill.execute_notebook(
            paths.NOTEBOOKS / f"{notebook}.ipynb",
            copy,
            parameters=given,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=screen,
            stderr_file=screen,
            extra_arguments=["--log-level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    except (RuntimeError, TimeoutError, OSError) as error:  # the kernel died, or never came up
        problem = f"{type(error).__name__}: {error}"
    if problem or not is_complete(copy):
        return problem or "not every cell ran"
    write_json(mark, state | {"executed": _digest([copy])})
    return None


def _places(run_dir: Path, notebook: str) -> tuple[Path, Path]:
    folder = Path(run_dir) / "notebooks"
    return folder / f"{notebook}.ipynb", folder / f"{notebook}.done.json"


def _digest(files) -> str:
    whole = hashlib.sha256()
    for file in files:
        whole.update(hashlib.sha256(Path(file).read_bytes()).digest())
    return whole.hexdigest()


def _state(notebook: str, given: dict) -> dict:
    """What a finished notebook depends on: its parameters, and its source with that of what it calls to show things."""
    code = sorted(Path(__file__).parent.glob("*.py"))
    return {
        "parameters": given,
        "source": _digest([paths.NOTEBOOKS / f"{notebook}.ipynb", paths.DATA / "claims.csv", *code]),
    }


def is_complete(executed: Path) -> bool:
    """Whether every code cell of an executed copy ran, without an error."""
    import nbformat

    if not executed.exists():
        return False
    cells = [cell for cell in nbformat.read(executed, as_version=4).cells if cell.cell_type == "code" and cell.source]
    return all(
        cell.execution_count and not any(output.output_type == "error" for output in cell.outputs) for cell in cells
    )


def is_done(run_dir: Path, notebook: str, given: dict) -> bool:
    """Whether this notebook was run to its end, with these parameters and this source, and its copy is whole."""
    copy, mark = _places(run_dir, notebook)
    try:
        state = json.loads(mark.read_text(encoding="utf-8"))
        return state == _state(notebook, given) | {"executed": _digest([copy])} and is_complete(copy)
    except (OSError, ValueError):
        return False


def problems(run_dir: Path, failed: list[str]) -> list[str]:
    """The error of each notebook that failed, one line each."""
    from sam3lab.study import report

    return [f"{notebook}: {report.problem(_places(run_dir, notebook)[0])}" for notebook in failed]
