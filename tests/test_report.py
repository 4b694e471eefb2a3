"""Reports: published numbers, provenance, the runner's promises, the index."""
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace as Namespace
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from jepa import report as R
from jepa.core import wilson
from jepa.freshness import ReportSpec, Tier, canary, canary_difference, catalogue, check_params, difference, made_from
from jepa.identity import reach
from jepa.papers import beside, published
from jepa.report import Report, bless, finding_faults, read_json, render_reports, report_states, run_reports

ENTRY = """[{name}]
notebook = "{name}.ipynb"
title = "Report {name}"
paper = "A paper"
makes = ["Table 1"]
checks = ["counted"]
tiers.quick = {{minutes = 1}}
"""
HEAD = "import json, pandas as pd\nfrom jepa.report import Report\nreport = Report('{name}', tier, out)"
TAIL = """report.table(pd.DataFrame({'n': [n]}), 'counts', 'A count.')
report.check('counted', n > 0)
report.finding(f'There were {n}.')
report.done()"""


def notebook(folder, name, *code):
    "A report notebook with parameters tier, out and n"
    parameters = new_code_cell("tier, out = 'quick', ''\nn = 3", metadata={'tags': ['parameters']})
    cells = [parameters, *(new_code_cell(c.replace('{name}', name)) for c in code)]
    nbformat.write(new_notebook(cells=cells), folder/f'{name}.ipynb')


@pytest.fixture
def reports(tmp_path):
    "A folder with one entry per name, and a runner for it"
    def make(**notebooks):
        (tmp_path/'reports.toml').write_text('\n'.join(ENTRY.format(name=n) for n in notebooks))
        for n, code in notebooks.items(): notebook(tmp_path, n, *code)
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


