"""Tables of the reports on ensembles: closed forms, orders of rows, and what sentences are made of"""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from jepa._edge import pack
from jepa.core import generator, seeded
from jepa.encoder import Encoder, encoder_config
from jepa.ensemble import RULES, Ensemble, ImageConfig, ImageEncoder, plot_calibration, ties, vote_counts
from jepa.ensemble_tables import *
from jepa.pico import pico_config, pico_heads
from jepa.probe import Evaluation, Features, ProbeConfig, paired_difference
from jepa.saved import load_values, save_values

CLASSES = list('abcd')
PROBE = ProbeConfig(kind='linear', epochs=8, lr=1e-2)


def toy(n, split, dim=16):
    centres, labels = torch.randn(4, dim, generator=generator(0, 'centres')), torch.arange(n) % 4
    x = centres[labels][:, None, None] + 6*torch.randn(n, 1, 5, dim, generator=generator(0, split))
    return Features(x.half().numpy(), labels.numpy(), CLASSES)


def answers(correct): return Evaluation(np.eye(2)[1 - np.asarray(correct)], np.zeros(len(correct), int), ['a', 'b'])


@pytest.fixture(scope='module')
def x(): return {split: toy(n, split) for split, n in (('train', 80), ('val', 60), ('test', 100))}


@pytest.fixture(scope='module')
def study(x):
    "General, ensembles, members and votes of `beyond_stacking`"
    general, ensembles = stacking_ensembles(x, PROBE, num_heads=4)
    members, votes = member_evaluations(ensembles, x['test']), vote_evaluations(ensembles, x['test'])
    return dict(single=general.evaluate(x['test']), ensembles=ensembles, members=members, votes=votes,
                chosen=chosen_members(ensembles, x['val']), rivals=stronger_generals(x, PROBE))


def test_against_is_the_paired_difference_and_its_verdict():
    a, b = answers([1]*60 + [0]*40), answers([1]*50 + [0]*50)
    assert against(a, b) == dict(**paired_difference(a, b), verdict='supported')
    assert against(b, a)['verdict'] == 'contradicted' and against(a, a)['verdict'] == 'inconclusive'


def test_of_equal_models_the_first_is_the_best():
    assert best_by_right(dict(a=answers([0, 1]), b=answers([1, 1]), c=answers([1, 1]))) == 'b'


def test_heads_have_the_learning_rates_of_the_report():
    kinds = head_kinds(PROBE.replace(lr=3e-3, seed=5))
    assert [(c.kind, c.lr, c.seed) for c in kinds.values()] == [
        ('linear', 3e-3, 5), ('linear', .7*3e-3, 6), ('mlp', 1.3*3e-3, 7), ('attentive', 3e-3/3, 8)]
    assert kinds['attentive'].epochs == 4 and 'linear, lr x 0.3' in head_kinds(PROBE, .3)


def test_rules_stand_beside_general_and_the_follow_up(study):
    untrained = {key: answers([1, 0]) for key in study['votes']}
    table = rules_table(study['votes'], untrained, study['single'], answers([1, 1, 1, 0]))
    assert table.model.tolist() == ['General', *2*['hard vote', 'soft vote', 'weighted vote', 'stacking']]
    assert table.untrained.tolist() == [75.] + 8*[50.] and np.isnan(table.points[0])
    soft = table[(table.ensemble == KINDS_ENSEMBLE) & (table.model == 'soft vote')].iloc[0]
    d = paired_difference(study['votes'][KINDS_ENSEMBLE, 'soft'], study['single'])
    assert (soft.points, soft.low_points, soft.high_points) == (d['points'], d['low'], d['high'])
    assert table.set_index('model').paper['stacking'].dropna().tolist() == [11.9]
    assert table[table.ensemble == PARTS_ENSEMBLE].paper.isna().all() and table.columns[-1] == 'paper_n'


