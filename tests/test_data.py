"Manifests of every layout and their errors; draws that depend on names alone; a cache that survives being killed"
import json, os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
import jepa.data
from jepa.actions import ActionsConfig, make_actions
from jepa.core import seeded
from jepa.data import *
from jepa.video import *

clip = ClipConfig(num_frames=4, stride=2, segments=3, size=40)

@pytest.fixture(scope='module')
def manifest(tmp_path_factory):
    config = ActionsConfig(classes=('move_left', 'move_right', 'grow'), train=3, val=2, size=48, num_frames=16)
    return read_manifest(make_actions(config, root=tmp_path_factory.mktemp('data'), workers=0, progress=False))

@pytest.fixture(scope='module')
def cache(manifest, tmp_path_factory):
    return build_cache(manifest, clip, tmp_path_factory.mktemp('cache'), workers=1, progress=False)

def put(root, **texts):
    for name, text in texts.items():
        path = Path(root)/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Path(root)

def tree(root, *names): return put(root, **{name: '' for name in names})
def rows(m, *names): return m.table[list(names)].values.tolist()

# ---- layouts

def test_list(tmp_path):
    m = read_manifest(put(tmp_path, **{'train.csv': '/a/x.mp4 3\n\n"b/with spaces.mp4" 0\n'})/'train.csv',
        split='train')
    assert rows(m, 'path', 'label', 'split') == [['/a/x.mp4', 3, 'train'], ['b/with spaces.mp4', 0, 'train']]
    assert m.file(0) == Path('/a/x.mp4') and m.file(1) == tmp_path/'b/with spaces.mp4'
    assert m.classes == ['0', '1', '2', '3']

def test_csv(tmp_path):
    put(tmp_path, **{'pico.csv': 'video_name,label\nb.mp4,sit\n"a, c.mp4",jump\n',
        'ours.csv': '\ufeffpath,label,class_name,split,group,extra\nx.mp4,1,dog,val,g,7\ny.mp4,-1,,val,g,8\n'})
    assert rows(read_manifest(tmp_path/'pico.csv'), 'path', 'label', 'class_name') == [
        ['b.mp4', 1, 'sit'], ['a, c.mp4', 0, 'jump']]
    ours = read_manifest(tmp_path/'ours.csv')
    assert rows(ours, *columns, 'extra') == [['x.mp4', 1, 'dog', 'val', 'g', '7'], ['y.mp4', -1, '', 'val', 'g', '8']]
    assert ours.classes == ['0', 'dog']

def test_kinetics_and_imagenet_trees(tmp_path):
    tree(tmp_path, 'k/train/high kick/a_000012_000022.mp4', 'k/val/yoga/b_000001_000011.mp4', 'i/val/n02/1.JPEG',
        'i/val/n01/1.JPEG', 'i/val/n01/.hidden.JPEG', 'i/val/n01/notes.txt')
    assert rows(read_manifest(tmp_path/'k'), *columns) == [
        ['train/high kick/a_000012_000022.mp4', 0, 'high kick', 'train', 'a'],
        ['val/yoga/b_000001_000011.mp4', 1, 'yoga', 'val', 'b']]
    images = read_manifest(tmp_path/'i')
    assert rows(images, 'path', 'label') == [['val/n01/1.JPEG', 0], ['val/n02/1.JPEG', 1]]
    assert images.table.group.nunique() == 2

@pytest.mark.parametrize('root', ['', 'UCF-101'])
def test_ucf101_official_splits(tmp_path, root):
    tree(tmp_path, *(f'UCF-101/{c}/v_{c}_g{g:02d}_c01.avi' for c in ('Archery', 'Rowing') for g in (1, 8)))
    put(tmp_path/'ucfTrainTestlist',
        **{f'trainlist0{k}.txt': ''.join(f'{c}/v_{c}_g{g}_c01.avi {i}\n'
        for i, c in enumerate(('Archery', 'Rowing'), 1)) for k, g in ((1, '08'), (2, '01'))},
        **{f'testlist0{k}.txt': ''.join(f'{c}/v_{c}_g{g}_c01.avi\n' for c in ('Archery', 'Rowing'))
            for k, g in ((1, '01'), (2, '08'))})
    for number, expected in ((None, ['test', 'train']), (1, ['test', 'train']), (2, ['train', 'test'])):
        m = read_manifest(tmp_path/root, split=number)
        assert rows(m, 'split', 'group') == [
            [s, f'v_{c}_g{g}'] for c in ('Archery', 'Rowing') for s, g in zip(expected, ('01', '08'))]

