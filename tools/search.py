"""`python -m tools.search`: the runs behind the recipe, one change each of where it started, into a table.

Runs that are there already are not made again."""
import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
import pandas as pd
from jepa.core import load_settings, write_beside
from jepa.data import Augment
from jepa.masks import Future, MultiBlock, RandomTokens, RandomTube
from jepa.objective import Objective
from jepa.predictor import PredictorConfig
from jepa.recipe import (PROBES, VARIANTS, few_labels, frozen_features, motion_videos, position_share, recipe_config,
                         step_seconds)
from jepa.train import pretrain, run_folder

START = VARIANTS['predictor half as wide'] # this search found the width
TEACHER = dict(target_layers=4)
# question -> answers -> changes of the start
SEARCH = {
    'the start and its parts': {'the start': {}, **{n: c for n, c in VARIANTS.items() if c not in ({}, START)}},
    'objective': {
        'VICReg, weight 0.05': dict(objective=Objective('vicreg', weight=.05)),
        'VICReg, weight 0.2': dict(objective=Objective('vicreg', weight=.2)),
        'SIGReg, weight 0.01': dict(objective=Objective('sigreg', weight=.01)),
        'SIGReg, weight 0.2': dict(objective=Objective('sigreg', weight=.2)),
        'targets centred at every position': dict(objective=Objective(position='centred', **TEACHER)),
        'targets standardised at every position': dict(objective=Objective(position='standardised', **TEACHER)),
        'loss on visible tokens, too': dict(objective=Objective(context=.5, **TEACHER)),
        "mean of the teacher's last 2 layers": dict(objective=Objective(target_layers=2))},
    'mask': {
        'context 1 tubelet': dict(masks=(Future(tubelets=(1, 1)),)),
        'context 1 to 3 tubelets': dict(masks=(Future(tubelets=(1, 3)),)),
        'context 3 tubelets, predict the next': dict(masks=(Future(tubelets=(3, 3)),)),
        'tubes, 75 % hidden': dict(masks=(RandomTube(ratio=.75),)),
        'random tokens, 75 % hidden': dict(masks=(RandomTokens(ratio=.75),)),
        'random tokens, 50 % hidden': dict(masks=(RandomTokens(ratio=.5),)),
        'future and eight blocks': dict(masks=(Future(tubelets=(2, 2)), MultiBlock()))},
    'optimisation': {
        'learning rate 5e-4': dict(lr=5e-4), 'learning rate 3e-3': dict(lr=3e-3),
        'batch 8': dict(batch_size=8), 'batch 32': dict(batch_size=32),
        'batch 64, learning rate 3e-3': dict(batch_size=64, lr=3e-3),
        'no warm-up': dict(warmup_epochs=0.), 'weight decay 0.2': dict(weight_decay=.2, final_weight_decay=.2)},
    'teacher': {
        'EMA 0.9 to 1': dict(ema=(.9, 1.)), 'EMA 0.998 to 1': dict(ema=(.998, 1.)),
        'EMA 0.99 throughout': dict(ema=(.99, .99))},
    'predictor': {
        'depth 1': dict(predictor=PredictorConfig(embed_dim=64, depth=1)),
        'depth 4': dict(predictor=PredictorConfig(embed_dim=64, depth=4)),
        'width 32': dict(predictor=PredictorConfig(embed_dim=32, depth=2)),
        'width 128: the recipe': dict(predictor=PredictorConfig(embed_dim=128, depth=2)),
        'width 256': dict(predictor=PredictorConfig(embed_dim=256, depth=2)),
        'width 128, and loss on visible tokens': dict(predictor=PredictorConfig(embed_dim=128, depth=2),
                                                      objective=Objective(context=.5, **TEACHER))},
    'clips': {
        'crops of 30 to 100 %': dict(augment=Augment(train=True, scale=(.3, 1.), flip=False)),
        'mirrored, too': dict(augment=Augment(train=True, scale=((224/256)**2,)*2, ratio=(1., 1.), flip=True)),
        'every frame': dict(stride=1), '16 frames': dict(stride=1, num_frames=16)}}
