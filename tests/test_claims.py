"""What the method claims, each claim a test that can fail"""
import ast, csv, json, math, re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from jepa.actions import ActionsConfig, make_actions
from jepa.core import generator, seeded
from jepa.data import Augment, read_manifest
from jepa.encoder import encoder_config
from jepa.ensemble import RULES, Ensemble
from jepa.ensemble_tables import DIVERSITY, edge_fields, control_fields, diversity_fields, mixed_fields, stacking_fields
from jepa.masks import Future, MultiBlock, RandomTube, sample_masks
from jepa.objective import Jepa
from jepa.pico import Pico, pico_config
from jepa.predictor import PredictorConfig
from jepa.probe import Features, ProbeConfig, features, fingerprint, fit_probe
from jepa.train import StepValues, make_optimizer, train_step
from jepa.video import ClipConfig

root = Path(__file__).resolve().parents[1]
standard = root/'reports/results/standard'
MASKS = (MultiBlock(), Future(tubelets=(1, 1)), RandomTube(ratio=.75))
CLASSES = list('abcd')


def new_jepa():
    "A small JEPA whose weights are large enough for every pixel to matter"
    encoder = encoder_config('toy', num_frames=4, height=32, width=32, patch_size=8)
    predictor = PredictorConfig(embed_dim=24, depth=2, num_mask_tokens=len(MASKS))
    with seeded(0, 'weights'): jepa = Jepa(encoder, predictor)
    for p in jepa.encoder.parameters(): p.data.mul_(2)
    return jepa


def new_pico():
    config = pico_config(pixels=32, patch_size=8, num_frames=4, masks=(RandomTube(ratio=.75),))
    with seeded(0, 'weights'): return Pico(config)


def masks_of(model, n):
    kinds = MASKS if type(model) is Jepa else (RandomTube(ratio=.75),)
    return sample_masks(kinds, model.encoder.config.grid, n, generator(0, 'masks'))


def clips(n=3, seed=0): return torch.randn(n, 3, 4, 32, 32, generator=generator(seed, 'clips'))


def unseen(clip, pair, grid):
    "The clip with other pixels wherever no context token lies"
    seen = torch.zeros(len(clip), grid.tokens, dtype=torch.bool).scatter(1, pair.context_ids, True)
    scale = [size//tokens for size, tokens in zip(clip.shape[2:], grid)]
    pixels = seen.view(-1, 1, *grid)
    for dim, factor in enumerate(scale, 2): pixels = pixels.repeat_interleave(factor, dim)
    return torch.where(pixels, clip, clips(len(clip), 1))


@pytest.mark.parametrize('new', [new_jepa, new_pico])
def test_hidden_pixels_do_not_reach_the_context_nor_the_predictions(new):
    model, clip = new().eval(), clips()
    masks = masks_of(model, len(clip))
    with torch.no_grad():
        out = model(clip, masks)
        for i, pair in enumerate(masks):
            other = model(unseen(clip, pair, model.encoder.config.grid), masks)
            assert other.contexts[i].equal(out.contexts[i]), 'the context saw hidden pixels'
            assert other.predictions[i].equal(out.predictions[i]), 'a prediction depends on its target'
            assert not other.targets[i].equal(out.targets[i]), 'the targets do not look at their pixels'


@pytest.mark.parametrize('new', [new_jepa, new_pico])
def test_visible_pixels_reach_every_prediction(new):
    model, clip = new().eval(), clips()
    masks = masks_of(model, len(clip))
    with torch.no_grad(): a, b = model(clip, masks), model(clip + .5*clips(seed=2), masks)
    for x, y in zip(a.predictions, b.predictions): assert ((x - y).abs().amax(-1) > 0).all()


@pytest.mark.parametrize('new', [new_jepa, new_pico])
def test_gradients_never_reach_the_target_encoder(new):
    model, clip = new().train(), clips()
    loss = model(clip, masks_of(model, len(clip))).loss
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.target_encoder.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.parameters() if p.requires_grad)
    trained = {id(p) for group in make_optimizer(model).param_groups for p in group['params']}
    assert not trained & {id(p) for p in model.target_encoder.parameters()}


