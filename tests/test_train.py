"""Nothing is lost: a killed run continues to the same curve, bad steps are skipped and counted"""
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

import jepa.train
from jepa.actions import ActionsConfig, make_actions
from jepa.data import loader, read_manifest
from jepa.encoder import encoder_config
from jepa.masks import Future, MultiBlock, sample_masks
from jepa.core import generator
from jepa.objective import Jepa, Objective
from jepa.shards import write_shards
from jepa.predictor import PredictorConfig
from jepa.checkpoint import load_checkpoint
from jepa.train import (Run, TrainConfig, make_optimizer, own_part, pretrain, run_folder, train_config,
                        train_step)
from jepa._lock import locked
from jepa._run import write_checkpoint

CONFIG = train_config('toy', num_frames=4, stride=4, pixels=32, patch_size=8,
                      predictor=PredictorConfig(embed_dim=24, depth=2), masks=(MultiBlock(), Future(tubelets=(1, 1))),
                      epochs=4, batch_size=4, warmup_epochs=1., monitor_clips=8)
SHORT = CONFIG.replace(epochs=2)

SCRIPT = '''
import json, sys
from jepa.data import loader, read_manifest
from jepa.train import TrainConfig, pretrain
config = TrainConfig.from_dict(json.loads(sys.argv[1]))
pretrain(config, read_manifest(sys.argv[2]), folder=sys.argv[3], save_seconds=0, progress=False)
'''


@pytest.fixture(scope='module')
def manifest(place):
    actions = ActionsConfig(classes=('move_right', 'turn_left'), train=12, val=0, size=48, num_frames=16, level='easy')
    return make_actions(actions, place/'data', workers=1, progress=False)


def command(manifest, folder, config=CONFIG):
    return [sys.executable, '-c', SCRIPT, json.dumps(config.to_dict()), str(manifest), str(folder)]


@pytest.mark.slow
def test_kill_9_and_the_same_command_gives_the_same_curve_to_the_bit(place, manifest):
    assert subprocess.run(command(manifest, place/'whole')).returncode == 0
    whole, killed, kills = Run(place/'whole'), Run(place/'killed'), 0
    for wait_for in (3, 13):
        process = subprocess.Popen(command(manifest, killed.folder))
        while process.poll() is None:
            rows = killed.folder/'metrics.csv'
            if rows.exists() and len(rows.read_text().splitlines()) > wait_for:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
            time.sleep(0.005)
    assert kills == 2 and not killed.done
    assert subprocess.run(command(manifest, killed.folder)).returncode == 0
    assert len(whole.steps) == 24 and killed.done
    for name in ('metrics.csv', 'meters.csv'):
        assert (killed.folder/name).read_bytes() == (whole.folder/name).read_bytes()
    assert list(killed.seconds.index) == list(range(24)) and (killed.seconds > 0).all()
    assert killed.record['seconds'] > killed.seconds.sum() # decoding and meters take time, too
    for a, b in zip(whole.model().state_dict().values(), killed.model().state_dict().values()): assert a.equal(b)
    assert not list(killed.folder.glob('.*.tmp')) # what killed processes were writing is gone


def test_a_finished_run_is_opened_and_another_experiment_refused(place, manifest):
    config, data = CONFIG.replace(epochs=1), read_manifest(manifest)
    run = pretrain(config, data, folder=place/'short', progress=False)
    before = (run.folder/'checkpoint.pt').stat().st_mtime_ns
    assert pretrain(config, data, folder=place/'short', progress=False).done
    assert (run.folder/'checkpoint.pt').stat().st_mtime_ns == before
    with pytest.raises(ValueError, match='lr is 0.000625, asked for 0.001'):
        pretrain(config.replace(lr=1e-3), data, folder=place/'short', progress=False)
    encoder, trained = load_checkpoint(run.folder/'checkpoint.pt').encoder, run.model().target_encoder
    for a, b in zip(encoder.state_dict().values(), trained.state_dict().values()): assert a.equal(b)


