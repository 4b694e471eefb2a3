"""The recipe: every variant is a valid experiment that takes a step, and its whitening is the control's too"""
import jepa.core
import numpy as np, pandas as pd, pytest, torch
from tools.search import clock
from jepa.actions import ActionsConfig, make_actions
from jepa.core import generator
from jepa.data import read_manifest
from jepa.masks import sample_masks
from jepa.objective import Objective
from jepa.recipe import VARIANTS, over_seeds, position_share, recipe_config
from jepa.train import make_optimizer, new_jepa, pretrain, put_patches, train_step, whiten_patches


@pytest.mark.parametrize('name', list(VARIANTS))
def test_every_variant_takes_a_step(name):
    config = recipe_config(1, batch_size=2, **VARIANTS[name])
    jepa, clip = new_jepa(config).train(), torch.randn(2, 3, 8, 48, 48, generator=generator(0, 'clip'))
    before = jepa.encoder.blocks[0].attn.qkv.weight.clone()
    masks = sample_masks(config.masks, config.encoder.grid, 2, generator(0))
    result = train_step(jepa, make_optimizer(jepa), clip, masks, config.plan(10).at(5))
    assert result.finite and not torch.equal(before, jepa.encoder.blocks[0].attn.qkv.weight)


def test_each_variant_but_the_last_leaves_the_recipe_in_one_thing():
    others = {name: v for name, v in VARIANTS.items() if name not in ('the recipe', "V-JEPA's: all six")}
    assert VARIANTS['the recipe'] == {} and all(len(v) == 1 for v in others.values())
    published = recipe_config(1, **VARIANTS["V-JEPA's: all six"])
    assert published.objective == Objective() and published.loss_exp == 1 and not published.whiten
    assert published.encoder.positions == 'sincos' and len(published.masks) == 2
    assert published.predictor.embed_dim < published.encoder.embed_dim


def test_whitened_patches_are_uncorrelated_and_of_equal_variance():
    config = recipe_config(1)
    clips = torch.randn(40, 3, 8, 48, 48, generator=generator(0, 'clips')).cumsum(2) # neighbouring frames are alike
    jepa = new_jepa(config)
    put_patches(jepa, whiten_patches(config.encoder, clips, floor=0.))
    with torch.no_grad(): x = jepa.encoder.patch_embed(clips).flatten(0, 1)
    assert torch.allclose(torch.cov(x.T), torch.eye(x.shape[1]), atol=1e-2) and x.mean(0).abs().max() < 1e-3


def test_the_untrained_control_starts_where_training_does(place):
    actions = ActionsConfig(classes=('move_right', 'move_left'), train=6, val=0, size=48, num_frames=16, level='easy')
    manifest = read_manifest(make_actions(actions, progress=False, workers=1))
    still = dict(lr=0., start_lr=0., weight_decay=0., final_weight_decay=0.)
    run = pretrain(recipe_config(1, batch_size=4, **still), manifest, progress=False)
    before, after = run.untrained().encoder.state_dict(), run.model().encoder.state_dict()
    for a, b in zip(before.values(), after.values()): assert torch.equal(a, b) # at a learning rate of zero


def test_an_interval_over_seeds_is_students():
    from scipy.stats import ttest_1samp
    low, high = ttest_1samp([3., 5., 10.], 0).confidence_interval()
    assert over_seeds([3., 5., 10.]) == dict(points=6., low=round(low, 2), high=round(high, 2), seeds=3)
    assert np.isnan(over_seeds([3.])['low'])


def test_position_share_tells_place_from_content():
    g = generator(0)
    place, content = torch.randn(1, 60, 16, generator=g), torch.randn(800, 60, 16, generator=g)
    assert position_share(place + content) == pytest.approx(.5, abs=.06)


def test_the_search_puts_the_time_of_a_step_into_its_table(tmp_path):
    out = tmp_path/'search.csv'
    pd.DataFrame(dict(name=['the start', 'batch 8', 'the start'], epoch=[0, 0, 1])).to_csv(out, index=False)
    clock(out, say=lambda text: None)
    table = pd.read_csv(out)
    seconds = table.step_seconds
    assert list(table.name) == ['the start', 'batch 8', 'the start']
    assert (seconds > 0).all() and seconds[0] == seconds[2]
