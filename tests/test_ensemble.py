"""Ensembles: closed forms of every statistic, scikit-learn's own estimators, and what a vote must and must not do"""
import math

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from jepa.core import generator, seeded
from jepa.encoder import Encoder, encoder_config
from jepa.ensemble import *
from jepa.probe import Evaluation, Features, ProbeConfig, fit_probe

CLASSES = list('abcd')


def toy(n, split, dim=16):
    centres = torch.randn(4, dim, generator=generator(0, 'centres'))
    labels = torch.arange(n) % 4
    x = centres[labels][:, None, None] + 6*torch.randn(n, 1, 5, dim, generator=generator(0, split))
    return Features(x.half().numpy(), labels.numpy(), CLASSES)


@pytest.fixture(scope='module')
def data(): return {split: toy(n, split) for split, n in (('train', 120), ('val', 81), ('test', 150))}


@pytest.fixture(scope='module')
def members(data):
    config, train = ProbeConfig(kind='linear', epochs=20, lr=1e-2), data['train']
    return {f'part {i}': fit_probe(config.replace(seed=i), train.take(rows), progress=False)
            for i, rows in enumerate(stratified_parts(train.labels, 4))}


@pytest.fixture(scope='module')
def ensemble(members, data): return Ensemble(members).fit(data['val'])


class OnFeatures(ClassifierMixin, BaseEstimator):
    "A probe as a scikit-learn classifier of clip numbers: another road to the same votes"
    def __init__(self, probe, x): self.probe, self.x = probe, x
    classes_ = np.arange(4)
    def __sklearn_is_fitted__(self): return True
    def fit(self, X, y): return self
    def predict_proba(self, X): return self.probe.predict_proba(self.x.take(np.asarray(X)[:, 0]))
    def predict(self, X): return self.predict_proba(X).argmax(1)


def joined(*parts):
    return Features(np.concatenate([p.tokens for p in parts]), np.concatenate([p.labels for p in parts]), CLASSES)


@pytest.mark.parametrize('rule', RULES)
def test_rules_are_those_of_scikit_learn(rule, ensemble, members, data):
    x, n = joined(data['val'], data['test']), len(data['val'])
    rows = np.arange(len(x))[:, None]
    estimators = [(name, FrozenEstimator(OnFeatures(m, x))) for name, m in members.items()]
    accuracies = [m.evaluate(data['val']).accuracy for m in members.values()]
    weights, last = accuracies if rule == 'weighted' else None, LogisticRegression(max_iter=2000)
    if rule == 'stacking': theirs = StackingClassifier(estimators, last, cv='prefit', stack_method='predict_proba')
    else: theirs = VotingClassifier(estimators, voting='hard' if rule == 'hard' else 'soft', weights=weights)
    theirs.fit(rows[:n], data['val'].labels)
    ours = ensemble.replace(rule, ties='first').evaluate(data['test'])
    assert np.array_equal(ours.predicted, theirs.predict(rows[n:]))
    if rule != 'hard': assert np.allclose(ours.probabilities, theirs.predict_proba(rows[n:]), atol=1e-6)


def test_weights_are_validation_accuracies(ensemble, members, data):
    weights = np.array([m.evaluate(data['val']).accuracy for m in members.values()])
    assert len(set(weights)) > 1
    p = np.stack([m.predict_proba(data['test']) for m in members.values()])
    mean = np.tensordot(weights/weights.sum(), p, 1)
    assert np.allclose(ensemble.replace('weighted').predict_proba(data['test']), mean, atol=1e-6)


def test_identical_members_equal_one(members, data):
    one, test = members['part 1'], data['test']
    alone = one.evaluate(test)
    same = Ensemble({n: one for n in 'abcd'}).fit(data['val'])
    for rule in ('hard', 'soft', 'weighted'):
        assert np.array_equal(same.replace(rule).evaluate(test).predicted, alone.predicted)
    assert np.allclose(same.replace('soft').predict_proba(test), one.predict_proba(test), atol=1e-6)
    assert any_right([alone]*3) == (alone.right, alone.n)


