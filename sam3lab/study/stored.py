"""Stored results: of one run, or of one machine whose notebooks were run in several goes.

data/results/<machine>/ holds the files of one run, or a folder for each of several (its parts), which are never mixed: a
notebook is shown from the newest part that ran it, so that whatever is compared was measured in one run, interleaved.
"""

from pathlib import Path

from sam3lab import paths
from sam3lab.bench import environment as environments
from sam3lab.bench import files, results
from sam3lab.errors import UserError
from sam3lab.study import numbers


def parts(directory: Path) -> list[Path]:
    """The runs in a directory, oldest first: itself, or the folders in it that hold a run's facts.json or its rows."""
    directory = Path(directory)
    found = set() if _holds_run(directory) else {path for path in directory.glob("*") if _holds_run(path)}
    return sorted(found, key=lambda part: (_environment(part).get("collected", ""), part.name)) or [directory]


def by_notebook(directory: Path) -> dict[str, Path]:
    """{notebook: the newest run in a directory that ran it, of published ones to its end}."""
    return {notebook: each for each in parts(directory) for notebook in ran(each)}


def ran(run: Path) -> list[str]:
    """The notebooks that a run ran, if it is a published one to their end."""
    return [key.removeprefix("parameters.") for key in facts(run) if key.startswith("parameters.")]


def part(directory: Path, notebook: str) -> Path | None:
    """The newest run in a directory that ran a notebook, of published ones to its end; None if none did."""
    return by_notebook(directory).get(notebook)


def shown(directory: Path, notebook: str) -> Path:
    """The run in a directory that a notebook which measures is shown from: its part, or the only run that there is.

    UserError, naming the parts, where there are several and none ran it.
    """
    there = parts(directory)
    if (found := part(directory, notebook)) is None and len(there) > 1:
        ran = ", ".join(each.name for each in there)
        raise UserError(f"{directory} holds the parts {ran}, none of which ran {notebook}: measure it, or show another")
    return found or there[0]


def nearest(path: str | Path) -> Path:
    """A path as seen from the working directory or, where there is nothing but the clone has it, from the clone's root:
    a notebook's kernel works in notebooks/.
    """
    own, clones = Path(path), paths.ROOT / path
    return clones if clones.exists() and not own.exists() else own


def directory(path: str | Path) -> Path:
    """The directory of stored results at `path`, see `nearest`; UserError where there is none."""
    found = nearest(path)
    if not found.is_dir():
        raise UserError(
            f"there is no directory {path} (from {Path.cwd()} or {paths.ROOT}): name one that `sam3lab study` wrote, or "
            "one in data/results/"
        )
    return found


def latest(facts: dict) -> dict:
    """The parameters of the last notebook that was run, from `facts`."""
    asked = [key for key in facts if key.startswith("parameters.")]
    return facts[max(asked)] if asked else {}


def facts(directory: Path) -> dict:
    """What the runs in a directory found out once, the newer in place of the older; empty where there is none yet."""
    found = {}
    for each in parts(directory):
        path = each / "facts.json"
        if path.exists():
            found |= files.read_json(path)
        elif _holds_run(each):
            raise UserError(f"{each} holds stored results without facts.json: {files.REMEDY}")
    return found


def of_newest_code(directory: Path) -> dict[int, Path]:
    """{number: run} of the runs in a directory, numbered from 1, the oldest, that the newest one's measuring code made."""
    made_by = {each: _environment(each).get("code") for each in parts(directory)}
    *_, newest = made_by.values()
    return {number: each for number, (each, code) in enumerate(made_by.items(), 1) if code == newest}


def gathered(directory: Path, read):
    """The frames that `read` (results.load, .failures, …) gives of each run in a directory, one below the other."""
    import pandas as pd

    frames = [read(each) for each in parts(directory)]
    return pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]


def environment(directory: Path) -> dict:
    """What the newest run in a directory was measured on, as results.environment."""
    return results.environment(parts(directory)[-1])


def differences(directory: Path) -> dict[str, list[str]]:
    """{fact: its values} of what the environments of the runs in a directory do not agree in, oldest first."""
    known = [_environment(each) for each in parts(directory)]
    names = dict.fromkeys(name for other in known[1:] for name in environments.differences(known[0], other))
    return {name: [str(each.get(name)) for each in known] for name in names}


