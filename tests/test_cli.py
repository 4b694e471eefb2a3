"""The command line: help for a newcomer, one clear line for a mistake, exit statuses that scripts can trust."""
import os, subprocess, sys
from pathlib import Path
import nbformat, pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner
from jepa.cli import app, parameters

cli = CliRunner()


def test_help_says_what_to_do_next():
    shown = cli.invoke(app, ['--help'])
    assert shown.exit_code == 0
    for words in ('jepa doctor', 'make reports', 'make lab'): assert words in shown.stdout


def test_every_command_has_help():
    for command in (['doctor'], ['reports'], ['reports', 'run'], ['reports', 'list'], ['reports', 'index'], ['actions', 'make'], ['bench']):
        shown = cli.invoke(app, [*command, '--help'])
        assert shown.exit_code == 0 and 'Usage' in shown.stdout


def test_help_imports_nothing_heavy():
    code = "import sys, jepa.cli; print(sorted({'torch', 'pandas', 'matplotlib', 'papermill', 'IPython'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'


def test_doctor():
    shown = cli.invoke(app, ['doctor'])
    assert shown.exit_code == 0
    for word in ('torch', 'precision', 'decoders', 'free disk', 'memory'): assert word in shown.stdout


@pytest.mark.parametrize('words, hint', [(['reports', 'run', 'nano_fig1_pretrainin'], 'nano_fig1_pretraining'), (['reports', 'list', '--tier', 'standart'], 'standard'),
                                         (['reports', 'run', '--set', 'epochs'], 'name=value'), (['actions', 'make', '--set', 'trian=3'], 'train')])
def test_a_mistake_is_one_line_and_status_2(words, hint):
    shown = cli.invoke(app, words)
    assert shown.exit_code == 2 and hint in shown.stderr and len(shown.stderr.strip().splitlines()) == 1 and shown.stderr.startswith('jepa: ')


def test_bad_settings_are_one_line(tmp_path, monkeypatch):
    (tmp_path/'settings.ini').write_text('[compute]\nthread = 2\n')
    monkeypatch.setenv('JEPA_SETTINGS', str(tmp_path/'settings.ini'))
    shown = cli.invoke(app, ['doctor'])
    assert shown.exit_code == 2 and "'threads'" in shown.stderr and 'Traceback' not in shown.stderr


def test_parameters():
    assert parameters(['a=1', 'b=1e-3', 'c=text', 'd=[1, 2]', 'e=a=b', 'f=']) == dict(a=1, b=1e-3, c='text', d=[1, 2], e='a=b', f='')


def test_a_failed_report_is_status_1(tmp_path, monkeypatch):
    (tmp_path/'reports.toml').write_text('[a]\nnotebook = "a.ipynb"\ntitle = "A"\npaper = "P"\nmakes = []\ntiers.quick = {minutes = 1}\n')
    nbformat.write(new_notebook(cells=[new_code_cell("tier, out = '', ''", metadata={'tags': ['parameters']}), new_code_cell('1/0')]), tmp_path/'a.ipynb')
    monkeypatch.chdir(tmp_path)
    shown = cli.invoke(app, ['reports', 'run', '--tier', 'quick', '--out', str(tmp_path/'out')])
    assert shown.exit_code == 1 and '1 failed' in shown.stdout and (tmp_path/'out'/'index.html').as_uri() in shown.stdout
    assert 'ZeroDivisionError' in shown.stderr
