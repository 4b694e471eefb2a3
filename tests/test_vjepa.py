"""V-JEPA's page: what it says about sizes and differences"""
import pytest

from jepa.nano import nano_config
from jepa.pico import pico_config
from jepa.train import training_cost
from jepa.vjepa import compare_configs, vjepa_config


def test_nano_jepa_is_v_jepa_with_another_encoder():
    assert compare_configs(a=vjepa_config(), b=vjepa_config()).empty
    assert set(compare_configs(a=vjepa_config(), b=nano_config()).index) == {'encoder.embed_dim', 'encoder.depth', 'encoder.num_heads'}
    other = compare_configs(a=vjepa_config(), b=pico_config())
    assert other.loc['sees_hidden'].tolist() == ['', 'False'] and 'epochs' in other.index


def test_cost_counts_what_the_sizes_hold():
    small = vjepa_config('toy', num_frames=4, pixels=32)
    found = training_cost(small)
    jepa = small.build()
    assert found['encoder'] == sum(p.numel() for p in jepa.encoder.parameters() if p.requires_grad) and found['predictor'] == sum(p.numel() for p in jepa.predictor.parameters() if p.requires_grad)
    assert training_cost(small.replace(predictor=small.predictor.replace(depth=1)))['flops'] < found['flops']
    with pytest.raises(KeyError, match='huge'): vjepa_config('hug')
