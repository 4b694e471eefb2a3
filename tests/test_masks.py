"""Masks: context and target never meet, never are empty, and have the published sizes"""
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jepa.core import generator, repo_root
from jepa.masks import Future, Grid, MultiBlock, RandomTokens, RandomTube, sample_masks

GOLDEN = json.loads((repo_root(Path(__file__).parent)/'tests/golden/mask_statistics.json').read_text())
configs = st.one_of(
    st.builds(MultiBlock, num_blocks=st.integers(1, 8), spatial_scale=st.tuples(st.floats(.05, .3), st.floats(.3, .5)),
              temporal_scale=st.just((.5, 1.)), max_temporal_keep=st.floats(.3, 1.)),
    st.builds(RandomTube, ratio=st.floats(.05, .95)),
    st.builds(RandomTokens, ratio=st.floats(.05, .95)),
    st.just(Future(tubelets=(1, 1))))
grids = st.builds(Grid, st.integers(2, 8), st.integers(3, 14), st.integers(3, 14))


@settings(max_examples=60, deadline=None)
@given(configs, grids, st.integers(1, 6), st.integers(0, 10**6))
def test_context_and_target_are_sorted_disjoint_and_never_empty(config, grid, batch, seed):
    [pair] = sample_masks([config], grid, batch, generator(seed))
    for context, target in zip(*pair):
        assert len(context) and len(target)
        assert (context.diff() > 0).all() and (target.diff() > 0).all()
        assert not set(context.tolist()) & set(target.tolist())
        assert 0 <= min(context.min(), target.min()) and max(context.max(), target.max()) < grid.tokens


@settings(max_examples=20, deadline=None)
@given(grids, st.integers(0, 10**6))
def test_a_single_clip_loses_no_token(grid, seed):
    configs = [RandomTube(), RandomTokens(), Future(tubelets=(1, 1)), MultiBlock()]
    for pair in sample_masks(configs, grid, 1, generator(seed)):
        assert sorted(pair.context_ids[0].tolist() + pair.target_ids[0].tolist()) == list(range(grid.tokens))


@pytest.mark.parametrize('kind, wrong, words', [
    (MultiBlock, dict(spatial_scale=(0, 0)), 'MultiBlock.spatial_scale must lie in (0, 1], not (0.0, 0.0)'),
    (MultiBlock, dict(spatial_scale=(.5, 2)), 'MultiBlock.spatial_scale must lie in (0, 1], not (0.5, 2.0)'),
    (MultiBlock, dict(spatial_scale=(.7, .2)),
     'MultiBlock.spatial_scale is (0.7, 0.2): the smaller number comes first'),
    (MultiBlock, dict(num_blocks=0), 'MultiBlock.num_blocks must lie in [1, 10000], not 0'),
    (MultiBlock, dict(max_keep=0), 'MultiBlock.max_keep must lie in [1, inf), not 0'),
    (MultiBlock, dict(max_temporal_keep=float('nan')), 'MultiBlock.max_temporal_keep must lie in (0, 1], not nan'),
    (RandomTube, dict(ratio=1.), 'RandomTube.ratio must lie in (0, 1), not 1.0'),
    (RandomTokens, dict(ratio=-.1), 'RandomTokens.ratio must lie in (0, 1), not -0.1'),
    (Future, dict(tubelets=(0, 2)), 'Future.tubelets must lie in [1, inf), not (0, 2)')])
def test_numbers_out_of_range_are_named_with_their_range(kind, wrong, words):
    with pytest.raises(ValueError, match=re.escape(words)): kind(**wrong)


def test_max_keep_cuts_the_context():
    [pair] = sample_masks([MultiBlock(max_keep=7)], Grid(4, 8, 8), 3, generator(0))
    assert pair.context_ids.shape == (3, 7)


def test_blocks_that_leave_nothing_to_see_are_an_error():
    everything = MultiBlock(spatial_scale=(1., 1.), aspect_ratio=(1., 1.))
    with pytest.raises(ValueError, match='leaves no context'):
        sample_masks([everything], Grid(4, 8, 8), 1, generator(0))


@pytest.mark.parametrize('name', GOLDEN)
@pytest.mark.parametrize('batch', [1, 8])
def test_sizes_agree_with_the_published_sampler(name, batch):
    g, draws, prefix = GOLDEN[name], 800, 'batch8_' if batch == 8 else ''
    config = MultiBlock(**{k: g[k] for k in ('num_blocks', 'spatial_scale', 'temporal_scale', 'aspect_ratio')})
    grid = Grid.of(g['frames'], g['crop'], g['crop'], g['patch'], g['tubelet'])
    pairs = [sample_masks([config], grid, batch, generator(i, 'golden', batch))[0] for i in range(draws)]
    sizes = np.array([[ids.shape[1] for ids in pair] for pair in pairs])
    published = g['batch8_draws'] if batch == 8 else g['draws']
    for k, part in enumerate(('context', 'target')):
        std = g.get(f'{prefix}{part}_std', sizes[:, k].std())
        error = math.sqrt(sizes[:, k].var()/draws + std**2/published)
        assert abs(sizes[:, k].mean() - g[f'{prefix}{part}_mean']) < 3*error
