"""Tar shards in the WebDataset layout: written from a manifest, read in a shuffled order that visits few shards at a time"""
import contextlib, io, json, os, tarfile, tempfile
from pathlib import Path
import pandas as pd, torch
from tqdm.auto import tqdm
from .core import generator, load_settings, short_hash, write_beside, write_json
from .data import Augment, Clips, Manifest, _alone, _refuse_too_many, columns
from .video import ClipConfig, VideoError, decode_clips, decode_safely
from ._download import download

members = ['shard', 'offset', 'bytes'] # where a file's bytes lie

def _add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))

def _write_shard(manifest, rows, file):
    "One tar file: `KEY.mp4`, `KEY.cls` (label) and `KEY.json` (the row) for each row; the shard's part of the index"
    index = []
    with write_beside(file) as temporary, tarfile.open(temporary, 'w', format=tarfile.GNU_FORMAT) as tar:
        for i in rows:
            row, source = manifest.table.loc[i, columns].to_dict(), manifest.file(i)
            key, content = f'{i:09d}', source.read_bytes()
            index.append({**row, 'path': key + source.suffix.lower(), 'shard': file.name, 'offset': tar.offset + tarfile.BLOCKSIZE, 'bytes': len(content)})
            _add(tar, key + source.suffix.lower(), content)
            _add(tar, f'{key}.cls', str(row['label']).encode())
            _add(tar, f'{key}.json', json.dumps({k: int(v) if k == 'label' else v for k, v in row.items()}).encode())
    with write_beside(file.with_suffix('.csv')) as temporary: pd.DataFrame(index).to_csv(temporary, index=False)

def _unreadable(manifest, out, workers, progress):
    "Files whose first and last frame cannot be decoded: a stream has no place to skip them; listed in `skipped.csv`"
    listed, ends = out/'skipped.csv', ClipConfig(num_frames=2, stride=10**6, size=32)
    if not listed.exists():
        jobs = [(str(manifest.root/path), ends) for path in manifest.table.path.unique()]
        found = [dict(path=file, reason=r.reason) for (file, _), r in tqdm(decode_safely(jobs, decode_clips, workers), total=len(jobs), desc='Check', unit='file', disable=not progress) if isinstance(r, VideoError)]
        with write_beside(listed) as temporary: pd.DataFrame(found, columns=['path', 'reason']).to_csv(temporary, index=False)
    skipped = pd.read_csv(listed).path.tolist()
    _refuse_too_many(len(skipped), len(manifest), load_settings().max_skipped, listed)
    return set(skipped)

def write_shards(
    manifest:Manifest,
    out,                # a folder for the shards
    megabytes:float=256, # of a shard, about
    seed:int=0,         # rows are mixed once, so that a shard holds all classes
    workers:int=None,   # processes that check the files; as in `settings.ini` by default
    progress:bool=True
)->Manifest: # a `Shards`
    "Write tar shards; a call that was interrupted goes on with the shard it was at"
    out = Path(out)
    if missing := manifest.missing(): raise FileNotFoundError(f'{len(missing)} of {len(manifest)} files are not there, such as {missing[0]}; `jepa data index` makes a manifest of those that are')
    plan = dict(manifest=manifest.hash, megabytes=megabytes, seed=seed, classes=manifest.classes)
    if (out/'plan.json').exists():
        if json.loads((out/'plan.json').read_text()) != plan: raise FileExistsError(f'{out} holds shards of other files or sizes; choose another folder')
    elif out.exists() and any(out.iterdir()): raise FileExistsError(f'{out} is not empty')
    else: write_json(out/'plan.json', plan)
    skipped, groups, room = _unreadable(manifest, out, workers, progress), [], 0
    for i in torch.randperm(len(manifest), generator=generator(seed, 'shards')).tolist():
        if str(manifest.file(i)) in skipped: continue
        if room <= 0: groups.append([]); room = megabytes*1e6
        groups[-1].append(i); room -= manifest.file(i).stat().st_size
    for n, rows in enumerate(tqdm(groups, desc='Shards', unit='shard', disable=not progress)):
        file = out/f'shard-{n:06d}.tar'
        if not file.with_suffix('.csv').exists(): _write_shard(manifest, rows, file)
    index = pd.concat([pd.read_csv(out/f'shard-{n:06d}.csv', keep_default_na=False) for n in range(len(groups))])
    with write_beside(out/'index.csv') as temporary: index.to_csv(temporary, index=False)
    write_json(out/'shards.json', dict(classes=manifest.classes, shards=len(groups), bytes=int(index.bytes.sum())))
    return read_shards(out)

