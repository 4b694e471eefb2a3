"""Any JEPA in, any JEPA out: layouts, refusals, round trips, Hugging Face both ways, memory, downloads"""
import hashlib, json, pickle, subprocess, sys, warnings, zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jepa.core import generator, repo_root, seeded
from jepa.checkpoint import *
from jepa.encoder import Encoder, EncoderConfig, encoder_config
from jepa.objective import Jepa
from jepa.predictor import Predictor, PredictorConfig
from jepa.probe import (AttentiveClassifier, Evaluation, Features, Probe, ProbeConfig, features, fit_probe, load_probe,
                        make_head, plot_confusion, save_probe)
from jepa.train import make_optimizer, train_config, training_state
from server import serving

GOLDEN = repo_root(Path(__file__).parent)/'tests/golden'
HINTS = dict(
    vjepa1_uniform={}, vjepa2={}, pico2025=dict(num_heads=4),
    vjepa2_1=dict(num_heads=3, num_frames=8, height=48, width=48))


def golden(name): return torch.load(GOLDEN/f'{name}.pt', weights_only=True)


@pytest.fixture
def golden_file(tmp_path):
    def write(name):
        g = golden(name)
        torch.save(g['checkpoint'] if 'checkpoint' in g else dict(g['encoder']), tmp_path/f'{name}.pt')
        return tmp_path/f'{name}.pt'
    return write


def rename(state, prefix):
    def renamed(names): return {n.replace('module.backbone.', prefix): t for n, t in names.items()}
    return {k: renamed(v) if isinstance(v, dict) else v for k, v in state.items()}


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(a[n].equal(b[n]) for n in a)


@pytest.fixture
def toy():
    "A rotating encoder and predictor with random weights"
    config = encoder_config('toy', num_frames=8, height=48, width=48, positions='rope')
    with seeded(0, 'toy'):
        return Encoder(config).eval(), Predictor(
            PredictorConfig(embed_dim=24, depth=2, num_heads=3, num_mask_tokens=10, zero_init=False), config).eval()


@pytest.mark.parametrize('prefix,layout', [
    ('module.backbone.', 'vjepa1'), ('backbone.', 'nano'), ('module.', 'ijepa'), ('', 'ijepa')])
def test_prefixes_name_the_layout_and_change_no_tensor(tmp_path, prefix, layout):
    state = golden('vjepa1_uniform')['checkpoint']
    torch.save(rename(state, prefix), tmp_path/'x.pt')
    loaded = load_checkpoint(tmp_path/'x.pt')
    assert (loaded.layout, loaded.part, loaded.more['epoch']) == (layout, 'target_encoder', state['epoch'])
    assert all(t.equal(state['target_encoder'][f'module.backbone.{n}']) for n, t in loaded.encoder.state_dict().items())
    assert not loaded.encoder.training and loaded.report.complete and loaded.encoder.config.uniform_power


def test_an_image_model_becomes_an_encoder_of_single_frames(tmp_path):
    config = EncoderConfig(num_frames=1, height=64, width=64, tubelet_size=1, embed_dim=48, depth=2, num_heads=3,
                           positions='learned')
    with seeded(0, 'image'):
        model, predictor = Encoder(config).eval(), Predictor(
            PredictorConfig(embed_dim=24, depth=1, num_mask_tokens=1), config)
    state = {f'module.{n}': t[:, :, 0] if n == 'patch_embed.proj.weight' else t for n, t in model.state_dict().items()}
    guess = {f'module.{n}'.replace('mask_tokens.0', 'mask_token'): t for n, t in predictor.state_dict().items()}
    torch.save(dict(encoder=state, target_encoder=state, predictor=guess), tmp_path/'ijepa.pth.tar')
    loaded = load_checkpoint(tmp_path/'ijepa.pth.tar')
    assert loaded.report.reshaped == ['target_encoder.patch_embed.proj.weight']
    assert loaded.encoder.config.grid == (1, 4, 4)
    clip = torch.randn(1, 3, 1, 64, 64, generator=generator(0))
    with torch.no_grad(): assert loaded.encoder(clip).equal(model(clip))


def test_our_training_file_holds_its_configuration(tmp_path):
    config = train_config('toy', num_frames=4, pixels=32, patch_size=8,
                          predictor=PredictorConfig(embed_dim=24, depth=1))
    config = config.replace(encoder=config.encoder.replace(num_heads=4))
    with seeded(0): jepa = Jepa(config.encoder, config.predictor)
    state = training_state(jepa, make_optimizer(jepa), epoch=2, config=json.loads(json.dumps(config.to_dict())))
    torch.save(state, tmp_path/'checkpoint.pt')
    for path in (tmp_path/'checkpoint.pt', tmp_path):
        loaded = load_checkpoint(path)
        assert loaded.layout == 'jepa' and loaded.encoder.config == config.encoder
        assert loaded.predictor.config == config.predictor and loaded.more == {'epoch': 2}
        assert same(loaded.encoder, jepa.target_encoder)
        assert same(load_checkpoint(path, 'encoder').encoder, jepa.encoder)
        assert same(loaded.predictor, jepa.predictor)


