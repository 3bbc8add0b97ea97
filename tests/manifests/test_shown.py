"""What is shown and written down holds no password of a store's URI."""

from __future__ import annotations

import pickle

import pytest

from manifests.shown import shown_text, shown_uri, shown_values
from manifests.storage.errors import DiskFull, StoreError
from manifests.storage.store import Store


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://KEY:CANARY@bucket/a", "s3://bucket/a"),
        ("s3://KEY:CANARY@bucket/a?region=x", "s3://bucket/a"),
        ("s3://KEY:CAN/ARY+CANARY=@bucket/a", "s3://bucket/a"),  # not quoted as it should be
        ("s3://KEY:CAN#ARY@CANARY@bucket/a", "s3://bucket/a"),
        ("s3://KEY:CAN?CANARY@bucket/a", "s3://bucket/a"),
        ("abfs://CANARY@bucket/a", "abfs://bucket/a"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("s3://bucket/a?secret_key=CANARY&region=x", "s3://bucket/a"),
        ("/a/b@c", "/a/b@c"),
        ("file:///a", "file:///a"),
    ],
)
def test_a_place_is_shown_without_its_credentials(uri: str, shown: str) -> None:
    assert shown_uri(uri) == shown
    assert "CANARY" not in shown_text(f"cannot parse '{uri}', nor \"{uri}\" in {uri}; sorry")


def test_the_rest_of_a_text_stays() -> None:
    text = "s3://bucket/a?endpoint_override=host:9000&session_token=CANARY&scheme=http: it is 12:30, ask me@example.org"
    assert shown_text(text) == text.replace("CANARY", "...")
    assert shown_text("see http://host/a. s3://K:CANARY@b: x") == "see http://host/a. s3://b: x"


def test_settings_are_shown_without_them() -> None:
    settings = {"run": {"store": "s3://K:CANARY@b", "workers": 2}, "all": ["s3://K:CANARY@b", None, 1.5]}
    assert shown_values(settings) == {"run": {"store": "s3://b", "workers": 2}, "all": ["s3://b", None, 1.5]}


@pytest.mark.parametrize("uri", ["s3://KEY:CAN/ARY@b/c", "nowhere://KEY:CANARY@b", "s3://KEY:CANARY@b c/%zz"])
def test_a_store_that_cannot_be_opened_does_not_tell_its_secret(uri: str) -> None:
    with pytest.raises(StoreError) as caught:
        store = Store.open(uri)
        store.shards("target", "0a")
    assert "ARY" not in str(caught.value)


def test_errors_of_a_store_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DiskFull("s3://K:CANARY@b is full")))
    assert isinstance(error, DiskFull) and str(error) == "s3://b is full"