def test_the_bound_of_votes_is_any_member_right(study):
    table = single_models({'General': study['single']}, study['members'], study['chosen'])
    for name, es in study['members'].items():
        row = table[(table.ensemble == name) & table.model.str.startswith('any member right')].iloc[0]
        assert row.right == np.any([e.correct for e in es.values()], axis=0).sum() and row.chance == 25
        best = f"best member by validation ({study['chosen'][name]})"
        assert table[table.model == best].right.iloc[0] == es[study['chosen'][name]].right


def test_every_combination_meets_every_rival(study):
    table = rivals_table(study['votes'], study['members'], study['rivals'])
    assert len(table) == 8*3 and set(table.model) == set(RULE_NAMES.values())
    row = table.iloc[0]
    reference = study['rivals']['General, 4 x as long']
    assert row.points == paired_difference(study['votes'][PARTS_ENSEMBLE, 'hard'], reference)['points']
    assert row.other == 100*reference.accuracy and row.against == 'General, 4 x as long'


def test_quality_has_a_row_per_measure(study, x):
    table = rule_quality(study['members'], study['votes'])
    measures = [f'{measure}, {rule}' for measure in ('Brier', 'ECE') for rule in RULES]
    assert table.index.tolist() == ['disagreement', 'q', 'ties', *measures]
    for name, e in study['ensembles'].items():
        counts = vote_counts(e.table(x['test']), 4)
        assert table.loc['ties', name] == pytest.approx(100*ties(counts).mean())


def test_sentences_of_stacking_say_what_the_tables_say(study):
    rules = rules_table(study['votes'], study['votes'], study['single'], study['single'])
    rivalry = rivals_table(study['votes'], study['members'], study['rivals'])
    fields = stacking_fields(rules, rivalry)
    best = rules[rules.ensemble != ''].nlargest(1, 'points').iloc[0]
    assert (fields['model'], fields['accuracy'], fields['verdict']) == (best.model, best.accuracy, best.verdict)
    counts = rules.verdict.value_counts()
    for word in ('supported', 'inconclusive', 'contradicted'): assert fields[word] == counts.get(word, 0)
    assert fields['rivals'].count(' points against ') == 3


def test_a_rule_refuses_its_own_clips_and_sets_are_disjoint(study, x):
    assert refuses_its_own_clips(study['ensembles'][PARTS_ENSEMBLE], x['val'])
    assert not refuses_its_own_clips(study['ensembles'][PARTS_ENSEMBLE], x['test'])
    def videos(*paths): return type('Videos', (), dict(table=pd.DataFrame(dict(path=paths))))
    assert disjoint(dict(train=videos('a', 'b'), val=videos('c'), test=videos('d')))
    assert not disjoint(dict(train=videos('a', 'b'), val=videos('c'), test=videos('b')))


VARIANTS = {'narrow': [24, 1, 8], 'shallow': [32, 1, 8], 'large patches': [24, 2, 16]}


def test_variants_change_what_they_name_and_nothing_else():
    config = pico_config(pixels=32, patch_size=8, num_frames=4)
    configs = encoder_variants(config, VARIANTS)
    e = configs['large patches']
    assert (e.encoder.embed_dim, e.encoder.depth, e.encoder.patch_size, e.predictor.embed_dim) == (24, 2, 16, 24)
    assert e.replace(encoder=config.encoder, predictor=config.predictor) == config == configs[PAPERS]


def differing(x):
    "Ensembles on four encoders, the features of each with noise of its own"
    names = (PAPERS, *VARIANTS, 'resnet')
    by = {split: {name: toy(len(f), f'{split} {name}') for name in names} for split, f in x.items()}
    plans = ensemble_plans(PROBE, VARIANTS, 'resnet')
    return by, differing_ensembles(plans, by['train'], dict.fromkeys(names, 4), PROBE)


@pytest.fixture(scope='module')
def mixed(x):
    by, (general, ensembles) = differing(x)
    single, members = general.evaluate(by['test'][PAPERS]), member_evaluations(ensembles, by['test'])
    votes, chosen = vote_evaluations(ensembles, by['test'], ('hard', 'soft')), chosen_members(ensembles, by['val'])
    encoder_of = {name: e.encoder_of for name, e in ensembles.items()}
    table = votes_table(votes, members, encoder_of, chosen)
    tests = single_differences(votes, members, chosen, {'General': single, 'General, 4 x as long': single})
    return dict(by=by, single=single, ensembles=ensembles, members=members, votes=votes, chosen=chosen, table=table,
                tests=tests, encoder_of=encoder_of)


