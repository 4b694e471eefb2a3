"""What the reports on pico-JEPA compute: tables by hand, planted differences that are found, sentences that follow"""
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from jepa.core import generator
from jepa.masks import Grid, sample_masks
from jepa.papers import published
from jepa.pico import PARTS
from jepa.pico_tables import *
from jepa.probe import Evaluation, Features


def answers(right): # (n,) of 0 and 1 -> an evaluation of one class of two
    return Evaluation(np.eye(2)[1 - np.asarray(right)], np.zeros(len(right), int), ['right', 'wrong'])


def test_the_papers_numbers_add_up_and_a_changed_one_does_not():
    classes, models = published('pico_classes'), published('pico_tab1')
    sums = published_sums(classes, models)
    assert sums == dict(pretraining=7203, labelled=2817, parts=sum(PARTS), validation=194, agree=True)
    assert not published_sums(classes.assign(train_videos=classes.train_videos + 1), models)['agree']
    assert instances_fields(classes, models, 10, 990)['added'] == 4


def test_parts_that_overlap_or_lack_a_video_are_not_disjoint_and_complete():
    labels = np.array([0, 0, 1, 1])
    assert part_facts(labels, [np.array([0, 2]), np.array([1, 3])]) == dict(disjoint=True, worst=0)
    assert not part_facts(labels, [np.array([0, 2]), np.array([0, 3])])['disjoint']
    assert not part_facts(labels, [np.array([0, 2])])['disjoint']
    assert part_facts(labels, [np.array([0, 1]), np.array([2, 3])])['worst'] == 1
    assert strata(labels, [np.array([0, 1, 2]), np.array([3])], ['a', 'b']).to_numpy().tolist() == [[2, 1], [0, 1]]


def test_copying_what_stands_still_is_perfect_only_from_the_same_place():
    grid = Grid(4, 6, 6)
    still = torch.rand(1, 1, 36, 5, generator=generator(0, 'still')).expand(1, 4, -1, -1).flatten(1, 2)
    for name, mask in both_masks().items():
        pair = sample_masks([mask], grid, 1, generator(1, 'mask'))[0]
        errors = copy_errors(still, pair, grid)
        assert (errors['same_place'] > 0) == (name == 'as published') and errors['copy'] > 0 < errors['mean']
    assert set(hidden_tokens(both_masks(), grid).values()) == {108}


@pytest.mark.parametrize('shift, word', [(.5, 'easier'), (-.5, 'harder'), (0., 'not measurably')])
def test_the_word_for_copying_follows_the_interval(shift, word):
    noise = np.random.default_rng(0).normal(size=40)*.1
    tubes = pd.DataFrame(dict(mask='as described', clip=range(40), ratio=1 + shift + noise, same_place=0.))
    runs = pd.DataFrame(dict(mask='as published', clip=range(40), ratio=1 - noise, same_place=.3))
    by_clip = pd.concat([tubes, runs])
    fields = copying_fields(copying_table(by_clip, 108, 144), by_clip)
    assert fields['word'].startswith(word) and fields['low'] < fields['difference'] < fields['high']
    assert fields['same_place'] == pytest.approx(30) and fields['against_published'] == 'no better than'
    assert fields['against_described'] == {.5: 'worse than', -.5: 'better than', 0.: 'no better than'}[shift]


def test_the_interval_of_nothing_is_nothing():
    assert mean_interval([0., 0.]) == (0, 0)
    low, high = mean_interval([1., 2., 3., 4.], 'percentile')
    assert 1 <= low < 2.5 < high <= 4


def test_heads_cost_next_to_nothing_and_the_hook_is_gone():
    encoder, heads = torch.nn.Linear(8, 8), [torch.nn.Linear(8, 2) for _ in range(3)]
    cost = ensemble_cost(encoder, heads, torch.zeros(5, 8))
    assert cost.flop.tolist() == [2*5*8*8, 3*2*5*8*2] and cost.weights.tolist() == [72, 54]
    assert cost_fields(cost) == dict(encodings=1, members=3, operations=.75, weights=75) and not encoder._forward_hooks


@pytest.mark.parametrize('a, b', [(3, 2), (2, 3), (4, 4), (0, 5)])
def test_the_overlap_with_fewest_disagreements(a, b):
    first, second = map(np.array, fewest_disagreements(a, b, 6))
    assert len(first) == len(second) == 6 and (first.sum(), second.sum()) == (a, b)
    assert (first != second).sum() == abs(a - b)


def test_more_disagreement_widens_the_interval_and_keeps_the_difference():
    cells = published_cells(published('pico_tab2'))
    assert impossible_cells(cells).accuracy.tolist() == [37.92, 47.67]
    tests = published_tests(cells)
    assert tests.points.nunique() == 1 and (tests.high - tests.low).is_monotonic_increasing and (tests.p == 1).all()
    assert tests.disagreements.diff().dropna().tolist() == [20, 20, 40]
    fields = published_fields(published('pico_tab2'), cells, tests)
    assert fields['lead'] == 1 and fields['videos'] == 194 and fields['verdict'] == 'inconclusive'
    assert fields['champion'].startswith('Partial') and fields['champion_p'] > .05


