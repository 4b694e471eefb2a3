"""HTML of the reports: one page per executed notebook, and one index per tier. Plumbing of `jepa.report`."""
import copy
import html
import re
from pathlib import Path
import pandas as pd
from jepa._page import clean, esc, page, shrink, write

WORDS = dict(ok='ok', failed='failed', stale='stale', missing='not made', check='check failed')
LEAD = ('The tables and figures of the nano-JEPA and pico-JEPA papers, made again: what the papers print beside what '
        'this machine measured, with n and 95 % Wilson intervals.')
MAIN = '<main class="notebook">'
STATE = re.compile(r'(?s)(?:<!--state-->.*?<!--/state-->|<!--pages-->.*?<!--/pages-->)+') # written by the index


def span(seconds):
    "A duration a person reads: '42 s', '3.5 min', '2.1 h'"
    if seconds < 100: return f'{seconds:.0f} s'
    return f'{seconds/60:.1f} min' if seconds < 5400 else f'{seconds/3600:.1f} h'


def on_runs(records):
    "What pretraining runs took that results stand on: ', on 2 runs that took 21.0 min'; '' where none is recorded"
    seconds = {r['name']: r['seconds'] for p in records for r in p.get('runs', []) if 'seconds' in r}
    runs = 'a run' if len(seconds) == 1 else f'{len(seconds)} runs'
    return f', on {runs} that took {span(sum(seconds.values()))}' if seconds else ''


# --- pages of notebooks ----------------------------------------------------------------------------------------

TEMPLATE = """{% extends 'basic/index.html.j2' %}
{% block input_group %}{% if cell.source.strip() %}<details><summary>Code</summary>{{ super() }}</details>{% endif %}
{% endblock %}"""


def plain(text):
    "The words of Markdown or HTML"
    return ' '.join(html.unescape(re.sub(r'<[^>]+>', '', text)).strip(' *_\n').split())


def captions_as_alt(nb):
    "Give every picture without words the caption that follows it in its cell"
    for cell in nb.cells:
        outputs = cell.get('outputs', [])
        for i, output in enumerate(outputs):
            if 'image/png' not in output.get('data', {}): continue
            following = (o['data']['text/markdown'] for o in outputs[i+1:] if 'text/markdown' in o.get('data', {}))
            about = output.setdefault('metadata', {}).setdefault('image/png', {})
            about['alt'] = html.unescape(about.get('alt') or next(following, 'Figure')).strip(' *_\n')


def contents(body):
    "Links to the sections of a page"
    sections = re.findall(r'<h2 id="([^"]+)"[^>]*>(.*?)</h2>', body, re.S)
    links = ''.join(f'<a href="#{name}">{esc(plain(title))}</a>' for name, title in sections)
    return f'<nav class="contents" aria-label="Contents">{links}</nav>' if len(sections) > 1 else ''


def notebook_html(nb, title, note=''):
    "An executed notebook as a page: pictures inside, code folded away, nothing that runs"
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter
    nb = copy.deepcopy(nb)
    captions_as_alt(nb)
    exporter = HTMLExporter(extra_loaders=[DictLoader({'report.html.j2': TEMPLATE})], template_file='report.html.j2',
                            embed_images=True)
    body = clean(exporter.from_notebook_node(nb)[0])
    first, rest = re.match(r'(?s)(.*?</h1>|)(.*)', body).groups()
    top = ('<header><div><p class="top" style="margin:0"><a href="index.html">All reports</a>'
           f'<span class="what">{esc(note)}</span></p></div></header>')
    return page(title, shrink(f'{top}{MAIN}{first}{contents(body)}{rest}</main>'))


