"""`make torture`: after kills, damage, full disks and hostile files, results are equal or something is said.

Every try runs a command in a process of its own and compares what it leaves with what an undisturbed one left.
Its verdict: equal: the same results; said: a message, a warning or a refusal; silent: other results, a hang or a
crash without a word.
`python -m tools.torture --short` takes at most three minutes; `--only KIND` runs one kind.
"""
import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import torch

HEAVY = ('jepa.cli', 'jepa.pico', 'jepa.recipe', 'jepa.vjepa', 'jepa.infer', 'jepa.shards', 'jepa.datasets',
         'jepa.report', 'accelerate', 'sklearn.linear_model', 'av', 'pebble', 'safetensors.torch')
root = Path(__file__).resolve().parents[1]
TIMEOUT = 90 # seconds after which a command hangs
Outcome = namedtuple('Outcome', 'code out err seconds memory') # code: exit status; negative: a signal; None: a hang
KINDS = {}   # name -> (share of the time, function that yields (what, verdict, note))


def kind(share):
    "Register a kind of torture with its share of the time"
    def register(function):
        KINDS[function.__name__] = share, function
        return function
    return register


# Commands in processes of their own

def _child(command, out, err, limits):
    "What the forked process does: a command of `jepa`, or a function"
    os.setsid()
    for number, path in ((1, out), (2, err)): os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    for name, value in (limits or {}).items(): resource.setrlimit(name, (value, value))
    code = 0
    try:
        if callable(command): command()
        else: importlib.import_module('jepa.cli').app([str(a) for a in command], standalone_mode=True)
    except SystemExit as e: code = e.code if isinstance(e.code, int) else int(bool(e.code))
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


class Job:
    "A running command"
    def __init__(self, command, settings, limits=None):
        self.folder = Path(tempfile.mkdtemp(prefix='job-', dir=settings.parent))
        self.started = time.monotonic()
        os.environ['JEPA_SETTINGS'] = str(settings)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid: _child(command, self.folder/'out', self.folder/'err', limits)

    def kill(self):
        "SIGKILL, its decoders included"
        with contextlib.suppress(ProcessLookupError): os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError): os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout=TIMEOUT):
        "Its outcome; a job that is late is killed and hangs"
        pid = status = 0
        while not pid:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid: break
            if time.monotonic() - self.started > timeout:
                self.kill()
                usage = os.wait4(self.pid, 0)[2]
                status = None
                break
            time.sleep(.02)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        self.kill()
        out, err = ((self.folder/name).read_text(errors='replace') if (self.folder/name).exists() else ''
                    for name in ('out', 'err'))
        shutil.rmtree(self.folder, ignore_errors=True)
        return Outcome(code, out, err, time.monotonic() - self.started, usage.ru_maxrss/1024)


def run(command, settings, limits=None, timeout=TIMEOUT): return Job(command, settings, limits).wait(timeout)


def killed_at(command, settings, seconds):
    "A job that is killed after so many seconds, wherever it is"
    job = Job(command, settings)
    time.sleep(seconds)
    job.kill()
    return job.wait()


# A small world: videos, a run, a probe, answers, shards

OPTIONS = ['--size', 'toy', '--num-frames', 4, '--stride', 2, '--pixels', 16, '--patch-size', 8, '--batch-size', 4,
           '--set', 'predictor.embed_dim=24', '--set', 'predictor.depth=1', '--set', 'monitor_clips=8']


