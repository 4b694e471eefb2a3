"A download goes on where it stopped, is complete and right when it bears its name, and says what was wrong otherwise"
import hashlib, json, random
import pytest
import jepa._download
from jepa._download import *
from server import serving

content = random.Random(0).randbytes(5000)
quick = dict(progress=False, wait=0.001)
sha = hashlib.sha256(content).hexdigest()

@pytest.fixture
def site():
    with serving() as site:
        site['a.bin'] = content
        yield site

def ranges(site): return [r for _, r in site.asked]
def only(folder, *names): return sorted(p.name for p in folder.iterdir()) == sorted(names)

def test_whole_file(site, tmp_path):
    assert download(site.url + 'a.bin', tmp_path/'new'/'a.bin', sha, len(content), **quick).read_bytes() == content
    assert only(tmp_path/'new', 'a.bin')
    download(site.url + 'a.bin', tmp_path/'new'/'a.bin', sha, **quick)
    assert ranges(site) == [None] # what is there is kept
    with pytest.raises(DownloadError, match='SHA-256'):
        download(site.url + 'a.bin', tmp_path/'new'/'a.bin', '0'*64, **quick)

@pytest.mark.parametrize('tags', [True, False])
def test_broken_connections_are_continued(site, tmp_path, tags):
    site.breaks, site.tags = 3, tags
    assert download(site.url + 'a.bin', tmp_path/'a.bin', sha, **quick).read_bytes() == content
    assert ranges(site) == [None, 'bytes=1000-', 'bytes=2000-', 'bytes=3000-'] and only(tmp_path, 'a.bin')

def test_a_later_call_goes_on(site, tmp_path, monkeypatch):
    site.breaks, site.after = 99, 0
    with pytest.raises(DownloadError, match='2 times in a row$'):
        download(site.url + 'a.bin', tmp_path/'a.bin', retries=1, **quick)
    site.breaks, site.after, ask = 1, 4000, jepa._download._request
    def gone(*a): raise ConnectionResetError('gone')
    answers = iter([ask])
    monkeypatch.setattr(jepa._download, '_request', lambda *a: next(answers, gone)(*a))
    with pytest.raises(DownloadError, match='gone, 2 times in a row; 4000 bytes are kept'):
        download(site.url + 'a.bin', tmp_path/'a.bin', retries=1, **quick)
    monkeypatch.undo()
    assert not (tmp_path/'a.bin').exists() and (tmp_path/'a.bin.part').stat().st_size == 4000
    assert download(site.url + 'a.bin', tmp_path/'a.bin', **quick).read_bytes() == content
    assert ranges(site)[-1] == 'bytes=4000-' and only(tmp_path, 'a.bin')

def test_server_that_ignores_range(site, tmp_path):
    site.breaks, site.ranges = 1, False
    assert download(site.url + 'a.bin', tmp_path/'a.bin', **quick).read_bytes() == content

@pytest.mark.parametrize('tags', [True, False])
def test_file_that_changes_is_fetched_again(site, tmp_path, tags):
    site.tags = tags
    (tmp_path/'a.bin.part').write_bytes(b'x'*1000)
    note = dict(url=f'{site.url}a.bin', validator='old' if tags else '', total=6000)
    (tmp_path/'a.bin.part.json').write_text(json.dumps(note))
    assert download(site.url + 'a.bin', tmp_path/'a.bin', **quick).read_bytes() == content

@pytest.mark.parametrize('had', [5000, 7000])
def test_part_as_long_as_the_file(site, tmp_path, had):
    (tmp_path/'a.bin.part').write_bytes((content + b'x'*2000)[:had])
    (tmp_path/'a.bin.part.json').write_text(f'{{"url": "{site.url}a.bin", "validator": "", "total": {had}}}')
    assert download(site.url + 'a.bin', tmp_path/'a.bin', **quick).read_bytes() == content

def test_part_of_unknown_origin_is_not_continued(site, tmp_path):
    (tmp_path/'a.bin.part').write_bytes(b'x'*1000)
    assert download(site.url + 'a.bin', tmp_path/'a.bin', **quick).read_bytes() == content and ranges(site) == [None]

def test_wrong_length_and_content(site, tmp_path):
    with pytest.raises(DownloadError, match='has 5000 bytes, 4000 were expected'):
        download(site.url + 'a.bin', tmp_path/'a.bin', size=4000, **quick)
    with pytest.raises(DownloadError, match=f'has SHA-256 {sha}, {"0"*64} was expected'):
        download(site.url + 'a.bin', tmp_path/'a.bin', '0'*64, **quick)
    assert only(tmp_path)
    site.announce = 10 # more than comes
    with pytest.raises(DownloadError, match='differs between answers'):
        download(site.url + 'a.bin', tmp_path/'a.bin', **quick | dict(retries=2))
    assert not (tmp_path/'a.bin').exists()

def test_server_that_is_busy_or_refuses(site, tmp_path):
    site.statuses = [503, 429]
    assert download(site.url + 'a.bin', tmp_path/'a.bin', **quick).read_bytes() == content
    with pytest.raises(DownloadError, match='b.bin: the server answers 404'):
        download(site.url + 'b.bin', tmp_path/'b.bin', **quick)
    assert len(site.asked) == 4 # a file that is not there is not asked for again

def test_server_that_disappears(site, tmp_path):
    site.stop()
    with pytest.raises(DownloadError, match='refused, 3 times in a row'):
        download(site.url + 'a.bin', tmp_path/'a.bin', retries=2, **quick)

def test_full_disk(site, tmp_path, monkeypatch):
    monkeypatch.setattr(jepa._download.shutil, 'disk_usage', lambda _: type('', (), dict(free=3000)))
    with pytest.raises(DownloadError, match='GB more'): download(site.url + 'a.bin', tmp_path/'a.bin', **quick)