def test_hmdb51_official_splits(tmp_path):
    tree(tmp_path/'hmdb51_org', *(f'wave/Film_wave_u_nm_np1_ba_med_{k}.avi' for k in range(3)))
    lines = ''.join(f'Film_wave_u_nm_np1_ba_med_{k}.avi {split} \n' for k, split in enumerate((1, 2, 0)))
    put(tmp_path/'testTrainMulti_7030_splits', **{'wave_test_split1.txt': lines})
    for root in (tmp_path, tmp_path/'hmdb51_org'):
        assert rows(read_manifest(root), 'split', 'group') == [['train', 'Film'], ['test', 'Film'], ['', 'Film']]
    put(tmp_path/'testTrainMulti_7030_splits',
        **{'wave_test_split1.txt': 'Film_wave_u_nm_np1_ba_med_0.avi 1\nFilm_wave.avi 7\n'})
    with pytest.raises(ValueError, match='wave_test_split1.txt, line 2'): read_manifest(tmp_path)

def test_kinetics_with_official_lists(tmp_path):
    head = 'label,youtube_id,time_start,time_end,split\n'
    put(tmp_path, **{'annotations/train.csv': head + 'high kick,abc,12,22,train\n"a, b",d-_e,1.0,11.0,train\n',
        'annotations/val.csv': head + 'high kick,gone,0,10,validate\nhigh kick,abc,12,22,validate\n'})
    tree(tmp_path, 'train/abc_000012_000022.mp4', 'train/d-_e_000001_000011.mp4', 'val/new_000003_000013.mp4',
        '.partial/x_000001_000011.mp4')
    m = read_manifest(tmp_path)
    assert rows(m, *columns) == [['train/abc_000012_000022.mp4', 1, 'high kick', 'train', 'abc'],
        ['train/d-_e_000001_000011.mp4', 0, 'a, b', 'train', 'd-_e'],
        ['val/gone_000000_000010.mp4', 1, 'high kick', 'val', 'gone'], ['val/new_000003_000013.mp4', -1, '', '', 'new']]
    assert m.missing() == ['val/gone_000000_000010.mp4']
    put(tmp_path, **{'annotations/val.csv': head + 'high kick,abc,12,22,validate\nhigh kick,abc,soon,22,validate\n'})
    with pytest.raises(ValueError, match="val.csv, line 3: time_start 'soon'"): read_manifest(tmp_path)
    put(tmp_path, **{'annotations/val.csv': 'label,youtube_id\nx,y\n'})
    with pytest.raises(ValueError, match="val.csv, line 1: no column 'time_start'"): read_manifest(tmp_path)

def test_something_something(tmp_path):
    tree(tmp_path, '20bn-something-something-v2/7.webm', '20bn-something-something-v2/8.webm')
    put(tmp_path/'labels', **{'labels.json': '{"Pushing something": "0", "Lifting something": "1"}',
        'train.json': '[{"id": "7", "template": "Lifting [something]"}]',
        'validation.json': '[{"id": 8, "template": "Pushing [something]"}]'})
    m = read_manifest(tmp_path)
    assert rows(m, 'path', 'label', 'class_name', 'split') == [
        ['20bn-something-something-v2/7.webm', 1, 'Lifting something', 'train'],
        ['20bn-something-something-v2/8.webm', 0, 'Pushing something', 'val']]
    assert m.classes == ['Pushing something', 'Lifting something'] and not m.missing()
    put(tmp_path/'labels', **{'train.json': '[{"id": "7"}]'})
    with pytest.raises(ValueError, match="train.json, entry 1: no 'template'"): read_manifest(tmp_path)
    put(tmp_path/'labels', **{'train.json': '[{"id": "7", "template": "Lifting [somethin]"}]'})
    with pytest.raises(ValueError, match="did you mean 'Lifting something'"): read_manifest(tmp_path)

def test_plain_folder_and_single_file(tmp_path):
    tree(tmp_path, 'two.webm', 'one.mp4')
    assert rows(read_manifest(tmp_path), 'path', 'label') == [['one.mp4', -1], ['two.webm', -1]]
    assert rows(read_manifest(tmp_path/'two.webm'), 'path', 'label') == [['two.webm', -1]]
    assert read_manifest(tmp_path).classes == []
    tree(tmp_path, 'sub/three.mp4')
    with pytest.raises(ValueError, match="layout='tree' or layout='plain'"): read_manifest(tmp_path)
    assert len(read_manifest(tmp_path, 'plain')) == 3

