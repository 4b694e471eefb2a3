"""pico-JEPA: every stored number of a reference model to 1e-5, and what the two forms claim"""
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jepa.core import generator, repo_root, seeded
from jepa.encoder import EncoderConfig
from jepa.masks import Grid, MaskPair, RandomTube, sample_masks
from jepa.objective import nearest_context
from jepa.pico import (PICO_ACTIONS, Dropout, Pico, PicoClassifier, PublishedTube, load_pico, part_sizes, pico_config,
                       pico_heads, pico_videos, pool_change)
from jepa.predictor import PredictorConfig
from jepa.probe import Features, ProbeConfig
from jepa.train import TrainConfig, make_optimizer, new_jepa, pretrain, train_step

GOLDEN = repo_root(Path(__file__).parent)/'tests/golden/pico2025.pt'
TOLERANCE = 1e-5


@pytest.fixture(scope='module')
def golden(): return torch.load(GOLDEN, weights_only=True)


def close(ours, stored):
    ours, stored = torch.as_tensor(ours), torch.as_tensor(stored)
    assert ours.shape == stored.shape
    assert (ours - stored).abs().max() <= TOLERANCE*stored.abs().max()


def encoder_of(g):
    return EncoderConfig(
        num_frames=g['frames_per_clip'], height=g['resize_height'], width=g['resize_width'],
        patch_size=g['vit_patch_size_h'], tubelet_size=g['vit_patch_size_t'], embed_dim=g['vit_embed_dim'],
        depth=g['vit_depth'], num_heads=g['vit_num_heads'], mlp_ratio=g['vit_mlp_ratio'], positions='learned')


def build(golden, form='published', **changes):
    g = golden['config']
    predictor = PredictorConfig(embed_dim=g['vit_embed_dim'], depth=g['predictor_depth'], num_mask_tokens=1,
                                num_heads=g['predictor_heads'], mlp_ratio=g['vit_mlp_ratio'])
    config = pico_config(form, pixels=48, encoder=encoder_of(g), predictor=predictor, dropout=g['vit_dropout'],
                         ema=(g['ema_decay'], g['ema_decay']), **changes)
    pico = Pico(config).train()
    load_pico(pico, golden['state_dict'])
    return pico


def pair(golden): return MaskPair(golden['context_indices'], golden['target_indices'])


def test_loss_and_target_of_a_forward_pass(golden):
    pico = build(golden)
    out = pico(golden['clip'].float(), [pair(golden)])
    close(out.loss.item(), golden['loss'])
    moved = pico.target_encoder.state_dict()
    assert moved.keys() == golden['target_after'].keys()
    for name, tensor in golden['target_after'].items(): close(moved[name], tensor)
    before = {n: golden['state_dict'][f'target_encoder.{n}'] for n in moved}
    assert not any(before[n].equal(t) for n, t in golden['target_after'].items() if t.ndim > 1) # it did move


def test_classifier_features_and_logits(golden):
    classifier = PicoClassifier(encoder_of(golden['config']), len(golden['logits'][0]))
    classifier.load_state_dict(golden['classifier'])
    with torch.no_grad():
        close(classifier.eval()(golden['clip'].float()), golden['logits'])
        close(classifier.encoder(golden['clip'].float()), golden['features'])


def test_another_order_of_the_four_things_misses_the_reference(golden):
    for change in (dict(sees_hidden=False), dict(target_first=False)):
        out = build(golden, **change)(golden['clip'].float(), [pair(golden)])
        assert abs(out.loss.item() - golden['loss']) > TOLERANCE*golden['loss']


def test_a_state_that_lacks_a_tensor_is_refused(golden):
    state = {n: t for n, t in golden['state_dict'].items() if n != 'mask_token'}
    with pytest.raises(RuntimeError, match='predictor.mask_token'): load_pico(build(golden), state)


SMALL = dict(pixels=32, patch_size=8, num_frames=4)


def inputs(config, batch=2):
    clip = torch.randn(batch, 3, 4, 32, 32, generator=generator(0, 'clip'))
    return clip, sample_masks(config.masks, config.encoder.grid, batch, generator(0, 'masks'))


