"""Run the notebooks through papermill: in order, with progress, resumable, and with an honest exit status."""

import ast
import hashlib
import json
import tempfile
import time
from pathlib import Path

from sam3lab import atomic, paths
from sam3lab.bench import records
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

    A notebook that was run completely with the same parameters and source is not run again, unless one before it was
    (later notebooks read what earlier ones wrote), or the run holds something that failed, or was skipped and could be
    run now: that is tried again, and what is measured is kept. The path of the report is printed at the end; with `publish`,
    a directory, the results are stored there then, whatever failed, but not where nothing was measured. UserError,
    before any notebook is run, for what cannot be: a name, parameter, runtime, checkpoint or directory.
    """
    chosen, parameters = _choose(notebooks), parameters or {}
    run_dir = records.named(name).absolute()
    known = {notebook: defaults(notebook) for notebook in chosen}
    for parameter in parameters:
        check_name(
            parameter,
            {each: None for notebook in chosen for each in known[notebook]},
            f"a study of {', '.join(chosen)}",
        )
    _check_there(parameters)
    if publish:
        stored.check_part(Path(publish))
        make_folder(Path(publish))
    tasks = {
        notebook: {key: parameters[key] for key in known[notebook] if key in parameters} | {"run": str(run_dir)}
        for notebook in chosen
    }
    from sam3lab.study import report

    failed = execute(tasks, run_dir, afresh=_try_again(run_dir))
    page = report.write(run_dir)
    if failed:
        print(f"not completed: {', '.join(failed)}; the report says why")
    print(page)
    measured = any((run_dir / "results").glob("*.parquet"))
    if publish and measured:
        publish_results(run_dir, Path(publish))
    elif publish:
        print(f"nothing was measured, so nothing is stored in {publish}")
    return 1 if failed or (publish and not measured) else 0


def _check_there(parameters: dict) -> None:
    """UserError where a runtime or a checkpoint that is asked for does not exist; random weights are not made yet."""
    from sam3lab import backends
    from sam3lab.model import checkpoint

    for name in parameters.get("backends", ()):
        backends.get(name)
    for name in (parameters.get("checkpoint"), parameters.get("huge")):
        if name and not checkpoint.is_random(name):
            checkpoint.image_size(checkpoint.resolve(name))


def make_folder(directory: Path) -> None:
    """Make a directory; UserError where it, or a file in it, cannot be made."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise UserError(f"nothing can be stored in {directory} ({error.strerror}): name another place") from error


def _try_again(run_dir: Path) -> bool:
    """Whether the run holds something to try again, which is told; the measuring code then does so."""
    from sam3lab.bench import runner

    kept = (run_dir / serving_store.FOLDER).glob("*.json")
    served = [path.stem.rsplit("-", 1)[0] for path in sorted(kept) if not serving_store.is_done(run_dir, path.stem)]
    try:
        measured = runner.release(run_dir)
    except UserError as error:
        print(f"what failed or was skipped is not tried again: {error}")
        measured = []
    if again := [*dict.fromkeys(measured), *served]:
        print(f"tried again, since it failed or was skipped: {', '.join(again)}")
    return bool(again)


def publish_results(run_dir: Path, directory: Path) -> None:
    """Store a run's results compactly in `directory`, with what `sam3lab figures` needs to render them anywhere.

    data/results/<machine> for a whole study; data/results/<machine>/<part> for some of its notebooks, where others are
    run at another time (see stored.check_part). The parameters of a notebook that was not run to its end are left out,
    so that it is shown from another part or not at all. UserError where `directory` holds one that was. What is there
    goes before anything new comes, facts.json last: what a kill leaves is not read as if it were whole.
    """
    from sam3lab.bench import results

    facts = stored.facts(run_dir)
    begun = {key: key.removeprefix("parameters.") for key in facts if key.startswith("parameters.")}
    unfinished = {key: notebook for key, notebook in begun.items() if not _places(run_dir, notebook)[1].exists()}
    try:
        before = stored.facts(directory)
    except UserError:  # damaged, which this mends
        before = {}
    kept = {key: value for key, value in facts.items() if key not in unfinished}
    if hidden := [
        key.removeprefix("parameters.") for key in before if key.startswith("parameters.") and key not in kept
    ]:
        raise UserError(
            f"nothing is stored: {directory} holds results of {', '.join(hidden)}, which this run did not complete; "
            "run it again, or publish into another folder"
        )
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "made"
        results.consolidate(run_dir, made)
        serving_store.consolidate(run_dir, made)
        data = {path.name: path.read_bytes() for path in made.iterdir()}
    for name in ("facts.json", serving_store.PUBLISHED, *data):
        (directory / name).unlink(missing_ok=True)
    for name, content in data.items():
        atomic.write(directory / name, content)
    write_json(directory / "facts.json", kept)
    print(f"results stored in {directory}")
    if unfinished:
        print(f"stored without these notebooks, which were not run to their end: {', '.join(unfinished.values())}")


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


def execute(tasks: dict[str, dict], run_dir: Path, afresh: bool = False) -> list[str]:
    """Run each notebook with its parameters into `run_dir`/notebooks; the names of those not completed.

    What is complete is not run again, unless `afresh`, or one before it was run.
    """
    from sam3lab.study.screen import Screen

    failed, changed = [], afresh
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
