"""HTML of the reports: one page per executed notebook, and one index per tier. Plumbing of `jepa.report`."""
import html
from pathlib import Path
import pandas as pd
from jepa.core import write_beside

CSS = """
:root{color-scheme:light dark;--bg:#fbfaf8;--fg:#1d2126;--soft:#5c6670;--card:#fff;--line:#dcdfe3;--accent:#0b5ea8;--wash:#f1f4f8;
--ok:#0b6e4f;--okbg:#e3f4ec;--bad:#a61b1b;--badbg:#fbe6e4;--warn:#8a5300;--warnbg:#fdf0d8;--none:#565f68;--nonebg:#e9ecef}
@media(prefers-color-scheme:dark){:root{--bg:#15181c;--fg:#e6e8ea;--soft:#a0a9b2;--card:#1e2227;--line:#373d44;--accent:#7cb8f0;--wash:#262b32;
--ok:#7fd6ae;--okbg:#143427;--bad:#ff9c93;--badbg:#421a17;--warn:#f2c069;--warnbg:#3a2b0d;--none:#b5bdc5;--nonebg:#31363c}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main,header>div,footer{max-width:1060px;margin:0 auto;padding:0 24px}
header{border-bottom:1px solid var(--line);background:var(--card);padding:28px 0 20px;margin-bottom:28px}
h1{font-size:1.75rem;line-height:1.25;margin:0 0 6px}h2{font-size:1.25rem;line-height:1.3;margin:0}h3{font-size:1.05rem}
a{color:var(--accent)}p{margin:.5em 0}code,pre{font:13.5px/1.45 ui-monospace,Menlo,Consolas,monospace}
.lead{color:var(--soft);max-width:70ch;margin:0 0 14px}
dl.facts{display:flex;flex-wrap:wrap;gap:8px 28px;margin:0}dl.facts div{min-width:0}dl.facts dt{font-size:.75rem;color:var(--soft)}dl.facts dd{margin:0;font-weight:600}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:22px 24px;margin:0 0 22px}
.card.ok{border-left:5px solid var(--ok)}.card.failed{border-left:5px solid var(--bad)}.card.stale,.card.check{border-left:5px solid var(--warn)}.card.missing{border-left:5px solid var(--none)}
.top{display:flex;justify-content:space-between;align-items:flex-start;gap:16px}
.what{color:var(--soft);font-size:.92rem;margin:2px 0 0}
.status{flex:none;font-size:.85rem;font-weight:700;border-radius:99px;padding:3px 12px;white-space:nowrap}
.status.ok{color:var(--ok);background:var(--okbg)}.status.failed{color:var(--bad);background:var(--badbg)}.status.stale,.status.check{color:var(--warn);background:var(--warnbg)}.status.missing{color:var(--none);background:var(--nonebg)}
.why{font-size:.92rem;border-radius:6px;padding:8px 12px;margin:12px 0 0;background:var(--wash);overflow-wrap:anywhere}
.finding{font-size:1.08rem;max-width:78ch;margin:14px 0}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:18px;margin:16px 0}
figure{margin:0}figure img{max-width:100%;height:auto;background:#fff;border:1px solid var(--line);border-radius:6px;display:block}
figcaption,caption{font-size:.86rem;color:var(--soft);text-align:left;padding:6px 0;caption-side:bottom}
.scroll{overflow-x:auto;margin:12px 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:60%}
th{font-weight:600;color:var(--soft);border-bottom:2px solid var(--line)}td{border-bottom:1px solid var(--line)}
th,td{padding:6px 12px;text-align:right;vertical-align:top;white-space:nowrap}th.t,td.t{text-align:left}
ul.checks{list-style:none;margin:12px 0;padding:0;font-size:.9rem}ul.checks li{margin:2px 0}
.pass{color:var(--ok);font-weight:700}.fail{color:var(--bad);font-weight:700}.open{color:var(--none);font-weight:700}
.links{font-size:.9rem;color:var(--soft);border-top:1px solid var(--line);padding-top:12px;margin-top:16px;display:flex;flex-wrap:wrap;gap:4px 20px}
footer{color:var(--soft);font-size:.88rem;padding-bottom:40px}
.notebook table{min-width:0}.notebook img{max-width:100%;height:auto;background:#fff;border-radius:6px}.notebook h1:first-of-type{margin-top:0}
.notebook pre{overflow-x:auto;background:var(--wash);border-radius:6px;padding:10px 12px}.notebook .jp-OutputArea pre,.notebook .output_area pre{background:none;padding:0}
.notebook details{margin:8px 0 4px}.notebook .output_area{overflow-x:auto}.notebook summary{cursor:pointer;color:var(--soft);font-size:.86rem}
.notebook .anchor-link,.notebook .prompt,.notebook .jp-InputPrompt,.notebook .jp-OutputPrompt{display:none}
.notebook h2{margin:1.6em 0 .3em}.notebook p,.notebook li{max-width:78ch}
.notebook .ansi-red-fg{color:var(--bad)}.notebook .ansi-green-fg{color:var(--ok)}.notebook .ansi-blue-fg,.notebook .ansi-cyan-fg{color:var(--accent)}
.k,.kn,.ow{color:#7a3e9d;font-weight:600}.c1,.cm{color:#6d7781;font-style:italic}.s1,.s2,.sa,.si,.sd{color:#0b6e4f}.mi,.mf{color:#a14b00}.nf,.nc{color:#0b5ea8}
@media(prefers-color-scheme:dark){.k,.kn,.ow{color:#d3a5f0}.c1,.cm{color:#98a2ac}.s1,.s2,.sa,.si,.sd{color:#86d3ae}.mi,.mf{color:#f0b175}.nf,.nc{color:#8cc0f5}}
@media(max-width:640px){main,header>div,footer{padding:0 14px}.card{padding:16px}.top{flex-direction:column;gap:8px}}
@media print{details:not([open]){display:none}.card{break-inside:avoid}}
"""
WORDS = dict(ok='ok', failed='failed', stale='stale', missing='not made', check='check failed')
esc = lambda text: html.escape(str(text))


