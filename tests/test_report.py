"""Reports: published numbers, provenance, the runner's promises, the index."""
import gc, json, os, signal, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace as Namespace
import nbformat, numpy as np, pandas as pd, psutil, pytest
import matplotlib.pyplot as plt
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from jepa import report as R
from jepa.core import wilson
from jepa.report import Report, beside, catalogue, check_params, code_of, made_from, published, report_states, run_reports

ENTRY = '[{name}]\nnotebook = "{name}.ipynb"\ntitle = "Report {name}"\npaper = "A paper"\nmakes = ["Table 1"]\nchecks = ["counted"]\ntiers.quick = {{minutes = 1}}\n'
HEAD = "import json, pandas as pd\nfrom jepa.report import Report\nreport = Report('{name}', tier, out)"
TAIL = "report.table(pd.DataFrame({'n': [n]}), 'counts', 'A count.')\nreport.check('counted', n > 0)\nreport.finding(f'There were {n}.')\nreport.done()"


def notebook(folder, name, *code):
    "A report notebook with parameters tier, out and n"
    cells = [new_code_cell("tier, out = 'quick', ''\nn = 3", metadata={'tags': ['parameters']}), *map(new_code_cell, code)]
    nbformat.write(new_notebook(cells=cells), folder/f'{name}.ipynb')


@pytest.fixture
def reports(tmp_path):
    "A folder with one entry per name, and a runner for it"
    def make(**notebooks):
        (tmp_path/'reports.toml').write_text('\n'.join(ENTRY.format(name=n) for n in notebooks))
        for n, code in notebooks.items(): notebook(tmp_path, n, *[c.replace('{name}', n) for c in code])
        return lambda **kw: run_reports(folder=tmp_path, out=tmp_path/'out', tier='quick', progress=False, **kw)
    make.folder = tmp_path
    return make


def test_published_counts_give_published_percentages():
    for name, digits in (('nano_tab1', 2e-3), ('nano_tab2', 1e-2), ('pico_tab2', 6e-3)):
        df = published(name).dropna(subset=['k'])
        assert (abs(100*df.k/df.n - df.accuracy) < digits).all(), name


def test_every_published_table_can_be_read():
    for path in (Path(R.source_root)/'data'/'papers').glob('*.csv'):
        df = published(path.stem)
        assert len(df) and not df.columns.duplicated().any()


def test_two_published_cells_are_no_share_of_48_videos():
    df = published('pico_tab2').query("class_name != 'mean'")
    assert sorted(df[df.k.isna()].accuracy) == [37.92, 47.67]


def test_pico_means_are_means_over_classes():
    df = published('pico_tab2')
    rows = df[df.class_name != 'mean'].groupby('model').accuracy.mean()
    means = df[df.class_name == 'mean'].set_index('model').accuracy
    assert (abs(rows - means) < 0.02).all()


def test_beside_keeps_rows_of_both_sides_in_order():
    paper = pd.DataFrame({'m': ['B', 'A'], 'accuracy': [50., 25.], 'k': [5, None], 'n': [10, 10]})
    ours = pd.DataFrame({'m': ['A', 'C'], 'k': [3, 1], 'n': [10, 10], 'chance': 25.})
    df = beside(paper, ours, 'm')
    assert df.m.tolist() == ['B', 'A', 'C'] and df['ours %'].isna().tolist() == [True, False, False]
    assert df['paper 95 %'][0] == '23.7 to 76.3' and pd.isna(df['paper 95 %'][1])
    with pytest.raises(ValueError, match='twice'): beside(pd.concat([paper, paper]), ours, 'm')


@pytest.mark.parametrize('change, hint', [(('notebook =', 'notebok ='), 'notebook'), (('minutes', 'minute'), 'minutes'), (('tiers.quick', 'tiers.quik'), 'quick'),
                                          (('checks = ["counted"]', 'checks = "counted"'), 'ReportSpec.checks'), (('[x]', '[x'), 'line')])
def test_a_mistake_in_reports_toml_names_file_and_remedy(tmp_path, change, hint):
    (tmp_path/'reports.toml').write_text(ENTRY.format(name='x').replace(*change))
    with pytest.raises((KeyError, TypeError, ValueError)) as e: catalogue(tmp_path/'reports.toml')
    assert 'reports.toml' in str(e.value) and hint in str(e.value)


def test_the_repository_s_own_catalogue_is_valid():
    for name, spec in catalogue(Path(R.source_root)/'reports'/'reports.toml').items():
        assert set(spec.tiers) == {'quick', 'standard', 'paper'}
        path = Path(R.source_root)/'reports'/spec.notebook
        if path.exists():
            for tier in spec.tiers.values(): check_params(path, {'tier': '', 'out': '', **tier.params})


def open_report(reports, monkeypatch):
    reports(a=[HEAD])
    monkeypatch.chdir(reports.folder)
    return Report('a', 'quick', 'out', params=dict(n=1, seed=7))


