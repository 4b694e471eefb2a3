"""What pages of reports are made of: their look, small pictures, HTML in which nothing runs. Plumbing of `_index`."""
import base64
import html
import io
import re
from html.parser import HTMLParser
from jepa.core import write_beside

CSS = """
:root{color-scheme:light dark;--bg:#fbfaf8;--fg:#1d2126;--soft:#5c6670;--card:#fff;--line:#dcdfe3;--accent:#0b5ea8;
--wash:#f1f4f8;
--ok:#0b6e4f;--okbg:#e3f4ec;--bad:#a61b1b;--badbg:#fbe6e4;--warn:#8a5300;--warnbg:#fdf0d8;--none:#565f68;
--nonebg:#e9ecef}
@media(prefers-color-scheme:dark){:root{--bg:#15181c;--fg:#e6e8ea;--soft:#a0a9b2;--card:#1e2227;--line:#373d44;
--accent:#7cb8f0;--wash:#262b32;
--ok:#7fd6ae;--okbg:#143427;--bad:#ff9c93;--badbg:#421a17;--warn:#f2c069;--warnbg:#3a2b0d;--none:#b5bdc5;
--nonebg:#31363c}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",sans-serif}
main,header>div,footer{max-width:1060px;margin:0 auto;padding:0 24px}
header{border-bottom:1px solid var(--line);background:var(--card);padding:28px 0 20px;margin-bottom:28px}
h1{font-size:1.75rem;line-height:1.25;margin:0 0 6px}h2{font-size:1.25rem;line-height:1.3;margin:0}
h3{font-size:1.05rem}
a{color:var(--accent)}p{margin:.5em 0}code,pre{font:13.5px/1.45 ui-monospace,Menlo,Consolas,monospace}
.lead{color:var(--soft);max-width:70ch;margin:0 0 14px}
dl.facts{display:flex;flex-wrap:wrap;gap:8px 28px;margin:0}dl.facts div{min-width:0}
dl.facts dt{font-size:.75rem;color:var(--soft)}dl.facts dd{margin:0;font-weight:600}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:22px 24px;margin:0 0 22px}
.card.ok{border-left:5px solid var(--ok)}.card.failed{border-left:5px solid var(--bad)}
.card.stale,.card.check{border-left:5px solid var(--warn)}.card.missing{border-left:5px solid var(--none)}
.top{display:flex;justify-content:space-between;align-items:flex-start;gap:16px}
.what{color:var(--soft);font-size:.92rem;margin:2px 0 0}
.status{flex:none;font-size:.85rem;font-weight:700;border-radius:99px;padding:3px 12px;white-space:nowrap}
.status.ok{color:var(--ok);background:var(--okbg)}.status.failed{color:var(--bad);background:var(--badbg)}
.status.stale,.status.check{color:var(--warn);background:var(--warnbg)}
.status.missing{color:var(--none);background:var(--nonebg)}
.why{font-size:.92rem;border-radius:6px;padding:8px 12px;margin:12px 0 0;background:var(--wash);
overflow-wrap:anywhere}
.finding{font-size:1.08rem;max-width:78ch;margin:14px 0}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:18px;margin:16px 0}
figure{margin:0}
figure img{max-width:100%;height:auto;background:#fff;border:1px solid var(--line);border-radius:6px;display:block}
figcaption,caption{font-size:.86rem;color:var(--soft);text-align:left;padding:6px 0;caption-side:bottom}
.scroll{overflow-x:auto;margin:12px 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:60%}
th{font-weight:600;color:var(--soft);border-bottom:2px solid var(--line)}td{border-bottom:1px solid var(--line)}
th,td{padding:6px 12px;text-align:right;vertical-align:top;white-space:nowrap}th.t,td.t{text-align:left}
ul.checks{list-style:none;margin:12px 0;padding:0;font-size:.9rem}ul.checks li{margin:2px 0}
.pass{color:var(--ok);font-weight:700}.fail{color:var(--bad);font-weight:700}.open{color:var(--none);font-weight:700}
.links{font-size:.9rem;color:var(--soft);border-top:1px solid var(--line);padding-top:12px;margin-top:16px;
display:flex;flex-wrap:wrap;gap:4px 20px}
footer{color:var(--soft);font-size:.88rem;padding-bottom:40px}
.notebook table{min-width:0}.notebook img{max-width:100%;height:auto;background:#fff;border-radius:6px}
.notebook h1:first-of-type{margin-top:0}
.notebook pre{overflow-x:auto;background:var(--wash);border-radius:6px;padding:10px 12px}
.notebook .jp-OutputArea pre,.notebook .output_area pre{background:none;padding:0}
.notebook details{margin:8px 0 4px}.notebook .output_area{overflow-x:auto}
.notebook summary{cursor:pointer;color:var(--soft);font-size:.86rem}
.notebook .anchor-link,.notebook .prompt,.notebook .jp-InputPrompt,.notebook .jp-OutputPrompt{display:none}
.notebook h2{margin:1.6em 0 .3em}.notebook p,.notebook li{max-width:78ch}
.notebook .ansi-red-fg{color:var(--bad)}.notebook .ansi-green-fg{color:var(--ok)}
.notebook .ansi-blue-fg,.notebook .ansi-cyan-fg{color:var(--accent)}
.k,.kn,.ow{color:#7a3e9d;font-weight:600}.c1,.cm{color:#6d7781;font-style:italic}.s1,.s2,.sa,.si,.sd{color:#0b6e4f}
.mi,.mf{color:#a14b00}.nf,.nc{color:#0b5ea8}
@media(prefers-color-scheme:dark){.k,.kn,.ow{color:#d3a5f0}.c1,.cm{color:#98a2ac}.s1,.s2,.sa,.si,.sd{color:#86d3ae}
.mi,.mf{color:#f0b175}.nf,.nc{color:#8cc0f5}}
@media(max-width:640px){main,header>div,footer{padding:0 14px}.card{padding:16px}.top{flex-direction:column;gap:8px}}
@media print{details:not([open]){display:none}.card{break-inside:avoid}}
nav.pages{display:flex;justify-content:space-between;gap:16px;font-size:.92rem;margin:0 0 18px}
nav.pages a:only-child[rel=next]{margin-left:auto}
nav.contents{font-size:.92rem;border-left:3px solid var(--line);padding-left:14px;margin:14px 0 22px}
nav.contents a{display:inline-block;margin-right:18px}
"""


