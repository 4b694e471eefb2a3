"""A person opens JupyterLab, runs a notebook and moves a slider; in a headless Chromium"""
import os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import pytest
from PIL import Image

webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed')
pytest.importorskip('jupyterlab', reason='JupyterLab is not installed')
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

root = Path(__file__).resolve().parents[1]
chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
chromedriver = shutil.which('chromedriver')
pytestmark = [pytest.mark.skipif(not chromium, reason='chromium is not installed'),
              pytest.mark.skipif(not chromedriver, reason='chromedriver is not installed')]

PANEL = 'const panel = [...(window.jupyterapp?.shell.widgets("main") ?? [])].find(w => w.content?.widgets);'
IDLE = PANEL + '''
if (panel) window.jupyterapp.shell.activateById(panel.id);
return panel?.sessionContext.session?.kernel?.status === "idle"'''
RUN_ALL = '''
const done = arguments[arguments.length - 1];
window.jupyterapp.commands.execute("notebook:run-all-cells").then(() => done("ran"), e => done(String(e)))'''
ERRORS = PANEL + '''
const cells = panel.content.widgets.filter(c => c.model.type === "code");
return cells.flatMap(c => c.model.outputs.toJSON().filter(o => o.output_type === "error").map(o => o.evalue))'''
SETTINGS = {'notebook-extension/tracker': '{"windowingMode": "none"}',
            'apputils-extension/notification': '{"fetchNews": "false"}'}


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def wait_for(address, server, log):
    "Until the server answers"
    for _ in range(240):
        try: return urllib.request.urlopen(address, timeout=5)
        except OSError: time.sleep(0.5)
        assert server.poll() is None, log.read_text()[-3000:]


@pytest.fixture(scope='module')
def lab(place, tmp_path_factory):
    "JupyterLab on a copy of 20_masks; gives the address of the notebook"
    folder, port = tmp_path_factory.mktemp('notebooks'), free_port()
    shutil.copy(root/'nbs/20_masks.ipynb', folder)
    settings = place/'lab-settings/@jupyterlab'
    for plugin, text in SETTINGS.items():
        (settings/plugin).parent.mkdir(parents=True, exist_ok=True)
        (settings/f'{plugin}.jupyterlab-settings').write_text(text)
    folders = {'JUPYTERLAB_SETTINGS_DIR': settings.parent, 'JUPYTERLAB_WORKSPACES_DIR': place/'workspaces',
               'JUPYTER_RUNTIME_DIR': place/'runtime', 'JUPYTER_CONFIG_DIR': place/'config'}
    env = {**os.environ, 'OMP_NUM_THREADS': '1', **{name: str(path) for name, path in folders.items()}}
    options = [f'--port={port}', '--ip=127.0.0.1', '--no-browser', '--allow-root', '--expose-app-in-browser',
               '--IdentityProvider.token=', '--ServerApp.password=', f'--ServerApp.root_dir={folder}']
    command = [sys.executable, '-m', 'jupyterlab', *options]
    with open(place/'lab.log', 'w') as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        wait_for(f'http://127.0.0.1:{port}/api/status', server, place/'lab.log')
        yield f'http://127.0.0.1:{port}/doc/tree/20_masks.ipynb'
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(scope='module')
def browser(place):
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    arguments = ['--headless=new', '--no-sandbox', '--no-first-run', '--no-proxy-server', '--window-size=1300,1000',
                 f'--user-data-dir={place}/chromium', '--disable-gpu', '--disable-dev-shm-usage', '--disable-quic',
                 '--disable-background-networking', '--disable-component-update', '--disable-sync']
    for argument in arguments: options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    driver.set_script_timeout(240)
    driver.set_page_load_timeout(240)
    yield driver
    driver.quit()


def test_a_slider_of_the_masks_changes_the_figure(lab, browser, place):
    "Open the notebook, run all cells, move the first slider of the mask explorer"
    wait = WebDriverWait(browser, 120, poll_frequency=0.5)
    browser.get(lab)
    wait.until(lambda b: b.execute_script(IDLE))
    assert not browser.find_elements(By.CSS_SELECTOR, '.noUi-handle'), 'a slider is stored in the file'
    browser.save_screenshot(str(place/'1-opened.png'))
    assert browser.execute_async_script(RUN_ALL) == 'ran'
    assert not browser.execute_script(ERRORS)
    explorer = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, '.widget-interact'))
    def figure(): return explorer.find_element(By.CSS_SELECTOR, 'img').get_attribute('src')
    wait.until(lambda b: explorer.find_elements(By.CSS_SELECTOR, 'img'))
    before, label = figure(), explorer.find_element(By.CSS_SELECTOR, '.widget-label').text
    browser.execute_script('arguments[0].scrollIntoView({block: "center"})', explorer)
    browser.save_screenshot(str(place/'2-before.png'))
    handle = explorer.find_element(By.CSS_SELECTOR, '.noUi-handle')
    def value(): return handle.get_attribute('aria-valuetext') or handle.get_attribute('aria-valuenow')
    first = value()
    handle.send_keys(Keys.ARROW_RIGHT)
    wait.until(lambda b: explorer.find_elements(By.CSS_SELECTOR, 'img') and figure() != before)
    browser.save_screenshot(str(place/'3-after.png'))
    assert label == 'ratio' and value() != first
    assert all(Image.open(place/name).size[0] > 1000 for name in ('1-opened.png', '2-before.png', '3-after.png'))
