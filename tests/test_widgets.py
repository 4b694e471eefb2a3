"""Explorers: figures with sliders where somebody can move them, figures alone elsewhere"""
import base64, io

import matplotlib
matplotlib.use('Agg')
import numpy as np
import pytest
from PIL import Image
from jepa import widgets
from jepa.widgets import explore, mask_explorer, schedule_explorer, similarity_explorer, sliders, vote_explorer

WIDGET = 'application/vnd.jupyter.widget-view+json'


@pytest.fixture
def shown(monkeypatch):
    "What `display` was given"
    out = []
    monkeypatch.setattr(widgets, 'display', lambda data, raw=False: out.append(data))
    return out


def pixels(figure):
    file = io.BytesIO()
    figure.savefig(file, format='png')
    return np.asarray(Image.open(file))


def test_a_control_calls_the_function_again(shown):
    matplotlib.pyplot.close('all') # figures of other tests
    calls = []
    def figure(ratio=0.5, blocks=2, seed=0):
        calls.append((ratio, blocks, seed))
        return matplotlib.pyplot.figure()
    box = sliders(figure, blocks=(1, 8, 1), ratio=(0., 1., 0.25))
    assert [c.value for c in box.kwargs_widgets] == [0.5, 2, 0]
    assert not any(c.continuous_update for c in box.kwargs_widgets[:2])
    box.kwargs_widgets[1].value = 7
    assert calls == [(0.5, 2, 0), (0.5, 7, 0)] and len(shown) == 2
    assert not matplotlib.pyplot.get_fignums()


@pytest.mark.parametrize('name, live', [(None, False), ('20_masks.ipynb', True)])
def test_a_picture_always_and_sliders_where_somebody_looks(monkeypatch, shown, name, live):
    if name: monkeypatch.setenv('JPY_SESSION_NAME', name)
    else: monkeypatch.delenv('JPY_SESSION_NAME', raising=False)
    explore(mask_explorer, ratio=(0.1, 0.9, 0.1))
    assert Image.open(io.BytesIO(base64.b64decode(shown[-1]['image/png']))).size[0] > 300
    assert (WIDGET in shown[-1]) == live


def test_a_control_without_parameter_names_the_nearest(shown):
    for show in (explore, sliders):
        with pytest.raises(TypeError, match="did you mean 'blocks'"): show(mask_explorer, block=(1, 8, 1))
    assert not shown


@pytest.mark.parametrize('figure, change', [
    (mask_explorer, dict(ratio=0.4)), (mask_explorer, dict(aspect=4.)), (mask_explorer, dict(blocks=2)),
    (schedule_explorer, dict(warmup_epochs=8)), (similarity_explorer, dict(h=1)),
    (similarity_explorer, dict(features='pixels')), (vote_explorer, dict(shared=1.))])
def test_a_knob_changes_the_figure(figure, change):
    before, again, after = (pixels(figure(**values)) for values in ({}, {}, change))
    assert np.array_equal(before, again)
    assert before.shape != after.shape or not np.array_equal(before, after)
    matplotlib.pyplot.close('all')


def test_a_mask_that_leaves_nothing_says_so():
    assert 'Nothing is left' in mask_explorer(ratio=1.)._suptitle.get_text()


def test_members_that_err_together_gain_nothing_from_a_vote():
    table, labels = widgets.made_up_members(8, 1., 1.)
    each = table.reshape(400, 8, 4).argmax(-1)
    assert (each == each[:, :1]).all()
    table, labels = widgets.made_up_members(8, 0., 0.)
    assert abs((table.reshape(400, 8, 4).mean(1).argmax(1) == labels).mean() - 0.25) < 0.07
