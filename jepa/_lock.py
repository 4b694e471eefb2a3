"""One process at a time: a lock that ends with its process and says who holds it"""
import contextlib
import os
import socket
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

_in_this_process = defaultdict(threading.Lock) # file locks hold between processes, these between threads
if hasattr(os, 'register_at_fork'): os.register_at_fork(after_in_child=_in_this_process.clear)


def _try(file) -> bool:
    "Lock an open file if nobody has; a POSIX record lock belongs to this process alone, not to those it forks"
    try:
        if sys.platform == 'win32':
            import msvcrt
            file.seek(2**30) # a byte behind the text: Windows keeps others from reading a locked byte
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except (BlockingIOError, PermissionError): return False


def holder(path) -> str:
    "Who wrote their name into a lock file last"
    with contextlib.suppress(OSError, ValueError): return Path(path).read_text().strip() or 'another process'
    return 'another process'


def _take(file, path, doing, wait):
    "Lock the file, or wait for it and say for whom, or refuse"
    told = ''
    while not _try(file):
        text = f'{holder(path)} {doing}'
        if not wait: raise BlockingIOError(f'{text}; wait for it, or stop that process')
        if told != text: print(f'jepa: waiting: {text}', file=sys.stderr, flush=True)
        told = text
        time.sleep(.2)


@contextlib.contextmanager
def locked(path, doing, wait=True):
    """Hold the lock file `path` during the block.

    `doing` says what its holder does, such as 'trains in runs/x'.
    Without `wait`, a `BlockingIOError` names the holder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    thread = _in_this_process[str(path.resolve())]
    if not thread.acquire(blocking=wait):
        raise BlockingIOError(f'another thread of this process {doing}; wait for it')
    try:
        with open(path, 'a+') as file:
            _take(file, path, doing, wait)
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
            file.flush()
            yield
    finally: thread.release()