@pytest.mark.parametrize('change, hint', [
    (('notebook =', 'notebok ='), 'notebook'), (('minutes', 'minute'), 'minutes'),
    (('tiers.quick', 'tiers.quik'), 'quick'),
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
    assert {'versions', 'machine', 'started', 'seconds', 'decoder', 'runs'} <= set(made)


def test_an_unfinished_report_leaves_the_last_good_one_untouched(reports, monkeypatch):
    report = open_report(reports, monkeypatch)
    report.figure(plt.subplots()[0], 'good', 'Good.')
    report.check('counted', True)
    report.finding('Good.')
    report.done()
    again = Report('a', 'quick', 'out', params={})
    again.figure(plt.subplots()[0], 'half', 'Half.')
    assert [p.name for p in (reports.folder/'out'/'a').iterdir()] == ['good.png']


def test_names_become_files_once(reports, monkeypatch):
    report = open_report(reports, monkeypatch)
    df = pd.DataFrame({'a': [1]})
    report.table(df, 't', 'T.')
    with pytest.raises(ValueError, match='already'): report.table(df, 't', 'T.')
    with pytest.raises(ValueError, match='file name'): report.table(df, '../t', 'T.')
    report.check('c', None)
    with pytest.raises(ValueError, match='already'): report.check('c', True)


def test_what_a_report_was_made_from(reports):
    reports(a=[HEAD, "from jepa.papers import published\npublished('nano_tab1')"])
    spec = catalogue(reports.folder/'reports.toml')['a']
    def parts(**p): return made_from(spec, p, reports.folder)
    (reports.folder/'list.csv').write_text('one')
    before = parts(n=1, manifest='list.csv')
    assert parts(n=1, manifest='list.csv') == before and set(before['tables']) == {'nano_tab1'}
    (reports.folder/'list.csv').write_text('two')
    assert difference(before, parts(n=1, manifest='list.csv')).computing == ['the data of manifest changed']
    assert 'parameter n changed' in difference(before, parts(n=2, manifest='list.csv')).computing


def test_what_does_not_compute_does_not_count(reports):
    "A caption, a sentence, markdown, a comment, a default that the tier replaces; but a default that is used does"
    reports(a=[HEAD, TAIL])
    spec, path = catalogue(reports.folder/'reports.toml')['a'], reports.folder/'a.ipynb'
    def parts(**p): return made_from(spec, p, reports.folder)
    before = {n: parts(**({'n': 5} if n else {})) for n in (True, False)}
    text = path.read_text()
    words = text.replace('A count.', 'How many.').replace('There were', 'We saw')
    path.write_text(words.replace('n = 3', 'n = 3 # of them'))
    assert not difference(before[True], parts(n=5)) and not difference(before[False], parts())
    path.write_text(text.replace('n = 3', 'n = 4'))
    assert not difference(before[True], parts(n=5))
    assert difference(before[False], parts()).computing == ['parameter n changed']
    path.write_text(text.replace('n > 0', 'n > 1'))
    assert difference(before[True], parts(n=5))


def test_runner_makes_the_others_when_one_fails_and_skips_what_is_up_to_date(reports):
    run = reports(bad=["raise RuntimeError('broken')"], undone=["x = 1"], good=[HEAD, TAIL])
    out = reports.folder/'out'
    first = run()
    assert [(o.name, o.status) for o in first] == [('bad', 'failed'), ('undone', 'failed'), ('good', 'made')]
    assert 'broken' in first[0].why and 'done' in first[1].why
    assert (out/'bad.failed.ipynb').exists() and not (out/'bad.ipynb').exists()
    assert run(names=['good'])[0].status == 'up to date'
    assert read_json(out/'good.json')['parameters'] == {'n': 3}
    # a parameter makes it again; the state with the tier's own parameters is then stale, and its page says so
    assert run(names=['good'], params={'n': 0})[0].why == 'check failed: counted'
    states = {s.name: s for s in report_states('quick', out, reports.folder)}
    assert states['good'].status == 'stale' and 'parameter n' in states['good'].why and states['bad'].status == 'failed'
    assert 'Stale. Changed since it was made: parameter n changed' in (out/'good.html').read_text()
    # a failed run keeps the last good result
    notebook(reports.folder, 'good', "raise RuntimeError('now broken')")
    assert run(names=['good'])[0].status == 'failed'
    assert read_json(out/'good.json')['parameters'] == {'n': 0} and (out/'good.failed.ipynb').exists()
    page = (out/'index.html').read_text()
    assert page.count('<section') == 3 and 'now broken' in page and 'There were 0.' in page
    assert 'http:' not in page and 'https:' not in page
    # nothing published names this machine
    for p in out.glob('*.*'): assert str(reports.folder) not in p.read_text().replace('broken', ''), p.name
    assert all(p.name.endswith('.lock') for p in out.iterdir() if p.name.startswith('.'))


def test_runner_refuses_mistakes_before_running(reports):
    run = reports(a=[HEAD, TAIL])
    with pytest.raises(KeyError, match="'n'"): run(params={'nn': 3})
    with pytest.raises(KeyError, match="'a'"): run(names=['aa'])
    for word in ('tier', 'out'):
        with pytest.raises(ValueError, match=f'--{word}'): run(params={word: 'paper'})
    with pytest.raises(ValueError, match='tier'):
        run_reports(folder=reports.folder, out=reports.folder/'out', tier='paper')
    notebook(reports.folder, 'gone')
    (reports.folder/'a.ipynb').unlink()
    with pytest.raises(FileNotFoundError, match='a.ipynb'): run()


SAVED = ["def count(n):\n    print('counted')\n    open('calls', 'a').write('x')\n    return {'n': n}",
         "counts = report.saved('counts', count, n)\nn = counts['n']"]


def test_words_are_drawn_again_without_computing(reports):
    run = reports(a=[HEAD, *SAVED, TAIL.replace("'counts', 'A", "'table', 'A")])
    out, calls = reports.folder/'out', reports.folder/'calls'
    assert run()[0].status == 'made' and calls.read_text() == 'x'
    tail = TAIL.replace("'counts', 'A", "'table', 'A").replace('n > 0', 'n > 2')
    notebook(reports.folder, 'a', HEAD, *SAVED, tail.replace('There were', 'We saw'))
    [state] = report_states('quick', out, reports.folder)
    assert state.status == 'stale' and not state.needs_run, state.why
    assert 'jepa reports render a' in state.why
    [again] = render_reports(['a'], folder=reports.folder, out=out, tier='quick', progress=False)
    assert again.status == 'rendered' and calls.read_text() == 'x'
    assert read_json(out/'a.json')['finding'] == 'We saw 3.' and 'rendered' in read_json(out/'a.json')
    assert report_states('quick', out, reports.folder)[0].status == 'ok'
    # what computes changed: rendering would show old numbers as new ones
    notebook(reports.folder, 'a', HEAD, SAVED[0], SAVED[1].replace('count, n', 'count, n + 1'), tail)
    [refused] = render_reports(['a'], folder=reports.folder, out=out, tier='quick', progress=False)
    assert refused.status == 'failed' and 'must be run' in refused.why
    assert run()[0].status == 'made' and calls.read_text() == 'xx'


def test_a_result_is_kept_only_with_a_reason_and_a_canary(reports):
    run = reports(a=[HEAD, TAIL])
    out, song = reports.folder/'out', {'nano': {'losses': [.5, .4]}}
    run()
    keep = dict(tier='quick', out=out, folder=reports.folder)
    with pytest.raises(ValueError, match='no canary'): bless('a', 'it moved', song=song, **keep)
    made = read_json(out/'a.json')
    (out/'a.json').write_text(json.dumps({**made, 'canary': song}))
    notebook(reports.folder, 'a', HEAD, TAIL.replace('n > 0', 'n >= 1'))
    with pytest.raises(ValueError, match='say why'): bless('a', ' ', song=song, **keep)
    other = {'nano': {'losses': [.5, .5]}}
    with pytest.raises(ValueError, match='canary differs'): bless('a', 'it moved', song=other, **keep)
    assert report_states('quick', out, reports.folder)[0].status == 'stale'
    assert any('changed' in w or 'is new' in w for w in bless('a', 'it moved', song=song, **keep))
    assert report_states('quick', out, reports.folder)[0].status == 'ok'
    kept = read_json(out/'a.json')['blessed']
    assert kept[0]['because'] == 'it moved' and 'it moved' in (out/'a.html').read_text()
    # other data or parameters are not code
    notebook(reports.folder, 'a', HEAD, TAIL)
    (reports.folder/'a.ipynb').write_text((reports.folder/'a.ipynb').read_text().replace('n = 3', 'n = 4'))
    with pytest.raises(ValueError, match='not only code'): bless('a', 'it moved', song=song, **keep)


def test_canaries_differ_with_the_code():
    song = {'nano': {'losses': [.5, .4], 'features': [1.]}}
    assert canary_difference(song, {'nano': {'losses': [.50001, .4], 'features': [1.]}}) == ''
    assert 'losses of nano' in canary_difference(song, {'nano': {'losses': [.5, .41], 'features': [1.]}})
    assert 'features of nano' in canary_difference(song, {'nano': {'losses': [.5, .4]}})
    assert 'train.train_step' in reach('freshness.canary').hashes and canary.__doc__


def test_a_damaged_record_names_its_file_and_stops_no_other(reports):
    run = reports(a=[HEAD, TAIL], b=[HEAD, TAIL])
    run()
    for text in ('', '{"name": "a"', '\0\0'):
        (reports.folder/'out'/'a.json').write_text(text)
        a, b = report_states('quick', reports.folder/'out', reports.folder)
        assert a.status == 'failed' and 'a.json is damaged' in a.why and 'remove it' in a.why and b.status == 'ok'
    assert [o.status for o in run()] == ['made', 'up to date']


def test_a_second_runner_waits_for_the_first(reports, tmp_path):
    body = [HEAD, "import time\ntime.sleep(4)", TAIL]
    reports(a=body)
    code = (f'from jepa.report import *; print(*run_reports(folder={str(reports.folder)!r}, '
            f"out={str(reports.folder/'out')!r}, tier='quick', progress=True))")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    both = [subprocess.Popen([sys.executable, '-c', code], **pipes) for _ in 'ab']
    outputs = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs
    assert sorted(o.split()[1] for o, _ in outputs) == ['made', 'up'], outputs
    assert any('waiting: process' in e and 'makes a' in e for _, e in outputs), outputs


def test_the_kernel_is_this_interpreter(reports, tmp_path, monkeypatch):
    "whatever another kernel of the name python3 is"
    other = tmp_path/'jupyter'/'kernels'/'python3'
    other.mkdir(parents=True)
    about = dict(argv=['/bin/false', '{connection_file}'], display_name='x', language='python')
    (other/'kernel.json').write_text(json.dumps(about))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path/'jupyter'))
    run = reports(a=[HEAD, f"import sys\nassert sys.executable == {sys.executable!r}", TAIL])
    assert run()[0].status == 'made'


