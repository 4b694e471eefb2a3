"""The house rules that a machine can check."""
import ast
import io
import json
import re
import subprocess
import tokenize
import tomllib
from datetime import date
from pathlib import Path

import pytest
from jepa.report import finding_faults, report_states
from tools.readme import links, readme

root = Path(__file__).resolve().parents[1]
notebooks = sorted([*root.glob('nbs/*.ipynb'), *root.glob('reports/*.ipynb')])
plain = sorted([*root.glob('jepa/*.py'), *root.glob('tests/*.py'), *root.glob('tools/*.py')])
standard = root/'reports/results/standard'
machine_path = re.compile(r'(?<![\w.:/-])/(?:work|root|home|Users|tmp)/\w')


def tracked():
    "Text files that git knows; every file of the source where there is no git"
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True)
    folders = ('nbs', 'jepa', 'tests', 'tools', 'reports', 'data')
    names = listed.stdout.split('\0') if listed.returncode == 0 and listed.stdout else [
        str(p.relative_to(root)) for d in folders for p in (root/d).rglob('*.*')]
    binary = ('.png', '.pt', '.mp4', '.pyc', '.npz')
    return [root/n for n in names if n and (root/n).is_file() and Path(n).suffix not in binary]


def test_readme_is_what_the_front_page_makes():
    assert (root/'README.md').read_text() == readme(), 'run: make readme'


def test_links_of_the_front_page_lead_somewhere():
    assert links('[a](00_core.ipynb) [b](../settings.ini)') == '[a](nbs/00_core.ipynb) [b](settings.ini)'
    assert links('[c](https://x.org)') == '[c](https://x.org)'
    for target in re.findall(r'\]\((?![a-z]+:|#)([^)]+)\)', readme()):
        assert (root/target.split('#')[0]).exists(), target


@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.name)
def test_notebooks_are_light_and_name_no_machine(path):
    assert path.stat().st_size < 1_000_000
    nb = json.loads(path.read_text())
    for cell in nb['cells']:
        shown = re.sub(r'"image/png": "[^"]*"', '', json.dumps(cell.get('outputs', [])))
        assert not (place := machine_path.search(shown)), place
        assert 'tqdm' not in shown and 'it/s]' not in shown, 'a progress bar is stored'


def code_cells(path):
    "Sources of the code cells of a notebook"
    return [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']


def python(source):
    "Without magics"
    return '\n'.join('' if line.lstrip().startswith(('%', '!')) else line for line in source.splitlines())


def sources(path): return [python(s) for s in code_cells(path)] if path.suffix == '.ipynb' else [path.read_text()]


def joined(source):
    "Lines on which `;` joins two statements that are not both imports; one at the end of a line silences an output"
    lines, tokens = source.splitlines(), list(tokenize.generate_tokens(io.StringIO(source).readline))
    ends = (tokenize.NEWLINE, tokenize.COMMENT, tokenize.ENDMARKER)
    pairs = zip(tokens, tokens[1:])
    at = [a.start[0] for a, b in pairs if a.type == tokenize.OP and a.string == ';' and b.type not in ends]
    return [lines[n - 1] for n in at if lines[n - 1].count('import ') < 2]


@pytest.mark.parametrize('path', [*notebooks, *plain], ids=lambda p: p.name)
def test_code_fits_a_page(path):
    generated = path.name == '_modidx.py'
    long = [line for source in sources(path) for line in source.splitlines() if len(line) > 120]
    assert generated or not long, f'{path.name}: {len(long)} lines over 120 characters, such as {long[0]}'
    if path.suffix == '.ipynb':
        cells = [source for source in code_cells(path) if len(source.splitlines()) > 30]
        assert not cells, f'{path.name}: {len(cells)} cells over 30 lines, such as {cells[0][:80]}'


@pytest.mark.parametrize('path', [*notebooks, *plain], ids=lambda p: p.name)
def test_a_line_is_one_statement_and_a_function_has_a_def(path):
    for source in sources(path):
        assert not (lines := joined(source)), lines[0]
        for node in ast.walk(ast.parse(source)):
            effect = isinstance(node, ast.Expr) and isinstance(node.value, ast.ListComp)
            named = isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda)
            named = named and isinstance(node.targets[0], ast.Name)
            last = effect and path.suffix == '.ipynb' and node.end_lineno == len(source.splitlines()) # shown, not lost
            assert last or not effect, f'a list made for its side effect: {ast.unparse(node)[:100]}'
            assert not named, f'a lambda with a name: {ast.unparse(node)[:100]}'


