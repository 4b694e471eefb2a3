"Claims about the embedded dataset: reproducible, independent of its neighbours, nothing shared, nothing half written"
import json
import numpy as np, pandas as pd, pytest
from jepa import actions
from jepa.actions import ACTIONS, FLIP, ActionsConfig, DIGITS, make_actions, render, scene_of, wave

TINY = ActionsConfig(classes=('grow', 'swap'), train=2, val=1, size=32, num_frames=8)

def make(config, root, **kwargs): return make_actions(config, root, **{'workers': 1, 'progress': False, **kwargs})
def clips(manifest): return {p.relative_to(manifest.parent).as_posix(): p for p in manifest.parent.rglob('*.mp4')}

def test_there_are_32_classes():
    assert len(ACTIONS) == len(set(ACTIONS)) == 32
    assert set(FLIP) == set(FLIP.values()) == set(ACTIONS)

@pytest.mark.parametrize('name', ACTIONS)
def test_every_class_moves_and_is_reproducible(name):
    for level in ('easy', 'hard'):
        config = ActionsConfig(size=32, num_frames=8, level=level)
        (a, info), (b, _) = render(name, 'train', 0, config), render(name, 'train', 0, config)
        assert a.shape == (8, 32, 32, 3) and a.dtype == np.uint8
        assert np.array_equal(a, b)
        assert (a != a[:1]).any(), 'nothing moves'
        assert info['digits'][0] != info['digits'][1]

def test_a_clip_depends_on_its_name_alone():
    clip = render('blink', 'val', 7, TINY)[0]
    same_pixels = TINY.replace(classes=('blink',), train=0, val=99, fps=30)
    assert np.array_equal(clip, render('blink', 'val', 7, same_pixels)[0])
    others = [('blink', 'val', 8, TINY), ('blink', 'train', 7, TINY), ('fade', 'val', 7, TINY),
              ('blink', 'val', 7, TINY.replace(seed=1))]
    for other in others: assert not np.array_equal(clip, render(*other)[0])

def test_the_number_of_threads_does_not_matter():
    import torch
    threads, clips_of = torch.get_num_threads(), {}
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            clips_of[n] = np.stack([render(name, 'val', 0, TINY)[0] for name in ACTIONS])
            assert torch.get_num_threads() == n
    finally: torch.set_num_threads(threads)
    assert np.array_equal(clips_of[1], clips_of[2]) and np.array_equal(clips_of[1], clips_of[3])

def test_the_same_frames_give_the_same_file(tmp_path):
    "x264's macroblock tree breaks this, even with one thread"
    frames = render('swap', 'train', 0, ActionsConfig())[0]
    for i in range(15): actions.write_video(tmp_path/f'{i}.mp4', frames)
    assert len({(tmp_path/f'{i}.mp4').read_bytes() for i in range(15)}) == 1

def test_files_decode_to_the_same_pixels_with_one_process_or_two(tmp_path):
    one, two = make(TINY, tmp_path/'one'), make(TINY, tmp_path/'two', workers=2)
    assert one.read_text() == two.read_text()
    assert clips(one).keys() == clips(two).keys()
    others = clips(two)
    for path, file in clips(one).items(): assert np.array_equal(actions._decode(file), actions._decode(others[path]))
    assert json.loads((one.parent/'card.json').read_text()) == json.loads((two.parent/'card.json').read_text())

def test_manifest(tmp_path):
    manifest = make(TINY, tmp_path)
    table = pd.read_csv(manifest)
    assert manifest.name == f'manifest-{TINY.key()}.csv'
    assert list(table.columns) == ['path', 'label', 'class_name', 'split', 'group', 'digit', 'background']
    assert sorted(table.path) == sorted(clips(manifest))
    assert (table.class_name == [TINY.names[i] for i in table.label]).all()
    counts = {(split, name): n for split, n in (('train', 2), ('val', 1)) for name in TINY.names}
    assert table.groupby(['split', 'class_name']).size().to_dict() == counts
    assert actions._decode(manifest.parent/table.path[0]).shape == (8, 32, 32, 3)

def test_splits_share_nothing():
    config = ActionsConfig()
    def scenes(split): return [scene_of(name, split, i, config) for name in ACTIONS for i in range(10)]
    samples, halves = {}, {}
    for split in ('train', 'val'):
        samples[split] = {i for s in scenes(split) for i in s.digits}
        halves[split] = {(s.background, s.half) for s in scenes(split)}
    assert not samples['train'] & samples['val'] and not halves['train'] & halves['val']
    assert samples['train'] <= set(DIGITS['train']) and samples['val'] <= set(DIGITS['val'])
    for name in actions.BACKGROUNDS:
        whole = np.concatenate([actions.photograph_half(name, half) for half in ('left', 'right')], 1)
        assert whole.shape == (427, 640, 3) # the halves do not overlap

