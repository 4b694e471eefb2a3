"From real layouts to the papers' subsets; nothing is overwritten, interrupted calls go on, broken files are named"
import importlib, io, json, os, sys, tarfile
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from typer.testing import CliRunner
import jepa._fetch, jepa.datasets
from jepa._download import DownloadError
from jepa._fetch import fetch, from_youtube
from jepa.shards import ShardClips, read_shards, remote_shards, write_shards
from jepa.cli import app
from jepa.data import *
from jepa.datasets import *
from jepa.report import published
from jepa.video import *
import trees
from server import serving

cli = CliRunner()
shared = Path(__file__).resolve().parents[2]/'shared'/'videos'/'real'
quiet = dict(workers=0, progress=False)

def jepa_command(*words):
    shown = cli.invoke(app, list(map(str, words)))
    assert shown.exit_code == 0, shown.output
    return shown.stdout

def refused(*words):
    shown = cli.invoke(app, list(map(str, words)))
    assert shown.exit_code == 2 and len(shown.stderr.strip().splitlines()) == 1
    return shown.stderr

def per_class(m): return m.table.groupby(['split', 'class_name']).size().to_dict()

@pytest.fixture(scope='module')
def k700(tmp_path_factory):
    "pico-JEPA's ten classes and two more, a fiftieth of its videos and one or two beside them"
    pico, counts = published('pico_classes'), {}
    for r in pico.itertuples(): counts[r.class_name.replace('_', ' ')] = dict(train=r.pretraining_videos//50 + 2, val=2)
    return trees.kinetics(tmp_path_factory.mktemp('data')/'kinetics700',
        counts | {'arguing': dict(train=9, val=2), 'yoga': dict(train=1)})

# ---- index

def test_index_of_kinetics_700(place, k700):
    shown = jepa_command('data', 'index', k700, '--durations', 'all')
    m = read_manifest(k700/'manifest.csv')
    assert shown.startswith('Kinetics-700: Manifest') and '0 headers' not in shown
    assert f'--from {k700}/manifest.csv' in shown
    assert len(m.classes) == 12 and m.split('val').table.class_name.nunique() == 11
    assert set(m.table.seconds) == {'1.333'} and set(m.table.width) == {'64'}
    assert f'{len(m)} unchanged' in jepa_command('data', 'index', k700)
    assert '0 headers' in jepa_command('data', 'index', k700)

def test_index_finds_what_is_wrong_and_what_changed(tmp_path):
    root = trees.kinetics(tmp_path/'k', {'a': dict(train=4), 'b': dict(train=4)})
    files = sorted((root/'train').glob('*/*.mp4'))
    for f, content in zip(files, (b'', b'no video')):
        f.unlink()
        f.write_bytes(content)
    first = index_dataset(root, **quiet)
    assert dict(zip(map(Path, first.problems.path), first.problems.problem)) == {
        files[0]: 'empty', files[1]: 'Invalid data found when processing input'}
    assert len(first.manifest) == 6 and first.opened == 7 and first.table().files.tolist() == [6]
    assert index_dataset(root, **quiet).opened == 0
    files[0].write_bytes(files[2].read_bytes())
    files[3].unlink()
    trees.video(root/'train'/'b'/'new_000000_000010.mp4')
    later = index_dataset(root, **quiet)
    assert later.changes == dict(new=1, changed=1, unchanged=6, gone=1) and later.opened == 2
    assert len(later.problems) == 1
    (tmp_path/'other.csv').write_text('a,b\n1,2\n')
    with pytest.raises(FileExistsError, match='is not an index'): index_dataset(root, tmp_path/'other.csv', **quiet)
    with pytest.raises(ValueError, match='sample'): index_dataset(root, durations='sampled', **quiet)

def test_index_opens_a_fixed_sample(tmp_path):
    root = trees.kinetics(tmp_path/'k', {c: dict(train=150) for c in 'ab'})
    one, two = (index_dataset(root, tmp_path/name, **quiet) for name in ('one.csv', 'two.csv'))
    known = one.manifest.table.query("seconds != ''")
    assert one.opened == len(known) == 200 and set(known.class_name) == {'a', 'b'}
    assert one.manifest.table.seconds.tolist() == two.manifest.table.seconds.tolist()
    assert index_dataset(root, tmp_path/'three.csv', durations='none', **quiet).opened == 0
    assert index_dataset(root, tmp_path/'one.csv', durations='all', **quiet).opened == 100

def test_ssv2_to_a_part(place, tmp_path):
    templates = ['Putting [something], [something] and [something] on the table',
        'Pushing [something] from left to right', 'Pretending to put [something] into/behind [something]',
        'Lifting [something]']
    root = trees.ssv2(tmp_path/'ssv2', templates, 4, 2)
    (root/'20bn-something-something-v2'/'1.webm').unlink()
    shown = jepa_command('data', 'index', root)
    assert 'Something-Something v2' in shown and '1 files left out: listed, but not there' in shown
    names = ['Putting something, something and something on the table',
        'Pretending to put something into/behind something']
    (tmp_path/'names.txt').write_text(''.join(f'{name}\n' for name in names))
    jepa_command('data', 'nano', '--from', root/'manifest.csv', '--classes', tmp_path/'names.txt', '--per-class', '3,2',
        '--out', tmp_path/'nano')
    part = read_manifest(tmp_path/'nano'/'manifest.csv')
    assert part.classes == (tmp_path/'names.txt').read_text().splitlines()
    assert set(per_class(part.split('train')).values()) == {3} and not part.missing()
    assert 'Qualcomm' in (tmp_path/'nano'/'README.md').read_text()
    assert decode_clips(part.file(0), ClipConfig(num_frames=2, stride=1, size=32))[0].shape[1] == 2

def test_imagenet_to_a_part(place, tmp_path):
    root = trees.imagenet(tmp_path/'imagenet', ['n01440764', 'n01443537', 'n02102040'], 4, 3)
    assert jepa_command('data', 'index', root).startswith('ImageNet: ')
    jepa_command('data', 'nano', '--from', root/'manifest.csv', '--classes', 2, '--per-class', '3,2', '--transcode', 32,
        '--out', tmp_path/'nano')
    part = read_manifest(tmp_path/'nano'/'manifest.csv')
    assert part.classes == ['n01440764', 'n01443537']
    assert per_class(part) == {(s, c): n for c in part.classes for s, n in (('train', 3), ('val', 2))}
    with open_video(part.file(0)) as v: assert (v.width, v.height, v.still) == (43, 32, True)

def test_ucf101_and_hmdb51_with_their_splits(place, tmp_path):
    ucf, hmdb = tmp_path/'ucf', tmp_path/'hmdb'
    for g in (1, 8): trees.video(ucf/'UCF-101'/'Archery'/f'v_Archery_g{g:02d}_c01.avi', g)
    for n in (0, 1): trees.video(hmdb/'wave'/f'Film_wave_u_nm_np1_ba_med_{n}.avi', n)
    for name, text in {'ucf/ucfTrainTestlist/trainlist02.txt': 'Archery/v_Archery_g01_c01.avi 1\n',
        'ucf/ucfTrainTestlist/testlist02.txt': 'Archery/v_Archery_g08_c01.avi\n',
        'hmdb/splits/wave_test_split2.txt': ''.join(f'Film_wave_u_nm_np1_ba_med_{n}.avi {2 - n}\n'
        for n in (0, 1))}.items():
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text(text)
    for root, kind in ((ucf, 'UCF101'), (hmdb, 'HMDB51')):
        assert jepa_command('data', 'index', root, '--official-split', 2).startswith(kind + ': ')
        jepa_command('data', 'nano', '--from', root/'manifest.csv', '--classes', 1, '--per-class', 1, '--split',
            'train,test', '--out', root/'nano')
        assert sorted(read_manifest(root/'nano'/'manifest.csv').table.split) == ['test', 'train']
        assert (root/'nano'/'test.csv').exists()

def test_all_of_imagenet_has_readable_names(tmp_path):
    m = Manifest(pd.DataFrame([dict(path=f'train/n{i:08d}/{i}.JPEG', label=i, class_name=f'n{i:08d}', split='train')
        for i in range(1000)]))
    assert recognise(m) == 'ImageNet'
    counts = jepa.datasets._write_lists(m, tmp_path)
    assert counts.name.tolist()[:2] == ['tench', 'goldfish'] and len(pd.read_csv(tmp_path/'classes.csv')) == 1000

@pytest.mark.skipif(not shared.is_dir(), reason='shared/videos is not here')
def test_real_videos_as_a_plain_folder(place, tmp_path):
    shown = jepa_command('data', 'index', shared, '--out', tmp_path/'real.csv', '--durations', 'all')
    m = read_manifest(tmp_path/'real.csv')
    assert len(m) == 24 and set(m.table.label) == {-1} and (pd.to_numeric(m.table.seconds) > 0).all()
    assert not m.missing() and 'left out' not in shown
    assert "no split 'train'" in refused('data', 'nano', '--from', tmp_path/'real.csv', '--out', tmp_path/'nano')
    some = m.where(range(2)).clips(ClipConfig(num_frames=2, stride=1, size=32), progress=False)
    assert next(iter(loader(some, 2)))['clip'].shape == (2, 3, 2, 32, 32)

# ---- parts

def test_the_papers_subsets():
    pico = published('pico_classes')
    ten, four = request('pico-10', shrink=50), request('pico-4')
    assert ten.classes == tuple(pico.class_name)
    assert ten.counts['train'] == dict(zip(pico.class_name, (pico.pretraining_videos/50).round()))
    assert {s: sum(c.values()) for s, c in four.counts.items()} == dict(train=2817, val=194)
    whole = request('pico-table2') # pretraining on ten classes, validation of four
    assert whole.classes == tuple(pico.class_name)
    assert {s: sum(c.values()) for s, c in whole.counts.items()} == dict(train=7203, val=194)
    assert whole.count('val', 'archery') == 0
    for r in published('nano_tab2').itertuples():
        q = request(f'nano-table2-{r.model}')
        assert q.classes == r.classes and q.counts == dict(train=r.train_per_class, val=r.validation_per_class)

@pytest.mark.parametrize('name, counts',
    [('pico-10', 'pretraining_videos'), ('pico-4', 'train_videos'), ('pico-table2', 'pretraining_videos')])
def test_pico_at_one_fiftieth(place, k700, tmp_path, name, counts):
    jepa_command('data', 'nano', '--from', k700, '--classes', name, '--shrink', 50, '--out', tmp_path/'nano',
        *(['--fewer'] if name == 'pico-4' else []))
    part, pico = read_manifest(tmp_path/'nano'/'manifest.csv'), published('pico_classes').dropna(subset=counts)
    assert {c.replace(' ', '_'): n for (s, c), n in per_class(part).items() if s == 'train'} == {
        r.class_name: round(getattr(r, counts)/50) for r in pico.itertuples()}
    assert [c.replace(' ', '_') for c in part.classes] == pico.class_name.tolist()
    assert {c for (s, c) in per_class(part) if s == 'val'} == (
        {c.replace('_', ' ') for c in request('pico-4').classes} if name != 'pico-10' else set())
    for split in set(part.table.split): # V-JEPA's lists, from any folder
        listed = read_manifest(tmp_path/'nano'/f'{split}.csv')
        assert len(listed) == len(part.split(split)) and not listed.missing()
        assert listed.table.label.tolist() == part.split(split).table.label.tolist()

def test_a_part_depends_on_names_alone(k700, tmp_path):
    m = read_manifest(k700)
    shuffled = m.where(np.random.default_rng(0).permutation(len(m)))
    flat = Manifest(m.table.assign(path=[str(m.root/p) for p in m.table.path]), tmp_path, m.classes)
    def draw(m, **how): return {Path(p).name for p in draw_part(m, request(3, (4, 1), **how), **quiet).table.path}
    assert draw(m) == draw(shuffled) == draw(flat) != draw(m, seed=1)
    assert len(draw(m)) == 15

def test_unreadable_files_make_room_for_the_next(tmp_path):
    root = trees.kinetics(tmp_path/'k', {'a': dict(train=6), 'b': dict(train=6)})
    wanted = request('a,b', 3, ('train',))
    before = draw_part(read_manifest(root), wanted, **quiet)
    lost = before.file(0)
    lost.unlink()
    lost.write_text('broken')
    after = draw_part(read_manifest(root), wanted, **quiet)
    assert set(before.table.path) - set(after.table.path) == {before.table.path[0]} and len(after) == 6
    with pytest.raises(ValueError, match="'a' has 5 readable files in train, not 6"):
        draw_part(read_manifest(root), request('a', 6, ('train',)), **quiet)
    assert len(draw_part(read_manifest(root), request('a', 6, ('train',), fewer=True), **quiet)) == 5

def test_a_file_that_cannot_be_transcoded_is_replaced(tmp_path):
    root = trees.kinetics(tmp_path/'k', {'a': dict(train=4)})
    wanted = request('a', 2, ('train',))
    first = draw_part(read_manifest(root), wanted, **quiet).file(0)
    content = first.read_bytes()
    first.unlink()
    at = content.index(b'mdat') + 300
    first.write_bytes(content[:at] + bytes(len(content[at:content.index(b'moov')]))
        + content[content.index(b'moov'):]) # a good header, zeros behind it
    part = make_part(read_manifest(root), wanted, tmp_path/'nano', 'transcode', 24, **quiet)
    assert len(part) == 2 and not part.missing() and first.name in (tmp_path/'nano'/'failures.csv').read_text()
    assert first.stem not in (tmp_path/'nano'/'manifest.csv').read_text()
    with open_video(part.file(0)) as v: assert (v.width, v.height, len(v), v.fps) == (32, 24, 16, 12.0)

@pytest.mark.parametrize('how', ['link', 'copy'])
def test_interrupted_and_never_overwritten(k700, tmp_path, monkeypatch, how):
    m, wanted, place_one, n = read_manifest(k700), request(2, (3, 1)), jepa.datasets._place, iter(range(100))
    def stops(*job):
        if next(n) == 4: raise KeyboardInterrupt
        place_one(*job)
    monkeypatch.setattr(jepa.datasets, '_place', stops)
    with pytest.raises(KeyboardInterrupt): make_part(m, wanted, tmp_path/'nano', how, **quiet)
    there = {p: p.lstat().st_mtime_ns for p in (tmp_path/'nano').rglob('*.mp4')}
    assert len(there) == 4 and not (tmp_path/'nano'/'README.md').exists()
    part = make_part(m, wanted, tmp_path/'nano', how, **quiet)
    assert next(n) == 9
    assert all(p.lstat().st_mtime_ns == t for p, t in there.items()) # 5 calls and the 4 files that were missing
    assert make_part(m, wanted, tmp_path/'nano', how, **quiet).hash == part.hash and next(n) == 10
    assert all((tmp_path/'nano'/p).is_symlink() == (how == 'link') for p in part.table.path)
    with pytest.raises(FileExistsError, match='another part: counts'):
        make_part(m, request(2, (3, 2)), tmp_path/'nano', how, **quiet)
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'notes.txt').touch()
    with pytest.raises(FileExistsError, match='is not empty'): make_part(m, wanted, tmp_path/'mine', how, **quiet)

