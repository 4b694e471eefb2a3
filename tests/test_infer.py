"""Answers for folders of videos: averages over looks, batches across videos, broken files, killed runs.

Runs with other settings do not mix in one table.
"""
import json, multiprocessing, os, signal, time, warnings
from pathlib import Path
import av, numpy as np, pandas as pd, pytest, torch
from typer.testing import CliRunner
import jepa.infer
from jepa.checkpoint import load_checkpoint
from jepa.core import seeded
from jepa.data import Augment, Clips, Manifest, class_names, content_key
from jepa.encoder import Encoder, encoder_config
from jepa.ensemble import RULES, Ensemble, save_ensemble
from jepa.infer import *
from jepa.probe import AttentiveClassifier, Probe, ProbeConfig, features, make_head
from jepa.video import ClipConfig, VideoError, decode_clips

cli = CliRunner()
golden = Path(__file__).parent/'golden'/'vjepa1_uniform.pt'
how = dict(segments=3, views=3, stride=2, batch_size=4, workers=0, progress=False)
fork = multiprocessing.get_context('fork')


def write(path, length, height, width, seed=0):
    "A smooth pattern that moves, as H.264"
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:height, :width]/32
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, 'yuv420p'
        for t in range(length):
            waves = [np.sin((3 + seed)*x + 0.2*t + c)*np.cos(5*y - 0.1*t*seed) for c in range(3)]
            frame = np.stack([127.5*(1 + wave) for wave in waves], -1).astype('uint8')
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        container.mux(stream.encode())


@pytest.fixture(scope='module', autouse=True)
def float32(place):
    with open(place/'settings.ini', 'a') as f: f.write('precision = float32\n')


@pytest.fixture(scope='module')
def folder(place):
    "Six videos of three shapes, and two files that are none"
    shapes = [(30, 48, 80), (12, 32, 32), (5, 64, 48), (40, 48, 48), (20, 32, 64), (25, 48, 80)]
    for k, (length, height, width) in enumerate(shapes):
        write(place/'videos'/f'{k}.mp4', length, height, width, k)
    (place/'videos'/'empty.mp4').touch()
    (place/'videos'/'cut.mp4').write_bytes((place/'videos'/'0.mp4').read_bytes()[:900])
    return place/'videos'


def make_classifier(place, seed=0, classes='abcde'):
    with seeded(seed, 'model'):
        encoder = Encoder(encoder_config('toy', num_frames=4, height=32, width=32))
        probe = AttentiveClassifier(48, 3, len(classes))
        for weight in (encoder.patch_embed.proj.weight, probe.linear.weight): weight.data.mul_(20)
        for p in probe.pooler.parameters(): p.data.mul_(5)
    return Classifier(encoder, probe, classes)


@pytest.fixture(scope='module')
def classifier(place): return make_classifier(place)


@pytest.fixture(scope='module')
def whole(place, folder, classifier):
    "An uninterrupted run"
    return infer(classifier, video_files(folder), place/'whole'/'results.csv', **how)


def same(a:pd.DataFrame, b:pd.DataFrame): pd.testing.assert_frame_equal(a, b, atol=1e-5)


def test_names():
    assert len(class_names('kinetics400')) == 400 and class_names('kinetics400')[0] == 'abseiling'
    assert len(class_names('imagenet')) == 1000
    with pytest.raises(FileNotFoundError, match="did you mean 'imagenet'"): class_names('image-net')


def test_a_missing_name_names_its_line(tmp_path):
    (tmp_path/'names.txt').write_text('cat\n\ndog\n\n')
    with pytest.raises(ValueError, match='line 2'): class_names(tmp_path/'names.txt')
    (tmp_path/'names.txt').write_text('\ufeffcat\n dog \n\n')
    assert class_names(tmp_path/'names.txt') == ['cat', 'dog']