SHOTS = (25, 100)


def look(run, train, val, probes, encoder):
    "Accuracies and the share of position; features are not kept"
    with tempfile.TemporaryDirectory() as folder:
        answers = few_labels(encoder, train, val, run.config, SHOTS, probes, folder=folder)
        row = {f'{p}_{n}': round(100*e.accuracy, 2) for (p, n), e in answers.items()}
        tokens = frozen_features(encoder, val, run.config, folder).tokens[:, 0]
        return row | dict(position_share=round(position_share(tokens), 4))


def one(question, name, changes, epochs, seed, videos, looks):
    "Rows of one run: after some epochs the linear probe, at the end all probes and meters"
    train, val = videos.split('train'), videos.split('val')
    config, rows = recipe_config(epochs, seed, **START | changes), []
    def at(run, epoch):
        if epoch not in looks and epoch != epochs: return
        probes = PROBES if epoch == epochs else dict(linear=PROBES['linear'])
        encoder = run.model().target_encoder if epoch else run.untrained().encoder.eval()
        trained = run.seconds.sum() if epoch else 0.
        meters = run.epochs.iloc[-1].round(4).to_dict() if epoch == epochs else {}
        about = dict(question=question, name=name, seed=seed, epochs=epochs, epoch=epoch)
        size = dict(steps=epoch*(len(train)//config.batch_size), seconds=round(trained, 1), n=len(val))
        meters.pop('epoch', None)
        rows.append(about | size | look(run, train, val, probes, encoder) | meters)
    own = load_settings().runs/f'search-{run_folder(config, train).name}' # removed below; runs of reports stay
    run = pretrain(config, train, own, on_epoch=at, progress=False)
    at(run, 0)
    shutil.rmtree(run.folder)
    return sorted(rows, key=lambda row: row['epoch'])


def search(epochs=6, seeds=1, out='data/recipe_search.csv', only='', say=print):
    "Make what is missing in the table `out`"
    out, videos = Path(out), motion_videos(progress=False)
    names = {name for answers in SEARCH.values() for name in answers}
    work = [(s, q, name, c) for s in range(seeds) for q, answers in SEARCH.items() for name, c in answers.items()]
    for seed, question, name, changes in work:
        table = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=['name', 'seed', 'epochs'])
        there = ((table.name == name) & (table.seed == seed) & (table.epochs == epochs)).any()
        if there or only not in name or (only in names and name != only): continue
        start = time.monotonic()
        rows = pd.DataFrame(one(question, name, changes, epochs, seed, videos, {0, 1, 2, 4}))
        table = pd.concat([table, rows]) if out.exists() else rows
        with write_beside(out) as temporary: table.to_csv(temporary, index=False)
        last = json.dumps(rows.iloc[-1].to_dict())
        say(f'{name}, seed {seed}: {last} ({time.monotonic() - start:.0f} s)', flush=True)


def clock(out='data/recipe_search.csv', say=print):
    "Put into the table what a step of every variant takes on one core, measured in turn"
    table, changes = pd.read_csv(out), {name: c for answers in SEARCH.values() for name, c in answers.items()}
    configs = {name: recipe_config(1, **START | changes[name]) for name in dict.fromkeys(table.name)}
    table['step_seconds'] = table.name.map(step_seconds(configs)['median']).round(4)
    with write_beside(out) as temporary: table.to_csv(temporary, index=False)
    say(table.drop_duplicates('name')[['name', 'step_seconds']].to_string(index=False))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--epochs', type=int, default=6)
    parser.add_argument('--seeds', type=int, default=1)
    parser.add_argument('--only', default='', help='the variant of this name, or all whose names hold this text')
    parser.add_argument('--out', default='data/recipe_search.csv')
    parser.add_argument('--clock', action='store_true', help='make no run; measure a step of each in the table')
    options = vars(parser.parse_args())
    if options.pop('clock'): clock(options['out'])
    else: search(**options)
