"""Pages of reports: no name of a data set, a class or a file runs in a browser; pages are small and linked"""
import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from jepa._index import card, notebook_html, shrink_html, table_html, write_index
from jepa._page import clean, small_png
from jepa.report import ReportSpec, Tier

EVIL = '<img src=x onerror=alert(1)>'
VARIANTS = [
    EVIL, '<script>alert(1)</script>', '<svg onload=alert(1)><b>x</b></svg>', '<a href="javascript:alert(1)">a</a>',
    '<a href=" java\tscript:alert(1)">a</a>', '<div style="background:url(https://x.org/a)">a</div>',
    '<iframe src="https://x.org"></iframe>', '<img src="https://x.org/a.png">', '<b onclick=alert(1)>b</b>',
    '<math><mtext></mtext><style><img onerror=alert(1)></style></math>',
    '<form action=x><input autofocus onfocus=alert(1)>', '<style>@import "https://x.org"</style>',
    '<object data=x></object>', '<td id="x" onmouseover=alert(1)>', '<<b>img onerror=1>', '<base href="https://x.org">',
    '<meta http-equiv=refresh content="0;url=https://x.org">', '<link rel=stylesheet href=//x.org>',
]


class Tags(HTMLParser):
    "All tags with their attributes"
    def __init__(self, text):
        super().__init__()
        self.all, self.stack, self.balanced = [], [], True
        self.feed(text)
    def handle_starttag(self, tag, attributes):
        self.all.append((tag, dict(attributes)))
        if tag not in ('img', 'br', 'hr', 'meta', 'col'): self.stack.append(tag)
    def handle_endtag(self, tag): self.balanced &= bool(self.stack) and self.stack.pop() == tag


def runs(text):
    "What a browser would run or fetch"
    bad = []
    for tag, attributes in Tags(text).all:
        if tag in ('script', 'iframe', 'object', 'svg', 'math', 'form', 'input', 'base', 'link'): bad.append(tag)
        if attributes.get('http-equiv'): bad.append('meta')
        bad += [k for k in attributes if k.startswith('on')]
        links = [attributes[k] or '' for k in ('href', 'src') if k in attributes]
        bad += [link for link in links if re.match(r'(?i)\W*(java|vbs|data:text|//)', link)]
        source = attributes.get('src', '')
        if tag == 'img' and ':' in source and not source.startswith('data:image/'): bad.append(source)
        if 'url(' in attributes.get('style', ''): bad.append(attributes['style'])
    return bad


def png(width=40, height=30, mode='RGB', noise=False):
    pixels = np.random.default_rng(0).integers(256, size=(height, width, len(mode)), dtype=np.uint8)
    if not noise: pixels[:] = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    if mode == 'RGBA': pixels[..., 3] = 255
    out = io.BytesIO()
    Image.fromarray(pixels, mode).save(out, 'PNG')
    return out.getvalue()


@pytest.mark.parametrize('text', VARIANTS)
def test_cleaned_html_runs_and_fetches_nothing(text):
    for around in ('{}', '<table><tr><td>{}</td></tr></table>', '<p>before {} after</p>'):
        cleaned = clean(around.format(text))
        assert not runs(cleaned) and Tags(cleaned).balanced and not Tags(cleaned).stack, cleaned
    assert clean(cleaned) == cleaned


def test_cleaning_keeps_what_is_harmless():
    kept = ('<h2 id="A">A &amp; b &lt;i&gt; &#182;</h2>'
            '<p>2 &lt; 3 <code>x</code> <a href="https://x.org/a?b=1">l</a></p>'
            '<details open><summary>s</summary><pre><span class="k">for</span> i</pre></details>'
            '<a href="index.html">i</a><a href="#A">a</a><img alt="" src="data:image/png;base64,AAAA">')
    assert clean(kept) == kept
    assert clean('<pre><span></span><span class="n">a</span></pre>') == '<pre>a</pre>'


