"""What several test files share"""
import os

import pytest


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with its own settings: data, cache, runs and results lie in it; one thread, no worker processes"
    folder = tmp_path_factory.mktemp('place')
    (folder/'settings.ini').write_text(f'[paths]\ndata = {folder}/data\ncache = {folder}/cache\nruns = {folder}/runs\nresults = {folder}/results\n[compute]\nthreads = 1\nworkers = 0\n')
    before = os.environ.get('JEPA_SETTINGS')
    os.environ['JEPA_SETTINGS'] = str(folder/'settings.ini')
    yield folder
    if before is None: del os.environ['JEPA_SETTINGS']
    else: os.environ['JEPA_SETTINGS'] = before
