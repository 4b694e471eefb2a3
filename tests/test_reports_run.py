"""nano-JEPA's reports from a video file to the page, at the smallest size; and the ViT-L rows of Tables 1 and 2 from a file in V-JEPA's layout"""
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from jepa.core import repo_root
from jepa.report import run_reports

SMALL = dict(videos=8, epochs=1, num_frames=4, stride=8, pixels=32, patch_size=8, predictor_dim=24, predictor_depth=1, video_pixels=36, monitor_clips=8, batch_size=4)


def vjepa_file(place):
    golden = torch.load(repo_root(Path(__file__).parent)/'tests/golden/vjepa1_uniform.pt', weights_only=True)
    file = place/'vjepa.pth.tar'
    torch.save(golden['checkpoint'], file)
    return file


@pytest.mark.slow
def test_reports_from_videos_to_a_page(place):
    tab2 = dict(SMALL, copies=1, scratch_epochs=1, shrink=12, vjepa_checkpoint=str(vjepa_file(place)))
    tab1 = dict(SMALL, train=60, test=180, converge_epochs=2, checkpoint=str(vjepa_file(place)))
    for name, params in [('nano_fig1_pretraining', SMALL), ('nano_tab2_videos', tab2), ('nano_tab1_images', tab1)]:
        [outcome] = run_reports([name], 'quick', params, progress=False)
        assert outcome.status == 'made', outcome.why
        record = json.loads((place/f'results/quick/{name}.json').read_text())
        assert record['finding'] and record['figures'] and record['tables'] and record['machine']['precision']
        for made in record['figures'] + record['tables']: assert (place/'results/quick'/made['file']).stat().st_size > 20
        assert run_reports([name], 'quick', params, progress=False)[0].status == 'up to date'
    table = pd.read_csv(place/'results/quick/nano_tab2_videos/controls.csv')
    assert sorted(set(table.model)) == list('ABCDEF') and set(table.encoder) == {'pretrained', 'untrained', 'pretrained, logistic', 'untrained, logistic', 'from scratch', 'V-JEPA'}
    assert {'low', 'high', 'n', 'chance'} <= set(table.columns)
    assert len(list((place/'runs').iterdir())) == 1 # the pretraining run is shared
    table, controls, one = (pd.read_csv(place/f'results/quick/nano_tab1_images/{name}.csv') for name in ('table1', 'controls', 'seconds'))
    record = json.loads((place/'results/quick/nano_tab1_images.json').read_text())
    assert [c['ok'] for c in record['checks'] if c['name'] != 'the long training has converged'] == [True]*4 and len(record['notes']) == 2 and not any('need V-JEPA' in n for n in record['notes'])
    assert table.query("device == 'CPU'")['ours n'].tolist() == [176]*6 and table['paper n'].tolist() == [176]*12 and table.query("device == 'GPU'")['ours %'].notna().any() == torch.cuda.is_available()
    assert set(controls.encoder) == {'nano-JEPA ViT-T', 'untrained', 'V-JEPA ViT-L', 'pixels'} and {'low', 'high', 'n', 'chance'} <= set(controls) and set(controls.n) == {176, 180} and (one.image_ms > 0).all()
    page = (place/'results/quick/index.html').read_text()
    assert 'Pretraining a ViT-T' in page and 'Classifying videos' in page and 'Classifying images' in page
