"""A cluster's profile: where it answers, what its nodes share, what a job brings along.

    cluster/NAME.yaml                   below the folder in which one works: one cluster, such as

        kind: cluster
        address: https://ray.example.org
        token: ~/.config/ray-mm/lab.token
        storage: /mnt/shared/ray_mm

    ~/.config/ray-mm/clusters.yaml      of a user: name → profile

Both say how to reach a secret, never the secret itself.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from ray_mm.config.base import Config, Location
from ray_mm.config.explain import Source, explain, nearest
from ray_mm.config.read import read_mapping
from ray_mm.errors import JobFileError, UsageError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
FOLDER = Path("cluster")
"""Where a repository keeps its clusters."""

_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|_KEY|^KEY|AUTH|SIGNATURE", re.IGNORECASE)
_PLACE_NAME = re.compile(r"(_FILE|_PATH|_DIR|_ENDPOINT|_URL|_URI)$|^GOOGLE_APPLICATION_CREDENTIALS$", re.IGNORECASE)
_TIME_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(value: Any) -> Any:
    """Seconds of ``90s``, ``45m``, ``12h``, ``2d``; numbers stay as they are.

    Raises:
        ValueError: a text of another form.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,3})?)\s*([smhd]?)\s*", value)
    if match is None:
        raise ValueError(f"expected a time such as 90s, 45m, 12h or 2d, found {value[:40]!r}")
    return float(match[1]) * _TIME_UNITS[match[2] or "s"]


def checked_address(given: str) -> str:
    """The URL of a dashboard that an address means: ``HOST:PORT``, or ``http(s)://HOST[:PORT][/PATH]``.

    Raises:
        ValueError: something else, or it holds a user or a password.
    """
    expected = "expected the address of a Ray dashboard, such as http://head:8265"
    # The text is in no message before it is known to hold no password.
    if len(given) > 2000 or re.search(r"[\s\x00-\x1f\x7f-\x9f\\\"'<>`{}|^]", given):
        raise ValueError(f"{expected}; spaces, quotes and control characters are no part of one")
    scheme, separator, rest = given.partition("://")
    if not separator:
        scheme, rest = "http", given
    if "@" in rest:
        raise ValueError(f"{expected}, without user or password: give the file of its token instead (token:)")
    if scheme not in ("http", "https"):
        raise ValueError(f"{expected}; found {scheme}://")
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        host, is_port = parts.hostname or "", parts.port is None or parts.port > 0
    except ValueError:
        host, is_port = "", False
    is_host = re.fullmatch(r"[0-9a-f:.]*:[0-9a-f:.]*|[a-z0-9][a-z0-9_.-]*", host) is not None
    if not (is_host and is_port) or parts.query or parts.fragment or ".." in parts.path.split("/"):
        raise ValueError(f"{expected}; found {given!r}")
    return f"{scheme}://{rest.rstrip('/')}"


def _storage(given: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", given) or ".." in given.split("/"):
        raise ValueError("expected a folder that every node sees, or s3://BUCKET/PREFIX or gs://BUCKET/PREFIX")
    scheme, separator, rest = given.partition("://")
    if not separator:
        if not given.startswith("/"):
            raise ValueError(f"expected the full path of a folder that every node sees, found {given!r}")
        return given.rstrip("/") or "/"
    if scheme not in ("s3", "gs") or not rest.partition("/")[0] or re.search(r"[@?#]", rest):
        raise ValueError(
            "expected a folder that every node sees, or s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, without user, password or query"
        )
    return given.rstrip("/")


def _home_or_absolute(given: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", given) or not given.startswith(("/", "~")):
        # Not what was found: somebody may have written the secret where its file belongs.
        raise ValueError("expected the full path of a file, or one that begins with ~/")
    return given


def _requirement(given: str) -> str:
    try:
        url = Requirement(given).url
    except InvalidRequirement:
        raise ValueError(f"expected a package as pip takes it, such as timm==1.0.9, found {given[:60]!r}") from None
    if url is not None and ("@" in url.partition("://")[2].partition("/")[0] or "?" in url):
        raise ValueError("a package's URL must not hold a user, a password or a signature")
    return given


def _command(given: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_./+-]+", given) or given.startswith("-"):
        raise ValueError(
            f"expected the name or the path of a Python, such as python or /opt/venv/bin/python, found {given!r}"
        )
    return given


Address = Annotated[str, AfterValidator(checked_address)]
Duration = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=float | str), Field(gt=0, le=10**9)]
"""Seconds, written as a number or with a unit: ``90s``, ``45m``, ``12h``, ``2d``."""
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
NodePath = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_home_or_absolute)]


