"""moto's S3 server in a process of its own, and a line to a server that fails on demand.

What a store does on S3 is tested against moto, over real sockets. What moto cannot do is ours: a `Line` stands between
client and server. It passes every request on, or breaks off in the middle of one or of its answer, or answers late, or
says in the server's place that it has too much to do, that credentials have expired, or that a clock is wrong. Of S3 it
knows the form of an error and the stamp of a request alone.
"""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

REGION = "us-east-1"
ANSWERED = re.compile(r'"(?:\x1b\[[\d;]*m)*([A-Z]+) (\S+) HTTP/1.1(?:\x1b\[[\d;]*m)*" (\d+)')


def uri_of(bucket: str, port: int, key: str = "key", secret: str = "secret") -> str:
    """Return the URI of a store in a bucket behind a port of this machine."""
    return f"s3://{key}:{secret}@{bucket}/store?endpoint_override=127.0.0.1:{port}&scheme=http&region={REGION}"


@dataclass
class Server:
    """moto's server: where it listens, and the log of what it answered."""

    port: int
    log: Path
    numbers: Iterator[int] = field(default_factory=count)

    def client(self, service: str) -> Any:
        """Return a client of a service that moto offers, of Amazon's library and not Arrow's."""
        import boto3

        address = {"endpoint_url": f"http://127.0.0.1:{self.port}", "region_name": REGION}
        return boto3.client(service, **address, aws_access_key_id="key", aws_secret_access_key="secret")

    @cached_property
    def s3(self) -> Any:
        """The client of S3."""
        return self.client("s3")

    def bucket(self) -> Bucket:
        """Return a bucket of a new name, with nothing in it."""
        bucket = Bucket(self, f"bucket-{next(self.numbers)}")
        self.s3.create_bucket(Bucket=bucket.name)
        return bucket

    @contextmanager
    def checking_signatures(self) -> Iterator[None]:
        """Have keys, rights and signatures checked, which moto leaves alone outside the block."""

        def leave_alone(n_requests: str) -> None:
            address = f"http://127.0.0.1:{self.port}/moto-api/reset-auth"
            kind = {"Content-Type": "text/plain"}
            urllib.request.urlopen(urllib.request.Request(address, n_requests.encode(), kind, method="POST")).close()

        leave_alone("0")
        try:
            yield
        finally:
            leave_alone("inf")


@dataclass(frozen=True)
class Bucket:
    """A bucket of the server."""

    server: Server
    name: str

    def uri(self, key: str = "key", secret: str = "secret") -> str:
        """Return the URI of a store in this bucket."""
        return uri_of(self.name, self.server.port, key, secret)

    def objects(self) -> dict[str, bytes]:
        """Return every object by its key."""
        listed = self.server.s3.list_objects_v2(Bucket=self.name).get("Contents", [])
        return {one["Key"]: self.read(one["Key"]) for one in listed}

    def read(self, key: str) -> bytes:
        """Return an object."""
        return bytes(self.server.s3.get_object(Bucket=self.name, Key=key)["Body"].read())

    def put(self, key: str, content: bytes) -> None:
        """Make an object, or another one of one that is there."""
        self.server.s3.put_object(Bucket=self.name, Key=key, Body=content)

    def answered(self) -> list[tuple[str, str, int]]:
        """Return method, path within the bucket, and status of every request so far."""
        found = [match.groups() for match in ANSWERED.finditer(self.server.log.read_text())]
        own = f"/{self.name}/"
        return [(method, path.removeprefix(own), int(status)) for method, path, status in found if path.startswith(own)]


@contextmanager
def run_moto(folder: Path) -> Iterator[Server]:
    """Run moto's server on a free port of this machine, with its log in a folder."""
    log = folder / "moto.log"
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", "0"]
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            until = time.monotonic() + 120
            while not (listens := re.search(r"http://127\.0\.0\.1:(\d+)\s", log.read_text())):
                assert process.poll() is None and time.monotonic() < until, f"moto did not start: {log.read_text()}"
                time.sleep(0.05)
            yield Server(int(listens[1]), log)
        finally:
            process.terminate()