class World:
    "A folder with settings, videos, and the commands that work on them"
    def __init__(self, folder, short=False):
        self.folder, self.short = Path(folder), short
        self.settings = self.folder/'settings.ini'
        self.run, self.probed, self.answers = (self.folder/name for name in ('run', 'probe', 'answers'))
        self.shards, self.shard_run = self.folder/'shards', self.folder/'shard_run'

    def write_settings(self):
        paths = '\n'.join(f'{name} = {self.folder/name}' for name in ('data', 'cache', 'runs', 'results'))
        self.settings.write_text(f'[paths]\n{paths}\n[compute]\nthreads = 1\nworkers = 1\n[video]\ntimeout = 20\n')

    @property
    def videos(self): return next((self.folder/'data').glob('actions*/*.csv'))

    def pretrain(self, out=None, epochs=3, videos=None):
        return ['pretrain', videos or self.videos, *OPTIONS, '--epochs', epochs, '--out', out or self.run]

    def probe(self):
        return ['probe', self.run, self.videos, '--kind', 'linear', '--epochs', 3, '--copies', 1, '--out', self.probed]

    def infer(self):
        return ['infer', '--videos', self.videos.parent/'val', '--encoder', self.run,
                '--probe', self.probed/'probe.safetensors', '--segments', 2, '--views', 1, '--stride', 2,
                '--out', self.answers/'results.csv']

    def make(self):
        "The undisturbed results"
        self.write_settings()
        require(run(self._videos, self.settings))
        for command in (self.pretrain(), self.probe(), self.infer()): require(run(command, self.settings))
        require(run(['data', 'shards', '--from', self.videos, '--out', self.shards, '--megabytes', .02], self.settings))
        require(run(self.pretrain(self.shard_run, 2, self.shards), self.settings))
        return self

    def _videos(self):
        from jepa.actions import ActionsConfig, make_actions
        names = ('move_right', 'turn_left', 'grow', 'blink')
        make_actions(ActionsConfig(classes=names, train=4, val=2, size=32), progress=False)

    def copy(self):
        "The same under the same paths: results may depend on none of them, so a copy lies where the original lay"
        kept = Path(tempfile.mkdtemp(prefix='kept-', dir=self.folder.parent))/'world'
        shutil.copytree(self.folder, kept)
        return kept

    def restore(self, kept):
        shutil.rmtree(self.folder)
        shutil.copytree(kept, self.folder)


def require(outcome):
    "An undisturbed command must work"
    if outcome.code != 0: raise RuntimeError(f'an undisturbed command failed ({outcome.code}):\n{outcome.err[-2000:]}')
    return outcome


# What is compared

def digest(value, into=None):
    "A hash of nested dicts, lists, tensors and numbers"
    into = into or hashlib.sha256()
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            into.update(str(key).encode())
            digest(value[key], into)
    elif isinstance(value, (list, tuple)):
        for item in value: digest(item, into)
    elif isinstance(value, torch.Tensor): into.update(value.contiguous().view(-1).numpy().tobytes())
    else: into.update(repr(value).encode())
    return into.hexdigest()


def without_times(value):
    "Rows without the column `seconds`"
    if isinstance(value, dict): return {k: without_times(v) for k, v in value.items() if k != 'seconds'}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def table(path, skip=('seconds',)):
    "A CSV file as text, without times"
    content = pd.read_csv(path, dtype=str, keep_default_na=False)
    return content.drop(columns=list(skip), errors='ignore').to_csv(index=False)


def run_results(folder):
    "Weights, optimizer, rows and meters of a run"
    state = torch.load(folder/'checkpoint.pt', weights_only=True, map_location='cpu')
    state = {k: v for k, v in state.items() if k not in ('checksum', 'time')}
    return dict(state=digest(without_times(state)), metrics=table(folder/'metrics.csv'),
                meters=table(folder/'meters.csv'), done=(folder/'done.json').exists())


def probe_results(folder):
    return {name: table(folder/f'{name}.csv') for name in ('accuracy', 'per_class', 'predictions')}


def answers_of(folder): return table(folder/'results.csv')


def results_of(function, *args):
    "Results, or why there are none"
    try: return function(*args)
    except Exception as e: return f'{type(e).__name__}: {e}'


def words(outcome):
    "What a command said on its error stream, in one line"
    return ' '.join(outcome.err.split())[-160:]


def judge(outcome, equal):
    "equal, said or silent, and why"
    if outcome.code is None: return 'silent', f'hangs for {outcome.seconds:.0f} s'
    if outcome.code < 0: return 'silent', f'dies by signal {-outcome.code} without a message'
    if outcome.code == 0 and equal: return 'equal', ''
    if 'Traceback' in outcome.err: return 'said', 'a traceback: ' + words(outcome)
    if outcome.code or outcome.err.strip(): return 'said', words(outcome)
    return 'silent', 'other results, status 0, nothing said'


# Kills at random moments

