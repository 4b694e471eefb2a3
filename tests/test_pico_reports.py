"""The reports of pico-JEPA from video files to the page, at the smallest size"""
import json
import re

import pandas as pd
import pytest

from jepa.report import catalogue, run_reports

DATA = dict(shrink=110, val_shrink=8, video_pixels=36, num_frames=4, stride=8, pixels=32, patch_size=8)
TRAIN = dict(epochs=1, batch_size=5, monitor_clips=8, probe_epochs=2)
PARAMS = {
    'pico_tab1_instances': DATA,
    'pico_fig1_masks': dict(DATA, draws=1),
    'pico_fig2_ensemble': DATA,
    'pico_tab2_accuracy': DATA | TRAIN,
    'pico_tab3_certainty': DATA | TRAIN,
    'pico_fig3_tsne': dict(DATA | TRAIN, videos_shown=8, patches=8),
    'beyond_stacking': dict(DATA | TRAIN, test=4),
    'beyond_published_vs_described': dict(DATA | TRAIN, width=24, depth=1, seeds=2),
}


@pytest.mark.slow
def test_every_pico_report_from_videos_to_a_page(place):
    for name, params in PARAMS.items():
        [outcome] = run_reports([name], 'quick', params, progress=False)
        assert outcome.status == 'made', f'{name}: {outcome.why}'
        record = json.loads((place/f'results/quick/{name}.json').read_text())
        assert record['finding'] and {c['name'] for c in record['checks']} >= set(catalogue()[name].checks)
        sentences = re.split(r'(?<=[.!?]) (?=[A-Z])', record['finding'])
        assert 2 <= len(sentences) <= 4 and all(len(s.split()) <= 25 for s in sentences) or name == 'beyond_stacking'
        for file in record['figures'] + record['tables']:
            assert (place/'results/quick'/file['file']).stat().st_size > 50
    assert len(list((place/'runs').glob('pico-*'))) == 1 + 12 # one run for all but the comparison, which makes its own
    tables = place/'results/quick'
    controls = pd.read_csv(tables/'pico_tab2_accuracy/controls.csv')
    assert set(controls.encoder) == {'pretrained', 'untrained'}
    assert {'low', 'high', 'n', 'chance'} <= set(controls.columns)
    assert pd.read_csv(tables/'pico_tab2_accuracy/impossible.csv').accuracy.tolist() == [37.92, 47.67]
    assert (pd.read_csv(tables/'pico_tab2_accuracy/published_test.csv').p == 1).all()