def esc(text):
    "Text that is safe between tags and in quoted attributes"
    return html.escape(str(text))


def page(title, body):
    "A whole HTML page that needs nothing beside it"
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<title>{esc(title)}</title><style>{CSS}</style></head>\n<body>{body}</body></html>\n')


def write(path, text):
    "Write a page, whole or not at all"
    with write_beside(path) as temporary: temporary.write_text(text, encoding='utf-8')


# --- pictures -------------------------------------------------------------------------------------------------

def small_png(data, colours=256):
    "A PNG of the same pixels with a palette; the original where that is not smaller"
    from PIL import Image, UnidentifiedImageError
    try: picture = Image.open(io.BytesIO(data))
    except UnidentifiedImageError: return data
    if picture.format != 'PNG' or picture.mode == 'P' or getattr(picture, 'is_animated', False): return data
    if picture.has_transparency_data and picture.convert('RGBA').getextrema()[3][0] < 255:
        return data # a palette would lose what shines through
    flat = picture.convert('RGB')
    few = flat.quantize(colours, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
    out = io.BytesIO()
    few.save(out, 'PNG', optimize=True)
    return min(out.getvalue(), data, key=len)


EMBEDDED = re.compile(r'data:image/png;base64,([A-Za-z0-9+/=\s]+)')


def shrink(text):
    "A page whose embedded pictures have a palette"
    def smaller(match):
        try: data = base64.b64decode(match[1])
        except ValueError: return match[0]
        return 'data:image/png;base64,' + base64.b64encode(small_png(data)).decode()
    return EMBEDDED.sub(smaller, text)


# --- what an executed notebook may show ------------------------------------------------------------------------

TAGS = set('a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3 h4 '
           'h5 h6 hr i img li nav ol p pre s section small span strong sub summary sup table tbody td tfoot th thead '
           'tr u ul'.split())
VOID = {'br', 'hr', 'img', 'col'}
SILENT = set('audio button embed form iframe input math noscript object script select style svg template textarea '
             'title video'.split()) # dropped with all that is inside
UNSEEN = {'prompt', 'input_prompt', 'anchor-link'} # dropped by class: page numbers of cells, marks of headings
ATTRIBUTES = {'alt', 'title', 'colspan', 'rowspan', 'scope', 'open', 'start', 'rel', 'aria-label'}
STYLED = set(re.findall(r'\.([\w-]+)', CSS)) # classes that mean something on our pages
LINK = re.compile(r'(?i)(?:https?:|mailto:|#|[\w./~%-]+(?:[?#]|$))')
PLAIN_STYLE = re.compile(r'(?i)(?!.*(?:url|expression))[\w\s:;#.,%()+-]+')
PICTURE = re.compile(r'(?i)data:image/(?:png|jpeg|gif|webp);base64,')


def left_aligned(css):
    "Ids of cells and of columns (table id, class) that a pandas style aligns to the left"
    cells, columns = set(), set()
    for selectors, rule in re.findall(r'([^{}]+)\{([^{}]*)\}', css):
        if 'text-align: left' not in rule: continue
        for selector in selectors.split(','):
            column = re.fullmatch(r'\s*#(\w+) th\.(col\d+)\s*', selector)
            if column: columns.add(column.groups())
            else: cells.add(selector.strip().removeprefix('#'))
    return cells, columns


class Cleaner(HTMLParser):
    "HTML with the tags and attributes of a list and nothing that runs; cells of pandas lose their ids and styles"
    def __init__(self):
        super().__init__(convert_charrefs=False)
        self.out, self.open, self.hidden, self.css = [], [], [], None
        self.cells, self.columns, self.table = set(), set(), ''

    def handle_starttag(self, tag, attributes):
        attributes = {k: v or '' for k, v in attributes}
        classes = set(attributes.get('class', '').split())
        if self.hidden or tag in SILENT or classes & UNSEEN and tag in ('div', 'a', 'span'):
            if tag not in VOID | {'input', 'embed'}: self.hidden.append(tag)
            if tag == 'style': self.css = ''
            return
        if tag not in TAGS: return
        if tag == 'table': self.table = attributes.get('id', '')
        text = self.attributes(tag, attributes, classes)
        kept = bool(text) or tag != 'span'
        if tag not in VOID: self.open.append((tag, kept))
        if kept: self.out.append(f'<{tag}{text}>')

    def attributes(self, tag, given, classes):
        "The attributes that stay, as text"
        kept = {k: v for k, v in given.items() if k in ATTRIBUTES}
        names = classes & STYLED | ({'t'} if self.is_left(tag, given, classes) else set())
        if names: kept['class'] = ' '.join(sorted(names))
        if 'id' in given and tag in ('h1', 'h2', 'h3', 'h4', 'section'): kept['id'] = given['id']
        if tag == 'table' and re.fullmatch(r'T_[\w-]+', given.get('id', '')): kept['id'] = given['id'] # its name
        if LINK.match(given.get('href', '').strip()): kept['href'] = given['href'].strip()
        if tag == 'img' and PICTURE.match(given.get('src', '')): kept['src'] = given['src']
        style = given.get('style', '')
        if tag in ('div', 'b') and PLAIN_STYLE.fullmatch(style): kept['style'] = style
        return ''.join(f' {k}="{esc(v)}"' if v or k == 'alt' else f' {k}' for k, v in kept.items())

    def is_left(self, tag, given, classes):
        "Is this cell aligned to the left?"
        if tag not in ('td', 'th'): return False
        return given.get('id') in self.cells or any((self.table, c) in self.columns for c in classes)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID: self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if self.hidden:
            if tag in self.hidden:
                while self.hidden.pop() != tag: pass
            if tag == 'style' and self.css:
                cells, columns = left_aligned(self.css)
                self.cells, self.columns, self.css = self.cells | cells, self.columns | columns, None
            return
        if not any(tag == name for name, _ in self.open): return
        while True:
            name, kept = self.open.pop()
            if kept: self.out.append(f'</{name}>')
            if name == tag: return

    def handle_data(self, data):
        if self.css is not None and self.hidden: self.css += data
        if not self.hidden: self.out.append(data.replace('<', '&lt;').replace('>', '&gt;'))

    def handle_entityref(self, name):
        if not self.hidden: self.out.append(f'&{name};')

    def handle_charref(self, name):
        if not self.hidden: self.out.append(f'&#{name};')


def clean(body):
    "HTML that shows the same and runs nothing"
    cleaner = Cleaner()
    cleaner.feed(body)
    cleaner.close()
    ends = ''.join(f'</{name}>' for name, kept in reversed(cleaner.open) if kept)
    return re.sub(r'\n\s*\n+', '\n', re.sub(r'<div>\s*</div>', '', ''.join(cleaner.out) + ends))