# -- what moto cannot do -----------------------------------------------------------------------------------------------

STATUS = {
    "SlowDown": 503,
    "InternalError": 500,
    "ExpiredToken": 400,
    "AccessDenied": 403,
    "RequestTimeTooSkewed": 403,
}
LATE_S = 4.0  # Arrow's client gives up a connection on which nothing came for three seconds
MOST_SKEW_S = 900.0  # a request whose stamp is further from S3's own clock is refused


@dataclass
class Line:
    """A line to a server, and how many of the next requests of which method and path fail on it, and how.

    `clock_ahead_s` is how far the server's clock is ahead of this machine's; it refuses requests stamped too far from
    it, as S3 does and moto does not.
    """

    server_port: int
    port: int = 0
    left: int = 0
    what: str = ""
    method: str = ""
    path: str = ""
    clock_ahead_s: float = 0.0
    sent_bytes: int = 0  # of objects and lists, to the client
    lock: threading.Lock = field(default_factory=threading.Lock)
    conditions: threading.Lock = field(default_factory=threading.Lock)  # moto looks, then writes, in two steps

    def fails(self, times: int, what: str, method: str = "", path: str = "") -> None:
        """Have requests of a method whose path holds `path` fail.

        `what` is the code of an S3 error, "cut upload" (within the request), "cut" (within the answer) or "late".
        """
        with self.lock:
            self.left, self.what, self.method, self.path = times, what, method, path

    def fault(self, method: str, path: str, stamp: str) -> str:
        """Return how a request fails, or nothing."""
        stamped = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        with self.lock:
            if abs(stamped - time.time() - self.clock_ahead_s) > MOST_SKEW_S:
                return "RequestTimeTooSkewed"
            if not (self.left and self.method in method and self.path in path):
                return ""
            self.left -= 1
            return self.what


class Passing(BaseHTTPRequestHandler):
    """One connection of a client: every request goes to the server over a connection of its own."""

    protocol_version = "HTTP/1.1"
    line: Line

    def log_message(self, *_: object) -> None:
        return None

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while n_bytes := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(n_bytes))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def handle_one(self) -> None:
        fault = self.line.fault(self.command, self.path, self.headers["X-Amz-Date"])
        if fault == "cut upload":
            self.rfile.read(64)
            self.close_connection = True
            return
        content = self.body()
        if fault in STATUS:
            text = f"<Error><Code>{fault}</Code><Message>{fault} was asked for by the test</Message></Error>".encode()
            self.answer(STATUS[fault], [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))], text)
            self.close_connection = True
            return
        with self.line.conditions if self.headers.get("If-None-Match") else nullcontext():
            self.pass_on(fault, content)

    def pass_on(self, fault: str, content: bytes) -> None:
        there = http.client.HTTPConnection("127.0.0.1", self.line.server_port)
        kept = {name: text for name, text in self.headers.items() if name.lower() != "transfer-encoding"}
        there.request(self.command, self.path, content, kept | {"Content-Length": str(len(content))})
        with there.getresponse() as answer:
            body = answer.read()
            headers = [one for one in answer.getheaders() if one[0].lower() not in ("connection", "date")]
        there.close()
        if fault == "late":
            time.sleep(LATE_S)
        if fault == "cut":
            body = body[: len(body) // 2]
        self.close_connection = bool(fault)
        self.answer(answer.status, headers, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Date", formatdate(time.time() + self.line.clock_ahead_s, usegmt=True))
        for name, text in headers:
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.line.sent_bytes += len(body)


class Lines(ThreadingHTTPServer):
    """Accepts connections; a client that has given one up is no news."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def line_to(server_port: int) -> Iterator[Line]:
    """Run a line to a server on a free port of this machine."""
    line = Line(server_port)
    handler: Any = type("PassingOn", (Passing,), {"line": line})
    server = Lines(("127.0.0.1", 0), handler)
    line.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield line
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
