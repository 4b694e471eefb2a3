"""Members in processes of their own, and ONNX: the same answers as in one process, a vote that survives its members"""
import os, signal

import numpy as np
import pytest
import torch

from jepa.core import generator, seeded
from jepa._edge import Fleet, pack, unpack, vote
from jepa.encoder import Encoder, encoder_config
from jepa.ensemble import ChangeOverTime, Ensemble, ImageConfig, ImageEncoder, save_ensemble
from jepa.infer import Classifier, EnsembleClassifier, export_onnx
from jepa.data import denormalise, normalise
from jepa.probe import Features, Probe, ProbeConfig, make_head

CLASSES = list('abcd')
KINDS = ('linear', 'mlp', 'attentive')


def make_encoder(**changes):
    config = encoder_config('toy', num_frames=4, height=32, width=32, patch_size=8, **changes)
    with seeded(0, 'encoder'): encoder = Encoder(config).eval()
    encoder.patch_embed.proj.weight.data.mul_(20)
    return encoder


def make_probe(kind, encoder, seed, depth=1):
    "A probe whose answers differ from clip to clip"
    config = ProbeConfig(kind=kind, seed=seed, depth=depth)
    with seeded(seed, 'probe'): head = make_head(config, encoder.config.embed_dim, encoder.config.num_heads, 4)
    for p in head.parameters(): p.data.mul_(6)
    return Probe(config, head.eval(), CLASSES)


def make_ensemble(encoder, rule='hard'):
    members = {kind: make_probe(kind, encoder, i) for i, kind in enumerate(KINDS)}
    return Ensemble(members, rule, encoders={'toy': encoder})


def clips(n, seed=0): return torch.randn(n, 3, 4, 32, 32, generator=generator(seed, 'clips')).clamp(-1.5, 1.5)


ARRAYS = [np.arange(12, dtype=np.float16).reshape(3, 4), np.zeros((2, 3, 3, 3), np.uint8), np.array([.25], np.float32)]


@pytest.mark.parametrize('array', ARRAYS)
def test_a_message_is_its_number_and_its_array(array):
    number, back = unpack(pack(7, array))
    assert number == 7 and back.dtype == array.dtype and np.array_equal(back, array)
    assert 8 + array.nbytes < len(pack(7, array)) <= 8 + 128 + array.nbytes


@pytest.mark.slow
def test_processes_answer_as_one_and_the_vote_survives_them(place, tmp_path):
    encoder = make_encoder()
    ensemble = make_ensemble(encoder)
    for name in KINDS: save_ensemble(ensemble.take([name]), tmp_path/f'{name}.pt')
    pixels = [denormalise(c) for c in clips(4)]
    x = torch.stack([normalise(torch.from_numpy(p).permute(0, 3, 1, 2)) for p in pixels])
    with torch.inference_mode(): tokens = encoder(x).half().numpy()
    table = ensemble.table(Features(tokens[:, None], np.zeros(4, int), CLASSES))
    with Fleet({name: tmp_path/f'{name}.pt' for name in KINDS}) as fleet:
        for i in range(4):
            from_features, from_clip = fleet.ask(tokens[i]), fleet.ask(pixels[i])
            assert list(from_features) == list(KINDS)
            for answers, tolerance in ((from_features, 1e-5), (from_clip, 5e-3)):
                assert np.allclose(np.concatenate(list(answers.values())), table[i], atol=tolerance)
            assert np.allclose(vote(ensemble, from_features), ensemble.combine(table[i:i + 1])[0], atol=1e-5)
        assert fleet.sent == 3*sum(len(pack(0, tokens[0])) + len(pack(0, p)) for p in pixels)
        assert fleet.received == 3*8*len(pack(0, table[0, :4].astype(np.float32)))

        os.kill(fleet.processes['mlp'].pid, signal.SIGSTOP) # hangs
        assert list(fleet.ask(tokens[0], timeout=3)) == ['linear', 'attentive'] and fleet.alive == list(KINDS)
        os.kill(fleet.processes['mlp'].pid, signal.SIGCONT) # its late answer is to the old question, not to the new
        late = fleet.ask(tokens[1])
        assert list(late) == list(KINDS) and np.allclose(late['mlp'], table[1, 4:8], atol=1e-5)

        fleet.kill('linear')
        others = fleet.ask(tokens[2])
        assert list(others) == ['mlp', 'attentive'] == fleet.alive
        expected = ensemble.take(['mlp', 'attentive']).combine(table[2:3, 4:])[0]
        assert np.allclose(vote(ensemble, others), expected, atol=1e-5)

        os.kill(fleet.processes['attentive'].pid, signal.SIGSTOP)
        large = np.tile(tokens[3], (400, 1)) # more than a pipe holds
        for _ in range(2): assert list(fleet.ask(large, timeout=3)) == ['mlp']
        for name in ('mlp', 'attentive'): fleet.kill(name)
        with pytest.raises(RuntimeError, match='no member answered'): vote(ensemble, fleet.ask(tokens[3]))


