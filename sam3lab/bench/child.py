"""The child's side of a measuring process: it dies with its parent, and its log tells how it died otherwise."""

import ctypes
import faulthandler
import os
import signal
import sys
from collections.abc import Callable

from sam3lab.errors import UserError

_PR_SET_PDEATHSIG = 1


def tie_to_parent(parent: int) -> None:
    """From here on this process is killed when `parent` ends, however it ends. Linux; nothing elsewhere."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before the call above.
    if os.getppid() != parent:
        os._exit(1)
    # When memory runs out, this process should go and not the notebook that waits for it.
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("900")
    except OSError:
        pass


def guard(main: Callable[..., None], *arguments: str) -> None:
    """Run `main`. Stacks go to the log on a crash, and on SIGUSR1, which the parent sends to one that hangs."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        main(*arguments)
    except UserError as error:
        sys.exit(f"UserError: {error}")
