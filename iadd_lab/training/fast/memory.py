"""Keeping freed memory in the process, where the C library would hand it back and fetch it anew.

Training on the CPU frees and allocates the same large buffers in every step. glibc returns each of them to
the system at once, and the system then clears every page again: nearly half of the run, for nothing.
"""

import ctypes
import functools
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3): M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_LARGEST = 2**31 - 1  # mallopt takes an int
_LARGEST_ONCE = 32 * 2**20  # the most that older versions accept as M_MMAP_THRESHOLD


@functools.cache
def reuse_freed_memory() -> bool:
    """Ask glibc to reuse large freed buffers instead of returning them; True if it agreed.

    Nothing happens, and False is returned, where the C library is another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mapped = mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_THRESHOLD, _LARGEST_ONCE)
    return bool(mallopt(_TRIM_THRESHOLD, _LARGEST) and mapped)
