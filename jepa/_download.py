"""Files over HTTP: resumed, checked, and never half there under their final name"""
import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
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


def _noted(note, url):
    "What an earlier attempt wrote down about the part"
    try: content = json.loads(note.read_text())
    except (OSError, ValueError): return {}
    return content if content.get('url') == url else {}


def _enough_room(folder, needed, url):
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(f'{url} needs {needed/1e9:.2f} GB more, {folder} has {free/1e9:.2f} GB free')


def _is_complete(error, start, earlier):
    "Whether an answer 416 (nothing behind the end of the part) says that the part is the whole file"
    range_end = error.headers.get('Content-Range', '')
    return range_end == f'bytes */{start}' and earlier.get('total') in (None, start)


def _attempt(url, part, note, size, timeout, progress):
    "Fetch what is missing; True when the file is complete, False when the connection broke"
    earlier = _noted(note, url)
    if not earlier: part.unlink(missing_ok=True)
    start = part.stat().st_size if part.exists() else 0
    try: response = _request(url, start, earlier, timeout)
    except urllib.error.HTTPError as e:
        if e.code != 416 or not start: raise
        if _is_complete(e, start, earlier): return True
        raise _Changed from None
    with response:
        if response.status == 200: start = 0
        total, validator = _total(response, start), _validator(response)
        if start and (earlier.get('total', total) != total or earlier['validator'] != validator): raise _Changed
        if size is not None and total is not None and total != size:
            raise DownloadError(f'{url} has {total} bytes, {size} were expected')
        if total is not None: _enough_room(part.parent, total - start, url)
        note.write_text(json.dumps(dict(url=url, validator=validator, total=total)))
        _append(response, part, start, total or size, progress)
    return total is None or part.stat().st_size == total


def _append(response, part, start, total, progress):
    "Write the bytes of an answer behind byte `start` of the part"
    options = dict(total=total, initial=start, unit='B', unit_scale=True, desc=part.name.removesuffix('.part'))
    with open(part, 'ab' if start else 'wb') as f, tqdm(**options, disable=not progress) as bar:
        while block := response.read(1 << 20):
            f.write(block)
            bar.update(len(block))


def file_sha256(file) -> str:
    "SHA-256 of a file"
    with open(file, 'rb') as f: return hashlib.file_digest(f, 'sha256').hexdigest()


def _check(file, name, sha256, size):
    "Refuse a file of another length or content"
    length = file.stat().st_size
    if size is not None and length != size: raise DownloadError(f'{name} has {length} bytes, {size} were expected')
    if sha256 and (digest := file_sha256(file)) != sha256.lower():
        raise DownloadError(f'{name} has SHA-256 {digest}, {sha256} was expected')


def _try_once(url, part, note, size, timeout, progress):
    "'' when the file is complete, otherwise why not; an answer that waiting will not change is an error"
    try:
        if _attempt(url, part, note, size, timeout, progress): return ''
        return 'the connection closed before the end'
    except _Changed:
        for file in (part, note): file.unlink(missing_ok=True)
        return 'the length or version of the file differs between answers'
    except urllib.error.HTTPError as e:
        reason = f'the server answers {e.code} {e.reason}'
        if e.code < 500 and e.code not in (408, 429): raise DownloadError(f'{url}: {reason}') from None
        return reason
    except (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError) as e:
        return str(getattr(e, 'reason', '') or e or type(e).__name__)


def _fetch_part(url, part, note, size, timeout, progress, retries, wait):
    "Try until the part is complete, or `retries` attempts in a row come no further"
    failures, furthest = 0, 0
    while reason := _try_once(url, part, note, size, timeout, progress):
        length = part.stat().st_size if part.exists() else 0
        failures, furthest = 0 if length > furthest else failures + 1, max(length, furthest)
        if failures > retries:
            rest = f'; {length} bytes are kept in {part}, and another call goes on from there' if length else ''
            raise DownloadError(f'{url}: {reason}, {failures} times in a row{rest}')
        time.sleep(wait*2**max(failures - 1, 0))


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
    if file.exists():
        _check(file, str(file), sha256, size)
        return file
    part, note = (file.with_name(file.name + end) for end in ('.part', '.part.json'))
    file.parent.mkdir(parents=True, exist_ok=True)
    _fetch_part(url, part, note, size, timeout, progress, retries, wait)
    try: _check(part, url, sha256, size)
    except DownloadError: # another attempt would keep the wrong bytes
        part.unlink()
        note.unlink(missing_ok=True)
        raise
    with open(part, 'rb') as f: os.fsync(f.fileno())
    os.replace(part, file)
    note.unlink(missing_ok=True)
    return file
