"""Execute one notebook with papermill in a process of its own; `jepa.report` starts it.

The first line of standard input is a JSON object with `source`, `target` and `parameters`. Before every cell one JSON line
`{"cell": i, "cells": n}` goes to standard output. When standard input closes, the parent is gone, and so are we."""
import json, os, signal, sys, threading
import papermill
from papermill.engines import NBClientEngine, papermill_engines


class Counted(NBClientEngine):
    "papermill's own engine, which also says where it is"
    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
        start, cells = nb_man.cell_start, len(nb_man.nb.cells)
        def cell_start(cell, cell_index=None, **kw):
            print(json.dumps({'cell': (cell_index or 0) + 1, 'cells': cells}), file=says, flush=True)
            return start(cell, cell_index=cell_index, **kw)
        nb_man.cell_start = cell_start
        return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


def die_with_parent():
    "Interrupt this process when standard input closes"
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == '__main__':
    says, sys.stdout = sys.stdout, sys.stderr
    signal.signal(signal.SIGINT, signal.default_int_handler) # a shell's background job inherits that it is ignored
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=die_with_parent, daemon=True).start()
    papermill_engines.register('counted', Counted)
    try:
        papermill.execute_notebook(job['source'], job['target'], job['parameters'], engine_name='counted', kernel_name='python3', language='python',
                                   progress_bar=False, request_save_on_cell_execute=False)
    except papermill.PapermillExecutionError as e:
        print(json.dumps({'error': f'{e.ename}: {e.evalue}', 'cell': e.cell_index}), file=says, flush=True)
        sys.exit(1)
    except KeyboardInterrupt: sys.exit(130)
