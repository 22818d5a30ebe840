"""A run as a JobSet: the manifest, and the schema that every one is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from launch import names
from launch.tpus import Slice
from research.core.config import ConfigError

NAME = {"type": "string", "pattern": f"^{names.PATTERN}$", "maxLength": names.LONGEST}
_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 1}
_LABEL = {"type": "string", "pattern": r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"}
_ABSOLUTE = {"type": "string", "pattern": "^/[^:]*$"}


def _closed(properties: Mapping[str, Any], optional: Sequence[str] = ()) -> dict[str, Any]:
  """An object of these properties and no others."""
  required = [name for name in properties if name not in optional]
  return {
    "type": "object",
    "properties": dict(properties),
    "required": required,
    "additionalProperties": False,
  }


def _one(item: Mapping[str, Any]) -> dict[str, Any]:
  return {"type": "array", "items": item, "minItems": 1, "maxItems": 1}


_CONTAINER = _closed(
  {
    "name": NAME,
    "image": _TEXT,
    "workingDir": _ABSOLUTE,
    "command": {"type": "array", "items": _TEXT, "minItems": 1},
    "resources": _closed({"limits": _closed({"google.com/tpu": _COUNT})}),
    "volumeMounts": _one(_closed({"name": NAME, "mountPath": _ABSOLUTE})),
  }
)
_POD = _closed(
  {
    "restartPolicy": {"enum": ["Never"]},
    "terminationGracePeriodSeconds": _COUNT,
    "serviceAccountName": _LABEL,
    "nodeSelector": _closed(
      {
        "cloud.google.com/gke-tpu-accelerator": _LABEL,
        "cloud.google.com/gke-tpu-topology": {"type": "string", "pattern": r"^\d+(x\d+){1,2}$"},
        "cloud.google.com/gke-spot": {"enum": ["true"]},
      },
      optional=["cloud.google.com/gke-spot"],
    ),
    "containers": _one(_CONTAINER),
    "volumes": _one(
      _closed(
        {
          "name": NAME,
          "csi": _closed(
            {
              "driver": {"enum": ["gcsfuse.csi.storage.gke.io"]},
              "volumeAttributes": _closed({"bucketName": _TEXT, "mountOptions": _TEXT}),
            }
          ),
        }
      )
    ),
  },
  optional=["serviceAccountName"],
)
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}

SCHEMA = _closed(
  {
    "apiVersion": {"enum": ["jobset.x-k8s.io/v1alpha2"]},
    "kind": {"enum": ["JobSet"]},
    "metadata": _closed(
      {
        "name": NAME,
        "namespace": {"type": "string", "pattern": f"^{names.PATTERN}$", "maxLength": 63},
        "labels": {"type": "object", "additionalProperties": {**_LABEL, "maxLength": 63}},
        "annotations": _STRINGS,
      }
    ),
    "spec": _closed(
      {
        "failurePolicy": _closed({"maxRestarts": {"type": "integer", "minimum": 0}}),
        "replicatedJobs": _one(
          _closed(
            {
              "name": NAME,
              "replicas": {"enum": [1]},
              "template": _closed(
                {
                  "spec": _closed(
                    {
                      "parallelism": _COUNT,
                      "completions": _COUNT,
                      "completionMode": {"enum": ["Indexed"]},
                      "backoffLimit": {"enum": [0]},
                      "template": _closed(
                        {"metadata": _closed({"annotations": _STRINGS}), "spec": _POD}
                      ),
                    }
                  )
                }
              ),
            }
          )
        ),
      }
    ),
  }
)
"""The part of a JobSet that we write, closed and narrower than what is allowed.

Source: the CustomResourceDefinition of kubernetes-sigs/jobset
(config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml, v1alpha2), names by its webhook; volumes
by GKE's guide to Cloud Storage FUSE as a CSI ephemeral volume.
"""


def manifest(
  name: str,
  command: Sequence[str],
  *,
  tpu: Slice,
  image: str,
  workdir: str,
  mounted: str,
  bucket: str,
  sweep: str,
  namespace: str,
  restarts: int,
  service_account: str,
  spot: bool,
) -> dict[str, Any]:
  """The JobSet of one run on one slice: a pod a host, all of which run `command`.

  Args:
    name: its own.
    command: of every host.
    tpu: the slice.
    image: of the container, with the checkout and what it needs at `workdir`.
    mounted: the directory within `workdir` at which `bucket` is mounted.
    sweep: the label by which the JobSets of a sweep are found.
    restarts: how often all pods are started again when one fails.
    service_account: of Kubernetes, that may write to the bucket; empty: the namespace's own.
    spot: on nodes that may be taken away.

  Raises:
    ConfigError: it does not fit the schema; jsonschema is missing.
  """
  volume = "runs"
  pod: dict[str, Any] = {
    "restartPolicy": "Never",
    # A run that is told to leave finishes its step, and saves.
    "terminationGracePeriodSeconds": 90,
    "nodeSelector": {
      "cloud.google.com/gke-tpu-accelerator": tpu.accelerator,
      "cloud.google.com/gke-tpu-topology": tpu.topology,
      **({"cloud.google.com/gke-spot": "true"} if spot else {}),
    },
    **({"serviceAccountName": service_account} if service_account else {}),
    "containers": [
      {
        "name": "train",
        "image": image,
        "workingDir": workdir,
        "command": list(command),
        "resources": {"limits": {"google.com/tpu": tpu.chips_per_host}},
        "volumeMounts": [{"name": volume, "mountPath": str(PurePosixPath(workdir, mounted))}],
      }
    ],
    "volumes": [
      {
        "name": volume,
        "csi": {
          "driver": "gcsfuse.csi.storage.gke.io",
          "volumeAttributes": {"bucketName": bucket, "mountOptions": "implicit-dirs"},
        },
      }
    ],
  }
  job = {
    "parallelism": tpu.hosts,
    "completions": tpu.hosts,
    "completionMode": "Indexed",
    "backoffLimit": 0,
    "template": {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, "spec": pod},
  }
  made = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {
      "name": name,
      "namespace": namespace,
      "labels": {"sweep": sweep},
      # A slice is a node pool: pods of two runs never share one.
      "annotations": {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool",
      },
    },
    "spec": {
      "failurePolicy": {"maxRestarts": restarts},
      "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": job}}],
    },
  }
  require_valid(made)
  return made


def require_valid(made: Mapping[str, Any]) -> None:
  """Holds a manifest against the schema.

  Raises:
    ConfigError: where it does not fit; jsonschema is missing.
  """
  try:
    import jsonschema
  except ImportError:
    raise ConfigError('--on=gke needs jsonschema and PyYAML: pip install -e ".[gke]"') from None
  try:
    jsonschema.validate(made, SCHEMA)
  except jsonschema.ValidationError as error:
    raise ConfigError(f"the JobSet's {error.json_path}: {error.message}") from error