def test_learning_rules_refuse_the_clips_they_learned_from(ensemble, members, data):
    one_of_them = joined(data['test'], data['val'].take([0]))
    for rule in ('weighted', 'stacking'):
        with pytest.raises(ValueError, match='81 of these clips'): ensemble.replace(rule).evaluate(data['val'])
        with pytest.raises(ValueError, match='1 of these clips'): ensemble.replace(rule).evaluate(one_of_them)
        with pytest.raises(ValueError, match='validation'): Ensemble(members, rule).predict_proba(data['test'])
    assert ensemble.replace('hard').evaluate(data['val']).n == 81


def one_hot_members(*votes): # per member its answers; a table of certain probabilities
    return np.concatenate([np.eye(4)[list(v)] for v in votes], axis=1)


def test_ties_go_where_the_rule_says(members):
    table = one_hot_members([0, 2, 1], [0, 2, 1], [3, 1, 1], [3, 1, 1])
    table[0] = np.ravel([[.6, .0, .0, .4]]*2 + [[.0, .1, .0, .9]]*2) # two votes each; d is surer
    assert ties(vote_counts(table, 4)).tolist() == [True, True, False]
    first, sure = (Ensemble(members, ties=rule).combine(table).argmax(1).tolist() for rule in ('first', 'probability'))
    assert first == [0, 1, 1] and sure == [3, 1, 1]


def test_a_tie_rule_never_beats_a_majority(members):
    rng = np.random.default_rng(0)
    table = rng.dirichlet([.3]*4, (5000, 4)).reshape(5000, -1)
    counts = vote_counts(table, 4)
    clear = ~ties(counts)
    shares = Ensemble(members).combine(table)
    assert clear.any() and np.array_equal(shares.argmax(1)[clear], counts.argmax(1)[clear])
    assert np.allclose(shares.sum(1), 1)


@pytest.mark.parametrize('sizes', [(706, 707, 707, 697), 4, (10, 20), (2815,)])
def test_parts_are_disjoint_stratified_and_as_large_as_asked(sizes):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), (957, 589, 610, 661)))
    parts = stratified_parts(labels, sizes)
    assert [len(p) for p in parts] == (list(sizes) if isinstance(sizes, tuple) else [705, 704, 704, 704])
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts))
    share = np.bincount(labels)/len(labels)
    for p in parts: assert np.abs(np.bincount(labels[p], minlength=4) - share*len(p)).max() <= 2
    assert not np.array_equal(parts[0], stratified_parts(labels, sizes, seed=1)[0])


def answers(correct): return Evaluation(np.eye(2)[1 - np.asarray(correct)], np.zeros(len(correct), int), ['a', 'b'])


def test_diversity_in_closed_form():
    a, b, c = answers([1, 1, 1, 0, 0, 0]), answers([1, 1, 0, 1, 0, 0]), answers([0, 0, 0, 1, 1, 1])
    assert disagreement(a, b) == 2/6 and math.isclose(q_statistic(a, b), (2*2 - 1*1)/(2*2 + 1*1))
    assert q_statistic(a, a) == 1 and q_statistic(a, c) == -1
    assert math.isnan(q_statistic(answers([1, 1]), answers([1, 1])))
    assert any_right([a, b]) == (4, 6) and any_right([a, c]) == (6, 6)
    assert diversity(dict(a=a, b=b, c=c))[['a', 'b']].values.tolist() == [['a', 'b'], ['a', 'c'], ['b', 'c']]


def test_calibration_in_closed_form():
    e = Evaluation([[.9, .1], [.9, .1], [.9, .1], [.9, .1], [.4, .6], [.4, .6]], [0, 0, 0, 1, 1, 0], ['a', 'b'])
    assert math.isclose(ece(e), (4*abs(.9 - .75) + 2*abs(.6 - .5))/6)
    assert math.isclose(brier(e), (3*.02 + 1.62 + .32 + .72)/6)
    assert certainty(e).tolist() == [.9]*4 + [.6]*2
    uniform = Evaluation(np.full((8, 4), .25), np.arange(8) % 4, CLASSES)
    assert ece(uniform) == 0 and brier(uniform) == .75
    assert brier(Evaluation([[1., 0.]], [1], 'ab')) == 2 and ece(Evaluation([[1., 0.]], [1], 'ab')) == 1


def test_brier_is_that_of_scikit_learn(ensemble, data):
    e = ensemble.replace('soft').evaluate(data['test'])
    theirs = brier_score_loss(e.labels, e.probabilities, labels=np.arange(4), scale_by_half=False)
    by_hand = float(((e.probabilities - np.eye(4)[e.labels])**2).sum(1).mean())
    assert math.isclose(brier(e), theirs, rel_tol=1e-6) and math.isclose(brier(e), by_hand, rel_tol=1e-6)