def test_a_report_needs_finding_and_promised_checks(reports, monkeypatch):
    report = open_report(reports, monkeypatch)
    with pytest.raises(ValueError, match='finding'): report.done()
    report.finding('Something.')
    with pytest.raises(ValueError, match="'counted'"): report.done()
    report.check('counted', np.bool_(True))
    report.done()
    made = json.loads((reports.folder/'out'/'a.json').read_text())
    assert made['seeds'] == {'seed': 7} and made['checks'] == [{'name': 'counted', 'ok': True, 'detail': ''}]
    assert {'versions', 'machine', 'started', 'seconds', 'decoder', 'code'} <= set(made)


def test_an_unfinished_report_leaves_the_last_good_one_untouched(reports, monkeypatch):
    report = open_report(reports, monkeypatch)
    fig, ax = plt.subplots(); report.figure(fig, 'good', 'Good.')
    report.check('counted', True); report.finding('Good.'); report.done()
    again = Report('a', 'quick', 'out', params={})
    fig, ax = plt.subplots(); again.figure(fig, 'half', 'Half.')
    assert [p.name for p in (reports.folder/'out'/'a').iterdir()] == ['good.png']


def test_names_become_files_once(reports, monkeypatch):
    report = open_report(reports, monkeypatch)
    df = pd.DataFrame({'a': [1]})
    report.table(df, 't', 'T.')
    with pytest.raises(ValueError, match='already'): report.table(df, 't', 'T.')
    with pytest.raises(ValueError, match='file name'): report.table(df, '../t', 'T.')
    report.check('c', None)
    with pytest.raises(ValueError, match='already'): report.check('c', True)


def test_code_of_follows_imports_and_ignores_plumbing():
    used = code_of('from jepa.report import published')
    assert {'core', 'report'} <= set(used) and not {'cli', '_index'} & set(used)


def test_what_a_report_was_made_from(reports):
    reports(a=[HEAD, "from jepa.report import published\npublished('nano_tab1')"])
    spec = catalogue(reports.folder/'reports.toml')['a']
    (reports.folder/'list.csv').write_text('one')
    parts = lambda **p: made_from(spec, p, reports.folder)
    before = parts(n=1, manifest='list.csv')
    assert parts(n=1, manifest='list.csv') == before
    (reports.folder/'list.csv').write_text('two')
    assert [k for k in before if before[k] != parts(n=1, manifest='list.csv')[k]] == ['data']
    assert [k for k in before if before[k] != parts(n=2, manifest='list.csv')[k]][0] == 'parameters'


def test_runner_makes_the_others_when_one_fails_and_skips_what_is_up_to_date(reports):
    run = reports(bad=["raise RuntimeError('broken')"], undone=["x = 1"], good=[HEAD, TAIL])
    out = reports.folder/'out'
    first = run()
    assert [(o.name, o.status) for o in first] == [('bad', 'failed'), ('undone', 'failed'), ('good', 'made')]
    assert 'broken' in first[0].why and 'done' in first[1].why
    assert (out/'bad.failed.ipynb').exists() and not (out/'bad.ipynb').exists()
    assert run(names=['good'])[0].status == 'up to date'
    made = json.loads((out/'good.json').read_text())
    assert made['parameters'] == {'n': 3}
    # a parameter makes it again; the state with the tier's own parameters is then stale
    assert run(names=['good'], params={'n': 0})[0].why == 'check failed: counted'
    states = {s.name: s for s in report_states('quick', out, reports.folder)}
    assert states['good'].status == 'stale' and 'parameters' in states['good'].why and states['bad'].status == 'failed'
    # a failed run keeps the last good result
    notebook(reports.folder, 'good', "raise RuntimeError('now broken')")
    assert run(names=['good'])[0].status == 'failed'
    assert json.loads((out/'good.json').read_text())['parameters'] == {'n': 0} and (out/'good.failed.ipynb').exists()
    page = (out/'index.html').read_text()
    assert page.count('<section') == 3 and 'now broken' in page and 'There were 0.' in page and 'http:' not in page and 'https:' not in page
    # nothing published names this machine
    for p in out.glob('*.*'): assert str(reports.folder) not in p.read_text().replace('broken', ''), p.name
    assert not [p for p in out.iterdir() if p.name.startswith('.')]


def test_runner_refuses_mistakes_before_running(reports):
    run = reports(a=[HEAD, TAIL])
    with pytest.raises(KeyError, match="'n'"): run(params={'nn': 3})
    with pytest.raises(KeyError, match="'a'"): run(names=['aa'])
    with pytest.raises(ValueError, match='tier'): run_reports(folder=reports.folder, out=reports.folder/'out', tier='paper')
    notebook(reports.folder, 'gone'); (reports.folder/'a.ipynb').unlink()
    with pytest.raises(FileNotFoundError, match='a.ipynb'): run()
    assert not (reports.folder/'out').exists()