def test_ema_has_its_closed_form():
    jepa, momentum, steps = new_jepa().double(), .9, 7
    start = [p.clone() for p in jepa.target_encoder.parameters()]
    for _ in range(steps): jepa.update_target(momentum)
    for slow, old, fast in zip(jepa.target_encoder.parameters(), start, jepa.encoder.parameters()):
        assert torch.allclose(slow, momentum**steps*old + (1 - momentum**steps)*fast.detach(), atol=1e-12)


@pytest.mark.parametrize('new', [new_jepa, new_pico])
def test_the_target_moves_after_the_optimiser_s_step(new):
    model, clip, momentum = new().train(), clips(), .75
    old = [p.clone() for p in model.target_encoder.parameters()]
    values = StepValues(lr=1e-2, weight_decay=0., momentum=momentum)
    train_step(model, make_optimizer(model), clip, masks_of(model, len(clip)), values)
    for slow, before, fast in zip(model.target_encoder.parameters(), old, model.encoder.parameters()):
        assert torch.allclose(slow, momentum*before + (1 - momentum)*fast.detach(), atol=1e-6)


def toy(n, split, dim=16, classes=CLASSES):
    labels = torch.arange(n) % len(classes)
    centres = torch.randn(len(classes), dim, generator=generator(0, 'centres'))
    x = centres[labels][:, None, None] + 4*torch.randn(n, 1, 5, dim, generator=generator(0, split))
    return Features(x.half().numpy(), labels.numpy(), classes)


PROBES = {kind: ProbeConfig(kind=kind, epochs=3, lr=1e-2) for kind in ('linear', 'mlp', 'attentive', 'logistic', 'knn')}


@pytest.fixture(scope='module')
def videos(place):
    "A few clips of the embedded dataset"
    config = ActionsConfig(classes=('move_right', 'turn_left'), train=4, val=2, size=32, num_frames=8, level='easy')
    return read_manifest(make_actions(config, place/'data', workers=1, progress=False))


def test_probes_never_change_the_encoder(videos, place):
    encoder = new_jepa().encoder.train() # also where somebody forgot eval()
    before = fingerprint(encoder)
    clip = ClipConfig(num_frames=4, stride=2, size=32)
    train = videos.split('train').clips(clip, Augment(train=False), progress=False)
    x = features(encoder, train, folder=place/'features', progress=False)
    for config in PROBES.values(): fit_probe(config, x, num_heads=4, progress=False).evaluate(x)
    assert fingerprint(encoder) == before and all(p.grad is None for p in encoder.parameters())


@pytest.mark.parametrize('kind', PROBES)
def test_validation_never_reaches_the_fit_of_a_probe(kind):
    train, val, test = toy(40, 'train'), toy(24, 'val'), toy(40, 'test')
    planted = Features(val.tokens, (val.labels + 1) % 4, val.classes) # labels that mislead whoever learns from them
    answers = [fit_probe(PROBES[kind], train, v, num_heads=4, progress=False).predict_proba(test)
               for v in (None, val, planted)]
    assert np.array_equal(answers[0], answers[1]) and np.array_equal(answers[0], answers[2])


@pytest.fixture(scope='module')
def members():
    train = toy(60, 'train')
    return {str(i): fit_probe(PROBES['linear'].replace(seed=i), train, progress=False) for i in range(3)}


@pytest.mark.parametrize('rule', RULES)
def test_clips_that_are_judged_never_reach_a_rule(rule, members):
    test = toy(40, 'test')
    planted = Features(test.tokens, (test.labels + 1) % 4, test.classes)
    vote = Ensemble(members, rule).fit(toy(24, 'val'))
    before, after = vote.predict_proba(test), (vote.evaluate(planted), vote.predict_proba(test))[1]
    assert np.array_equal(before, after)
    if rule in ('weighted', 'stacking'):
        with pytest.raises(ValueError, match='40 of these clips were used to fit'): vote.fit(test).evaluate(test)


