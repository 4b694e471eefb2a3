"""What the reports on nano-JEPA compute: published shares, verdicts, tables from answers, and fields of sentences"""
import numpy as np
import pandas as pd
import pytest

from jepa.nano import TABLE2
from jepa.nano_tables import *
from jepa.papers import published
from jepa.probe import Evaluation, paired_difference

GOOD, BAD, HALF = .9, .1, .5


def answers(share, n=40, classes=4):
    "An evaluation of which this share is right, the same clips first"
    labels = np.arange(n) % classes
    right = np.arange(n) < share*n
    predicted = np.where(right, labels, (labels + 1) % classes)
    return Evaluation(np.eye(classes)[predicted], labels, [str(i) for i in range(classes)])


def curve(share, epochs=3, n=40):
    right = int(share*n)
    counts = dict(train_right=right, train_n=n, val_right=right, val_n=n)
    return pd.DataFrame(dict(epoch=range(1, epochs + 1), train_loss=1., **counts))


def image_probes(pretrained=GOOD, untrained=HALF, pixels=HALF, epochs=10):
    probes = ImageProbes(small=20, epochs=epochs)
    for name, share in (('nano-JEPA ViT-T', pretrained), ('untrained', untrained)):
        for length in (3, epochs):
            probes.evaluations[name, 'CPU', length] = answers(share)
            probes.curves[name, 'CPU', length] = curve(share, length)
    probes.evaluations['pixels', 'CPU', 'logistic'] = answers(pixels)
    return probes


def video_probes(**shares):
    "Models with their controls: pretrained GOOD, BAD or HALF against HALF"
    probes = VideoProbes()
    for model, share in shares.items():
        n, classes = TABLE2[model].val*TABLE2[model].classes, TABLE2[model].classes
        for name in ('pretrained', 'untrained', 'from scratch', 'pretrained, logistic', 'untrained, logistic'):
            probes.evaluations[model, name] = answers(share if name == 'pretrained' else HALF, n, classes)
        probes.curves[model, 'pretrained'] = curve(share, 20)
    return probes


@pytest.mark.parametrize('low, high, verdict', [
    (.1, 2, 'supported'), (0, 2, 'inconclusive'), (-1, 1, 'inconclusive'), (-2, 0, 'inconclusive'),
    (-2, -.1, 'contradicted')])
def test_a_verdict_needs_the_whole_interval_on_one_side(low, high, verdict): assert judge(low, high) == verdict


def test_published_accuracies_are_shares_of_1568_and_176_images():
    images = published_images(published('nano_tab1')).set_index('part')
    assert images.images.to_dict() == dict(train=1568, test=176)
    assert images.batches_of_16.to_dict() == dict(train=98, test=11)
    assert images.example['train'] == '2.678 % = 42/1568'