@pytest.mark.parametrize('text, line, what', [
    ('a.mp4 0\nb c.mp4 1\n', 2, 'needs quotes'), ('a.mp4 0\nb.mp4 one\n', 2, 'not a whole number'),
    ('a.mp4 0\nb.mp4 -2\n', 2, 'not a whole number'), ('a.mp4\n', 1, '1 fields'),
    ('a.mp4 0\n\na.mp4 2\n', 3, 'in line 1'),
    ('a.mp4 0\n"b.mp4 1\n', 2, ''), ('path,label\na.mp4,0\nb.mp4\n', 3, '1 cells for the 2 columns'),
    ('path,label\na.mp4,0\nb.mp4,jump\n', 3, 'not a whole number'), ('path,label\n,0\n', 2, 'path is empty'),
    ('path,label\na.mp4,\n', 2, ''), ('path,class\na.mp4,0\n', 1, "no column 'label'")])
def test_bad_rows_name_file_and_line(tmp_path, text, line, what):
    with pytest.raises(ValueError, match=f'bad.csv, line {line}: .*{what}'):
        read_manifest(put(tmp_path, **{'bad.csv': text})/'bad.csv')

def test_other_errors(tmp_path):
    tree(tmp_path, 'val/lost.mp4', 'val/class/kept.mp4')
    with pytest.raises(ValueError, match='lost.mp4 lies in no class folder'): read_manifest(tmp_path)
    with pytest.raises(FileNotFoundError, match='no such file'): read_manifest(tmp_path/'nothing')
    with pytest.raises(ValueError, match="did you mean 'tree'"): read_manifest(tmp_path, 'trees')
    (tmp_path/'binary.csv').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='not a text file'): read_manifest(tmp_path/'binary.csv')
    for empty in ('', 'path,label\n'):
        with pytest.raises(ValueError, match='no rows'): read_manifest(put(tmp_path, **{'e.csv': empty})/'e.csv')
    (tmp_path/'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='no video or image'): read_manifest(tmp_path/'empty')

paths_and_labels = st.lists(st.tuples(st.text('ab c"é,', min_size=1, max_size=6).map(lambda s: s.strip() or 'x'),
    st.integers(0, 3)), min_size=1, max_size=8, unique_by=lambda r: r[0])

@given(paths_and_labels)
@settings(max_examples=50, deadline=None)
def test_written_lists_read_back(tmp_path_factory, listed):
    "What a CSV writer quotes, the readers understand"
    import csv
    folder = tmp_path_factory.mktemp('lists')
    for name, options in (('space.txt', dict(delimiter=' ')), ('comma.csv', {})):
        with open(folder/name, 'w', newline='', encoding='utf-8') as f:
            writer = csv.writer(f, **options)
            if name == 'comma.csv': writer.writerow(['path', 'label'])
            writer.writerows(listed)
        assert rows(read_manifest(folder/name), 'path', 'label') == [list(r) for r in listed]

def test_save_and_hash(manifest, tmp_path):
    manifest.save(tmp_path/'deep'/'m.csv')
    again = read_manifest(tmp_path/'deep'/'m.csv')
    assert not again.missing()
    assert rows(again, 'label', 'class_name', 'split', 'group') == rows(manifest, 'label', 'class_name', 'split',
        'group')
    assert manifest.hash == Manifest(manifest.table, manifest.root, manifest.classes).hash
    assert len({manifest.hash, manifest.split('train').hash,
        Manifest(manifest.table.assign(label=0, class_name='x'), manifest.root).hash,
        Manifest(manifest.table, tmp_path, manifest.classes).hash}) == 4
    assert Manifest(manifest.table.assign(label=0, class_name='x'), manifest.root).files_key == manifest.files_key

@st.composite
def tables(draw):
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    order = draw(st.permutations([(c, k) for c, size in enumerate(sizes) for k in range(size)]))
    return Manifest(pd.DataFrame([dict(path=f'{c}/{k}.mp4', label=c, class_name=f'class {c}')
        for c, k in order])), sizes

@given(tables(), st.integers(0, 5), st.data())
@settings(max_examples=60, deadline=None)
def test_select_is_stratified_nested_and_independent_of_order(made, seed, data):
    m, sizes = made
    n = data.draw(st.integers(1, len(m)))
    some = m.select(n=n, seed=seed)
    counts = some.table.class_name.value_counts()
    assert len(some) == n
    assert all(counts.get(f'class {c}', 0) in (size, counts.max(), counts.max() - 1) for c, size in enumerate(sizes))
    assert some.table.path.tolist() == m.select(seed=seed, n=len(m)).table.path.tolist()[:n]
    assert some.table.path.tolist() == Manifest(m.table.sort_values('path')).select(n=n, seed=seed).table.path.tolist()
    k = data.draw(st.integers(1, min(sizes)))
    per_class = m.select(per_class=k, seed=seed)
    assert set(per_class.table.class_name.value_counts()) == {k}
    assert set(m.select(['class 0'], per_class=k,
        seed=seed).table.path) == set(per_class.table.path[per_class.table.label == 0])

def test_select_refuses_and_relabels(manifest):
    for wrong, what in ((dict(per_class=9), "class 'grow' has 3 files in train, not 9"),
        (dict(n=99), '99 files wanted, 15 there'), (dict(n=0), 'n must be at least 1')):
        with pytest.raises(ValueError, match=what): manifest.select(**wrong)
    with pytest.raises(KeyError, match="did you mean 'train'"): manifest.split('trian')
    part = manifest.select(['grow', 'move_right'])
    assert set(part.table.label) == {1, 2} and part.relabel().classes == ['move_right', 'grow']
    assert set(part.relabel().table.label) == {0, 1}
    assert manifest.select(2).table.label.max() == 1

# ---- augmentation

def test_all_frames_share_one_crop_and_flip_is_optional():
    still = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 60, 50, 3), dtype=np.uint8), 5, 0)
    for k in range(20):
        with seeded(k): out = Augment()(still, 32)
        assert out.shape == (3, 5, 32, 32) and out.dtype == torch.float32 and out.is_contiguous()
        assert (out == out[:, :1]).all()
    one_sided = np.zeros((2, 40, 40, 3), np.uint8)
    one_sided[:, :, :20] = 255
    whole, left = Augment(scale=(1., 1.), ratio=(1., 1.)), []
    for k in range(40):
        with seeded(k): left.append(bool(whole(one_sided, 40)[0, 0, 0, 0] > 0))
        with seeded(k): assert whole.replace(flip=False)(one_sided, 40)[0, 0, 0, 0] > 0
    assert 8 < sum(left) < 32

