"""Kubernetes' schemas, as strict as ``kubectl apply --validate=strict``: a key that they do not know is an error."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema

_FOLDER = Path(__file__).parent / "crds"
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA = {
    "type": "object",
    "properties": {
        # RFC 1123; and KubeRay refuses names of more than 47 characters.
        "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,63}$"}},
        "annotations": _TEXTS,
    },
    "required": ["name"],
    "additionalProperties": False,
}


def require_valid(manifest: dict[str, Any]) -> None:
    """Holds a manifest against the schema of its kind.

    Raises:
        jsonschema.ValidationError: it does not fit.
    """
    jsonschema.Draft202012Validator(_schema(manifest["apiVersion"], manifest["kind"])).validate(manifest)


@functools.cache
def _schema(version: str, kind: str) -> dict[str, Any]:
    match version, kind:
        case "ray.io/v1", "RayCluster" | "RayJob" | "RayCronJob":
            schema = _of_kuberay(f"{kind.lower()}s")
            properties = {**schema["properties"], "metadata": _METADATA}
            properties.pop("status")
            return _closed({**schema, "properties": properties, "required": ["apiVersion", "kind", "metadata", "spec"]})
        case "v1", "ConfigMap":
            return _object(version, kind, data=_TEXTS)
        case "v1", "PersistentVolumeClaim":
            return _object(version, kind, spec=_CLAIM)
        case "batch/v1", "CronJob":
            return _object(version, kind, spec=_cron_job())
    raise AssertionError(f"no schema of {version} {kind}")


def _object(version: str, kind: str, **more: Any) -> dict[str, Any]:
    properties = {"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": _METADATA, **more}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _of_kuberay(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((_FOLDER / f"{name}.v1.json.gz").read_bytes()))
    return found


def _cron_job() -> dict[str, Any]:
    """``batch/v1`` CronJobSpec, by the Kubernetes API reference; of pods, what KubeRay's schemas say of them."""
    pod = _closed(
        _of_kuberay("rayclusters")["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]["template"]
    )
    count = {"type": "integer", "minimum": 0}
    job = {
        "type": "object",
        "properties": {
            **dict.fromkeys(("backoffLimit", "ttlSecondsAfterFinished", "activeDeadlineSeconds", "completions"), count),
            "parallelism": count,
            "suspend": {"type": "boolean"},
            "podFailurePolicy": _FAILURES,
            "template": pod,
        },
        "required": ["template"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "schedule": {"type": "string", "minLength": 1},
            "timeZone": {"type": "string"},
            "concurrencyPolicy": {"enum": ["Allow", "Forbid", "Replace"]},
            "suspend": {"type": "boolean"},
            **dict.fromkeys(("startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"), count),
            "jobTemplate": {
                "type": "object",
                "properties": {"spec": job},
                "required": ["spec"],
                "additionalProperties": False,
            },
        },
        "required": ["schedule", "jobTemplate"],
        "additionalProperties": False,
    }


_FAILURES = {
    "type": "object",
    "properties": {
        "rules": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "action": {"enum": ["FailJob", "Ignore", "Count", "FailIndex"]},
                    "onExitCodes": {
                        "type": "object",
                        "properties": {
                            "containerName": {"type": "string"},
                            "operator": {"enum": ["In", "NotIn"]},
                            "values": {"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 255},
                        },
                        "required": ["operator", "values"],
                        "additionalProperties": False,
                    },
                },
                "required": ["action"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["rules"],
    "additionalProperties": False,
}
_CLAIM = {
    "type": "object",
    "properties": {
        "accessModes": {"type": "array", "items": {"enum": ["ReadWriteMany", "ReadWriteOnce"]}},
        "storageClassName": {"type": "string"},
        "resources": {
            "type": "object",
            "properties": {"requests": _TEXTS},
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}


def _closed(schema: Any) -> Any:
    """The same, refusing keys that it does not name, as the API server does in its strict mode."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: {name: _closed(part) for name, part in value.items()} if key == "properties" else _closed(value)
              for key, value in schema.items()}  # fmt: skip
    if closed.pop("x-kubernetes-int-or-string", False):
        closed.pop("anyOf", None)
        closed["type"] = ["integer", "string"]
    is_open = closed.pop("x-kubernetes-preserve-unknown-fields", False)
    if isinstance(closed.get("properties"), dict) and "additionalProperties" not in closed and not is_open:
        closed["additionalProperties"] = False
    return closed
