"""A server that speaks as much of the S3 protocol as Arrow's client asks for, over real sockets, with faults on demand.

Ours, and not moto's: moto needs botocore, which takes no python-dateutil as new as the pinned one. It keeps objects in
memory, makes them visible when they are complete, lists, serves ranges, and takes uploads in parts. Signatures are not
checked; only the name of the key is.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

KEY = "test-key"


@dataclass(frozen=True)
class Asked:
    """One request: what for, the range it wanted, and how many bytes of an object went out."""

    method: str
    path: str
    range: str | None = None
    sent: int = 0


@dataclass
class Bucket:
    """What the server holds and was asked; `fault` may answer in its place, and says what it does."""

    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    fault: Callable[[str, str], str | None] = lambda method, path: None
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def uri(self, prefix: str = "store", key: str = KEY) -> str:
        return f"s3://{key}:secret@bucket/{prefix}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def fails(self, times: int, what: str, method: str = "", path: str = "") -> None:
        """Have the next requests of a method whose path holds `path` fail: an S3 error code, "cut" or "cut upload"."""
        left = [times]

        def fault(asked_method: str, asked_path: str) -> str | None:
            if left[0] and method in asked_method and path in asked_path:
                left[0] -= 1
                return what
            return None

        self.fault = fault


STATUS = {"SlowDown": 503, "InternalError": 500, "ExpiredToken": 400, "AccessDenied": 403, "NoSuchKey": 404}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_: object) -> None:
        return None

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{code} was asked for by the test</Message></Error>"
        self.answer(STATUS[code], text.encode(), Content_Type="application/xml", Connection="close")
        self.close_connection = True

    def body(self) -> bytes:
        """Return what came with the request; the client's way to sign while it sends wraps it in chunks."""
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while n_bytes := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(n_bytes))
                self.rfile.readline()
            self.rfile.readline()
            content = b"".join(parts)
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return content
        out = bytearray()
        while content:
            size, _, content = content.partition(b"\r\n")
            n_bytes = int(size.split(b";")[0], 16)
            if not n_bytes:
                break
            out += content[:n_bytes]
            content = content[n_bytes + 2 :]
        return bytes(out)

    def handle_one(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        key = path.removeprefix("/bucket").lstrip("/")
        with self.bucket.lock:
            fault = self.bucket.fault(self.command, key)
        if fault == "cut upload":  # the line breaks in the middle of what the client sends
            self.rfile.read(64)
            self.close_connection = True
            return
        content = self.body()
        if f"Credential={KEY}/" not in self.headers.get("Authorization", ""):
            fault = "AccessDenied"
        if fault and fault != "cut":
            self.bucket.asked.append(Asked(self.command, key))
            return self.refuse(fault)
        if not path.startswith("/bucket"):
            return self.refuse("NoSuchKey")
        getattr(self, f"on_{self.command.lower()}")(key, query, content, cut=fault == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

    def on_head(self, key: str, query: dict[str, str], content: bytes, cut: bool) -> None:
        if not key:
            return self.answer(200)
        self.on_get(key, query, content, cut)

    def on_get(self, key: str, query: dict[str, str], content: bytes, cut: bool) -> None:
        if not key or "list-type" in query:
            return self.list(query)
        value = self.bucket.objects.get(key)
        if value is None:
            return self.refuse("NoSuchKey")
        status, piece, headers = 200, value, {}
        wanted = self.headers.get("Range")
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            piece = value[int(first) : int(last) + 1]
            status = 206
            headers["Content_Range"] = f"bytes {first}-{int(first) + len(piece) - 1}/{len(value)}"
        self.bucket.asked.append(Asked(self.command, key, wanted, len(piece) if self.command == "GET" else 0))
        headers |= {"ETag": f'"{hashlib.md5(value).hexdigest()}"', "Last_Modified": formatdate(usegmt=True)}
        if cut:  # the line breaks in the middle of what the server sends
            self.send_response(status)
            for name, text in {"Content-Length": str(len(piece)), **headers}.items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            self.wfile.write(piece[: len(piece) // 2])
            self.close_connection = True
            return
        if self.command == "HEAD":
            headers["Content_Length"] = str(len(value))
        self.answer(status, piece, **headers)

    def list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        self.bucket.asked.append(Asked("LIST", prefix))
        found: list[str] = []
        folders: set[str] = set()
        for key in sorted(self.bucket.objects):
            if key.startswith(prefix):
                head, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
                if mark:
                    folders.add(prefix + head + mark)
                else:
                    found.append(key)
        text = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.bucket.objects[key])}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in found
        )
        text += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders))
        body = (
            f"<ListBucketResult><Name>bucket</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<KeyCount>{len(found) + len(folders)}</KeyCount><IsTruncated>false</IsTruncated>{text}</ListBucketResult>"
        )
        self.answer(200, body.encode(), Content_Type="application/xml")

    def on_put(self, key: str, query: dict[str, str], content: bytes, cut: bool) -> None:
        self.bucket.asked.append(Asked("PUT", key))
        with self.bucket.lock:
            if "uploadId" in query:
                self.bucket.uploads[query["uploadId"]][int(query["partNumber"])] = content
            else:
                self.bucket.objects[key] = content
        self.answer(200, ETag=f'"{hashlib.md5(content).hexdigest()}"')

    def on_post(self, key: str, query: dict[str, str], content: bytes, cut: bool) -> None:
        self.bucket.asked.append(Asked("POST", key))
        with self.bucket.lock:
            if "uploads" in query:
                upload = f"upload-{len(self.bucket.uploads)}"
                self.bucket.uploads[upload] = {}
                text = (
                    f"<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>{escape(key)}</Key>"
                    f"<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
                )
            else:
                parts = self.bucket.uploads[query["uploadId"]]
                self.bucket.objects[key] = b"".join(parts[number] for number in sorted(parts))
                text = (
                    f"<CompleteMultipartUploadResult><Bucket>bucket</Bucket><Key>{escape(key)}</Key>"
                    '<ETag>"made-of-parts"</ETag></CompleteMultipartUploadResult>'
                )
        self.answer(200, text.encode(), Content_Type="application/xml")

    def on_delete(self, key: str, query: dict[str, str], content: bytes, cut: bool) -> None:
        self.bucket.asked.append(Asked("DELETE", key))
        with self.bucket.lock:
            if "uploadId" in query:
                self.bucket.uploads.pop(query["uploadId"], None)
            else:
                self.bucket.objects.pop(key, None)
        self.answer(204)


@contextmanager
def serve() -> Iterator[Bucket]:
    """Run a server with one empty bucket named `bucket` on a free port of this machine."""
    bucket = Bucket()
    handler: Any = type("HandlerOfOne", (Handler,), {"bucket": bucket})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    bucket.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
