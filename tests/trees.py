"Folders in the layouts of public datasets, filled with tiny moving noise: 64 x 48 pixels, 16 frames"
import json, os
from pathlib import Path
import av, numpy as np
from PIL import Image


def frames(seed):
    still = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), 'uint8').repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(still, (2 + seed % 3)*t, 1 - seed % 2) for t in range(16)])


def video(path, seed=0):
    "An H.264 or, in a .webm file, a VP8 video"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as file:
        stream = file.add_stream('libvpx' if Path(path).suffix == '.webm' else 'libx264', rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        for frame in frames(seed): file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        file.mux(stream.encode())
    return Path(path)


def put(source, target):
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


def youtube_id(k, i): return f'v{k:03d}-{i:05d}_'


def kinetics(root, counts, split_folders=True):
    "`root/train/abseiling/ID_000010_000020.mp4`; counts: {class: {split: n}}"
    for k, (name, splits) in enumerate(counts.items()):
        one = video(Path(root)/'.made'/f'{k}.mp4', k)
        for s, (split, n) in enumerate(splits.items()):
            for i in range(n):
                put(one, Path(root)/split/name/f'{youtube_id(k, 1000*s + i)}_{10*i:06d}_{10*i + 10:06d}.mp4')
    return Path(root)


def ssv2(root, templates, train, val):
    "`root/20bn-something-something-v2/ID.webm` and `root/labels/*.json`, bracketed placeholders in the templates"
    rows, n = dict(train=[], validation=[]), 1
    for k, template in enumerate(templates):
        one = video(Path(root)/'.made'/f'{k}.webm', k)
        for split, count in (('train', train), ('validation', val)):
            for _ in range(count):
                put(one, Path(root)/'20bn-something-something-v2'/f'{n}.webm')
                rows[split].append(dict(id=str(n), label=template.replace('[something]', 'a cup'), template=template,
                    placeholders=['a cup']))
                n += 1
    texts = dict(rows, labels={t.replace('[', '').replace(']', ''): str(i) for i, t in enumerate(templates)})
    (Path(root)/'labels').mkdir()
    for name, content in texts.items(): (Path(root)/'labels'/f'{name}.json').write_text(json.dumps(content))
    return Path(root)


def imagenet(root, wnids, train, val):
    "`root/train/n01440764/n01440764_1.JPEG`, `root/val/n01440764/ILSVRC2012_val_00000001.JPEG`"
    n = 0
    for k, wnid in enumerate(wnids):
        for split, count in (('train', train), ('val', val)):
            for i in range(count):
                n += 1
                name = f'{wnid}_{i}.JPEG' if split == 'train' else f'ILSVRC2012_val_{n:08d}.JPEG'
                file = Path(root)/split/wnid/name
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(frames(1000*k + n)[0]).save(file, format='JPEG') # no two are alike
    return Path(root)
