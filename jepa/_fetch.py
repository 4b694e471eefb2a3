"""Kinetics from its public archives (CVDF), or video by video from YouTube"""
import csv
import gzip
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from .core import nearest, write_beside
from .video import video_suffixes
from ._download import DownloadError, download

cvdf = 'https://s3.amazonaws.com/kinetics'
folders = dict(kinetics400='400', kinetics600='600', kinetics700='700_2020')
splits = ('train', 'val', 'test')


# ---- what there is

def _folder(dataset, split):
    if dataset not in folders: raise KeyError(f"no dataset '{dataset}'; {nearest(dataset, folders)}")
    if split not in splits: raise KeyError(f"no split '{split}'; {nearest(split, splits)}")
    return folders[dataset]


def annotations(dataset, split, out, base=cvdf, progress=True) -> Path:
    "The official list of a split, fetched once"
    url = f'{base}/{_folder(dataset, split)}/annotations/{split}.csv'
    return download(url, Path(out)/'annotations'/f'{split}.csv', progress=progress)


def archives(dataset, split, out, base=cvdf) -> dict:
    "{part number: address} of a split, from the list file"
    folder = _folder(dataset, split)
    url = f'{base}/{folder}/{split}/k{folder}_{split}_path.txt'
    file = download(url, Path(out)/'annotations'/f'{split}_archives.txt', progress=False)
    urls = {}
    for line, text in enumerate(file.read_text().splitlines(), 1):
        if not text.strip(): continue
        m = re.search(r'/kinetics/(.*part_(\d+)\.tar\.gz)$', text.strip())
        if not m: raise ValueError(f'{file}, line {line}: not the address of a part: {text.strip()[:120]}')
        urls[int(m[2])] = f'{base}/{m[1]}'
    return urls


def length(url) -> int:
    "Bytes of a file on a server"
    request = urllib.request.Request(url, method='HEAD', headers={'User-Agent': 'jepa'})
    try:
        with urllib.request.urlopen(request, timeout=60) as r: return int(r.headers.get('Content-Length') or 0)
    except urllib.error.HTTPError as e: raise DownloadError(f'{url}: the server answers {e.code} {e.reason}') from None
    except (urllib.error.URLError, OSError) as e: raise DownloadError(f'{url}: {getattr(e, "reason", e)}') from None


# ---- archives

def _is_video(member):
    name = Path(member.name).name
    return member.isfile() and not name.startswith('.') and Path(name).suffix.lower() in video_suffixes


def _extract(tar, member, target):
    "Write a member as `target`; False where it is there and complete"
    if target.exists() and target.stat().st_size == member.size: return False
    with write_beside(target) as temporary, tar.extractfile(member) as source, open(temporary, 'wb') as f:
        shutil.copyfileobj(source, f)
    return True


def unpack(archive, out) -> int:
    """Videos of a tar.gz, each under its own name without folders; what is there and complete is kept.
    Its checksum is read, too: damage can look like an early end"""
    n, written = 0, []
    try:
        with gzip.open(archive) as whole, tarfile.open(fileobj=whole, mode='r:') as tar:
            for member in filter(_is_video, tar):
                target, n = Path(out)/Path(member.name).name, n + 1
                if _extract(tar, member, target): written.append(target)
            while whole.read(2**20): pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as e:
        if isinstance(e, OSError) and e.errno: raise # the disk, not the archive
        for path in [Path(archive), *written]: path.unlink(missing_ok=True)
        message = f'{archive} is damaged ({e}) and was removed; the same command fetches it again'
        raise DownloadError(message) from None
    return n


def _refuse_full_disk(sizes, marks, out):
    "Room for the videos, and for the largest archive while it is unpacked"
    have = sum(f.stat().st_size for f in marks.glob('*.part')) if marks.exists() else 0
    needed = sum(sizes.values()) + max(sizes.values(), default=0) - have
    folder = next(p for p in [out.resolve(), *out.resolve().parents] if p.exists())
    free = shutil.disk_usage(folder).free
    if needed <= free: return
    need = f'{len(sizes)} archives need about {needed/1e9:.1f} GB'
    raise DownloadError(f'{need} (videos, and the largest archive while it is unpacked); '
        f'{out} has {free/1e9:.1f} GB free; name fewer --parts')


