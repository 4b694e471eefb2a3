"""Folders and official lists of Kinetics, UCF101, HMDB51, ImageNet and Something-Something v2, as rows of a manifest"""
import csv
import json
import os
import re
from pathlib import Path

from .core import nearest
from .video import image_suffixes, video_suffixes

split_names = dict(train='train', training='train', val='val', valid='val', validation='val', validate='val',
    test='test', testing='test')


# ---- files

def bad_row(file, line, what): return ValueError(f'{file}, line {line}: {what}')


def read_lines(file):
    "The lines of a text file"
    try: return Path(file).read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError as e:
        raise ValueError(f'{file} is not a text file: {e.reason} at byte {e.start}') from None


def read_json(file):
    "What a JSON file holds; the line where it breaks otherwise"
    try: return json.loads('\n'.join(read_lines(file)))
    except json.JSONDecodeError as e: raise bad_row(file, e.lineno, e.msg) from None


def media_files(folder) -> list[Path]: # sorted
    "All video and image files under a folder"
    files, suffixes = [], video_suffixes + image_suffixes
    for above, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith('.')]
        for name in names:
            if not name.startswith('.') and os.path.splitext(name)[1].lower() in suffixes:
                files.append(os.path.join(above, name))
    return sorted(map(Path, files))


def numbered(rows, classes):
    "The rows with the numbers of their classes; -1 without a class"
    number = {name: i for i, name in enumerate(classes)}
    return [{**row, 'label': number.get(row['class_name'], -1)} for row in rows]


# ---- a folder per class

def tree_row(root, file):
    "Class and split of a file, from the folders that it lies in"
    *above, name = file.relative_to(root).parts[:-1] or ('',)
    if not name or name.lower() in split_names: raise ValueError(f'{file} lies in no class folder')
    splits = [split_names[folder.lower()] for folder in above if folder.lower() in split_names]
    return dict(path=file.relative_to(root).as_posix(), class_name=name, split=splits[0] if splits else '')


def read_tree(root):
    "Rows of a class-per-folder tree, and the class names"
    rows = [tree_row(root, file) for file in media_files(root)]
    classes = sorted({row['class_name'] for row in rows})
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

def kinetics_lists(root):
    "Official lists (`label,youtube_id,time_start,time_end,split`) in a folder or its `annotations`"
    def header(file):
        with open(file, encoding='utf-8-sig', errors='replace') as f: return f.readline()
    return [f for f in sorted([*root.glob('*.csv'), *root.glob('annotations/*.csv')]) if 'youtube_id' in header(f)]


def _kinetics_entries(file):
    "(stem of a file, class, split) of each line of an official list"
    reader = csv.DictReader(read_lines(file))
    for name in ('youtube_id', 'time_start', 'time_end'):
        if name not in reader.fieldnames:
            raise bad_row(file, 1, f"no column '{name}' among {', '.join(reader.fieldnames)}")
    for row in reader:
        start, end = row['time_start'], row['time_end']
        try: stem = f"{row['youtube_id']}_{int(float(start)):06d}_{int(float(end)):06d}"
        except (TypeError, ValueError):
            message = f"time_start '{start}' or time_end '{end}' is not a number of seconds"
            raise bad_row(file, reader.line_num, message) from None
        split = (row.get('split') or file.stem).lower()
        yield stem, row.get('label') or '', split_names.get(split, '')


def read_kinetics(root):
    "Rows of Kinetics in flat folders, the class of each file from the official lists"
    path_of = {p.stem: p.relative_to(root).as_posix() for p in media_files(root)}
    entries = {}
    for file in kinetics_lists(root):
        for stem, name, split in _kinetics_entries(file): entries.setdefault(stem, (name, split))
    rows = [dict(path=path_of.get(stem, f'{split}/{stem}.mp4'), class_name=name, split=split)
        for stem, (name, split) in entries.items()]
    rows += [dict(path=path, class_name='', split='') for stem, path in path_of.items() if stem not in entries]
    classes = sorted({row['class_name'] for row in rows} - {''})
    return numbered(rows, classes), classes


# ---- Something-Something v2

def ssv2_lists(root):
    "{labels, train, validation: the JSON file, or nothing}"
    folder = Path(root)/'labels' if (Path(root)/'labels').is_dir() else Path(root)
    files = {name: next(iter(sorted(folder.glob(f'*{name}.json'))), None) for name in ('labels', 'train', 'validation')}
    if not files['train'] and not files['validation']:
        raise FileNotFoundError(f'{folder}: neither train.json nor validation.json')
    return files


def _ssv2_entries(file):
    "(id, class) of each entry of a list; the class is the template without its brackets"
    for n, entry in enumerate(read_json(file) if file else [], 1):
        for key in ('id', 'template'):
            if key not in entry: raise ValueError(f"{file}, entry {n}: no '{key}' in {str(entry)[:80]}")
        yield str(entry['id']), re.sub(r'[\[\]]', '', entry['template'])


def read_ssv2(root):
    "Rows of Something-Something v2, and the class names"
    files, rows = ssv2_lists(root), []
    path_of = {p.stem: p.relative_to(root).as_posix() for p in media_files(root) if p.suffix == '.webm'}
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
