"""nano-JEPA's reports from a video file to the page, at the smallest size, with a ViT-L in V-JEPA's layout"""
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from jepa.core import repo_root
from jepa.report import run_reports

SMALL = dict(videos=8, epochs=1, num_frames=4, stride=8, pixels=32, patch_size=8, predictor_dim=24, predictor_depth=1,
             video_pixels=36, monitor_clips=8, batch_size=4)
CHECKED = ('176 test images as in the paper', 'train and test share nothing', 'every image is a still clip',
           'untrained network and pixels beside the encoder')


def vjepa_file(place):
    golden = torch.load(repo_root(Path(__file__).parent)/'tests/golden/vjepa1_uniform.pt', weights_only=True)
    file = place/'vjepa.pth.tar'
    torch.save(golden['checkpoint'], file)
    return file


def parameters(place):
    "Report -> the smallest parameters that reach every table"
    checkpoint = str(vjepa_file(place))
    return dict(
        nano_fig1_pretraining=SMALL,
        nano_tab2_videos=dict(SMALL, copies=1, scratch_epochs=1, shrink=12, vjepa_checkpoint=checkpoint),
        nano_tab1_images=dict(SMALL, train=60, test=180, converge_epochs=2, checkpoint=checkpoint))


def check_one(place, name, params):
    "A report is made once, with everything that it lists"
    [outcome] = run_reports([name], 'quick', params, progress=False)
    assert outcome.status == 'made', outcome.why
    record = json.loads((place/f'results/quick/{name}.json').read_text())
    assert record['finding'] and record['figures'] and record['tables'] and record['machine']['precision']
    for entry in record['figures'] + record['tables']:
        assert (place/'results/quick'/entry['file']).stat().st_size > 20
    assert run_reports([name], 'quick', params, progress=False)[0].status == 'up to date'


@pytest.mark.slow
def test_reports_from_videos_to_a_page(place):
    for name, params in parameters(place).items(): check_one(place, name, params)
    assert len(list((place/'runs').iterdir())) == 1 # the pretraining run is shared
    check_table2(place)
    check_table1(place)
    page = (place/'results/quick/index.html').read_text()
    for title in ('Pretraining a ViT-T', 'Classifying videos', 'Classifying images'): assert title in page


def check_table2(place):
    table = pd.read_csv(place/'results/quick/nano_tab2_videos/controls.csv')
    encoders = {'pretrained', 'untrained', 'pretrained, logistic', 'untrained, logistic', 'from scratch', 'V-JEPA'}
    assert sorted(set(table.model)) == list('ABCDEF') and set(table.encoder) == encoders
    assert {'low', 'high', 'n', 'chance'} <= set(table.columns)


def check_table1(place):
    results = place/'results/quick'
    table, controls, seconds = (pd.read_csv(results/f'nano_tab1_images/{name}.csv')
                                for name in ('table1', 'controls', 'seconds'))
    record = json.loads((results/'nano_tab1_images.json').read_text())
    checks = {check['name']: check['ok'] for check in record['checks']}
    assert all(checks[name] is True for name in CHECKED)
    assert len(record['notes']) == 2 and not any('need V-JEPA' in note for note in record['notes'])
    assert table.query("device == 'CPU'")['ours n'].tolist() == [176]*6 and table['paper n'].tolist() == [176]*12
    assert table.query("device == 'GPU'")['ours %'].notna().any() == torch.cuda.is_available()
    assert set(controls.encoder) == {'nano-JEPA ViT-T', 'untrained', 'V-JEPA ViT-L', 'pixels'}
    assert {'low', 'high', 'n', 'chance'} <= set(controls) and set(controls.n) == {176, 180}
    assert (seconds.image_ms > 0).all()
