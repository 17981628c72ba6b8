"""What each level of ONNX Runtime's graph optimisation is worth."""

from sam3lab.study import tables

FULL = "onnxruntime"
LEVELS = {
    "onnxruntime-unoptimised": "none",
    "onnxruntime-basic": "basic: constants folded, what is redundant removed",
    "onnxruntime-extended": "extended: operators fused too",
    FULL: "all: memory layouts changed too",
}


def cases(study) -> list:
    """The pipeline at each level but the full one, which is the runtime's own row; none where that is not measured, and
    none on a CPU, to keep the study there within minutes.
    """
    given = study.parameters
    lower = [name for name in LEVELS if name != FULL] if given["device"] == "cuda" and FULL in given["backends"] else []
    return [study.case(name, mode="pipeline") for name in lower]


def show(study, samples) -> None:
    """Record `levels.speed.<backend>`, how many times as fast as the full level each is, and show it as a table.

    samples: of `cases` and of the runtime's own row, measured together; without them it is told that there are none.
    """
    import pandas as pd

    ours = samples[samples["backend"].isin(LEVELS)]
    if set(ours["backend"]) <= {FULL}:
        study.say("*The levels were not measured here.*")
        return
    speed = tables.ratios(ours, to={"backend": FULL}, invert=True)
    study.record("levels.speed", speed, "×", ["backend"])
    cells = tables.column(speed)
    rows = [(LEVELS[name], cells.get(name, "failed: see the report's last table")) for name in LEVELS]
    table = pd.DataFrame(rows, columns=["Level", "Times as fast as all of it"])
    study.table(table, "levels", "The pipeline by level of graph optimisation.")
