"""Pictures of what an encoder sees: the claims behind them, any checkpoint, any file, and the page of `jepa view`"""
import html, os, re
from pathlib import Path
from urllib.parse import unquote
import numpy as np, pytest, torch
from PIL import Image
from typer.testing import CliRunner
from jepa.core import generator, seeded
from jepa.actions import ActionsConfig, draw, make_actions, scene_of, write_video
from jepa.checkpoint import load_checkpoint, save_checkpoint
from jepa.cli import app
from jepa.data import Augment, read_manifest
from jepa.encoder import Encoder, attend, encoder_config
from jepa.masks import Future, Grid, MultiBlock, RandomTokens
from jepa.objective import Jepa, prediction_loss
from jepa.predictor import PredictorConfig
from jepa.train import pretrain, train_config
from jepa.view import *
from jepa.view import _queries_and_keys
from jepa.view import Components, open_model

root = Path(__file__).resolve().parents[1]
shared = Path(os.environ.get('JEPA_SHARED', root.parent/'shared'))/'videos'
needs_shared = pytest.mark.skipif(not shared.is_dir(), reason='shared/videos is not here')
cli = CliRunner()
# what the tensors of the golden files cannot tell
HINTS = dict(vjepa1_uniform={}, vjepa1_plain={}, vjepa2={}, pico2025=dict(num_heads=4),
             vjepa2_1=dict(num_heads=3, num_frames=8, height=48, width=48))


def golden_file(folder, name):
    "A small random checkpoint in a published layout"
    state = torch.load(root/f'tests/golden/{name}.pt', weights_only=True)
    torch.save(state['checkpoint'] if 'checkpoint' in state else dict(state['encoder']), folder/f'{name}.pt')
    return folder/f'{name}.pt'


def frames(n=24, h=60, w=80):
    "Noise in which a bright square moves to the right"
    x = (40*torch.rand(n, h, w, 3, generator=generator(0))).numpy().astype(np.uint8)
    for t in range(n): x[t, 20:34, 2*t:2*t + 14] = 230
    return x


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp('videos')/'a square.mp4'
    write_video(path, frames())
    return path


def toy(**more): return encoder_config('toy', num_frames=4, height=32, width=32, patch_size=8, **more)


@pytest.fixture(scope='module')
def small():
    predictor = PredictorConfig(embed_dim=24, depth=1, num_heads=3, zero_init=False)
    with seeded(0): return Jepa(toy(), predictor).eval()


@pytest.fixture(scope='module')
def seen(small):
    return see(small.encoder, torch.randn(5, 3, 4, 32, 32, generator=generator(1)))


def test_components_are_one_basis_for_all_clips(seen):
    c = Components(seen.tokens)
    together, alone = c.colours(seen.tokens), c.colours(seen.tokens[3])
    assert np.allclose(together[3], alone) and 0 <= together.min() and together.max() <= 1
    assert (c(seen.tokens)[..., 0] > 0).mean() <= .5 and 0 < c.share.sum() <= 1
    x = seen.tokens.numpy().reshape(-1, seen.tokens.shape[-1]).astype(np.float64)
    values = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    assert np.allclose(c.share, values[:3]/values.sum(), rtol=1e-3)
    with pytest.raises(KeyError, match='rgb'): Components(seen.tokens, 'rbg')


def test_the_foreground_is_the_rarer_cluster():
    x = torch.randn(400, 8, generator=generator(0))*.1
    x[:60] += 3
    found = Components(x).foreground(x)
    assert found[:60].all() and not found[60:].any()


@pytest.mark.parametrize('positions', ['sincos', 'rope', 'learned'])
def test_attention_weights_are_those_of_the_network(positions):
    with seeded(0): encoder = Encoder(toy(positions=positions)).eval()
    clip, outputs = torch.randn(2, 3, 4, 32, 32, generator=generator(2)), []
    before = encoder(clip)
    hook = encoder.blocks[0].attn.proj.register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
    encoder(clip)
    hook.remove()
    weights = attention_weights(encoder, clip, range(32), layer=0)
    v = _queries_and_keys(encoder, clip, 0)[2]
    assert torch.allclose((weights @ v).transpose(1, 2).reshape(outputs[0].shape), outputs[0], atol=1e-5)
    assert torch.allclose(attention_weights(encoder, clip, [3, 7], layer=0), weights[:, :, [3, 7]])
    assert torch.allclose(attention_received(encoder, clip, 0), weights.sum(2), atol=1e-4)
    assert torch.equal(encoder(clip), before) and not encoder.blocks[0].attn._forward_pre_hooks # nothing is left behind