@pytest.mark.parametrize('size,clip', [
    ('tiny', (16, 224)), ('large', (16, 224)), ('huge', (16, 384)), ('giant', (64, 384)), ('gigantic', (16, 224)),
    ('pico', (8, 224))])
def test_published_sizes_are_found_in_shapes(size, clip):
    frames, pixels = clip
    rotating = frames == 64
    wanted = encoder_config(size, num_frames=frames, height=pixels, width=pixels,
                            positions={64: 'rope', 8: 'learned'}.get(frames, 'sincos'))
    with torch.device('meta'): state = dict(Encoder(wanted).state_dict())
    if rotating: state['pos_embed'] = torch.zeros(1, wanted.grid.tokens, 8)
    elif size == 'pico': state['pos_embed'] = torch.randn(1, wanted.grid.tokens, 192, generator=generator(0))
    else: state['pos_embed'] = Encoder(wanted.replace(depth=1)).pos_embed
    assert encoder_config_of(state, rotating) == wanted


def test_a_half_precision_file_says_that_it_was_widened(tmp_path):
    state = golden('vjepa1_uniform')['checkpoint']
    def halved(tensors): return {n: t.bfloat16() for n, t in tensors.items()}
    torch.save({k: halved(v) if isinstance(v, dict) else v for k, v in state.items()}, tmp_path/'x.pt')
    loaded = load_checkpoint(tmp_path/'x.pt', num_frames=8, height=48, width=48)
    assert {p.dtype for p in loaded.encoder.parameters()} == {torch.float32}
    assert any('bfloat16' in n for n in loaded.report.notes)


def test_positions_resized_while_loading_give_the_features_of_resizing_while_running(golden_file):
    clip = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    whole = load_checkpoint(golden_file('vjepa1_uniform'))
    resized = load_checkpoint(golden_file('vjepa1_uniform'), num_frames=4, height=64, width=64)
    assert resized.report.interpolated == ['target_encoder.pos_embed', 'predictor.predictor_pos_embed']
    assert not whole.report.interpolated
    with torch.no_grad(): assert whole.encoder(clip).equal(resized.encoder(clip))


# refusals

def test_partial_loads_are_refused_unless_told_otherwise(tmp_path):
    state = golden('vjepa1_uniform')['checkpoint']
    del state['target_encoder']['module.backbone.norm.weight']
    state['predictor']['module.backbone.extra'] = torch.ones(2)
    torch.save(state, tmp_path/'x.pt')
    message = (r'x.pt does not fit: 1 tensors missing \(target_encoder.norm.weight\), '
               r'1 unexpected \(predictor.extra\); partial=True')
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path/'x.pt')
    with pytest.raises(ValueError, match='24 tensors missing'): load_checkpoint(tmp_path/'x.pt', 'encoder', depth=4)
    with pytest.raises(ValueError, match=r'stored \(48, 3, 2, 16, 16\), needed \(96, 3'):
        load_checkpoint(tmp_path/'x.pt', 'encoder', embed_dim=96)
    loaded = load_checkpoint(tmp_path/'x.pt', partial=True)
    assert loaded.report.missing == ['target_encoder.norm.weight'] and loaded.report.unexpected == ['predictor.extra']
    assert loaded.encoder.norm.weight.eq(1).all()
    assert loaded.encoder.blocks[1].norm1.weight.equal(state['target_encoder']['module.backbone.blocks.1.norm1.weight'])


def test_a_named_depth_that_the_file_does_not_hold_is_refused(tmp_path, toy):
    save_checkpoint(tmp_path, *toy, layout='huggingface')
    config = json.loads((tmp_path/'config.json').read_text())
    (tmp_path/'config.json').write_text(json.dumps(config | dict(pred_num_hidden_layers=3)))
    with pytest.raises(ValueError, match='predictor.predictor_blocks.2.norm1.weight'): load_checkpoint(tmp_path)


class Trap:
    def __reduce__(self): return (open, (str(self.mark), 'w'))


