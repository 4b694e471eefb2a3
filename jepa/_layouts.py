"""Folders and official lists of Kinetics, UCF101, HMDB51, ImageNet and Something-Something v2, as rows of a manifest"""
import csv
import os
import re
from collections import Counter
from pathlib import Path

from ._lists import bad_row, read_json, read_lines
from .core import nearest
from .video import image_suffixes, video_suffixes

split_names = dict(train='train', training='train', val='val', valid='val', validation='val', validate='val',
    dev='val', test='test', testing='test')
_beside_splits = {'video', 'videos', 'clip', 'clips', 'frame', 'frames', 'rawframes', 'image', 'images', 'img', 'set',
    'split', 'data', 'list', 'part', 'public'} # `videos_val` and `train_set` are splits, `training_dog` is none
_wrappers = {'images', 'image', 'imgs', 'img', 'frames', 'videos', 'video', 'clips', 'rgb'} # hold files, name no class
_junk = {'@eadir', '#recycle', '@recycle', '$recycle.bin', 'system volume information', '__macosx', 'lost+found',
    'thumbs', 'thumbnails'}
_not_media = {'.csv', '.json', '.txt', '.md', '.yaml', '.yml', '.xml', '.toml', '.ini', '.log', '.html', '.py'}
video_suffixes = tuple(dict.fromkeys([*video_suffixes, '.mts', '.m2ts', '.m2t', '.mpe', '.m2v', '.vob', '.f4v', '.asf',
    '.divx', '.mxf', '.y4m', '.mp4v', '.3g2', '.dv']))


# ---- splits

def split_of(name) -> str: # train, val, test, or nothing
    "The split that a folder or a cell names: `Train`, `validation`, `videos_val`"
    words = re.findall('[a-z]+', str(name).lower())
    splits = [split_names[word] for word in words if word in split_names]
    others = [word for word in words if word not in split_names]
    return splits[0] if len(splits) == 1 and set(others) <= _beside_splits else ''


# ---- files

def _walk(folder, above=()):
    "(folder, names of files) below a folder in sorted order; links are followed, except back to a folder above"
    status = os.stat(folder)
    above = (*above, (status.st_dev, status.st_ino))
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    yield folder, [entry.name for entry in entries if not entry.is_dir()], ''
    for entry in entries:
        if not entry.is_dir(): continue
        status = os.stat(entry.path)
        if entry.name.lower() in _junk: yield entry.path, [], 'in folders of thumbnails or waste, such as @eaDir'
        elif entry.name.startswith('.'): continue
        elif (status.st_dev, status.st_ino) in above: yield entry.path, [], 'links that lead back'
        else: yield from _walk(entry.path, above)


def _is_text(name):
    "Whether a name can be written to a manifest"
    try: name.encode()
    except UnicodeEncodeError: return False
    return True


def _why_ignored(name, video_stems):
    "Why a file is no example; nothing if it is one"
    stem, suffix = os.path.splitext(name)
    suffix = suffix.lower()
    if suffix not in video_suffixes + image_suffixes: return f'{suffix or "no suffix"}: no known video or image'
    if name.startswith('.'): return 'hidden'
    if not _is_text(name): return 'names that are not UTF-8 text'
    if suffix in image_suffixes and (stem in video_stems or os.path.splitext(stem)[0] in video_stems):
        return 'pictures of a video beside them'
    return ''


def media_files(folder, ignored=None) -> list[Path]: # sorted
    "All video and image files under a folder; `ignored`, a Counter, learns how many others there are, and why"
    files, ignored = [], Counter() if ignored is None else ignored
    for above, names, why in _walk(folder):
        if why: ignored[why] += sum(len(names) for _, _, names in os.walk(above)) if 'lead back' not in why else 1
        stems = {os.path.splitext(name)[0] for name in names if name.lower().endswith(video_suffixes)}
        for name in names:
            reason = _why_ignored(name, stems)
            if not reason: files.append(os.path.join(above, name))
            elif os.path.splitext(name)[1].lower() not in _not_media and name != '.DS_Store': ignored[reason] += 1
    return sorted(map(Path, files))


def numbered(rows, classes):
    "The rows with the numbers of their classes; -1 without a class"
    number = {name: i for i, name in enumerate(classes)}
    return [{**row, 'label': number.get(row['class_name'], -1)} for row in rows]


# ---- a folder per class

def _without_common(folders):
    "Folders without the outer ones that all of them share, such as `UCF-101`"
    while folders and all(len(names) > 1 for names in folders) and len({names[0] for names in folders}) == 1:
        folders = [names[1:] for names in folders]
    return folders


def _class_folders(root, files):
    "Split and folders of each file: without those that name splits, or hold files and name no class"
    splits, folders = [], []
    for file in files:
        parts = file.relative_to(root).parts[:-1]
        splits.append(next((split_of(name) for name in parts if split_of(name)), ''))
        names = [name for name in parts if not split_of(name)]
        if names and names[-1].lower() in _wrappers and (len(names) > 1 or len(names) < len(parts)): names.pop()
        folders.append(tuple(names))
    return splits, folders