def fetch(
    dataset:str,     # kinetics400, kinetics600 or kinetics700
    split:str,       # train, val or test
    out,             # a folder; videos go to `out/split`
    parts=None,      # numbers of archives; all by default
    base:str=cvdf,   # where the archives are
    progress:bool=True
)->dict: # {part: videos unpacked}; parts of an earlier call are not in it
    "Fetch archives one after the other, unpack each as it arrives, remove it"
    out = Path(out)
    annotations(dataset, split, out, base, progress)
    urls = archives(dataset, split, out, base)
    parts = sorted(urls) if parts is None else list(parts)
    for part in parts:
        if part not in urls:
            raise KeyError(f'{dataset} {split} has no part {part}; parts are {min(urls)} to {max(urls)}')
    marks, counts = out/'.archives', {}
    def mark(part): return marks/f'{split}_{part}.done'
    parts = [part for part in parts if not mark(part).exists()]
    sizes = {part: length(urls[part]) for part in parts}
    _refuse_full_disk(sizes, marks, out)
    for part in tqdm(parts, desc=f'{dataset} {split}', unit='part', disable=not progress):
        archive = download(urls[part], marks/f'{split}_{part}.tar.gz', size=sizes[part] or None, progress=progress)
        counts[part] = unpack(archive, out/split)
        mark(part).touch()
        archive.unlink()
    return counts


# ---- YouTube

_yt_dlp = [sys.executable, '-m', 'yt_dlp', '--quiet', '--no-warnings', '--no-playlist',
    '-f', 'bv*[height<=480][ext=mp4]/b[height<=480]/b', '--force-keyframes-at-cuts', '--remux-video', 'mp4']


def _youtube(id, start, end, target, cookies, timeout):
    "One excerpt, cut by yt-dlp; the reason if there is none"
    with tempfile.TemporaryDirectory(dir=target.parent, prefix='.youtube-') as folder:
        words = [*_yt_dlp, '--download-sections', f'*{start}-{end}', '-o', f'{folder}/video.%(ext)s']
        if cookies: words += ['--cookies', str(cookies)]
        words += ['--', f'https://www.youtube.com/watch?v={id}']
        try: result = subprocess.run(words, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired: return f'given up after {timeout:g} s'
        video = Path(folder)/'video.mp4'
        if result.returncode or not video.exists():
            return ' '.join((result.stderr or 'yt-dlp made no file').split())[-200:]
        os.replace(video, target)


def _refuse_youtube(cookies):
    "Refuse where yt-dlp or the file of cookies is missing"
    import importlib.util
    if importlib.util.find_spec('yt_dlp') is None:
        remedy = "pip install 'jepa[youtube]' (and ffmpeg to cut)"
        raise DownloadError(f'--from-youtube needs the package yt-dlp: {remedy}')
    if cookies and not Path(cookies).is_file():
        raise FileNotFoundError(f'{cookies}: there is no such file of cookies')


def _read_failures(file):
    "Failures of earlier calls"
    if file.exists(): return pd.read_csv(file, dtype=str, keep_default_na=False)
    return pd.DataFrame(columns=['id', 'split', 'label', 'reason'])


def _jobs(rows, folder, classes, per_class, gone):
    "(row, file) of the videos that are not there: the first `per_class` of each class that can be had"
    counts, jobs = {}, []
    for row in rows:
        id, label = row['youtube_id'], row['label']
        if classes and label not in classes or id in gone or counts.get(label, 0) == per_class: continue
        counts[label] = counts.get(label, 0) + 1
        start, end = (int(float(row[key])) for key in ('time_start', 'time_end'))
        target = folder/f'{id}_{start:06d}_{end:06d}.mp4'
        if not target.exists(): jobs.append((row, target))
    return jobs


def from_youtube(
    dataset:str, split:str, out,
    classes=(),      # names; all by default
    per_class:int=None, # the first so many of each class
    cookies=None,    # a cookies.txt file, for videos that require a login
    base:str=cvdf, timeout:float=300, progress:bool=True
)->pd.DataFrame: # id, split, label, reason
    """Fetch the videos of the official list that are not there.
    `failures.csv` keeps failures; they are not tried again until their rows are removed"""
    _refuse_youtube(cookies)
    out = Path(out)
    with open(annotations(dataset, split, out, base, progress), encoding='utf-8-sig') as f:
        rows = list(csv.DictReader(f))
    names = {row['label'] for row in rows}
    for name in classes:
        if name not in names: raise KeyError(f"no class '{name}' in {split}; {nearest(name, names)}")
    file, folder = out/'failures.csv', out/split
    failures = _read_failures(file)
    jobs = _jobs(rows, folder, classes, per_class, set(failures.id))
    folder.mkdir(parents=True, exist_ok=True)
    for row, target in tqdm(jobs, desc='YouTube', unit='video', disable=not progress):
        id, label = row['youtube_id'], row['label']
        reason = _youtube(id, row['time_start'], row['time_end'], target, cookies, timeout)
        if not reason: continue
        failures.loc[len(failures)] = [id, split, label, reason]
        with write_beside(file) as temporary: failures.to_csv(temporary, index=False)
    return failures
