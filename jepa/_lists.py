"""Lists of files: `path label` as V-JEPA writes them, and CSV files. A bad row names its file and line"""
import csv
import io
import json
import os
import re
from pathlib import Path

columns = ['path', 'label', 'class_name', 'split', 'group'] # of a manifest
LARGEST_LABEL = 99_999 # of a class; a larger number is an id


# ---- text files

def bad_row(file, line, what): return ValueError(f'{file}, line {line}: {what}')


def read_text(file):
    "A text file in UTF-8, or in UTF-16 with its mark; line ends as they are"
    content = Path(file).read_bytes()
    encoding = 'utf-16' if content[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig'
    try: return content.decode(encoding)
    except UnicodeDecodeError as e:
        raise ValueError(f'{file} is not a text file: {e.reason} at byte {e.start}') from None


def read_lines(file): return read_text(file).splitlines()


def read_json(file):
    "What a JSON file holds; the line where it breaks otherwise"
    try: return json.loads(read_text(file))
    except json.JSONDecodeError as e: raise bad_row(file, e.lineno, e.msg) from None


# ---- labels

def too_large(label): return f'label {label} is no number of a class (0 to {LARGEST_LABEL}); give names if it is an id'


_missing = ('', 'nan', 'none', 'null', '<na>')


def _whole(text, file, line):
    "A label: a whole number, also written as 3.0; -1 for unlabelled"
    if text.lower() in _missing: raise bad_row(file, line, f"the label is missing ('{text}'); -1 stands for unlabelled")
    if not re.fullmatch(r'(-1|\d+)(\.0*)?', text): raise bad_row(file, line, f"label '{text}' is not a whole number")
    label = int(text.split('.')[0])
    if label > LARGEST_LABEL: raise bad_row(file, line, too_large(label))
    return label


def _unique(rows, file):
    "Refuse a path that two rows give different labels"
    first = {}
    for line, row in rows:
        path, label = row['path'], row['label']
        first_line, first_label = first.setdefault(path, (line, label))
        if label != first_label:
            raise bad_row(file, line, f"'{path}' has label {label} here and {first_label} in line {first_line}")
    if not rows: raise ValueError(f'{file}: there are no rows')
    return [row for _, row in rows]


def _are_numbers(labels):
    "Whether labels are numbers: one that starts with 0, such as 001, makes all of them names"
    numbers = any(re.fullmatch(r'-?\d+(\.\d*)?', label) for label in labels)
    return numbers and not any(re.fullmatch(r'0\d+', label) for label in labels)


def _label_rows(rows, file):
    "Labels as numbers; names get the numbers of their sorted order"
    numbers = _are_numbers([row['label'] for _, row in rows])
    names = {name: i for i, name in enumerate(sorted({row['label'] for _, row in rows}))}
    for line, row in rows:
        label = row['label']
        if not label: raise bad_row(file, line, 'the label is empty')
        if numbers: yield line, {**row, 'label': _whole(label, file, line)}
        elif label.lower() in _missing: raise bad_row(file, line, f"the label is missing ('{label}')")
        else: yield line, {**row, 'class_name': label, 'label': names[label]}


# ---- `path label`

def _not_a_list_row(text, fields):
    "What a line of a list should be, and what it is"
    for sign, name in ((',', 'commas'), (';', 'semicolons'), ('\t', 'tabs')):
        if sign in text and len(fields) == 1:
            header = 'a file with commas needs the header `path,label`'
            return f'expected `path label` with a space between them, found {name}; {header}: {text[:80]}'
    return f'{len(fields)} fields instead of `path label`; a path with spaces needs quotes: {text[:80]}'


def read_list(file):
    "Rows of a V-JEPA list"
    rows = []
    for line, text in enumerate(read_lines(file), 1):
        text = text.strip()
        if not text: continue
        try: fields = next(csv.reader([text], delimiter=' ', skipinitialspace=True, strict=True))
        except csv.Error as e: raise bad_row(file, line, f'{e}: {text[:80]}') from None
        if len(fields) != 2: raise bad_row(file, line, _not_a_list_row(text, fields))
        rows.append((line, dict(path=fields[0], label=_whole(fields[1], file, line))))
    return _unique(rows, file)


# ---- CSV

path_names = ('path', 'video_name', 'filename', 'file_name', 'file', 'video', 'video_path')


def _csv_rows(file):
    "Names of the columns, and (line, cells) of each row"
    reader = csv.reader(io.StringIO(read_text(file), newline=''), strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        return names, [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as e: raise bad_row(file, reader.line_num, e) from None


def _path_cell(cell, root):
    "A path; spaces around it are part of it only if there is such a file"
    return cell if cell != cell.strip() and os.path.exists(root/cell) else cell.strip()


def _columns(header, file):
    "Names of the columns: ours, whatever their case; `path` may have another name"
    names = [name.lower() if name.lower() in (*columns, *path_names) else name for name in header]
    alias = next((name for name in path_names if name in names), None)
    names = ['path' if name == alias else name for name in names]
    for name in ('path', 'label'):
        if name not in names: raise bad_row(file, 1, f"no column '{name}' among {', '.join(header)}; "
            f'expected `path,label` and perhaps class_name, split, group')
    return names


def read_csv(file):
    "Rows of a CSV file with a column for the path, and `label`"
    header, lines = _csv_rows(file)
    if len(header) == 1 and header[0].lower() in path_names: # paths alone: unlabelled
        header, lines = [*header, 'label'], [(line, [*cells, '-1']) for line, cells in lines]
    names, rows = _columns(header, file), []
    for line, cells in lines:
        if len(cells) != len(names):
            raise bad_row(file, line, f"{len(cells)} cells for the {len(names)} columns {','.join(header)}")
        row = {name: cell.strip() for name, cell in zip(names, cells)}
        row['path'] = _path_cell(cells[names.index('path')], file.parent)
        if not row['path']: raise bad_row(file, line, 'the path is empty')
        rows.append((line, row))
    return _unique(list(_label_rows(rows, file)), file)
