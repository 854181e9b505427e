"""A cluster's profile is found by name, file or address, closed, and holds no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_mm.config.cluster import ClusterProfile, Reference, find_cluster, load_cluster, with_limits
from ray_mm.errors import UsageError

PLANTED = "hunter2-planted"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_MM_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def profile(**content: Any) -> ClusterProfile:
    return load_cluster(write(Path("lab.yaml"), {"kind": "cluster", **content}))


def test_a_name_is_that_of_the_repository_before_that_of_the_user() -> None:
    write(
        Path("config/ray-mm/clusters.yaml"), {"lab": {"address": "users:1"}, "own": {"address": "own:2", "retries": 2}}
    )
    assert find_cluster("lab").address == "http://users:1"
    write(Path("cluster/lab.yaml"), {"kind": "cluster", "address": "https://ray.example.org"})
    assert find_cluster("lab").address == "https://ray.example.org"
    assert find_cluster("own").retries == 2
    assert find_cluster("cluster/lab.yaml") == find_cluster("lab")


def test_without_a_name_it_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_cluster(None).address == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://there:1")
    assert find_cluster(None).address == "http://there:1"
    monkeypatch.setenv("RAY_MM_CLUSTER", "other:2")
    assert find_cluster(None).address == "http://other:2"
    assert find_cluster("here:3").address == "http://here:3"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("https://ray.example.org", "https://ray.example.org"),
        ("https://example.org/clusters/lab", "https://example.org/clusters/lab"),
        ("[::1]:8265", "http://[::1]:8265"),
        ("10.0.0.7:8265", "http://10.0.0.7:8265"),
    ],
)
def test_an_address_is_a_url_or_a_host_and_port(given: str, url: str) -> None:
    assert find_cluster(given).address == url


@pytest.mark.parametrize(
    "given",
    [
        *(
            "ray://head:10001",
            "ftp://head",
            "file:///etc/passwd",
            "javascript://alert(1)",
            "http://",
            "http://[",
            "://x",
        ),
        *("head:0", "head:99999", "head:x", "head:80:80", "http://head/../x", "http://head?x=1", "http://head#x"),
        *(f"http://user:{PLANTED}@head:8265", f"{PLANTED}@head:8265", "http://head\n:1", "head :1", "head\x00:1"),
        *(
            "http://head\\evil:1",
            "http://head'$(x)':1",
            "http://<b>:1",
            "-x:1",
            "http://h%41:1",
            "\x1b[31m:1",
            "x" * 3000,
        ),
    ],
)
def test_an_address_of_something_else_is_refused_without_what_it_hides(given: str) -> None:
    with pytest.raises(UsageError, match=r"^--cluster") as caught:
        find_cluster(given)
    assert PLANTED not in str(caught.value) and "\x1b" not in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_name_is_told_with_the_nearest_and_where_profiles_lie() -> None:
    write(Path("cluster/office.yaml"), {"kind": "cluster", "address": "head:1"})
    with pytest.raises(UsageError, match=r"--cluster offce: no such cluster; did you mean 'office'\?") as caught:
        find_cluster("offce")
    assert "cluster/offce.yaml" in str(caught.value) and "clusters.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"adress": "head:1"}, "unknown key 'adress'; did you mean 'address'?"),
        ({"address": f"http://me:{PLANTED}@head:1"}, "without user or password"),
        ({"token": PLANTED}, "expected the full path of a file"),
        ({"token": "/a\nb"}, "expected the full path of a file"),
        ({"storage": "relative/folder"}, "expected the full path of a folder that every node sees"),
        ({"storage": "/mnt/../etc"}, "expected a folder that every node sees"),
        ({"storage": "s3://"}, "expected a folder that every node sees"),
        ({"storage": f"s3://key:{PLANTED}@bucket/x"}, "without user, password or query"),
        ({"storage": f"s3://bucket/x?X-Amz-Signature={PLANTED}"}, "without user, password or query"),
        ({"image": "$(reboot)"}, "image: string should match pattern"),
        ({"image": "--privileged"}, "image: string should match pattern"),
        ({"runtime": {"env": {"AWS_SECRET_ACCESS_KEY": PLANTED}}}, "called like a secret, which must not stand here"),
        ({"runtime": {"env": {"HF_TOKEN": PLANTED}}}, "called like a secret"),
        ({"runtime": {"env": {"DB_PASSWORD": PLANTED}}}, "called like a secret"),
        ({"runtime": {"env": {"PROXY": f"http://me:{PLANTED}@proxy:3128"}}}, "holds a user or a password"),
        ({"runtime": {"env": {"A B": "x"}}}, "string should match pattern"),
        ({"runtime": {"env": {"RAY_AUTH_TOKEN": PLANTED}}}, "is set by ray_mm or Ray"),
        ({"runtime": {"env": {"RAY_MM_REFERENCES": "{}"}}}, "is set by ray_mm or Ray"),
        ({"runtime": {"env": {"KEY": {"env": "A", "file": "/b"}}}}, "give either env"),
        ({"runtime": {"env": {"KEY": {}}}}, "give either env"),
        ({"runtime": {"env": {"KEY": {"file": "relative"}}}}, "expected the full path of a file"),
        ({"runtime": {"env": {"KEY": {"value": PLANTED}}}}, "unknown key 'value'"),
        ({"runtime": {"pip": ["--index-url http://evil x"]}}, "expected a package as pip takes it"),
        ({"runtime": {"pip": ["x; import os"]}}, "expected a package as pip takes it"),
        ({"runtime": {"pip": [f"x @ https://me:{PLANTED}@host/x.whl"]}}, "must not hold a user, a password"),
        ({"runtime": {"python": "python; reboot"}}, "expected the name or the path of a Python"),
        ({"runtime": {"python": "-c"}}, "expected the name or the path of a Python"),
        ({"runtime": {"ships": "image", "pip": ["timm"]}}, "ships: image brings nothing along"),
        ({"retries": -1}, "greater than or equal to 0"),
        ({"time_limit": "soon"}, "expected a time such as 90s"),
        ({"stop_grace": 0}, "greater than 0"),
        ({"resources": {"workers": 0}}, "greater than or equal to 1"),
    ],
)
def test_what_is_wrong_in_a_profile_is_told_with_its_line_and_without_a_secret(content: Any, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        profile(**content)
    assert str(caught.value).startswith("lab.yaml:") and told in str(caught.value)
    assert PLANTED not in str(caught.value)


def test_a_profile_says_that_it_is_one() -> None:
    write(Path("cluster/aws.yaml"), {"cluster_name": "aws", "provider": {"type": "aws"}})
    with pytest.raises(UsageError, match="begins with kind: cluster"):
        find_cluster("aws")


def test_a_profile_holds_what_is_written_in_it() -> None:
    env = {"AWS_ENDPOINT_URL": "http://minio:9000", "AWS_SECRET_ACCESS_KEY": {"file": "/run/secrets/s3"}}
    found = profile(
        address="head:8265", storage="/mnt/shared/", time_limit="12h", stop_grace="5m", runtime={"env": env}
    )
    assert (found.storage, found.time_limit, found.stop_grace) == ("/mnt/shared", 43_200, 300)
    assert found.runtime.env["AWS_SECRET_ACCESS_KEY"] == Reference(file="/run/secrets/s3")
    assert found.runtime.env["AWS_ENDPOINT_URL"] == "http://minio:9000"


def test_a_submission_has_limits_of_its_own() -> None:
    cluster = profile(retries=1, time_limit="1h")
    assert with_limits(cluster, None, None) == cluster
    changed = with_limits(cluster, 3, "90m")
    assert (changed.retries, changed.time_limit) == (3, 5400)
    for wrong in ("soon", "-1h", "0", "1e99h", "1h; reboot"):
        with pytest.raises(UsageError, match="--time-limit: expected a time"):
            with_limits(cluster, None, wrong)