@pytest.mark.parametrize('height, width', [(40, 70), (70, 40), (32, 32), (37, 37)])
def test_fixed_crops(height, width):
    x = torch.arange(height*width, dtype=torch.float32).reshape(1, 1, height, width).expand(2, 3, -1,
        -1).mul(255/(height*width)).byte()
    assert fixed_crop(x, 32).shape == (2, 3, 32, 32)
    assert all(fixed_crop(x, 32, v, 3).shape == (2, 3, 32, 32) for v in range(3))
    long = 2 if height > width else 3
    means = [fixed_crop(x, 32, v, 3).float().mean().item() for v in range(3)]
    if height != width: assert means[0] < means[1] < means[2]
    small = torch.zeros(1, 3, 37, 37, dtype=torch.uint8)
    small[..., 2:34, 2:34] = 9
    assert (fixed_crop(small, 32) == 9).all() # short side round(32*256/224) = 37: nothing is scaled, the centre is cut

def test_normalise_inverts():
    x = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    y = normalise(x)
    mean, std = (torch.tensor(v)[:, None, None, None] for v in (imagenet_mean, imagenet_std))
    expected = (x.permute(1, 0, 2, 3).float()/255 - mean)/std
    assert torch.allclose(y, expected, atol=1e-5) and (denormalise(y) == x.permute(0, 2, 3, 1).numpy()).all()

# ---- cache

def test_cache_holds_what_the_decoder_gives(manifest, cache):
    for p in manifest.table.path[::4]: assert (cache[p] == decode_clips(manifest.root/p, clip)[0]).all()
    assert len(cache) == len(manifest) and not len(cache.skipped) and set(cache.table.decoder) <= set(backends)

def test_second_call_only_opens(manifest, cache, monkeypatch):
    monkeypatch.setattr(jepa.data, 'decode_safely', lambda *_: pytest.fail('decoded again'))
    assert build_cache(manifest, clip.replace(views=3), cache.folder.parent, progress=False).folder == cache.folder
    with pytest.raises(BaseException, match='decoded again'):
        build_cache(manifest, clip.replace(stride=3), cache.folder.parent, progress=False)