@pytest.mark.parametrize('points, low, high, word', [
    (5, 1, 9, 'supported'), (2, -1, 5, 'inconclusive'), (2, 0, 5, 'inconclusive'), (0, -2, 2, 'inconclusive'),
    (-1, -4, 2, 'inconclusive'), (-1, -4, 0, 'inconclusive'), (-5, -9, -1, 'contradicted')])
def test_verdict(points, low, high, word): assert verdict(dict(points=points, low=low, high=high)) == word


def test_compare_is_paired():
    a, b = answers([1]*60 + [0]*40), answers([1]*50 + [0]*50)
    [row] = compare(dict(a=a, b=b), 'b').to_dict('records')
    assert (row['points'], row['only_a'], row['only_b'], row['verdict']) == (10, 10, 0, 'supported')
    assert math.isclose(row['p'], 2*.5**10)


def test_an_ensemble_survives_its_file(tmp_path, data):
    train, test, kinds = data['train'], data['test'], dict(linear=2, mlp=2, attentive=1)
    heads = {kind: fit_probe(ProbeConfig(kind=kind, epochs=epochs), train, num_heads=4, progress=False)
             for kind, epochs in kinds.items()}
    torch.manual_seed(0)
    encoder = Encoder(encoder_config('toy', num_frames=2, height=16, width=16)).eval()
    original = Ensemble(heads, 'stacking', encoders={'pico': encoder}).fit(data['val'])
    save_ensemble(original, tmp_path/'e.pt')
    read = load_ensemble(tmp_path/'e.pt')
    assert np.array_equal(read.predict_proba(test), original.predict_proba(test))
    assert read.classes == CLASSES and list(read.members) == list(heads)
    clip = torch.randn(1, 3, 2, 16, 16)
    with torch.no_grad(): assert read.encoders['pico'](clip).equal(encoder(clip))
    with pytest.raises(ValueError, match='clips were used'): read.evaluate(data['val'])
    torch.save(dict(epoch=1), tmp_path/'other.pt')
    with pytest.raises(KeyError, match="no 'members'"): load_ensemble(tmp_path/'other.pt')
    knn = Ensemble({'k': fit_probe(ProbeConfig(kind='knn'), train)})
    with pytest.raises(ValueError, match="'k' is a 'knn' probe"): save_ensemble(knn, tmp_path/'k.pt')


def test_bad_ensembles_name_what_is_wrong(members):
    with pytest.raises(ValueError, match="did you mean 'stacking'"): Ensemble(members, 'staking')
    with pytest.raises(ValueError, match='at least one'): Ensemble({})
    with pytest.raises(ValueError, match='no tie rule'): Ensemble(members, ties='coin')
    others = Features(np.zeros((4, 1, 2, 16), np.float16), [0, 1, 0, 1], ['x', 'y'])
    other = fit_probe(ProbeConfig(kind='linear', epochs=1), others, progress=False)
    with pytest.raises(ValueError, match="'other' knows the classes"): Ensemble({**members, 'other': other})


def mixed(data):
    "Members on two sets of features, one of them half as wide"
    half = {split: Features(f.tokens[..., :8], f.labels, f.classes) for split, f in data.items()}
    x = {split: dict(whole=data[split], half=half[split]) for split in data}
    kinds = dict(a=('linear', 5, data['train']), b=('mlp', 5, half['train']), c=('attentive', 1, half['train']))
    probes = {name: fit_probe(ProbeConfig(kind=kind, epochs=epochs), train, num_heads=2, progress=False)
              for name, (kind, epochs, train) in kinds.items()}
    return x, Ensemble(probes, encoder_of=dict(a='whole', b='half', c='half'))


def test_members_read_their_own_features(data):
    x, e = mixed(data)
    expected = [e.members[m].predict_proba(x['test'][of]) for m, of in dict(a='whole', b='half', c='half').items()]
    expected = np.concatenate(expected, axis=1)
    assert np.array_equal(e.table(x['test']), expected)
    assert np.array_equal(e.table(dict(reversed(x['test'].items()))), expected)
    with pytest.raises(KeyError, match="no features of 'half', which member 'b' reads"):
        e.table(dict(whole=x['test']['whole']))
    with pytest.raises(ValueError, match='one `Features` for each'): e.table(data['test'])
    with pytest.raises(ValueError, match="does not say which features member 'c'"):
        Ensemble(e.members, encoder_of=dict(a='whole', b='half'))
    with pytest.raises(ValueError, match="reads 'half', which is no encoder here"):
        Ensemble(e.members, encoder_of=e.encoder_of, encoders=dict(whole=None))