def goes(directory: Path) -> dict[str, list[str]]:
    """{fact: its values, oldest first} of the runs in a directory: its folder, the notebooks that are shown from each,
    when it was measured, by which commit, and what their environments do not agree in; empty where there is but one.
    """
    there, known = parts(directory), [_environment(each) for each in parts(directory)]
    if len(there) == 1:
        return {}
    shown = by_notebook(directory)
    found = {"folder": [each.name for each in there]}
    found["notebooks"] = [", ".join(name for name in sorted(shown) if shown[name] == each) or "none" for each in there]
    found["collected"] = [each.get("collected", "") for each in known]
    found["git_commit"] = [environments.commit(each) or "" for each in known]
    return found | differences(directory)


def of_other_code(directory: Path) -> list[str]:
    """The digests of measuring code in the runs of a directory that are not that of the code which is running now."""
    known = dict.fromkeys(environment(each).get("code") for each in parts(directory))
    return [digest for digest in known if digest not in (None, environments.code())]


def check_no_machines(directory: Path) -> None:
    """UserError where a directory holds machines whose runs lie in parts, which would not be seen."""
    folders = [] if _holds_run(directory) else sorted(directory.glob("*/"))
    if inside := [path.name for path in folders if not _holds_run(path) and parts(path) != [path]]:
        raise UserError(f"{directory} holds machines with parts of their own ({', '.join(inside)}): name one of them")


def check_one_machine(directory: Path) -> None:
    """UserError where the runs in a directory were made on different machines: no page may show them as one; and where
    one of them is not whole.
    """
    known = {_machine(environment(each)): each for each in parts(directory)}
    if len(known) > 1:
        found = "; ".join(f"{each.name}: {', '.join(machine)}" for machine, each in known.items())
        raise UserError(f"{directory} holds runs of several machines ({found}): give each machine a folder of its own")


def check_part(directory: Path) -> None:
    """UserError where a run may not be stored in `directory`, because it would hide other runs that are there."""
    directory = Path(directory)
    if directory.is_dir() and parts(directory) != [directory]:
        names = ", ".join(each.name for each in parts(directory))
        raise UserError(
            f"{directory} holds the parts {names}: publish into a folder of its own, as {directory / 'new'}"
        )
    if _holds_run(directory.parent):
        raise UserError(
            f"{directory.parent} holds a run itself: move its files into a folder of it, or publish elsewhere"
        )


def machines() -> dict[str, Path]:
    """{name: directory} of what is in data/results/. The last is the one whose figures are shown first: of those with a GPU,
    if there are any, the one that most case-rounds are shown of, and of several such the newest.
    """
    folders = sorted((paths.DATA / "results").glob("*"))
    newest = {folder.name: parts(folder)[-1] for folder in folders if folder.is_dir()}
    known = {name: _environment(part) for name, part in newest.items() if _holds_run(part)}
    much = {
        name: sum(map(results.case_rounds, set(by_notebook(paths.DATA / "results" / name).values()))) for name in known
    }
    order = sorted(known, key=lambda name: (bool(known[name].get("gpu")), much[name], known[name].get("collected", "")))
    return {name: paths.DATA / "results" / name for name in order}


def folder(machine: str, figures: Path) -> Path:
    """Where the figures of a machine lie: in `figures` itself if it is shown first, else in a folder of its name."""
    return figures if machine == list(machines())[-1] else figures / machine


def published(figures: Path) -> dict[str, dict]:
    """The numbers of all machines whose figures lie in `figures`: of the one that is shown first by their keys, and of
    every machine also by `<machine>:<key>`.
    """
    found = {}
    for machine in machines():
        own = numbers.load(folder(machine, figures) / "numbers.json")
        found = own | {key: record for key, record in found.items() if ":" in key}
        found |= {f"{machine}:{key}": record for key, record in own.items()}
    return found


def of_a_cpu(*folders: Path) -> dict[str, dict]:
    """The numbers that were published of a CPU in the first of these folders of figures that has some, or empty."""
    for place in folders:
        for path in sorted([*place.glob("*/numbers.json"), place / "numbers.json"]):
            known = numbers.load(path)
            if known.get("machine.device", {}).get("value") == "cpu":
                return known
    return {}


def _machine(facts: dict) -> tuple[str, ...]:
    return (facts["gpu"],) if facts.get("gpu") else (facts["cpu"], f"{facts['threads']} threads")


def _holds_run(directory: Path) -> bool:
    return any((directory / name).exists() for name in ("facts.json", results.ROWS))


def _environment(directory: Path) -> dict:
    path = Path(directory) / "environment.json"
    return files.read_json(path) if path.exists() else {}
