"""The command line: help for a newcomer, one clear line for a mistake, exit statuses that scripts can trust."""
import json, os, subprocess, sys
from pathlib import Path
import nbformat, pandas as pd, pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner
from jepa.cli import app, option_changes, parameters, with_changes

cli = CliRunner()


def one_line(result):
    "The message of a mistake: one line, exit status 2"
    [line] = result.stderr.strip().splitlines()
    assert result.exit_code == 2 and line.startswith('jepa: '), result.output
    return line


def test_help_says_what_to_do_next():
    shown = cli.invoke(app, ['--help'])
    assert shown.exit_code == 0
    for words in ('jepa doctor', 'make reports', 'make lab'): assert words in shown.stdout


def test_every_command_has_help():
    for command in ('doctor', 'reports', 'reports run', 'reports list', 'reports index', 'actions make', 'pretrain',
                    'probe'):
        shown = cli.invoke(app, [*command.split(), '--help'])
        assert shown.exit_code == 0 and 'Usage' in shown.stdout


def test_help_imports_nothing_heavy():
    code = '''
import sys, jepa.cli
print(sorted({'torch', 'pandas', 'matplotlib', 'papermill', 'IPython'} & set(sys.modules)))'''
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'


def test_doctor():
    shown = cli.invoke(app, ['doctor'])
    assert shown.exit_code == 0
    for word in ('torch', 'precision', 'decoders', 'free disk', 'memory'): assert word in shown.stdout


@pytest.mark.parametrize('words, hint', [
    ('reports run nano_fig1_pretrainin', 'nano_fig1_pretraining'), ('reports list --tier standart', 'standard'),
    ('reports run --set epochs', 'name=value'), ('actions make --set trian=3', 'train')])
def test_a_mistake_is_one_line_and_status_2(words, hint):
    assert hint in one_line(cli.invoke(app, words.split()))


def test_bad_settings_are_one_line(tmp_path, monkeypatch):
    (tmp_path/'settings.ini').write_text('[compute]\nthread = 2\n')
    monkeypatch.setenv('JEPA_SETTINGS', str(tmp_path/'settings.ini'))
    shown = cli.invoke(app, ['doctor'])
    assert shown.exit_code == 2 and "'threads'" in shown.stderr and 'Traceback' not in shown.stderr


def test_parameters():
    pairs = ['a=1', 'b=1e-3', 'c=text', 'd=[1, 2]', 'e=a=b', 'f=']
    assert parameters(pairs) == dict(a=1, b=1e-3, c='text', d=[1, 2], e='a=b', f='')
    assert parameters(['a.b=1']) == {'a.b': 1}
    for pair in ('a.=1', '.a=1', '=1', 'a b=1'):
        with pytest.raises(ValueError, match='name=value'): parameters([pair])


def test_short_options_are_train_config():
    from jepa.train import TrainConfig, train_config
    given = dict(num_frames=8, stride=2, pixels=64, patch_size=8, flip=False, epochs=3, batch_size=4, seed=5)
    assert with_changes(TrainConfig(), option_changes('micro', **given)) == train_config('micro', **given)
    assert with_changes(TrainConfig(), option_changes()) == TrainConfig() == train_config()


def test_a_failed_report_is_status_1(tmp_path, monkeypatch):
    entry = ['[a]', 'notebook = "a.ipynb"', 'title = "A"', 'paper = "P"', 'makes = []', 'tiers.quick = {minutes = 1}']
    (tmp_path/'reports.toml').write_text('\n'.join(entry))
    first = new_code_cell("tier, out = '', ''", metadata={'tags': ['parameters']})
    nbformat.write(new_notebook(cells=[first, new_code_cell('1/0')]), tmp_path/'a.ipynb')
    monkeypatch.chdir(tmp_path)
    shown = cli.invoke(app, ['reports', 'run', '--tier', 'quick', '--out', str(tmp_path/'out')])
    assert shown.exit_code == 1 and '1 failed' in shown.stdout
    assert (tmp_path/'out'/'index.html').as_uri() in shown.stdout
    assert 'ZeroDivisionError' in shown.stderr


SMALL = ('--size toy --num-frames 4 --stride 2 --pixels 32 --patch-size 8 --epochs 1 --batch-size 4 '
         '--set predictor.embed_dim=24 --set predictor.depth=1').split()


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Settings, videos and a finished run"
    from jepa.actions import ActionsConfig, make_actions
    folder = tmp_path_factory.mktemp('cli')
    (folder/'settings.ini').write_text('[paths]\nruns = runs\ncache = cache\n[compute]\nthreads = 1\nworkers = 0\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JEPA_SETTINGS', str(folder/'settings.ini'))
        config = ActionsConfig(classes=('move_right', 'grow'), train=4, val=3, size=48, num_frames=16)
        videos = make_actions(config, folder, workers=1, progress=False)
        made = cli.invoke(app, ['pretrain', str(videos), *SMALL])
        assert made.exit_code == 0, made.output
        [run] = (folder/'runs').glob('jepa-*')
        yield folder, videos, run


def test_pretrain_says_where_and_the_same_command_opens_it(place):
    folder, videos, run = place
    again = cli.invoke(app, ['pretrain', str(videos), *SMALL])
    assert again.exit_code == 0 and f'(finished before): {run}' in again.stdout and 'loss_over_mean' in again.stdout
    assert len(list((folder/'runs').glob('jepa-*'))) == 1
    from_file = cli.invoke(app, ['pretrain', str(videos), '--config', str(run/'config.json')])
    assert f'(finished before): {run}' in from_file.stdout