@pytest.mark.slow
def test_a_member_that_cannot_start_is_named(place, tmp_path):
    (tmp_path/'bad.pt').write_bytes(b'no ensemble')
    with pytest.raises(RuntimeError, match="'broken' did not start"): Fleet({'broken': tmp_path/'bad.pt'})


def exported(classifier, file):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    return onnxruntime.InferenceSession(str(export_onnx(classifier, file)), providers=['CPUExecutionProvider'])


@pytest.mark.slow
@pytest.mark.parametrize('kind, depth, positions', [('attentive', 2, 'learned'), ('linear', 1, 'rope')])
def test_onnx_gives_the_same_probabilities_for_any_number_of_clips(kind, depth, positions, place, tmp_path):
    encoder = make_encoder(positions=positions)
    probe = make_probe(kind, encoder, 1, depth)
    session = exported(Classifier(encoder, probe.model, CLASSES), tmp_path/'m.onnx')
    for n in (1, 2, 5):
        x = clips(n, n)
        with torch.inference_mode(): ours = probe.model(encoder(x)).softmax(-1).numpy()
        [theirs] = session.run(None, {'clips': x.numpy()})
        assert theirs.shape == (n, 4) and np.abs(ours - theirs).max() < 1e-5
    assert ours.std(0).max() > .05


@pytest.mark.slow
def test_onnx_of_members_on_pooled_features_and_on_an_image_backbone(place, tmp_path):
    change = ChangeOverTime(make_encoder())
    image = ImageEncoder(ImageConfig('test_resnet', num_frames=4, height=32, width=32, pixels=32))
    members = {'change': make_probe('linear', change, 0), 'image': make_probe('mlp', image, 1)}
    encoder_of, encoders = {'change': 'a', 'image': 'b'}, {'a': change, 'b': image}
    ensemble = Ensemble(members, 'soft', encoder_of=encoder_of, encoders=encoders)
    crowd = EnsembleClassifier(ensemble)
    x = clips(3)
    for name in ensemble.members:
        one = crowd.member(name)
        with torch.inference_mode(): ours = one.probe(one.encoder(x)).softmax(-1).numpy()
        [theirs] = exported(one, tmp_path/f'{name}.onnx').run(None, {'clips': x.numpy()})
        assert np.abs(theirs - ours).max() < 1e-4
    with pytest.raises(ValueError, match='member by member'): export_onnx(crowd, tmp_path/'all.onnx')


@pytest.mark.slow
def test_a_process_without_torch_sees_the_same_pixels(place, tmp_path):
    for package in ('onnxruntime', 'onnxscript'): pytest.importorskip(package)
    encoder = make_encoder()
    probe = make_probe('mlp', encoder, 1)
    frames = denormalise(clips(1)[0])
    clip = normalise(torch.from_numpy(frames).permute(0, 3, 1, 2))[None]
    with torch.inference_mode(): ours = probe.model(encoder(clip)).softmax(-1)[0].numpy()
    file = export_onnx(Classifier(encoder, probe.model, CLASSES), tmp_path/'mlp.onnx')
    with Fleet({'mlp': file}) as fleet: theirs = fleet.ask(frames)['mlp']
    assert theirs.dtype == np.float32 and np.abs(ours - theirs).max() < 1e-4 and ours.max() < .999
