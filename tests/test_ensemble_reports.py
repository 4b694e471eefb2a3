"""The reports on ensembles of members that differ, and of members in processes of their own, from video files to the page, at the smallest size"""
import json
from importlib.util import find_spec

import pandas as pd
import pytest

from jepa.report import catalogue, run_reports

SMALL = dict(shrink=110, val_shrink=8, video_pixels=36, num_frames=4, stride=8, pixels=32, patch_size=8, epochs=1, batch_size=5, monitor_clips=8, probe_epochs=2)


def made(place, name, **params):
    [outcome] = run_reports([name], 'quick', {**SMALL, **params}, progress=False)
    assert outcome.status == 'made', f'{name}: {outcome.why}'
    record, folder = json.loads((place/f'results/quick/{name}.json').read_text()), place/'results/quick'
    assert record['finding'] and {c['name'] for c in record['checks']} == set(catalogue()[name].checks) and all(c['ok'] is not False for c in record['checks'])
    for file in record['figures'] + record['tables']: assert (folder/file['file']).stat().st_size > 50
    return record, folder/name


@pytest.mark.slow
def test_members_that_differ(place):
    record, folder = made(place, 'beyond_heterogeneous', test=4, variants={'narrow': [24, 1, 8], 'shallow': [32, 1, 8], 'large patches': [24, 1, 16]}, backbone='test_resnet', backbone_pixels=32)
    votes, tests, encoders, diversity = (pd.read_csv(folder/f'{t}.csv') for t in ('ensembles', 'differences', 'encoders', 'diversity'))
    assert len(votes) == 14 and set(votes.rule) == {'hard', 'soft'} and len(tests) == 4*14 and set(tests.verdict) <= {'supported', 'inconclusive', 'contradicted'}
    assert diversity.set_index('ensemble').encodings['everything differs'].tolist() == [4, 4] and diversity.set_index('ensemble').encodings['four heads'].tolist() == [1, 1]
    assert encoders.set_index('encoder').weights['test_resnet'] == 'random weights (seed 0)' and any('random weights' in note for note in record['notes'])
    assert len(pd.read_csv(folder/'controls.csv')) == 8


@pytest.mark.slow
def test_members_on_devices_of_their_own(place):
    record, folder = made(place, 'beyond_edge', timed=4)
    missing, latency = (pd.read_csv(folder/f'{t}.csv') for t in ('missing', 'latency'))
    assert len(missing) == 15 and (missing.members.value_counts().sort_index() == [4, 6, 4, 1]).all() and (latency.n == 4).all()
    judged = {c['name']: c['ok'] for c in record['checks']}
    assert judged['ONNX gives equal outputs'] is (True if find_spec('onnxruntime') and find_spec('onnxscript') else None) and len(latency) == 3 + bool(find_spec('onnxruntime'))