@pytest.mark.parametrize('words, hint',
    [(['--classes', 'abseilin'], "did you mean 'abseiling'"), (['--classes', 'pico-5'], 'did you mean'),
    (['--classes', '13', '--per-class', '1'], 'only 11 classes have'), (['--per-class', 'x'], "--per-class 'x'"),
    (['--per-class', '0'], 'expected a number above 0'),
    (['--per-class', '1,2,3'], '3 numbers per class for the 2 splits'),
    (['--split', 'train,test'], "no split 'test'; it has train, val"), (['--copy', '--link'], 'say one of'),
    (['--classes', 'yoga'], "'yoga' has")])
def test_mistakes(place, k700, tmp_path, words, hint):
    assert hint in refused('data', 'nano', '--from', k700, '--out', tmp_path/'nano', *words)

def test_files_of_one_name_are_told_apart(tmp_path):
    for folder in ('one', 'two'): trees.video(tmp_path/'in'/'train'/folder/'cat'/'1.mp4')
    part = make_part(read_manifest(tmp_path/'in', 'tree'), request('cat', 2, ('train',)), tmp_path/'nano', **quiet)
    assert part.table.path.nunique() == 2 and len({os.path.realpath(part.file(i)) for i in (0, 1)}) == 2

# ---- archives

def archive(folder, *names):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w:gz') as tar:
        for name in names: tar.add(folder/'one.mp4', name)
    return out.getvalue()

