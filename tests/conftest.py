"""What several test files share"""
import os

import pytest


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with its own settings: data, cache, runs and results lie in it; one thread, no worker processes"
    folder = tmp_path_factory.mktemp('place')
    paths = [f'{key} = {folder}/{key}' for key in ('data', 'cache', 'runs', 'results')]
    lines = ['[paths]', *paths, '[compute]', 'threads = 1', 'workers = 0']
    (folder/'settings.ini').write_text('\n'.join(lines) + '\n')
    before = os.environ.get('JEPA_SETTINGS')
    os.environ['JEPA_SETTINGS'] = str(folder/'settings.ini')
    yield folder
    if before is None: del os.environ['JEPA_SETTINGS']
    else: os.environ['JEPA_SETTINGS'] = before
