"""Render what is published from stored results: figures and numbers of every machine, and the numbers in README.md."""

import sys
import tempfile
from pathlib import Path

from sam3lab import paths
from sam3lab.bench.files import write_json
from sam3lab.errors import UserError
from sam3lab.study import numbers, published, readme, run, stored


def figures(results: str | None, out: str) -> int:
    """Render every figure, and numbers.json, from stored results alone; 0 if each notebook could be run.

    results: a directory that `study --publish` wrote, one that holds several such parts of one machine, or a run's; its
    figures go to `out`. None for all of data/results/: the machine that is shown first (see stored.machines) goes to
    `out`, every other into a folder of its name there; and where `out` is the project's figures/, the numbers in
    README.md are written anew. Figures that an earlier call made there, and this one does not, are deleted.
    """
    target = Path(out).absolute()
    if results:
        source = stored.directory(results).absolute()
        stored.check_no_machines(source)
        if stored.facts(source) and not stored.by_notebook(source):
            raise UserError(
                f"no notebook was run to its end in {source}: show another, or the folder that it is a part of"
            )
        places = {source: target}
    else:
        places = {source: stored.folder(machine, target) for machine, source in stored.machines().items()}
    if not places:
        raise UserError("no results are stored in data/results/: give --results DIR, or run `sam3lab study` first")
    run.make_folder(target)
    failed = [notebook for source, place in places.items() for notebook in _render(source, place)]
    if not (failed or results):
        published.remove_others(target, [place.name for place in places.values() if place != target])
    page = paths.ROOT / "README.md"
    if not (failed or results) and target == paths.FIGURES and page.exists():
        page.write_text(readme.refresh(page.read_text(encoding="utf-8"), stored.published(target)), encoding="utf-8")
    print(target)
    return 1 if failed else 0


def _render(source: Path, target: Path) -> list[str]:
    """Render one machine's stored results into a folder; the notebooks that failed, of which it is told why."""
    facts = stored.facts(source)
    if not facts:
        raise UserError(f"{source} has no facts.json: give a directory that `sam3lab study` wrote")
    stored.check_one_machine(source)
    with tempfile.TemporaryDirectory() as scratch:
        how = {"run": scratch, "measure": False, "figures": str(target)}
        tasks = {}
        for notebook in run.names():
            known, part = run.defaults(notebook), stored.part(source, notebook)
            if part is None and "rounds" in known:
                continue  # it measures, and was not run
            # What measures nothing reads all parts, and what it is to show is what the newest was asked for.
            given = stored.facts(part)[f"parameters.{notebook}"] if part else stored.latest(facts)
            where = part if part and "rounds" in known else source
            tasks[notebook] = {name: given[name] for name in known if name in given} | how | {"results": str(where)}
        before = published.shown(target)
        failed = run.execute(tasks, Path(scratch))
        if failed:
            print(f"not rendered: {', '.join(failed)}", *run.problems(Path(scratch), failed), sep="\n", file=sys.stderr)
        published.write(Path(scratch), target, source)
        if not failed:
            published.remove(target, before - published.shown(target))
        write_json(target / "numbers.json", numbers.load(Path(scratch) / "numbers.json"))
    return failed
