"""Attention in parts, and encoders of which a few tokens are wanted: the same numbers and gradients, less work"""
import re

import pytest
import torch

from jepa.core import generator, seeded
from jepa.encoder import Encoder, _InParts, _two_products, attend, encoder_config, fused_is_faster, gather_tokens
from torch.utils.flop_counter import FlopCounterMode

SMALL = dict(num_frames=4, height=32, width=32, patch_size=8)


@pytest.mark.parametrize('wrong, interval', [
    (dict(num_frames=0), '[1, 100000]'), (dict(height=-16), '[1, 100000]'), (dict(patch_size=0), '[1, 10000]'),
    (dict(depth=0), '[1, 10000]'), (dict(num_heads=0), '[1, 10000]'), (dict(mlp_ratio=0), '(0, 1000]'),
    (dict(levels=(-1,)), '[0, 10000]')])
def test_numbers_out_of_range_are_named_with_their_range(wrong, interval):
    [name] = wrong
    message = re.escape(f'EncoderConfig.{name} must lie in {interval}, not')
    with pytest.raises(ValueError, match=message): encoder_config('toy', **wrong)


def random_qkv(dtype, queries=300, keys=200, width=24, heads=23):
    shapes = dict(q=queries, k=keys, v=keys)
    options = dict(dtype=dtype, requires_grad=True)
    return [torch.randn(1, heads, n, width, generator=generator(0, name), **options) for name, n in shapes.items()]


@pytest.mark.parametrize('dtype, close', [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, .1)])
@pytest.mark.parametrize('width', [24, 64])
def test_parts_and_whole_agree_forwards_and_backwards(dtype, close, width):
    qkv = random_qkv(dtype, width=width)
    gradient = torch.randn(1, 23, 300, width, dtype=dtype, generator=generator(1))
    whole = _two_products(*qkv, .2)
    def in_parts(): return _InParts.apply(*(x.flatten(0, 1) for x in qkv), .2, 4).view(whole.shape)
    parts = in_parts() # 23 heads: the last part is smaller
    with torch.no_grad(): frozen = in_parts()
    assert torch.allclose(parts, whole, atol=close) and frozen.equal(parts)
    for a, b in zip(*(torch.autograd.grad(x, qkv, gradient) for x in (parts, whole))):
        assert torch.allclose(a, b, atol=close)


def node(out):
    "What made a result of `attend`, before its last change of shape"
    return out.grad_fn.next_functions[0][0]


def test_many_tokens_go_in_parts_and_few_do_not():
    many, few = (node(attend(*random_qkv(torch.float32, n, n), .2, fused=False)) for n in (700, 30))
    assert 'InParts' in type(many).__name__ and 'InParts' not in type(few).__name__


def test_under_autocast_the_weights_are_halved():
    with torch.autocast('cpu', torch.bfloat16):
        q, k, v = random_qkv(torch.float32, 700, 700)
        out = attend(q, k, v.bfloat16(), .2, fused=False) # rotation leaves q and k in float32
    weights = node(out).saved_tensors[3]
    assert out.dtype == weights.dtype == torch.bfloat16 and weights.shape[1:] == (700, 700)


@pytest.mark.parametrize('threads, heads', [(1, 8), (3, 9), (16, 8)])
def test_a_part_stays_near_16_mib_with_any_number_of_threads(monkeypatch, threads, heads):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    weights = node(attend(*random_qkv(torch.float32, 700, 700), .2, fused=False)).saved_tensors[3]
    assert weights.shape == (heads, 700, 700)


@pytest.mark.parametrize('kind', [dict(), dict(positions='rope'), dict(depth=4, levels=(0, 1, 2, 3), positions='rope')])
def test_wanted_tokens_are_those_of_the_whole(kind):
    with seeded(0): encoder = Encoder(encoder_config('toy', **SMALL, **kind)).eval()
    clip = torch.randn(3, 3, 4, 32, 32, generator=generator(0, 'clip'))
    keep = torch.stack([torch.randperm(32, generator=generator(i))[:7] for i in range(3)])
    for hierarchical in (False, True) if encoder.config.levels else (False,):
        whole = encoder(clip, hierarchical=hierarchical)
        few = encoder(clip, keep=keep, hierarchical=hierarchical)
        assert torch.allclose(few, gather_tokens(whole, keep), atol=1e-5)
    same = keep[:1] # for all
    assert torch.allclose(encoder(clip, keep=same), gather_tokens(encoder(clip), same.expand(3, -1)), atol=1e-5)
    some = torch.stack([torch.randperm(32, generator=generator(i))[:20] for i in range(3)])
    assert torch.allclose(encoder(clip, some, keep=keep % 20), gather_tokens(encoder(clip, some), keep % 20), atol=1e-5)


def test_tokens_that_are_not_wanted_end_in_the_attention_of_the_last_block():
    encoder, clip = Encoder(encoder_config('toy', **SMALL)), torch.randn(2, 3, 4, 32, 32)
    def flops(**keep):
        with FlopCounterMode(display=False) as counter, torch.no_grad(): encoder(clip, **keep)
        return counter.get_total_flops()
    D, N, K = encoder.config.embed_dim, 32, 8
    saved = flops() - flops(keep=torch.arange(K).expand(2, -1))
    assert saved == 2*(N - K)*(2*9*D*D + 4*N*D) # projection and MLP; scores and their sums


@pytest.mark.parametrize('dtype, tiles, learns, fused', [
    (torch.bfloat16, True, False, True), (torch.bfloat16, True, True, False),
    (torch.bfloat16, False, False, False), (torch.float32, True, False, False)])
def test_on_a_cpu_the_fused_kernel_serves_frozen_bfloat16_with_tiles_alone(dtype, tiles, learns, fused, monkeypatch):
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: tiles)
    q = torch.zeros(1, dtype=dtype, requires_grad=learns)
    assert fused_is_faster(q) is fused
    with torch.no_grad(): assert fused_is_faster(q) is (fused or learns and tiles and dtype == torch.bfloat16)
