"""Make README.md from nbs/index.ipynb: markdown as it is, code in fences, outputs as text. `python -m tools.readme`."""
import posixpath
import re
from pathlib import Path
from fastcore.nbio import read_nb
from jepa.core import write_beside

root = Path(__file__).resolve().parents[1]


def output_text(o):
    "One output of a cell as text; pictures are left to the notebook, and markdown is taken as it is"
    data = o.get('data', {})
    if 'image/png' in data or 'text/markdown' in data: return ''
    return ''.join(o.get('text') or data.get('text/plain', '')).rstrip()


def links(text):
    "Links of a notebook in nbs/ as links of a file above it; GitHub writes the anchors of a page in small letters"
    text = re.sub(r'\]\((#[^)]+)\)', lambda m: f']({m[1].lower()})', text)
    def above(m): return f"]({posixpath.normpath(posixpath.join('nbs', m[1]))})"
    return re.sub(r'\]\((?![a-z]+:|#)([^)]+)\)', above, text)


def readme() -> str:
    "What README.md has to be"
    parts = []
    for cell in read_nb(root/'nbs'/'index.ipynb').cells:
        source = ''.join(cell.source).strip()
        if cell.cell_type == 'markdown': parts.append(links(source))
        elif source and not re.match(r'#\|\s*hide', source):
            if not re.match(r'#\|\s*echo:\s*false', source): parts.append(f'```python\n{source}\n```')
            shown = [o.get('data', {}).get('text/markdown') for o in cell.outputs]
            parts += [links(''.join(text)) for text in shown if text]
            text = '\n'.join(filter(None, map(output_text, cell.outputs)))
            if text: parts.append(f'```\n{text}\n```')
    return '\n\n'.join(p for p in parts if p) + '\n'


if __name__ == '__main__':
    with write_beside(root/'README.md') as temporary: temporary.write_text(readme())
    print('README.md is written')