def test_what_a_page_shows_is_text(reports):
    evil = '<img src=x onerror=alert(1)>'
    body = TAIL.replace("{'n': [n]}", "{'n': [text]}").replace('A count.', evil).replace("f'There were {n}.'", 'text')
    run = reports(a=[HEAD, f"text = {evil!r}\nn = 3", body])
    run()
    for page in ('a.html', 'index.html'): assert evil not in (reports.folder/'out'/page).read_text(), page


def spec_of(*shares, alone=False, minutes=1):
    tiers = dict(quick=Tier(minutes))
    return ReportSpec('a.ipynb', 'A', 'a paper', ('Table 1',), shares=shares, alone=alone, tiers=tiers)


def jobs_of(**specs): return [R._Job(name, spec, dict(tier='quick'), Path(), Path()) for name, spec in specs.items()]


@pytest.mark.parametrize('jobs', [1, 2, 4])
def test_reports_at_once_wait_for_shared_runs_and_for_quiet(jobs):
    work_list = jobs_of(first=spec_of('run'), timed=spec_of('run', alone=True, minutes=9), second=spec_of('run'),
                        other=spec_of(), third=spec_of('run', 'later'), fourth=spec_of('later'),
                        long=spec_of(minutes=5))
    names = [job.name for job in work_list]
    beside, began, done, running, lock, together = {}, [], [], set(), threading.Lock(), threading.Barrier(2)
    def work(job, stop):
        with lock:
            began.append(job.name)
            running.add(job.name)
            beside.setdefault(job.name, set())
            for name in running: beside[name].update(running)
        if job.name in ('second', 'third') and jobs == 4: together.wait(20) # only if the other is at work, too
        with lock:
            running.remove(job.name)
            done.append(job.name)
        return job.name
    assert set(R._at_once(work_list, jobs, work)) == set(names) and set(done) == set(names)
    assert beside['timed'] == {'timed'} and not beside['first'] & {'second', 'third', 'timed'}
    assert 'fourth' not in beside['third']
    if jobs == 1: assert all(b == {n} for n, b in beside.items()) and began == names
    else: assert began[0] == 'long' and began[-1] == 'timed'
    if jobs == 4: assert 'third' in beside['second']


