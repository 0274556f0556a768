"""An S3 server of one process for tests: objects in memory, PUT (conditional and in parts), GET with ranges, HEAD, LIST, DELETE.

`fail(method, path)` may answer 500, cut a connection, or stall, as a test asks.
"""

import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Fault = str | None  # "500", "cut", "stall", None
Chooser = Callable[[str, str], Fault]


class FakeS3:
    """The objects (`bucket/key` -> bytes) and what goes wrong."""

    def __init__(self, fail: Chooser | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.fail: Chooser = fail or (lambda method, path: None)
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.over = threading.Event()  # ends the stalls


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *args: object) -> None:
        """Silent."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _serve(self) -> None:
        store = self.server.store
        url = urlsplit(self.path)
        self.key, self.query = (
            unquote(url.path).lstrip("/"),
            {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()},
        )
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with store.lock:
            store.requests.append((self.command, self.key))
            fault = store.fail(self.command, self.key)
        if fault == "stall":  # the connection stays open, and nothing comes
            store.over.wait()
            self.close_connection = True
        elif fault == "500":
            self._answer(500, b"<Error><Code>InternalError</Code></Error>")
        elif fault == "cut":
            self.close_connection = True
            self.connection.close()
        else:
            with store.lock:
                getattr(self, f"_{self.command.lower()}")(store, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _put(self, store: FakeS3, body: bytes) -> None:
        if "partNumber" in self.query:
            store.parts[self.query["uploadId"]][int(self.query["partNumber"])] = body
        elif self.headers.get("If-None-Match") == "*" and self.key in store.objects:
            return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        else:
            store.objects[self.key] = body
        return self._answer(200, ETag=f'"{md5(body).hexdigest()}"')

    def _post(self, store: FakeS3, body: bytes) -> None:
        if "delete" in self.query:
            names = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for name in names:
                store.objects.pop(f"{self.key.rstrip('/')}/{name}", None)
            gone = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in names)
            return self._answer(200, f"<DeleteResult>{gone}</DeleteResult>".encode())
        if "uploads" in self.query:
            upload = uuid.uuid4().hex
            store.parts[upload] = {}
            return self._answer(
                200, f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>".encode()
            )
        parts = store.parts.pop(self.query["uploadId"])
        store.objects[self.key] = b"".join(parts[number] for number in sorted(parts))
        return self._answer(200, b'<CompleteMultipartUploadResult><ETag>"x"</ETag></CompleteMultipartUploadResult>')

    def _get(self, store: FakeS3, body: bytes) -> None:
        if "list-type" in self.query:
            return self._list(store)
        data = store.objects.get(self.key)
        if data is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        headers = {"ETag": f'"{md5(data).hexdigest()}"', "Last_Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last) if last else len(data) - 1, len(data) - 1)
            return self._answer(206, data[begin : end + 1], Content_Range=f"bytes {begin}-{end}/{len(data)}", **headers)
        return self._answer(200, data, **headers)

    _head = _get

    def _delete(self, store: FakeS3, body: bytes) -> None:
        store.objects.pop(self.key, None)
        self._answer(204)

    def _list(self, store: FakeS3) -> None:
        bucket = self.key.rstrip("/")
        prefix = f"{bucket}/{self.query.get('prefix', '')}"
        names = sorted(key.removeprefix(f"{bucket}/") for key in store.objects if key.startswith(prefix))
        stamp = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        sizes = {name: len(store.objects[f"{bucket}/{name}"]) for name in names}
        items = "".join(f"<Contents><Key>{escape(name)}</Key>{stamp}<Size>{size}</Size></Contents>" for name, size in sizes.items())
        self._answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    store: FakeS3


@contextmanager
def serve_s3(store: FakeS3, port: int = 0) -> Iterator[dict[str, str]]:
    """Serves `store` on loopback and yields the variables that a client needs."""
    server = _Server(("127.0.0.1", port), _Handler)
    server.store = store
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }
    finally:
        store.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