def shrink_html(path):
    "Make an existing page smaller: its pictures get a palette, its tables and code lose what nothing uses; its bytes"
    text = Path(path).read_text(encoding='utf-8')
    begin, end = text.find(MAIN), text.rfind('</main>')
    if begin >= 0 and end > begin:
        begin += len(MAIN)
        states = re.match(STATE, text[begin:])
        begin += states.end() if states else 0
        text = text[:begin] + clean(text[begin:end]) + text[end:]
    write(path, shrink(text))
    return Path(path).stat().st_size


def link_pages(folder, names, titles):
    "Put links to the page before and the page after into every page that is there"
    there = [n for n in names if (folder/f'{n}.html').exists()]
    for i, name in enumerate(there):
        near = [(there[i-1], 'prev', '← {}')] if i else []
        near += [(there[i+1], 'next', '{} →')] if i + 1 < len(there) else []
        links = ''.join(f'<a rel="{rel}" href="{n}.html">{esc(words.format(titles[n]))}</a>' for n, rel, words in near)
        path = folder/f'{name}.html'
        old = path.read_text(encoding='utf-8')
        text = re.sub(r'(?s)<!--pages-->.*?<!--/pages-->', '', old)
        nav = f'<!--pages--><nav class="pages" aria-label="Reports">{links}</nav><!--/pages-->'
        if links: text = text.replace(MAIN, MAIN + nav, 1)
        if text != old: write(path, text)


# --- the index -------------------------------------------------------------------------------------------------

def number(value, column):
    "A number as it is shown: whole where its column is"
    if (column.dropna() % 1 == 0).all(): return f'{value:.0f}'
    return f'{value:.4g}' if abs(value) < 1 else f'{value:.2f}'


def table_html(path, caption=''):
    "A CSV file as an HTML table; text to the left, numbers to the right"
    df = pd.read_csv(path)
    text = {c: ' class=t' if not pd.api.types.is_numeric_dtype(df[c]) else '' for c in df.columns}
    def cell(value, column):
        if pd.isna(value): return '–'
        return number(value, column) if pd.api.types.is_float_dtype(column) else esc(value)
    head = ''.join(f'<th{text[c]} scope="col">{esc(c)}</th>' for c in df.columns)
    rows = [''.join(f'<td{text[c]}>{cell(row[c], df[c])}</td>' for c in df.columns) for _, row in df.iterrows()]
    body = ''.join(f'<tr>{row}</tr>' for row in rows)
    return (f'<div class="scroll"><table><caption>{esc(caption)}</caption><thead><tr>{head}</tr></thead>'
            f'<tbody>{body}</tbody></table></div>')


def checks_html(checks):
    "The named checks of a report, by colour and word"
    words = {True: ('pass', 'passed'), False: ('fail', 'FAILED'), None: ('open', 'not judged')}
    items = []
    for c in checks:
        colour, word = words[c['ok']]
        detail = f': {esc(c["detail"])}' if c['detail'] else ''
        items.append(f'<li><span class="{colour}">{word}</span> {esc(c["name"])}{detail}</li>')
    return f'<ul class="checks">{"".join(items)}</ul>' if items else ''


def figures_html(figures, folder):
    "Pictures with their captions, for those that cannot see them, too"
    parts = []
    for f in figures:
        file, caption = esc(f['file']), esc(f['caption'])
        if not (folder/f['file']).exists(): continue
        parts.append(f'<figure><a href="{file}"><img loading="lazy" src="{file}" alt="{caption}"></a>'
                     f'<figcaption>{caption}</figcaption></figure>')
    return f'<div class="figures">{"".join(parts)}</div>' if parts else ''


FILES = {'.html': 'Full report', '.ipynb': 'Executed notebook', '.json': 'Provenance', '.failed.html': 'Failed run'}


