"""What a result is made from: the definitions that code reaches, and nothing else."""
import textwrap, time
from pathlib import Path
import pytest
from jepa.identity import changes, classes_in, code_hash, reach
from jepa.papers import source_root

MODULES = dict(
    base="""
        SIZES = dict(small=3)
        SAMPLERS = {}
        class Config:
            "A base"
            def key(self): return helper(self)
            def unused(self): return other()
        def helper(x): return x
        def other(): return 1
        def plot_all(x): return other()
    """,
    top="""
        from fastcore.basics import patch
        from .base import *
        from . import base
        import jepa.lazy
        class Run(Config):
            "A run"
            size: int = 3
            def go(self, n=SIZES['small']): return self.key() + n
            def __len__(self): return extra()
        def extra(): return 5
        @patch
        def more(self:Run): return late()
        def late():
            from .lazy import deep
            return deep()
        def tube(): return 2
        SAMPLERS['tube'] = tube
        def train(features:int, other=0) -> int:
            "Train"
            run = Run()
            other = other + 1
            plot_all(run)
            if other < 0: raise ValueError(f'{other} is below 0')
            return run.go() + run.more() + len(SAMPLERS)
    """,
    lazy="""
        def deep(): return shallow()
        def shallow(): return 0
        def never(): return 1
    """)


@pytest.fixture
def package(tmp_path):
    "A small package; `package(module, old, new)` gives what changes for `top.train` when a module is edited"
    for name, text in MODULES.items(): (tmp_path/f'{name}.py').write_text(textwrap.dedent(text))
    before = reach('top.train', folder=tmp_path).hashes
    def edit(module, old, new):
        path = tmp_path/f'{module}.py'
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        try: return changes(before, reach('top.train', folder=tmp_path).hashes)
        finally: path.write_text(text)
    edit.before, edit.folder = before, tmp_path
    return edit


def test_what_is_reached(package):
    assert set(package.before) == {
        'base.SIZES', 'base.SAMPLERS', 'base.Config', 'base.Config.key', 'base.helper', 'top.Run', 'top.Run.go',
        'top.Run.__len__', 'top.extra', 'top.Run.more', 'top.late', 'top.tube',
        "top.SAMPLERS <- SAMPLERS['tube'] = tube", 'top.train',
        'lazy.deep', 'lazy.shallow'}


@pytest.mark.parametrize('module, old, new, words', [
    ('base', 'return x', 'return 2*x', ['base.helper changed']),
    ('base', 'small=3', 'small=4', ['base.SIZES changed']),
    ('top', 'return 5', 'return 6', ['top.extra changed']),
    ('top', 'return 2', 'return 3', ['top.tube changed']),
    ('top', 'size: int = 3', 'size: int = 4', ['top.Run changed']),
    ('lazy', 'return 0', 'return 9', ['lazy.shallow changed']),
    ('top', 'return late()', 'return 1',
     ['lazy.deep is gone', 'lazy.shallow is gone', 'top.Run.more changed', 'top.late is gone']),
    ('top', "SAMPLERS['tube'] = tube", '', ["top.SAMPLERS <- SAMPLERS['tube'] = tube is gone", 'top.tube is gone'])])
def test_a_change_that_counts_is_named(package, module, old, new, words):
    assert package(module, old, new) == words


@pytest.mark.parametrize('module, old, new', [
    ('top', '"Train"', '"Train a network"'), ('base', '"A base"', ''), ('top', 'features:int', 'features'),
    ('top', '-> int', ''), ('top', 'is below 0', 'must not be below 0'),
    ('base', 'def plot_all(x): return other()', 'def plot_all(x): return None'),
    ('base', 'return other()', 'return other() + 1'), ('base', 'return 1', 'return 7'),
    ('lazy', 'return 1', 'return 8'),
    ('top', 'return 2', 'return 2 # two'), ('top', 'def extra(): return 5', 'def extra():\n\n    return 5')])
def test_a_change_that_does_not_count_is_silent(package, module, old, new):
    assert package(module, old, new) == []


def test_code_of_a_notebook_leads_on(package):
    cells = 'from jepa.top import train\nreport.note("words")\ntrain(1)'
    found = reach(source=cells, folder=package.folder).hashes
    assert found == package.before
    assert code_hash(cells) == code_hash(cells.replace('words', 'other words'))
    assert code_hash(cells) != code_hash(cells.replace('train(1)', 'train(2)'))


def test_an_unknown_start_is_an_error():
    with pytest.raises(KeyError, match="no definition 'train.pretrane'"): reach('train.pretrane')


def test_the_package_itself():
    start = time.perf_counter()
    training = reach('train.pretrain').hashes
    assert time.perf_counter() - start < 60
    for name in ('train.train_step', 'objective.prediction_loss', 'encoder.attend', 'predictor.Predictor.forward',
                 'masks.sample_masks'):
        assert name in training, name
    for name in ('probe.fit_probe', 'infer.infer', 'train.plot_run', 'report.Report', 'pico.PicoConfig'):
        assert name not in training, name


def test_a_configuration_brings_its_own_classes():
    from jepa.pico import PicoConfig, pico_config
    from jepa.train import train_config
    assert PicoConfig in classes_in(pico_config('published'))
    names = reach('train.pretrain', *classes_in(pico_config('published'))).hashes
    assert 'pico.published_tube' in names and 'pico.PicoConfig.build' in names
    assert not any(n.startswith('pico.') for n in reach('train.pretrain', *classes_in(train_config())).hashes)


def test_a_changed_edge_is_seen_by_its_report_alone():
    reached = {name: reach(source=f'from jepa.{module} import {what}\n{what}').hashes
               for name, module, what in (('edge', '_edge', 'Fleet'), ('probe', 'probe', 'fit_probe'))}
    assert '_edge.Fleet' in reached['edge'] and not any(n.startswith('_edge') for n in reached['probe'])
    assert (Path(source_root)/'jepa/_edge.py').exists()