def _kills(rng, world, command, forget, results):
    "Kill up to three times, continue to the end, compare with the undisturbed results"
    expected, kept = results(), world.copy()
    while True:
        world.restore(kept)
        for path in forget: shutil.rmtree(path, ignore_errors=True)
        started = time.monotonic()
        run(command, world.settings)
        whole = time.monotonic() - started
        for path in forget: shutil.rmtree(path, ignore_errors=True)
        moments = [rng.uniform(.02, 1)*whole for _ in range(rng.randint(1, 3))]
        for seconds in moments: killed_at(command, world.settings, seconds)
        outcome = run(command, world.settings)
        verdict = judge(outcome, results_of(results) == expected)
        yield f'killed after {", ".join(f"{s:.2f}" for s in moments)} of {whole:.2f} s', *verdict


@kind(3)
def kills_of_pretrain(rng, world):
    yield from _kills(rng, world, world.pretrain(), [world.run], lambda: run_results(world.run))


@kind(1)
def kills_of_pretrain_while_decoding(rng, world):
    caches = world.folder/'cache'/'clips'
    yield from _kills(rng, world, world.pretrain(), [world.run, caches], lambda: run_results(world.run))


@kind(1)
def kills_of_probe(rng, world):
    forget = [world.probed, world.folder/'cache'/'features', world.folder/'cache'/'clips']
    yield from _kills(rng, world, world.probe(), forget, lambda: probe_results(world.probed))


@kind(1)
def kills_of_infer(rng, world):
    yield from _kills(rng, world, world.infer(), [world.answers], lambda: answers_of(world.answers))


# Damage of every kind of file

def flip(rng, content):
    "One bit, somewhere"
    if not content: return content
    at, content = rng.randrange(len(content)), bytearray(content)
    content[at] ^= 1 << rng.randrange(8)
    return bytes(content)


def cut(rng, content): return content[:rng.randrange(max(1, len(content)))]
def emptied(rng, content): return b''
def zeros(rng, content):
    "A page of zeros, as after a power cut"
    at = rng.randrange(max(1, len(content) - 512)) if content else 0
    return content[:at] + b'\0'*min(512, len(content) - at) + content[at + 512:]


DAMAGES = dict(flip=flip, cut=cut, emptied=emptied, zeros=zeros)


def half_way(world):
    "The run as if it had been stopped after its first epoch"
    shutil.rmtree(world.run)
    def stop(): # the command itself, until its first epoch is saved
        from jepa import train
        original = train.pretrain
        def stopped(config, manifest, folder=None, **more):
            return original(config, manifest, folder, **{**more, 'on_epoch': lambda run, epoch: os._exit(0)})
        train.pretrain = stopped
        importlib.import_module('jepa.cli').app([str(a) for a in world.pretrain()], standalone_mode=True)
    require(run(stop, world.settings))


def damage_plan(world):
    "kind of file -> (how it is found, the command that reads it, what is forgotten before, results)"
    def run_files(name): return lambda: [world.run/name]
    def under(*parts): return lambda: [f for f in world.folder.joinpath(*parts[:-1]).glob(parts[-1]) if f.is_file()]
    def run_of(): return run_results(world.run)
    def probe_of(): return probe_results(world.probed)
    def answers(): return answers_of(world.answers)
    def shard_run(): return run_results(world.shard_run)
    again, probe, infer = world.pretrain(), world.probe(), world.infer()
    from_shards = world.pretrain(world.shard_run, 2, world.shards)
    made_from_journal = [world.answers/f'results.{end}' for end in ('csv', 'json')]
    plan = {f'{name} of a finished run': (run_files(name), again, [], run_of)
            for name in ('checkpoint.pt', 'config.json', 'done.json', 'metrics.csv', 'meters.csv')}
    plan |= {f'{name} of a stopped run': (run_files(name), again, ['half'], run_of)
             for name in ('checkpoint.pt', 'config.json', 'metrics.csv', 'meters.csv')}
    plan |= {
        'clip cache': (under('cache', 'clips', '*/*'), again, [world.run], run_of),
        'checkpoint.pt under a probe': (run_files('checkpoint.pt'), probe, [world.probed], probe_of),
        'features': (under('cache', 'features', '*'), probe, [world.probed], probe_of),
        'probe.safetensors': (under('probe', 'probe.safetensors'), infer, [world.answers], answers),
        'journal': (under('answers', 'results.jsonl'), infer, made_from_journal, answers),
        'results.json and results.csv': (under('answers', 'results.[cj]s*[vn]'), infer, [], answers),
        'shards': (under('shards', '*.tar'), from_shards, [world.shard_run], shard_run),
        'tables of shards': (under('shards', '*.[cj]s*'), from_shards, [world.shard_run], shard_run)}
    return plan