def test_foreign_objects_are_not_unpickled(tmp_path):
    trap = Trap()
    trap.mark = tmp_path/'ran'
    def write_new(file): torch.save(dict(encoder=trap), file)
    def write_old(file): file.write_bytes(pickle.dumps(dict(encoder=trap), protocol=2))
    for name, write in [('new.pt', write_new), ('old.pt', write_old)]:
        write(tmp_path/name)
        for load in (load_checkpoint, load_probe):
            with pytest.raises(ValueError, match=f'{name} cannot be read as a checkpoint of tensors: .*foreign code'):
                load(tmp_path/name)
    assert not trap.mark.exists()


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='y.pt: there is no such checkpoint'): load_checkpoint(tmp_path/'y.pt')
    with pytest.raises(FileNotFoundError, match='neither config.json'): load_checkpoint(tmp_path)
    (tmp_path/'x.pt').write_text('hello')
    (tmp_path/'empty.pt').write_bytes(b'')
    (tmp_path/'x.safetensors').write_bytes(b'hello world')
    torch.save([1, 2], tmp_path/'list.pt')
    torch.save(dict(weight=torch.ones(2)), tmp_path/'other.pt')
    torch.save(golden('vjepa2')['probe'], tmp_path/'probe.pt')
    torch.save(golden('vjepa2')['checkpoint'], tmp_path/'cut.pt')
    (tmp_path/'cut.pt').write_bytes((tmp_path/'cut.pt').read_bytes()[:-5000])
    reasons = {'x.pt': 'not a file of torch', 'empty.pt': 'not a file of torch', 'x.safetensors': 'cannot be read',
               'cut.pt': 'cannot be read', 'list.pt': 'holds a list', 'other.pt': 'it has weight',
               'probe.pt': 'load_probe'}
    for name, why in reasons.items():
        with pytest.raises(ValueError, match=f'{name}.*{why}'): load_checkpoint(tmp_path/name)
    torch.save(golden('vjepa1_uniform')['checkpoint'], tmp_path/'encoder.pt')
    with pytest.raises(ValueError, match='load_checkpoint'): load_probe(tmp_path/'encoder.pt')
    with pytest.raises(KeyError, match="no 'ema_encoder'; it has target_encoder, encoder"):
        load_checkpoint(tmp_path/'encoder.pt', 'ema_encoder')
    with pytest.raises(KeyError, match='num_heads'): load_checkpoint(tmp_path/'encoder.pt', num_head=3)


# round trips

@pytest.mark.parametrize('name,layout', [
    *((name, 'jepa') for name in HINTS), ('vjepa1_uniform', 'vjepa'), ('vjepa2', 'vjepa'), ('vjepa2', 'huggingface')])
def test_a_round_trip_is_exact(golden_file, tmp_path, name, layout):
    before = load_checkpoint(golden_file(name), **HINTS[name])
    suffix = '.safetensors' if layout == 'jepa' else ''
    path = save_checkpoint(tmp_path/f'out{suffix}', before.encoder, before.predictor, layout)
    after = load_checkpoint(path)
    assert same(before.encoder, after.encoder) and before.encoder.config == after.encoder.config
    assert (before.predictor is None) == (after.predictor is None)
    if before.predictor is not None:
        assert same(before.predictor, after.predictor) and before.predictor.num_heads == after.predictor.num_heads
    path = save_checkpoint(tmp_path/f'again{suffix}', after.encoder, after.predictor, layout)
    again = load_checkpoint(path)
    assert again.layout == after.layout and same(again.encoder, after.encoder)


def test_savers_refuse_what_would_come_back_as_another_network(tmp_path, toy):
    encoder, predictor = toy
    odd = Encoder(encoder_config('toy', num_heads=4, num_frames=8, height=48, width=48))
    with pytest.raises(ValueError, match='num_heads=4: it would be read as 3'):
        save_checkpoint(tmp_path/'x.pt', odd, layout='vjepa')
    with pytest.raises(ValueError, match='positions sincos'): save_checkpoint(tmp_path/'x', odd, layout='huggingface')
    with pytest.raises(ValueError, match='has a predictor'):
        save_checkpoint(tmp_path/'x', encoder, layout='huggingface')
    with pytest.raises(ValueError, match='.safetensors'): save_checkpoint(tmp_path/'x.pt', encoder)
    with pytest.raises(ValueError, match="did you mean 'vjepa'"):
        save_checkpoint(tmp_path/'x.pt', encoder, layout='vjepa1')
    assert not list(tmp_path.iterdir())


def test_convert_and_inspect(golden_file, tmp_path):
    report = convert(golden_file('vjepa2'), tmp_path/'hf', 'huggingface')
    assert report.complete and len(report.matched) == 68
    said = inspect_checkpoint(tmp_path/'hf', names=True)
    assert 'huggingface' in said and '28 tensors' in said and 'blocks.1.mlp.fc2.bias  (48,)' in said
    assert 'positions=rope' in said
    assert 'epoch           3' in inspect_checkpoint(golden_file('vjepa1_uniform'))
    assert 'num_heads is assumed' in inspect_checkpoint(golden_file('vjepa2_1'))


# Hugging Face

@pytest.fixture(scope='module')
def theirs():
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(
        crop_size=48, frames_per_clip=8, hidden_size=60, num_attention_heads=3, num_hidden_layers=3,
        pred_hidden_size=36, pred_num_attention_heads=2, pred_num_hidden_layers=2, pred_zero_init_mask_tokens=False,
        num_pooler_layers=1, initializer_range=0.2)
    return transformers, transformers.VJEPA2ForVideoClassification(config).eval()


def close(a, b): assert a.shape == b.shape and (a - b).abs().max() <= 1e-5*b.abs().max()