def index_tars(
    folder # with .tar files in the WebDataset layout, from any program
)->None:
    "Write `index.csv` and `shards.json` beside tar files that have none"
    from .video import image_suffixes, video_suffixes
    rows = []
    for file in sorted(Path(folder).glob('*.tar')):
        found, labels = [], {}
        with tarfile.open(file) as tar:
            for m in tar:
                key, dot, end = m.name.partition('.')
                if f'.{end}'.lower() in video_suffixes + image_suffixes: found.append((key, dict(path=m.name, shard=file.name, offset=m.offset_data, bytes=m.size)))
                elif end == 'cls': labels[key] = int(tar.extractfile(m).read())
        rows += [{**row, 'label': labels.get(key, -1), 'class_name': str(labels[key]) if key in labels else ''} for key, row in found]
    if not rows: raise FileNotFoundError(f'{folder}: no .tar files with videos or images')
    index = pd.DataFrame(rows).assign(split='', group='')[columns + members]
    with write_beside(Path(folder)/'index.csv') as temporary: index.to_csv(temporary, index=False)
    write_json(Path(folder)/'shards.json', dict(classes=[str(i) for i in range(index.label.max() + 1)], shards=int(index['shard'].nunique()), bytes=int(index.bytes.sum())))

class Shards(Manifest):
    "A manifest whose files lie in tar shards"
    @property
    def files_key(self): return short_hash(self.table[['path', *members]].values.tolist())
    def clips(self, clip, augment=Augment(), seed=0, progress=True): return ShardClips(self, clip, augment, seed=seed)
    def missing(self): return sorted({s for s in self.table['shard'] if not (self.root/s).exists()}) if not self.source else []
    def select(self, classes=None, per_class=None, n=None, seed=0):
        "As of any manifest; `n` files alone come from the first shards, a random part themselves, so that few are fetched"
        if n is None or classes is not None or per_class is not None: return Manifest.select(self, classes, per_class, n, seed)
        before = self.table.groupby('shard').size().sort_index().cumsum().shift(fill_value=0)
        return Manifest.select(self.where(self.table['shard'].isin(before.index[before < 4*n])), n=n, seed=seed)
    @property
    def source(self):
        "Where shards that are not here come from: dict(url, keep), or nothing"
        file = self.root/'source.json'
        return json.loads(file.read_text()) if file.exists() else {}

def read_shards(folder) -> Shards:
    "The shards of a folder; tar files of another program are indexed first"
    folder = Path(folder)
    if not (folder/'shards.json').exists(): index_tars(folder)
    about = json.loads((folder/'shards.json').read_text())
    return Shards(pd.read_csv(folder/'index.csv', keep_default_na=False, dtype={'path': str, 'class_name': str}), folder, about['classes'])

def remote_shards(
    url:str,     # the folder with `index.csv`, `shards.json` and the shards
    out,         # a folder here
    keep:int=16, # shards that lie here at a time
    progress:bool=False
)->Shards:
    "Shards of a web server: the index now, each shard when it is read"
    out = Path(out)
    if keep <= ShardClips.window: raise ValueError(f'keep must be more than the {ShardClips.window} shards that are shuffled together, not {keep}')
    for name in ('index.csv', 'shards.json'): download(f'{url.rstrip("/")}/{name}', out/name, progress=progress)
    write_json(out/'source.json', dict(url=url.rstrip('/'), keep=keep))
    return read_shards(out)

class ShardClips(Clips):
    "Clips from tar shards, decoded as they come; shuffled in two steps, so that only `window` shards are in use at a time"
    window = 8
    def __init__(self, manifest, clip, augment=Augment(), cache=None, seed=0, decoder='auto'):
        super().__init__(manifest, clip, augment, cache, seed, decoder)
        self._members, self._source = self.manifest.table[members].values.tolist(), self.manifest.source
        self._of = {shard: rows.tolist() for shard, rows in self.manifest.table.groupby('shard', sort=True).groups.items()}

    def order(self, epoch, seed):
        "Shards in random order; within each window of them, files in random order"
        rng, names, out = generator(seed, 'order', epoch), list(self._of), []
        shards = [names[i] for i in torch.randperm(len(names), generator=rng).tolist()]
        for k in range(0, len(shards), self.window):
            rows = [i for name in shards[k:k + self.window] for i in self._of[name]]
            out += [rows[i] for i in torch.randperm(len(rows), generator=rng).tolist()]
        return out

    def _open(self, shard):
        "The open tar file; fetched, in exchange for the one not used for longest, if it is not here"
        file = self.manifest.root/shard
        if not self._source: return open(file, 'rb')
        with _alone(file.with_name('.fetching')):
            if not file.exists():
                others = sorted(file.parent.glob('*.tar'), key=lambda f: f.stat().st_mtime)
                for old in others[:max(len(others) - self._source['keep'] + 1, 0)]: old.unlink()
                download(f"{self._source['url']}/{shard}", file, progress=False)
            os.utime(file)
            return open(file, 'rb')

    @contextlib.contextmanager
    def _file(self, index):
        shard, offset, size = self._members[index]
        with self._open(shard) as tar: tar.seek(offset); content = tar.read(size)
        if len(content) != size: raise ValueError(f'{self.manifest.root/shard} ends before {self._files[index]} does; write or fetch this shard again')
        with tempfile.TemporaryDirectory(prefix='jepa-') as folder: # the decoders take files
            file = Path(folder)/self._files[index].replace('/', '_')
            file.write_bytes(content)
            yield file