def test_needed_videos_grow_with_the_square_of_the_gap():
    assert needed_videos(.01, .1) == pytest.approx(4*needed_videos(.02, .1)) == pytest.approx(7840)


def test_bounds_around_a_vote():
    right = {'General': [1, 1, 0, 0], 'Majority vote': [1, 1, 1, 1],
             'Partial 1': [1, 0, 0, 0], 'Partial 2': [1, 1, 1, 0]}
    evaluations = {name: answers(r) for name, r in right.items()}
    assert list(members_of(evaluations)) == ['Partial 1', 'Partial 2'] and best_member(evaluations) == 'Partial 2'
    table = against_members(evaluations).set_index('against')
    assert table.points.tolist() == [75, 25] and table.only_a.tolist() == [3, 1]


def test_certainty_is_set_against_accuracy_and_has_intervals():
    p, labels = np.array([[.9, .1], [.6, .4], [.2, .8], [.7, .3]]), np.array([0, 0, 1, 1])
    e = Evaluation(p, labels, ['x', 'y'])
    table = calibration_table({'General': e}, resamples(4, 30)).iloc[0]
    assert table.certainty == pytest.approx(75) and table.gap == pytest.approx(0) and table.ece_low <= table.ece_high
    assert (resamples(4, 30) == resamples(4, 30)).all() and resamples(4, 30).shape == (30, 4)
    low, high = between(lambda e: e.accuracy, e, resamples(4, 200))
    assert 0 <= low < .75 < high <= 1


def test_certainty_of_the_paper_lies_further_from_accuracy_for_one_side():
    models = ['General', 'Partial 1', 'Partial 2']
    table = pd.DataFrame(dict(model=models, paper=[50, 40, 40], paper_accuracy=[52, 50, 30]))
    assert published_miscalibration(table) == dict(general=2, partial=10, closer="General's")


def patches(of, noise=.01): # features that hold the video, or the class
    video, label = np.repeat(np.arange(8), 6), np.repeat(np.arange(8) // 2, 6)
    x = np.eye(8)[video if of == 'video' else label]
    return Patches(x + noise*np.random.default_rng(0).normal(size=x.shape), video, label)


def test_planted_videos_and_planted_classes_are_told_apart():
    by_video, by_class = (nearest_patches(patches(of)) for of in ('video', 'class'))
    assert by_video[0].all() and by_class[1].all() and not by_video[1].all()
    scores = patch_scores({'pretrained': patches('class'), 'untrained': patches('video')})
    assert scores.class_elsewhere.pretrained == 100 and scores.own_video.untrained == 100
    assert scores.chance_class.iloc[0] == pytest.approx(100/7) and scores.videos.tolist() == [8, 8]
    assert neighbour_fields(scores)['word'] == 'above'
    assert neighbour_fields(scores.iloc[::-1].set_axis(scores.index))['what'] == 'the video, not the class'


def test_a_sample_of_patches_has_the_same_places_and_equal_classes():
    labels = np.arange(12) % 4
    tokens = np.arange(12*10, dtype=np.float16).reshape(12, 1, 10, 1) # video*10 + place
    p = sample_patches(Features(tokens, labels, list('abcd')), videos=8, patches=3)
    assert p.videos == 8 and np.bincount(p.label).tolist() == [6]*4
    places = p.features[:, 0].reshape(8, 3) % 10
    assert (places == places[0]).all() and len(set(places[0])) == 3
    assert len(sample_patches(Features(tokens, labels, list('abcd')), videos=4, patches=0).video) == 40


WORDS = [(30, 40, 'above'), (20, 30, 'not distinguishable from'), (10, 20, 'below')]
@pytest.mark.parametrize('low, high, word', WORDS)
def test_the_word_for_chance_follows_the_interval(low, high, word):
    assert against_chance(SimpleNamespace(low=low, high=high, chance=25)) == word


def frame(planted=0.):
    rng = np.random.default_rng(0)
    rows = [dict(variant=v, seed=s, seconds=.1, **{m: 1 + .001*rng.random() for m in METERS})
            for s in range(3) for v in one_difference_each()]
    by_seed = pd.DataFrame(rows)
    by_seed.loc[by_seed.variant == '+ leak', 'exam_over_mean'] += planted
    return by_seed


def test_variants_differ_where_a_difference_was_planted():
    names = [*one_difference_each(), 'untrained']
    right = {v: np.arange(60) < (55 if v == 'as published' else 30) for v in names}
    evaluations = {(v, s, 'change'): answers(right[v].astype(int)) for s in range(3) for v in names}
    table = features_table(evaluations, range(3))
    assert table.variant.tolist() == names and (table['minus described, points'] != 0).sum() == 1
    fields = variants_fields(frame(planted=.5), table, 'change')
    assert fields['moved'] == '+ leak differs' and fields['apart'] == 'as published differs'
    assert variants_fields(frame(), table, 'change')['moved'] == 'no variant differs'
    assert fields['trained'] and fields['comparisons'] == 5


def test_meters_have_their_deviation_and_seconds_do_not():
    table = meters_table(frame())
    assert list(table.columns) == [f'{m}{end}' for m in METERS for end in ('', ' std')] + ['seconds']
    assert list(table.index) == list(one_difference_each()) and not math.isnan(table['own_loss std'].iloc[0])
