"""Reference numbers of every published layout, to 1e-5 of the largest value

V-JEPA 1 also goes through the functions that training itself uses."""
from pathlib import Path

import pytest
import torch

from jepa.checkpoint import load_checkpoint
from jepa.core import repo_root
from jepa.encoder import EncoderConfig
from jepa.masks import MaskPair
from jepa.objective import Jepa, normalise_features
from jepa.predictor import PredictorConfig
from jepa.probe import AttentiveClassifier, load_probe
from jepa.train import Plan, load_training_state, make_optimizer, strip_prefix, train_step

GOLDEN = repo_root(Path(__file__).parent)/'tests/golden'
TOLERANCE = 1e-5


@pytest.fixture(scope='module', params=['vjepa1_uniform', 'vjepa1_plain'])
def golden(request): return torch.load(GOLDEN/f'{request.param}.pt', weights_only=True)


def close(ours, stored):
    ours, stored = torch.as_tensor(ours), torch.as_tensor(stored)
    assert ours.shape == stored.shape
    assert (ours - stored).abs().max() <= TOLERANCE*stored.abs().max()


def build(golden, state):
    m = golden['model']
    same = ('patch_size', 'tubelet_size', 'embed_dim', 'depth', 'num_heads', 'mlp_ratio', 'uniform_power', 'norm_eps')
    encoder = EncoderConfig(num_frames=m['num_frames'], height=m['img_size'], width=m['img_size'],
                            **{name: m[name] for name in same})
    predictor = PredictorConfig(embed_dim=m['pred_embed_dim'], depth=m['pred_depth'], num_heads=m['pred_num_heads'])
    h = golden['hyper']
    jepa = Jepa(encoder, predictor, h['loss_exp'], h['reg_coeff'])
    optimizer = make_optimizer(jepa, h['betas'], h['eps'])
    load_training_state(jepa, optimizer if 'opt' in state else None, state)
    return jepa, optimizer


def plan(golden):
    h = golden['hyper']
    names = ('start_lr', 'ref_lr', 'final_lr', 'warmup_steps', 'T_max', 'wd', 'final_wd', 'ema')
    return Plan(*(h[name] for name in names))


def run_step(golden, jepa, optimizer, k):
    step = golden['steps'][k]
    masks = [MaskPair(c.long(), t.long()) for c, t in zip(step['masks_enc'], step['masks_pred'])]
    clip, values = golden['clips'][k].float(), plan(golden).at(k)
    return train_step(jepa, optimizer, clip, masks, values, golden['hyper']['clip_grad'])


@pytest.fixture(scope='module')
def trained(golden):
    jepa, optimizer = build(golden, golden['checkpoint'])
    return jepa, [run_step(golden, jepa, optimizer, k) for k in range(4)]


def test_position_table(golden):
    from jepa.encoder import sincos_3d
    m = golden['model']
    stored = strip_prefix(golden['checkpoint']['encoder'])['pos_embed']
    grid = build(golden, golden['checkpoint'])[0].encoder.config.grid
    close(sincos_3d(m['embed_dim'], grid, m['uniform_power']), stored)


def test_schedules(golden):
    values = [plan(golden).at(k) for k in range(12)]
    for ours, name in [('lr', 'lr'), ('weight_decay', 'wd'), ('momentum', 'momentum')]:
        numbers = torch.tensor([getattr(v, ours) for v in values], dtype=torch.float64)
        close(numbers, torch.tensor(golden['schedule'][name], dtype=torch.float64))


def test_first_forward(golden, trained):
    out, stored = trained[1][0].out, golden['steps'][0]
    close(out.target, stored['target'])
    for ours, s in zip(out.contexts, stored['context']): close(ours.detach(), s)
    for ours, s in zip(out.predictions, stored['prediction']): close(ours.detach(), s)


def test_four_training_losses_and_gradients(golden, trained):
    for result, stored in zip(trained[1], golden['steps']):
        close(result.out.loss.item(), stored['loss'])
        close(result.grad_norms, stored['grad_norm'])


def test_features_after_training(golden, trained):
    with torch.no_grad(): close(trained[0].target_encoder(golden['clips'][0].float()), golden['final_target_features'])


def test_features_of_another_clip_size(golden, trained):
    clip = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(): close(trained[0].target_encoder(clip), golden['resized_features'])


def test_resume_from_a_vjepa_training_file():
    golden = torch.load(GOLDEN/'vjepa1_uniform.pt', weights_only=True)
    result = run_step(golden, *build(golden, golden['checkpoint_after_3_steps']), 3)
    close(result.out.loss.item(), golden['steps'][3]['loss'])