def test_looks_stand_for_all_segments_and_crops(folder, classifier):
    clip = classifier.clip(8, 3, 2)
    # wide; short and square; shorter than a clip, and tall; square
    for name, expected in (('0.mp4', 24), ('1.mp4', 6), ('2.mp4', 3), ('3.mp4', 8)):
        seen = list(looks(*decode_segments(folder/name, clip)[:2], clip))
        assert len(seen) == expected and sum(weight for _, weight in seen) == pytest.approx(1)
        assert all(x.shape == (4, 3, 32, 32) for x, _ in seen)


def test_answers_are_the_mean_over_all_views(folder, classifier):
    clip = classifier.clip(8, 3, 2)
    names = ['0.mp4', '1.mp4', '2.mp4', '3.mp4']
    clips = Clips(Manifest(pd.DataFrame([dict(path=n, label=-1) for n in names]), folder), clip, Augment(train=False))
    naive = [torch.cat([classifier(clips[0, i, v]['clip'][None]) for v in range(24)]).mean(0).numpy() for i in range(4)]
    batched = [p for _, p, _ in classify(classifier, [folder/n for n in names], clip, batch_size=7, workers=0)]
    assert np.abs(np.stack(naive) - np.stack(batched)).max() < 1e-5 and np.stack(naive).std(0).max() > 0.02


def test_batches_go_across_videos(folder, classifier):
    sizes = []
    def watched(clips):
        sizes.append(len(clips))
        return classifier(clips)
    files = [folder/f'{k}.mp4' for k in range(6)]
    answers = list(classify(watched, files, classifier.clip(2, 1, 2), batch_size=5, workers=0))
    assert [Path(f).name for f, *_ in answers] == [f'{k}.mp4' for k in range(6)] and set(sizes[:-1]) == {5}
    assert sizes[-1] <= 5


def test_broken_files_are_listed_and_the_others_answered(whole, place):
    assert whole.table.path.tolist() == [f'{k}.mp4' for k in range(6)]
    skipped = pd.read_csv(place/'whole'/'skipped.csv')
    assert sorted(skipped.path) == ['cut.mp4', 'empty.mp4'] and 'the file is empty' in skipped.reason.tolist()


def test_tables_say_the_same(whole, place):
    table, stored = pd.read_csv(place/'whole'/'results.csv'), json.loads((place/'whole'/'results.json').read_text())
    assert stored['complete'] and [r['path'] for r in stored['results']] == table.path.tolist()
    assert len(stored['skipped']) == 2
    for (_, row), r in zip(table.iterrows(), stored['results']):
        probabilities = [a['probability'] for a in r['top']]
        assert probabilities == [row[f'probability_{k}'] for k in range(1, 6)] == sorted(probabilities, reverse=True)
        assert [a['class'] for a in r['top']] == [row[f'class_{k}'] for k in range(1, 6)]
        assert sum(a['probability'] for a in r['top']) == pytest.approx(1, abs=1e-4)


def sleeping(path, *job, **options):
    "A decoder that hangs on one file and crashes on another"
    if Path(path).name == '1.mp4': time.sleep(60)
    if Path(path).name == '2.mp4': os._exit(3)
    return decode_clips(path, *job, **options)


def test_a_hanging_and_a_crashing_decoder_cost_only_their_file(folder, classifier, monkeypatch):
    monkeypatch.setattr(jepa.infer, 'decode_clips', sleeping)
    files = [folder/f'{k}.mp4' for k in range(5)]
    answers = classify(classifier, files, classifier.clip(2, 1, 2), workers=1, timeout=1)
    found = {Path(f).name: p for f, p, _ in answers}
    assert {name for name, p in found.items() if isinstance(p, VideoError)} == {'1.mp4', '2.mp4'}
    assert 'given up after 1 s' in found['1.mp4'].reason and 'died' in found['2.mp4'].reason


def ctrl_c(): raise KeyboardInterrupt


def interrupted(classifier, at, action=ctrl_c):
    "The same classifier, stopped in batch `at`"
    class Stopped(Classifier):
        calls = 0
        def __call__(self, clips):
            self.calls += 1
            if self.calls == at: action()
            return super().__call__(clips)
    return Stopped(classifier.encoder, classifier.probe, classifier.classes)


