"""Nothing is lost: a killed run continues to the same curve, bad steps are skipped and counted"""
import json, os, platform, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa.actions import ActionsConfig, make_actions
from jepa.data import read_manifest
from jepa.encoder import encoder_config
from jepa.masks import Future, MultiBlock, sample_masks
from jepa.core import generator
from jepa.objective import Jepa
from jepa.predictor import PredictorConfig
from jepa.checkpoint import load_checkpoint
from jepa.train import Run, TrainConfig, make_optimizer, pretrain, train_config, train_step

CONFIG = train_config('toy', num_frames=4, stride=4, pixels=32, patch_size=8,
                      predictor=PredictorConfig(embed_dim=24, depth=2), masks=(MultiBlock(), Future(tubelets=(1, 1))),
                      epochs=4, batch_size=4, warmup_epochs=1., monitor_clips=8)

SCRIPT = '''
import json, sys
from jepa.data import read_manifest
from jepa.train import TrainConfig, pretrain
config = TrainConfig.from_dict(json.loads(sys.argv[1]))
pretrain(config, read_manifest(sys.argv[2]), folder=sys.argv[3], save_seconds=0, progress=False)
'''


@pytest.fixture(scope='module')
def manifest(place):
    actions = ActionsConfig(classes=('move_right', 'turn_left'), train=12, val=0, size=48, num_frames=16, level='easy')
    return make_actions(actions, place/'data', workers=1, progress=False)


def command(manifest, folder):
    return [sys.executable, '-c', SCRIPT, json.dumps(CONFIG.to_dict()), str(manifest), str(folder)]


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
    assert killed.steps.drop(columns='seconds').equals(whole.steps.drop(columns='seconds'))
    assert killed.epochs.equals(whole.epochs)
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


def test_configuration_survives_json():
    assert TrainConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(place, manifest):
    (place/'two.py').write_text(SCRIPT)
    arguments = [str(place/'two.py'), json.dumps(CONFIG.replace(epochs=2).to_dict()), str(manifest)]
    settings = place/'float32.ini'
    settings.write_text((place/'settings.ini').read_text() + 'precision = float32\ndevice = cpu\n')
    env = {**os.environ, 'JEPA_SETTINGS': str(settings), 'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1'}
    two_processes = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    for folder, launcher in [('one', []), ('two', two_processes)]:
        command = [sys.executable, *launcher, *arguments, str(place/folder)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (Run(place/name).steps.loss for name in ('one', 'two'))
    assert len(one) == 12 and np.allclose(one, two, rtol=1e-5)


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