def other_hidden(clip, masks, grid):
    hidden = torch.zeros(len(clip), grid.tokens, dtype=torch.bool).scatter(1, masks[0].target_ids, True)
    pixels = hidden.view(-1, 1, *grid).repeat_interleave(2, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    return torch.where(pixels, torch.randn(clip.shape, generator=generator(1, 'other')), clip)


@pytest.mark.parametrize('form', ['described', 'published'])
def test_hidden_pixels_reach_the_context_only_as_published(form):
    config = pico_config(form, **SMALL)
    pico, (clip, masks) = new_jepa(config).eval(), inputs(config)
    changed = other_hidden(clip, masks, config.encoder.grid)
    with torch.no_grad(): a, b = pico(clip, masks), pico(changed, masks)
    moved = not a.contexts[0].equal(b.contexts[0])
    assert moved == (form == 'published')
    assert moved == (not a.predictions[0].equal(b.predictions[0]))


def test_published_tubes_are_runs_within_frames():
    grid = Grid(4, 6, 7)
    [true], [runs] = (sample_masks([kind(ratio=.75)], grid, 5, generator(2, 'tubes'))
                      for kind in (RandomTube, PublishedTube))
    assert true.target_ids.shape == runs.target_ids.shape
    for ids, order in ((true.target_ids, 'tube'), (runs.target_ids, 'runs')):
        hidden = torch.zeros(5, grid.tokens, dtype=torch.bool).scatter(1, ids, True)
        along = hidden.view(5, grid.T, -1) if order == 'tube' else hidden.view(5, -1, grid.T).transpose(1, 2)
        assert (along == along[:, :1]).all()
    def at(pair): return nearest_context(pair, grid) - pair.target_ids
    assert (at(true) % (grid.H*grid.W) != 0).all()     # never the same place at another time
    assert (at(runs) % (grid.H*grid.W) == 0).any()


def test_the_published_target_is_one_step_late():
    distances = {}
    for form in ('described', 'published'):
        config = pico_config(form, **SMALL, sees_hidden=False, masks=(RandomTube(ratio=.75),), dropout=0.)
        pico, (clip, masks) = new_jepa(config).double().train(), inputs(config)
        optimizer = make_optimizer(pico, predictor_lr_factor=config.predictor_lr_factor)
        start, plan = pico.target_encoder.pos_embed.clone(), config.plan(2)
        distances[form] = []
        for k in range(3):
            train_step(pico, optimizer, clip.double(), masks, plan.at(k))
            distances[form].append((pico.target_encoder.pos_embed - start).norm())
    assert distances['published'][0] < 1e-12
    late, first = distances['published'][1], distances['described'][0]
    assert torch.isclose(late, first, rtol=1e-5) # after that the two forms see other targets


def test_dropout_reaches_the_target_only_as_published():
    for form in ('described', 'published'):
        config = pico_config(form, **SMALL)
        pico, (clip, _) = new_jepa(config).train(), inputs(config)
        with seeded(0): same = pico.target(clip).equal(pico.target(clip))
        assert same == (form == 'described') and pico.eval().target(clip).equal(pico.target(clip))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean_and_drops_the_same_numbers_backwards(dtype):
    drop, x = Dropout(.1), torch.ones(701, 803, dtype=dtype, requires_grad=True) # no multiple of four
    with seeded(0): y = drop(x)
    y.sum().backward()
    zeros = y == 0
    assert abs(zeros.float().mean() - .1) < .002 and y.dtype == dtype and y[~zeros].unique().numel() == 1
    rtol = 1e-2 if dtype == torch.bfloat16 else 1e-4
    assert torch.isclose(y[~zeros][0].float(), torch.tensor(1/.9), rtol=rtol) and x.grad.equal(y)
    with seeded(0): assert drop(x).equal(y)
    assert drop.eval()(x).equal(x) and Dropout(0.)(x).equal(x) and not Dropout(1.)(x).any()


def test_every_dropout_of_pico_is_the_fast_one_and_adds_no_weights():
    pico = new_jepa(pico_config(**SMALL))
    assert not [n for n, m in pico.named_modules() if type(m) is nn.Dropout]
    layer, block = pico.predictor.transformer_decoder.layers[0], pico.encoder.blocks[0]
    decoder = (layer.dropout, layer.dropout1, layer.dropout2, layer.dropout3)
    assert {m.p for m in (*decoder, block.attn.proj_drop, block.mlp.drop1, block.mlp.drop2)} == {.1}
    assert not [n for n in pico.state_dict() if 'drop' in n]


def test_loss_is_the_mean_squared_error_and_gradients_reach_all_that_learns():
    config = pico_config(**SMALL)
    pico, (clip, masks) = new_jepa(config).train(), inputs(config)
    out = pico(clip, masks)
    assert torch.isclose(out.loss, F.mse_loss(out.predictions[0].float(), out.targets[0]))
    out.loss.backward()
    trained = [p for p in pico.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert all(p.grad is None for p in pico.target_encoder.parameters())


def test_the_predictor_learns_twice_as_fast():
    config = pico_config(**SMALL)
    pico, (clip, masks) = new_jepa(config).train(), inputs(config)
    optimizer = make_optimizer(pico, predictor_lr_factor=config.predictor_lr_factor)
    for k in range(3):
        train_step(pico, optimizer, clip, masks, config.plan(4).at(k))
        lr = config.plan(4).at(k).lr
        assert [g['lr'] for g in optimizer.param_groups] == pytest.approx([lr, 2*lr, lr, 2*lr])


def test_a_configuration_survives_json():
    import json
    for form in ('described', 'published'):
        config = pico_config(form, **SMALL)
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert isinstance(config, TrainConfig)
    with pytest.raises(KeyError, match='sees_hidden'): pico_config(see_hidden=True)
    for change in (dict(reg_coeff=.1), dict(loss_exp=1.), dict(objective=dict(kind='sigreg')), dict(ema=(.9, 1.))):
        with pytest.raises(ValueError, match='pico-JEPA'): pico_config(**SMALL, **change)
    narrow = PredictorConfig(embed_dim=96, depth=1)
    with pytest.raises(ValueError, match='must be 192'): Pico(pico_config(**SMALL, predictor=narrow))


def test_change_over_time_is_pooled_per_place():
    grid = Grid(3, 2, 2)
    x = torch.randn(5, 2, grid.tokens, 8, generator=generator(0, 'pool')).half()
    pooled = pool_change(Features(x.numpy(), [0]*5, ['a']), grid)
    assert pooled.tokens.shape == (5, 2, 4, 8)
    by_hand = x.float()[3, 1].view(3, 4, 8).std(0, correction=0)
    assert torch.allclose(torch.as_tensor(pooled.tokens[3, 1]).float(), by_hand, atol=1e-3)


def test_heads_share_the_labels_in_the_papers_proportions():
    tokens = torch.randn(80, 1, 3, 8, generator=generator(0, 'x')).half().numpy()
    x = Features(tokens, torch.arange(80).numpy() % 4, list('abcd'))
    general, vote = pico_heads(x, ProbeConfig(kind='linear', epochs=1))
    assert len(vote.members) == 4 and general.curve.train_n.tolist() == [80]
    sizes = [int(m.curve.train_n.iloc[0]) for m in vote.members.values()]
    assert sizes == part_sizes(80) and sum(sizes) == 80 and max(sizes) - min(sizes) <= 1
    assert part_sizes(2817) == [706, 707, 707, 697]


@pytest.mark.slow
def test_a_run_from_videos_is_the_same_twice_and_goes_on_after_a_stop(place, monkeypatch):
    import jepa.train
    videos = pico_videos(shrink=240, val_shrink=24, pixels=36, progress=False)
    four = ('abseiling', 'adjusting_glasses', 'alligator_wrestling', 'archaeological_excavation')
    assert list(videos['train'].classes) == [PICO_ACTIONS[c] for c in four]
    files = {name: set(m.table.path) for name, m in videos.items()}
    assert files['train'] <= files['pretraining'] and not files['val'] & files['pretraining']
    config = pico_config('published', **SMALL, epochs=2, batch_size=5, monitor_clips=8)
    whole = pretrain(config, videos['pretraining'], folder=place/'whole', progress=False)
    calls, real = [], jepa.train._save
    def stop(*args): # after the second checkpoint, in the middle of an epoch
        real(*args)
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
    monkeypatch.setattr(jepa.train, '_save', stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, videos['pretraining'], folder=place/'stopped', save_seconds=0, progress=False)
    monkeypatch.setattr(jepa.train, '_save', real)
    resumed = pretrain(config, videos['pretraining'], folder=place/'stopped', progress=False)
    assert resumed.steps.loss.tolist() == whole.steps.loss.tolist()
    states = (run.model().state_dict().values() for run in (resumed, whole))
    assert all(a.equal(b) for a, b in zip(*states))
    with pytest.raises(ValueError, match='another experiment'):
        pretrain(config.replace(epochs=3), videos['pretraining'], folder=place/'whole', progress=False)