@pytest.fixture
def cvdf(tmp_path):
    "A server with two archives of Kinetics-700's validation split"
    trees.video(tmp_path/'one.mp4')
    with serving() as site:
        site['kinetics/700_2020/annotations/val.csv'] = ('label,youtube_id,time_start,time_end,split\n'
            + ''.join(f'{c},{c}bcdefghij{i},{i},{i + 10},validate\n' for c in 'xy' for i in range(4))).encode()
        parts = ''.join(f'https://s3.amazonaws.com/kinetics/700_2020/val/part_{p}.tar.gz\n' for p in (0, 1))
        site['kinetics/700_2020/val/k700_2020_val_path.txt'] = parts.encode()
        for p in (0, 1):
            site[f'kinetics/700_2020/val/part_{p}.tar.gz'] = archive(tmp_path,
                *(f'{d}{c}bcdefghij{i}_{i:06d}_{i + 10:06d}.mp4' for c, d in (('x', './'), ('y', '../../'))
                for i in (2*p, 2*p + 1) if (c, i) != ('y', 3)), './notes.txt')
        site.base = site.url + 'kinetics'
        yield site

def test_fetch_unpacks_and_the_index_reads_it(place, cvdf, tmp_path):
    out = tmp_path/'in'/'kinetics700'
    cvdf.breaks = 5 # continued each time
    shown = jepa_command('data', 'fetch', 'kinetics700', '--split', 'val', '--parts', 1, '--base', cvdf.base, '--out',
        out)
    assert '3 videos from 1 archives' in shown and len(list((out/'val').iterdir())) == 3
    assert not list(out.rglob('*.tar.gz*')) and not list(tmp_path.glob('y*'))
    assert '4 videos from 1 archives' in jepa_command('data', 'fetch', 'kinetics700', '--base', cvdf.base, '--out',
        out) # the other one alone
    shown = jepa_command('data', 'index', out)
    assert shown.startswith('Kinetics-700') and '1 files left out: listed, but not there' in shown
    assert per_class(read_manifest(out/'manifest.csv')) == {('val', 'x'): 4, ('val', 'y'): 3}
    assert 'no part 7; parts are 0 to 1' in refused('data', 'fetch', 'kinetics700', '--parts', 7, '--base', cvdf.base,
        '--out', out)
    assert 'kinetics700' in refused('data', 'fetch', 'kinetics70', '--base', cvdf.base, '--out', out)