@pytest.mark.parametrize('jobs', [1, 2, 4])
def test_reports_at_once_wait_for_shared_runs_and_for_quiet(jobs):
    spec = lambda *shares, alone=False, minutes=1: R.ReportSpec('a.ipynb', 'A', 'a paper', ('Table 1',), shares=shares, alone=alone, tiers=dict(quick=R.Tier(minutes)))
    specs = dict(first=spec('run'), timed=spec('run', alone=True, minutes=9), second=spec('run'), other=spec(), third=spec('run', 'later'), fourth=spec('later'), long=spec(minutes=5))
    beside, began, done, running, lock = {}, [], [], set(), threading.Lock()
    def work(n, stop):
        with lock: began.append(n); running.add(n); beside.setdefault(n, set()); [beside[r].update(running) for r in running]
        if n in ('second', 'third') and jobs == 4: together.wait(20) # only if the other is at work, too
        with lock: running.remove(n); done.append(n)
        return n
    together = threading.Barrier(2)
    assert set(R._at_once(specs, specs, 'quick', jobs, work)) == set(specs) and set(done) == set(specs)
    assert beside['timed'] == {'timed'} and not beside['first'] & {'second', 'third', 'timed'} and 'fourth' not in beside['third']
    if jobs == 1: assert all(b == {n} for n, b in beside.items()) and began == list(specs)
    else: assert began[0] == 'long' and began[-1] == 'timed'
    if jobs == 4: assert 'third' in beside['second']


def test_a_report_that_others_wait_for_begins_before_a_longer_one():
    spec = lambda *shares, minutes: R.ReportSpec('a.ipynb', 'A', 'a paper', ('Table 1',), shares=shares, tiers=dict(quick=R.Tier(minutes)))
    specs, began, lock = dict(short=spec(minutes=1), long=spec(minutes=5), leader=spec('run', minutes=3), after=spec('run', minutes=3)), [], threading.Lock()
    def work(n, stop):
        with lock: began.append(n)
        return n
    list(R._at_once(specs, specs, 'quick', 2, work))
    assert set(began[:2]) == {'leader', 'long'} and began[-1] == 'short'


def test_modules_are_found_in_many_threads():
    "The garbage collector may hand over to another thread in the midst of parsing, which Python 3.11 does not survive"
    class Slow:
        def __init__(self): self.me = self
        def __del__(self): sum(range(200))
    source, before = (Path(R.source_root)/'jepa'/'report.py').read_text(), (gc.get_threshold(), sys.getswitchinterval())
    gc.set_threshold(50); sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool: found = list(pool.map(lambda _: ([Slow() for _ in range(50)], R._imports(source))[1], range(300)))
    finally: gc.set_threshold(*before[0]); sys.setswitchinterval(before[1])
    assert all(f == {'core', '_index'} for f in found), found[0]


def test_an_error_stops_the_reports_beside_it():
    spec, ended = R.ReportSpec('a.ipynb', 'A', 'a paper', ('Table 1',), tiers=dict(quick=R.Tier(1))), []
    def work(n, stop):
        if n == 'bad': raise RuntimeError('broken')
        ended.append(stop.wait(20))
    with pytest.raises(RuntimeError, match='broken'): list(R._at_once(['good', 'bad', 'late'], dict.fromkeys(['good', 'bad', 'late'], spec), 'quick', 2, work))
    assert ended == [True]


def test_reports_at_once_divide_the_threads(reports, monkeypatch):
    monkeypatch.setattr(R, 'machine', lambda: Namespace(threads=5, device=Namespace(type='cpu')))
    body = [HEAD, "import os\nn = int(os.environ['OMP_NUM_THREADS'])", TAIL]
    made = reports(a=body, b=body)(jobs=2)
    assert [o.status for o in made] == ['made', 'made'] and [o.name for o in made] == ['a', 'b']
    assert all('There were 2.' in json.loads((reports.folder/'out'/f'{n}.json').read_text())['finding'] for n in 'ab')
    with pytest.raises(ValueError, match='jobs'): reports(a=body)(jobs=-1)


@pytest.mark.parametrize('how, before', [(signal.SIGINT, 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); '), (signal.SIGKILL, ''), (signal.SIGKILL, 'import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); ')]) # in a terminal; killed; in the background of a shell
def test_a_stopped_runner_leaves_no_process_behind(reports, how, before):
    reports(a=["import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(100)"])
    code = before + f"from jepa.report import *; run_reports(folder={str(reports.folder)!r}, out={str(reports.folder/'out')!r}, tier='quick', progress=False)"
    p = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True)
    pid, end = reports.folder/'pid', time.time() + 60
    while not (pid.exists() and pid.read_text()) and time.time() < end: time.sleep(.1)
    p.send_signal(how)
    said = p.communicate(timeout=30)[1]
    assert p.returncode and not (reports.folder/'out'/'a.json').exists()
    if how == signal.SIGINT: assert 'KeyboardInterrupt' in said and (reports.folder/'out'/'index.html').exists()
    end = time.time() + 20
    while psutil.pid_exists(int(pid.read_text())) and time.time() < end: time.sleep(.1)
    assert not psutil.pid_exists(int(pid.read_text()))