@pytest.mark.parametrize('at', [1, 3, 6])
def test_a_resumed_run_equals_an_uninterrupted_one(at, folder, classifier, whole, tmp_path):
    stopped = interrupted(classifier, at)
    with pytest.raises(KeyboardInterrupt): infer(stopped, video_files(folder), tmp_path/'r.csv', **how)
    before = pd.read_csv(tmp_path/'r.csv')
    assert len(before) < 6 and not json.loads((tmp_path/'r.json').read_text())['complete']
    asked = []
    def watched(classifier, files, *rest):
        asked.extend(Path(f).name for f in files)
        return classify(classifier, files, *rest)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(jepa.infer, 'classify', watched)
        resumed = infer(classifier, video_files(folder), tmp_path/'r.csv', **how)
    assert not set(asked) & set(before.path)
    names = [f'{k}.mp4' for k in range(6)] + ['cut.mp4', 'empty.mp4']
    assert sorted([*asked, *before.path]) == sorted(names) # nothing twice, nothing lost
    same(resumed.table, whole.table)
    assert set(resumed.skipped.path) == set(whole.skipped.path)


def test_a_killed_process_loses_nothing_it_has_computed(folder, classifier, whole, tmp_path):
    killed = interrupted(classifier, 4, lambda: os.kill(os.getpid(), signal.SIGKILL))
    process = fork.Process(target=infer, args=(killed, video_files(folder), tmp_path/'r.csv'), kwargs=how)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and not (tmp_path/'r.csv').exists()
    lines = (tmp_path/'r.jsonl').read_text().splitlines()
    assert len(lines) > 1
    same(infer(classifier, video_files(folder), tmp_path/'r.csv', **how).table, whole.table)
    assert (tmp_path/'r.jsonl').read_text().splitlines()[:len(lines)] == lines


def test_a_line_cut_off_is_computed_again(folder, classifier, whole, tmp_path):
    infer(classifier, video_files(folder), tmp_path/'r.csv', **how)
    journal = tmp_path/'r.jsonl'
    for keep in (len(journal.read_bytes()) - 9, len(journal.read_bytes())//2, 20):
        journal.write_bytes(journal.read_bytes()[:keep])
        same(infer(classifier, video_files(folder), tmp_path/'r.csv', **how).table, whole.table)


def test_a_finished_run_computes_nothing_and_tries_skipped_files_again(folder, classifier, whole, tmp_path):
    for p in folder.glob('*.mp4'): (tmp_path/p.name).write_bytes(p.read_bytes())
    infer(classifier, video_files(tmp_path), tmp_path/'r.csv', **how)
    again = interrupted(classifier, 1)
    infer(again, video_files(tmp_path), tmp_path/'r.csv', **how)
    assert again.calls == 0
    (tmp_path/'empty.mp4').write_bytes((tmp_path/'3.mp4').read_bytes()) # mended
    (tmp_path/'1.mp4').write_bytes((tmp_path/'0.mp4').read_bytes())     # another video under the same name
    mended = infer(classifier, video_files(tmp_path), tmp_path/'r.csv', **how)
    answers = mended.table.set_index('path').filter(like='probability')
    assert mended.skipped.path.tolist() == ['cut.mp4'] and len(answers) == 7
    np.testing.assert_allclose(answers.loc['1.mp4'], answers.loc['0.mp4'], atol=1e-5)
    np.testing.assert_allclose(answers.loc['empty.mp4'], answers.loc['3.mp4'], atol=1e-5)


def test_other_settings_do_not_mix(place, folder, classifier, tmp_path):
    infer(classifier, video_files(folder/'3.mp4'), tmp_path/'r.csv', **how)
    before = (tmp_path/'r.jsonl').read_bytes()
    for changes, key in ((dict(segments=2), 'segments: 3, not 2'), (dict(views=1), 'views: 3'),
                         (dict(stride=4), 'stride: 2'), (dict(top=3), 'top: 5')):
        with pytest.raises(ValueError, match=key):
            infer(classifier, video_files(folder/'3.mp4'), tmp_path/'r.csv', **{**how, **changes})
    other = make_classifier(place, seed=1)
    for model, key in ((Classifier(other.encoder, classifier.probe, 'abcde'), 'encoder'),
                       (Classifier(classifier.encoder, other.probe, 'abcde'), 'probe'),
                       (Classifier(classifier.encoder, classifier.probe, 'abcdf'), 'classes')):
        with pytest.raises(ValueError, match=f'made with {key}'):
            infer(model, video_files(folder/'3.mp4'), tmp_path/'r.csv', **how)
    (tmp_path/'elsewhere').mkdir()
    (tmp_path/'elsewhere'/'3.mp4').write_bytes((folder/'3.mp4').read_bytes())
    with pytest.raises(ValueError, match='made with videos'):
        infer(classifier, video_files(tmp_path/'elsewhere'), tmp_path/'r.csv', **how)
    assert (tmp_path/'r.jsonl').read_bytes() == before


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path/'table.csv').write_text('my own table')
    with pytest.raises(FileExistsError, match='journal'): Results(tmp_path/'table.csv', {})
    (tmp_path/'notes.jsonl').write_text('my own notes\n')
    with pytest.raises(ValueError, match='no journal'): Results(tmp_path/'notes.csv', {})
    (tmp_path/'rows.jsonl').write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match='made with segments: None'): Results(tmp_path/'rows.csv', dict(segments=3))
    with pytest.raises(ValueError, match='ends in .csv'): Results(tmp_path/'results.json', {})
    assert (tmp_path/'table.csv').read_text() == 'my own table'
    assert (tmp_path/'notes.jsonl').read_text() == 'my own notes\n'
    assert (tmp_path/'rows.jsonl').read_text() == '{"a": 1}\n'


