"""TPU slices: the table, manifests against the schema, scripts against the published flags."""

import math
import re
import shlex

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch import names, runs, tpus
from launch.engines import gke, jobset
from launch.points import Point

GKE = ("--on=gke", "--tpu=v5litepod-16", "--image=place/image:1", "--bucket=kept")
TPU_VM = ("--on=tpu_vm", "--tpu=v6e-4", "--zone=there-1b", "--setup=git clone x research")
SWEEP = "metrics=('loss',), seeds=(0, 1), points={'ends': {'rate': 2.0}, 'fails': {'does': 'fail'}}"

# What the pages named in launch.tpus say of some slices.
KNOWN = {
  "v4-32": ("2x2x4", 4, 4, "tpu-v4-podslice", "ct4p-hightpu-4t"),
  "v5litepod-1": ("1x1", 1, 1, "tpu-v5-lite-podslice", "ct5lp-hightpu-1t"),
  "v5litepod-8": ("2x4", 1, 8, "tpu-v5-lite-podslice", "ct5lp-hightpu-8t"),
  "v5litepod-256": ("16x16", 64, 4, "tpu-v5-lite-podslice", "ct5lp-hightpu-4t"),
  "v5p-128": ("4x4x4", 16, 4, "tpu-v5p-slice", "ct5p-hightpu-4t"),
  "v6e-4": ("2x2", 1, 4, "tpu-v6e-slice", "ct6e-standard-4t"),
  "v6e-64": ("8x8", 16, 4, "tpu-v6e-slice", "ct6e-standard-4t"),
}


def test_slices_are_what_the_pages_say():
  for name, told in KNOWN.items():
    of = tpus.slice_of(name)
    found = (of.topology, of.hosts, of.chips_per_host, of.accelerator, of.machine)
    assert found == told, name
  for of in tpus.SLICES.values():
    assert of.hosts * of.chips_per_host == math.prod(map(int, of.topology.split("x")))


@given(st.text(min_size=1, max_size=120), st.integers(0, 10**6))
def test_names_are_those_of_rfc_1035(text, seed):
  run = runs.Run(Point(text, {}, {}), seed, runs.Path("runs") / str(seed), ())
  name = names.of_run(run)
  assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
  # A pod of the last host of the largest slice.
  assert len(f"{name}-slice-0-1000-abcde") <= 63
  other = runs.Run(run.point, seed, runs.Path("runs") / "elsewhere", ())
  assert names.of_run(other) != name