def damaged(file, how):
    "Cut a file in half, or flip a bit in its middle"
    content = bytearray(file.read_bytes())
    if how == 'halved': content = content[:len(content)//2]
    else: content[len(content)//2] ^= 4
    file.write_bytes(content)


@pytest.fixture(scope='module')
def short(place, manifest):
    "A finished run of two epochs"
    data = read_manifest(manifest)
    return pretrain(SHORT, data, folder=place/'finished', progress=False), data


@pytest.fixture
def copied(short, tmp_path):
    run, data = short
    shutil.copytree(run.folder, tmp_path/'run')
    return Run(tmp_path/'run'), data, run


def weights(run): return torch.cat([p.flatten() for p in run.model().parameters()])


@pytest.mark.parametrize('how', ['halved', 'flipped', 'gone'])
def test_a_finished_run_without_a_sound_checkpoint_goes_on_from_the_previous_one(copied, how):
    run, data, whole = copied
    if how == 'gone': (run.folder/'checkpoint.pt').unlink()
    else: damaged(run.folder/'checkpoint.pt', how)
    assert not run.done and 'checkpoint.pt is' in run.unfinished()
    with pytest.raises((ValueError, FileNotFoundError), match='checkpoint.pt is .*`pretrain` goes on'): run.model()
    with pytest.warns(UserWarning, match='the previous checkpoint is used instead'):
        again = pretrain(SHORT, data, folder=run.folder, progress=False)
    assert again.done and weights(again).equal(weights(whole))
    assert (run.folder/'metrics.csv').read_bytes() == (whole.folder/'metrics.csv').read_bytes()
    assert (run.folder/'checkpoint.damaged.pt').exists() == (how != 'gone')


def test_with_both_checkpoints_damaged_the_run_starts_again_and_says_so(copied):
    run, data, whole = copied
    for name in ('checkpoint.pt', 'checkpoint.previous.pt'): damaged(run.folder/name, 'halved')
    with pytest.warns(UserWarning, match='the run starts at its first step'):
        assert weights(pretrain(SHORT, data, folder=run.folder, progress=False)).equal(weights(whole))


@pytest.mark.parametrize('name', ['metrics.csv', 'meters.csv', 'seconds.csv'])
@pytest.mark.parametrize('how', ['halved', 'flipped'])
def test_a_damaged_table_of_a_finished_run_is_an_error_and_opening_the_run_mends_it(copied, name, how):
    run, data, whole = copied
    damaged(run.folder/name, how)
    with pytest.raises(ValueError, match=f'{name} was changed or damaged; `pretrain`'): run.table(name[:-4])
    with pytest.warns(UserWarning, match=name): pretrain(SHORT, data, folder=run.folder, progress=False)
    assert (run.folder/name).read_bytes() == (whole.folder/name).read_bytes()


@pytest.mark.parametrize('name', ['config.json', 'run.json', 'done.json'])
def test_errors_of_json_files_name_the_file_and_the_remedy(copied, name):
    run, data, _ = copied
    damaged(run.folder/name, 'halved')
    if name == 'done.json':
        assert 'done.json is damaged' in run.unfinished()
        assert pretrain(SHORT, data, folder=run.folder, progress=False).done
    else:
        with pytest.raises(ValueError, match=f'{name} is damaged.*(force=True|writes it again)'):
            run.config if name == 'config.json' else run.record


def test_a_changed_digit_of_the_configuration_is_seen(copied):
    file = copied[0].folder/'config.json'
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match='config.json was changed or damaged'): copied[0].untrained()


def test_a_kill_between_the_last_step_and_its_meters_loses_no_row(place, manifest, monkeypatch):
    folder, epochs = place/'no_meters', []
    real = jepa.train.monitor
    def killed(*args):
        if len(epochs): raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(jepa.train, 'monitor', killed)
    data, config = read_manifest(manifest), SHORT.replace(epochs=1)
    monkeypatch.setattr(jepa.train.Training, 'show_progress', lambda self: epochs.append(self.step))
    with pytest.raises(KeyboardInterrupt): pretrain(config, data, folder=folder, save_seconds=0, progress=False)
    run = Run(folder)
    assert run.state()['step'] == 6 and len(run.state()['meters']) == 1 and not run.done
    monkeypatch.undo()
    (folder/'done.json').write_text(json.dumps(dict(steps=6))) # as an older version would have said
    assert 'the meters end with epoch 0' in run.unfinished()
    looked = []
    run = pretrain(config, data, folder=folder, progress=False, on_epoch=lambda run, epoch: looked.append(epoch))
    assert run.done and run.epochs.epoch.tolist() == [0, 1] and looked == [1]
    assert run.epochs.iloc[1].loss != run.epochs.iloc[0].loss


def stopped(folder, data, config):
    "A run that ends after its first epoch"
    def stop(run, epoch): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): pretrain(config, data, folder=folder, on_epoch=stop, progress=False)