def test_clips_that_a_rule_learned_from_are_found_whatever_the_order_of_their_features(data):
    x, e = mixed(data)
    e = e.replace('stacking').fit(x['val'])
    with pytest.raises(ValueError, match='81 of these clips'): e.evaluate(dict(reversed(x['val'].items())))
    assert e.evaluate(x['test']).n == 150


@pytest.mark.parametrize('rule', RULES)
def test_a_subset_votes_as_an_ensemble_of_its_members(rule, ensemble, members, data):
    names = ['part 3', 'part 1']
    alone = Ensemble({n: members[n] for n in names}, rule).fit(data['val'])
    some = ensemble.replace(rule).take(names)
    assert np.allclose(some.predict_proba(data['test']), alone.predict_proba(data['test']))
    table = ensemble.table(data['test'])[:, ensemble.columns(names)]
    assert np.allclose(some.combine(table), alone.predict_proba(data['test']))
    with pytest.raises(KeyError, match="no member 'part 9'; did you mean 'part"): ensemble.take(['part 9'])
    with pytest.raises(ValueError, match='at least one'): ensemble.take([])


def tiny_image(**changes):
    config = ImageConfig('test_resnet', num_frames=4, height=32, width=32, pixels=32)
    return ImageEncoder(config.replace(**changes))


def test_an_image_backbone_sees_frames_one_by_one():
    clip = torch.randn(2, 3, 4, 32, 32, generator=generator(0, 'clip'))
    by_frame, mean, change = (tiny_image(tokens=kind)(clip) for kind in ('frames', 'mean', 'change'))
    assert by_frame.shape == (2, 4, 96) and mean.shape == change.shape == (2, 1, 96)
    assert torch.allclose(mean[:, 0], by_frame.mean(1), atol=1e-6)
    assert torch.allclose(change[:, 0], by_frame.std(1, unbiased=False), atol=1e-6)
    shuffled = tiny_image()(clip[:, :, [2, 0, 3, 1]])
    assert torch.allclose(shuffled, by_frame[:, [2, 0, 3, 1]], atol=1e-5)
    assert tiny_image(tokens='change')(clip[:, :, :1].expand(-1, -1, 4, -1, -1)).abs().max() < 1e-4


