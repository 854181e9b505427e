"""A URL → the client of its store, by ``obstore``; and what its errors mean."""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from ray_mm.errors import ObjectMissingError, StorageError, UsageError, WriteConflictError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, GCSConfig, ObjectStore, RetryConfig

_SCHEMES = ("s3", "gs", "http", "https")
_ENVIRONMENT = re.compile(r"(AWS_|GOOGLE_|STORAGE_EMULATOR_|GCE_METADATA_|SSL_|HTTPS?_PROXY|NO_PROXY)", re.IGNORECASE)
_STATUS = re.compile(r"status code: (\d{3})")
_CONNECT_TIMEOUT = timedelta(seconds=5)
_ATTEMPTS = 10
_PATIENT_ATTEMPTS = 10_000


def split_url(url: str) -> tuple[str, str, str]:
    """Scheme, bucket (or host) and path of a URL; the path of a web page without its percent signs.

    Raises:
        UsageError: an unknown scheme, no bucket, or a query.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES:
        raise UsageError(
            f"{url}: {scheme}:// can't be read; give s3://, gs://, http(s):// or a path on a disk that every node sees."
        )
    bucket, _, path = rest.partition("/")
    if not bucket:
        raise UsageError(f"{url}: names no {'host' if scheme.startswith('http') else 'bucket'}.")
    if scheme.startswith("http"):
        if urlsplit(url).query:
            raise UsageError(
                f"{bucket}: URLs with a query (?…), such as signed ones, can't be read; use s3:// or gs://."
            )
        path = unquote(path)
    return scheme, bucket, path.strip("/")


def store_of(url: str, *, retries: bool = True, timeout_s: float = 30.0, stall_s: float = 30.0) -> ObjectStore:
    """The store in which an object lies. Kept per process: connections are used again.

    Args:
        url: of the object.
        retries: whether the store itself tries again; without, the first error is raised.
        timeout_s: longest time of one request, its body included.
        stall_s: longest time without a byte.
    """
    scheme, bucket, _ = split_url(url)
    # A test, or a session that gets new credentials, changes the environment: then the old store must not be used.
    environment = tuple(sorted(item for item in os.environ.items() if _ENVIRONMENT.match(item[0])))
    patience_s = _patience_s.get()
    attempts, retry_s = (_ATTEMPTS, 60.0) if patience_s is None else (_PATIENT_ATTEMPTS, patience_s)
    return _store(scheme, bucket, attempts if retries else 1, retry_s, timeout_s, stall_s, environment)


@contextlib.contextmanager
def patient(seconds: float) -> Iterator[None]:
    """Within the block, a store that does not answer is asked again for so long, instead of a few times.

    A command should tell soon that an address is wrong; a training of days should outlast a store's bad minutes.
    """
    token = _patience_s.set(seconds)
    try:
        yield
    finally:
        _patience_s.reset(token)


_patience_s: contextvars.ContextVar[float | None] = contextvars.ContextVar("ray_mm_patience_s", default=None)


@lru_cache(maxsize=64)
def _store(
    scheme: str,
    bucket: str,
    attempts: int,
    retry_s: float,
    timeout_s: float,
    stall_s: float,
    environment: tuple[tuple[str, str], ...],
) -> ObjectStore:
    from obstore.store import GCSStore, HTTPStore, S3Store

    named = dict(environment)
    endpoint = named.get("AWS_ENDPOINT_URL_S3") or named.get("AWS_ENDPOINT_URL") or ""
    client: ClientConfig = {
        "timeout": timedelta(seconds=timeout_s),
        "read_timeout": timedelta(seconds=stall_s),
        "connect_timeout": min(_CONNECT_TIMEOUT, timedelta(seconds=timeout_s)),
    }
    if scheme == "http" or (scheme == "s3" and endpoint.startswith("http://")):
        client["allow_http"] = True
    retry: RetryConfig = {"max_retries": attempts - 1, "retry_timeout": timedelta(seconds=retry_s)}
    try:
        if scheme == "s3":
            return S3Store(bucket, client_options=client, retry_config=retry)
        if scheme == "gs":
            config = _google_config(named)
            if "STORAGE_EMULATOR_HOST" in named or config.get("base_url", "").startswith("http://"):
                client["allow_http"] = True
            return GCSStore(bucket, config=config, client_options=client, retry_config=retry)
        return HTTPStore.from_url(f"{scheme}://{quote(bucket, safe=':@[]')}", client_options=client, retry_config=retry)
    except Exception as error:
        raise storage_error(f"{scheme}://{bucket}", error) from None


def _google_config(named: Mapping[str, str]) -> GCSConfig:
    """What leads elsewhere than to Google's own servers; the credentials are left to ``obstore``.

    Args:
        named: the environment. ``STORAGE_EMULATOR_HOST`` is a server that stands in for Google's and asks nobody who calls, as
            Google's own libraries take it; ``GOOGLE_BASE_URL`` is one that does.
    """
    emulator, base_url = named.get("STORAGE_EMULATOR_HOST"), named.get("GOOGLE_BASE_URL")
    if emulator:
        place = emulator if "://" in emulator else f"http://{emulator}"
        # skip_signature alone is not enough: a write asks for a token all the same.
        account = {"disable_oauth": True, **dict.fromkeys(("client_email", "private_key", "private_key_id"), "")}
        return {"base_url": place, "skip_signature": True, "service_account_key": json.dumps(account)}
    return {"base_url": base_url.rstrip("/")} if base_url else {}


def storage_error(url: str, error: Exception) -> StorageError | UsageError:
    """What a failure of ``obstore`` means, in one line that names the object."""
    from obstore import exceptions

    if isinstance(error, (StorageError, UsageError)):
        return error
    if isinstance(error, FileNotFoundError):
        return ObjectMissingError(f"{url}: there is no such object.")
    if isinstance(error, (exceptions.AlreadyExistsError, exceptions.PreconditionError)):
        return WriteConflictError(f"{url}: was not written, another writer was faster.")
    status = status_of(error)
    if isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)) or status in (401, 403):
        return StorageError(
            f"{url}: the store refuses access (HTTP {status or 'status unknown'}); check the credentials in the environment, "
            "and what they may read."
        )
    if status == 404:  # of a listing, for an object that is not there has an error of its own
        return StorageError(f"{url}: there is no such bucket.")
    if isinstance(error, exceptions.NotSupportedError) and "range" in str(error).lower():
        return StorageError(
            f"{url}: the server sends files only whole (it answers a Range request with all of the file), and ray_mm reads parts "
            "of them. Download the file, or serve it with a server that knows ranges, such as nginx, or from s3:// or gs://."
        )
    if status is None and "error sending request" in str(error):
        return StorageError(f"{url}: can't be reached; check its address and the network ({first_line(error)}).")
    return StorageError(f"{url}: {first_line(error)}")


def status_of(error: Exception) -> int | None:
    """The HTTP status that an error of ``obstore`` tells, if it does."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def first_line(error: Exception) -> str:
    """The first line of an error: ``obstore`` adds a page of its innards."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