def test_a_model_saved_by_transformers_gives_the_same_features_here(theirs, tmp_path):
    transformers, classifier = theirs
    model = classifier.vjepa2
    model.save_pretrained(tmp_path/'whole')
    model.save_pretrained(tmp_path/'shards', max_shard_size='100KB')
    classifier.save_pretrained(tmp_path/'classifier')
    assert len(list((tmp_path/'shards').glob('*.safetensors'))) > 1
    clip = torch.randn(2, 8, 3, 48, 48, generator=generator(0))
    seen, hidden = torch.randperm(36, generator=generator(1))[None, :30].repeat(2, 1).split([12, 18], 1)
    with torch.no_grad():
        features = model(clip, skip_predictor=True).last_hidden_state
        guess = model(clip, context_mask=[seen], target_mask=[hidden]).predictor_output.last_hidden_state
    for name in ('whole', 'shards', 'classifier'):
        loaded = load_checkpoint(tmp_path/name)
        with torch.no_grad():
            close(loaded.encoder(clip.transpose(1, 2)), features)
            context = features.gather(1, seen[..., None].expand(-1, -1, 60))
            close(loaded.predictor(context, seen, hidden, mask_index=1), guess)
    assert loaded.report.complete
    note = '33 tensors are of no part (classifier.bias, ...); jepa.probe.load_probe reads this classifier'
    assert note in loaded.report.notes
    next((tmp_path/'shards').glob('*.safetensors')).unlink()
    with pytest.raises(FileNotFoundError, match='which its index names'): load_checkpoint(tmp_path/'shards')


def test_a_model_saved_here_loads_in_transformers_with_no_missing_keys(theirs, toy, tmp_path):
    transformers, (encoder, predictor) = theirs[0], toy
    save_checkpoint(tmp_path, encoder, predictor, layout='huggingface')
    model, found = transformers.VJEPA2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found[k] for k in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    clip = torch.randn(1, 3, 8, 48, 48, generator=generator(0))
    with torch.no_grad():
        close(encoder(clip), model.eval()(clip.transpose(1, 2), skip_predictor=True).last_hidden_state)


# probes

def test_probes_say_which_rule_they_use(tmp_path):
    probe = golden('vjepa1_uniform')['probe']
    torch.save(probe, tmp_path/'meta.pt')
    classifier = {n.removeprefix('module.'): t for n, t in probe['classifier'].items()}
    torch.save(dict(classifier=classifier), tmp_path/'nano.pt')
    torch.save(golden('vjepa2')['probe'], tmp_path/'v2.pt')
    found = {n: load_probe(tmp_path/f'{n}.pt') for n in ('meta', 'nano', 'v2')}
    assert {n: (p.layout, p.output_projection, p.num_classes) for n, p in found.items()} == dict(
        meta=('vjepa1', False, 7), nano=('nano', True, 7), v2=('vjepa2', None, 7))
    assert load_probe(tmp_path/'meta.pt', output_projection=True).output_projection is True
    assert 'stored, but not applied' in repr(found['meta'])
    with pytest.raises(ValueError, match='width 48, but the encoder makes 192'):
        load_probe(tmp_path/'v2.pt', encoder_config('tiny'))


def test_heads_of_a_probe_are_asked_for_where_widths_disagree(tmp_path):
    head = AttentiveClassifier(192, 3, 4)
    torch.save(dict(classifier=head.state_dict()), tmp_path/'x.pt')
    with pytest.raises(ValueError, match='width 192; give encoder_config'): load_probe(tmp_path/'x.pt')
    assert load_probe(tmp_path/'x.pt', encoder_config('tiny')).model.pooler.cross_attention_block.xattn.num_heads == 3


@pytest.mark.parametrize('kind,more', [
    ('attentive', dict(depth=3, num_heads=2)), ('attentive', dict(output_projection=False)), ('linear', {}),
    ('mlp', {})])
def test_our_probes_come_back_exactly(tmp_path, kind, more):
    config, x = ProbeConfig(kind=kind, **more), torch.randn(2, 9, 48, generator=generator(0))
    with seeded(0): head = make_head(config, 48, 3, 4).eval()
    loaded = load_probe(save_probe(tmp_path/'probe.safetensors', Probe(config, head, list('abcd'))))
    assert loaded.classes == list('abcd') and loaded.num_classes == 4 and loaded.layout == 'jepa'
    assert loaded.model(x).equal(head(x))
    assert loaded.output_projection == (config.output_projection if kind == 'attentive' else None)
    with pytest.raises(ValueError, match='load_probe'): load_checkpoint(tmp_path/'probe.safetensors')


# memory