def _refuse_ambiguous(root, files, folders):
    "Refuse a tree whose classes could be its inner or its outer folders"
    deep = sorted({names for names in folders if len(names) > 1})
    if not deep: return
    parents, held = {}, Counter(folders)
    for names in deep: parents.setdefault(names[-1], []).append(names[-2])
    inner = next((name for name, above in parents.items() if len(above) > 1), None)
    outer = next((names[0] for names in deep if names[:1] in held), None)
    repeated = Counter(file.name for file in files).most_common(1)[0]
    if inner: why = f"'{inner}' stands under {' and '.join(parents[inner][:2])}"
    elif outer: why = f"'{outer}' holds files and folders with files"
    elif files[0].suffix.lower() in image_suffixes and repeated[1] > 1:
        why = f"{repeated[1]} folders hold an image {repeated[0]}, as if they were the frames of videos"
    elif len(deep) > 2 and max(held.values()) == 1: why = 'no folder holds more than one file'
    else: return
    names = ', '.join(sorted({names[0] for names in folders})[:3])
    raise ValueError(f"{root}: which folder names the class? {why}; layout='outer' takes the outer ones "
        f"({names}), layout='tree' those that hold the files ({deep[0][-1]})")


def _annotated(root):
    "{file: class} of Tiny ImageNet's validation images"
    file = root/'val'/'val_annotations.txt'
    if not file.exists(): return {}
    matches = _matches(file, r'(\S+)\t(\S+).*', 'file.JPEG class ...')
    return {root/'val'/'images'/m[1]: m[2] for m in matches}


def read_tree(root, layout='auto', ignored=None):
    "Rows of a class-per-folder tree, and the class names; layout: auto (refuses what it cannot know), tree, outer"
    files = media_files(root, ignored)
    splits, folders = _class_folders(root, files)
    annotated = _annotated(root)
    named = [names for names in folders if names]
    shared = len(named[0]) - len(_without_common(named)[0]) if named else 0
    folders = [names[shared:] for names in folders]
    if layout == 'auto': _refuse_ambiguous(root, files, folders)
    rows = []
    for file, split, names in zip(files, splits, folders):
        unlabelled = annotated and split == 'test'
        if not names and file not in annotated and not unlabelled:
            raise ValueError(f'{file} lies in no class folder')
        name = annotated.get(file) or (names[0 if layout == 'outer' else -1] if names else '')
        rows.append(dict(path=file.relative_to(root).as_posix(), class_name=name, split=split))
    classes = sorted({row['class_name'] for row in rows} - {''})
    return numbered(rows, classes), classes


# ---- UCF101 and HMDB51: official splits in lists of their own

def _matches(file, pattern, what):
    "The groups of `pattern` in each line of a list"
    for line, text in enumerate(read_lines(file), 1):
        if not text.strip(): continue
        match = re.fullmatch(pattern, text.strip())
        if not match: raise bad_row(file, line, f'not `{what}`: {text.strip()[:80]}')
        yield match


def _ucf_lines(file):
    "{file name: split} of one of UCF101's lists"
    split = 'train' if file.name.startswith('train') else 'test'
    return {m[1]: split for m in _matches(file, r'[^/]+/(\S+)( \d+)?', 'Class/file.avi label')}


def _hmdb_lines(file):
    "{file name: split} of one of HMDB51's lists"
    return {m[1]: ('', 'train', 'test')[int(m[2])] for m in _matches(file, r'(\S+) +([012])', 'file.avi 0|1|2')}


def official_splits(root, number):
    "{file name: split} from lists beside or under a tree, empty if there are none"
    under = [folder for folder in sorted(root.iterdir()) if folder.is_dir()]
    splits = {}
    for folder in [root, *under, root.parent/'ucfTrainTestlist', root.parent/'testTrainMulti_7030_splits']:
        for file in sorted(folder.glob(f't*list{number:02d}.txt')): splits.update(_ucf_lines(file))
        for file in sorted(folder.glob(f'*_test_split{number}.txt')): splits.update(_hmdb_lines(file))
    return splits


# ---- Kinetics in flat folders

def _is_kinetics_json(file):
    "`{id: {annotations: {label, segment}, subset}}`"
    with open(file, encoding='utf-8-sig', errors='replace') as f: head = f.read(1000)
    return head.lstrip().startswith('{') and '"annotations"' in head


def kinetics_lists(root):
    "Official lists in a folder or its `annotations`: `label,youtube_id,time_start,time_end,split`, or as JSON"
    def header(file):
        with open(file, encoding='utf-8-sig', errors='replace') as f: return f.readline()
    def within(ending): return sorted([*root.glob(f'*.{ending}'), *root.glob(f'annotations/*.{ending}')])
    lists = [file for file in within('csv') if 'youtube_id' in header(file)]
    names = {file.stem for file in lists}
    return lists + [file for file in within('json') if file.stem not in names and _is_kinetics_json(file)]


