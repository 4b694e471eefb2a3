"""Which reports become stale when code changes: all that reach it, and no others. The package is edited in a copy."""
import shutil
from pathlib import Path

import pytest
from jepa.freshness import canary, catalogue, difference, made_from, reports_folder, split_cells
from jepa.identity import reach
from jepa.papers import source_root

folder = Path(source_root)/'reports'
specs = catalogue(folder/'reports.toml')


def states(package=None):
    "What every report of the standard tier is made from"
    return {name: made_from(spec, {'tier': 'standard', **spec.tiers['standard'].params}, folder, package)
            for name, spec in specs.items()}


@pytest.fixture(scope='module')
def before(): return states()


@pytest.fixture
def edited(tmp_path, before):
    "Edit a module of a copy of the package; report -> what changed"
    for path in (Path(source_root)/'jepa').glob('*.py'): shutil.copyfile(path, tmp_path/path.name)
    def edit(module, old, new):
        path = tmp_path/f'{module}.py'
        text = path.read_text()
        assert old in text, f'{module} has no {old!r}'
        path.write_text(text.replace(old, new))
        differences = {name: difference(before[name], now) for name, now in states(tmp_path).items()}
        return {name: d for name, d in differences.items() if d}
    return edit


def test_a_changed_loss_makes_every_report_that_trains_stale(before, edited):
    stale = edited('objective', 'pow(loss_exp)', 'pow(loss_exp + 1)')
    assert set(stale) == {name for name, parts in before.items() if 'objective.prediction_loss' in parts['computing']}
    trains = {'nano_fig1_pretraining', 'nano_tab2_videos', 'beyond_recipe', 'pico_tab2_accuracy', 'beyond_edge'}
    assert trains <= set(stale)
    assert 'objective.prediction_loss changed' in stale['nano_fig1_pretraining'].computing


def test_a_changed_docstring_or_message_makes_nothing_stale(edited):
    assert edited('objective', '    "Mean over masks of', '    "The mean over masks of') == {}


def test_a_changed_drawing_makes_nothing_stale(edited):
    assert edited('train', 'def plot_run(', 'def plot_run(unused=0, *, ') == {}


def test_a_changed_device_process_makes_only_its_own_report_stale(edited):
    assert edited('_edge', 'class Fleet', 'NOT_USED = 1\n\n\nclass Fleet') == {}
    assert set(edited('_edge', '    def __init__(', '    more = 1\n    def __init__(')) == {'beyond_edge'}


def test_the_order_of_reports_does_not_count(before):
    backwards = dict(reversed(list(specs.items())))
    assert list(backwards) != list(specs)
    name = 'pico_fig1_masks'
    parts = made_from(backwards[name], {'tier': 'standard', **backwards[name].tiers['standard'].params}, folder)
    assert not difference(before[name], parts)


def test_every_report_says_what_it_is_made_from(before):
    for name, parts in before.items():
        assert parts['computing'] and parts['parameters'] and parts['versions'], name
    assert 'nano_tab2' in before['nano_tab2_videos']['tables'] and '_edge.Fleet' in {
        n.rsplit('.', 1)[0] if n.count('.') > 1 else n for n in before['beyond_edge']['computing']}


def test_cells_that_lead_to_saved_values_compute():
    cells = ['import x', 'a = 1', 'b = report.saved("b", f, a)', 'c = b + 1', 'report.note(str(c))']
    computing, showing = split_cells(cells)
    assert computing == cells[1:3] and showing == [cells[0], *cells[3:]]
    assert split_cells(cells[3:]) == (cells[3:], [])


def test_the_canary_covers_training_and_probes():
    names = reach('freshness.canary').hashes
    for name in ('train.train_step', 'pico.PicoConfig', 'recipe.recipe_config', 'probe.fit_probe', 'probe.features'):
        assert name in names, name
    assert canary.__doc__ and reports_folder(folder) == folder.resolve()
