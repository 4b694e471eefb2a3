"""Execute one notebook with papermill in a process of its own; `jepa.report` starts it.

The first line of standard input is a JSON object with `source`, `target` and `parameters`. Before every cell one JSON
line `{"cell": i, "cells": n}` goes to standard output.
When standard input closes, the parent is gone: we stop, too."""
import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path


def own_kernel(folder):
    "A kernel `python3` that is this interpreter, found before any other of that name"
    kernel = Path(folder)/'kernels'/'python3'
    kernel.mkdir(parents=True)
    command = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
    (kernel/'kernel.json').write_text(json.dumps(dict(argv=command, display_name='Python 3', language='python')))
    os.environ['JUPYTER_PATH'] = os.pathsep.join(filter(None, [str(folder), os.environ.get('JUPYTER_PATH')]))


def counting_engine(say):
    "papermill's own engine, which also says which cell it is at"
    from papermill.engines import NBClientEngine

    class Counted(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
            start, cells = nb_man.cell_start, len(nb_man.nb.cells)
            def cell_start(cell, cell_index=None, **kw):
                say(cell=(cell_index or 0) + 1, cells=cells)
                return start(cell, cell_index=cell_index, **kw)
            nb_man.cell_start = cell_start
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)
    return Counted


def die_with_parent():
    "Interrupt this process when standard input closes"
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGINT)


def main():
    out, sys.stdout = sys.stdout, sys.stderr
    def say(**words): print(json.dumps(words), file=out, flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler) # a shell's background job inherits that it is ignored
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=die_with_parent, daemon=True).start()
    with tempfile.TemporaryDirectory(prefix='jepa-kernel-') as folder:
        own_kernel(folder)
        import papermill
        from papermill.engines import papermill_engines
        papermill_engines.register('counted', counting_engine(say))
        options = dict(engine_name='counted', kernel_name='python3', language='python')
        options |= dict(progress_bar=False, request_save_on_cell_execute=False)
        try:
            papermill.execute_notebook(job['source'], job['target'], job['parameters'], **options)
        except papermill.PapermillExecutionError as e:
            say(error=f'{e.ename}: {e.evalue}', cell=e.cell_index)
            return 1
        except KeyboardInterrupt: return 130
    return 0


if __name__ == '__main__': sys.exit(main())