def links_html(r, folder):
    "What there is of a report, and how long it took"
    p, budget = r.provenance or {}, r.spec.tiers.get(r.tier)
    there = {f'{r.name}{end}': word for end, word in FILES.items() if (folder/f'{r.name}{end}').exists()}
    links = [f'<a href="{esc(file)}">{word}</a>' for file, word in there.items()]
    links += [f'<a href="{esc(t["file"])}">{esc(Path(t["file"]).name)}</a>' for t in p.get('tables', [])]
    if p and budget:
        seconds, plan = p.get('run_seconds', p['seconds']), 60*budget.minutes
        over = ', over its budget' if seconds > plan else ''
        links.append(f'<span>{span(seconds)} of {span(plan)} planned{over}{esc(on_runs([p]))}</span>')
    return f'<div class="links">{"".join(links)}</div>' if links else ''


def card(r, folder):
    "One report of the index; `r` is a row of `jepa.report.report_states`"
    p, spec = r.provenance, r.spec
    what = ' · '.join(filter(None, [esc(spec.paper), esc(', '.join(spec.makes))]))
    parts = [f'<section class="card {r.status}" id="{esc(r.name)}"><div class="top"><div><h2>{esc(spec.title)}</h2>'
             f'<p class="what">{what}</p></div><span class="status {r.status}">{WORDS[r.status]}</span></div>']
    if r.why: parts.append(f'<p class="why">{esc(r.why)}</p>')
    if p:
        parts += [f'<p class="finding">{esc(p["finding"])}</p>', figures_html(p['figures'], folder)]
        parts += [table_html(folder/t['file'], t['caption']) for t in p['tables'] if (folder/t['file']).exists()]
        parts += [checks_html(p['checks']), *(f'<p class="what">{esc(n)}</p>' for n in p['notes'])]
    return ''.join([*parts, links_html(r, folder), '</section>'])


def facts_html(tier, states):
    "The tier in figures: reports by state, machines, date, time"
    made = [r.provenance for r in states if r.provenance]
    machines = {"{processor}, {cores} cores, {device}, {precision}".format(**p['machine']) for p in made}
    counts = {word: sum(r.status == status for r in states) for status, word in WORDS.items()}
    facts = {'Tier': tier,
             'Reports': ', '.join(f'{n} {word}' for word, n in counts.items() if n),
             'Machine': '; '.join(sorted(machines)) or 'none yet',
             'Made': max((p['started'][:10] for p in made), default='–'),
             'Times, summed': span(sum(p.get('run_seconds', p['seconds']) for p in made)) + on_runs(made)}
    items = ''.join(f'<div><dt>{k}</dt><dd>{esc(v)}</dd></div>' for k, v in facts.items())
    return f'<dl class="facts">{items}</dl>'


def write_index(tier, folder, states):
    "Write `index.html` of one tier, and the links between its pages; `states` come from `jepa.report.report_states`"
    folder = Path(folder)
    header = f'<header><div><h1>Reports of jepa</h1><p class="lead">{LEAD}</p>{facts_html(tier, states)}</div></header>'
    footer = ('<footer><p>Stale: the code, the notebook, a parameter or the data changed after the report was made; '
              f'make it again with <code>jepa reports run --tier {esc(tier)}</code>. '
              'Not made: no run of this tier has succeeded here.</p></footer>')
    cards = ''.join(card(r, folder) for r in states)
    write(folder/'index.html', page(f'Reports of jepa: {tier}', f'{header}<main>{cards}</main>{footer}'))
    link_pages(folder, [r.name for r in states], {r.name: r.spec.title for r in states})
    return folder/'index.html'


def write_tiers(folder):
    "Link the tiers' indexes from one page when there is more than one"
    tiers = [t for t in ('quick', 'standard', 'paper') if (Path(folder)/t/'index.html').exists()]
    if len(tiers) < 2: return
    items = ''.join(f'<section class="card"><h2><a href="{t}/index.html">{t}</a></h2></section>' for t in tiers)
    header = '<header><div><h1>Reports of jepa</h1><p class="lead">Tiers made on this machine.</p></div></header>'
    write(Path(folder)/'index.html', page('Reports of jepa', f'{header}<main>{items}</main>'))
