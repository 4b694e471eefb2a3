"""Memory that tensors gave back stays with the process"""
import ctypes, os, sys


def keep_memory(environ=os.environ):
    """Tell glibc to keep freed memory for the next step instead of returning it to the system, which clears every page of it again.

    Returns whether it was told. Only speed changes, and how much memory the process holds between steps. Whoever sets glibc's own
    variables (`MALLOC_...` or `GLIBC_TUNABLES`) is left alone; other C libraries have no `mallopt`."""
    if not sys.platform.startswith('linux') or 'GLIBC_TUNABLES' in environ or any(name.startswith('MALLOC_') for name in environ): return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None: return False
    options = {-3: 32*2**20, # M_MMAP_THRESHOLD: larger blocks are mapped on their own; 32 MiB is the most that glibc takes
               -1: 2**31 - 1, # M_TRIM_THRESHOLD: unused memory that makes it return some
               -2: 64*2**20} # M_TOP_PAD: how much more to ask for than is needed
    return all([mallopt(option, value) for option, value in options.items()])