def _stem(file, line, id, start, end):
    "Name of a file in Kinetics' folders"
    try: return f'{id}_{int(float(start)):06d}_{int(float(end)):06d}'
    except (TypeError, ValueError, OverflowError):
        message = f"time_start '{start}' or time_end '{end}' is not a number of seconds"
        raise bad_row(file, line, message) from None


def _kinetics_json(file):
    "(stem of a file, class, split) of each entry of an official JSON list"
    for id, entry in read_json(file).items():
        about = entry.get('annotations') or {}
        start, end = (about.get('segment') or [None, None])[:2]
        yield _stem(file, 1, id, start, end), about.get('label') or '', split_of(entry.get('subset') or file.stem)


def _kinetics_entries(file):
    "(stem of a file, class, split) of each line of an official list"
    reader = csv.DictReader(read_lines(file))
    for name in ('youtube_id', 'time_start', 'time_end'):
        if name not in reader.fieldnames:
            raise bad_row(file, 1, f"no column '{name}' among {', '.join(reader.fieldnames)}")
    for row in reader:
        stem = _stem(file, reader.line_num, row['youtube_id'], row['time_start'], row['time_end'])
        yield stem, row.get('label') or '', split_of(row.get('split') or file.stem)


def read_kinetics(root, ignored=None):
    "Rows of Kinetics in flat folders, the class of each file from the official lists"
    path_of = {p.stem: p.relative_to(root).as_posix() for p in media_files(root, ignored)}
    entries = {}
    for file in kinetics_lists(root):
        read = _kinetics_json if file.suffix == '.json' else _kinetics_entries
        for stem, name, split in read(file): entries.setdefault(stem, (name, split))
    rows = [dict(path=path_of.get(stem, f'{split}/{stem}.mp4'), class_name=name, split=split)
        for stem, (name, split) in entries.items()]
    rows += [dict(path=path, class_name='', split='') for stem, path in path_of.items() if stem not in entries]
    classes = sorted({row['class_name'] for row in rows} - {''})
    return numbered(rows, classes), classes


# ---- Something-Something v2

def ssv2_lists(root):
    "{labels, train, validation: the JSON file, or nothing}"
    root = Path(root)
    folder = root/'labels' if (root/'labels').is_dir() else root
    files = {name: next(iter(sorted(folder.glob(f'*{name}.json'))), None) for name in ('labels', 'train', 'validation')}
    lists = [file for file in (files['train'], files['validation']) if file and not _is_kinetics_json(file)]
    return files if lists else {}


def _ssv2_entries(file):
    "(id, class) of each entry of a list; the class is the template without its brackets"
    for n, entry in enumerate(read_json(file) if file else [], 1):
        for key in ('id', 'template'):
            if key not in entry: raise ValueError(f"{file}, entry {n}: no '{key}' in {str(entry)[:80]}")
        yield str(entry['id']), re.sub(r'[\[\]]', '', entry['template'])


def read_ssv2(root, ignored=None):
    "Rows of Something-Something v2, and the class names"
    files, rows = ssv2_lists(root), []
    if not files: raise FileNotFoundError(f'{root}: neither train.json nor validation.json of Something-Something v2')
    path_of = {p.stem: p.relative_to(root).as_posix() for p in media_files(root, ignored) if p.suffix == '.webm'}
    for split in ('train', 'validation'):
        for id, name in _ssv2_entries(files[split]):
            path = path_of.get(id, f'20bn-something-something-v2/{id}.webm')
            rows.append(dict(path=path, class_name=name, split=split_names[split]))
    if files['labels']: number = {name: int(i) for name, i in read_json(files['labels']).items()}
    else: number = {name: i for i, name in enumerate(sorted({row['class_name'] for row in rows}))}
    for row in rows:
        name = row['class_name']
        if name not in number: raise ValueError(f"{files['labels']}: no template '{name}'; {nearest(name, number)}")
        row['label'] = number[name]
    return rows, sorted(number, key=number.get)


# ---- the recording that a file was cut from

def group_of(
    path,             # a file
    class_name:str='' # its class
)->str: # what it shares with other files; its own path if nothing is known
    "The recording a file was cut from, as UCF101, HMDB51 and Kinetics name it"
    stem = Path(path).stem
    if m := re.fullmatch(r'(v_.+_g\d+)_c\d+', stem): return m[1]
    if m := re.fullmatch(r'(.+)_\d{6}_\d{6}', stem): return m[1]
    if class_name and f'_{class_name}_' in stem: return stem.split(f'_{class_name}_')[0]
    return Path(path).with_suffix('').as_posix()