def page(title, body):
    "A whole HTML page that needs nothing beside it"
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<title>{esc(title)}</title><style>{CSS}</style></head>\n<body>{body}</body></html>\n')


def span(seconds):
    "A duration a person reads: '42 s', '3.5 min', '2.1 h'"
    return f'{seconds:.0f} s' if seconds < 100 else f'{seconds/60:.1f} min' if seconds < 5400 else f'{seconds/3600:.1f} h'


TEMPLATE = """{% extends 'basic/index.html.j2' %}
{% block input_group %}{% if cell.source.strip() %}<details><summary>Code</summary>{{ super() }}</details>{% endif %}{% endblock %}"""


def notebook_html(nb, title, note=''):
    "An executed notebook as a page: pictures inside, code folded away"
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter
    exporter = HTMLExporter(extra_loaders=[DictLoader({'report.html.j2': TEMPLATE})], template_file='report.html.j2', embed_images=True)
    body = exporter.from_notebook_node(nb)[0]
    top = f'<header><div><p class="top" style="margin:0"><a href="index.html">All reports</a><span class="what">{esc(note)}</span></p></div></header>'
    return page(title, f'{top}<main class="notebook">{body}</main>')


def table_html(path, caption=''):
    "A CSV file as an HTML table; text to the left, numbers to the right"
    df = pd.read_csv(path)
    text = [not pd.api.types.is_numeric_dtype(df[c]) for c in df.columns]
    def cell(v, column):
        if pd.isna(v): return '–'
        if pd.api.types.is_float_dtype(column): return f'{v:.0f}' if (column.dropna() % 1 == 0).all() else f'{v:.4g}' if abs(v) < 1 else f'{v:.2f}'
        return esc(v)
    head = ''.join(f'<th{" class=t" if t else ""} scope="col">{esc(c)}</th>' for c, t in zip(df.columns, text))
    rows = ''.join('<tr>' + ''.join(f'<td{" class=t" if t else ""}>{cell(row[c], df[c])}</td>' for c, t in zip(df.columns, text)) + '</tr>' for _, row in df.iterrows())
    return f'<div class="scroll"><table><caption>{esc(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def checks_html(checks):
    "The named checks of a report, by colour and word"
    word = {True: ('pass', 'passed'), False: ('fail', 'FAILED'), None: ('open', 'not judged')}
    items = ''.join(f'<li><span class="{word[c["ok"]][0]}">{word[c["ok"]][1]}</span> {esc(c["name"])}{": " + esc(c["detail"]) if c["detail"] else ""}</li>' for c in checks)
    return f'<ul class="checks">{items}</ul>' if items else ''


