"""Making a file that must not exist yet, so that of two writers at once one knows that it came second.

On this machine's file systems a whole file gets its name by a hard link, which fails where the name is taken (and by
exclusive creation where there are no links); no lock is needed, which some file systems lack. On S3 it is a put with
`If-None-Match: *`, by Amazon's own library, since Arrow has no conditional put. A store that cannot do it is refused,
unless its URI says that one run at a time writes.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
TAKEN = ("PreconditionFailed", "ConditionalRequestConflict")


def link(scratch: Path, path: Path) -> bool:
    """Give a finished file its name; return False, and change nothing, where another file has it.

    Raises OSError where it cannot be written. `scratch` stays, or is gone.
    """
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _copied(scratch, path)
    return True


def _copied(scratch: Path, path: Path) -> bool:
    """As `link`, where there are no links. A machine that stops in the middle leaves a file that its digest tells."""
    try:
        target = path.open("xb")
    except FileExistsError:
        return False
    try:
        with target:
            target.write(scratch.read_bytes())
            target.flush()
            os.fsync(target.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


class Bucket:
    """A folder in a bucket of S3, or of a server that speaks like it, as Amazon's library reaches it."""

    def __init__(self, uri: str, region: str) -> None:
        """`uri` is as Arrow takes it: `s3://[key:secret@]bucket/folder?endpoint_override=...&scheme=...`."""
        import boto3
        from botocore.config import Config

        parts = urlsplit(uri)
        settings = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        user, _, place = parts.netloc.rpartition("@")
        key, _, secret = user.partition(":")
        endpoint = settings.get("endpoint_override")
        if endpoint and "://" not in endpoint:
            endpoint = f"{settings.get('scheme', 'https')}://{endpoint}"
        style = "path" if endpoint else "auto"
        self._bucket, self._folder = place, unquote(parts.path).strip("/")
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=settings.get("region") or region or None,
            aws_access_key_id=unquote(key) or None,
            aws_secret_access_key=unquote(secret) or None,
            config=Config(
                connect_timeout=10, read_timeout=30, retries={"max_attempts": 2}, s3={"addressing_style": style}
            ),
        )
        self._keeps_its_word = False

    def create(self, path: str, content: bytes) -> bool:
        """Make an object that must not exist; return False where it does.

        Raises OSError for whatever S3 says else, in the words that Arrow uses, and NotImplementedError where the server
        takes no notice of the condition: found out by a second put of the first object that is made.
        """
        if not self._put(path, content):
            return False
        if not self._keeps_its_word and self._put(path, content):
            raise NotImplementedError("the server takes no notice of `If-None-Match: *` in a put")
        self._keeps_its_word = True
        return True

    def _put(self, path: str, content: bytes) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        key = f"{self._folder}/{path}" if self._folder else path
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=content, IfNoneMatch="*")
        except ClientError as error:
            answer: Any = error.response
            code, status = answer["Error"].get("Code", ""), answer["ResponseMetadata"].get("HTTPStatusCode")
            if code in TAKEN or status == 412:
                return False
            if status == 501:
                raise NotImplementedError("the server knows no conditional put") from None
            words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(code)).upper()
            told = answer["Error"].get("Message", "")
            raise OSError(f"AWS Error {words} (HTTP status {status}) during PutObject operation: {told}") from None
        except BotoCoreError as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from None
        return True