def test_similarity(seen):
    near = similarity(seen, 2, (1, 2, 3))
    assert near.shape == seen.grid and near[1, 2, 3] == pytest.approx(1) and np.abs(near).max() <= 1 + 1e-5
    with pytest.raises(ValueError, match='width 4 is outside the grid of 4'): similarity(seen, 0, (0, 0, 4))


def test_surprise_is_the_loss_before_its_mean(small, seen):
    masks = (Future(tubelets=(1, 1)),)
    found = surprise(small, seen.clips, masks)
    assert np.isnan(found[:, 0]).all() and not np.isnan(found[:, 1]).any()
    from jepa.masks import sample_masks
    with torch.no_grad(): out = small(seen.clips, sample_masks(masks, small.encoder.config.grid, 5, generator(0)))
    assert np.nanmean(found) == pytest.approx(out.loss.item(), rel=1e-5)
    many = surprise(small, seen.clips, (RandomTokens(ratio=.5), RandomTokens(ratio=.5)), draws=6)
    assert not np.isnan(many).any()
    with pytest.raises(ValueError, match='4x32x32'): surprise(small, seen.clips[:, :, :2], masks)


def test_surprise_over_time_of_one_clip_is_surprise(small, seen):
    masks, clip = (Future(tubelets=(1, 1)),), seen.clips[0]
    assert np.allclose(surprise_over_time(small, clip, masks), surprise(small, clip[None], masks)[0], equal_nan=True)
    long = torch.cat([clip, clip], dim=1)
    found = surprise_over_time(small, long, masks)
    assert found.shape == (4, 4, 4) and np.isnan(found[0]).all() and not np.isnan(found[1:]).any()
    some = surprise_over_time(small, long, masks, windows=2)
    assert np.isnan(some).all((1, 2)).tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match='fewer'): surprise_over_time(small, clip[:, :2], masks)


def test_edited_scenes_differ_only_after_the_event():
    scene = scene_of('move_right', 'val', 3, ActionsConfig(size=32, num_frames=8, level='easy'))
    plain = draw(scene, 32)
    for edited in (vanish(scene, 5), jump(scene, 5)):
        other = (draw(edited, 32) != plain).any((1, 2, 3))
        assert not other[:5].any() and other[5:].all()
    assert (draw(scene, 32) == plain).all() # the scene itself is left alone
    mask = actors_at(scene, 32)
    assert 0 < mask.mean() < .5 and not actors_at(vanish(vanish(scene), actor=1), 32).any()
    assert (actors_at(scene, 32, [0]) <= mask).all()


def test_cover_and_agreement():
    pixels = np.zeros((4, 8, 8), bool)
    pixels[:2, :4, 4:] = True
    assert cover(pixels, Grid(2, 2, 2)).tolist() == [[[0, 1], [0, 0]], [[0, 0], [0, 0]]]
    truth = np.arange(100) < 20
    assert agreement(truth*1., truth, truth) == dict(auc=1., iou=1., iou_chance=pytest.approx(4/36))
    assert agreement(-1.*truth, ~truth, truth)['auc'] == 0


def test_neighbours_and_dead_dimensions():
    x = torch.randn(20, 6, generator=generator(3))
    rows, cosines = neighbours(x[4], x, 3)
    assert rows[0] == 4 and cosines[0] == pytest.approx(1) and list(cosines) == sorted(cosines, reverse=True)
    x[:, 2] = 1.
    assert dead_dimensions(x).tolist() == [i == 2 for i in range(6)]


def test_project_refuses_too_few_points():
    assert project(np.random.default_rng(0).normal(size=(9, 4))).shape == (9, 2)
    with pytest.raises(ValueError, match='at least 4'): project(np.zeros((3, 4)))


