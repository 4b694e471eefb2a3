"""The course: every notebook is on the front page, ends in exercises, and links of the glossary lead to a section"""
import csv
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from tools.course import COURSE, tables

root = Path(__file__).resolve().parents[1]
nbs = {p.stem: p for p in sorted(root.glob('nbs/[0-9]*.ipynb'))}
glossary = '90_glossary'


def cells(path): return json.loads(path.read_text())['cells']


def markdown(path): return [''.join(c['source']) for c in cells(path) if c['cell_type'] == 'markdown']


def markdown_outputs(path):
    "Pairs of a cell's source and the Markdown that it shows"
    pairs = [(''.join(c['source']), o.get('data', {})) for c in cells(path) for o in c.get('outputs', [])]
    return [(source, ''.join(data['text/markdown'])) for source, data in pairs if 'text/markdown' in data]


def headings(path):
    matches = [m for text in markdown(path) for m in re.finditer(r'^#{1,4} (.+)$', text, re.M)]
    names = {m[1].strip().replace(' ', '-') for m in matches}
    return names | {name.lower() for name in names}


@pytest.mark.parametrize('name', [n for n in nbs if n != glossary])
def test_a_notebook_ends_in_exercises_with_answers(name):
    [text] = [t.split('## Exercises\n')[1] for t in markdown(nbs[name]) if '## Exercises\n' in t]
    numbers = [int(n) for n in re.findall(r'^(\d+)\. ', text, re.M)]
    assert numbers == list(range(1, len(numbers) + 1)) and 3 <= len(numbers) <= 5
    assert text.count('<details>') == text.count('</details>') == len(numbers)


@pytest.mark.parametrize('name', nbs)
def test_a_notebook_has_at_most_80_cells(name):
    assert len(json.loads(nbs[name].read_text())['cells']) <= 80


@pytest.mark.parametrize('name', [*nbs, 'index'])
def test_links_between_notebooks_lead_to_a_section(name):
    path = root/'nbs'/f'{name}.ipynb'
    for text in markdown(path) + [text for _, text in markdown_outputs(path)]:
        for file, anchor in re.findall(r'\]\((\w*(?:\.ipynb)?)(?:#([^)]+))?\)', text):
            target = root/'nbs'/file if file else path
            assert target.exists(), f'{name}: {file}'
            assert not anchor or unquote(anchor) in headings(target), f'{name}: {file}#{anchor}'


def test_the_front_page_shows_what_is_there():
    shown = {source.splitlines()[-1]: text for source, text in markdown_outputs(root/'nbs/index.ipynb')}
    assert shown == tables(), 'run: python -m tools.course && make readme'
    assert sorted(name for part in COURSE.values() for name in part) == sorted(nbs)


def test_what_was_timed_is_there():
    rows = list(csv.DictReader((root/'data/notebook_seconds.csv').open()))
    assert {r['notebook'] for r in rows} <= {*nbs, 'index'} and all(float(r['seconds']) > 0 for r in rows)