def test_one_process_writes(tmp_path):
    def second():
        try: Results(tmp_path/'r.csv', {}).close()
        except ValueError as e: os._exit(7 if 'another process' in str(e) else 8)
    held = Results(tmp_path/'r.csv', {})
    for expected in (7, 0):
        process = fork.Process(target=second)
        process.start()
        process.join(30)
        assert process.exitcode == expected
        held.close()


def test_lists_need_no_labels(tmp_path, folder):
    paths = ['a.mp4', 'with space.mp4', str(folder/'0.mp4')]
    (tmp_path/'list.txt').write_text('\n'.join(paths) + '\n')
    assert video_files(tmp_path/'list.txt').table.path.tolist() == paths
    (tmp_path/'labelled.txt').write_text('a.mp4 3\nb.mp4 0\n')
    assert video_files(tmp_path/'labelled.txt').table.label.tolist() == [3, 0]
    write(tmp_path/'deep'/'er'/'x.mp4', 3, 32, 32)
    write(tmp_path/'deep'/'y.mp4', 3, 32, 32)
    assert video_files(tmp_path/'deep').table.path.tolist() == ['er/x.mp4', 'y.mp4']


@pytest.fixture(scope='module')
def files(place):
    "Encoder and probe of a golden file, each in its own V-JEPA 1 file"
    stored = torch.load(golden, weights_only=True)
    torch.save(stored['checkpoint'], place/'encoder.pt')
    torch.save(dict(classifier=stored['probe']['classifier']), place/'probe.pt')
    (place/'names.txt').write_text('\n'.join(f'class {k}' for k in range(7)))
    return ['--encoder', str(place/'encoder.pt'), '--probe', str(place/'probe.pt')]


def ask(*words):
    from jepa.cli import app
    return cli.invoke(app, ['infer', *map(str, words)])