@pytest.mark.slow
def test_a_large_model_loads_with_little_more_memory_than_its_file(tmp_path):
    "ViT-L of 300 M parameters; the file is sparse, so it takes no disk"
    with torch.device('meta'):
        state = {f'encoder.{n}': t for n, t in Encoder(encoder_config('large')).state_dict().items()}
    header, at = dict(__metadata__=dict(jepa=json.dumps(dict(encoder=encoder_config('large').to_dict())))), 0
    for name, t in state.items():
        header[name] = dict(dtype='F32', shape=list(t.shape), data_offsets=[at, at := at + t.nbytes])
    text = json.dumps(header).encode()
    text += b' '*(-len(text) % 8)
    with open(tmp_path/'large.safetensors', 'wb') as f:
        f.write(len(text).to_bytes(8, 'little') + text)
        f.truncate(8 + len(text) + at)
    code = ('import resource, sys\nfrom jepa.checkpoint import load_checkpoint\n'
            'def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024\n'
            'before = peak()\nencoder = load_checkpoint(sys.argv[1]).encoder\n'
            'print(peak() - before, sum(p.numel() for p in encoder.parameters()))')
    if sys.platform != 'linux': pytest.skip('ru_maxrss has other units there')
    process = subprocess.run([sys.executable, '-c', code, tmp_path/'large.safetensors'], capture_output=True, text=True,
                             check=True)
    took, parameters = map(int, process.stdout.split())
    assert parameters > 300e6 and took <= at + 3*2**30


# downloads

@pytest.fixture
def site(monkeypatch):
    with serving() as site:
        monkeypatch.setitem(published, 'vjepa1-large', site.url + 'vitl16/vitl16.pth.tar')
        yield site


def test_fetch_goes_on_where_the_server_broke_off_and_loads(site, tmp_path, golden_file):
    content = golden_file('vjepa1_uniform').read_bytes()
    site['vitl16/vitl16.pth.tar'] = content
    site.breaks, site.after = 2, 100_000
    file = fetch('vjepa1-large', tmp_path/'new', sha256=hashlib.sha256(content).hexdigest(), progress=False, wait=0.01)
    assert file.name == 'vjepa1-large.pth.tar'
    assert [r for _, r in site.asked] == [None, 'bytes=100000-', 'bytes=200000-']
    assert load_checkpoint(file).layout == 'vjepa1' and [p.name for p in file.parent.iterdir()] == [file.name]


def test_fetch_never_leaves_half_a_file_under_the_final_name(site, tmp_path):
    site['vitl16/vitl16.pth.tar'] = b'x'*10_000
    site.breaks, site.after = 100, 0
    for wrong in (dict(), dict(size=9_999), dict(sha256='0'*64)):
        with pytest.raises(Exception, match='vitl16.pth.tar'):
            fetch('vjepa1-large', tmp_path/'new', progress=False, wait=0.001, **wrong)
        site.breaks = 0
        assert not (tmp_path/'new'/'vjepa1-large.pth.tar').exists()
    assert fetch('vjepa1-large', tmp_path/'new', progress=False).stat().st_size == 10_000
    assert fetch(site.url + 'vitl16/vitl16.pth.tar', tmp_path/'new', progress=False).name == 'vitl16.pth.tar'


def test_fetch_knows_the_names(tmp_path, monkeypatch):
    with pytest.raises(KeyError, match="did you mean 'vjepa2.1-base'"): fetch('vjepa2.1-bas', tmp_path)
    assert published['vjepa2.1-base'].endswith('dl.fbaipublicfiles.com/vjepa2/vjepa2_1_vitb_dist_vitG_384.pt')
    assert published['vjepa1-huge-384-k400-probe'].endswith('jepa/vith16-384/k400-probe.pth.tar')
    asked = []
    def download(repo, local_dir, allow_patterns):
        asked.append(repo)
        return str(local_dir)
    monkeypatch.setattr('huggingface_hub.snapshot_download', download)
    assert fetch(repositories[0], tmp_path) == tmp_path/'vjepa2-vitl-fpc64-256'
    assert asked == ['facebook/vjepa2-vitl-fpc64-256']


def test_a_pico_run_opens_without_its_predictor(tmp_path):
    from jepa.cli import open_encoders
    from jepa.pico import pico_config
    from jepa.train import new_jepa
    from jepa.predictor import PredictorConfig
    config = pico_config('published', num_frames=4, pixels=32,
                         encoder=encoder_config('toy', num_frames=4, height=32, width=32, positions='learned'),
                         predictor=PredictorConfig(embed_dim=48, depth=1, num_heads=3, num_mask_tokens=1))
    pico = new_jepa(config)
    optimizer = make_optimizer(pico, predictor_lr_factor=config.predictor_lr_factor)
    torch.save(training_state(pico, optimizer, config=json.loads(json.dumps(config.to_dict()))),
               tmp_path/'checkpoint.pt')
    loaded = load_checkpoint(tmp_path)
    assert loaded.predictor is None and loaded.report.complete and any('pico' in n for n in loaded.report.notes)
    assert same(loaded.encoder, pico.target_encoder)
    encoders, clip = open_encoders(tmp_path)
    assert clip == config.clip and same(encoders['untrained'], pico.encoder)