def test_footage_of_a_video_and_an_image(video, tmp_path):
    from jepa.video import ClipConfig
    clip = ClipConfig(num_frames=4, stride=3, size=32, segments=2)
    found = footage([video], clip)
    assert found['clips'].shape == (2, 3, 4, 32, 32) and found['numbers'][0].tolist() == [3, 6, 9, 12]
    Image.fromarray(frames()[0]).save(tmp_path/'one.png')
    still = footage([tmp_path/'one.png'], clip)
    assert still['clips'].shape == (1, 3, 4, 32, 32) and torch.equal(still['clips'][0, :, 0], still['clips'][0, :, 3])


@pytest.mark.parametrize('name', HINTS)
def test_every_layout_gives_every_picture(name, video, tmp_path, place):
    model = open_model(golden_file(tmp_path, name), stride=1, **HINTS[name])
    made = {n: (p.caption, p.save(tmp_path/'page', n)) for n, p in all_pictures(model, video, segments=2, windows=2)}
    assert {'components', 'similarity', 'attention', 'map', 'neighbours', 'statistics', 'mask1'} <= set(made)
    assert ('surprise' in made) == (model.jepa is not None) == (name in ('vjepa1_uniform', 'vjepa1_plain', 'vjepa2'))
    assert bool(model.why) == (model.jepa is None)
    for caption, files in made.values():
        assert len(caption) > 40 and all((tmp_path/'page'/f).stat().st_size > 500 for f in files)


def test_an_assembled_jepa_has_the_loss_of_the_file(tmp_path, place):
    "open_model puts encoder, predictor and target encoder of a V-JEPA file together as training had them"
    state = torch.load(root/'tests/golden/vjepa1_uniform.pt', weights_only=True)
    model = open_model(golden_file(tmp_path, 'vjepa1_uniform'))
    for part in ('encoder', 'target_encoder', 'predictor'):
        stored = {k.removeprefix('module.backbone.'): v for k, v in state['checkpoint'][part].items()}
        for name, tensor in getattr(model.jepa, part).state_dict().items():
            assert torch.equal(tensor, stored[name].view_as(tensor)), (part, name)


@pytest.fixture(scope='module')
def run(place):
    clips = ActionsConfig(classes=('move_right', 'grow'), train=4, val=0, size=40, num_frames=16, level='easy')
    manifest = read_manifest(make_actions(clips, progress=False))
    config = train_config('toy', num_frames=4, stride=2, pixels=32, patch_size=8, epochs=1, batch_size=4,
                          monitor_clips=4, predictor=PredictorConfig(embed_dim=24, depth=1),
                          masks=(MultiBlock(num_blocks=2, spatial_scale=(.3, .3)),))
    return pretrain(config, manifest, place/'run', progress=False)


def test_a_name_is_text_not_a_formula_nor_markup(seen, tmp_path):
    name = '<img src=x onerror=alert(1)> $x_1$ & co'
    picture = view_components(seen._replace(names=[name]*5))
    assert picture.figure._suptitle.get_text().endswith(name) and not picture.figure._suptitle.get_parse_math()
    pictures = {'"><b>': (name, picture.save(tmp_path, 'a$b & <c>'))}
    page = write_page(tmp_path, name, name, pictures).read_text()
    assert '<img src=x' not in page and '"><b>' not in page
    assert page.count('&lt;img src=x onerror=alert(1)&gt; $x_1$ &amp; co') == 4
    for file in re.findall(r'(?:src|href)="([^"]+)"', page): assert (tmp_path/unquote(html.unescape(file))).is_file()


def test_a_name_that_is_no_text_can_be_drawn(small, tmp_path):
    file = os.fsencode(tmp_path) + b'/caf\xe9.png'
    Image.fromarray(frames()[0]).save(file.decode('utf-8', 'surrogateescape'), format='png')
    from jepa.video import ClipConfig
    found = footage([os.fsdecode(file)], ClipConfig(num_frames=4, size=32))
    view_components(see(small.encoder, **found)).save(tmp_path, 'a')
    assert found['names'] == ['caf\\xe9']