@pytest.mark.parametrize('rule', RULES)
def test_a_rule_leaves_its_members_as_they_are(rule, members):
    test = toy(40, 'test')
    before = {name: m.predict_proba(test) for name, m in members.items()}
    Ensemble(members, rule).fit(toy(24, 'val')).evaluate(test)
    for name, m in members.items(): assert np.array_equal(m.predict_proba(test), before[name])


@pytest.mark.parametrize('rule', ('hard', 'soft', 'weighted'))
def test_an_ensemble_of_equal_members_equals_one(rule, members):
    test, one = toy(80, 'test'), members['0']
    same = Ensemble(dict.fromkeys('abcde', one), rule).fit(toy(24, 'val'))
    assert np.array_equal(same.evaluate(test).predicted, one.evaluate(test).predicted)
    if rule != 'hard': assert np.allclose(same.predict_proba(test), one.predict_proba(test), atol=1e-6)


@pytest.mark.parametrize('new', [new_jepa, new_pico])
def test_a_permuted_batch_permutes_the_results_of_pretraining(new):
    model, clip, order = new().eval(), clips(5), torch.tensor([3, 0, 4, 1, 2])
    masks = masks_of(model, 5)
    permuted = [type(m)(m.context_ids[order], m.target_ids[order]) for m in masks]
    with torch.no_grad(): a, b = model(clip, masks), model(clip[order], permuted)
    assert torch.allclose(a.target[order], b.target, atol=1e-5) and torch.isclose(a.loss, b.loss, rtol=1e-5)
    for kind in ('contexts', 'predictions', 'targets'):
        for x, y in zip(getattr(a, kind), getattr(b, kind)): assert torch.allclose(x[order], y, atol=1e-5), kind


@pytest.mark.parametrize('rule', RULES)
def test_permuted_clips_permute_probabilities(rule, members):
    test, order = toy(40, 'test'), np.random.default_rng(0).permutation(40)
    vote = Ensemble(members, rule).fit(toy(24, 'val'))
    for model in (vote, *members.values()):
        assert np.allclose(model.predict_proba(test)[order], model.predict_proba(test.take(order)), atol=1e-6)


# Reports: every table of a page is the CSV file beside it, and findings follow from the tables

class Tables(HTMLParser):
    "Rows of cells of the tables of a page, by the name of the table"
    def __init__(self):
        super().__init__()
        self.tables, self.rows, self.cell = {}, None, None
    def handle_starttag(self, tag, attrs):
        name = dict(attrs).get('id') or ''
        if tag == 'table' and name.startswith('T_'): self.rows = self.tables.setdefault(name[2:], [])
        elif tag == 'tr' and self.rows is not None: self.rows.append([])
        elif tag in ('td', 'th') and self.rows: self.cell = ''
    def handle_data(self, data):
        if self.cell is not None: self.cell += data
    def handle_endtag(self, tag):
        if tag in ('td', 'th') and self.cell is not None:
            self.rows[-1].append(self.cell.strip())
            self.cell = None
        elif tag == 'table': self.rows = None


def same_cell(displayed, stored):
    "Whether a displayed cell is a rounded form of the stored one"
    displayed, stored = displayed.replace('\xa0', ' ').strip(), stored.strip()
    if displayed in (stored, stored.lstrip("'")): return True
    if displayed in ('–', 'nan', '<NA>'): return stored == ''
    if stored == '': return False
    try: value = float(stored)
    except ValueError: return ' '.join(displayed.split()) == ' '.join(stored.lstrip("'").split())
    if displayed.startswith('< '): return value < float(displayed[2:])
    digits = len(displayed.partition('.')[2])
    return math.isclose(float(displayed), value, rel_tol=0, abs_tol=.5001*10**-digits)


