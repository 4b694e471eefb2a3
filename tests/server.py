"A web server that behaves badly on request"
import contextlib, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """`site[path] = bytes`; `site.breaks` answers break off after `site.after` bytes;
    `site.ranges=False` ignores Range; `site.asked` lists (path, Range)"""
    def __init__(self):
        self.files, self.asked, self.statuses = {}, [], []
        self.breaks, self.after, self.announce = 0, 1000, 0
        self.ranges, self.tags = True, True
    def __setitem__(self, path, content): self.files['/' + path] = content


@contextlib.contextmanager
def serving():
    site = Site()
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_): pass
        def do_HEAD(self):
            if self.path not in site.files: return self.send_error(404)
            self.send_response(200)
            self.send_header('Content-Length', str(len(site.files[self.path])))
            self.end_headers()
        def do_GET(self):
            asked = self.headers.get('Range')
            site.asked.append((self.path, asked))
            if site.statuses: return self.send_error(site.statuses.pop(0))
            if self.path not in site.files: return self.send_error(404)
            content, tag, start = site.files[self.path], f'"{hash(site.files[self.path])}"', 0
            if asked and site.ranges and self.headers.get('If-Range', tag) == tag:
                start = int(asked.removeprefix('bytes=').rstrip('-'))
                if start >= len(content):
                    self.send_response(416)
                    self.send_header('Content-Range', f'bytes */{len(content)}')
                    return self.end_headers()
                self.send_response(206)
                self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
            else: self.send_response(200)
            self.send_header('Content-Length', str(len(content) - start + site.announce))
            if site.tags: self.send_header('ETag', tag)
            self.end_headers()
            body = content[start:]
            if site.breaks:
                site.breaks -= 1
                body = body[:site.after]
            self.wfile.write(body)
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    site.url = f'http://127.0.0.1:{server.server_port}/'
    site.stop = lambda: (server.shutdown(), server.server_close())
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()
    try: yield site
    finally: site.stop()
