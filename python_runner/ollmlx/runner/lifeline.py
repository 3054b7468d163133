"""The runner's end of the lifeline: it must not outlive its host.

The host holds the write end of a pipe whose read end is fd 3 here. However the host ends, the kernel closes
its end, the blocked read returns end of file, and the process ends at once. Started before every other
import, so that no slow import leaves a window in which an orphan could live on.
"""

import os
import threading
import time

LIFELINE_FD = 3

# How often the parent's pid is looked at, in seconds: a belt for the case that the pipe was inherited
# elsewhere.
_PARENT_CHECK_SECONDS = 5.0


def start(fd: int = LIFELINE_FD) -> None:
    """Watch the lifeline from a daemon thread; raises OSError when `fd` is not open."""
    os.fstat(fd)
    os.set_inheritable(fd, False)
    threading.Thread(target=_watch_pipe, args=(fd,), name="lifeline", daemon=True).start()
    threading.Thread(target=_watch_parent, args=(os.getppid(),), name="parent", daemon=True).start()


def _watch_pipe(fd: int) -> None:
    while os.read(fd, 1):
        pass
    os._exit(0)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_SECONDS)
    os._exit(0)