def test_another_precision_does_not_go_on_in_silence(tmp_path, manifest, monkeypatch):
    data, begun_with = read_manifest(manifest), jepa.train.begun_with
    stopped(tmp_path/'run', data, SHORT)
    other = {**begun_with(), 'precision': 'float16', 'torch': '1.0'}
    monkeypatch.setattr(jepa.train, 'begun_with', lambda: other)
    message = f"precision was {begun_with()['precision']}, and now it is float16; torch was .* accept=True"
    with pytest.raises(ValueError, match=message): pretrain(SHORT, data, folder=tmp_path/'run', progress=False)
    run = pretrain(SHORT, data, folder=tmp_path/'run', progress=False, accept=True)
    assert run.done and len(run.record['accepted']) == 2 and run.identity['machine']['precision'] == 'float16'
    monkeypatch.undo()
    assert pretrain(SHORT, data, folder=tmp_path/'run', progress=False).done # a finished run is opened everywhere


def test_force_starts_anew_and_keeps_the_old_run_beside(copied):
    run, data, whole = copied
    (run.folder/'mine.txt').write_text('a note')
    config = SHORT.replace(lr=1e-3)
    again = pretrain(config, data, folder=run.folder, force=True, progress=False)
    old = Run(run.folder.with_name('run.old'))
    assert again.done and again.config == config and not weights(again).equal(weights(whole))
    assert old.done and weights(old).equal(weights(whole)) and (old.folder/'mine.txt').exists()


def test_a_run_of_other_training_code_is_not_opened(copied, monkeypatch):
    run, data, _ = copied
    here, code = run_folder(SHORT, data), jepa.train.training_code(SHORT, data)
    assert 'objective.prediction_loss' in code and 'masks.place_blocks' in code
    monkeypatch.setattr(jepa.train, 'training_code', lambda *args: {**code, 'objective.prediction_loss': 'other'})
    assert run_folder(SHORT, data) != here
    with pytest.raises(ValueError, match='other training code: objective.prediction_loss changed; .*force=True'):
        pretrain(SHORT, data, folder=run.folder, progress=False)
    assert pretrain(SHORT, data, folder=run.folder, progress=False, force=True).done


def test_a_run_says_when_and_where_it_was_made_and_reports_can_ask_which_were_opened(copied):
    run, data, _ = copied
    before = run.record
    assert pretrain(SHORT, data, folder=run.folder, progress=False).record == before
    assert set(before) >= {'date', 'commit', 'machine', 'seconds', 'torch', 'precision', 'device', 'decoder'}
    assert jepa.train.opened_runs[-1] == run.folder


def test_a_second_process_waits_and_says_for_whom(tmp_path, manifest):
    data, said = read_manifest(manifest), tmp_path/'said.txt'
    with locked(tmp_path/'run/.lock', f'trains in {tmp_path}/run'):
        stderr = said.open('w')
        second = subprocess.Popen(command(manifest, tmp_path/'run', SHORT), stderr=stderr)
        for _ in range(600):
            if 'waiting' in said.read_text(): break
            time.sleep(.1)
        assert f'waiting: process {os.getpid()} on' in said.read_text() and second.poll() is None
        assert not (tmp_path/'run/checkpoint.pt').exists()
        with pytest.raises(BlockingIOError, match='another thread of this process trains'):
            with locked(tmp_path/'run/.lock', 'trains', wait=False): pass
    assert second.wait(120) == 0 and Run(tmp_path/'run').done
    with locked(tmp_path/'run/.lock', 'trains', wait=False): pass


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='a system without fork')
def test_a_forked_orphan_does_not_hold_the_lock(tmp_path):
    code = f"""
import os, time
from jepa._lock import locked
with locked({str(tmp_path/'.lock')!r}, 'works'):
    if not os.fork(): time.sleep(30)
    os._exit(0)
"""
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60)
    with locked(tmp_path/'.lock', 'works', wait=False): pass