@pytest.mark.parametrize('name,part,prefix,layout', [
    ('vjepa2', 'encoder', 'module.backbone.', 'vjepa2'), ('vjepa2_1', 'ema_encoder', 'module.backbone.', 'vjepa2.1'),
    ('vjepa2', 'encoder', '', 'vjepa2'), ('vjepa1_uniform', 'encoder', 'module.backbone.', 'vjepa1')])
def test_an_encoder_without_parts_is_still_known(tmp_path, name, part, prefix, layout):
    state = golden(name)['checkpoint'][part]
    torch.save({n.replace('module.backbone.', prefix): t for n, t in state.items()}, tmp_path/'x.pt')
    loaded = load_checkpoint(tmp_path/'x.pt', **HINTS[name])
    assert loaded.layout == layout and loaded.report.complete
    assert (loaded.encoder.config.positions == 'rope') == (layout != 'vjepa1')


def test_a_rotating_jepa_trains_and_its_file_says_what_it_is(tmp_path):
    from jepa.masks import sample_masks
    from jepa.train import StepValues, new_jepa, train_step
    config = train_config('toy', num_frames=4, pixels=32, patch_size=8,
                          predictor=PredictorConfig(embed_dim=24, depth=1))
    config = config.replace(encoder=config.encoder.replace(positions='rope'))
    jepa = new_jepa(config)
    optimizer, clip = make_optimizer(jepa), torch.randn(4, 3, 4, 32, 32, generator=generator(0))
    masks = sample_masks(config.masks, config.encoder.grid, 4, generator(0))
    def step(): return train_step(jepa, optimizer, clip, masks, StepValues(3e-3, 0.04, 1.), 10.).out.loss.item()
    losses = [step() for _ in range(21)] # a fixed target
    assert losses[-1] < 0.97*losses[0]
    torch.save(training_state(jepa, optimizer, config=json.loads(json.dumps(config.to_dict()))),
               tmp_path/'checkpoint.pt')
    loaded = load_checkpoint(tmp_path)
    assert loaded.encoder.config == config.encoder and same(loaded.encoder, jepa.target_encoder)
    assert same(loaded.predictor, jepa.predictor)


def test_rotations_hold_in_bfloat16(toy):
    encoder, _ = toy
    clip = torch.randn(1, 3, 8, 48, 48, generator=generator(0))
    with torch.no_grad():
        exact = encoder(clip)
        with torch.autocast('cpu', torch.bfloat16): low = encoder(clip)
    assert (low - exact).norm() < 0.02*exact.norm()


# the commands

def test_commands(tmp_path, golden_file, site):
    from typer.testing import CliRunner
    from jepa.cli import app
    def run(*words):
        result = CliRunner().invoke(app, ['checkpoint', *map(str, words)])
        return result.exit_code, result.output
    content = golden_file('vjepa1_uniform').read_bytes()
    site['vitl16/vitl16.pth.tar'] = content
    site.breaks, site.after = 1, 100_000
    code, said = run('fetch', 'vjepa1-large', '--folder', tmp_path/'new', '--size', len(content))
    assert code == 0 and said.strip() == str(tmp_path/'new'/'vjepa1-large.pth.tar')
    assert run('fetch', site.url + 'nowhere.pt', '--folder', tmp_path/'new') == (
        2, f'jepa: {site.url}nowhere.pt: the server answers 404 Not Found\n')
    assert all(name in run('fetch')[1] for name in ('vjepa2.1-base', 'facebook/vjepa2-vitl-fpc64-256', 'k400-probe'))
    code, said = run('inspect', said.strip(), '--names')
    assert code == 0 and 'vjepa1' in said and 'predictor_blocks.1.mlp.fc2.bias' in said
    code, said = run('convert', golden_file('vjepa2'), tmp_path/'hf', '--to', 'huggingface', '--part', 'encoder')
    assert code == 0 and 'matched        68' in said
    assert same(load_checkpoint(tmp_path/'hf').encoder, load_checkpoint(golden_file('vjepa2'), 'encoder').encoder)
    assert run('convert', golden_file('vjepa2'), tmp_path/'hf')[0] == 2
    assert 'exists' in run('convert', golden_file('vjepa2'), tmp_path/'hf')[1]
    code, said = run('convert', golden_file('pico2025'), tmp_path/'p.safetensors', '--set', 'num_heads=4')
    assert code == 0 and load_checkpoint(tmp_path/'p.safetensors').encoder.config.num_heads == 4


# classifiers of Hugging Face

def hf_classifier(transformers, folder, labels=('cat', 'dog', 'owl'), **changes):
    "A small classifier whose weights matter, saved as published ones are"
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(**dict(
        crop_size=32, frames_per_clip=4, hidden_size=48, num_attention_heads=3, num_hidden_layers=2,
        pred_hidden_size=24,
        pred_num_attention_heads=3, pred_num_hidden_layers=1, num_pooler_layers=2, initializer_range=0.3,
        id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)}) | changes)
    model = transformers.VJEPA2ForVideoClassification(config).eval()
    for p in [*model.pooler.parameters(), *model.classifier.parameters()]: p.data += 0.3*torch.randn(p.shape)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize('changes', [
    {}, dict(layer_norm_eps=0.5), dict(num_pooler_layers=0), dict(num_attention_heads=6)])