def test_a_backbone_gets_the_colours_it_was_made_for():
    image = tiny_image()
    pixels = torch.rand(1, 3, 4, 32, 32, generator=generator(0, 'pixels'))
    def put(mean, std): return (pixels - torch.tensor(mean).view(3, 1, 1, 1))/torch.tensor(std).view(3, 1, 1, 1)
    cfg = image.backbone.pretrained_cfg
    assert cfg['mean'] != (0.485, 0.456, 0.406)
    theirs = image.backbone(put(cfg['mean'], cfg['std'])[0].transpose(0, 1))
    assert torch.allclose(image(put((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))[0], theirs, atol=1e-4)


def test_random_weights_are_said_to_be_random_and_come_from_the_seed():
    a, b, other = tiny_image(), tiny_image(), tiny_image(seed=1)
    clip = torch.randn(1, 3, 4, 32, 32)
    assert a(clip).equal(b(clip)) and not a(clip).equal(other(clip))
    assert 'random weights (seed 1)' in repr(other) and not any(p.requires_grad for p in a.parameters())
    with pytest.raises(KeyError, match="no model 'test_resnett'; did you mean 'test_resnet"):
        tiny_image(name='test_resnett')


def test_published_weights_that_cannot_be_had_are_an_error(monkeypatch):
    import timm
    create = timm.create_model
    def offline(name, pretrained=False, **kw):
        if pretrained: raise FileNotFoundError('no connection')
        return create(name, **kw)
    monkeypatch.setattr(timm, 'create_model', offline)
    message = "weights of 'test_resnet' could not be fetched.*pretrained=False takes random ones"
    with pytest.raises(OSError, match=message): tiny_image(pretrained=True)


def video_encoder():
    config = encoder_config('toy', num_frames=4, height=32, width=32, patch_size=8)
    with seeded(0, 'weights'): return Encoder(config).eval()


def test_change_over_time_is_what_pico_pools():
    from jepa.pico import pool_change
    encoder = video_encoder()
    clips = torch.randn(3, 3, 4, 32, 32, generator=generator(0, 'clips'))
    with torch.no_grad(): tokens, change = encoder(clips), ChangeOverTime(encoder)(clips)
    pooled = pool_change(Features(tokens[:, None].half().numpy(), [0, 0, 0], ['x']), encoder.config.grid)
    assert change.shape == (3, 16, 48) and np.allclose(pooled.tokens[:, 0], change.numpy(), atol=2e-3)


def test_ensembles_of_different_encoders_survive_their_file(tmp_path, data):
    video = video_encoder()
    encoders = dict(video=video, change=ChangeOverTime(video), image=tiny_image(tokens='mean'))
    def random_features(e, seed):
        tokens = torch.randn(20, 1, 3, e.config.embed_dim, generator=generator(seed, 'x'))
        return Features(tokens.half().numpy(), np.arange(20) % 4, CLASSES)
    x = {name: random_features(e, name) for name, e in encoders.items()}
    config = ProbeConfig(kind='linear', epochs=1)
    probes = {f'on {name}': fit_probe(config, f, progress=False) for name, f in x.items()}
    original = Ensemble(probes, 'soft', encoder_of={f'on {name}': name for name in x}, encoders=encoders)
    save_ensemble(original, tmp_path/'e.pt')
    read = load_ensemble(tmp_path/'e.pt')
    clip = torch.randn(2, 3, 4, 32, 32, generator=generator(0, 'clip'))
    with torch.no_grad():
        for name, e in encoders.items():
            assert read.encoders[name](clip).equal(e(clip)) and read.encoders[name].config == e.config
    assert np.array_equal(read.predict_proba(x), original.predict_proba(x))
    assert read.encoder_of == original.encoder_of
    assert 'random weights' in repr(read.encoders['image'])
    assert list(read.take(['on change']).encoders) == ['change']


@pytest.mark.filterwarnings('ignore:no validation clip')
@pytest.mark.parametrize('missing', range(4))
def test_stacking_without_a_class_keeps_the_others_in_their_columns(missing, ensemble, members, data):
    fitted = Ensemble(members, 'stacking').fit(data['val'].take(data['val'].labels != missing))
    others = data['test'].take(data['test'].labels != missing)
    p = fitted.predict_proba(others)
    assert p.shape == (len(others), 4) and not p[:, missing].any() and np.allclose(p.sum(1), 1)
    assert fitted.evaluate(others).accuracy > .8*ensemble.replace('stacking').evaluate(others).accuracy
    assert math.isfinite(brier(fitted.evaluate(data['test'])))


def test_a_class_without_validation_clips_is_named(members, data):
    with pytest.warns(UserWarning, match="no validation clip of 'b', 'd': stacking will never answer so"):
        Ensemble(members).fit(data['val'].take(data['val'].labels % 2 == 0))


@pytest.mark.filterwarnings('ignore:no validation clip')
def test_a_stacking_file_without_a_class_gives_the_same_answers(members, data, tmp_path):
    fitted = Ensemble(members, 'stacking').fit(data['val'].take(data['val'].labels != 1))
    save_ensemble(fitted, tmp_path/'e.pt')
    read = load_ensemble(tmp_path/'e.pt')
    assert np.array_equal(read.predict_proba(data['test']), fitted.predict_proba(data['test']))


@pytest.mark.parametrize('kind', ['logistic', 'knn'])
@pytest.mark.parametrize('rule', RULES)
def test_a_member_that_never_saw_a_class_keeps_the_others_in_their_columns(kind, rule, members, data):
    gap = data['train'].take(data['train'].labels != 1)
    probe = fit_probe(ProbeConfig(kind=kind), gap, progress=False)
    vote = Ensemble({'a': probe, 'b': probe, **members}, rule).fit(data['val'])
    table = vote.table(data['test'])
    assert table.shape == (150, 4*6) and not table[:, [1, 5]].any()
    others = data['test'].take(data['test'].labels != 1)
    assert (vote.table(others)[:, :4].argmax(1) == others.labels).mean() > .6
    assert vote.evaluate(data['test']).probabilities.shape == (150, 4)
