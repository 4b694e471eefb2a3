"Table 1: images are still clips, digits are cut once, controls take the same probe, and a device can be asked for"
import hashlib, json, os

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits

from jepa.actions import DIGITS
from jepa.core import *
from jepa.data import *
from jepa.encoder import SIZES, Encoder, EncoderConfig
from jepa.images import *
from jepa.nano import *
from jepa.probe import *
from jepa.report import published
from jepa.train import make_accelerator
from jepa.video import *
import trees

clip = ClipConfig(num_frames=4, stride=8, size=32)

def test_digits_are_the_same_pixels_everywhere(place):
    file = make_digits(64)
    card, m = json.loads((file.parent/'card.json').read_text()), read_manifest(file)
    assert card['sha256'] == 'ea35765a21dc4360a5d1d4784cf55899b666911dd0b2ee7c2461b5ded9b0d8d6'
    read = hashlib.sha256(b''.join(open_video(m.file(i)).frames([0])[0, :, :, 0].tobytes() for i in range(len(m))))
    assert read.hexdigest() == card['sha256'] and m.table.label.tolist() == load_digits().target.tolist()
    (file.parent/'train/0').rename(file.parent/'moved') # what is there is opened, not made again
    assert make_digits(64) == file and len(read_manifest(file).missing()) == len(list((file.parent/'moved').iterdir()))
    (file.parent/'moved').rename(file.parent/'train/0')

def test_no_test_digit_was_trained_or_pretrained_on(place):
    train, test = table1_data(pixels=64)
    def number(m): return {int(p[-8:-4]) for p in m.table.path}
    assert number(train) == set(DIGITS['train']) and number(test) == set(DIGITS['val'])
    assert len(np.unique(load_digits().data, axis=0)) == len(train) + len(test) # no two images are alike

def test_the_first_test_images_are_those_of_a_smaller_test(place):
    (_, large), (_, small) = (table1_data(test=n, pixels=64) for n in (300, 176))
    assert large.table.path[:176].tolist() == small.table.path.tolist()
    assert sorted(small.table.label.value_counts()) == [17]*4 + [18]*6

def test_folders_are_read_like_the_manifest(place):
    folder = make_digits(64).parent
    (folder/'manifest.csv').rename(folder/'hidden')
    tree = read_manifest(folder)
    (folder/'hidden').rename(folder/'manifest.csv')
    listed = read_manifest(folder/'manifest.csv')
    def key(m): return sorted(map(tuple, m.table[['path', 'label', 'class_name', 'split']].values.tolist()))
    assert key(tree) == key(listed) and table1_data(str(folder), 20, 10)[0].classes == listed.classes

def test_mistakes_name_the_dataset(place, tmp_path):
    root = trees.imagenet(tmp_path/'imagenet', ['n01440764', 'n01443537'], 2, 1)
    with pytest.raises(ValueError, match='imagenet has 2 classes, 10 are needed'): table1_data(str(root))
    with pytest.raises(ValueError, match='first 2 classes have 4 images in train, 5 were asked for'):
        table1_data(str(root), 5, classes=2)
    with pytest.raises(KeyError, match='train has no split .train.; none of its files has one'):
        table1_data(str(root/'train'), classes=2)

@pytest.fixture(scope='module')
def encoder():
    with seeded(0): return Encoder(EncoderConfig(num_frames=4, height=32, width=32, **SIZES['toy'])).eval()

def test_an_image_is_a_still_clip(place, encoder):
    train, _ = table1_data(train=20, pixels=64)
    x = image_features(encoder, train, clip.replace(segments=3, views=3), progress=False)
    item = train.clips(clip, Augment(train=False), progress=False)[3]['clip']
    assert x.num_views == 1 and item.equal(item[:, :1].expand_as(item))
    with torch.no_grad(): tokens = encoder(item[None])[0]
    assert np.allclose(x.tokens[3, 0], tokens, atol=.05) and x.labels[3] == train.table.label[3]

def test_pixels_pass_through_the_same_probe(place):
    train, test = table1_data(train=100, test=100, pixels=64)
    x, y = (pixel_features(m, clip, progress=False) for m in (train, test))
    assert x.tokens.shape == (100, 1, 1, 3*16*16) and (x.labels == train.table.label).all()
    good = fit_probe(ProbeConfig(kind='logistic'), x).evaluate(y)
    shuffled = Features(x.tokens, np.random.default_rng(0).permutation(x.labels), x.classes)
    assert good.interval[0] > .5
    assert fit_probe(ProbeConfig(kind='logistic'), shuffled).evaluate(y).interval[0] < .1 < good.accuracy

def test_a_device_for_a_while(place):
    before = load_settings(), os.environ['JEPA_SETTINGS']
    with on_device('cpu'):
        assert load_settings() == before[0].replace(device='cpu') and machine().why['device'] == 'set in settings.ini'
        assert make_accelerator().device.type == 'cpu'
    with pytest.raises(RuntimeError):
        with on_device('cpu'): raise RuntimeError
    assert (load_settings(), os.environ['JEPA_SETTINGS']) == before
    if not torch.cuda.is_available():
        with on_device('cuda'), pytest.raises(ValueError, match="device 'cuda'"): machine()

@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
def test_a_processor_and_a_gpu_see_the_same(place, encoder):
    train, found = table1_data(train=20, pixels=64)[0], {}
    for device in ('cpu', 'cuda', 'cpu'):
        with on_device(device): found[device] = np.asarray(image_features(encoder, train, clip, progress=False).tokens)
    assert np.abs(found['cpu'].astype('f4') - found['cuda']).max() < .1

def test_published_training_accuracies_are_shares_of_1568_images():
    paper = published('nano_tab1')
    def fits(n): return all(abs(100*round(v*n/100)/n - v) <= .001 for v in paper.train_accuracy)
    assert [n for n in range(10, 2000) if fits(n)] == [1568]
    assert all(abs(100*k/n - v) <= .001 for k, n, v in zip(paper.k, paper.n, paper.accuracy))