def test_seven_ensembles_of_four_share_equal_members(mixed):
    ensembles = mixed['ensembles']
    assert len(ensembles) == 7 and {len(e.members) for e in ensembles.values()} == {4}
    probes = [id(p) for name, e in ensembles.items() if name != 'four parts' for p in e.members.values()]
    plans = ensemble_plans(PROBE, VARIANTS, 'resnet')
    assert len(probes) == 24 and len(set(probes)) == len(set(sum(plans.values(), []))) == 14
    assert encoders_read(mixed['encoder_of']) == {PAPERS, *VARIANTS, 'resnet'}


def test_votes_stay_within_their_bounds(mixed):
    hard = mixed['table'][mixed['table'].rule == 'hard']
    assert within_bounds(mixed['votes'], mixed['members']) and (hard.accuracy <= hard.any_right + .01).all()
    assert mixed['table'][mixed['table'].rule == 'soft'].ties.isna().all() and not hard.ties.isna().any()


def test_differences_and_controls_are_paired(mixed):
    assert len(mixed['tests']) == 14*4 and 'other' not in mixed['tests']
    soft = soft_votes(mixed['single'], mixed['votes'])
    controls = controls_table(soft, dict(reversed(soft.items()))) # any order: by name
    assert list(soft)[0] == 'General' and (controls.points == 0).all() and len(controls) == 8
    assert control_fields(controls) == dict(models=8, worse=0, surely_worse=0, surely_better=0)


def test_sentences_on_members_that_differ_say_what_the_tables_say(mixed):
    table, soft = mixed['table'], soft_votes(mixed['single'], mixed['votes'])
    controls = controls_table(soft, soft)
    fields = diversity_fields(table) | mixed_fields(table, mixed['tests'], controls)
    by = table[table.rule == 'soft'].set_index('ensemble').disagreement
    assert fields['equal'] == by[list(EQUAL)].mean() and fields['mixed'] == by.drop(list(EQUAL)).mean()
    assert (fields['more'] == 'more often') == (fields['mixed'] > fields['equal'])
    assert fields['accuracy'] == table[~table.ensemble.isin(EQUAL)].accuracy.max() and fields['votes'] == 10
    assert fields['untrained'] == controls.set_index('model').pretrained[f"{fields['ensemble']}, soft"]


def test_encoders_say_where_their_weights_come_from():
    video = Encoder(encoder_config('toy', num_frames=4, height=32, width=32, patch_size=8))
    image = ImageEncoder(ImageConfig('test_resnet', num_frames=4, height=32, width=32, pixels=32))
    table = encoders_table(dict(video=video, image=image), dict(video=toy(4, 'a'), image=toy(4, 'b')))
    assert table.weights.tolist() == ['pretrained here', 'random weights (seed 0)'] and np.isnan(table.patch[1])
    assert table.parameters[0] == sum(p.numel() for p in video.parameters())


@pytest.fixture(scope='module')
def one(x):
    with seeded(0, 'weights'):
        encoder = Encoder(encoder_config('toy', num_frames=4, height=32, width=32, patch_size=8)).eval()
    clips = torch.randn(12, 3, 4, 32, 32, generator=generator(0, 'clips')).clamp(-1.5, 1.5)
    with torch.no_grad(): tokens = encoder(clips)[:, None].half().numpy()
    y = Features(tokens, np.arange(12) % 4, CLASSES)
    _, heads = pico_heads(y, PROBE.replace(epochs=1), sizes=[3, 3, 3, 3])
    return OneProcess(Ensemble(heads.members, encoders={'encoder': encoder})), clips, y