def test_a_report_that_others_wait_for_begins_before_a_longer_one():
    began, lock = [], threading.Lock()
    work_list = jobs_of(short=spec_of(minutes=1), long=spec_of(minutes=5),
                        leader=spec_of('run', minutes=3), after=spec_of('run', minutes=3))
    def work(job, stop):
        with lock: began.append(job.name)
        return job.name
    list(R._at_once(work_list, 2, work))
    assert set(began[:2]) == {'leader', 'long'} and began[-1] == 'short'


def test_code_is_followed_in_many_threads():
    "The garbage collector may hand over to another thread in the midst of parsing, which Python 3.11 does not survive"
    class Slow:
        def __init__(self): self.me = self
        def __del__(self): sum(range(200))
    def follow(_):
        keep = [Slow() for _ in range(50)]
        return len(keep), reach(source='from jepa.masks import sample_masks\nsample_masks').hashes
    before = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(50)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool: results = list(pool.map(follow, range(40)))
    finally:
        gc.set_threshold(*before[0])
        sys.setswitchinterval(before[1])
    assert all(r == results[0] for r in results) and 'masks.sample_masks' in results[0][1]


def test_an_error_stops_the_reports_beside_it():
    ended = []
    def work(job, stop):
        if job.name == 'bad': raise RuntimeError('broken')
        ended.append(stop.wait(20))
    with pytest.raises(RuntimeError, match='broken'):
        list(R._at_once(jobs_of(good=spec_of(), bad=spec_of(), late=spec_of()), 2, work))
    assert ended == [True]


def test_a_finding_can_be_read():
    plain = 'The vote does not win: 89.2 % against 93.8 %. In the paper the gap is one video of 194.'
    assert finding_faults(plain) == []
    assert finding_faults('No full stop') and finding_faults('1, 2, 3, 4 and 5 are five numbers.')
    assert finding_faults(' '.join(['word']*26) + '.') and finding_faults('One. Two. Three. Four. Five.')


def test_reports_at_once_divide_the_threads(reports, monkeypatch):
    monkeypatch.setattr(R, 'machine', lambda: Namespace(threads=5, device=Namespace(type='cpu')))
    body = [HEAD, "import os\nn = int(os.environ['OMP_NUM_THREADS'])", TAIL]
    made = reports(a=body, b=body)(jobs=2)
    assert [o.status for o in made] == ['made', 'made'] and [o.name for o in made] == ['a', 'b']
    assert all('There were 2.' in read_json(reports.folder/'out'/f'{n}.json')['finding'] for n in 'ab')
    with pytest.raises(ValueError, match='jobs'): reports(a=body)(jobs=-1)


in_a_terminal = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); '
in_the_background = 'import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); '


@pytest.mark.parametrize('how, before', [
    (signal.SIGINT, in_a_terminal), (signal.SIGKILL, ''), (signal.SIGKILL, in_the_background)])
def test_a_stopped_runner_leaves_no_process_behind(reports, how, before):
    reports(a=["import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(100)"])
    code = (f'{before}from jepa.report import *; run_reports(folder={str(reports.folder)!r}, '
            f"out={str(reports.folder/'out')!r}, tier='quick', progress=False)")
    p = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True)
    pid, end = reports.folder/'pid', time.time() + 60
    while not (pid.exists() and pid.read_text()) and time.time() < end: time.sleep(.1)
    p.send_signal(how)
    errors = p.communicate(timeout=30)[1]
    assert p.returncode and not (reports.folder/'out'/'a.json').exists()
    if how == signal.SIGINT: assert 'KeyboardInterrupt' in errors and (reports.folder/'out'/'index.html').exists()
    end = time.time() + 20
    while psutil.pid_exists(int(pid.read_text())) and time.time() < end: time.sleep(.1)
    assert not psutil.pid_exists(int(pid.read_text()))
