"""A model hub on this machine: the few addresses that a download asks for."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
from typing import NamedTuple

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_INFO = re.compile(r"/api/models/([\w.-]+/[\w.-]+?)(?:/revision/([\w.-]+))?")
_TREE = re.compile(r"/api/models/([\w.-]+/[\w.-]+)/tree/([\w.-]+)(?:\?.*)?")
_FILE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)")


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    token: str | None


class Hub(http.server.ThreadingHTTPServer):
    """Serves repositories from memory.

    Attributes:
      files: repository -> name -> bytes, the same at every revision.
      revisions: those there are.
      gated: repositories that want the token "secret".
      failing: status for every request, or None.
      dies_in: names of files whose connection is closed after half of the bytes.
      asked: every request, in order.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {}
        self.revisions = {"main", "v1", COMMIT}
        self.gated = set()
        self.failing = None
        self.dies_in = set()
        self.asked = []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def sent(self):
        """Names of the files whose bytes were asked for."""
        found = (_FILE.fullmatch(a.path) for a in self.asked if a.method == "GET")
        return sorted({match[3] for match in found if match})

    def handle_error(self, request, client_address):
        """Says nothing: clients hang up."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """Says nothing."""

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        hub = self.server
        given = self.headers.get("Authorization", "")
        token = given.removeprefix("Bearer ") or None
        hub.asked.append(Asked(self.command, self.path, token))
        info, tree, file = (p.fullmatch(self.path) for p in (_INFO, _TREE, _FILE))
        found = tree or file or info
        files = hub.files.get(found[1] if found else None)
        if hub.failing is not None:
            self._refuse(hub.failing, "")
        elif files is None:
            # As the real one: without a token, a name that it does not tell.
            self._refuse(404 if token else 401, "RepoNotFound")
        elif (found[2] or "main") not in hub.revisions:
            self._refuse(404, "RevisionNotFound")
        elif found[1] in hub.gated and token != "secret":
            self._refuse(403 if token else 401, "GatedRepo")
        elif tree:
            self._send(json.dumps([_entry(*item) for item in files.items()]))
        elif file and file[3] not in files:
            self._refuse(404, "EntryNotFound")
        elif file:
            self._send_file(file[3], files[file[3]])
        else:
            names = [{"rfilename": name} for name in files]
            self._send(json.dumps({"id": found[1], "sha": COMMIT, "siblings": names}))

    def _refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, text):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def _send_file(self, name, data):
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{_hash(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data) - start))
        if wanted:
            size = len(data)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if name in self.server.dies_in:
            self.wfile.write(data[start : len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data[start:])


def _hash(data):
    return hashlib.sha1(data).hexdigest()


def _entry(name, data):
    return {"type": "file", "path": name, "size": len(data), "oid": _hash(data)}


@contextlib.contextmanager
def running():
    """A hub that answers until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