def test_probe_logits(golden):
    p, m = golden['probe'], golden['model']
    for rule, name in [(False, 'logits'), (True, 'logits_with_output_projection')]:
        if name not in p: continue
        probe = AttentiveClassifier(m['embed_dim'], m['num_heads'], p['num_classes'], output_projection=rule)
        probe.load_state_dict(strip_prefix(p['classifier']))
        with torch.no_grad(): close(probe.eval()(golden['final_target_features']), p[name])


# other layouts, through the loaders that everybody uses

def load(tmp_path, state, **hints):
    torch.save(state, tmp_path/'checkpoint.pt')
    return load_checkpoint(tmp_path/'checkpoint.pt', **hints)


@torch.no_grad()
def test_vjepa1_through_the_loader(golden, tmp_path):
    stored, clip = golden['steps'][0], golden['clips'][0].float()
    masks = list(zip(stored['masks_enc'], stored['masks_pred']))
    close(normalise_features(load(tmp_path, golden['checkpoint']).encoder(clip)), stored['target'])
    online = load_checkpoint(tmp_path/'checkpoint.pt', 'encoder')
    for i, (seen, hidden) in enumerate(masks):
        close(online.encoder(clip, seen.long()), stored['context'][i])
        close(online.predictor(stored['context'][i], seen.long(), hidden.long(), i), stored['prediction'][i])


@torch.no_grad()
def test_vjepa2(tmp_path):
    g = torch.load(GOLDEN/'vjepa2.pt', weights_only=True)
    loaded = load(tmp_path, g['checkpoint'])
    close(loaded.encoder(g['clip'].float()), g['features'])
    online = load_checkpoint(tmp_path/'checkpoint.pt', 'encoder')
    close(online.encoder(g['clip'].float(), g['masks_enc']), g['context'])
    close(loaded.predictor(g['context'], g['masks_enc'], g['masks_pred'], g['mask_index']), g['prediction'])
    clip = torch.randn(1, 3, 4, 64, 48, generator=torch.Generator().manual_seed(1))
    close(loaded.encoder(clip), g['resized_features'])
    torch.save(g['probe'], tmp_path/'probe.pt')
    probe = load_probe(tmp_path/'probe.pt', loaded.encoder.config)
    assert len(probe.model.pooler.blocks) == g['probe']['depth'] - 1 == 3
    close(probe.model(g['features']), g['probe']['logits'])


@torch.no_grad()
def test_vjepa2_1(tmp_path):
    g = torch.load(GOLDEN/'vjepa2_1.pt', weights_only=True)
    loaded = load(tmp_path, g['checkpoint'], num_heads=3, num_frames=8, height=48, width=48)
    assert list(loaded.encoder.config.levels) == g['model']['hierarchical_layers'] and loaded.part == 'ema_encoder'
    clip = g['clip'].float()
    close(loaded.encoder(clip), g['features'])
    close(loaded.encoder(clip, hierarchical=True), g['hierarchical_features'])
    close(loaded.encoder(clip, g['masks_enc']), g['context'])
    close(loaded.encoder(g['image'].float()), g['image_features'])
    close(loaded.encoder(g['other_clip'].float()), g['other_features'])
    masks = g['masks_enc'], g['masks_pred'], g['mask_index']
    prediction, context_prediction = loaded.predictor(g['context'], *masks, with_context=True)
    close(prediction, g['prediction'])
    close(context_prediction, g['context_prediction'])


@torch.no_grad()
def test_pico_encoder_and_classifier(tmp_path):
    g = torch.load(GOLDEN/'pico2025.pt', weights_only=True)
    close(load(tmp_path, g['encoder'], num_heads=4).encoder(g['clip'].float()), g['features'])
    torch.save(g['classifier'], tmp_path/'classifier.pt')
    encoder = load_checkpoint(tmp_path/'classifier.pt', num_heads=4).encoder
    probe = load_probe(tmp_path/'classifier.pt')
    assert probe.layout == 'pico' and probe.num_classes == 4
    close(probe.model(encoder(g['clip'].float())), g['logits'])


@torch.no_grad()
@pytest.mark.parametrize('rule,name', [(None, 'logits'), (True, 'logits_with_output_projection')])
def test_vjepa1_probe_through_the_loader(tmp_path, rule, name):
    g = torch.load(GOLDEN/'vjepa1_uniform.pt', weights_only=True)
    torch.save(g['probe'], tmp_path/'probe.pt')
    close(load_probe(tmp_path/'probe.pt', output_projection=rule).model(g['final_target_features']), g['probe'][name])
