"""Memory that tensors gave back stays with the process"""
import ctypes
import os
import sys

# glibc's numbers of options, and the values that keep memory
OPTIONS = {
    -3: 32*2**20,  # M_MMAP_THRESHOLD: larger blocks are mapped on their own; 32 MiB is the most that glibc takes
    -1: 2**31 - 1, # M_TRIM_THRESHOLD: unused memory that makes it return some
    -2: 64*2**20}  # M_TOP_PAD: how much more to ask for than is needed


def keep_memory(environ=os.environ):
    """Tell glibc to keep freed memory for the next step; the system would clear every returned page before its use.

    Returns whether glibc was told. Only speed changes, and how much memory the process holds between steps.
    Whoever sets glibc's own variables (`MALLOC_...` or `GLIBC_TUNABLES`) is left alone.
    Other C libraries have no `mallopt`."""
    chosen = 'GLIBC_TUNABLES' in environ or any(name.startswith('MALLOC_') for name in environ)
    if chosen or not sys.platform.startswith('linux'): return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None: return False
    return all([mallopt(option, value) for option, value in OPTIONS.items()])