def test_interrupted_build_goes_on(manifest, cache, tmp_path, monkeypatch):
    seen = []
    def stops(jobs, fn, workers, timeout):
        for k, pair in enumerate(decode_safely(jobs, fn, 0)):
            if k == 6: raise KeyboardInterrupt
            yield pair
    monkeypatch.setattr(jepa.data, 'decode_safely', stops)
    with pytest.raises(KeyboardInterrupt): build_cache(manifest, clip, tmp_path, progress=False)
    partial, = tmp_path.glob('*.partial')
    with open(partial/'clips.u8', 'ab') as f: f.write(b'pixels without a row')       # torn in the middle of a file
    with open(partial/'rows.jsonl', 'a') as f: f.write('{"path": "half a li')
    def counts(jobs, *rest):
        seen.extend(jobs)
        return decode_safely(jobs, *rest)
    monkeypatch.setattr(jepa.data, 'decode_safely', counts)
    again = build_cache(manifest, clip, tmp_path, workers=0, progress=False)
    assert len(seen) == len(manifest) - 6 and not list(tmp_path.glob('*.partial'))
    assert (again.folder/'clips.u8').read_bytes() == (cache.folder/'clips.u8').read_bytes()
    assert again.table.equals(cache.table)

script = '''
import sys
from jepa.data import *; from jepa.video import *
print(build_cache(read_manifest(sys.argv[1]), ClipConfig(num_frames=4, stride=2, segments=3, size=40), sys.argv[2],
    workers=1, progress=False))
'''
def test_kill_9_leaves_no_half_cache(manifest, cache, tmp_path):
    listed = next(manifest.root.glob('manifest-*.csv'))
    process = subprocess.Popen([sys.executable, '-c', script, listed, tmp_path], stdout=subprocess.DEVNULL)
    end = time.time() + 60
    while process.poll() is None and time.time() < end and not (list(tmp_path.glob('*.partial/rows.jsonl'))
        and next(tmp_path.glob('*.partial/rows.jsonl')).stat().st_size):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = build_cache(manifest, clip, tmp_path, workers=0, progress=False)
    assert (again.folder/'clips.u8').read_bytes() == (cache.folder/'clips.u8').read_bytes()

def test_skipped_files_are_listed_and_too_many_stop(manifest, tmp_path):
    (tmp_path/'broken.mp4').write_bytes(manifest.file(0).read_bytes()[:900])
    def mixed(good, bad):
        return Manifest(pd.DataFrame([dict(path=str(manifest.file(i)), label=0) for i in range(good)]
            + [dict(path=p, label=1) for p in bad]), tmp_path)
    message = '2 of 10 files could not be decoded, more than 5%.*broken.mp4: .*skipped.csv'
    with pytest.raises(ValueError, match=message):
        build_cache(mixed(8, ['broken.mp4', 'missing.mp4']), clip, tmp_path/'c', workers=1, progress=False)
    m = mixed(8, ['broken.mp4', 'missing.mp4'])
    cache = build_cache(m, clip, tmp_path/'c', workers=1, progress=False, max_skipped=0.2)
    assert cache.skipped.path.tolist() == ['broken.mp4', 'missing.mp4'] and cache.skipped.reason.str.len().min() > 5
    assert len(cache) == 8
    with pytest.raises(ValueError, match='2 of 10'): build_cache(m, clip, tmp_path/'c', workers=1, progress=False)
    ds = Clips(m, clip, Augment(), cache)
    assert len(ds) == 8 and set(ds.manifest.table.label) == {0}
    with pytest.raises(VideoError, match='missing.mp4'): next(iter(loader(Clips(m, clip), 10, workers=1)))

# ---- clips and loaders

def same(a, b):
    return len(a) == len(b) and all(x['clip'].equal(y['clip']) and x['label'].equal(y['label'])
        and x['index'].equal(y['index']) for x, y in zip(a, b))

@pytest.mark.parametrize('cached', [True, False])
def test_batches_depend_on_names_alone(manifest, cache, cached):
    "For any number of workers, after any draws before, and when continued"
    def make(**k): return Clips(manifest.split('train'), clip, Augment(), cache if cached else None, **k)
    once = list(loader(make(), 2, epoch=3, seed=1, workers=0))
    torch.rand(17)
    make()[5]
    assert same(once, list(loader(make(), 2, epoch=3, seed=1, workers=2)))
    assert same(once[2:], list(loader(make(), 2, epoch=3, seed=1, start=2, workers=1)))
    assert not same(once, list(loader(make(), 2, epoch=4, seed=1, workers=0)))
    assert not same(once, list(loader(make(seed=1), 2, epoch=3, seed=1, workers=0)))

