"""`make bench`: what a training step, decoding and the cache cost on this machine. Medians of interleaved repeats."""
import statistics
import tempfile
from contextlib import nullcontext
from pathlib import Path
import numpy as np
import psutil
import torch
from jepa.actions import ActionsConfig, make_actions
from jepa.core import generator, load_settings, machine, seeded
from jepa.data import Augment, Clips, build_cache, loader, read_manifest
from jepa.encoder import Attention, Encoder, encoder_config
from jepa.infer import Classifier, classify
from jepa.pico import pico_config
from jepa.probe import Features, ProbeConfig, fit_probe, make_head
from jepa.recipe import step_timer
from jepa.train import TrainConfig, make_accelerator, new_jepa, seconds_of
from jepa.video import VideoError


def peak_memory(device):
    "Peak memory of this process (a CPU) or of the GPU, GiB"
    if device.type == 'cuda': return torch.cuda.max_memory_allocated()/2**30
    if psutil.WINDOWS: return psutil.Process().memory_info().peak_wset/2**30
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**30 if psutil.MACOS else 2**20)


def matmul_ceiling(device, dtype, side=4096, repeats=5):
    "The best rate of a large matrix product, FLOP/s"
    a = torch.randn(side, side, device=device, dtype=dtype)
    a @ a
    return 2*side**3/min(seconds_of(lambda: a @ a, device) for _ in range(repeats))


def bench_step(m, config, batch_size, repeats=3):
    "One training step our way, and the same model in float32 with fused attention"
    from torch.utils.flop_counter import FlopCounterMode
    config, memory, steps = config.replace(batch_size=batch_size), {}, {}
    dtype = dict(bfloat16=torch.bfloat16, float16=torch.float16).get(m.precision, torch.float32)
    ways = {'ours': ('auto', None), 'float32, fused attention': (True, nullcontext)}
    def step(name):
        Attention.fused = ways[name][0]
        return steps[name]()
    try:
        for name, (_, autocast) in ways.items(): # warm-up; ours first, so that its peak memory is its own
            steps[name] = step_timer(config, m, autocast)
            step(name)
            memory[name] = peak_memory(m.device)
        seconds = [{name: step(name) for name in ways} for _ in range(repeats)]
        with FlopCounterMode(display=False) as counter: step('ours')
    finally: Attention.fused = 'auto'
    return {n: statistics.median(s[n] for s in seconds) for n in ways}, counter.get_total_flops(), memory['ours'], dtype


def bench_probe(m, repeats=3, clips=320):
    "Seconds of an epoch of pico-JEPA's classifier: the first, which encodes its clips, and those after it"
    config = pico_config()
    encoder, e = new_jepa(config).encoder.to(m.device).eval(), config.encoder
    clip = torch.randn(10, 3, e.num_frames, e.height, e.width, generator=generator(0, 'bench')).to(m.device)
    def encode():
        with torch.inference_mode(), make_accelerator(m).autocast(): return encoder(clip)
    encode()
    encoding = statistics.median(seconds_of(encode, m.device) for _ in range(repeats))
    tokens = torch.randn(clips, 1, e.grid.tokens, e.embed_dim, generator=generator(0, 'bench tokens')).half().numpy()
    x = Features(tokens, np.arange(clips) % 4, list('abcd'))
    def fit(epochs):
        config = ProbeConfig('linear', epochs=epochs, batch_size=10)
        return seconds_of(lambda: fit_probe(config, x, progress=False), m.device)
    later = statistics.median(fit(3) - fit(1) for _ in range(repeats))/2
    return encoding*clips/10, later, clips


def moving(folder, per_class):
    "Videos of two motions, 64 frames of 256x256"
    config = ActionsConfig(classes=('move_right', 'orbit_left'), train=per_class, val=0, size=256, num_frames=64)
    return read_manifest(make_actions(config, folder, progress=False))


