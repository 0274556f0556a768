"""A web server on loopback with the files of a folder: S3 enough for GET, HEAD, ranges and lists; fails, truncates and stalls on demand."""

import random
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


class ObjectStore(ThreadingHTTPServer):
    """Serves `folder` under /bucket. fail, truncate, stall: shares of the GETs of tars that get 503, a part, or nothing for a while."""

    daemon_threads = True

    def __init__(self, folder: Path, *, fail: float = 0.0, truncate: float = 0.0, stall: float = 0.0, stall_seconds: float = 3.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.faults, self.stall_seconds = folder, (fail, truncate, stall), stall_seconds
        self.random, self.lock = random.Random(5), threading.Lock()
        self.counts = {"get": 0, "fail": 0, "truncate": 0, "stall": 0}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def draw(self) -> str:
        with self.lock:
            self.counts["get"] += 1
            chance = self.random.random()
            for name, share in zip(("fail", "truncate", "stall"), self.faults):
                if chance < share:
                    self.counts[name] += 1
                    return name
                chance -= share
        return "serve"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ObjectStore

    def log_message(self, *_: object) -> None:
        pass

    def _path(self) -> Path:
        return self.server.folder / unquote(urlsplit(self.path).path).removeprefix("/bucket/")

    def do_HEAD(self) -> None:
        path = self._path()
        self._head(200 if path.is_file() else 404, path.stat().st_size if path.is_file() else 0)

    def do_GET(self) -> None:
        if "list-type" in parse_qs(urlsplit(self.path).query):
            return self._list()
        path = self._path()
        if not path.is_file():
            return self._head(404, 0)
        data = path.read_bytes()
        status, extra = 200, {}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(match[1]), min(len(data), int(match[2]) + 1 if match[2] else len(data))
            status, extra = 206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
            data = data[start:stop]
        fault = self.server.draw() if path.suffix == ".tar" else "serve"
        if fault == "fail":
            return self._head(503, 0)
        if fault == "stall":
            time.sleep(self.server.stall_seconds)
        self._head(status, len(data), **extra)
        try:
            self.wfile.write(data[: len(data) // 2] if fault == "truncate" else data)
        except (BrokenPipeError, ConnectionResetError):
            fault = "truncate"
        if fault == "truncate":
            self.close_connection = True
        return None

    def _list(self) -> None:
        files = (path for path in sorted(self.server.folder.rglob("*")) if path.is_file())
        items = "".join(
            f"<Contents><Key>{path.relative_to(self.server.folder)}</Key><Size>{path.stat().st_size}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag></Contents>"
            for path in files
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode()
        self._head(200, len(body), **{"Content-Type": "application/xml"})
        self.wfile.write(body)

    def _head(self, status: int, length: int, **extra: str) -> None:
        self.send_response(status)
        fields = {"Content-Length": str(length), "ETag": '"x"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", **extra}
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