def test_command_line(place, folder, files, tmp_path):
    options = ['--segments', 2, '--classes', place/'names.txt', '--top', 2, '--out', tmp_path/'r.csv',
               '--sheet', tmp_path/'sheet.png']
    shown = ask('--videos', folder, *files, *options)
    assert shown.exit_code == 3 and 'xattn.proj: stored, not applied' in shown.stdout
    assert '2 skipped' in shown.stdout and 'skipped.csv' in shown.stdout
    table = pd.read_csv(tmp_path/'r.csv')
    assert len(table) == 6 and table.class_1.str.startswith('class ').all() and 'class_3' not in table
    assert (tmp_path/'sheet.png').stat().st_size > 5000
    shown = ask('--videos', folder/'0.mp4', *files, '--segments', 2, '--output-projection',
                '--out', tmp_path/'good.csv')
    assert shown.exit_code == 0 and 'xattn.proj: applied' in shown.stdout
    shown = ask('--videos', folder, *files, *options[2:], '--segments', 3)
    assert shown.exit_code == 2 and 'segments: 2, not 3' in shown.stderr


@pytest.mark.parametrize('words, hint', [
    (['--videos', 'nowhere'], 'nowhere'), (['--classes', 'kinetics400'], '400 class names'),
    (['--classes', 'kinetics'], 'kinetics400'), (['--views', '2'], 'views'), (['--out', 'results.txt'], '.csv'),
    (['--encoder', 'lost.pt'], 'lost.pt'), (['--set', 'num_head=3'], 'num_heads')])
