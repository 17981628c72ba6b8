"""Backends that go wrong in known ways, for the harness's tests; a Case names them as "tests.fakes:Class"."""

import ctypes
import os
import time
from pathlib import Path

import numpy as np

from sam3lab.backends.sleep import SleepBackend
from sam3lab.errors import UserError


class Quick(SleepBackend):
    """Right, in a millisecond a stage."""

    milliseconds = 1.0


class Other(Quick):
    """Right too, under another name."""


class Drifts(Quick):
    """Three times as slow in each process as in the one before, which the directory SAM3LAB_TEST_DRIFT counts."""

    def load(self, artifacts):
        super().load(artifacts)
        before = Path(os.environ["SAM3LAB_TEST_DRIFT"])
        self.milliseconds = 3.0 ** len(list(before.iterdir()))
        (before / str(os.getpid())).touch()


class Segfault(Quick):
    def image(self, pixels):
        return ctypes.string_at(0)


class Raises(Quick):
    def text(self, ids, mask):
        raise RuntimeError("no text today")


class Hangs(Quick):
    def detect(self, *arguments):
        time.sleep(1000)


class Exits(Quick):
    """Ends cleanly, but without an answer."""

    def load(self, artifacts):
        os._exit(0)


class CrashesAtExit(Quick):
    """Answers, but does not end cleanly."""

    def close(self):
        import atexit

        atexit.register(os.abort)


class Moody(Quick):
    """Crashes while the file named by SAM3LAB_TEST_MOOD exists."""

    def load(self, artifacts):
        super().load(artifacts)
        if Path(os.environ["SAM3LAB_TEST_MOOD"]).exists():
            os.abort()


class Wrong(Quick):
    def detect(self, *arguments):
        outputs = super().detect(*arguments)
        return outputs._replace(boxes=outputs.boxes[:, ::-1].copy())


class Shifted(Quick):
    """Finds the same boxes and scores, but its masks lie two cells to the right."""

    def detect(self, *arguments):
        outputs = super().detect(*arguments)
        return outputs._replace(masks=np.roll(outputs.masks, 2, axis=-1))


class LessSure(Quick):
    """Finds the same, but scores it a little lower."""

    def detect(self, *arguments):
        outputs = super().detect(*arguments)
        return outputs._replace(logits=outputs.logits - 0.2)


class NotFinite(Quick):
    def detect(self, *arguments):
        outputs = super().detect(*arguments)
        masks = outputs.masks.copy()
        masks.flat[0] = np.nan
        return outputs._replace(masks=masks)


class Absent(Quick):
    @classmethod
    def unavailable(cls, device="cpu", precision="fp32"):
        return "this runtime is not installed: install it"


class CannotPrepare(Quick):
    @classmethod
    def prepare(cls, artifacts):
        raise UserError("its graphs cannot be made")


class CrashesInPrepare(Quick):
    @classmethod
    def prepare(cls, artifacts):
        os.abort()


class ChecksThreads(Quick):
    """Refuses to load unless it was given a number of threads, and the environment says the same."""

    def load(self, artifacts):
        super().load(artifacts)
        assert artifacts.threads > 0
        assert os.environ["OMP_NUM_THREADS"] == str(artifacts.threads)
        assert os.environ["MKL_NUM_THREADS"] == str(artifacts.threads)


class Compiles(Quick):
    """Takes its time in the first call of a shape, and remembers it in the file named by SAM3LAB_TEST_COMPILED."""

    compiles = True

    def image(self, pixels):
        path = Path(os.environ["SAM3LAB_TEST_COMPILED"])
        shape = f"{len(pixels)}\n"
        if not path.exists() or shape not in path.read_text().splitlines(keepends=True):
            with path.open("a") as file:
                file.write(shape)
        return super().image(pixels)


class MeetsAnother(Quick):
    """Can only be prepared while another case is: each leaves a file in SAM3LAB_TEST_MEETING and waits for two."""

    @classmethod
    def prepare(cls, artifacts):
        place = Path(os.environ["SAM3LAB_TEST_MEETING"])
        (place / str(artifacts.resolution)).touch()
        deadline = time.monotonic() + 30
        while len(list(place.iterdir())) < 2:
            if time.monotonic() > deadline:
                raise UserError("nothing else was prepared at the same time")
            time.sleep(0.02)
        return artifacts


def _come(name):
    """Leave a file of that name in SAM3LAB_TEST_MEETING; the folder."""
    place = Path(os.environ["SAM3LAB_TEST_MEETING"])
    (place / name).touch()
    return place


class OnGpu(Quick):
    """Says that it computes on a GPU."""

    @classmethod
    def unavailable(cls, device="cpu", precision="fp32"):
        return None


class AnswersBeside(OnGpu):
    """Can only be loaded while another is: each leaves a file in SAM3LAB_TEST_MEETING and waits for two."""

    def load(self, artifacts):
        place = _come(f"{type(self).__name__}-{artifacts.precision}")
        deadline = time.monotonic() + 30
        while len(list(place.iterdir())) < 2:
            if time.monotonic() > deadline:
                raise UserError("nothing else answered at the same time")
            time.sleep(0.02)
        super().load(artifacts)


class NeedsAll(AnswersBeside):
    """Has no memory the first time, when another is there."""

    def load(self, artifacts):
        first = not (Path(os.environ["SAM3LAB_TEST_MEETING"]) / f"NeedsAll-{artifacts.precision}").exists()
        super().load(artifacts)
        if first:
            raise MemoryError