class Reference(Config):
    """Where each node finds a value. The value itself never leaves it."""

    env: VariableName | None = None
    """A variable in the environment that Ray was started with on the node."""
    file: NodePath | None = None
    """A file on the node, such as a mounted secret; a line end after the value is no part of it."""

    @model_validator(mode="after")
    def _one(self) -> Reference:
        if (self.env is None) == (self.file is None):
            raise ValueError("give either env (a variable of the node) or file (a file on the node)")
        return self


def _form(value: Any) -> str:
    return "reference" if isinstance(value, (dict, Reference)) else "text"


Value = Annotated[Annotated[str, Tag("text")] | Annotated[Reference, Tag("reference")], Discriminator(_form)]
"""A text that everybody may read, or where each node finds one that nobody may."""


class ClusterRuntime(Config):
    """What a job finds on the nodes, and what it brings along."""

    ships: Literal["code", "image"] = "code"
    """``code``: this version of ray_mm travels with every job. ``image``: the nodes have it, in the same version."""
    modules: tuple[Location, ...] = ()
    """Folders of more packages that travel, such as own encoders."""
    pip: tuple[Annotated[str, Field(max_length=500), AfterValidator(_requirement)], ...] = ()
    """Packages that Ray installs on the nodes before the job starts. Not with ``ships: image``: there they belong into it."""
    env: dict[VariableName, Value] = Field(default={})
    """Variables of the job's processes. Secrets only by reference: ``{env: NAME}`` or ``{file: PATH}``, read on each node."""
    python: Annotated[str, Field(max_length=500), AfterValidator(_command)] = "python"
    """The Python of the nodes, in whose environment Ray was started."""

    @model_validator(mode="after")
    def _fits(self) -> ClusterRuntime:
        if self.ships == "image" and (self.pip or self.modules):
            raise ValueError(
                "ships: image brings nothing along; put pip and modules into the image, or take ships: code"
            )
        for name, value in self.env.items():
            # No value is in a message.
            if (
                name.startswith(("RAY_AUTH_", "RAY_ADDRESS", "RAY_JOB_", "RAY_MM_REFERENCES"))
                or name == "PYTHONUNBUFFERED"
            ):
                raise ValueError(f"env.{name} is set by ray_mm or Ray; remove it")
            if not isinstance(value, str):
                continue
            if re.search(r"://[^/\s]*@", value):
                raise ValueError(
                    f"env.{name} holds a user or a password; give {{file: PATH}} or {{env: NAME}} of the nodes"
                )
            if _SECRET_NAME.search(name) and not _PLACE_NAME.search(name):
                raise ValueError(
                    f"env.{name} is called like a secret, which must not stand here; give {{file: PATH}} or {{env: NAME}} of the "
                    "nodes"
                )
            if "\x00" in value:
                raise ValueError(f"env.{name} holds a character that no variable can have")
        return self


class ClusterResources(Config):
    """What jobs get on this cluster that do not say it themselves."""

    workers: int | None = Field(default=None, ge=1)
    """As ``resources.workers`` of a job."""
    cpus_per_worker: float | None = Field(default=None, gt=0)
    """As ``resources.cpus_per_worker`` of a job."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """As ``resources.gpus_per_worker`` of a job."""


class ClusterProfile(Config):
    """A cluster as ray_mm sees it."""

    kind: Literal["cluster"] = "cluster"
    address: Address = DEFAULT_ADDRESS
    """Of its dashboard: ``HOST:PORT``, or ``http(s)://HOST[:PORT]``."""
    token: NodePath | None = None
    """File with its access token, here, which nobody else may read. Unset: RAY_AUTH_TOKEN_PATH, or for a cluster on this machine
    ``~/.ray/auth_token``."""
    storage: Annotated[str, Field(max_length=1000), AfterValidator(_storage)] | None = None
    """What all nodes see: the full path of a folder, or ``s3://…`` or ``gs://…``. Relative paths of a job are meant from here.
    Unset: they are meant from the folder in which one submits, which all nodes then have to see."""
    image: str | None = Field(default=None, max_length=500, pattern=r"^[a-z0-9][A-Za-z0-9._/:@-]*$")
    """Container image of its nodes, for what ``ray-mm render`` writes."""
    runtime: ClusterRuntime = ClusterRuntime()
    resources: ClusterResources = ClusterResources()
    retries: int = Field(default=0, ge=0, le=1000)
    """How often a job that failed or was killed is started again, and goes on from what is there. Not one that is wrong."""
    time_limit: Duration | None = None
    """After which a job is asked to save and end, such as ``12h``; over all its starts. Unset: none."""
    stop_grace: Duration = 120.0
    """How long a job that is stopped has to save its state, before it is killed."""