def test_an_epoch_visits_every_clip_once(manifest, cache):
    ds = Clips(manifest.split('train'), clip, Augment(), cache)
    seen = torch.cat([b['index'] for b in loader(ds, 4, epoch=1, drop_last=False)])
    assert sorted(seen.tolist()) == list(range(len(ds))) and len(loader(ds, 4)) == len(ds)//4
    assert torch.cat([b['index'] for b in loader(ds, 4, shuffle=False)]).tolist() == list(range(len(ds)))
    with pytest.raises(ValueError, match='make no batch of 99'): loader(ds, 99)

def test_training_draws_every_segment(manifest, cache):
    ds = Clips(manifest.split('train'), clip, Augment(scale=(1., 1.), ratio=(1., 1.), flip=False), cache)
    segments = [normalise(fixed_crop(torch.from_numpy(np.array(s)).permute(0, 3, 1, 2), 40, 0, 3))
        for s in cache[ds.manifest.table.path[0]]]
    drawn = {min(range(3), key=lambda k: (ds[epoch, 0, 0]['clip'] - segments[k]).abs().mean().item())
        for epoch in range(30)}
    assert drawn == {0, 1, 2}

def test_evaluation_views_are_segments_times_crops(manifest, cache):
    ds = Clips(manifest.split('val'), clip.replace(views=3), Augment(train=False), cache)
    on_the_fly = Clips(manifest.split('val'), clip.replace(views=3), Augment(train=False))
    assert ds.num_views == 9
    for view in (0, 4, 8): assert ds[0, 1, view]['clip'].equal(on_the_fly[7, 1, view]['clip'])
    batches = list(loader(ds, 9, shuffle=False, all_views=True))
    assert [b['index'].unique().tolist() for b in batches] == [[i] for i in range(len(ds))]
    assert batches[2]['clip'][4].equal(ds[0, 2, 4]['clip'])
    with pytest.raises(IndexError, match='9 views'): ds[0, 0, 9]

def test_images_become_clips(tmp_path):
    from PIL import Image
    for k in range(2):
        (tmp_path/f'c{k}').mkdir()
        Image.fromarray(np.full((60, 50, 3), 100*k, np.uint8)).save(tmp_path/f'c{k}'/'a.png')
    m = read_manifest(tmp_path)
    cached = build_cache(m, clip, tmp_path/'cache', workers=0, progress=False)
    assert set(cached.table.decoder) == {'pillow'}
    batch = next(iter(loader(Clips(m, clip, Augment(train=False), cached), 2, shuffle=False)))
    assert batch['clip'].shape == (2, 3, 4, 40, 40) and batch['label'].tolist() == [0, 1]
    assert (batch['clip'] == batch['clip'][:, :, :1]).all()

def test_wrong_cache_is_refused(manifest, cache):
    with pytest.raises(ValueError, match='built with stride=2, not 4'):
        Clips(manifest, clip.replace(stride=4), cache=cache)
    with pytest.raises(KeyError, match='from another manifest'):
        Clips(Manifest(pd.DataFrame([dict(path='other.mp4', label=0)])), clip, cache=cache)

def test_cache_is_small_to_send_to_workers(cache):
    import pickle
    cache[cache.table.path[0]]
    again = pickle.loads(pickle.dumps(cache))
    assert len(pickle.dumps(cache)) < 20_000 and (again[cache.table.path[2]] == cache[cache.table.path[2]]).all()

# ---- as people write and lay them out

