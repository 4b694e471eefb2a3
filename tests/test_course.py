"""The course: every notebook is on the front page, ends in exercises, and links of the glossary lead to a section"""
import csv, json, re
from pathlib import Path
from urllib.parse import unquote

import pytest
from tools.course import COURSE, tables

root = Path(__file__).resolve().parents[1]
nbs = {p.stem: p for p in sorted(root.glob('nbs/[0-9]*.ipynb'))}
glossary = '90_glossary'


def markdown(path): return [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'markdown']
def headings(path): return {m[1].strip().replace(' ', '-') for text in markdown(path) for m in re.finditer(r'^#{1,4} (.+)$', text, re.M)}


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
    outputs = [''.join(o['data']['text/markdown']) for c in json.loads(path.read_text())['cells'] for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})]
    for text in markdown(path) + outputs:
        for file, anchor in re.findall(r'\]\((\w*(?:\.ipynb)?)(?:#([^)]+))?\)', text):
            target = root/'nbs'/file if file else path
            assert target.exists(), f'{name}: {file}'
            assert not anchor or unquote(anchor) in headings(target) | {h.lower() for h in headings(target)}, f'{name}: {file}#{anchor}'


def test_the_front_page_shows_what_is_there():
    cells = json.loads((root/'nbs/index.ipynb').read_text())['cells']
    shown = {''.join(c['source']).splitlines()[-1]: ''.join(o['data']['text/markdown']) for c in cells for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})}
    assert shown == tables(), 'run: python -m tools.course && make readme'
    assert sorted(name for part in COURSE.values() for name in part) == sorted(nbs)


def test_what_was_timed_is_there():
    rows = list(csv.DictReader((root/'data/notebook_seconds.csv').open()))
    assert {r['notebook'] for r in rows} <= {*nbs, 'index'} and all(float(r['seconds']) > 0 for r in rows)