@pytest.mark.parametrize('n', [13, 48, 176, 997])
def test_the_smallest_number_is_found_again(n):
    percents = [100*k/n for k in range(1, n, max(1, n//12))] + [100/n]
    for digits in (np.round, lambda x, d: np.floor(x*10**d)/10**d): # rounded, or cut
        assert smallest_n([digits(p, 3) for p in percents]) == n


def test_the_published_probe_is_below_chance_on_its_training_images():
    facts = published_facts(published('nano_tab1'), 10)
    assert facts['side'] == 'below' and facts['p'] == '2e-11' and round(facts['share'], 1) == 5.3


def test_loss_facts_name_a_rise_and_a_curve_that_still_moves():
    steps = pd.DataFrame(dict(epoch=range(5), loss=[.5, .9, .8, .6, .2]))
    facts = loss_facts(steps)
    assert facts['falls'] and not facts['flat'] and facts['shape'] == 'still moves at the end'
    assert facts['rises'] and facts['rise_epoch'] == 2
    assert facts['rise'] == pytest.approx(.4) and facts['change'] == pytest.approx(-.3)
    assert not loss_facts(steps.assign(loss=steps.loss[::-1].to_numpy()))['falls']
    assert loss_facts(steps[:1])['change'] == 0


def test_neighbour_facts_compare_with_chance_and_with_the_untrained_network():
    facts = neighbour_facts(dict(trained=answers(GOOD), untrained=answers(HALF)), 25.)
    assert facts['above_chance'] == facts['gain_verdict'] == 'supported' and facts['gain'] == 40
    facts = neighbour_facts(dict(trained=answers(BAD), untrained=answers(HALF)), 50.)
    assert facts['above_chance'] == facts['gain_verdict'] == 'contradicted'


@pytest.mark.parametrize('pretrained, verdict', [(GOOD, 'supported'), (BAD, 'contradicted'), (HALF, 'inconclusive')])
def test_sentences_on_table_1_say_what_its_differences_say(pretrained, verdict):
    probes = image_probes(pretrained)
    facts, table = table1_facts(probes), table1_differences(probes)
    assert facts['late_verdict'] == facts['pixels_verdict'] == verdict and 'large_verdict' not in facts
    assert facts['late'] == 100*pretrained and facts['late_control'] == 100*HALF
    assert table.points[1] == facts['late_points'] and table.n.tolist() == [20, 40, 40]
    assert table.compared.tolist() == ['pretrained - untrained']*2 + ['pretrained - pixels, logistic regression']


def test_table_1_has_a_row_per_published_one_and_ours_where_there_is_one():
    paper, probes = published('nano_tab1'), image_probes()
    table = table1(paper, probes, 10)
    ours = table.query("model == 'nano-JEPA ViT-T' and device == 'CPU'")['ours %']
    assert len(table) == len(paper) and ours.tolist() == [90]*3
    assert table['ours %'].notna().sum() == 3 and (table1_training(paper, probes, 10)['paper n'] == 1568).all()
    assert set(table1_controls(probes).test) == {'the first 20 images', 'all images'}


def test_the_long_training_has_converged_where_no_curve_gains():
    probes = image_probes()
    assert late_facts(probes)['converged'] and late_facts(probes)['tail'] == 2
    probes.curves['untrained', 'CPU', 10] = curve(HALF, 10).assign(val_right=range(10, 20))
    assert not late_facts(probes)['converged'] and late_gains(probes)['untrained on the CPU'] == pytest.approx(5)


def test_table_1_without_a_control_is_noticed():
    probes = image_probes()
    assert has_controls(probes)
    del probes.evaluations['untrained', 'CPU', 3]
    assert not has_controls(probes)


def test_sentences_on_table_2_name_the_models_of_each_verdict():
    probes, paper = video_probes(A=GOOD, B=HALF, C=BAD), published('nano_tab2')
    facts = table2_facts(probes)
    assert (facts['supported'], facts['inconclusive'], facts['contradicted']) == ('A', 'B', 'C')
    assert facts['logistic_supported'] == 'none' and facts['pretrained_above'] == 'A, B'
    assert facts['pretrained'] == '90.0, 50.0, 10.0'
    assert clips_as_published(paper, probes) == dict(ok=True, detail='A: 200, B: 48, C: 400')
    table = table2(paper, probes).set_index('model')
    assert table['ours %'].dropna().to_dict() == dict(A=90, B=50, C=10) and table.train.to_dict()['C'] == 800
    differences = table2_differences(probes)
    assert len(differences) == 9 and differences.compared.tolist()[-1].endswith('logistic')


def test_table_2_takes_epochs_and_best_epoch_from_the_curve():
    row = table2_controls(video_probes(A=GOOD)).iloc[0]
    assert (row.epochs, row.training, row.best_epoch) == (20, 90, 90)


def test_table_2_without_a_control_is_noticed():
    probes = video_probes(A=GOOD)
    assert table2_has_controls(probes, 'A') and not table2_has_controls(probes)


def test_a_mean_has_its_interval():
    values = np.random.default_rng(0).normal(3, 1, 60)
    low, high = mean_interval(values)
    assert low < values.mean() < high and high - low < 1


def feature_tables(auc=.8, iou=-.2):
    "Numbers and differences of a report whose pretrained AUC is above chance, and whose IoU is worse"
    def row(name, how):
        return dict(features=name, tokens=how, auc=auc, auc_low=auc - .05, auc_high=auc + .05, iou=.2, clips=10)
    numbers = pd.DataFrame([row(name, how) for name in ('pretrained', 'untrained', 'pixels') for how in TREATMENTS])
    differences = pd.DataFrame([
        dict(measure=measure, tokens=how, compared=f'pretrained - {other}',
             difference=d, low=d - .1, high=d + .1, clips=10)
        for how in TREATMENTS for other in ('untrained', 'pixels') for measure, d in (('AUC', 0.), ('IoU', iou))])
    return numbers, differences


def test_sentences_on_figure_4_take_their_verdicts_from_the_differences():
    facts = fig4_facts(*feature_tables())
    assert facts['auc_gain'] == 'inconclusive' and facts['iou_gain'] == 'contradicted'
    assert facts['auc_above_chance'] == 'supported' and facts['pretrained_auc'] == .8 and facts['clips'] == 10
    assert facts['worse_than_pixels'] == ', '.join(TREATMENTS)
    facts = fig4_facts(*feature_tables(auc=.3, iou=.2))
    assert facts['auc_above_chance'] == 'contradicted' and facts['iou_gain'] == 'supported'
    assert facts['worse_than_pixels'] == 'none'


def test_held_out_scenes_are_of_the_validation_split():
    from jepa.actions import ActionsConfig, scene_of
    scenes = held_out_scenes(4, 36)
    assert held_out(scenes) and len({s.class_name for s in scenes}) == 4
    assert hash_of_scenes(scenes) == hash_of_scenes(held_out_scenes(4, 36))
    assert not held_out([scene_of('grow', 'train', 0, ActionsConfig(size=36))])


def test_pairs_of_table_1_are_the_same_images():
    for a, b in table1_gains(image_probes()).values(): paired_difference(a, b) # raises where they are not