@pytest.mark.parametrize('words, kind', [
    ('pico --num-frames 4 --stride 2 --patch-size 8 --set predictor.embed_dim=48', 'Pico'),
    ('laptop --num-frames 8 --stride 1 --set predictor.depth=1 --set predictor.embed_dim=24', 'Jepa')])
def test_every_method_trains_and_is_probed(place, tmp_path, words, kind):
    from jepa.train import Run
    words = f'--size toy --pixels 32 --batch-size 4 --epochs 1 --method {words}'.split()
    shown = cli.invoke(app, ['pretrain', str(place[1]), *words, '--out', str(tmp_path/'run')])
    assert shown.exit_code == 0, shown.output
    assert type(Run(tmp_path/'run').model()).__name__ == kind
    config = ['--config', str(tmp_path/'run/config.json')]
    again = cli.invoke(app, ['pretrain', str(place[1]), *config, '--out', str(tmp_path/'run')])
    assert 'finished before' in again.stdout
    words = ['--kind', 'logistic', '--out', str(tmp_path/'probed')]
    probed = cli.invoke(app, ['probe', str(tmp_path/'run'), str(place[1]), *words])
    assert probed.exit_code == 0 and 'untrained' in probed.stdout, probed.output


def test_pretrain_takes_the_training_split_alone(place):
    assert len(pd.read_csv(place[1]).query('split == "train"')) == 8
    assert '8 videos' in cli.invoke(app, ['pretrain', str(place[1]), *SMALL]).stdout


def test_a_run_that_was_stopped_is_continued(place):
    folder, videos, run = place
    (run/'done.json').rename(run/'aside')
    shown = cli.invoke(app, ['pretrain', str(videos), *SMALL])
    assert shown.exit_code == 0 and f'(continued): {run}' in shown.stdout and (run/'done.json').exists()


def test_probe_has_its_control_and_writes_what_it_found(place):
    folder, videos, run = place
    words = ['--kind', 'linear', '--epochs', '2', '--copies', '1', '--out', str(folder/'probed')]
    shown = cli.invoke(app, ['probe', str(run), str(videos), *words])
    assert shown.exit_code == 0, shown.output
    for word in ('pretrained', 'untrained', 'difference', 'n=6', 'chance 50.0 %'): assert word in shown.stdout
    names = ('accuracy', 'per_class', 'predictions')
    accuracy, per_class, predictions = (pd.read_csv(folder/'probed'/f'{name}.csv') for name in names)
    accuracy = accuracy.set_index('encoder')
    for name, rows in predictions.groupby('encoder'):
        right = (rows.true == rows.predicted).sum()
        assert right == accuracy.right[name] == per_class[per_class.encoder == name].right.sum() and len(rows) == 6
    assert (folder/'probed'/'confusion.png').read_bytes()[:4] == b'\x89PNG'
    assert set(json.loads((folder/'probed'/'probe.json').read_text())['accuracy']) == {'pretrained', 'untrained'}


def test_probe_with_two_manifests_of_other_label_orders(place):
    folder, videos, run = place
    table = pd.read_csv(videos)
    for split in ('train', 'val'):
        part = table[table.split == split].drop(columns=['split', 'group'])
        labels = part.label if split == 'train' else 1 - part.label
        part.assign(label=labels).to_csv(Path(videos).parent/f'{split}_only.csv', index=False)
    words = ['--kind', 'knn', '--copies', '0', '--set', 'neighbours=3']
    train, val = (str(Path(videos).parent/f'{split}_only.csv') for split in ('train', 'val'))
    apart = cli.invoke(app, ['probe', str(run/'checkpoint.pt'), '--train', train, '--val', val, *words])
    together = cli.invoke(app, ['probe', str(run), str(videos), *words])
    assert apart.exit_code == together.exit_code == 0, apart.output + together.output
    assert apart.stdout.splitlines()[:3] == together.stdout.splitlines()[:3]


@pytest.mark.parametrize('words, hint', [
    ('pretrain VIDEOS --size tinny', 'tiny'), ('pretrain VIDEOS --set predictor.dept=2', 'depth'),
    ('pretrain nowhere', 'nowhere'), ('pretrain VIDEOS --method laptob', 'laptop'),
    ('pretrain VIDEOS --method pico --config VIDEOS', 'not both'), ('pretrain VIDEOS --pixels 225', 'use 224'),
    ('pretrain VIDEOS --split trian', 'train'), ('pretrain VIDEOS --config VIDEOS', 'is not JSON'),
    ('pretrain VIDEOS --out RUN', 'another experiment'),
    (f"pretrain VIDEOS --batch-size 100 {' '.join(SMALL[:-6])}", 'lower batch_size'),
    ('probe nowhere VIDEOS', 'no such checkpoint'), ('probe VIDEOS VIDEOS', 'cannot be read as a checkpoint'),
    ('probe RUN', '--train'), ('probe RUN VIDEOS --kind liner', 'linear'),
    ('probe RUN --train VIDEOS --val TRAIN', 'in train and in val'),
    ('probe RUN UNLABELLED', 'no label'), ('probe RUN TRAIN', 'no splits, but no train')])
def test_mistakes_of_pretrain_and_probe(place, words, hint):
    folder, videos, run = place
    table = pd.read_csv(videos)
    table[table.split == 'train'].drop(columns='split').to_csv(videos.parent/'train.csv', index=False)
    table.assign(label=-1, class_name='').to_csv(videos.parent/'unlabelled.csv', index=False)
    paths = dict(VIDEOS=videos, RUN=run, TRAIN=videos.parent/'train.csv', UNLABELLED=videos.parent/'unlabelled.csv')
    assert hint in one_line(cli.invoke(app, [str(paths.get(w, w)) for w in words.split()]))
