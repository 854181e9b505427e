"""MLflow shows a registry as it is, also when it was away, or when somebody has moved its aliases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ray_mm.cli import app
from ray_mm.errors import UsageError
from ray_mm.retraining.mlflow_mirror import mlflow_mirror
from ray_mm.retraining.registry import Registry
from tests.retraining.models import lineage, write_checkpoint


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """MLflow with an sqlite file beside the registry, whose tables take some seconds to make."""
    pytest.importorskip("mlflow")
    from ray_mm.training.mlflow_store import open_client

    return open_client(f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db")


def shown(client: Any, name: str) -> dict[str, str]:
    """Alias → our number of the version that has it in MLflow."""
    aliases = client.get_registered_model(name).aliases
    return {
        alias: client.get_model_version(name, str(number)).tags["ray_mm.version"] for alias, number in aliases.items()
    }


def test_versions_and_aliases_are_shown_and_set_right(client: Any, tmp_path: Path) -> None:
    root = str(Path(client.tracking_uri.removeprefix("sqlite:///")).parent)
    registry = Registry(root, "driving", mlflow_mirror(root))
    for number in (1, 2):
        registry.register(write_checkpoint(tmp_path / str(number), number / 10), lineage(f"night-{number}"))
    # Somebody has made a version there by hand: MLflow's numbers are its own.
    client.create_model_version("driving", "file:///elsewhere")
    unseen = Registry(root, "driving")
    unseen.register(write_checkpoint(tmp_path / "3"), lineage("night-3", parent=1))
    registry.promote(1, expected=None)
    registry.promote(3, expected=1)
    assert shown(client, "driving") == {"champion": "3", "previous": "1"}
    found = {made.tags["ray_mm.version"]: made for made in client.search_model_versions("name='driving'") if made.tags}
    assert sorted(found) == ["1", "2", "3"] and found["3"].version != 3
    assert found["3"].tags["data_digest"] == "sha256:data" and found["3"].tags["parent"] == "1"
    assert (
        found["3"].tags["metric.accuracy"] == "0.5" and found["3"].source == Path(registry.version(3).location).as_uri()
    )
    # What is decided elsewhere follows at the next look: here a rollback without MLflow, and an alias moved by hand.
    unseen.rollback("worse")
    client.set_registered_model_alias("driving", "champion", found["2"].version)
    ran = CliRunner().invoke(app, ["registry", "show", f"{root}#driving"])
    assert ran.exit_code == 0 and registry.champion() == 1
    assert shown(client, "driving") == {"champion": "1"}
    assert client.get_model_version("driving", found["3"].version).tags["denied"] == "worse"


def test_an_mlflow_that_is_away_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    root = str(tmp_path / "registry")
    registry = Registry(root, "driving", mlflow_mirror(root, "http://127.0.0.1:9"))
    registry.register(write_checkpoint(tmp_path / "1"), lineage("night-1"))
    registry.promote(1, expected=None)
    assert registry.champion() == 1
    assert "MLflow (http://127.0.0.1:9) does not show the registry as it is" in capsys.readouterr().err


@pytest.mark.parametrize("uri", ["http://user:secret@h", "https://h?token=secret", "ftp://h/secret", "sqlite://secret"])
def test_an_address_with_a_password_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        mlflow_mirror("runs/registry", uri)
    assert "secret" not in str(caught.value)


def test_a_store_has_no_file_for_mlflow() -> None:
    with pytest.raises(UsageError, match="name a server"):
        mlflow_mirror("s3://bucket/registry")
