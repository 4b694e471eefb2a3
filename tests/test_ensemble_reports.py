"""Reports on ensembles of members that differ and of members in processes of their own, at the smallest size"""
import json

import pandas as pd
import pytest

from jepa.ensemble_tables import can_export
from jepa.report import catalogue, run_reports

SMALL = dict(shrink=110, val_shrink=8, video_pixels=36, num_frames=4, stride=8, pixels=32, patch_size=8, epochs=1,
             batch_size=5, monitor_clips=8, probe_epochs=2)
VARIANTS = {'narrow': [24, 1, 8], 'shallow': [32, 1, 8], 'large patches': [24, 1, 16]}


def make(place, name, **params):
    "Run a report; its record and folder"
    [outcome] = run_reports([name], 'quick', {**SMALL, **params}, progress=False)
    assert outcome.status == 'made', f'{name}: {outcome.why}'
    record, folder = json.loads((place/f'results/quick/{name}.json').read_text()), place/'results/quick'
    assert record['finding'] and {c['name'] for c in record['checks']} == set(catalogue()[name].checks)
    assert all(c['ok'] is not False for c in record['checks'])
    for file in record['figures'] + record['tables']: assert (folder/file['file']).stat().st_size > 50
    return record, folder/name


@pytest.mark.slow
def test_members_that_differ(place):
    record, folder = make(place, 'beyond_heterogeneous', test=4, variants=VARIANTS, backbone='test_resnet',
                          backbone_pixels=32)
    names = ('ensembles', 'differences', 'encoders', 'diversity')
    votes, tests, encoders, diversity = (pd.read_csv(folder/f'{name}.csv') for name in names)
    assert len(votes) == 14 and set(votes.rule) == {'hard', 'soft'} and len(tests) == 4*14
    assert set(tests.verdict) <= {'supported', 'inconclusive', 'contradicted'}
    encodings = diversity.set_index('ensemble').encodings
    assert encodings['everything differs'].tolist() == [4, 4] and encodings['four heads'].tolist() == [1, 1]
    assert encoders.set_index('encoder').weights['test_resnet'] == 'random weights (seed 0)'
    assert any('random weights' in note for note in record['notes'])
    assert len(pd.read_csv(folder/'controls.csv')) == 8


@pytest.mark.slow
def test_members_on_devices_of_their_own(place):
    record, folder = make(place, 'beyond_edge', timed=4)
    missing, latency = (pd.read_csv(folder/f'{t}.csv') for t in ('missing', 'latency'))
    assert (missing.members.value_counts().sort_index() == [4, 6, 4, 1]).all() and (latency.n == 4).all()
    onnx = can_export()
    checks = {c['name']: c['ok'] for c in record['checks']}
    assert checks['ONNX gives equal outputs'] is (True if onnx else None) and len(latency) == 3 + onnx


@pytest.mark.slow
def test_four_rules_of_combination(place):
    record, folder = make(place, 'beyond_stacking', test=4)
    rules, rivals, members = (pd.read_csv(folder/f'{name}.csv') for name in ('rules', 'rivals', 'members'))
    assert len(rules) == 9 and len(rivals) == 24
    assert set(rivals.verdict) <= {'supported', 'inconclusive', 'contradicted'}
    general = members.set_index('model').accuracy
    assert f"{general['General']:.1f} %" in record['finding']
