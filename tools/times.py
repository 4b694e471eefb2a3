"""How long every notebook takes from top to bottom.

`python -m tools.times [NAME ...]` runs them where they lie, changes none, and keeps the seconds in
data/notebook_seconds.csv."""
import csv
import sys
import time
from pathlib import Path

from jepa.core import cores, machine, write_beside

root = Path(__file__).resolve().parents[1]
table = root/'data'/'notebook_seconds.csv'


def known() -> dict: # notebook -> row
    "What was measured before"
    return {row['notebook']: row for row in csv.DictReader(table.open())} if table.exists() else {}


def seconds(path) -> float:
    "Run a notebook without changing its file; an error in a cell is an error here"
    import nbformat
    from nbclient import NotebookClient
    start = time.perf_counter()
    place = dict(metadata=dict(path=str(path.parent)))
    NotebookClient(nbformat.read(path, 4), timeout=900, kernel_name='python3', resources=place).execute()
    return time.perf_counter() - start


def measure(names=()):
    "Measure the notebooks that are named, or all"
    paths = sorted(p for p in (root/'nbs').glob('*.ipynb') if not names or p.stem in names)
    missing = set(names) - {p.stem for p in paths}
    if missing: raise FileNotFoundError(f'no notebook {sorted(missing)[0]} in nbs')
    for path in paths:
        row = dict(notebook=path.stem, seconds=f'{seconds(path):.0f}', threads=machine().threads, cores=cores())
        rows = {**known(), path.stem: row}
        with write_beside(table) as temporary, open(temporary, 'w', newline='') as f:
            writer = csv.DictWriter(f, list(row), lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows[name] for name in sorted(rows))
        print(path.stem, row['seconds'], 's', flush=True)


if __name__ == '__main__': measure(sys.argv[1:])
