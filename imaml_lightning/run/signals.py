"""What SIGINT (Ctrl-C) and SIGTERM do to a command."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

from imaml_lightning.errors import Stopped

#: Seconds from a signal to the end of the process, however long the meta-step or the last upload takes.
GRACE = 25.0
#: Seconds that other ranks get to end by themselves after a fault.
PATIENCE = 5.0


class Signals:
    """Ends a command by :class:`Stopped`: at once, or within training once the meta-step is finished and saved.

    A second SIGINT ends the process there and then, and so does the end of ``GRACE``. Use as a context manager.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferred = False
        self._ranks: list[subprocess.Popen] = []
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Signals:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._install()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def defer(self, ranks: list[subprocess.Popen]) -> None:
        """From here on a signal only sets ``received``. ``ranks`` are the processes that this one has started.

        Lightning installs handlers of its own just before training starts (they save nothing, and exchange messages
        between ranks from within the handler), so this is called again after it.
        """
        self._deferred, self._ranks = True, ranks
        self._install()

    def leave(self) -> None:
        """The command is ending for another reason: SIGTERM has nothing to add, and ranks end as they like.

        Lightning's observer would otherwise kill this process, before it has said why, because another rank ended.
        """
        self._deferred = True
        if self.received is None:
            self.received = 0
        ranks, self._ranks = self._ranks, [*self._ranks]
        ranks.clear()

    def end_ranks(self) -> None:
        """Wait a little for the ranks that this process has started, then kill those that are left.

        A rank that ends wakes the process that started it: were that one stopped (SIGSTOP), it could not end.
        """
        if int(os.environ.get("LOCAL_RANK", 0)):
            os.kill(os.getppid(), signal.SIGCONT)
        deadline = time.monotonic() + PATIENCE
        for rank in self._ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                rank.wait(max(0.0, deadline - time.monotonic()))
            rank.kill()  # does nothing to one that has ended
            rank.wait()

    def _install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                self._exit(number)
            return
        self.received = number
        self._timer = threading.Timer(GRACE, self._exit, [number])
        self._timer.daemon = True
        self._timer.start()
        if not self._deferred:
            raise Stopped(number, f"stopped by {signal.Signals(number).name}")
        print(f"{signal.Signals(number).name}: finishing the meta-step, then saving", file=sys.stderr, flush=True)

    def _exit(self, number: int) -> None:
        for rank in self._ranks:
            rank.kill()
        message = (
            f"error: left at once ({signal.Signals(number).name}): go on from the last checkpoint, --ckpt_path last\n"
        )
        os.write(2, message.encode())  # print could be the very thing that was interrupted
        os._exit(128 + number)
