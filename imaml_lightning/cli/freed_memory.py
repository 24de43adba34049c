"""What becomes of memory that tensors no longer need."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep freed memory for the next tensors; on Linux with glibc, elsewhere nothing happens.

    A meta-step on a CPU allocates the same megabytes again and again. glibc hands them back to the system each time
    and the system clears every page anew, which takes about a seventh of a meta-step. The peak stays as it was.
    Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
        mallopt(M_MMAP_MAX, 0)
