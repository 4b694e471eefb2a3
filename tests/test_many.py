"""Many small or one large: what is drawn, how it is matched, and both reports from videos to the page"""
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jepa.core import generator
from jepa.many import (STRENGTHS, bags, choose_penalty, gap_map, one_large, pooled, some_classes, some_labels,
                       three_ways, wide_recipe)
from jepa.masks import Grid, sample_masks
from jepa.predictor import PredictorConfig
from jepa.probe import Features, fit_probe
from jepa.recipe import PROBES, recipe_config
from jepa.report import catalogue, run_reports
from jepa.train import new_jepa, training_cost


def clips(per_class=12, classes=4, width=16, apart=1., tokens=8, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    x = apart*np.eye(classes, width)[labels][:, None, None] + rng.normal(size=(len(labels), 1, tokens, width))
    return Features(x.astype(np.float16), labels, [f'c{i}' for i in range(classes)])


def test_a_head_on_pooled_features_is_the_head_on_all_tokens():
    x, y = clips(), clips(seed=1)
    a, b = (fit_probe(PROBES['linear'], f(x), progress=False).predict_proba(f(y)) for f in (lambda z: z, pooled))
    assert np.allclose(a, b, atol=1e-5)


def test_pooled_change_is_zero_for_what_stands_still():
    x = clips(tokens=2)
    still = Features(np.tile(x.tokens, (1, 1, 4, 1)), x.labels, x.classes) # 4 times, 1 x 2 places
    assert np.abs(pooled(still, Grid(4, 1, 2)).tokens).max() < 1e-3 < np.abs(pooled(still).tokens).max()


def test_drawn_classes_keep_their_clips_and_names():
    x = clips(classes=6)
    few = some_classes(x, 3, seed=1)
    assert len(few.classes) == 3 and np.bincount(few.labels).tolist() == [12]*3
    for label, name in enumerate(few.classes):
        assert np.array_equal(few.tokens[few.labels == label], x.tokens[x.labels == x.classes.index(name)])
    assert some_classes(x, 3, seed=1).classes == few.classes
    assert len({tuple(some_classes(x, 3, seed=s).classes) for s in range(9)}) > 1
    with pytest.raises(ValueError, match='have 6'): some_classes(x, 7)


def test_drawn_labels_are_different_clips_of_every_class():
    x = clips()
    few = some_labels(x, 5, seed=2)
    assert np.bincount(few.labels).tolist() == [5]*4 and len(np.unique(few.tokens.reshape(20, -1), axis=0)) == 20
    with pytest.raises(ValueError, match='12 clips'): some_labels(x, 13)


def test_bags_have_the_shares_of_the_whole_and_repeat_clips():
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    for rows in bags(labels, 5): assert np.bincount(labels[rows]).tolist() == [10, 20, 30] and len(set(rows)) < 60
    a, b = bags(labels, 2)
    assert not np.array_equal(a, b)


def test_one_part_is_general():
    x, y = clips(), clips(seed=1)
    ways = three_ways(x, members=1)
    assert np.array_equal(ways['General'].evaluate(y).predicted, ways['parts'].evaluate(y).predicted)
    assert len(three_ways(x, members=3)['bagging'].members) == 3


def test_of_penalties_that_answer_equally_well_the_strongest_is_chosen():
    clear = pooled(clips(40, apart=9.))
    assert choose_penalty(clear).C == STRENGTHS[0] and choose_penalty(clear, (.1, 1.)).C == .1


def test_the_map_has_a_number_in_every_cell_and_a_frame_off_zero():
    points = {(0, 0): -3., (0, 1): -.5, (1, 0): .5, (1, 1): 3.}
    table = pd.DataFrame([dict(r=r, c=c, points=p, low=p - 1, high=p + 1) for (r, c), p in points.items()])
    fig, ax = plt.subplots()
    gap_map(ax, table, 'r', 'c', limit=3)
    texts = [t.get_text() for t in ax.texts]
    assert texts == ['-3.0\n±1.0', '-0.5\n±1.0', '+0.5\n±1.0', '+3.0\n±1.0'] and len(ax.patches) == 2
    plt.close(fig)


def test_at_width_128_it_is_the_recipe_with_half_the_predictor():
    half = PredictorConfig(embed_dim=64, depth=2)
    assert wide_recipe(128, 5, 3, pixels=32) == recipe_config(5, 3, pixels=32, predictor=half)


def test_cost_counts_what_is_there():
    config = wide_recipe(32, pixels=32)
    cost, jepa = training_cost(config), new_jepa(config).train()
    assert cost['encoder'] == sum(p.numel() for p in jepa.encoder.parameters())
    masks = sample_masks(config.masks, config.encoder.grid, 3, generator(0))
    with FlopCounterMode(display=False) as counter: jepa(torch.zeros(3, 3, 8, 32, 32), masks).loss.backward()
    assert counter.get_total_flops() == 3*cost['flops'] # every product has the batch as a factor
    D, N, P = 32, 64, 2*3*8*8
    forward = 2*N*P*D + 4*(2*N*12*D*D + 4*N*N*D) # patches; four blocks: matrices and attention
    with FlopCounterMode(display=False) as counter, torch.no_grad(): jepa.encoder(torch.zeros(1, 3, 8, 32, 32))
    assert counter.get_total_flops() == forward


@pytest.mark.parametrize('width, members', [(32, 4), (32, 2), (64, 4), (48, 3)])
def test_one_large_matches_parameters_and_compute(width, members):
    small = wide_recipe(width, 10, pixels=32)
    large = one_large(small, members)
    a, b = training_cost(small), training_cost(large)
    assert b['encoder'] == pytest.approx(members*a['encoder'], rel=.005)
    assert b['flops']*large.epochs == pytest.approx(members*a['flops']*small.epochs, abs=b['flops']/2) # half an epoch
    assert large.encoder.depth == small.encoder.depth and large.encoder.embed_dim > small.encoder.embed_dim


TINY = dict(train=8, val=4, members=2, epochs=1, batch_size=8, seeds=2)


@pytest.mark.slow
def test_both_reports_from_videos_to_a_page(place):
    trials = dict(beyond_when_ensembles_win=dict(TINY, widths=[32], classes=[2, 4], labels=[4, 8], draws=1),
                  beyond_size_for_size=dict(TINY, labels=[4, 8]))
    for name, params in trials.items():
        [outcome] = run_reports([name], 'quick', params, progress=False)
        assert outcome.status == 'made', f'{name}: {outcome.why}'
        record = json.loads((place/f'results/quick/{name}.json').read_text())
        assert record['finding'] and {c['name'] for c in record['checks']} >= set(catalogue()[name].checks)
        for made in record['figures'] + record['tables']:
            assert (place/'results/quick'/made['file']).stat().st_size > 50
    cells = pd.read_csv(place/'results/quick/beyond_when_ensembles_win/cells.csv')
    assert len(cells) == 2*2*1*2*2 and set(cells.encoder) == {'pretrained', 'untrained'}
    assert {'parts_low', 'bagging_high', 'n', 'chance'} <= set(cells.columns)
    sizes = pd.read_csv(place/'results/quick/beyond_size_for_size/sizes.csv').set_index('quantity')
    assert sizes['small / large']['encoder_parameters'] == pytest.approx(1, abs=.01)
    runs = list((place/'runs').iterdir())
    assert len(runs) == 4 + 2 # the map's two networks are among the four small ones
