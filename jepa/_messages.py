"""Errors of files and of the machine in one line: which file, what happened, what to do"""
import errno
import os
import re
import shutil
import traceback
from pathlib import Path

ELSEWHERE = 'write elsewhere, with --out or the folders of settings.ini'
REMEDIES = {
    errno.ENOSPC: f'make room, or {ELSEWHERE}',
    errno.EDQUOT: f'make room, or {ELSEWHERE}',
    errno.EFBIG: f'this file system takes no file as large; {ELSEWHERE}',
    errno.EROFS: ELSEWHERE,
    errno.EACCES: f'change its permissions, or {ELSEWHERE}',
    errno.EPERM: f'change its permissions, or {ELSEWHERE}',
    errno.ENAMETOOLONG: 'a file system takes names of 255 bytes; give it a shorter one',
    errno.EMFILE: 'raise the limit (ulimit -n 4096), or lower workers in settings.ini',
    errno.ENFILE: 'close other programs, or lower workers in settings.ini',
    errno.EIO: 'the disk or the network file system fails; look at the system log',
    errno.ESTALE: 'the network file system went away; mount it again',
    errno.ENOMEM: 'lower --batch-size, or workers in settings.ini',
    errno.ENOENT: 'look at the spelling', errno.ENOTDIR: 'a part of this path is a file; name a folder',
    errno.EISDIR: 'this is a folder; name a file', errno.ELOOP: 'a link leads to itself; remove it',
    errno.EEXIST: 'name another one', errno.ENOTEMPTY: 'name another one',
}
SHARED_MEMORY = 'enlarge it (docker: --shm-size 2g), or set workers = 0 in settings.ini'
DAMAGED = {'JSONDecodeError', 'TOMLDecodeError', 'NotJSONError', 'ParserError', 'EmptyDataError', 'BadZipFile', 'ReadError',
           'EOFError', 'UnpicklingError', 'SafetensorError'}
NAMES = ('temporary', 'path', 'file', 'filename', 'self', 'folder', 'destination', 'out', 'f', 'fp')


def final_name(path) -> str:
    "The name that a temporary file beside it will get"
    return re.sub(r'(^|/)\.([^/]+)\.\d+\.tmp$', r'\1\2', os.fspath(path))


def path_of(error) -> str:
    "The file that an error is about; if it names none, the one that the innermost function worked on; '' if there is none"
    for name in (getattr(error, 'filename2', None), getattr(error, 'filename', None)):
        if isinstance(name, (str, bytes, os.PathLike)) and name: return final_name(os.fsdecode(name))
    for frame in reversed([frame for frame, _ in traceback.walk_tb(error.__traceback__)]):
        for value in map(frame.f_locals.get, NAMES):
            if not isinstance(value, Path): value = getattr(value, 'name', None) # of an open file
            if isinstance(value, Path) or isinstance(value, str) and os.sep in value: return final_name(value)
    return ''


def free_space(path) -> str:
    "What is free where a file lies"
    path = Path(path).absolute()
    place = next(p for p in (path, *path.parents) if p.exists())
    return f'{shutil.disk_usage(place).free/2**20:.1f} MiB free'


def system_error(error) -> int:
    "The system's number of an error, also if a library tells it in words only; 0 if it has none"
    if isinstance(error, OSError): return error.errno or 0
    if type(error).__name__ == 'SafetensorError': return int((re.findall(r'os error (\d+)', str(error)) or [0])[-1])
    if not isinstance(error, RuntimeError): return 0
    words = {errno.ENOSPC: 'No space left|file write failed|PytorchStreamWriter|inline_container',
             errno.EACCES: 'Permission denied|cannot be opened', errno.ENOENT: 'Parent directory'}
    return next((number for number, text in words.items() if re.search(text, str(error))), 0)


def of_the_machine(error) -> str:
    "Memory and processes that gave out; '' if it is another error"
    text = str(error)
    if isinstance(error, RuntimeError) and re.search('/torch_|shared memory|Bus error', text):
        return f'/dev/shm is too small for the loading processes ({free_space("/dev/shm")}); {SHARED_MEMORY}'
    if type(error).__name__ == 'BrokenProcessPool' or 'DataLoader worker' in text and 'exited unexpectedly' in text:
        return 'a loading process was killed (by hand, or since memory was short); lower workers in settings.ini'
    if isinstance(error, MemoryError) or type(error).__name__ == 'OutOfMemoryError':
        return 'memory is full; lower --batch-size, or workers in settings.ini'
    return ''


def of_a_file(error) -> str:
    "A file that cannot be read or written; '' if it is another error"
    number, path = system_error(error), path_of(error)
    if number:
        facts = os.strerror(number) + (f' ({free_space(path)})' if number in (errno.ENOSPC, errno.EDQUOT) else '')
        return f"{path or 'a file'}: {facts}; {REMEDIES.get(number, ELSEWHERE)}"
    if isinstance(error, UnicodeDecodeError):
        return f"{path or 'a file'} is not text in UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return f"{ascii(error.object)}: a name that is no text in {error.encoding}; rename the file"
    if type(error).__name__ in DAMAGED and path and Path(path).name not in str(error):
        return f'{path} is damaged or empty ({first_line(error)}); remove it, and the command that wrote it makes it again'
    return ''


def first_line(error) -> str: return (str(error).strip().splitlines() or [type(error).__name__])[0]


def explain(error) -> str:
    "One line for a mistake or a limit of the machine; '' for an error of the program, which keeps its traceback"
    if isinstance(error, BrokenPipeError): return '' # who reads the output has left
    if text := of_the_machine(error) or of_a_file(error): return one_line(text)
    mistakes = (KeyError, ValueError, TypeError, FloatingPointError, OSError)
    if not isinstance(error, mistakes) and not type(error).__module__.startswith('jepa.'): return ''
    return one_line(str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error) or type(error).__name__)


def one_line(text) -> str:
    "Text that every terminal takes; of an error that a loading process sent, its last line"
    if 'Original Traceback' in text: text = text.strip().splitlines()[-1].partition(': ')[2]
    return ' '.join(printable(text).split())


def printable(text) -> str:
    "Bytes of a file name that are no text are written as \\x.."
    return os.fsencode(text).decode('utf-8', 'backslashreplace')
