"""The command line: help for a newcomer, one clear line for a mistake, exit statuses that scripts can trust."""
import errno, json, os, re, subprocess, sys
from pathlib import Path
import nbformat, pandas as pd, pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner
from jepa._messages import explain
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


def explained(work, *inputs):
    "What a command would say of the error that `work` raises"
    try: work(*inputs)
    except Exception as e: return explain(e)


def write_torch(path):
    import torch
    torch.save(dict(a=torch.zeros(10**6)), path)


def write_safetensors(path):
    import torch
    from safetensors.torch import save_file
    save_file(dict(a=torch.zeros(10**6)), path)


def write_text(path):
    with open(path, 'w') as file: file.write('x'*10**6)


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='there is no /dev/full')
@pytest.mark.parametrize('write', [write_text, write_torch])
def test_a_full_disk_names_the_file_and_the_remedy(write):
    assert re.fullmatch(r'/dev/full: No space left on device \(.* MiB free\); make room, or write elsewhere.*',
                        explained(write, Path('/dev/full')))


@pytest.mark.parametrize('write', [write_text, write_safetensors])
def test_a_name_that_is_too_long(write, tmp_path):
    said = explained(write, tmp_path/('x'*300))
    assert str(tmp_path) in said and 'File name too long; a file system takes names of 255 bytes' in said


@pytest.mark.parametrize('error, hint', [
    (OSError(errno.EROFS, '', '/x/.run.csv.123.tmp'), '/x/run.csv: Read-only file system; write elsewhere'),
    (PermissionError(errno.EACCES, '', '/data/x'), '/data/x: Permission denied; change its permissions'),
    (OSError(errno.EMFILE, '', 'a.mp4'), 'a.mp4: Too many open files; raise the limit (ulimit -n'),
    (RuntimeError('unable to write to file </torch_7_8_0>: No space left on device (28)'), '/dev/shm is too small'),
    (RuntimeError('DataLoader worker (pid(s) 7) exited unexpectedly'), 'lower workers in settings.ini'),
    (MemoryError(), 'memory is full; lower --batch-size'),
    (OSError('Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n'
             'OSError: x.mp4: torn'), 'x.mp4: torn'),
    (BlockingIOError('process 7 trains in runs/x'), 'process 7 trains in runs/x'),
    (UnicodeEncodeError('utf-8', 'a\udcff.mp4', 1, 2, ''), r"'a\udcff.mp4': a name that is no text in utf-8"),
    (KeyError("no 'a'"), "no 'a'"), (ValueError('two\nlines'), 'two lines'),
    (FileNotFoundError(), 'FileNotFoundError')])
def test_one_line_for_every_error_of_the_machine(error, hint):
    assert hint in explain(error) and '\n' not in explain(error)


def test_an_error_of_the_program_keeps_its_traceback():
    for error in (AttributeError('x'), RuntimeError('x'), BrokenPipeError(errno.EPIPE, '')): assert explain(error) == ''


@pytest.mark.parametrize('content', ['path,label\na.mp4,Fu\xdf\n'.encode('latin-1'), b'', b'\x00\x01\x02'])
def test_a_list_that_cannot_be_read_is_named(content, tmp_path):
    (tmp_path/'list.csv').write_bytes(content)
    assert 'list.csv' in one_line(cli.invoke(app, ['pretrain', str(tmp_path/'list.csv')]))


@pytest.mark.parametrize('read, content, hint', [
    (Path.read_text, b'Fu\xdf', 'is not text in UTF-8 (byte 2'), (pd.read_csv, b'', 'is damaged or empty'),
    (lambda path: json.loads(path.read_text()), b'{"a": ', 'is damaged or empty')])
def test_a_damaged_file_is_named_though_its_reader_does_not(read, content, hint, tmp_path):
    (tmp_path/'a').write_bytes(content)
    assert explained(read, tmp_path/'a').startswith(f"{tmp_path/'a'} {hint}")


