"""Files over HTTP: resumed, checked, and never half there under their final name"""
import hashlib, http.client, json, os, shutil, time, urllib.error, urllib.request
from pathlib import Path
from tqdm.auto import tqdm

class DownloadError(Exception): "A file could not be fetched; the message names the address and the reason"

class _Changed(Exception): "The server's file is not the one that the part is from: start over"

def _total(response, start):
    "Length of the whole file, None if the server does not say"
    if response.status == 206:
        place, _, total = response.headers.get('Content-Range', '').removeprefix('bytes ').partition('/')
        if place.split('-')[0] != str(start): raise _Changed
        return int(total) if total.isdigit() else None
    length = response.headers.get('Content-Length')
    return int(length) if length is not None else None

def _validator(response):
    "What names this version of the file: a strong ETag, or the date"
    etag = response.headers.get('ETag', '')
    return etag if etag and not etag.startswith('W/') else response.headers.get('Last-Modified', '')

def _request(url, start, known, timeout):
    "Open `url` at byte `start`"
    headers = {'User-Agent': 'jepa', 'Accept-Encoding': 'identity'}
    if start: headers['Range'] = f'bytes={start}-'
    if start and known.get('validator'): headers['If-Range'] = known['validator']
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)

def _known(note, url):
    "What an earlier attempt wrote down about the part"
    try: known = json.loads(note.read_text())
    except (OSError, ValueError): return {}
    return known if known.get('url') == url else {}

def _enough_room(folder, needed, url):
    free = shutil.disk_usage(folder).free
    if needed > free: raise DownloadError(f'{url} needs {needed/1e9:.2f} GB more, {folder} has {free/1e9:.2f} GB free')

def _attempt(url, part, note, size, timeout, progress):
    "Fetch what is missing; True when the file is complete, False when the connection broke"
    known = _known(note, url)
    if not known: part.unlink(missing_ok=True)
    start = part.stat().st_size if part.exists() else 0
    try: response = _request(url, start, known, timeout)
    except urllib.error.HTTPError as e:
        if e.code == 416 and start: # nothing behind the end of the part: it is complete, or of another file
            if e.headers.get('Content-Range', '') == f'bytes */{start}' and known.get('total') in (None, start): return True
            raise _Changed from None
        raise
    with response:
        if response.status == 200: start = 0
        total, validator = _total(response, start), _validator(response)
        if start and (known.get('total', total) != total or known['validator'] != validator): raise _Changed
        if size is not None and total is not None and total != size: raise DownloadError(f'{url} has {total} bytes, {size} were expected')
        if total is not None: _enough_room(part.parent, total - start, url)
        note.write_text(json.dumps(dict(url=url, validator=validator, total=total)))
        with open(part, 'ab' if start else 'wb') as f, tqdm(total=total or size, initial=start, unit='B', unit_scale=True, desc=part.name.removesuffix('.part'), disable=not progress) as bar:
            while block := response.read(1 << 20): f.write(block); bar.update(len(block))
    return total is None or part.stat().st_size == total

def file_sha256(file) -> str:
    "SHA-256 of a file"
    with open(file, 'rb') as f: return hashlib.file_digest(f, 'sha256').hexdigest()

def _check(file, name, sha256, size):
    "Refuse a file of another length or content"
    found = file.stat().st_size
    if size is not None and found != size: raise DownloadError(f'{name} has {found} bytes, {size} were expected')
    if sha256 and (digest := file_sha256(file)) != sha256.lower(): raise DownloadError(f'{name} has SHA-256 {digest}, {sha256} was expected')

def download(
    url:str,            # http or https address
    file,               # where the file comes to lie; what is there already is checked and kept
    sha256:str=None,    # refuse another content
    size:int=None,      # refuse another length, in bytes
    progress:bool=True, # show a bar
    retries:int=4,      # attempts in a row that may come no further
    wait:float=1.,      # seconds before the first of them; doubled each time
    timeout:float=60.   # seconds without an answer
)->Path:
    "Fetch a file to `file`, by way of `file.part`, which a later call continues"
    file = Path(file)
    if file.exists(): _check(file, str(file), sha256, size); return file
    part, note = (file.with_name(file.name + end) for end in ('.part', '.part.json'))
    file.parent.mkdir(parents=True, exist_ok=True)
    failed, furthest, reason = 0, 0, ''
    while True:
        try:
            if _attempt(url, part, note, size, timeout, progress): break
            reason = 'the connection closed before the end'
        except _Changed: part.unlink(missing_ok=True); note.unlink(missing_ok=True); reason = 'the length or version of the file differs between answers'
        except urllib.error.HTTPError as e:
            if e.code < 500 and e.code not in (408, 429): raise DownloadError(f'{url}: the server answers {e.code} {e.reason}') from None
            reason = f'the server answers {e.code} {e.reason}'
        except (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError) as e: reason = str(getattr(e, 'reason', '') or e or type(e).__name__)
        after = part.stat().st_size if part.exists() else 0
        failed, furthest = 0 if after > furthest else failed + 1, max(after, furthest)
        if failed > retries: raise DownloadError(f'{url}: {reason}, {failed} times in a row' + (f'; {after} bytes are kept in {part}, and another call goes on from there' if after else ''))
        time.sleep(wait*2**max(failed - 1, 0))
    try: _check(part, url, sha256, size)
    except DownloadError: part.unlink(); note.unlink(missing_ok=True); raise # another attempt would keep the wrong bytes
    with open(part, 'rb') as f: os.fsync(f.fileno())
    os.replace(part, file)
    note.unlink(missing_ok=True)
    return file
