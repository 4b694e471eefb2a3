"""Files of a run that can be trusted: checksums, a previous checkpoint, errors that name the file and the remedy"""
import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pandas as pd
import torch

from .core import write_beside

CHECKPOINT, PREVIOUS, DAMAGED = 'checkpoint.pt', 'checkpoint.previous.pt', 'checkpoint.damaged.pt'


def damage(file) -> str:
    "Why a file of torch cannot be trusted, '' if it can: every part is read against the checksum stored with it"
    file = Path(file)
    if not file.exists(): return f'{file} is missing'
    try:
        with zipfile.ZipFile(file) as parts: bad = parts.testzip()
        if bad: return f"{file} is damaged: {bad.partition('/')[2]} does not have its checksum"
        torch.load(file, weights_only=True, map_location='cpu', mmap=True)
    except Exception as e: # a flipped bit may lead anywhere
        return f'{file} is damaged: {str(e).splitlines()[0] if str(e) else type(e).__name__}'
    return ''


def load_tensors(file, remedy):
    "The content of a file of torch that is sound; an error with the remedy if it is not"
    if reason := damage(file): raise (ValueError if Path(file).exists() else FileNotFoundError)(f'{reason}; {remedy}')
    return torch.load(file, weights_only=True, map_location='cpu', mmap=True)


def write_checkpoint(folder, state):
    "Write the newest checkpoint beside and rename it; the one before it stays as the previous one"
    newest, previous = Path(folder)/CHECKPOINT, Path(folder)/PREVIOUS
    with write_beside(newest) as temporary:
        try: torch.save(state, temporary)
        except (OSError, RuntimeError) as e: raise OSError(f'{newest} cannot be written: {_why(e, folder)}') from None
        if newest.exists(): _keep(newest, previous)


def _why(e, folder) -> str:
    "Why torch could not write, with the space that is left and the remedy"
    free = shutil.disk_usage(folder).free/2**20
    reason = e.strerror if isinstance(e, OSError) and e.strerror else 'torch could not write all of it'
    return f'{reason}; {free:.0f} MiB are free there: make room, and the same command goes on'


def _keep(newest, previous):
    "Give the newest checkpoint a second name; where a file system has no links it is moved"
    name = previous.with_name(f'.{PREVIOUS}.{os.getpid()}.tmp')
    try: os.link(newest, name)
    except OSError: name = newest
    os.replace(name, previous)


def settle_checkpoints(folder) -> str:
    "Put the newest sound checkpoint in its place; returns a sentence if that is not the newest"
    newest, previous = Path(folder)/CHECKPOINT, Path(folder)/PREVIOUS
    if not newest.exists() and not previous.exists(): return ''
    if not (reason := damage(newest)): return ''
    if newest.exists(): os.replace(newest, newest.with_name(DAMAGED))
    if not (other := damage(previous)):
        with write_beside(newest) as temporary: shutil.copyfile(previous, temporary)
        return f'{reason}; the previous checkpoint is used instead'
    return f'{reason}; {other}; the run starts at its first step'


def read_json(file, remedy) -> dict:
    "A JSON file of a run"
    file = Path(file)
    if not file.exists(): raise FileNotFoundError(f'{file} is missing; {remedy}')
    try: content = json.loads(file.read_text())
    except ValueError as e: raise ValueError(f'{file} is damaged: {e}; {remedy}') from None
    if not isinstance(content, dict): raise ValueError(f'{file} is damaged: it holds no names with values; {remedy}')
    return content


def read_table(file, remedy, digest='') -> pd.DataFrame:
    "A CSV file of a run; its SHA-256 must be `digest`, where that is known"
    file = Path(file)
    if not file.exists(): raise FileNotFoundError(f'{file} is missing; {remedy}')
    if digest and sha256(file.read_bytes()) != digest: raise ValueError(f'{file} was changed or damaged; {remedy}')
    try: return pd.read_csv(file)
    except ValueError as e: raise ValueError(f'{file} is damaged: {e}; {remedy}') from None


def sha256(content:bytes) -> str: return hashlib.sha256(content).hexdigest()


def csv_bytes(rows) -> bytes:
    "A table as the bytes of a CSV file, the same on every system"
    return pd.DataFrame(rows).to_csv(index=False, lineterminator='\n').encode()


def write_bytes(file, content):
    with write_beside(file) as temporary: Path(temporary).write_bytes(content)


def set_aside(folder, keep=()) -> Path:
    "Move what a folder holds, but `keep`, to FOLDER.old, in place of what is there"
    folder = Path(folder)
    old = folder.with_name(f'{folder.name}.old')
    if old.exists(): shutil.rmtree(old)
    for file in [f for f in folder.iterdir() if f.name not in keep]:
        old.mkdir(exist_ok=True)
        shutil.move(file, old/file.name)
    return old


def commit_of(folder) -> str:
    "The commit of a git repository, with + if files were changed since; '' elsewhere"
    def git(*words):
        command = ['git', '-C', str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not (Path(folder)/'.git').exists(): return ''
    try: return git('rev-parse', 'HEAD') + '+'*bool(git('status', '--porcelain', '--untracked-files=no'))
    except (OSError, subprocess.CalledProcessError): return ''