@kind(8)
def damage(rng, world):
    kept, plan = world.copy(), damage_plan(world)
    cases = [(where, how) for where in plan for how in DAMAGES]
    while True:
        rng.shuffle(cases)
        for where, how in cases:
            files, command, forget, results = plan[where]
            expected = results()
            if 'half' in forget: half_way(world)
            for path in forget:
                if path == 'half': continue
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            file = rng.choice(sorted(files()))
            file.write_bytes(DAMAGES[how](rng, file.read_bytes()))
            outcome = run(command, world.settings)
            verdict = judge(outcome, results_of(results) == expected)
            yield f'{where}: {file.name} {how}', *verdict
            world.restore(kept)


@kind(1)
def damaged_report_results(rng, world):
    "A damaged result of a report: `reports list` names it, and lists the others"
    folder = world.folder/'results'/'quick'
    folder.mkdir(parents=True, exist_ok=True)
    good = dict(name='nano_fig1_pretraining', title='t', paper='p', makes=['Figure 1'], tier='quick', finding='f.',
                parameters={}, seeds={}, figures=[], tables=[], checks=[], notes=[], data={}, parts={})
    while True:
        for how in ('emptied', 'cut', 'zeros', 'flip'):
            file = folder/'nano_fig1_pretraining.json'
            before = DAMAGES[how](rng, json.dumps(good).encode())
            file.write_bytes(before)
            outcome = run(['reports', 'list', '--tier', 'quick'], world.settings)
            listed = outcome.code == 0 and 'pico_fig1_masks' in outcome.out
            verdict, note = judge(outcome, listed)
            yield f'results JSON {how}', verdict, note if listed else 'the list breaks: ' + words(outcome)
            file.unlink()


# Full disks

def room_of(folder): return sum(f.stat().st_size for f in folder.rglob('*') if f.is_file())


@contextlib.contextmanager
def small_disk(folder, size):
    "A tmpfs of so many bytes, or nothing where none can be mounted"
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'none', folder], capture_output=True)
    try: yield done.returncode == 0
    finally:
        if done.returncode == 0: subprocess.run(['umount', '-l', folder], capture_output=True)