def test_labels_as_people_write_them(tmp_path):
    def read(text, name='m.csv'): return read_manifest(put(tmp_path, **{name: text})/name)
    floats = read('path,label\n' + ''.join(f'{k}.mp4,{k}.0\n' for k in range(12)))
    assert floats.table.label.tolist() == list(range(12))
    padded = read('path,label\na.mp4,010\nb.mp4,002\n')
    assert padded.classes == ['002', '010'] and padded.table.class_name.tolist() == ['010', '002']
    for text, what in (('path,label\na.mp4,0\nb.mp4,4102938475\n', 'line 3: label 4102938475 is no number of a class'),
        ('path,label\na.mp4,0.0\nc.mp4,nan\n', "line 3: the label is missing .'nan'"),
        ('path,label\na.mp4,run\nc.mp4,NaN\n', "line 3: the label is missing .'NaN'"),
        ('path,label\na.mp4,1.5\n', 'not a whole number'), ('path;label\na.mp4;0\n', 'found semicolons'),
        ('a.mp4,0\n', 'found commas; a file with commas needs the header'),
        ('label,youtube_id\nyoga,b\n', "no column 'path' among label, youtube_id; expected `path,label`")):
        with pytest.raises(ValueError, match=what): read(text)
    with pytest.raises(ValueError, match='is no number of a class'):
        Manifest(pd.DataFrame([dict(path='a.mp4', label=10**9)]))
    assert rows(read('Path,Label\na.mp4,1\n'), 'path', 'label') == [['a.mp4', 1]]
    assert rows(read('filename,label\na.mp4,1\n'), 'path', 'label') == [['a.mp4', 1]]
    assert rows(read('path\na.mp4\n'), 'path', 'label') == [['a.mp4', -1]]
    (tmp_path/'u16.txt').write_bytes('a.mp4 0\n'.encode('utf-16'))
    assert rows(read_manifest(tmp_path/'u16.txt'), 'path', 'label') == [['a.mp4', 0]]

def test_splits_as_people_write_them(tmp_path):
    text = 'path,label,split\na.mp4,0,Train\nb.mp4,0,validation\nc.mp4,0,videos_val\nd.mp4,0,fold 1\ne.mp4,0,TEST\n'
    m = read_manifest(put(tmp_path, **{'m.csv': text})/'m.csv')
    assert m.table.split.tolist() == ['train', 'val', 'val', 'fold 1', 'test']
    assert [split_of(name) for name in ('training_dog', 'train station', 'val2017', 'train_val', 'rawframes_test')] == [
        '', '', 'val', '', 'test']
    tree(tmp_path/'vs', 'videos_train/run/a.mp4', 'videos_val/run/b.mp4')
    assert rows(read_manifest(tmp_path/'vs'), 'class_name', 'split') == [['run', 'train'], ['run', 'val']]

def test_links_are_followed_and_loops_end(tmp_path, capfd):
    tree(tmp_path, 'src/yoga/a.mp4', 'sym/run/c.mp4')
    (tmp_path/'sym'/'yoga').symlink_to(tmp_path/'src'/'yoga')
    (tmp_path/'sym'/'run'/'back').symlink_to(tmp_path/'sym')
    m = read_manifest(tmp_path/'sym')
    assert rows(m, 'path', 'class_name') == [['run/c.mp4', 'run'], ['yoga/a.mp4', 'yoga']]
    assert m.ignored == {'links that lead back': 1}
    assert 'sym: 1 ignored: 1 links that lead back' in capfd.readouterr().err

def test_what_is_no_example_is_counted(tmp_path):
    tree(tmp_path, 'run/a.mp4', 'run/@eaDir/a.mp4/SYNOVIDEO_VIDEO_SCREENSHOT.jpg', 'run/a.jpg', 'run/x.raw',
        'run/notes.txt',
        'yoga/A.MTS', 'yoga/B.m2ts', 'yoga/._B.m2ts')
    m = read_manifest(tmp_path)
    assert m.classes == ['run', 'yoga'] and len(m) == 3 and sum(m.ignored.values()) == 4
    assert m.ignored['pictures of a video beside them'] == m.ignored['.raw: no known video or image'] == 1

def test_trees_that_could_be_read_two_ways(tmp_path):
    tree(tmp_path/'cam', 'walk/cam1/a.mp4', 'run/cam1/b.mp4')
    with pytest.raises(ValueError, match="'cam1' stands under run and walk; layout='outer'"):
        read_manifest(tmp_path/'cam')
    assert read_manifest(tmp_path/'cam', 'outer').classes == ['run', 'walk']
    assert read_manifest(tmp_path/'cam', 'tree').classes == ['cam1']
    tree(tmp_path/'raw', 'run/v1/img_1.jpg', 'run/v2/img_1.jpg', 'yoga/v3/img_1.jpg')
    with pytest.raises(ValueError, match='as if they were the frames of videos'): read_manifest(tmp_path/'raw')
    tree(tmp_path/'mixed', 'run/a.mp4', 'run/night/b.mp4', 'yoga/c.mp4')
    with pytest.raises(ValueError, match="'run' holds files and folders with files"): read_manifest(tmp_path/'mixed')