records = {p.stem: p for p in sorted(standard.glob('*.json')) if not p.stem.endswith('failed')}


@pytest.mark.parametrize('name', records)
def test_tables_of_a_page_are_its_csv_files(name):
    page = Tables()
    page.feed((standard/f'{name}.html').read_text())
    for table in json.loads(records[name].read_text())['tables']:
        header, *rows = list(csv.reader((standard/table['file']).open(newline='')))
        shown_header, *shown = page.tables[table['name']]
        assert shown_header == header and len(shown) == len(rows), table['name']
        for displayed, stored in zip(shown, rows):
            for column, a, b in zip(header, displayed, stored, strict=True):
                assert same_cell(a, b), f"{table['name']}, {column}: the page has {a!r}, the file {b!r}"


def test_a_cell_that_differs_is_seen():
    for displayed, stored in (('84.57', '84.5678'), ('< 0.001', '0.0002'), ('–', ''), ('a', 'a'), ('=1', "'=1")):
        assert same_cell(displayed, stored)
    for displayed, stored in (('84.58', '84.5678'), ('< 0.001', '0.01'), ('–', '1'), ('a', 'b'), ('1', '')):
        assert not same_cell(displayed, stored)


def table(name, file, **fill): return pd.read_csv(standard/name/f'{file}.csv').fillna(fill)


def of_stacking(): return stacking_fields(*(table('beyond_stacking', t, ensemble='') for t in ('rules', 'rivals')))


def of_heterogeneous():
    votes, tests, controls = (table('beyond_heterogeneous', t) for t in ('ensembles', 'differences', 'controls'))
    diversity = table('beyond_heterogeneous', 'diversity')
    votes = votes.assign(**diversity[DIVERSITY]) # rows in the same order
    return diversity_fields(votes) | control_fields(controls) | mixed_fields(votes, tests, controls)


def of_edge():
    stream = pd.DataFrame(dict(video=range(3), members=[4, 4, 3], right=1)) # is not kept; the finding has none of it
    return edge_fields(table('beyond_edge', 'latency'), table('beyond_edge', 'missing'), stream)


def template(name):
    "The text that a report notebook gives to `report.finding`"
    cells = json.loads((root/'reports'/f'{name}.ipynb').read_text())['cells']
    [code] = [source for c in cells if 'report.finding(' in (source := ''.join(c['source']))]
    [call] = [n for n in ast.walk(ast.parse(code)) if getattr(getattr(n, 'func', None), 'attr', '') == 'finding']
    return ' '.join(ast.literal_eval(call.args[0]).split())


FINDINGS = dict(beyond_stacking=(of_stacking, ('accuracy', 'general', 'untrained')),
                beyond_heterogeneous=(of_heterogeneous, ('accuracy', 'general')),
                beyond_edge=(of_edge, ('least', 'whole')))


@pytest.mark.parametrize('name', FINDINGS)
def test_a_finding_follows_from_the_tables_beside_it(name):
    recompute, numbers = FINDINGS[name]
    fields, finding = recompute(), json.loads((standard/f'{name}.json').read_text())['finding']
    for number in numbers: assert f'{fields[number]:.1f}' in re.findall(r'\d+\.\d', finding), f'{number} in: {finding}'
    text = template(name)
    if re.search(r'[.] [A-Z]', finding): assert finding == text.format(**fields) # older findings are one sentence


@pytest.mark.parametrize('name', FINDINGS)
def test_a_finding_is_plain(name):
    "Two to four sentences of at most 25 words, at most four numbers"
    text = template(name).format(**FINDINGS[name][0]())
    sentences = [s for s in re.split(r'(?<=[.!?])\s+(?=[A-Z])', text) if s]
    assert 2 <= len(sentences) <= 4 and max(len(s.split()) for s in sentences) <= 25, sentences
    assert len(re.findall(r'\d[\d,.]*', text)) <= 4, text