def test_fetch_that_goes_wrong(cvdf, tmp_path, monkeypatch):
    def go(): return fetch('kinetics700', 'val', tmp_path/'k', base=cvdf.base, progress=False)
    monkeypatch.setattr(jepa._fetch, 'download', lambda *a,
        **k: jepa._download.download(*a, **k, wait=0.001, retries=1))
    with monkeypatch.context() as m:
        m.setattr(jepa._fetch.shutil, 'disk_usage', lambda _: type('', (), dict(free=2000)))
        with pytest.raises(DownloadError, match='2 archives need about'): go()
    good = cvdf.files['/kinetics/700_2020/val/part_1.tar.gz']
    cvdf['kinetics/700_2020/val/part_1.tar.gz'] = good[:len(good)//2] + bytes(len(good)//2) # arrives whole, is damaged
    with pytest.raises(DownloadError, match='is damaged'): go()
    def videos(): return len(list((tmp_path/'k'/'val').glob('*.mp4')))
    before = videos()
    # unpacks, but its checksum is wrong: nothing of it is kept
    cvdf['kinetics/700_2020/val/part_1.tar.gz'] = good[:-8] + bytes(8)
    with pytest.raises(DownloadError, match='is damaged'): go()
    assert videos() == before > 0
    assert not list(tmp_path.rglob('*.tar.gz')) and (tmp_path/'k'/'.archives'/'val_0.done').exists()
    cvdf.announce = 10
    with pytest.raises(DownloadError, match='bytes, .* were expected'): go() # a wrong length
    cvdf.announce = 0
    del cvdf.files['/kinetics/700_2020/val/part_1.tar.gz']
    with pytest.raises(DownloadError, match='404'): go()
    cvdf['kinetics/700_2020/val/part_1.tar.gz'] = good
    assert go() == {1: 3} and videos() == before + 3
    cvdf.stop()
    with pytest.raises(DownloadError, match='refused'):
        fetch('kinetics700', 'val', tmp_path/'new', base=cvdf.base, progress=False)

fake = '''
import shutil, sys
from pathlib import Path
words = sys.argv[1:]
out, id = Path(words[words.index('-o') + 1].replace('%(ext)s', 'mp4')), words[-1].split('=')[1]
if id.startswith('y'): sys.exit('ERROR: video unavailable')
assert words[words.index('--download-sections') + 1].startswith('*')
assert Path(words[words.index('--cookies') + 1]).exists()
shutil.copy(Path(__file__).with_name('one.mp4'), out)
'''

def test_from_youtube(place, cvdf, tmp_path, monkeypatch):
    words = ['data', 'fetch', 'kinetics700', '--from-youtube', '--base', cvdf.base, '--out', tmp_path/'k', '--cookies',
        tmp_path/'cookies.txt']
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert "pip install 'jepa[youtube]'" in refused(*words)
    monkeypatch.undo()
    (tmp_path/'yt_dlp.py').write_text(fake)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.setenv('JEPA_SETTINGS', str(place/'settings.ini'))
    assert 'cookies.txt' in refused(*words)
    (tmp_path/'cookies.txt').touch()
    shown = cli.invoke(app, list(map(str, [*words, '--per-class', 2])))
    assert shown.exit_code == 1 and '2 videos were not to be had' in shown.stderr
    assert sorted(p.name for p in (tmp_path/'k'/'val').iterdir()) == [
        f'xbcdefghij{i}_{i:06d}_{i + 10:06d}.mp4' for i in (0, 1)]
    failures = pd.read_csv(tmp_path/'k'/'failures.csv')
    assert failures.reason.tolist() == ['ERROR: video unavailable']*2 and failures.label.tolist() == ['y', 'y']
    assert len(from_youtube('kinetics700', 'val', tmp_path/'k', ['x'], cookies=tmp_path/'cookies.txt', base=cvdf.base,
        progress=False)) == 2 and len(list((tmp_path/'k'/'val').iterdir())) == 4
    assert "no class 'z'" in refused(*words, '--classes', 'z')
    assert per_class(index_dataset(tmp_path/'k', **quiet).manifest) == {
        ('val', 'x'): 4} # failures.csv is no official list

# ---- shards

clip = ClipConfig(num_frames=4, stride=2, size=32)

@pytest.fixture(scope='module')
def few(k700): return draw_part(read_manifest(k700), request(3, (6, 2)), **quiet)

@pytest.fixture(scope='module')
def shards(few, tmp_path_factory):
    return write_shards(few, tmp_path_factory.mktemp('shards')/'s', 0.008, workers=0, progress=False)

def test_shards_hold_the_files(few, shards):
    assert shards.table['shard'].nunique() > 3
    plain, stream = Clips(few, clip, Augment(train=False)), shards.clips(clip, Augment(train=False))
    where = {g: i for i, g in enumerate(few.table.group)}
    for i, g in enumerate(shards.table.group):
        a, b = stream[i], plain[where[g]]
        assert a['clip'].equal(b['clip']) and a['label'] == b['label']

def test_shards_are_a_manifest(few, shards):
    again = read_manifest(shards.root)
    assert again.hash == shards.hash and again.classes == few.classes and type(again.split('train')) is type(shards)
    assert len(again.split('val').select(n=3)) == 3 and not again.missing()
    assert again.split('train').hash != shards.hash
    assert again.select([few.classes[1]]).relabel().classes == [few.classes[1]]

def test_a_stream_is_shuffled_continued_and_local(shards):
    clips = shards.split('train').clips(clip)
    clips.window = 2
    orders = [clips.order(e, 0) for e in (0, 1)]
    assert all(sorted(o) == list(range(len(clips))) for o in orders) and orders[0] != orders[1]
    names = [clips._members[i][0] for i in orders[0]]
    for name in set(names): # all files of a shard lie within the stretch of its window
        at = [k for k, n in enumerate(names) if n == name]
        assert len(set(names[at[0]:at[-1] + 1])) <= 2
    whole = list(loader(clips, 4, epoch=1, workers=0))
    later = list(loader(clips, 4, epoch=1, start=2, workers=2))
    assert len(later) == len(whole) - 2 and all(a['clip'].equal(b['clip']) for a, b in zip(whole[2:], later))

def test_shards_go_on_and_refuse(few, tmp_path, monkeypatch):
    import jepa.shards
    write, n = jepa.shards._write_shard, iter(range(100))
    def stops(*a):
        if next(n) == 2: raise KeyboardInterrupt
        write(*a)
    monkeypatch.setattr(jepa.shards, '_write_shard', stops)
    with pytest.raises(KeyboardInterrupt): write_shards(few, tmp_path/'s', 0.008, workers=0, progress=False)
    made = {p: p.stat().st_mtime_ns for p in (tmp_path/'s').glob('*.tar')}
    done = write_shards(few, tmp_path/'s', 0.008, workers=0, progress=False)
    assert len(made) == 2 and all(p.stat().st_mtime_ns == t for p, t in made.items()) and len(done) == len(few)
    with pytest.raises(FileExistsError, match='other files or sizes'):
        write_shards(few, tmp_path/'s', 1, progress=False)
    with pytest.raises(FileNotFoundError, match='not there'):
        write_shards(Manifest(few.table.assign(path='x.mp4'), tmp_path), tmp_path/'t', progress=False)
    first = tmp_path/'s'/done.table['shard'][0]
    os.truncate(first, 1000)
    with pytest.raises(ValueError, match='ends before'):
        for i in range(len(done)):
            if done.table['shard'][i] == first.name: done.clips(clip)[i]

def test_shards_leave_out_what_cannot_be_decoded(place, tmp_path):
    root = trees.kinetics(tmp_path/'k', {'a': dict(train=20)})
    bad = sorted((root/'train'/'a').iterdir())[3]
    content = bad.read_bytes()
    bad.unlink()
    at = content.index(b'mdat') + 300
    bad.write_bytes(content[:at] + bytes(len(content[at:content.index(b'moov')])) + content[content.index(b'moov'):])
    shards = write_shards(read_manifest(root), tmp_path/'s', workers=0, progress=False)
    assert len(shards) == 19 and pd.read_csv(tmp_path/'s'/'skipped.csv').path.tolist() == [str(bad)]
    trees.put(bad, root/'train'/'a'/'again_000000_000010.mp4')
    with pytest.raises(ValueError, match='2 of 21 files could not be decoded, more than 5%'):
        write_shards(read_manifest(root), tmp_path/'t', workers=0, progress=False)

def test_shards_of_other_programs(shards, tmp_path):
    import shutil
    for f in shards.root.glob('*.tar'): shutil.copy(f, tmp_path)
    found = read_manifest(tmp_path)
    assert found.table.label.tolist() == shards.table.label.tolist()
    assert found.table.offset.tolist() == shards.table.offset.tolist()

def test_shards_of_a_server_take_little_room(place, shards, tmp_path, monkeypatch):
    with serving() as site:
        for f in shards.root.iterdir(): site[f'd/{f.name}'] = f.read_bytes()
        assert 'more than the 8 shards' in refused('data', 'shards', '--at', site.url + 'd', '--keep', 2, '--out',
            tmp_path/'s')
        monkeypatch.setattr(ShardClips, 'window', 1)
        jepa_command('data', 'shards', '--at', site.url + 'd', '--keep', 2, '--out', tmp_path/'s')
        remote = read_manifest(tmp_path/'s')
        clips, local = remote.clips(clip, seed=3), shards.clips(clip, seed=3)
        assert remote.hash == shards.hash and not remote.missing()
        for a, b in zip(loader(clips, 4, workers=0), loader(local, 4, workers=0)):
            assert a['clip'].equal(b['clip']) and len(list((tmp_path/'s').glob('*.tar'))) <= 2
        # each once: order keeps to a shard
        assert sum(p.endswith('.tar') for p, _ in site.asked) <= shards.table['shard'].nunique() + 1

def test_few_files_come_from_few_shards(shards):
    some = shards.select(n=2)
    assert len(some) == 2 and set(some.table['shard']) <= set(sorted(set(shards.table['shard']))[:4])
    assert some.hash == shards.select(n=2).hash
    with pytest.raises(ValueError, match='wanted'): shards.select(n=1000)

def test_probe_features_of_a_stream(place, shards):
    from jepa.encoder import Encoder, EncoderConfig, SIZES
    from jepa.probe import features
    encoder = Encoder(EncoderConfig(num_frames=4, height=32, width=32, **SIZES['toy'])).eval()
    found = features(encoder, shards.split('val').clips(clip, Augment(train=False)), progress=False)
    assert len(found.labels) == len(shards.split('val'))

@pytest.mark.slow
def test_probe_reads_shards_like_files(place, few, shards):
    run = place/'runs'/'pretrained'
    jepa_command('pretrain', few.root, '--out', run, '--size', 'toy',
        *'--num-frames 4 --stride 2 --pixels 32 --patch-size 8 --epochs 1 --batch-size 8'.split(),
        *'--set predictor.embed_dim=24 --set predictor.depth=1 --set monitor_clips=8'.split())
    few.save(place/'few.csv')
    said = [jepa_command('probe', run, where, *'--kind logistic --copies 0'.split()).splitlines()[:2]
        for where in (shards.root, place/'few.csv')]
    assert said[0] == said[1] and 'n=6' in said[0][0]

# ---- three commands

@pytest.mark.slow
def test_from_a_kinetics_folder_to_table_2(place, tmp_path):
    root = trees.kinetics(tmp_path/'kinetics400', {f'class {c}': dict(train=9, val=5) for c in 'abcdefghi'})
    jepa_command('data', 'index', root)
    jepa_command('data', 'nano', '--from', root/'manifest.csv', '--classes', 'nano-table2', '--shrink', 12, '--out',
        tmp_path/'nano')
    small = dict(videos=8, epochs=1, num_frames=4, stride=2, pixels=32, patch_size=8, predictor_dim=24,
        predictor_depth=1, video_pixels=36, monitor_clips=8, batch_size=4, copies=1, segments=1, views=1,
        scratch_epochs=1, shrink=12,
                 dataset=tmp_path/'nano'/'manifest.csv', pretraining=root/'manifest.csv')
    shown = cli.invoke(app, ['reports', 'run', 'nano_tab2_videos', '--tier', 'paper',
        *(w for k, v in small.items() for w in ('--set', f'{k}={v}'))])
    assert '1 made' in shown.stdout, shown.output
    record = json.loads((place/'results/paper/nano_tab2_videos.json').read_text())
    table = pd.read_csv(place/'results/paper/nano_tab2_videos/controls.csv')
    assert record['finding'] and table.query("model == 'C' and encoder == 'pretrained'").n.tolist() == [32]
    assert 'nano/manifest.csv' in record['finding']

def test_every_command_has_help():
    for name in ('index', 'nano', 'fetch', 'shards'): assert 'Usage' in jepa_command('data', name, '--help')

# ---- what others send

def test_an_exact_name_comes_first(tmp_path):
    table = [(f'{k}.mp4', k, name, 'train') for k, name in enumerate(('Yoga', 'yoga', 'air drumming'))]
    m = Manifest(pd.DataFrame(table, columns=['path', 'label', 'class_name', 'split']), tmp_path)
    for row in m.table.path: trees.video(tmp_path/row)
    def draw(classes): return draw_part(m, request(classes, 1, ('train',)), **quiet)
    assert draw('Yoga').classes == ['Yoga'] and draw('yoga').classes == ['yoga'] and len(draw('Yoga,yoga')) == 2
    assert draw('Air_Drumming').classes == ['air drumming']
    with pytest.raises(KeyError, match="'YOGA' could be 'Yoga' or 'yoga'"): draw('YOGA')
    with pytest.raises(ValueError, match='name the same class'): draw('air_drumming,air drumming')

def test_the_index_decodes_a_first_frame(tmp_path):
    root = trees.kinetics(tmp_path/'k', {'a': dict(train=3)})
    first = sorted((root/'train'/'a').iterdir())[0]
    content = first.read_bytes()
    first.unlink()
    at = content.index(b'mdat') + 4
    first.write_bytes(content[:at] + bytes(content.index(b'moov') - 4 - at) + content[content.index(b'moov') - 4:])
    assert [Path(p) for p in index_dataset(root, tmp_path/'m.csv', **quiet).problems.path] == [first]
    assert not len(index_dataset(root, tmp_path/'h.csv', headers_only=True, **quiet).problems)

def test_a_part_may_be_a_plain_tar(cvdf, tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as tar: tar.add(tmp_path/'one.mp4', 'b_000001_000011.mp4')
    cvdf['kinetics/700_2020/val/part_1.tar.gz'] = out.getvalue()
    assert fetch('kinetics700', 'val', tmp_path/'k', [1], base=cvdf.base, progress=False) == {1: 1}
    assert [p.name for p in (tmp_path/'k'/'val').iterdir()] == ['b_000001_000011.mp4']

def test_an_archive_that_grows_too_much_is_refused(tmp_path):
    import gzip
    with gzip.open(tmp_path/'bomb.tar.gz', 'wb', compresslevel=9) as f:
        info = tarfile.TarInfo('zeros.mp4')
        info.size = 100*2**20
        f.write(info.tobuf())
        for _ in range(100): f.write(bytes(2**20))
    with pytest.raises(DownloadError, match='unpacks to more than|zeros.mp4 of 104857600 bytes'):
        jepa._fetch.unpack(tmp_path/'bomb.tar.gz', tmp_path/'out')
    assert not (tmp_path/'bomb.tar.gz').exists() and not list((tmp_path/'out').glob('*'))

@pytest.fixture
def mp4(tmp_path): return trees.video(tmp_path/'made'/'one.mp4')

def tar_of(file, **members):
    "A tar file with these members: {name: bytes}"
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, 'w', format=tarfile.GNU_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.parent

def test_names_in_foreign_tars(mp4, tmp_path):
    video = mp4.read_bytes()
    dotted = tar_of(tmp_path/'d'/'a.tar', **{'./0.mp4': video, './0.cls': b'1', 'v1.0/Track 1.0 (live).mp4': video,
        'v1.0/Track 1.0 (live).cls': b'0', './._0.mp4': b'mac'})
    m = read_manifest(dotted)
    assert m.table.label.tolist() == [1, 0] and m.clips(clip)[1]['clip'].shape[1] == 4
    named = read_manifest(tar_of(tmp_path/'n'/'a.tar',
        **{'0.mp4': video, '0.cls': b'wave', '1.mp4': video, '1.cls': b'run'}))
    assert named.classes == ['run', 'wave'] and named.table.label.tolist() == [1, 0]
    tar_of(tmp_path/'b'/'backup.tar', readme=b'hi')
    trees.put(mp4, tmp_path/'b'/'train'/'run'/'0.mp4')
    assert read_manifest(tmp_path/'b').classes == ['run'] # a stray tar file beside folders

def test_tars_that_cannot_be_read_say_why(mp4, tmp_path):
    import gzip
    whole = (tar_of(tmp_path/'w'/'a.tar', **{'0.mp4': mp4.read_bytes()})/'a.tar').read_bytes()
    for name, content, why in (('gz', gzip.compress(whole), 'is compressed .gzip.'),
        ('cut', whole[:1500], 'ends before|cut short')):
        (tmp_path/name).mkdir()
        (tmp_path/name/'a.tar').write_bytes(content)
        with pytest.raises(ValueError, match=f'a.tar.*({why})'): read_manifest(tmp_path/name)

def test_class_names_that_look_like_numbers_stay_text(place, tmp_path):
    root = trees.kinetics(tmp_path/'t', {c: dict(train=2) for c in ('001', '002')})
    m = write_shards(read_manifest(root), tmp_path/'s', workers=0, progress=False)
    assert m.classes == ['001', '002'] and set(m.table.class_name) == {'001', '002'} and len(m.select(['001'])) == 2

@pytest.mark.parametrize('name', ['/etc/a.tar', '../a.tar', 'x/a.tar', '.tar', 'a.txt', 'a.tar\0', '..\\a.tar'])
def test_an_index_names_plain_tar_files_only(shards, tmp_path, name):
    index = shards.table.assign(shard=name)
    index.to_csv(tmp_path/'index.csv', index=False)
    (tmp_path/'shards.json').write_text(json.dumps(dict(classes=shards.classes)))
    with pytest.raises(ValueError, match='no plain name'): read_shards(tmp_path)

def test_a_shard_is_no_link_and_no_device(shards, tmp_path):
    index = shards.table.assign(shard='a.tar')
    (tmp_path/'shards.json').write_text(json.dumps(dict(classes=shards.classes)))
    index.to_csv(tmp_path/'index.csv', index=False)
    (tmp_path/'a.tar').symlink_to('/dev/zero')
    with pytest.raises(ValueError, match='a link, device or folder'): read_shards(tmp_path)
    (tmp_path/'a.tar').unlink()
    index.assign(offset=-1).to_csv(tmp_path/'index.csv', index=False)
    with pytest.raises(ValueError, match='whole numbers of at least 0'): read_shards(tmp_path)
    index.assign(bytes=10**15).to_csv(tmp_path/'index.csv', index=False)
    (tmp_path/'a.tar').write_bytes(bytes(1000))
    with pytest.raises(ValueError, match='ends before'): read_shards(tmp_path).clips(clip)[0]

def test_damaged_shards_are_named(few, tmp_path):
    m = write_shards(few, tmp_path/'s', 0.008, workers=0, progress=False)
    row = m.table.iloc[0]
    with open(tmp_path/'s'/row['shard'], 'r+b') as f:
        f.seek(row.offset + 100)
        f.write(b'!!!!')
    with pytest.raises(ValueError, match=f"{row['shard']} is damaged at {row.path}"): m.clips(clip)[0]

def test_only_listed_shards_are_removed(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(ShardClips, 'window', 1)
    with serving() as site:
        for f in shards.root.iterdir(): site[f'd/{f.name}'] = f.read_bytes()
        remote = remote_shards(site.url + 'd', tmp_path/'s', keep=2)
        foreign = [tmp_path/'s'/f'mine-{k}.tar' for k in range(3)]
        for file in foreign:
            file.write_text('mine')
            os.utime(file, (0, 0))
        for _ in loader(remote.clips(clip), 4, workers=0): pass
        assert all(file.read_text() == 'mine' for file in foreign)
        name = shards.table['shard'][0]
        site[f'd/{name}'] = bytes(2*10**7) # more than its index says
        with pytest.raises(DownloadError, match='at most were expected'):
            remote_shards(site.url + 'd', tmp_path/'t').clips(clip)[0]
