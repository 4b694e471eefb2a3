"""V-JEPA's page: what it says about sizes and differences"""
import pytest

from jepa.nano import nano_config
from jepa.pico import pico_config
from jepa.train import training_cost
from jepa.vjepa import compare_configs, vjepa_config


def test_nano_jepa_is_v_jepa_with_another_encoder():
    assert compare_configs(a=vjepa_config(), b=vjepa_config()).empty
    size = {'encoder.embed_dim', 'encoder.depth', 'encoder.num_heads'}
    assert set(compare_configs(a=vjepa_config(), b=nano_config()).index) == size
    other = compare_configs(a=vjepa_config(), b=pico_config())
    assert other.loc['sees_hidden'].tolist() == ['', 'False'] and 'epochs' in other.index


def test_cost_counts_what_the_sizes_hold():
    small = vjepa_config('toy', num_frames=4, pixels=32)
    cost, jepa = training_cost(small), small.build()
    def count(module): return sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert cost['encoder'] == count(jepa.encoder) and cost['predictor'] == count(jepa.predictor)
    shallow = small.replace(predictor=small.predictor.replace(depth=1))
    assert training_cost(shallow)['flops'] < cost['flops']
    with pytest.raises(KeyError, match='huge'): vjepa_config('hug')