def test_a_classifier_of_transformers_gives_the_same_answers_here(theirs, tmp_path, changes):
    model, clip = hf_classifier(theirs[0], tmp_path, **changes), torch.randn(2, 4, 3, 32, 32, generator=generator(0))
    encoder = load_checkpoint(tmp_path).encoder
    head = load_probe(tmp_path, encoder.config)
    with torch.no_grad(): close(head.model(encoder(clip.transpose(1, 2))), model(clip).logits)
    assert (head.layout, head.num_classes, head.classes) == ('huggingface', 3, ['cat', 'dog', 'owl'])
    assert head.report.complete and load_probe(tmp_path).model.linear.weight.equal(head.model.linear.weight)


def test_a_classifier_of_transformers_answers_for_videos(theirs, tmp_path):
    from jepa.infer import load_classifier
    hf_classifier(theirs[0], tmp_path)
    for encoder in (tmp_path, None): # the folder holds both
        classifier = load_classifier(encoder, tmp_path)
        assert classifier.classes == ['cat', 'dog', 'owl'] and classifier.rule == 'there is none'


def test_a_classifier_of_transformers_is_never_half_loaded(theirs, tmp_path):
    hf_classifier(theirs[0], tmp_path)
    file, config = tmp_path/'model.safetensors', json.loads((tmp_path/'config.json').read_text())
    tensors = load_file(file)
    for name in ('pooler.query_tokens', 'classifier.weight', 'classifier.bias',
                 'pooler.cross_attention_layer.cross_attn.v_proj.weight',
                 'pooler.self_attention_layers.0.self_attn.q_proj.bias',
                 'pooler.self_attention_layers.1.mlp.fc1.weight'):
        save_file({n: t for n, t in tensors.items() if n != name}, file)
        with pytest.raises(ValueError, match='missing|the head has no'): load_probe(tmp_path)
    for extra in ('pooler.extra.weight', 'fc_norm.weight', 'classifier.0.weight'):
        save_file({**tensors, extra: torch.ones(2)}, file)
        with pytest.raises(ValueError, match='1 unexpected'): load_probe(tmp_path)
    save_file(tensors, file)
    assert 'no config.json' in load_probe(file, load_checkpoint(tmp_path).encoder.config).report.notes[0]
    for table in ({'0': 'cat', '1': 'dog'}, {'0': 'cat', '1': 'dog', '3': 'owl'}):
        (tmp_path/'config.json').write_text(json.dumps(config | dict(id2label=table)))
        with pytest.raises(ValueError, match='id2label'): load_probe(tmp_path)
    (tmp_path/'config.json').write_text(json.dumps(config | dict(hidden_act='relu')))
    with pytest.raises(ValueError, match='relu'): load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match='relu'): load_probe(tmp_path)
    (tmp_path/'config.json').write_text('{')
    with pytest.raises(ValueError, match='config.json is no JSON'): load_checkpoint(tmp_path)


# a class without examples

@pytest.mark.parametrize('kind', ['linear', 'logistic', 'knn'])
def test_a_missing_class_does_not_shift_answers(kind):
    rng, names = np.random.default_rng(0), ['a', 'b', 'c']
    def clips(labels):
        tokens = 10*np.eye(3)[labels][:, None, None, :].repeat(4, 2) + rng.normal(size=(len(labels), 1, 4, 3))
        return Features(tokens.astype(np.float16), labels, names)
    probe = fit_probe(ProbeConfig(kind=kind, epochs=60, lr=0.05), clips([0, 2]*20), num_heads=1, progress=False)
    assert probe.predict_proba(clips([0, 1, 2])).shape == (3, 3) and probe.evaluate(clips([0, 2]*20)).accuracy > 0.95
    if kind == 'logistic':
        with pytest.raises(ValueError, match='two classes at least; the training clips show: c'):
            fit_probe(ProbeConfig(kind=kind), clips([2]*8), progress=False)


# damage