def test_a_growing_folder_keeps_its_files(tmp_path):
    first = make(TINY, tmp_path)
    before = {p: (f.stat().st_mtime_ns, f.read_bytes()) for p, f in clips(first).items()}
    second = make(TINY.replace(train=3, classes=('rock', 'grow', 'swap')), tmp_path)
    after = clips(second)
    assert first.exists() and second.parent == first.parent and second != first
    assert len(after) == 12
    for p, content in before.items(): assert (after[p].stat().st_mtime_ns, after[p].read_bytes()) == content
    card = json.loads((first.parent/'card.json').read_text())
    assert set(card['manifests']) == {m.stem.removeprefix('manifest-') for m in (first, second)}

def test_what_exists_is_not_made_again(tmp_path, monkeypatch):
    manifest = make(TINY, tmp_path)
    monkeypatch.setattr(actions, 'write_video', lambda *a: pytest.fail('a clip was written again'))
    assert make(TINY, tmp_path) == manifest

def test_a_missing_clip_is_made_again(tmp_path):
    manifest = make(TINY, tmp_path)
    path = sorted(clips(manifest).values())[0]
    content = path.read_bytes()
    path.unlink()
    make(TINY, tmp_path)
    assert path.read_bytes() == content

def test_an_interrupted_write_leaves_nothing_half_done(tmp_path, monkeypatch):
    done = 0
    def interrupted(class_name, split, index, config):
        nonlocal done
        frames, info = render(class_name, split, index, config)
        done += 1
        if done < 3: return frames, info
        class Stops(np.ndarray):
            def __iter__(self):
                yield np.asarray(self[0])
                raise KeyboardInterrupt('the machine stops here')
        return frames.view(Stops), info
    monkeypatch.setattr(actions, 'render', interrupted)
    with pytest.raises(KeyboardInterrupt): make(TINY, tmp_path)
    monkeypatch.undo()
    files = [p for p in tmp_path.rglob('*') if p.is_file()]
    assert len(files) == 2 # no manifest, no remains
    assert all(p.suffix == '.mp4' and len(actions._decode(p)) == 8 for p in files)
    assert len(pd.read_csv(make(TINY, tmp_path))) == 6

@pytest.mark.parametrize('wrong, message', [
    (dict(classes=('groww',)), "did you mean 'grow'"),
    (dict(classes=('grow', 'grow')), 'twice'),
    (dict(size=33), 'even'),
    (dict(train=-1), 'ActionsConfig.train'),
    (dict(num_frames=1), 'ActionsConfig.num_frames'),
    (dict(level='medium'), 'ActionsConfig.level')])
def test_mistakes_name_themselves(wrong, message):
    with pytest.raises(ValueError, match=message): ActionsConfig(**wrong)

def test_wrong_names_in_render():
    with pytest.raises(ValueError, match="did you mean 'rock'"): render('rokc', 'train', 0, TINY)
    with pytest.raises(ValueError, match="did you mean 'train'"): render('rock', 'trian', 0, TINY)

@pytest.mark.parametrize('rise', [0.1, 0.5, 0.9])
def test_the_wave_takes_every_value_equally_often(rise):
    values = np.sort(wave((np.arange(10000) + 0.5)/10000, rise))
    assert np.abs(values - (np.arange(10000) + 0.5)/10000).max() < 1e-3

@pytest.mark.parametrize('name', ACTIONS)
def test_a_frame_has_two_uniform_actors(name):
    "Kolmogorov-Smirnov; 32 classes x 13 values, so the bound is far below 1/416"
    from scipy.stats import kstest
    scenes = [scene_of(name, 'train', i, TINY.replace(num_frames=32)) for i in range(200)]
    def values_at(s, t):
        pairs = [v[:, t] for v in (s.size, s.angle, s.fade, s.cover)]
        return np.concatenate([s.place[:, t].ravel(), *pairs, s.zoom[t:t+1]])
    values = np.stack([values_at(s, 17) for s in scenes])
    assert values.shape[1] == 13
    assert min(kstest(column, 'uniform').pvalue for column in values.T) > 1e-5