def test_a_styled_table_keeps_its_alignment_without_a_style_per_cell():
    df = pd.DataFrame(dict(model=['a', EVIL], n=[1, 2]))
    styled = df.style.hide(axis='index').format(escape='html').set_uuid('t').set_caption('words')
    styled = styled.set_properties(subset=['model'], **{'text-align': 'left'})
    styled = styled.set_table_styles({'model': [dict(selector='th', props='text-align: left')]}, overwrite=False)
    before = styled.to_html()
    after = clean(before)
    assert '<th class="t">model</th>' in re.sub(r'\s*\n\s*', '', after) and '<th>n</th>' in after
    assert after.count('<td class="t">') == 2 and after.count('<td>') == 2 and 'words' in after
    assert not runs(after) and len(after) < len(before)/2


def executed(*outputs, source='x = 1'):
    words = new_markdown_cell('# Title\n\nwords\n\n## One\n\n## Two')
    return new_notebook(cells=[words, new_code_cell(source, outputs=list(outputs))])


def shown(mime, text, **metadata): return new_output('display_data', {mime: text}, metadata=metadata)


def test_a_page_of_a_hostile_notebook_is_harmless():
    outputs = [shown('text/html', f'<div>{text}</div>') for text in VARIANTS] + [shown('text/markdown', f'*{EVIL}*')]
    outputs.append(new_output('error', ename='ValueError', evalue=EVIL, traceback=[EVIL]))
    page = notebook_html(executed(*outputs, source=f'print("{EVIL}")'), EVIL, EVIL)
    assert not runs(page.split('</head>')[1]) and '<title>&lt;img' in page
    assert page.count('&lt;img src=x onerror=alert(1)&gt;') >= 3 # title, note, error: as words


def test_pictures_have_their_caption_as_alternative_text():
    picture = base64.b64encode(png()).decode()
    nb = executed(shown('image/png', picture), shown('text/markdown', '*Loss of 2 &lt; 3 runs "x".*'))
    named = shown('image/png', picture, **{'image/png': {'alt': 'of <b> itself'}})
    nb.cells.append(new_code_cell('y', outputs=[named]))
    nb.cells.append(new_code_cell('z', outputs=[shown('image/png', picture)]))
    before = json.dumps(nb)
    alts = [a['alt'] for tag, a in Tags(notebook_html(nb, 't')).all if tag == 'img']
    assert alts == ['Loss of 2 < 3 runs "x".', 'of <b> itself', 'Figure'] and json.dumps(nb) == before


def test_a_page_has_contents():
    page = notebook_html(executed(), 't')
    assert '<nav class="contents" aria-label="Contents"><a href="#One">One</a><a href="#Two">Two</a></nav>' in page
    assert page.index('</h1>') < page.index('<nav class="contents"') < page.index('words')


def test_small_pictures_keep_size_and_colours():
    for mode in ('RGB', 'RGBA'):
        data = png(600, 400, mode)
        small = small_png(data)
        before, after = (np.asarray(Image.open(io.BytesIO(d)).convert('RGB')).astype(int) for d in (data, small))
        assert len(small) <= len(data) and before.shape == after.shape and np.abs(before - after).max() <= 2
    noise = png(200, 100, noise=True)
    assert len(small_png(noise)) < len(noise)/2 and Image.open(io.BytesIO(small_png(noise))).size == (200, 100)
    half = Image.new('RGBA', (4, 4), (255, 0, 0, 100))
    half.save(out := io.BytesIO(), 'PNG')
    assert small_png(out.getvalue()) == out.getvalue() and small_png(b'no picture') == b'no picture'


def test_an_existing_page_is_made_smaller_and_the_second_time_stays(tmp_path):
    picture = base64.b64encode(png(400, 300, noise=True)).decode()
    stale = '<!--state--><p class="why stale">Stale.</p><!--/state-->'
    body = f'{stale}<p>words</p><img alt="a" src="data:image/png;base64,\n{picture}\n">'
    path = tmp_path/'a.html'
    path.write_text(f'<html><head><style>p{{}}</style></head><body><main class="notebook">{body}</main></body></html>')
    before = path.stat().st_size
    assert shrink_html(path) == path.stat().st_size < before/2
    text = path.read_text()
    assert stale in text and '<p>words</p>' in text and 'p{}' in text
    shrink_html(path)
    assert path.read_text() == text