def test_one_process_answers_as_the_ensemble(one):
    one, clips, y = one
    frames = pixels_of(clips[0])
    assert frames.shape == (4, 32, 32, 3) and frames.dtype == np.uint8
    assert np.abs(one(frames) - one.ensemble.table(y)[0]).max() < .02 # pixels of 8 bits
    assert one.encode(frames).dtype == np.float16


def test_measuring_changes_no_answer(one):
    one, clips, y = one
    frames = {i: pixels_of(clips[i]) for i in (3, 1)}
    seconds, table = measure(one, one.ensemble, frames)
    assert (seconds > 0).all() and np.array_equal(table, np.stack([one(frames[3]), one(frames[1])]))
    same = equal_table({'one process': (seconds, table), 'other': (seconds, table + .25)}, one.ensemble)
    assert same.largest_difference.tolist() == [pytest.approx(.25)] and same.votes_that_differ.tolist() == [0]


def test_messages_have_a_header_of_136_bytes():
    grid = encoder_config('toy', num_frames=4, height=32, width=32, patch_size=8).grid
    table = message_sizes(np.zeros((4, 32, 32, 3), np.uint8), grid, 48, 4, [10, 30, 20]).set_index('message').bytes
    assert table.tolist() == [136 + 16, 136 + 96, 136 + 2*16*48, 136 + 2*32*48, 136 + 4*32*32*3, 20]


class Members:
    "A fleet without processes"
    def __init__(self, one): self.one, self.alive = one, list(one.heads)
    def kill(self, name): self.alive.remove(name)
    def ask(self, tokens):
        x = torch.from_numpy(tokens.astype(np.float32))[None]
        return {name: self.one.heads[name](x).softmax(-1)[0].detach().numpy() for name in self.alive}


def test_a_stream_goes_on_without_a_member(one):
    one, clips, y = one
    frames = {i: pixels_of(clips[i]) for i in range(9)}
    stream = stream_with_a_kill(Members(one), one, frames, y.labels, 'Partial 3')
    assert stream.members.tolist() == [4]*6 + [3]*3
    whole = [int(one.ensemble.combine(one(f)[None])[0].argmax() == y.labels[i]) for i, f in frames.items()]
    assert stream.right[:6].tolist() == whole[:6]


def test_every_subset_votes(study, x):
    ensemble = study['ensembles'][PARTS_ENSEMBLE]
    subsets = subset_evaluations(ensemble, x['test'])
    table = missing_table(subsets)
    assert table.members.tolist() == [4] + [3]*4 + [2]*6 + [1]*4 and table.missing[0] == 'none'
    assert table.right[0] == ensemble.evaluate(x['test']).right and table.points[0] == 0
    alone = ensemble.members['Partial 2'].evaluate(x['test'])
    assert table[table.missing == 'Partial 1, Partial 3, Partial 4'].right.item() == alone.right


def test_sentences_on_devices_say_what_the_tables_say(one, study, x):
    one, clips, y = one
    frames = pixels_of(clips[0])
    names = ('one process', 'features to four heads', 'pixels to four members, torch')
    seconds = {way: np.array([.001, .002, .003])*(i + 1) for i, way in enumerate(names)}
    sent = dict(features=len(pack(0, one.encode(frames))), pixels=len(pack(0, frames)), back=152)
    latency = latency_table(seconds, sent)
    assert latency.encodings.tolist() == [1, 1, 4] and latency.median_ms.tolist() == pytest.approx([2, 4, 6])
    assert latency.bytes_to_each.tolist() == [0, sent['features'], sent['pixels']]
    missing = missing_table(subset_evaluations(study['ensembles'][PARTS_ENSEMBLE], x['test']))
    stream = pd.DataFrame(dict(video=range(6), members=[4]*4 + [3]*2, right=1))
    fields = edge_fields(latency, missing, stream)
    assert fields['went_on'] and fields['after'] == 2 and fields['smaller'] == 14
    assert '{pixels_bytes:,}'.format(**fields) == f'{len(pack(0, frames)):,}'
    assert fields['least'] == missing.accuracy[missing.members == 3].min()
    assert not edge_fields(latency, missing, stream.assign(members=4))['went_on']