def user_clusters() -> Path:
    """The file of a user's own clusters."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "ray-mm" / "clusters.yaml"


def find_cluster(given: str | None) -> ClusterProfile:
    """The profile that a name, a file or an address means.

    Args:
        given: a name; the path of a profile (``*.yaml``); an address, which gives a profile of defaults.
            None: what RAY_MM_CLUSTER or RAY_API_SERVER_ADDRESS name, else a cluster on this machine.

    Raises:
        UsageError: there is no such profile, it is wrong, or no such address can be.
    """
    given = given or os.environ.get("RAY_MM_CLUSTER") or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    if given.endswith((".yaml", ".yml")):
        return load_cluster(Path(given))
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", given):
        return _by_name(given)
    try:
        return ClusterProfile(address=checked_address(given))
    except ValueError as error:
        text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UsageError(f"--cluster: {text}; or the name of a cluster's profile.") from None


def load_cluster(path: Path) -> ClusterProfile:
    """Reads a profile.

    Raises:
        JobFileError: the file can't be read, or a key or value is wrong.
    """
    content, lines = read_mapping(path, "cluster profile")
    if content.get("kind") != "cluster":
        raise JobFileError(f"{path}: a cluster's profile begins with kind: cluster; found {content.get('kind')!r}.")
    return _validated(content, Source(str(path), lines))


def with_limits(cluster: ClusterProfile, retries: int | None, time_limit: str | None) -> ClusterProfile:
    """A profile with the limits of one submission in the place of its own.

    Raises:
        UsageError: the time is none.
    """
    limits: dict[str, Any] = {} if retries is None else {"retries": retries}
    if time_limit is not None:
        try:
            limits["time_limit"] = TypeAdapter(Duration).validate_python(time_limit)
        except ValidationError:
            raise UsageError(
                f"--time-limit: expected a time such as 90s, 45m, 12h or 2d, found {time_limit[:40]!r}."
            ) from None
    return cluster.model_copy(update=limits)


def _by_name(name: str) -> ClusterProfile:
    own, users = FOLDER / f"{name}.yaml", user_clusters()
    if own.is_file():
        return load_cluster(own)
    content: dict[str, Any] = {}
    if users.is_file():
        content, lines = read_mapping(users, "file of cluster profiles")
        if name in content:
            if not isinstance(content[name], dict):
                raise JobFileError(f"{users}: {name}: expected the keys of a cluster's profile, such as address.")
            below = {path[1:]: line for path, line in lines.items() if path[0] == name}
            return _validated(content[name], Source(f"{users}: {name}", below))
    known = sorted({path.stem for path in FOLDER.glob("*.yaml")} | {str(key) for key in content})
    near = nearest(name, known)
    there = (
        f"did you mean {near!r}? Known are {', '.join(known)}" if near else f"known are {', '.join(known) or 'none'}"
    )
    raise UsageError(
        f"--cluster {name}: no such cluster; {there}. A profile is {own} or a section of {users}; an address is HOST:PORT or "
        "http(s)://HOST."
    )


def _validated(content: dict[str, Any], where: Source) -> ClusterProfile:
    try:
        return ClusterProfile.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise JobFileError(explain(error, ClusterProfile, where)) from None
    except (TypeError, ValueError):
        raise JobFileError(f"{where.name}: holds something that JSON can't say.") from None
