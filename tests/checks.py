"""What `make test` checks before pytest: generated files are what their notebooks make. `python tests/checks.py`."""
import hashlib
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root))


def hashes(*patterns):
    "Path -> hash of every file that matches"
    files = [p for pattern in patterns for p in sorted(root.glob(pattern)) if p.is_file()]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def unchanged(what, commands, *patterns):
    "Run commands and name the files that they changed"
    before = hashes(*patterns)
    for command in commands: subprocess.run(command, cwd=root, check=True)
    after = hashes(*patterns)
    changed = [p for p in sorted({**before, **after}) if before.get(p) != after.get(p)]
    print(f"{what}: {'nothing changed' if not changed else 'CHANGED ' + ', '.join(changed)}", flush=True)
    return not changed


def main():
    from tools.readme import readme
    def tool(name): return str(Path(sys.executable).parent/name)
    clean = [[tool('nbdev-clean')], [tool('nbdev-clean'), '--fname', 'reports']]
    good = [unchanged('nbdev-export', [[tool('nbdev-export')]], 'jepa/*.py'),
            unchanged('nbdev-clean', clean, 'nbs/*.ipynb', 'reports/*.ipynb')]
    same = (root/'README.md').read_text() == readme()
    words = 'is what nbs/index.ipynb makes' if same else 'DIFFERS from nbs/index.ipynb; run make readme'
    print(f'README.md: {words}', flush=True)
    return 0 if all(good) and same else 1


if __name__ == '__main__': sys.exit(main())