@pytest.mark.parametrize('words, option', [
    ('pretrain v --epochs 0', 'epochs'), ('pretrain v --stride 0', 'stride'), ('pretrain v --seed -1', 'seed'),
    ('pretrain v --batch-size 0', 'batch-size'), ('pretrain v --pixels -8', 'pixels'),
    ('probe r v --epochs -1', 'epochs'), ('probe r v --segments 100000', 'segments'), ('probe r v --views 4', 'views'),
    ('infer --videos v --probe p --segments 0', 'segments'),
    ('infer --videos v --probe p --batch-size 0', 'batch-size'),
    ('view v --encoder e --segments 100000', 'segments'), ('reports run --jobs -1', 'jobs'),
    ('data shards --from v --out o --megabytes 0', 'megabytes'),
    ('data shards --from v --out o --megabytes nan', 'megabytes'),
    ('data shards --at v --out o --keep 0', 'keep'), ('data nano --from v --out o --transcode 1', 'transcode'),
    ('data index v --official-split 4', 'official-split'), ('data nano --from v --out o --shrink 0', 'shrink')])
def test_numbers_have_ranges(words, option):
    result = cli.invoke(app, words.split())
    assert result.exit_code == 2 and f"Invalid value for '--{option}'" in result.stderr
    assert 'Input should be' in result.stderr or 'nan is not a number' in result.stderr


@pytest.mark.parametrize('pair, option', [('out=/tmp/x', '--out'), ('tier=paper', '--tier')])
def test_what_is_an_option_is_no_parameter(pair, option):
    assert f'use {option}' in one_line(cli.invoke(app, ['reports', 'run', '--set', pair]))


def test_a_path_may_begin_with_a_tilde(place, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = cli.invoke(app, ['data', 'index', str(place[1].parent), '--out=~/x.csv'])
    assert result.exit_code == 0 and (tmp_path/'x.csv').exists() and not (tmp_path/'~').exists(), result.output


def test_force_starts_a_run_anew(place, tmp_path):
    words = ['pretrain', str(place[1]), *SMALL, '--out', str(tmp_path/'run')]
    first, again, forced = (cli.invoke(app, [*words, *more]) for more in ([], [], ['--force']))
    assert 'finished before' in again.stdout and '(new)' in forced.stdout and 'epoch 1' in forced.stdout, forced.output
    assert (tmp_path/'run.old'/'done.json').exists() and (tmp_path/'run'/'done.json').exists()


@pytest.mark.parametrize('file, words', [('run/config.json', 'pretrain VIDEOS --config FILE'),
                                         ('run/config.json', 'probe FOLDER VIDEOS')])
@pytest.mark.parametrize('content', ['', '{"config": {"ep'])
def test_a_damaged_json_file_is_named(place, tmp_path, file, words, content):
    import shutil
    shutil.copytree(place[2], tmp_path/'run')
    (tmp_path/file).write_text(content)
    paths = dict(VIDEOS=place[1], FILE=tmp_path/file, FOLDER=tmp_path/'run')
    assert Path(file).name in one_line(cli.invoke(app, [str(paths.get(w, w)) for w in words.split()]))


def in_two_processes(*words):
    launch = 'torch.distributed.run --standalone --nproc_per_node 2 -m jepa.cli'.split()
    env = os.environ | {'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-m', *launch, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)


def test_pretrain_in_two_processes(place, tmp_path):
    result = in_two_processes('pretrain', place[1], *SMALL, '--out', tmp_path/'run')
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('epoch 1:') == result.stdout.count('trained\n') == result.stdout.count('Next:') == 1
    assert (tmp_path/'run'/'done.json').exists()


def test_a_mistake_in_two_processes_is_one_line():
    result = in_two_processes('pretrain', 'nowhere')
    assert result.returncode and [l for l in result.stderr.splitlines() if l.startswith('jepa: ')] == [
        'jepa: nowhere: there is no such file or folder']


@pytest.mark.slow
def test_probe_and_infer_in_two_processes(place, tmp_path):
    words = '--kind linear --epochs 1 --copies 1 --out'.split()
    probed = in_two_processes('probe', place[2], place[1], *words, tmp_path/'p')
    assert probed.returncode == 0 and probed.stdout.count('untrained') == 1, probed.stderr
    words = ['--videos', place[1].parent/'val', '--encoder', place[2], '--probe', tmp_path/'p'/'probe.safetensors']
    answers = in_two_processes('infer', *words, *'--segments 1 --views 1 --out'.split(), tmp_path/'a.csv')
    assert answers.returncode == 0 and answers.stdout.count('answered') == 1, answers.stderr
    assert len(pd.read_csv(tmp_path/'a.csv')) == 6