def test_a_repeated_run_writes_the_same_bytes(tmp_path, manifest):
    config = SHORT.replace(objective=Objective('sigreg'), epochs=1) # draws directions in every step and every meter
    runs = [pretrain(config, read_manifest(manifest), folder=tmp_path/name, progress=False) for name in 'ab']
    for name in ('metrics.csv', 'meters.csv', 'config.json'):
        a, b = ((run.folder/name).read_bytes() for run in runs)
        assert a == b
    assert 'seconds' not in runs[0].steps and len(runs[0].seconds) == 6


def test_a_full_disk_is_an_error_that_names_the_file_and_the_remedy(tmp_path, monkeypatch):
    def full(*args): raise RuntimeError('[enforce fail at inline_container.cc:672] . unexpected pos 75712 vs 75600')
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(OSError, match='checkpoint.pt cannot be written: .* MiB are free there: make room'):
        write_checkpoint(tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_processes_read_each_clip_of_an_epoch_once_over_all_of_them(tmp_path, manifest):
    shards = write_shards(read_manifest(manifest), tmp_path/'shards', progress=False)
    clips = shards.clips(CONFIG.clip, CONFIG.augment, progress=False)
    batches = loader(clips, 4, epoch=3, seed=0, shuffle=True, drop_last=True, workers=0)
    ranks = [SimpleNamespace(num_processes=2, process_index=rank) for rank in range(2)]
    parts = [list(own_part(batches, rank).batch_sampler) for rank in ranks]
    for whole, a, b in zip(batches.batch_sampler, *parts): assert a + b == whole and len(a) == len(b) == 2
    with pytest.raises(ValueError, match='choose a batch_size that 3 divides'):
        own_part(batches, SimpleNamespace(num_processes=3, process_index=0))


def test_too_many_steps_without_a_finite_loss_end_the_run(place, manifest):
    config = CONFIG.replace(lr=1e30, start_lr=1e30, epochs=2, max_skipped_steps=3)
    with pytest.raises(FloatingPointError, match='4 steps had no finite loss'):
        pretrain(config, read_manifest(manifest), folder=place/'bad', progress=False)
    run = Run(place/'bad')
    assert not run.done and (~run.steps.finite).sum() == 4


def test_a_skipped_step_changes_nothing():
    torch.manual_seed(0)
    jepa = Jepa(CONFIG.encoder, PredictorConfig(embed_dim=24, depth=2))
    optimizer = make_optimizer(jepa)
    masks = sample_masks([MultiBlock()], jepa.encoder.config.grid, 2, generator(0))
    before = [p.clone() for p in jepa.parameters()]
    clip = torch.full((2, 3, 4, 32, 32), float('nan'))
    result = train_step(jepa, optimizer, clip, masks, TrainConfig().plan(10).at(0))
    assert not result.finite and not optimizer.state
    assert all(a.equal(b) for a, b in zip(before, jepa.parameters()))


def test_too_few_clips_is_an_error_that_says_what_to_do(place, manifest):
    data, folder = read_manifest(manifest), place/'few'
    with pytest.raises(ValueError, match='less than one batch of 64; lower batch_size'):
        pretrain(CONFIG.replace(batch_size=64), data, folder=folder, progress=False)
    assert pretrain(CONFIG.replace(batch_size=24, epochs=1), data, folder=folder, progress=False).done


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    (tmp_path/'x.pt').write_text('no tensors')
    with pytest.raises(ValueError, match='x.pt cannot be read as a checkpoint'): load_checkpoint(tmp_path/'x.pt')
    with pytest.raises(FileNotFoundError, match='y.pt'): load_checkpoint(tmp_path/'y.pt')


@pytest.mark.parametrize('wrong, interval', [
    (dict(lr=-1), '[0, inf)'), (dict(lr=float('nan')), '[0, inf)'), (dict(weight_decay=float('inf')), '[0, inf)'),
    (dict(ema=(5, 9)), '[0, 1]'), (dict(epochs=0), '[1, '), (dict(batch_size=-4), '[1, '),
    (dict(stretch=.5), '[1, inf)'),
    (dict(loss_exp=0), '(0, inf)')])
def test_numbers_out_of_range_are_named_with_their_range(wrong, interval):
    [name] = wrong
    message = re.escape(f'TrainConfig.{name} must lie in {interval}') + '.*not'
    with pytest.raises(ValueError, match=message): CONFIG.replace(**wrong)


@pytest.mark.parametrize('make, words', [
    (lambda: PredictorConfig(depth=0), 'PredictorConfig.depth must lie in [1, 10000], not 0'),
    (lambda: Objective(weight=2.), 'Objective.weight must lie in [0, 1], not 2.0'),
    (lambda: Objective(target_layers=0), 'Objective.target_layers must lie in [1, 10000], not 0')])
def test_parts_of_a_configuration_have_ranges_too(make, words):
    with pytest.raises(ValueError, match=re.escape(words)): make()


def test_configuration_survives_json():
    assert TrainConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG


TWO = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']


LONGER = CONFIG.replace(epochs=6)


@pytest.fixture(scope='module')
def float32(place):
    "The environment of a command that computes in float32, without a GPU"
    settings = place/'float32.ini'
    settings.write_text((place/'settings.ini').read_text() + 'precision = float32\ndevice = cpu\n')
    return {**os.environ, 'JEPA_SETTINGS': str(settings), 'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1'}


def of_command_line(launcher, manifest, folder):
    "`jepa pretrain` with a configuration of its own"
    file = folder.with_name(f'{folder.name}.json')
    file.write_text(json.dumps(LONGER.to_dict()))
    return [sys.executable, *launcher, '-m', 'jepa.cli', 'pretrain', str(manifest),
            '--config', str(file), '--out', str(folder)]


def finished(command, folder, env):
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count('epoch 6: mean loss') == 1 # one of them speaks
    return Run(folder)


@pytest.fixture(scope='module')
def alone(place, manifest, float32): return finished(of_command_line([], manifest, place/'one'), place/'one', float32)


@pytest.mark.slow
def test_two_processes_of_the_command_line_give_the_curve_of_one(place, manifest, float32, alone):
    two = finished(of_command_line(TWO, manifest, place/'two'), place/'two', float32)
    assert alone.done and two.done and len(alone.steps) == 36
    assert np.allclose(alone.steps.loss, two.steps.loss, rtol=1e-4)
    assert np.allclose(alone.epochs.loss, two.epochs.loss, rtol=1e-4)


@pytest.mark.slow
def test_two_launchers_on_two_addresses_give_the_curve_of_one(place, manifest, float32, alone):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    machines = []
    for rank in '01':
        launcher = ['-m', 'torch.distributed.run', '--nnodes', '2', '--nproc_per_node', '1', '--node_rank', rank,
                    '--master_addr', '127.0.0.1', '--master_port', port, '--local_addr', f'127.0.0.{int(rank) + 1}']
        command = of_command_line(launcher, manifest, place/'apart')
        machines.append(subprocess.Popen(command, env=float32, stderr=subprocess.PIPE, text=True))
    for machine in machines:
        message = machine.communicate(timeout=300)[1]
        assert machine.returncode == 0, message[-2000:]
    assert np.allclose(Run(place/'apart').steps.loss, alone.steps.loss, rtol=1e-4)


@pytest.mark.slow
def test_the_death_of_one_process_ends_both_and_the_same_command_goes_on(place, manifest, float32, alone):
    folder = place/'bereft'
    command = of_command_line(TWO, manifest, folder)
    launcher = subprocess.Popen(command, env=float32, stderr=subprocess.PIPE, text=True)
    while not (folder/'metrics.csv').exists() and launcher.poll() is None: time.sleep(.05)
    [second] = [p for p in psutil.Process(launcher.pid).children() if p.environ().get('RANK') == '1']
    second.kill()
    message = launcher.communicate(timeout=60)[1]
    assert launcher.returncode != 0 and 'SIGKILL' in message
    assert not Run(folder).done and 0 < len(Run(folder).steps) < 36
    assert np.allclose(finished(command, folder, float32).steps.loss, alone.steps.loss, rtol=1e-4)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library')
def test_memory_that_tensors_gave_back_is_not_asked_for_again():
    plain = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES' and not k.startswith('MALLOC_')}
    ours, left_alone = (page_faults(plain | more) for more in ({}, {'GLIBC_TUNABLES': ''}))
    assert 20*ours < left_alone, (ours, left_alone)


def page_faults(env):
    "Of five steps that take and give back 64 MiB"
    command = [sys.executable, '-c', STEPS]
    return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


STEPS = """
import resource
from jepa._memory import keep_memory

def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step(): [bytearray(2**24) for _ in range(4)]

keep_memory()
step()
before = faults()
for _ in range(5): step()
print(faults() - before)
"""