def jepa_view(file, encoder, out, *words):
    return cli.invoke(app, ['view', str(file), '--encoder', str(encoder), '--out', str(out), *words])


def test_the_command_writes_a_page(run, video, tmp_path):
    shown = jepa_view(video, run.folder, tmp_path/'seen', '--segments', '3', '--patch', '0,1,2')
    assert shown.exit_code == 0, shown.output
    page = (tmp_path/'seen'/'index.html').read_text()
    named = set(re.findall(r'(?:src|href)="([^"]+)"', page))
    assert {'components.png', 'surprise.png', 'surprise.mp4', 'surprise.gif', 'mask1.png'} <= named
    assert all((tmp_path/'seen'/n).is_file() for n in named) and not any('/' in n for n in named)
    assert page.count('<figcaption>') == page.count('<figure') >= 8 and 'a square.mp4' in page
    assert 'surprise' in shown.stdout and str(tmp_path/'seen'/'index.html') in shown.stdout


def test_the_command_on_an_image(run, tmp_path):
    Image.fromarray(frames()[0]).save(tmp_path/'one.png')
    shown = jepa_view(tmp_path/'one.png', run.folder, tmp_path/'seen')
    assert shown.exit_code == 0 and (tmp_path/'seen'/'surprise.png').exists(), shown.output


def test_mistakes_are_one_line(run, video, tmp_path):
    (tmp_path/'no.mp4').write_bytes(b'no video')
    torch.save({'a': torch.zeros(1)}, tmp_path/'no.pt')
    for file, encoder, words, hint in [
            (tmp_path/'no.mp4', run.folder, '', 'no.mp4'), (tmp_path/'nowhere.mp4', run.folder, '', 'no such file'),
            (video, tmp_path/'no.pt', '', 'no encoder of a layout'), (video, run.folder, '--block 9', '2 blocks'),
            (video, run.folder, '--patch 9,0,0', 'outside the grid'),
            (video, run.folder, '--patch 1,2', 'TIME,ROW,COLUMN')]:
        shown = jepa_view(file, encoder, tmp_path/'seen', *words.split())
        [line] = shown.stderr.strip().splitlines()
        assert shown.exit_code == 2 and hint in line, shown.output


@needs_shared
@pytest.mark.parametrize('name', ['car-detection.mp4', 'asl_bird.mkv'])
def test_real_videos_and_a_published_layout(name, tmp_path, place):
    shown = jepa_view(shared/'real'/name, golden_file(tmp_path, 'vjepa1_uniform'), tmp_path/'seen', '--segments', '4')
    assert shown.exit_code == 0 and 'vjepa1 layout' in shown.stdout, shown.output
    assert (tmp_path/'seen'/'surprise.png').exists()


@pytest.mark.slow
def test_the_report_on_files_and_a_checkpoint_of_ones_own(place, video, tmp_path):
    import json, pandas as pd
    from jepa.report import run_reports
    Image.fromarray(frames()[0]).save(tmp_path/'one.png')
    small = dict(videos=8, epochs=1, num_frames=4, stride=8, pixels=32, patch_size=8, predictor_dim=24,
                 predictor_depth=1, video_pixels=36, monitor_clips=8, batch_size=4, clips=8, view_pixels=64)
    own = dict(files=f'{video},{tmp_path}/one.png', checkpoint=str(golden_file(tmp_path, 'vjepa1_uniform')))
    [outcome] = run_reports(['nano_fig4_features'], 'quick', small | own, progress=False)
    assert outcome.status == 'made', outcome.why
    record = json.loads((place/'results/quick/nano_fig4_features.json').read_text())
    assert 'better than chance is' in record['finding']
    assert any('chance' in f['caption'] for f in record['figures'] if f['name'] == 'auc')
    assert {f['file'].split('/')[-1] for f in record['figures']} >= {'clips.png', 'files.png', 'auc.png'}
    table = pd.read_csv(place/'results/quick/nano_fig4_features/numbers.csv')
    assert set(table.features) == {'pretrained', 'untrained', 'given checkpoint', 'pixels'}
    assert table.auc.between(0, 1).all() and (table.auc_low <= table.auc_high).all()