def test_old_numbers_of_notebooks_are_gone():
    old = dict(actions=1, video=2, data=3, masks=4, encoder=5, predictor=6, objective=7, train=8, checkpoint=9, probe=10,
               ensemble=11, view=12, infer=13, report=14, cli=15, datasets=16, one_frame=17, widgets=18, glossary=19,
               nano=20, pico=21, vjepa=22, recipe=23, many=24)
    names = '|'.join(f'{number:02d}_{name}' for name, number in old.items())
    for path in tracked():
        match = re.search(rf'(?<!\w)({names})(?!\w)', path.read_text(errors='replace'))
        assert not match, f'{path.relative_to(root)}: {match[0]}'


def test_results_are_small_and_executed_notebooks_are_not_kept():
    pages = sorted(standard.glob('*.html'))
    assert pages and not [p.name for p in pages if p.stat().st_size >= 400_000]
    names = [str(p.relative_to(root)) for p in tracked()]
    assert not [n for n in names if n.startswith('reports/results') and n.endswith('.ipynb')]


states = {s.name: s for s in report_states('standard')}


def test_no_result_is_stale_without_a_reason_and_a_date():
    allowed = tomllib.loads((root/'reports/stale.toml').read_text())
    for name, entry in allowed.items():
        assert set(entry) == {'because', 'date'} and entry['because'].strip() and isinstance(entry['date'], date), name
        assert states[name].status == 'stale', f'{name} is fresh: take it out of reports/stale.toml'
    bad = [name for name, s in states.items() if s.status in ('stale', 'failed', 'missing') and name not in allowed]
    assert not bad, {name: states[name].why for name in bad}


@pytest.mark.parametrize('name', [n for n, s in states.items() if s.status == 'stale'])
def test_a_stale_page_says_so(name):
    page = (standard/f'{name}.html').read_text()
    assert '<!--state-->' in page and 'Stale.' in page.split('<!--state-->')[1].split('<!--/state-->')[0]


@pytest.mark.parametrize('name', [n for n, s in states.items() if s.status == 'ok' and not s.provenance.get('blessed')])
def test_a_finding_can_be_read(name):
    assert finding_faults(states[name].provenance['finding']) == []


def test_no_tracked_file_names_a_machine():
    for path in tracked():
        if path.name == Path(__file__).name: continue
        text = re.sub(r'"image/png": "[^"]*"|base64,[\w+/=]*', '', path.read_text(errors='replace'))
        place = re.search(r'(?<![\w.:/-])/(?:work|root|home)/\w[^\s"\']*', text)
        assert not place, f'{path.relative_to(root)}: {place[0]}'


def test_every_generated_module_has_its_notebook():
    name = re.compile(r'^#\|\s*default_exp (\w+)', re.M)
    cells = [(p, name.search(s)) for p in root.glob('nbs/[0-9]*.ipynb') for s in code_cells(p)]
    made = {match[1]: p for p, match in cells if match}
    for module in root.glob('jepa/*.py'):
        if 'AUTOGENERATED' in module.read_text()[:200]:
            assert module.stem in {*made, '_modidx'}, f'{module.name} is generated, but no notebook makes it'
    for name, path in made.items(): assert path.stem.split('_', 1)[1] == name, f'{path.name} exports {name}'


def test_modules_import_only_from_lower_numbers():
    number = {p.stem.split('_', 1)[1]: int(p.stem[:2]) for p in root.glob('nbs/[0-9]*.ipynb')}
    for name, n in number.items():
        module = root/'jepa'/f'{name}.py'
        if not module.exists(): continue
        for used in re.findall(r'^\s*from (?:jepa)?\.(\w+) import|^\s*import jepa\.(\w+)', module.read_text(), re.M):
            used = used[0] or used[1]
            assert used.startswith('_') or number.get(used, 99) < n, f'{name} imports {used}'


def test_every_dependency_is_pinned():
    import tomllib
    project = tomllib.loads((root/'pyproject.toml').read_text())['project']
    def name(line): return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]+', line)[0]).lower()
    lines = (root/'constraints.txt').read_text().splitlines()
    pinned = {name(line) for line in lines if line and not line.startswith('#')}
    elsewhere = {'decord2'} # installed where decord has no wheel
    needed = project['dependencies'] + project['optional-dependencies']['dev']
    assert {name(d) for d in needed} - pinned <= elsewhere