def bench_infer(m, repeats=3):
    "Clips per second of `jepa infer`, decoding included, and of its encoder and probe alone on ready batches"
    config = encoder_config('tiny')
    with seeded(0, 'bench'):
        head = make_head(ProbeConfig(), config.embed_dim, config.num_heads, 400)
        model = Classifier(Encoder(config), head, map(str, range(400)))
    clip = model.clip(segments=2, views=1)
    batch = torch.randn(8, 3, config.num_frames, config.height, config.width, generator=generator(0, 'bench'))
    with tempfile.TemporaryDirectory() as folder:
        moving(folder, 10)
        files = sorted(Path(folder).rglob('*.mp4'))
        def infer():
            answers = [answer for _, answer, _ in classify(model, files, clip)]
            bad = [a for a in answers if isinstance(a, VideoError)]
            if bad or len(answers) != 20: raise RuntimeError(f'{len(answers)} answers, errors: {bad}')
        work = dict(alone=lambda: [model(batch) for _ in range(5)], infer=infer)
        work['alone']()
        seconds = {name: [] for name in work}
        for r in range(repeats):
            for name, job in work.items(): seconds[name].append(seconds_of(job, m.device))
    return {name: 40/statistics.median(s) for name, s in seconds.items()} # 5 batches of 8; 20 videos, 2 segments each


def bench_clips(config=TrainConfig(), repeats=3, per_class=12):
    "Clips per second from mp4 and from the clip cache, in batches, cropped and normalised as for training"
    with tempfile.TemporaryDirectory() as folder:
        manifest = moving(folder, per_class)
        cache = build_cache(manifest, config.clip, folder=folder, progress=False)
        caches = dict(cache=cache, mp4=None)
        ways = {name: Clips(manifest, config.clip, config.augment, cache=c) for name, c in caches.items()}
        rates = {name: [] for name in ways}
        for r in range(repeats):
            for name, clips in ways.items():
                seen = []
                took = seconds_of(lambda: seen.extend(len(b['clip']) for b in loader(clips, 4, epoch=r)))
                rates[name].append(sum(seen)/took)
    return {n: statistics.median(r) for n, r in rates.items()}


def bench(repeats=3, say=print):
    "Measure and print"
    m, busy = machine(), psutil.cpu_percent(1)
    if busy > 20: say(f'other programs use {busy:.0f} % of the processor: these times will be too long')
    say(f'{m.device}, {m.precision}, {m.threads} threads ({m.why["precision"]}); medians of {repeats} repeats')
    seconds, flops, memory, dtype = bench_step(m, TrainConfig(), 4, repeats)
    ceilings = {d: matmul_ceiling(m.device, d) for d in (dtype, torch.float32)}
    ours, plain = seconds.values()
    say('training step of nano-JEPA (ViT-T/16, 16x224x224, batch 4, both masks, predictor 12x384): '
        f'{flops/1e12:.2f} TFLOP')
    say(f'  {ours:7.2f} s   ours')
    say(f'  {plain:7.2f} s   float32, fused attention: ours is {plain/ours:.1f} times as fast')
    for (name, s), d in zip(seconds.items(), ceilings):
        kind, share = str(d).removeprefix('torch.'), 100*flops/s/ceilings[d]
        say(f'  {flops/s/1e9:7.0f} GFLOP/s {name}: {share:.0f} % of the measured {kind} matmul ceiling '
            f'({ceilings[d]/1e9:.0f} GFLOP/s)')
    say(f'  {memory:7.2f} GiB peak memory of our step, with everything loaded')
    say('training step of pico-JEPA (8x224x224, width 192, depth 8, batch 10):')
    for form in ('described', 'published'):
        pico, n, _, _ = bench_step(m, pico_config(form), 10, repeats)
        fused = pico['float32, fused attention']
        say(f"  {pico['ours']:7.2f} s   as {form}, {n/1e12:.2f} TFLOP; float32, fused attention: {fused:.2f} s")
    first, later, n = bench_probe(m, repeats)
    say(f'  {first:7.2f} s   first epoch of a classifier on {n} clips; {later:.3f} s each after that: '
        f'{100*later/first:.2f} %')
    rates = bench_clips(repeats=repeats)
    decoder = load_settings().decoder
    say(f'clips of 16 frames, 224x224, cropped and normalised; {decoder} decoder, {m.workers} processes:')
    say(f"  {rates['mp4']:7.1f} clips/s from mp4\n  {rates['cache']:7.1f} clips/s from the cache")
    infer = bench_infer(m, repeats)
    share = 100*infer['infer']/infer['alone']
    say(f"jepa infer, ViT-T/16: {infer['infer']:.2f} clips/s from mp4, {share:.0f} % of what encoder and probe reach "
        f"on ready batches ({infer['alone']:.2f})")


if __name__ == '__main__':
    import argparse
    words = argparse.ArgumentParser(description=bench.__doc__)
    words.add_argument('--repeats', type=int, default=3, help='interleaved repeats; medians are printed')
    bench(words.parse_args().repeats, print)