def state(name, folder, status='ok', **more):
    spec = ReportSpec(notebook='a.ipynb', title=EVIL, paper=EVIL, makes=(EVIL,), tiers={'quick': Tier(minutes=1)})
    p = dict(finding=EVIL, started='2026-01-01T00:00', seconds=1,
             figures=[dict(name='f', file=f'{name}/f"x.png', caption=EVIL)],
             tables=[dict(name='t', file=f'{name}/t<b>.csv', caption=EVIL)], notes=[EVIL],
             checks=[dict(name=EVIL, ok=True, detail=EVIL)],
             machine=dict(processor=EVIL, cores=1, device='cpu', precision='float32'))
    (folder/name).mkdir()
    (folder/p['figures'][0]['file']).write_bytes(png())
    pd.DataFrame({EVIL: [EVIL, None], 'n': [1., .25]}).to_csv(folder/p['tables'][0]['file'], index=False)
    (folder/f'{name}.html').write_text(notebook_html(executed(), name))
    return SimpleNamespace(name=name, spec=spec, tier='quick', status=status, why=EVIL, provenance=p)


def test_the_index_is_harmless_whatever_things_are_called(tmp_path):
    states = [state(name, tmp_path) for name in 'abc']
    text = write_index('quick', tmp_path, states).read_text()
    assert not runs(text) and Tags(text).balanced and text.count('&lt;img src=x onerror=alert(1)&gt;') > 30
    images = [a for tag, a in Tags(text).all if tag == 'img']
    assert [i['alt'] for i in images] == [EVIL]*3 and all((tmp_path/i['src']).exists() for i in images)
    files = {a['href'] for tag, a in Tags(text).all if tag == 'a'}
    assert {'a/t<b>.csv', 'a/f"x.png', 'a.html'} <= files


def test_pages_lead_to_the_page_before_and_after(tmp_path):
    states = [state(name, tmp_path) for name in 'abc']
    (tmp_path/'b.html').unlink()
    for _ in range(2): write_index('quick', tmp_path, states) # twice: links are replaced, not added
    def near(name):
        tags = Tags((tmp_path/f'{name}.html').read_text()).all
        return [(a['rel'], a['href']) for _, a in tags if 'rel' in a]
    assert near('a') == [('next', 'c.html')] and near('c') == [('prev', 'a.html')]
    shrink_html(tmp_path/'a.html')
    assert near('a') == [('next', 'c.html')]


def test_numbers_of_a_table(tmp_path):
    path = tmp_path/'t.csv'
    pd.DataFrame(dict(name=['a', 'b'], whole=[1., np.nan], part=[.12345, 2.5], n=[1, 2])).to_csv(path, index=False)
    cells = re.findall(r'<td[^>]*>(.*?)</td>', table_html(path, 'caption'))
    assert cells == ['a', '1', '0.1235', '1', 'b', '–', '2.50', '2']


def test_a_report_that_was_not_made_has_a_card(tmp_path):
    spec = ReportSpec(notebook='a.ipynb', title='T', paper='P', makes=('Table 1',))
    text = card(SimpleNamespace(name='a', spec=spec, tier='quick', status='missing', why='', provenance=None), tmp_path)
    assert 'not made' in text and 'class="links"' not in text


STANDARD = sorted((Path(__file__).resolve().parents[1]/'reports/results/standard').glob('*.html'))


@pytest.mark.parametrize('path', STANDARD, ids=lambda p: p.name)
def test_a_committed_page_becomes_small_enough(path, tmp_path):
    copy = tmp_path/path.name
    copy.write_bytes(path.read_bytes())
    assert path.name == 'index.html' or shrink_html(copy) < 400_000
    assert path.name == 'index.html' or not runs(copy.read_text().split('</head>')[1])