def _full_disk_try(rng, world, command, results, expected, folder, needed):
    "The command with too little room, then again with enough: (what, verdict, note)"
    room = int(rng.uniform(.02, .95)*needed)//4096*4096
    with small_disk(folder, max(room, 8192)) as mounted:
        limits = None if mounted else {resource.RLIMIT_FSIZE: max(room//4, 4096)}
        first = run(command, world.settings, limits)
        how = f'{room//1024} KiB of {needed//1024}' + ('' if mounted else ' (limit on files)')
        if mounted: subprocess.run(['mount', '-o', f'remount,size={16*needed}', folder], capture_output=True)
        second = run(command, world.settings) if first.code else first
        verdict, note = judge(first, results_of(results) == expected)
        after, _ = judge(second, results_of(results) == expected)
        if after == 'silent': verdict, note = after, 'with enough room again: other results without a word'
        elif second.code: verdict, note = 'silent', f'with enough room again it fails: {words(second)}'
    return how, verdict, note


@kind(2)
def full_disk(rng, world):
    def run_of(): return run_results(world.run)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    clips, features = (world.folder/'cache'/name for name in ('clips', 'features'))
    places = [('run folder', world.pretrain(), run_of, world.run, []),
              ('clip cache', world.pretrain(), run_of, clips, [world.run]),
              ('features', world.probe(), lambda: probe_results(world.probed), features, [world.probed]),
              ('answers', world.infer(), lambda: answers_of(world.answers), world.answers, [])]
    kept = world.copy()
    while True:
        for name, command, results, folder, forget in places:
            expected, needed = results(), max(room_of(folder), 16384)
            for path in (folder, *forget): shutil.rmtree(path, ignore_errors=True)
            how, verdict, note = _full_disk_try(rng, world, command, results, expected, folder, needed)
            yield f'{name}: {how}', verdict, note
            world.restore(kept)


# Videos

def plain_frames(path):
    "All frames in the order of decoding, uint8 (T, H, W, 3)"
    import av
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return np.stack([f.to_ndarray(format='rgb24') for f in container.decode(stream)])


def mutate(rng, content):
    "One to twenty damaged places, or an end that is missing"
    if rng.random() < .2: return cut(rng, content)
    for _ in range(rng.randint(1, 20)): content = flip(rng, content)
    return content


def _decode_to(path, out):
    "What jepa makes of a file, written down: frames, or the reason why not"
    from jepa.video import ClipConfig, decode_clips, decode_safely, VideoError
    clip = ClipConfig(num_frames=8, stride=4, size=32, store=32)
    [(_, result)] = list(decode_safely([(str(path), clip)], decode_clips, 1, 20))
    if isinstance(result, VideoError): print(result.reason, file=sys.stderr)
    else: np.save(out, result[0])


@kind(2)
def mutated_videos(rng, world):
    sources = sorted(world.videos.parent.rglob('*.mp4'))
    mutant, out = world.folder/'mutant.mp4', world.folder/'frames.npy'
    first = True # an undamaged file: the comparison itself must hold
    while True:
        content = rng.choice(sources).read_bytes()
        mutant.write_bytes(content if first else mutate(rng, content))
        first = False
        out.unlink(missing_ok=True)
        outcome = run(lambda: _decode_to(mutant, out), world.settings)
        plain = results_of(plain_frames, mutant)
        if not out.exists(): verdict = judge(outcome, False)
        elif isinstance(plain, str): verdict = 'silent', f'frames of a file whose decoding fails: {plain[:80]}'
        else: verdict = _same_frames(np.load(out)[0], plain)
        yield f'{mutant.stat().st_size} bytes', *verdict


def _same_frames(ours, plain):
    "Are the frames those of plain decoding, as far as two converters to RGB agree?"
    from jepa.video import ClipConfig, clip_indices
    if plain.shape[1:] != ours.shape[1:]: return 'equal', 'another size'
    at = clip_indices(len(plain), ClipConfig(num_frames=8, stride=4))[0]
    apart = np.abs(ours.astype(int) - plain[at]).mean((1, 2, 3))
    if apart.max() < 3: return 'equal', ''
    return 'silent', f'{int((apart >= 3).sum())} of {len(at)} frames are not those of plain decoding'


# Hostile files

class Bomb:
    "Unpickled, it leaves a file"
    def __init__(self, code, function=os.system): self.code, self.function = code, function
    def __reduce__(self): return self.function, (self.code,)


def hostile_pickles(flag):
    "name -> bytes"
    touch = f'touch {flag}'
    def saved(value):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()
    opened = f'open({str(flag)!r}, "w")'
    bombs = {'os.system': Bomb(touch), 'eval': Bomb(opened, eval), 'exec': Bomb(opened, exec)}
    files = {f'plain pickle, {name}': pickle.dumps(dict(encoder=bomb)) for name, bomb in bombs.items()}
    files |= {f'torch file, {name}': saved(dict(encoder=bomb)) for name, bomb in bombs.items()}
    files |= {f'torch file, key, {name}': saved({'target_encoder': {'module.x': torch.zeros(2)}, 'more': [bomb]})
              for name, bomb in bombs.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive: archive.writestr('a/data.pkl', bytes(2**28))
    files['zip of 256 MiB of zeros'] = buffer.getvalue()
    return files


def lying_safetensors():
    "name -> bytes"
    def written(header, data=b'\0'*64):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack('<Q', len(text)) + text + data
    def tensor(shape, start, end, dtype='F32'): return dict(dtype=dtype, shape=shape, data_offsets=[start, end])
    return {
        'header of 2^62 bytes': struct.pack('<Q', 2**62) + b'{}',
        'header longer than the file': struct.pack('<Q', 10**6) + b'{}',
        'header is no JSON': written(b'{"a": '),
        'ends past the file': written({'blocks.0.norm1.weight': tensor([4096], 0, 16384)}),
        'offsets run backwards': written({'a': tensor([4], 32, 16)}),
        'negative size': written({'a': tensor([-4], 0, 16)}),
        'two tensors in one place': written({'a': tensor([16], 0, 64), 'b': tensor([16], 0, 64)}),
        'shape of 2^40 numbers': written({'a': tensor([2**20, 2**20], 0, 64)}),
        'unknown type': written({'a': tensor([16], 0, 64, 'F7')}),
        'metadata lies': written({'__metadata__': {'jepa': '{"kind": "probe", "config": {}, "dim": -1}'}}),
        'nested metadata': written({'__metadata__': {'jepa': '['*100000}})}


@kind(1)
def hostile_checkpoints(rng, world):
    flag, memory = world.folder/'executed', run(['--help'], world.settings).memory
    cases = [(name, content, 'hostile.pt') for name, content in hostile_pickles(flag).items()]
    cases += [(name, content, 'hostile.safetensors') for name, content in lying_safetensors().items()]
    rng.shuffle(cases)
    for name, content, file in cases:
        file = world.folder/file
        file.write_bytes(content)
        infer = ['infer', '--videos', world.videos.parent/'val', '--encoder', world.run, '--probe', file]
        for command in (['checkpoint', 'inspect', file], [*infer, '--out', world.folder/'x.csv']):
            outcome = run(command, world.settings, {resource.RLIMIT_FSIZE: 2**28})
            verdict, note = judge(outcome, False)
            if flag.exists(): verdict, note = 'silent', 'code was executed'
            elif outcome.memory - memory > 600: verdict, note = 'silent', f'{outcome.memory:.0f} MiB of memory'
            elif verdict == 'silent' and outcome.code == 0: verdict, note = 'equal', 'nothing harmful is read'
            flag.unlink(missing_ok=True)
            yield f'{name}: {command[0]}', verdict, note


def tar_of(members):
    "Bytes of a tar file: (name, content or type and target)"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple): info.type, info.linkname = content
            else: info.size = len(content)
            tar.addfile(info, None if isinstance(content, tuple) else io.BytesIO(content))
    return buffer.getvalue()


def good_members(world):
    "Eight videos with labels"
    video = next(world.videos.parent.rglob('*.mp4')).read_bytes()
    return [(f'{i:03d}.{end}', content) for i in range(8) for end, content in (('mp4', video), ('cls', b'0'))]


def index_of(members, shard):
    "index.csv of a tar file with these members that is called `shard`"
    with tarfile.open(fileobj=io.BytesIO(tar_of(members))) as tar:
        rows = [dict(path=m.name, label=0, class_name='0', split='', group='', shard=shard, offset=m.offset_data,
                     bytes=m.size) for m in tar if m.name.endswith('.mp4')]
    return pd.DataFrame(rows).to_csv(index=False).encode()


def hostile_shards(world):
    "name -> files of a folder of shards"
    outside, video = world.folder/'outside', next(world.videos.parent.rglob('*.mp4')).read_bytes()
    good = good_members(world)
    tars = {
        'member climbs out': [*good, (f'../../{outside.name}/canary', b'x')],
        'absolute member': [*good, (str(outside/'canary'), b'x')],
        'link to outside': [*good, ('x.mp4', (tarfile.SYMTYPE, str(outside/'canary')))],
        'hard link to outside': [*good, ('x.mp4', (tarfile.LNKTYPE, str(outside/'canary')))],
        'a device': [*good, ('x.mp4', (tarfile.CHRTYPE, ''))],
        'label is no number': [*good, ('x.mp4', video), ('x.cls', b'x'*10**6)],
        'label of 10^12': [*good, ('x.mp4', video), ('x.cls', b'1000000000000')]}
    cases = {name: {'a.tar': tar_of(members)} for name, members in tars.items()}
    about = json.dumps(dict(classes=['0'], shards=1, bytes=1)).encode()
    cases |= {f'index names {name}': {'index.csv': index_of(good, name), 'shards.json': about}
              for name in (str(outside/'canary'), '../outside/canary', '/dev/zero', '/dev/stdin')}
    return cases


@kind(1)
def hostile_tars(rng, world):
    outside = world.folder/'outside'
    outside.mkdir(exist_ok=True)
    canary = tar_of(good_members(world))
    cases = list(hostile_shards(world).items())
    rng.shuffle(cases)
    for name, files in cases:
        (outside/'canary').write_bytes(canary)
        folder, out = world.folder/'bad', world.folder/'bad_run'
        for path in (folder, out): shutil.rmtree(path, ignore_errors=True)
        folder.mkdir()
        for file, content in files.items(): (folder/file).write_bytes(content)
        outcome = run(world.pretrain(out, 1, folder), world.settings, {resource.RLIMIT_FSIZE: 2**28}, timeout=45)
        verdict, note = judge(outcome, False)
        if {p.name: p.read_bytes() for p in outside.iterdir()} != {'canary': canary}:
            verdict, note = 'silent', 'files outside changed'
        elif verdict == 'silent' and outcome.code == 0:
            verdict, note = ('equal', 'the member is not used') if 'member' in name else ('silent', 'read all the same')
        yield name, verdict, note


# Crowds, long runs, the same again

@kind(1)
def two_at_once(rng, world):
    expected_run, expected_answers = run_results(world.run), answers_of(world.answers)
    expected_probe, kept = probe_results(world.probed), world.copy()
    cases = [('pretrain', world.pretrain(), world.run, lambda: run_results(world.run), expected_run),
             ('infer', world.infer(), world.answers, lambda: answers_of(world.answers), expected_answers),
             ('probe', world.probe(), world.probed, lambda: probe_results(world.probed), expected_probe)]
    while True:
        for name, command, folder, results, expected in cases:
            shutil.rmtree(folder)
            first = Job(command, world.settings)
            time.sleep(rng.uniform(0, 1.5))
            second = Job(command, world.settings)
            outcomes = first.wait(), second.wait()
            good = [o for o in outcomes if o.code == 0]
            verdict, note = judge(good[0] if good else outcomes[0], bool(good) and results_of(results) == expected)
            bad = [judge(o, False) for o in outcomes if o.code != 0]
            if verdict == 'equal' and bad: verdict, note = bad[0]
            if verdict == 'said' and not good: verdict, note = 'silent', 'neither of the two ends well: ' + note
            yield f'two {name}', verdict, note
            world.restore(kept)


def watch(job):
    "Resident memory in MiB and open files of a job, while it runs"
    import psutil
    process, rows = psutil.Process(job.pid), []
    while True:
        try:
            if process.status() == psutil.STATUS_ZOMBIE: return np.array(rows)
            rows.append((process.memory_info().rss/2**20, process.num_fds()))
        except psutil.Error: return np.array(rows)
        time.sleep(.1)


@kind(3)
def long_run(rng, world):
    "Memory stays within 5 % of what it is after the first tenth; open files grow not at all"
    out, epochs = world.folder/'long', 30 if world.short else 150
    while True:
        shutil.rmtree(out, ignore_errors=True)
        job = Job(world.pretrain(out, epochs), world.settings)
        rows = watch(job)
        outcome = job.wait(600)
        parts = [np.median(part, axis=0) for part in np.array_split(rows, 10)]
        memory, handles = (np.array([part[i] for part in parts[1:]]) for i in range(2))
        note = f'{memory[0]:.0f} to {memory.max():.0f} MiB, {handles[0]:.0f} to {handles.max():.0f} files'
        flat = memory.max() < 1.05*memory[0] and handles.max() <= handles[0]
        good = flat and outcome.code == 0
        yield f'{epochs} epochs', *(('equal', note) if good else ('silent', f'{note} {words(outcome)}'))
        epochs *= 2


@kind(1)
def determinism(rng, world):
    "metrics.csv and the checkpoint of two runs, byte by byte and number by number"
    while True:
        folders = [world.folder/f'same{i}' for i in range(2)]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            require(run(world.pretrain(folder, 2), world.settings))
        for name in ('metrics.csv', 'meters.csv'):
            a, b = ((folder/name).read_bytes() for folder in folders)
            yield name, *(('equal', '') if a == b else ('silent', 'two runs differ'))
        a, b = (run_results(folder)['state'] for folder in folders)
        yield 'checkpoint.pt, tensors', *(('equal', '') if a == b else ('silent', 'two runs differ'))


# The table

def tries_of(name, seconds, seed, world):
    "Tries of one kind until its time is over; at least one"
    rng, rows, start = random.Random(f'{seed} {name}'), [], time.monotonic()
    kept = world.copy()
    try:
        for what, verdict, note in KINDS[name][1](rng, world):
            rows.append(dict(kind=name, what=what, verdict=verdict, note=note))
            if verdict != 'equal': print(f'  {verdict:<6} {name}: {what}: {note}', flush=True)
            if time.monotonic() - start > seconds: break
    except Exception as e:
        rows.append(dict(kind=name, what='the torture itself', verdict='silent', note=f'{type(e).__name__}: {e}'))
        print(f'  broken {name}: {e}', flush=True)
        if os.environ.get('JEPA_TRACEBACK'): traceback.print_exc()
    finally:
        subprocess.run(['umount', '-l', world.run], capture_output=True)
        world.restore(kept)
    return rows


def summary(rows):
    "A row per kind: tries, equal, said, silent, and how many of those said are tracebacks"
    tries = pd.DataFrame(rows)
    counts = pd.crosstab(tries.kind, tries.verdict).reindex(tries.kind.unique())
    counts = counts.reindex(columns=['equal', 'said', 'silent'], fill_value=0).rename_axis(columns=None)
    counts.insert(0, 'tries', counts.sum(axis=1))
    trace = (tries.verdict == 'said') & tries.note.str.contains('a traceback')
    return counts.assign(tracebacks=trace.groupby(tries.kind).sum())


def markdown(rows, about):
    "The table for README, and what was silent"
    head = '| kind | tries | silent faults | said faults | of them tracebacks |\n|---|---|---|---|---|\n'
    lines = [f'| {name.replace("_", " ")} | {r.tries} | {r.silent} | {r.said} | {r.tracebacks} |'
             for name, r in summary(rows).iterrows()]
    silent = [f'- {r["kind"].replace("_", " ")}, {r["what"]}: {r["note"]}' for r in rows if r['verdict'] == 'silent']
    end = '\n'.join(['Silent:', '', *silent]) if silent else 'Nothing silent.'
    return f'{about}\n\n{head}' + '\n'.join(lines) + f'\n\n{end}\n'


def main():
    parser = argparse.ArgumentParser(prog='tools.torture', description=__doc__.splitlines()[0])
    parser.add_argument('--short', action='store_true', help='at most three minutes on two cores')
    parser.add_argument('--minutes', type=float, default=25, help='without --short')
    parser.add_argument('--only', nargs='*', choices=list(KINDS), default=list(KINDS), metavar='KIND',
                        help=', '.join(KINDS))
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=root/'reports/results/torture')
    args = parser.parse_args()
    for name in HEAVY: importlib.import_module(name) # once: the commands are forked
    torch.set_num_threads(1)
    total, start, rows = 60*(1.5 if args.short else args.minutes), time.monotonic(), []
    shares = {name: KINDS[name][0] for name in args.only}
    with tempfile.TemporaryDirectory(prefix='torture-') as folder:
        world = World(Path(folder)/'world', args.short)
        world.folder.mkdir()
        world.make()
        print(f'an undisturbed world takes {time.monotonic() - start:.0f} s', flush=True)
        for name, share in shares.items():
            rows += tries_of(name, total*share/sum(shares.values()), args.seed, world)
            print(f'{name}: {summary([r for r in rows if r["kind"] == name]).iloc[0].to_dict()}', flush=True)
    minutes = (time.monotonic() - start)/60
    length = ' (short)' if args.short else ''
    about = f'`make torture`{length}: {len(rows)} tries in {minutes:.0f} minutes, seed {args.seed}.'
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out/'torture.md').write_text(markdown(rows, about))
    content = dict(about=about, kinds=summary(rows).to_dict('index'), tries=rows)
    (args.out/'torture.json').write_text(json.dumps(content, indent=1))
    print(f'\n{summary(rows).to_string()}\n{args.out}/torture.md')
    return int(any(r['verdict'] == 'silent' for r in rows))


if __name__ == '__main__': sys.exit(main())
