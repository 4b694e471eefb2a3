"""Reports on data of one's own, at the smallest size: from folders in the exact layouts of Kinetics-700,
Something-Something v2 and ImageNet, and from a plain folder, to the page"""
import json, shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from jepa.cli import app
from jepa.data import read_manifest
from jepa.images import table1_data
from jepa.nano import table2_data
from jepa.pico import pico_videos
from jepa.report import catalogue, published
import trees

cli = CliRunner()
shared = Path(__file__).resolve().parents[2]/'shared'/'videos'/'real'
CLIP = dict(num_frames=4, stride=2, pixels=32, patch_size=8, video_pixels=36, monitor_clips=8)
NANO = dict(CLIP, videos=8, epochs=1, predictor_dim=24, predictor_depth=1, batch_size=4)

def command(*words):
    shown = cli.invoke(app, list(map(str, words)))
    assert shown.exit_code == 0, shown.output
    return shown.stdout

def paper_tier(place, name, **params):
    "Make a report's paper tier with these parameters: its record and its folder"
    command('reports', 'run', name, '--tier', 'paper', *(w for k, v in params.items() for w in ('--set', f'{k}={v}')))
    record = json.loads((place/f'results/paper/{name}.json').read_text())
    assert record['finding'] and {c['name'] for c in record['checks']} >= set(catalogue()[name].checks)
    return record, place/f'results/paper/{name}'

def checks(record): return {c['name']: c['ok'] for c in record['checks']}

@pytest.mark.slow
def test_kinetics_700_to_the_vote(place, tmp_path):
    pico = published('pico_classes')
    def name(c): return c.replace('_', ' ')
    counts = {name(r.class_name): dict(train=round(r.pretraining_videos/50), val=1)
        for r in pico.itertuples()} # none to spare
    root = trees.kinetics(tmp_path/'kinetics700', counts | {'arguing': dict(train=3, val=1)})
    assert command('data', 'index', root).startswith('Kinetics-700')
    said = command('data', 'nano', '--from', root/'manifest.csv', '--classes', 'pico-table2', '--shrink', 50, '--out',
        tmp_path/'pico')
    assert f'pico_tab2_accuracy --tier paper --set dataset={tmp_path}/pico/manifest.csv' in said
    record, made = paper_tier(place, 'pico_tab2_accuracy', **CLIP, dataset=tmp_path/'pico'/'manifest.csv', shrink=50,
        val_shrink=50, epochs=1, batch_size=10, probe_epochs=2)
    four = pico.dropna(subset='train_videos')
    assert record['data']['pretraining']['videos'] == sum((pico.pretraining_videos/50).round())
    assert record['data']['train']['videos'] == sum((four.train_videos/50).round())
    assert record['data']['val']['videos'] == 4
    assert record['data']['val']['classes'] == four.class_name.tolist()
    assert checks(record)['numbers of validation videos as in the paper'] is None
    assert set(pd.read_csv(made/'table2.csv')['ours n'].dropna()) == {1}
    assert record['parameters']['dataset'].endswith('pico/manifest.csv')
    assert record['data']['train']['dataset'].endswith('pico/manifest.csv')

@pytest.mark.slow
def test_something_something_to_table_2(place, tmp_path):
    templates = [f'{verb} [something], [something] and [something] on the table'
        for verb in ('Putting', 'Showing', 'Lifting', 'Turning', 'Hiding', 'Pushing', 'Poking', 'Tipping', 'Moving')]
    root = trees.ssv2(tmp_path/'ssv2', templates, 8, 4)
    command('data', 'index', root)
    record, made = paper_tier(place, 'nano_tab2_videos', **NANO, dataset=root/'manifest.csv',
        pretraining=root/'manifest.csv', shrink=12, copies=1, segments=1, views=1, scratch_epochs=1)
    table = pd.read_csv(made/'controls.csv')
    assert table.query("encoder == 'pretrained'").n.tolist() == [16, 4, 32]
    assert checks(record)['train and val share no file']
    assert record['data']['model A']['classes'] == [
        t.replace('[', '').replace(']', '') for t in templates[:4]] # in the order of labels.json