def flip(file, at):
    "One bit of a file"
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize('kind', ['jepa', 'vjepa', 'probe'])
def test_a_flipped_bit_is_refused_by_name(tmp_path, toy, kind):
    file, load = tmp_path/('x.pt' if kind == 'vjepa' else 'x.safetensors'), load_checkpoint
    if kind == 'probe':
        load = load_probe
        with seeded(0): head = make_head(ProbeConfig(), 48, 3, 4)
        save_probe(file, Probe(ProbeConfig(), head, list('abcd')))
    else: save_checkpoint(file, toy[0], layout=kind)
    load(file)
    sound = file.read_bytes()
    weight = toy[0].blocks[0].mlp.fc1.weight.detach().numpy().tobytes() if kind != 'probe' else None
    more = [sound.index(weight) + 9] if weight else [len(sound) - 3, sound.index(b'epochs') + 10]
    places = [len(sound)//2, len(sound)//3, *more]
    for at in places:
        file.write_bytes(sound)
        flip(file, at)
        with pytest.raises(ValueError, match=f'{file.name} cannot be read.*(damaged|JSON|column)'): load(file)


def test_files_that_would_fill_the_memory_are_not_opened(tmp_path):
    torch.save(dict(encoder=dict(weight=torch.ones(2))), tmp_path/'sound.pt')
    with (zipfile.ZipFile(tmp_path/'sound.pt') as old,
          zipfile.ZipFile(tmp_path/'zip.pt', 'w', zipfile.ZIP_DEFLATED) as new):
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content + bytes(200*2**20) if name.endswith('data.pkl') else content)
    torch.save(dict(encoder=dict(weight=torch.ones(1).expand(2**30))), tmp_path/'expanded.pt')
    (tmp_path/'bytes.pt').write_bytes(b'\x80\x02c__builtin__\nbytearray\nJ' + (2**30).to_bytes(4, 'little') + b'\x85R.')
    assert (tmp_path/'zip.pt').stat().st_size < 2**20
    for name, reason in (('zip', 'declares 0.2 GiB'), ('expanded', 'declares 4.0 GiB'), ('bytes', 'bytearray')):
        with pytest.raises(ValueError, match=f'{name}.pt cannot be read.*{reason}.*memory'):
            load_checkpoint(tmp_path/f'{name}.pt')


def test_write_errors_name_the_path_and_the_remedy(tmp_path, toy):
    (tmp_path/'file').write_text('in the way')
    for name, layout in (('x.safetensors', 'jepa'), ('x.pt', 'vjepa'), ('folder', 'huggingface')):
        with pytest.raises(OSError, match='name a place that may be written') as e:
            save_checkpoint(tmp_path/'file'/name, *toy, layout=layout)
        assert str(tmp_path/'file'/name) in str(e.value)
    with pytest.raises(OSError, match='shorter name'): save_checkpoint(tmp_path/('x'*260 + '.safetensors'), *toy)


@pytest.fixture
def clips(tmp_path):
    from jepa.actions import ActionsConfig, make_actions
    from jepa.data import Augment, Clips, read_manifest
    from jepa.video import ClipConfig
    config = ActionsConfig(classes=('grow', 'blink'), train=2, val=1, size=32, level='easy')
    def make():
        manifest = read_manifest(make_actions(config, tmp_path/'videos', progress=False))
        return Clips(manifest, ClipConfig(num_frames=4, stride=2, size=32), Augment(train=False))
    return make


def test_damaged_features_are_made_again_with_a_line(toy, tmp_path, clips):
    encoder = Encoder(encoder_config('toy', num_frames=4, height=32, width=32))
    def run(): return features(encoder, clips(), folder=tmp_path/'f', progress=False)
    before = np.array(run().tokens)
    [file] = (tmp_path/'f').glob('*.npy')
    flip(file, -20)
    with pytest.warns(UserWarning, match=f'{file.name} is damaged.*computed again'):
        assert np.array_equal(run().tokens, before)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.warns(UserWarning, match='is damaged'): assert np.array_equal(run().tokens, before)
    file.with_suffix('.json').unlink()
    with pytest.warns(UserWarning, match='no readable checksum'): run()
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        run()


def test_features_are_of_this_content_and_this_torch(tmp_path, clips, monkeypatch):
    encoder = Encoder(encoder_config('toy', num_frames=4, height=32, width=32))
    def count():
        features(encoder, clips(), folder=tmp_path/'f', progress=False)
        return len(list((tmp_path/'f').glob('*.npy')))
    assert count() == count() == 1
    small, *_, large = sorted((tmp_path/'videos').rglob('*.mp4'), key=lambda file: file.stat().st_size)
    large.write_bytes(small.read_bytes().ljust(large.stat().st_size, b'\0')) # painted again: same name, same size
    assert count() == 2
    monkeypatch.setattr(torch, '__version__', '0.0')
    assert count() == 3


def test_a_dollar_in_a_class_name_is_no_formula():
    figure = plot_confusion(Evaluation(np.eye(2), [0, 1], ['$a_', 'b^$']), 'of $x_$')
    figure.canvas.draw()
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ['$a_', 'b^$']


@pytest.mark.parametrize('name, value', [
    ('epochs', 0), ('batch_size', 0), ('lr', -1.), ('lr', float('nan')), ('C', 0.), ('neighbours', 0), ('depth', 0),
    ('num_heads', -1)])
def test_numbers_of_a_probe_say_their_range(name, value):
    with pytest.raises(ValueError, match=f'ProbeConfig.{name} must lie in'): ProbeConfig(**{name: value})