def test_manifests_are_rendered_as_the_schema_has_them(command):
  code, out, err = command(SWEEP, *GKE, "--dry_run", "--spot", "--service_account=writer")
  assert code == 0, err
  assert out.startswith("# node pool: ct5lp-hightpu-4t, topology 4x4, 4 nodes\n")
  made = list(yaml.safe_load_all(out))
  assert len({each["metadata"]["name"] for each in made}) == len(made) == 4
  for each in made:
    jobset.require_valid(each)
    job = each["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    assert each["spec"]["failurePolicy"] == {"maxRestarts": 1}
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
      "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
      "cloud.google.com/gke-tpu-topology": "4x4",
      "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert container["volumeMounts"][0]["mountPath"] == "/research/runs"
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "kept"
  assert container["command"][0] == "python"
  assert container["command"][-3:] == [
    "--config.does=fail",
    "--config.seed=1",
    "--config.directory=runs/study/fails/seed_1",
  ]


def test_the_schema_is_a_schema_and_refuses(command):
  jsonschema.Draft202012Validator.check_schema(jobset.SCHEMA)
  code, out, _ = command(SWEEP, *GKE, "--dry_run")
  made = next(iter(yaml.safe_load_all(out)))
  for path, value, told in (
    (("metadata", "name"), "Upper", "metadata.name"),
    (("metadata", "name"), "a" * 64, "metadata.name"),
    (("metadata", "colour"), "red", "colour"),
    (("spec", "failurePolicy", "maxRestarts"), "1", "maxRestarts"),
  ):
    wrong = yaml.safe_load(yaml.safe_dump(made))
    *parents, last = path
    at = wrong
    for key in parents:
      at = at[key]
    at[last] = value
    with pytest.raises(jobset.ConfigError, match=told):
      jobset.require_valid(wrong)


@pytest.mark.parametrize(
  ("flags", "told"),
  [
    (("--on=gke", "--tpu=v6e-4"), "--on=gke needs --image"),
    ((*GKE, "--tpu=v6e-5"), "no such slice; did you mean 'v6e-"),
    ((*GKE, "--zone=z"), "--zone is of tpu_vm, not of --on=gke"),
    ((*GKE, "--namespace=Upper"), "the JobSet's $.metadata.namespace"),
    ((*GKE, "--directory=/runs"), "/runs is not within the working directory"),
    ((*TPU_VM, "--directory=../runs"), "../runs is not within the working directory"),
    ((*TPU_VM, "--tpu=v6e-16"), "--tpu=v6e-16 has 4 hosts"),
    (("--cpus=2",), "--cpus is of ray, not of --on=local"),
    (("--on=tpu_vm", "--cpu_sets"), "--cpu_sets is of local, not of --on=tpu_vm"),
  ],
)
def test_options_that_do_not_fit_are_told(command, flags, told):
  code, _, err = command(SWEEP, *flags, "--dry_run")
  assert code == 2 and err.count("\n") == 1 and told in err


# Synopses of cloud.google.com/sdk/gcloud/reference/compute/tpus/{queued-resources,tpu-vm}: what of
# them is ours.
PUBLISHED = {
  "queued-resources create": {
    "zone", "project", "node-id", "accelerator-type", "runtime-version", "spot",
  },
  "queued-resources describe": {"zone", "project", "format"},
  "queued-resources delete": {"zone", "project", "force", "quiet"},
  "tpu-vm ssh": {"zone", "project", "worker", "command"},
  "tpu-vm scp": {"zone", "project", "worker"},
}  # fmt: skip


def test_scripts_are_of_published_commands(command):
  code, out, err = command(
    SWEEP, *TPU_VM, "--tpu=v6e-16", "--dry_run", "--spot", "--project=mine", "--bucket=kept"
  )
  assert code == 0, err
  found = [
    shlex.split(line.removesuffix("& wait $!"))
    for line in re.findall(r"gcloud [^\n]*?(?=\)?$)", out, re.MULTILINE)
  ]
  assert len(found) == 4 * 7
  for _, compute, tpu, group, verb, *arguments in found:
    assert (compute, tpu) == ("compute", "tpus")
    flags = {argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")}
    assert flags <= PUBLISHED[f"{group} {verb}"] and {"zone", "project"} <= flags
  create = next(words for words in found if "create" in words)
  assert {"--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e", "--spot"} <= set(create)
  assert f"--node-id={create[5]}" in create
  train = next(words for words in found if any("trainer.py" in word for word in words))
  assert "--worker=all" in train
  assert "gcsfuse --implicit-dirs kept runs" in train[7] and train[7].endswith(" --distributed")


KUBECTL = """
import json, pathlib, subprocess, sys, yaml
state = pathlib.Path("cluster.json")
there = json.loads(state.read_text()) if state.exists() else {}
verb = sys.argv[2]
down = pathlib.Path("down")
if verb == "get" and there and down.exists() and int(down.read_text()):
  down.write_text(str(int(down.read_text()) - 1))
  sys.exit("no route to host")
with open("kubectl.log", "a") as log:
  log.write(" ".join(sys.argv[1:]) + "\\n")
if verb == "apply":
  for made in yaml.safe_load_all(sys.stdin):
    name, spec = made["metadata"]["name"], made["spec"]["replicatedJobs"][0]["template"]["spec"]
    command = spec["template"]["spec"]["containers"][0]["command"]
    tries = made["spec"]["failurePolicy"]["maxRestarts"] + 1
    pathlib.Path("pod").mkdir(exist_ok=True)
    code = min(subprocess.run([sys.executable, *command[1:]], cwd="pod").returncode
               for _ in range(tries))
    end = {"type": "Failed" if code else "Completed", "status": "True", "message": "so it is"}
    made["status"] = {"conditions": [{"type": "StartupPolicyInProgress", "status": "True"}, end]}
    there[name] = made
elif verb == "delete":
  for name in sys.argv[4:]:
    there.pop(name, None)
elif verb == "get":
  print(json.dumps({"items": list(there.values())}))
state.write_text(json.dumps(there))
"""
GCLOUD = """
import os, pathlib, shutil, subprocess, sys
with open("gcloud.log", "a") as log:
  log.write(" ".join(sys.argv[1:]) + "\\n")
words = sys.argv[1:]
if words[:2] == ["storage", "rsync"] and "BROKEN" in os.environ:
  sys.exit("no such bucket")
elif words[:2] == ["storage", "rsync"]:
  source = pathlib.Path("pod/runs") / words[2].removeprefix("gs://kept/")
  shutil.copytree(source, words[3], dirs_exist_ok=True)
elif "describe" in words:
  print(os.environ.get("STATE", "ACTIVE"))
elif "ssh" in words:
  pathlib.Path("host/research").mkdir(parents=True, exist_ok=True)
  (told,) = [word for word in words if word.startswith("--command=")]
  sys.exit(subprocess.run(["bash", "-c", told.partition("=")[2]], cwd="host").returncode)
elif "scp" in words:
  shutil.copy("host/" + words[4].partition(":")[2], words[5])
"""


@pytest.fixture
def cloud(world, monkeypatch):
  """A kubectl whose pods run at once, and a gcloud whose hosts are a directory."""
  (world / "bin").mkdir()
  for name, text in (("kubectl", KUBECTL), ("gcloud", GCLOUD)):
    file = world / "bin" / name
    file.write_text(f"#!{runs.sys.executable}\n{text}")
    file.chmod(0o755)
  monkeypatch.setenv("PATH", f"{world / 'bin'}:{runs.os.environ['PATH']}")
  monkeypatch.setattr(gke.Gke, "poll_seconds", 0.05)
  return world


def test_jobsets_are_applied_waited_for_and_fetched(cloud, command):
  code, out, err = command(SWEEP, *GKE)
  assert code == 1, err
  assert out.count("complete ") == 2 and "failed: so it is (kubectl logs --selector=" in out
  root = cloud / "runs" / "study"
  assert (root / "ends" / "seed_1" / "results.json").exists()
  assert "2 of 2 failed" in (root / "REPORT.md").read_text()
  pods = cloud / "pod" / "runs" / "study" / "fails" / "seed_0" / "starts.txt"
  assert len(pods.read_text().splitlines()) == 2
  # Again: those that failed are replaced; those that are complete are left alone.
  command(SWEEP, *GKE)
  log = (cloud / "kubectl.log").read_text().splitlines()
  assert sum(" apply " in line for line in log) == 2
  assert (
    sum(" delete jobset study-fails" in line or " delete jobset fails" in line for line in log) == 2
  )
  assert len(pods.read_text().splitlines()) == 4


def test_a_jobset_that_is_there_is_adopted(cloud, command):
  """As after the launching machine was switched off while it waited."""
  assert command(SWEEP, *GKE)[0] == 1
  (cloud / "runs" / "study" / "ends" / "seed_0" / "results.json").unlink()
  code, out, _ = command(SWEEP.replace("'fails': {'does': 'fail'}", ""), *GKE)
  assert code == 0 and "complete  ends/seed_0" in out
  assert (cloud / "kubectl.log").read_text().count(" apply ") == 1


def test_a_cluster_that_does_not_answer_is_asked_again(cloud, command, monkeypatch):
  text = SWEEP.replace("'fails': {'does': 'fail'}", "")
  (cloud / "down").write_text("3")
  assert command(text, *GKE)[0] == 0 and (cloud / "down").read_text() == "0"
  monkeypatch.setattr(gke, "_FORGIVEN", 1)
  (cloud / "down").write_text("9")
  (cloud / "cluster.json").unlink()
  code, _, err = command(text, *GKE, "--directory=runs/new")
  assert code == 2 and "error: kubectl --namespace=default get jobset: no route to host" in err
  assert (cloud / "down").read_text() == "7"


def test_figures_that_could_not_be_fetched_are_fetched_by_the_same_command(
  cloud, command, monkeypatch
):
  text = SWEEP.replace("'fails': {'does': 'fail'}", "")
  monkeypatch.setenv("BROKEN", "1")
  code, out, _ = command(text, *GKE)
  assert code == 1 and "is complete, but gcloud storage rsync" in out and "no such bucket" in out
  monkeypatch.delenv("BROKEN")
  assert command(text, *GKE)[0] == 0
  assert (cloud / "kubectl.log").read_text().count(" apply ") == 1


def test_scripts_ask_train_fetch_and_give_back(cloud, command):
  setup = "--setup=mkdir -p research/checkpoints"
  code, out, err = command(SWEEP, *TPU_VM[:-1], setup, "--parallel=2", "--tries=1")
  assert code == 1, err
  assert out.count("complete ") == 2 and "RuntimeError: no such luck" in out
  assert (cloud / "runs" / "study" / "ends" / "seed_0" / "results.json").exists()
  log = (cloud / "gcloud.log").read_text().splitlines()
  created = [line.split()[4] for line in log if "queued-resources create" in line]
  deleted = [line.split()[4] for line in log if "queued-resources delete" in line]
  assert len(created) == 4 and sorted(created) == sorted(deleted)
  assert not list(cloud.glob("runs/**/*.tar.gz"))


def test_a_slice_that_is_not_given_is_told(cloud, command, monkeypatch):
  monkeypatch.setenv("STATE", "FAILED")
  code, out, _ = command(SWEEP, *TPU_VM, "--tries=1")
  assert code == 1 and "error: the queued resource is FAILED" in out
  assert (cloud / "gcloud.log").read_text().count("queued-resources delete") == 4