def test_a_device_holds_a_file_of_the_size_that_the_table_says(one, tmp_path):
    one, *_ = one
    files = member_files(one.ensemble, tmp_path)
    table = device_table(files, one, {'torch': 300.}).set_index('what').MiB
    size = (tmp_path/'Partial 1.pt').stat().st_size/2**20
    assert table['file of a member with its encoder, torch'] == pytest.approx(size, rel=.01)
    assert table['of it the head'] < size and table["memory of a member's process, torch"] == 300


def texts(fig): return [t for t in fig.findobj(plt.Text) if '$' in t.get_text()]


def test_a_dollar_in_a_name_is_no_formula(mixed, study, tmp_path):
    name = '5$ or $x^'
    table = mixed['table'].replace({'ensemble': {'four parts': name}})
    rules = rules_table(study['votes'], study['votes'], study['single'], study['single'])
    rules = rules.replace({'ensemble': {PARTS_ENSEMBLE: name}})
    fig, ax = plt.subplots()
    draw_stream(ax, pd.DataFrame(dict(video=range(3), members=[4, 4, 3], right=1)), name)
    calibration = plot_calibration({name: mixed['single']})
    figures = (draw_differing(table, mixed['single']), draw_rules(rules), fig, calibration)
    for i, figure in enumerate(figures):
        assert texts(figure) and not any(t.get_parse_math() for t in texts(figure))
        figure.savefig(tmp_path/f'{i}.png') # an unfinished formula would end here
        plt.close(figure)


def test_figures_of_edge_are_drawn(one, study, x):
    one, clips, y = one
    grid, frames = one.encoder.config.grid, pixels_of(clips[0])
    subsets = subset_evaluations(study['ensembles'][PARTS_ENSEMBLE], x['test'])
    stream = pd.DataFrame(dict(video=range(3), members=[4, 4, 3], right=[1, 0, 1]))
    missing = draw_missing_members(missing_table(subsets), next(iter(subsets.values())), study['single'], stream, 'b')
    sizes = draw_sizes(message_sizes(frames, grid, 48, 4, [10]))
    latency = draw_latency({'one process': np.array([.1, .2])})
    assert [len(fig.axes) for fig in (missing, sizes, latency)] == [2, 1, 1]
    for fig in (missing, sizes, latency): plt.close(fig)


def test_a_slim_evaluation_answers_alike_in_a_tenth_of_the_room(study, tmp_path):
    for e in (study['single'], *study['votes'].values()):
        small = slim(e)
        assert small.row() == e.row() and np.array_equal(small.predicted, e.predicted)
        assert against(small, slim(study['single'])) == against(e, study['single'])
        assert small.probabilities.nbytes + small.labels.nbytes < .4*(e.probabilities.nbytes + e.labels.nbytes)


def test_kept_votes_give_the_same_tables(study, tmp_path):
    "A report that is drawn again from its file"
    values = dict(single=slim(study['single']), votes=study['votes'], members=slim(study['members']))
    save_values(tmp_path/'results.npz', values)
    kept = load_values(tmp_path/'results.npz')
    for of in (lambda v: rule_quality(v['members'], v['votes']),
               lambda v: rules_table(v['votes'], v['votes'], v['single'], v['single']),
               lambda v: rivals_table(v['votes'], v['members'], {})):
        pd.testing.assert_frame_equal(of(values), of(kept), check_dtype=False)


def test_a_trial_is_the_reports_pretraining_and_probe():
    trial = VoteTrial(pixels=32, num_frames=4, seed=3, probe_lr=.01, form='published')
    assert trial.pico == pico_config('published', 4, 4, 32, 8, 4, 10, seed=3, monitor_clips=64)
    assert (trial.probe_config.lr, trial.probe_config.seed, trial.probe_config.epochs) == (.01, 3, 40)
    assert trial.source == 'Actions, embedded, easy' and VoteTrial(dataset='k4.csv').source == 'k4.csv'
    with pytest.raises(KeyError, match="did you mean 'shrink'"): VoteTrial.from_dict(dict(shrinc=2))
