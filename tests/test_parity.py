"""Reference numbers of V-JEPA 1, to 1e-5 of the largest value, through the functions that training itself uses"""
from pathlib import Path

import pytest
import torch

from jepa.core import repo_root
from jepa.encoder import EncoderConfig
from jepa.masks import MaskPair
from jepa.objective import Jepa
from jepa.predictor import PredictorConfig
from jepa.probe import AttentiveClassifier
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
    encoder = EncoderConfig(num_frames=m['num_frames'], height=m['img_size'], width=m['img_size'], **{k: m[k] for k in
        ('patch_size', 'tubelet_size', 'embed_dim', 'depth', 'num_heads', 'mlp_ratio', 'uniform_power', 'norm_eps')})
    predictor = PredictorConfig(embed_dim=m['pred_embed_dim'], depth=m['pred_depth'], num_heads=m['pred_num_heads'])
    h = golden['hyper']
    jepa = Jepa(encoder, predictor, h['loss_exp'], h['reg_coeff'])
    optimizer = make_optimizer(jepa, h['betas'], h['eps'])
    load_training_state(jepa, optimizer if 'opt' in state else None, state)
    return jepa, optimizer


def plan(golden):
    h = golden['hyper']
    return Plan(h['start_lr'], h['ref_lr'], h['final_lr'], h['warmup_steps'], h['T_max'], h['wd'], h['final_wd'], tuple(h['ema']))


def run_step(golden, jepa, optimizer, k):
    step = golden['steps'][k]
    masks = [MaskPair(c.long(), t.long()) for c, t in zip(step['masks_enc'], step['masks_pred'])]
    return train_step(jepa, optimizer, golden['clips'][k].float(), masks, plan(golden).at(k), golden['hyper']['clip_grad'])


@pytest.fixture(scope='module')
def trained(golden):
    jepa, optimizer = build(golden, golden['checkpoint'])
    return jepa, [run_step(golden, jepa, optimizer, k) for k in range(4)]


def test_position_table(golden):
    from jepa.encoder import sincos_3d
    m = golden['model']
    stored = strip_prefix(golden['checkpoint']['encoder'])['pos_embed']
    close(sincos_3d(m['embed_dim'], build(golden, golden['checkpoint'])[0].encoder.config.grid, m['uniform_power']), stored)


def test_schedules(golden):
    values = [plan(golden).at(k) for k in range(12)]
    for ours, name in [('lr', 'lr'), ('weight_decay', 'wd'), ('momentum', 'momentum')]: close(torch.tensor([getattr(v, ours) for v in values], dtype=torch.float64), torch.tensor(golden['schedule'][name], dtype=torch.float64))


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