@pytest.fixture
def imagenet(tmp_path): return trees.imagenet(tmp_path/'imagenet', [f'n{1440764 + k:08d}' for k in range(11)], 6, 18)

@pytest.mark.slow
def test_imagenet_to_table_1(place, imagenet):
    leak = next((imagenet/'train'/'n01440764').iterdir())
    shutil.copy(leak, imagenet/'val'/'n01440764'/'ILSVRC2012_val_00009999.JPEG') # the page must notice
    assert command('data', 'index', imagenet).startswith('ImageNet: ')
    record, made = paper_tier(place, 'nano_tab1_images', **NANO, dataset=imagenet/'manifest.csv', train=60, test=0,
        converge_epochs=2)
    assert record['data']['train images']['images'] == 60 and record['data']['test images']['images'] == 181
    assert checks(record)['176 test images as in the paper'] and checks(record)['every image is a still clip']
    assert checks(record)['train and test share nothing'] is False
    assert 'imagenet/manifest.csv' in record['finding']
    assert record['data']['test images']['classes'] == [f'n{1440764 + k:08d}' for k in range(10)]

@pytest.mark.slow
@pytest.mark.skipif(not shared.is_dir(), reason='shared/videos is not here')
def test_a_plain_folder_to_figure_1(place, tmp_path):
    command('data', 'index', shared, '--out', tmp_path/'real.csv')
    record, made = paper_tier(place, 'nano_fig1_pretraining', **NANO | dict(videos=24, dataset=tmp_path/'real.csv'))
    assert record['data']['pretraining videos']['videos'] == 24 and checks(record)['every step finite']
    assert 'real.csv' in record['finding']

def test_without_the_paper_s_classes(place, tmp_path):
    plain, other = tmp_path/'plain', trees.kinetics(tmp_path/'other',
        {'a': dict(train=2, val=2), 'abseilng': dict(train=2, val=1)})
    trees.video(plain/'1.mp4')
    few = trees.kinetics(tmp_path/'few',
        {c.replace('_', ' '): dict(train=2, val=1) for c in published('pico_classes').class_name})
    for read, hint in [(lambda: table2_data('A', str(plain)), 'plain has 0 classes, model A needs 4'),
        (lambda: table2_data('A', str(other)), 'other has 2 classes, model A needs 4'),
        (lambda: table2_data('A', str(few)), "class '.*' has 1 files in val, not 50|has 2 files in train, not 100"),
                       (lambda: pico_videos(dataset=str(plain)), 'none of its files has one'),
                       (lambda: pico_videos(dataset=str(other)), "no class 'abseiling'; did you mean 'abseilng'"),
                       (lambda: pico_videos(dataset=str(few)), "class 'abseiling' has 2 files in train, not 957"),
                       (lambda: table1_data(str(plain)), 'plain has 0 classes, 10 are needed')]:
        with pytest.raises((KeyError, ValueError), match=hint): read()
    shown = cli.invoke(app, ['reports', 'run', 'pico_tab2_accuracy', '--tier', 'paper', '--set', 'datasets=x'])
    assert shown.exit_code == 2 and "did you mean 'dataset'" in shown.stderr

def test_a_dataset_is_named_from_where_one_stands(place, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr('jepa.report.run_reports', lambda names, tier, params, *more,
        **options: given.update(params) or [])
    (tmp_path/'NANO').mkdir()
    (tmp_path/'NANO'/'manifest.csv').touch()
    monkeypatch.chdir(tmp_path)
    command('reports', 'run', 'nano_tab2_videos', '--tier', 'paper', '--set', 'dataset=NANO/manifest.csv', '--set',
        'level=easy', '--set', 'epochs=2', '--set', 'pretraining=')
    assert given == dict(dataset=str(tmp_path/'NANO'/'manifest.csv'), level='easy', epochs=2, pretraining='')