def card(r, folder):
    "One report of the index; `r` is a row of `jepa.report.report_states`"
    p, spec, name = r.provenance or {}, r.spec, r.name
    what = ' · '.join(filter(None, [esc(spec.paper), esc(', '.join(spec.makes))]))
    parts = [f'<section class="card {r.status}" id="{name}"><div class="top"><div><h2>{esc(spec.title)}</h2><p class="what">{what}</p></div>'
             f'<span class="status {r.status}">{WORDS[r.status]}</span></div>']
    if r.why: parts.append(f'<p class="why">{esc(r.why)}</p>')
    if p:
        parts.append(f'<p class="finding">{esc(p["finding"])}</p>')
        figures = ''.join(f'<figure><a href="{f["file"]}"><img loading="lazy" src="{f["file"]}" alt="{esc(f["caption"])}"></a><figcaption>{esc(f["caption"])}</figcaption></figure>'
                          for f in p['figures'] if (folder/f['file']).exists())
        if figures: parts.append(f'<div class="figures">{figures}</div>')
        parts += [table_html(folder/t['file'], t['caption']) for t in p['tables'] if (folder/t['file']).exists()]
        parts.append(checks_html(p['checks']))
        parts += [f'<p class="what">{esc(n)}</p>' for n in p['notes']]
    links = [f'<a href="{name}{end}">{word}</a>' for end, word in (('.html', 'Full report'), ('.ipynb', 'Executed notebook'), ('.json', 'Provenance'),
             ('.failed.html', 'Failed run')) if (folder/f'{name}{end}').exists()]
    links += [f'<a href="{t["file"]}">{esc(Path(t["file"]).name)}</a>' for t in p.get('tables', [])]
    budget = spec.tiers.get(r.tier)
    if p and budget:
        took, plan = p.get('run_seconds', p['seconds']), 60*budget.minutes
        links.append(f'<span>{span(took)} of {span(plan)} planned{", over its budget" if took > plan else ""}</span>')
    return ''.join(parts) + (f'<div class="links">{"".join(links)}</div>' if links else '') + '</section>'


def write_index(tier, folder, states):
    "Write `index.html` of one tier; `states` come from `jepa.report.report_states`"
    folder = Path(folder)
    made = [r.provenance for r in states if r.provenance]
    machines = sorted({f"{m['processor']}, {m['cores']} cores, {m['device']}, {m['precision']}" for m in (p['machine'] for p in made)})
    counts = {w: sum(r.status == s for r in states) for s, w in WORDS.items()}
    facts = {'Tier': tier, 'Reports': ', '.join(f'{n} {w}' for w, n in counts.items() if n), 'Machine': '; '.join(machines) or 'none yet',
             'Made': max((p['started'][:10] for p in made), default='–'), 'Times, summed': span(sum(p.get('run_seconds', p['seconds']) for p in made))}
    listing = ''.join(f'<div><dt>{k}</dt><dd>{esc(v)}</dd></div>' for k, v in facts.items())
    lead = 'The tables and figures of the nano-JEPA and pico-JEPA papers, made again: what the papers print beside what this machine measured, with n and 95 % Wilson intervals.'
    body = (f'<header><div><h1>Reports of jepa</h1><p class="lead">{lead}</p><dl class="facts">{listing}</dl></div></header><main>'
            + ''.join(card(r, folder) for r in states) + '</main>'
            '<footer><p>Stale: the code, the notebook, a parameter or the data changed after the report was made; make it again with '
            f'<code>jepa reports run --tier {esc(tier)}</code>. Not made: no run of this tier has succeeded here.</p></footer>')
    with write_beside(folder/'index.html') as temporary: temporary.write_text(page(f'Reports of jepa: {tier}', body))
    return folder/'index.html'


def write_tiers(folder):
    "Link the tiers' indexes from one page when there is more than one"
    tiers = [t for t in ('quick', 'standard', 'paper') if (Path(folder)/t/'index.html').exists()]
    if len(tiers) < 2: return
    items = ''.join(f'<section class="card"><h2><a href="{t}/index.html">{t}</a></h2></section>' for t in tiers)
    with write_beside(Path(folder)/'index.html') as temporary:
        temporary.write_text(page('Reports of jepa', f'<header><div><h1>Reports of jepa</h1><p class="lead">Tiers made on this machine.</p></div></header><main>{items}</main>'))