def test_tiny_imagenet(tmp_path):
    tree(tmp_path, 'train/n01443537/images/a_0.JPEG', 'train/n01629819/images/b_0.JPEG', 'val/images/val_0.JPEG',
        'test/images/test_0.JPEG')
    put(tmp_path, **{'val/val_annotations.txt': 'val_0.JPEG\tn01443537\t0\t0\t62\t62\n'})
    assert rows(read_manifest(tmp_path), 'label', 'class_name', 'split') == [
        [-1, '', 'test'], [0, 'n01443537', 'train'],
        [1, 'n01629819', 'train'], [0, 'n01443537', 'val']]

def test_kinetics_with_its_json_list(tmp_path):
    entry = {'abc': {'annotations': {'label': 'yoga', 'segment': [1.0, 11.0]}, 'subset': 'validate'}}
    tree(tmp_path, 'val/abc_000001_000011.mp4')
    put(tmp_path, **{'validation.json': json.dumps(entry)})
    assert rows(read_manifest(tmp_path), 'path', 'class_name', 'split') == [
        ['val/abc_000001_000011.mp4', 'yoga', 'val']]

def test_odd_names_of_files(tmp_path):
    tree(tmp_path/'in', 'run/a\nb.mp4', 'run/ c .mp4', 'run/$HOME.mp4', 'run/=1.mp4')
    (tmp_path/'in'/'run'/os.fsdecode(b'caf\xe9.mp4')).touch()
    m = read_manifest(tmp_path/'in')
    assert m.ignored == {'names that are not UTF-8 text': 1} and len(m) == 4
    m.save(tmp_path/'in'/'m.csv')
    again = read_manifest(tmp_path/'in'/'m.csv')
    assert again.table.path.tolist() == m.table.path.tolist() and not again.missing()

def test_content_names_a_cache(tmp_path):
    def key(folder, content):
        (tmp_path/folder).mkdir(exist_ok=True)
        (tmp_path/folder/'a.mp4').write_bytes(content)
        return Manifest(pd.DataFrame([dict(path='a.mp4', label=0)]), tmp_path/folder).files_key
    assert key('one', b'red') == key('two', b'red') != key('one', b'sky')
    large = bytes(3*2**20)
    first = key('one', large)
    time.sleep(0.02)
    assert key('one', large[:-1] + b'x') != first and key('one', large[:2**20] + b'x' + large[2**20 + 1:]) != first

def test_the_embedded_dataset_has_one_hash(tmp_path):
    config = ActionsConfig(classes=('move_left', 'grow'), train=1, val=1, size=48, num_frames=8)
    hashes = {read_manifest(make_actions(config, root=tmp_path/name, workers=0, progress=False)).hash for name in 'ab'}
    assert len(hashes) == 1

@pytest.mark.parametrize('harm', ['pixels', 'short', 'index', 'meta'])
def test_damaged_caches_are_made_again(manifest, tmp_path, capfd, harm):
    part = manifest.where(range(3))
    made = build_cache(part, clip, tmp_path, workers=0, progress=False)
    whole = (made.folder/'clips.u8').read_bytes()
    if harm == 'pixels': (made.folder/'clips.u8').write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    if harm == 'short': os.truncate(made.folder/'clips.u8', 100)
    if harm == 'index':
        (made.folder/'index.csv').write_text((made.folder/'index.csv').read_text().replace(',3,', ',2,'))
    if harm == 'meta': (made.folder/'meta.json').write_text('{')
    again = build_cache(part, clip, tmp_path, workers=0, progress=False)
    err = capfd.readouterr().err
    assert err.count('is damaged and is made again') == 1 and (again.folder/'clips.u8').read_bytes() == whole
    build_cache(part, clip, tmp_path, workers=0, progress=False)
    assert not capfd.readouterr().err

def test_damage_while_a_cache_is_in_use(manifest, tmp_path):
    part = manifest.where(range(2))
    made = build_cache(part, clip, tmp_path, workers=0, progress=False)
    with open(made.folder/'clips.u8', 'r+b') as f: f.write(b'!!!!')
    with pytest.raises(ValueError, match='is damaged at'): made[part.table.path[0]]

def test_space_is_checked_before_a_cache_is_written(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(jepa.data.shutil, 'disk_usage', lambda _: type('', (), dict(free=1000)))
    with pytest.raises(OSError, match='needs at least 0.00 GB'): build_cache(manifest, clip, tmp_path, progress=False)
