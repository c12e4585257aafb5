"""A provider's failures become sentences that the owner of a run can read."""

import email.utils
import time

import pytest

from mini_assistant.models.provider_errors import ProviderErrors, retry_after_seconds

SECRET = "sk-secret"


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "Out of cheese", "type": "x"}}',
        b'[{"error": {"message": "Out of cheese"}}]',
        b'{"error": "Out of cheese"}',
        b'{"message": "Out of cheese"}',
        b'{"detail": [{"loc": [], "message": "Out of cheese"}]}',
        b'"Out of cheese"',
        b"Out of\n   cheese",
    ],
)
def test_the_providers_words_are_found(body):
    error = ProviderErrors("local").refused(500, {}, body)
    assert error.message == "The provider 'local' failed (HTTP 500): Out of cheese"


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"{}", b"[]", b"null", b'{"error": null}', b'{"error": {"code": 7}}'])
def test_bodies_without_words(body):
    assert ProviderErrors("local").refused(500, {}, body).message.startswith("The provider 'local' failed (HTTP 500)")


def test_long_words_are_cut_and_the_key_is_taken_out():
    body = f"{SECRET} is wrong. " * 100
    message = ProviderErrors("local", SECRET).refused(400, {}, body.encode()).message
    assert SECRET not in message
    assert "*** is wrong." in message
    assert len(message) < 300


def test_a_key_at_the_edge_of_the_excerpt_is_taken_out():
    for padding in range(150, 210):
        message = ProviderErrors("local", SECRET).refused(400, {}, b"x" * padding + SECRET.encode()).message
        assert "sk-s" not in message


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "2", "retry-after-ms": "1500"}, 1.5),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after_seconds(headers) == seconds


def test_retry_after_as_a_date():
    seconds = retry_after_seconds({"Retry-After": email.utils.formatdate(time.time() + 60, usegmt=True)})
    assert seconds is not None
    assert 50 < seconds <= 60