def test_a_mistake_is_one_line_and_status_2(words, hint, folder, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = ask('--videos', folder, *files, *words)
    assert shown.exit_code == 2 and hint in shown.stderr and len(shown.stderr.strip().splitlines()) == 1
    assert not (tmp_path/'results.jsonl').exists()


def test_ctrl_c_says_how_to_go_on(folder, files, tmp_path, monkeypatch):
    monkeypatch.setattr(Classifier, '__call__', lambda *_: ctrl_c())
    shown = ask('--videos', folder, *files, '--out', tmp_path/'r.csv')
    assert shown.exit_code == 130 and 'the same command' in shown.stderr and (tmp_path/'r.csv').exists()


def make_ensemble(place, seed=0, rule='hard'):
    "Four members on two encoders, three of them on the first"
    one = make_classifier(place, seed)
    with seeded(seed + 1, 'model'):
        two = Encoder(encoder_config('micro', num_frames=4, height=32, width=32, patch_size=16)).eval()
    two.patch_embed.proj.weight.data.mul_(20)
    members, of = {}, dict(a='toy', b='toy', c='toy', d='micro')
    for i, (name, kind) in enumerate(dict(a='attentive', b='linear', c='mlp', d='linear').items()):
        config = ProbeConfig(kind=kind, seed=i)
        with seeded(seed + i, 'head'): head = make_head(config, 48 if of[name] == 'toy' else 128, 3, 5)
        for p in head.parameters(): p.data.mul_(5)
        members[name] = Probe(config, head.eval(), list('abcde'))
    return Ensemble(members, rule, encoder_of=of, encoders=dict(toy=one.encoder, micro=two))


@pytest.fixture(scope='module')
def ensemble(place): return make_ensemble(place)


def test_members_cost_one_encoding_per_encoder(ensemble, folder):
    counted, calls = EnsembleClassifier(ensemble), {name: [] for name in ensemble.encoders}
    def count(name): return lambda m, args, out: calls[name].append(len(args[0]))
    hooks = [e.register_forward_hook(count(name)) for name, e in ensemble.encoders.items()]
    files = [folder/f'{k}.mp4' for k in range(6)]
    clip = counted.clip(2, 1, 2)
    answers = list(classify(counted, files, clip, batch_size=5, workers=0))
    for h in hooks: h.remove()
    seen = sum(len(list(looks(*decode_segments(f, clip)[:2], clip))) for f in files)
    assert sum(calls['toy']) == sum(calls['micro']) == seen
    assert len(calls['toy']) == -(-seen//5) # not three times for three members
    assert all(p.shape == (4*5,) for _, p, _ in answers)


def test_the_vote_is_that_of_stored_features(ensemble, folder, place):
    counted = EnsembleClassifier(ensemble)
    clip = counted.clip(3, 1, 2)
    files = [folder/f'{k}.mp4' for k in (0, 2, 3, 5)]
    manifest = Manifest(pd.DataFrame([dict(path=f.name, label=0) for f in files]), folder)
    parts = Clips(manifest, clip, Augment(train=False))
    x = {name: features(e, parts, folder=place/'f', progress=False) for name, e in ensemble.encoders.items()}
    for name in RULES[:2]:
        voters = counted.ensemble.replace(name)
        told = [voters.combine(p[None])[0] for _, p, _ in classify(counted, files, clip, workers=0)]
        assert np.allclose(np.stack(told), ensemble.replace(name).predict_proba(x), atol=5e-3)


def test_tables_say_vote_rule_tie_and_members(place, ensemble, folder, tmp_path):
    counted = EnsembleClassifier(ensemble)
    results = infer(counted, video_files(folder), tmp_path/'r.csv', **how)
    table, stored = pd.read_csv(tmp_path/'r.csv'), json.loads((tmp_path/'r.json').read_text())
    assert table.rule.unique().tolist() == ['hard vote, ties to the more probable class']
    assert [c for c in table if c.startswith('vote of')] == [f'vote of {m}' for m in 'abcd']
    clip = counted.clip(3, 3, 2)
    for file, p, _ in classify(counted, [folder/f'{k}.mp4' for k in range(6)], clip, workers=0):
        row = table.set_index('path').loc[Path(file).name]
        record = next(r for r in stored['results'] if r['path'] == Path(file).name)
        votes = p.reshape(4, 5).argmax(1)
        counts = np.bincount(votes, minlength=5)
        names = ['abcde'[v] for v in votes]
        assert [row[f'vote of {m}'] for m in 'abcd'] == names
        assert [record['votes'][m]['class'] for m in 'abcd'] == names
        assert row.tie == record['tie'] == ((counts == counts.max()).sum() > 1)
        tied = np.flatnonzero(counts == counts.max()) # a tie goes to the tied class with the largest mean probability
        assert row.class_1 == 'abcde'[tied[p.reshape(4, 5).mean(0)[tied].argmax()]]
    before = (tmp_path/'r.jsonl').read_bytes()
    for other in (ensemble.replace('soft'), ensemble.replace('hard', ties='first'), ensemble.take(['a', 'b', 'd'])):
        with pytest.raises(ValueError, match='made with'):
            infer(EnsembleClassifier(other), video_files(folder), tmp_path/'r.csv', **how)
    assert (tmp_path/'r.jsonl').read_bytes() == before


def test_an_ensemble_on_the_command_line(place, ensemble, folder, files, tmp_path):
    save_ensemble(ensemble, tmp_path/'own.pt')
    shown = ask('--videos', folder, '--probe', tmp_path/'own.pt', '--segments', 2, '--out', tmp_path/'r.csv')
    assert shown.exit_code == 3 and 'rule: hard vote, ties to the more probable class' in shown.stdout
    assert '4 members on 2 encoders: a, b, c, d' in shown.stdout
    assert {'rule', 'tie', 'vote of a', 'vote of d', 'class_1'} <= set(pd.read_csv(tmp_path/'r.csv'))
    stored = torch.load(golden, weights_only=True)
    torch.save(stored['checkpoint'], tmp_path/'encoder.pt')
    opened = load_checkpoint(tmp_path/'encoder.pt').encoder
    with seeded(0, 'head'): head = make_head(ProbeConfig(kind='linear'), opened.config.embed_dim, 1, 5)
    alone = Ensemble({'x': Probe(ProbeConfig(kind='linear'), head, list('abcde'))}) # its encoder is elsewhere
    save_ensemble(alone, tmp_path/'heads.pt')
    shown = ask('--videos', folder/'0.mp4', '--encoder', tmp_path/'encoder.pt', '--probe', tmp_path/'heads.pt',
                '--segments', 2, '--out', tmp_path/'h.csv')
    assert shown.exit_code == 0 and '1 members on 1 encoder: x' in shown.stdout
    both = ['--probe', tmp_path/'own.pt', '--encoder', tmp_path/'encoder.pt']
    for words, hint in ((['--probe', tmp_path/'heads.pt'], 'holds no encoder'), (both, 'leave the encoder out'),
                        (['--probe', place/'probe.pt'], 'which encoder')):
        shown = ask('--videos', folder/'0.mp4', *words, '--out', tmp_path/'n.csv')
        assert shown.exit_code == 2 and hint in shown.stderr and len(shown.stderr.strip().splitlines()) == 1


def test_bad_ensembles_are_named(place, ensemble):
    with pytest.raises(ValueError, match='holds no encoder'): EnsembleClassifier(Ensemble(ensemble.members))
    narrow = Ensemble({'d': ensemble.members['d']}, encoders=dict(toy=ensemble.encoders['toy']))
    with pytest.raises(ValueError, match="'d' reads tokens of width 128, but its encoder 'toy' makes 48"):
        EnsembleClassifier(narrow)
    other = Encoder(encoder_config('toy', num_frames=2, height=32, width=32))
    mixed = Ensemble({k: ensemble.members[k] for k in 'ab'}, encoder_of=dict(a='toy', b='short'),
                     encoders=dict(toy=ensemble.encoders['toy'], short=other))
    with pytest.raises(ValueError, match='the same clips'): EnsembleClassifier(mixed)
    with pytest.raises(KeyError, match="no member 'z'"): EnsembleClassifier(ensemble).member('z')


def test_a_video_replaced_under_its_name_is_answered_again(folder, classifier, tmp_path):
    for name, source in (('a.mp4', '0.mp4'), ('b.mp4', '3.mp4')):
        (tmp_path/name).write_bytes((folder/source).read_bytes())
    def answers():
        table = infer(classifier, video_files(tmp_path), tmp_path/'r.csv', **how).table
        return table.set_index('path').filter(like='probability')
    before = answers()
    content, times = (tmp_path/'b.mp4').read_bytes(), os.stat(tmp_path/'a.mp4')
    size = max(times.st_size, len(content)) # the same size and times, other content
    (tmp_path/'a.mp4').write_bytes(content.ljust(size, b'\0'))
    os.utime(tmp_path/'a.mp4', ns=(times.st_atime_ns, times.st_mtime_ns))
    after = answers()
    np.testing.assert_allclose(after.loc['a.mp4'], before.loc['b.mp4'], atol=1e-5)
    touched = (tmp_path/'b.mp4').read_bytes()
    key = content_key(tmp_path/'b.mp4')
    middle = len(touched)//2
    (tmp_path/'b.mp4').write_bytes(touched[:middle] + bytes([touched[middle] ^ 1]) + touched[middle + 1:])
    os.utime(tmp_path/'b.mp4', ns=(1, 1))
    assert content_key(tmp_path/'b.mp4') != key and content_key(tmp_path/'nothing.mp4') is None


def flip(file, at):
    "One bit of a file"
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_damaged_lines_of_a_journal_are_dropped_and_answered_again(folder, classifier, whole, tmp_path):
    infer(classifier, video_files(folder), tmp_path/'r.csv', **how)
    journal = tmp_path/'r.jsonl'
    sound = journal.read_bytes()
    ends = [i for i, byte in enumerate(sound) if byte == 10]
    for at in (ends[1] + 12, (ends[2] + ends[3])//2, ends[3] - 2, sound.index(b'probability', ends[1]) + 15):
        journal.write_bytes(sound)
        flip(journal, at)
        with pytest.warns(UserWarning, match='r.jsonl: 1 damaged lines are dropped'):
            again = infer(classifier, video_files(folder), tmp_path/'r.csv', **how)
        pd.testing.assert_frame_equal(again.table.sort_values('path', ignore_index=True), whole.table, atol=1e-5)
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            infer(classifier, video_files(folder), tmp_path/'r.csv', **how) # mended: nothing is said again
    journal.write_bytes(sound)
    flip(journal, 5) # in the line that says what made it
    with pytest.warns(UserWarning, match='kept as r.damaged.jsonl'):
        same(infer(classifier, video_files(folder), tmp_path/'r.csv', **how).table, whole.table)


def test_a_mended_journal_is_still_locked(tmp_path):
    with_two = Results(tmp_path/'r.csv', {})
    for name in 'ab': with_two.add(name, reason='none')
    with_two.close()
    flip(tmp_path/'r.jsonl', 40)
    with pytest.warns(UserWarning): held = Results(tmp_path/'r.csv', {})
    def second():
        try: Results(tmp_path/'r.csv', {}).close()
        except ValueError as e: os._exit(7 if 'another process' in str(e) else 8)
    process = fork.Process(target=second)
    process.start()
    process.join(30)
    assert process.exitcode == 7
    held.close()


def test_one_bad_file_does_not_end_the_run(folder, classifier, tmp_path, monkeypatch):
    odd = tmp_path/os.fsdecode(b'caf\xe9.mp4') # a name that is no UTF-8
    odd.write_bytes((folder/'0.mp4').read_bytes())
    for name in ('x.mp4', 'y.mp4'): (tmp_path/name).write_bytes((folder/'1.mp4').read_bytes())
    def decode(path, *job, **options):
        if Path(path).name == 'x.mp4': b'\xe9'.decode() # as a title in Latin-1 does
        return decode_clips(path, *job, **options)
    monkeypatch.setattr(jepa.infer, 'decode_clips', decode)
    videos = Manifest(pd.DataFrame([dict(path=n, label=-1) for n in (odd.name, 'x.mp4', 'y.mp4')]), tmp_path)
    results = infer(classifier, videos, tmp_path/'r.csv', **how)
    reasons = results.skipped.set_index('path').reason
    assert 'UnicodeDecodeError' in reasons['x.mp4'] and 'y.mp4' in results.table.path.tolist()
    assert {*results.table.path, *reasons.index} == {odd.name, 'x.mp4', 'y.mp4'} # answered or listed
    assert b'caf\xe9.mp4' in (tmp_path/'r.csv').read_bytes() + (tmp_path/'skipped.csv').read_bytes()
    contact_sheet(results, tmp_path, workers=0)


def test_no_cell_is_a_formula_for_a_spreadsheet(tmp_path):
    texts = ['=1+1', '+x', '-y', '@z', "'quoted", 'plain', '\tx']
    assert [unquote(quote(t)) for t in texts] == texts
    results = Results(tmp_path/'r.csv', {})
    for t in texts: results.add(t, key='', decoder='pyav', top=[{'label': 0, 'class': t, 'probability': 1.}])
    results.add('=bad', reason='@reason')
    results.write(True)
    results.close()
    table, skipped = pd.read_csv(tmp_path/'r.csv'), pd.read_csv(tmp_path/'skipped.csv')
    assert table.path.map(unquote).tolist() == texts == table.class_1.map(unquote).tolist()
    assert not table.path.str.startswith(('=', '+', '-', '@', '\t')).any()
    assert skipped.iloc[0].tolist() == ["'=bad", "'@reason"]
    assert [r['path'] for r in json.loads((tmp_path/'r.json').read_text())['results']] == texts


def test_write_errors_name_the_path_and_the_remedy(tmp_path):
    (tmp_path/'file').write_text('in the way')
    results = Results(tmp_path/'r.csv', {})
    results.out = tmp_path/'file'/'r.csv'
    with pytest.raises(OSError, match='name a place'): results.write(True)
    results.close()


@pytest.mark.parametrize('name, value', [
    ('segments', 0), ('segments', 10**6), ('stride', -1), ('batch_size', 0), ('top', 0), ('workers', -1), ('views', 2)])
def test_numbers_out_of_their_range_are_named(name, value, folder, classifier, tmp_path):
    with pytest.raises(ValueError, match=f'{name} must .*not {value}'):
        infer(classifier, video_files(folder), tmp_path/'r.csv', **{**how, name: value})
    assert not list(tmp_path.iterdir())
