"""Kinetics from its public archives (CVDF), or video by video from YouTube"""
import csv, gzip, os, re, shutil, subprocess, sys, tarfile, tempfile, urllib.error, urllib.request, zlib
from pathlib import Path
import pandas as pd
from tqdm.auto import tqdm
from .core import nearest, write_beside
from .video import video_suffixes
from ._download import DownloadError, download

cvdf = 'https://s3.amazonaws.com/kinetics'
folders = dict(kinetics400='400', kinetics600='600', kinetics700='700_2020')
splits = ('train', 'val', 'test')

def _known(dataset, split):
    if dataset not in folders: raise KeyError(f"no dataset '{dataset}'; {nearest(dataset, folders)}")
    if split not in splits: raise KeyError(f"no split '{split}'; {nearest(split, splits)}")
    return folders[dataset]

def annotations(dataset, split, out, base=cvdf, progress=True) -> Path:
    "The official list of a split, fetched once"
    return download(f'{base}/{_known(dataset, split)}/annotations/{split}.csv', Path(out)/'annotations'/f'{split}.csv', progress=progress)

def archives(dataset, split, out, base=cvdf) -> dict:
    "{part number: address} of a split, from the list file"
    folder = _known(dataset, split)
    listed = download(f'{base}/{folder}/{split}/k{folder}_{split}_path.txt', Path(out)/'annotations'/f'{split}_archives.txt', progress=False)
    found = {}
    for line, text in enumerate(listed.read_text().splitlines(), 1):
        if not text.strip(): continue
        m = re.search(r'/kinetics/(.*part_(\d+)\.tar\.gz)$', text.strip())
        if not m: raise ValueError(f'{listed}, line {line}: not the address of a part: {text.strip()[:120]}')
        found[int(m[2])] = f'{base}/{m[1]}'
    return found

def length(url) -> int:
    "Bytes of a file on a server"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method='HEAD', headers={'User-Agent': 'jepa'}), timeout=60) as r: return int(r.headers.get('Content-Length') or 0)
    except urllib.error.HTTPError as e: raise DownloadError(f'{url}: the server answers {e.code} {e.reason}') from None
    except (urllib.error.URLError, OSError) as e: raise DownloadError(f'{url}: {getattr(e, "reason", e)}') from None

def unpack(archive, out) -> int:
    "Videos of a tar.gz, each under its own name without folders; what is there and complete is kept. Its checksum is read, too: damage can look like an early end"
    n, written = 0, []
    try:
        with gzip.open(archive) as whole, tarfile.open(fileobj=whole, mode='r:') as tar:
            for m in tar:
                name = Path(m.name).name
                if not m.isfile() or name.startswith('.') or Path(name).suffix.lower() not in video_suffixes: continue
                target, n = Path(out)/name, n + 1
                if target.exists() and target.stat().st_size == m.size: continue
                with write_beside(target) as temporary, tar.extractfile(m) as source, open(temporary, 'wb') as f: shutil.copyfileobj(source, f)
                written.append(target)
            while whole.read(2**20): pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as e:
        if isinstance(e, OSError) and e.errno: raise # the disk, not the archive
        for path in [Path(archive), *written]: path.unlink(missing_ok=True)
        raise DownloadError(f'{archive} is damaged ({e}) and was removed; the same command fetches it again') from None
    return n

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
    there = archives(dataset, split, out, base)
    wanted = sorted(there) if parts is None else list(parts)
    for part in wanted:
        if part not in there: raise KeyError(f'{dataset} {split} has no part {part}; parts are {min(there)} to {max(there)}')
    marks, found = out/'.archives', {}
    mark = lambda part: marks/f'{split}_{part}.done'
    left = [p for p in wanted if not mark(p).exists()]
    sizes = {p: length(there[p]) for p in left}
    have = sum(f.stat().st_size for f in marks.glob('*.part')) if marks.exists() else 0
    needed, free = sum(sizes.values()) + max(sizes.values(), default=0) - have, shutil.disk_usage(next(p for p in [out.resolve(), *out.resolve().parents] if p.exists())).free
    if needed > free: raise DownloadError(f'{len(left)} archives need about {needed/1e9:.1f} GB (videos, and the largest archive while it is unpacked); {out} has {free/1e9:.1f} GB free; name fewer --parts')
    for part in tqdm(left, desc=f'{dataset} {split}', unit='part', disable=not progress):
        archive = download(there[part], marks/f'{split}_{part}.tar.gz', size=sizes[part] or None, progress=progress)
        found[part] = unpack(archive, out/split)
        mark(part).touch()
        archive.unlink()
    return found

def _youtube(id, start, end, target, cookies, timeout):
    "One excerpt, cut by yt-dlp; the reason if there is none"
    with tempfile.TemporaryDirectory(dir=target.parent, prefix='.youtube-') as folder:
        words = [sys.executable, '-m', 'yt_dlp', '--quiet', '--no-warnings', '--no-playlist', '-f', 'bv*[height<=480][ext=mp4]/b[height<=480]/b', '--download-sections', f'*{start}-{end}', '--force-keyframes-at-cuts',
                 '--remux-video', 'mp4', '-o', f'{folder}/video.%(ext)s', *(['--cookies', str(cookies)] if cookies else []), '--', f'https://www.youtube.com/watch?v={id}']
        try: done = subprocess.run(words, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired: return f'given up after {timeout:g} s'
        made = Path(folder)/'video.mp4'
        if done.returncode or not made.exists(): return ' '.join((done.stderr or 'yt-dlp made no file').split())[-200:]
        os.replace(made, target)

def from_youtube(
    dataset:str, split:str, out,
    classes=(),      # names; all by default
    per_class:int=None, # the first so many of each class
    cookies=None,    # a cookies.txt file, for videos that ask who is there
    base:str=cvdf, timeout:float=300, progress:bool=True
)->pd.DataFrame: # id, split, label, reason
    "Fetch the videos of the official list that are not there; failures are kept in `failures.csv` and not tried again until their rows are removed"
    import importlib.util
    if importlib.util.find_spec('yt_dlp') is None: raise DownloadError("--from-youtube needs the package yt-dlp: pip install 'jepa[youtube]' (and ffmpeg to cut)")
    if cookies and not Path(cookies).is_file(): raise FileNotFoundError(f'{cookies}: there is no such file of cookies')
    out = Path(out)
    with open(annotations(dataset, split, out, base, progress), encoding='utf-8-sig') as f: listed = list(csv.DictReader(f))
    names = {row['label'] for row in listed}
    for name in classes:
        if name not in names: raise KeyError(f"no class '{name}' in {split}; {nearest(name, names)}")
    file, taken, jobs = out/'failures.csv', {}, []
    failures = pd.read_csv(file, dtype=str, keep_default_na=False) if file.exists() else pd.DataFrame(columns=['id', 'split', 'label', 'reason'])
    gone = set(failures.id)
    for row in listed:
        if classes and row['label'] not in classes or row['youtube_id'] in gone or taken.get(row['label'], 0) == per_class: continue
        taken[row['label']] = taken.get(row['label'], 0) + 1
        target = out/split/f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}.mp4"
        if not target.exists(): jobs.append((row, target))
    (out/split).mkdir(parents=True, exist_ok=True)
    for row, target in tqdm(jobs, desc='YouTube', unit='video', disable=not progress):
        reason = _youtube(row['youtube_id'], row['time_start'], row['time_end'], target, cookies, timeout)
        if reason:
            failures.loc[len(failures)] = [row['youtube_id'], split, row['label'], reason]
            with write_beside(file) as temporary: failures.to_csv(temporary, index=False)
    return failures
