"""The templates of examples/cluster say what the programs they start understand, and agree.

No cluster is at hand: what one machine can check is checked, and nothing else is known.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import tfclip
from tfclip import cli

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "cluster"
NO_MANIFEST = "runtime-env.yaml"
OURS = f"registry.example/tfclip:{tfclip.__version__}"
GPU = "nvidia.com/gpu"


def manifests() -> list[dict[str, Any]]:
    files = sorted(path for path in FOLDER.glob("*.yaml") if path.name != NO_MANIFEST)
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def find(kind: str, name: str) -> dict[str, Any]:
    (found,) = (m for m in manifests() if (m["kind"], m["metadata"]["name"]) == (kind, name))
    return found


def pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the specs of the pods that come of a manifest, ours to write."""
    spec = manifest["spec"]
    if manifest["kind"] == "Job":
        yield spec["template"]["spec"]
    elif manifest["kind"] == "RayJob":
        cluster = spec["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield group["template"]["spec"]


def containers() -> list[dict[str, Any]]:
    return [one for m in manifests() for pod in pods(m) for one in pod["containers"]]


def read(command: list[str]) -> argparse.Namespace:
    """Read a command of tfclip as tfclip does, without running it."""
    assert command[0] == "tfclip"
    return cli._build_parser().parse_args(command[1:])


def lies_in_a_volume(path: str, pod: dict[str, Any], *, written: bool) -> bool:
    mounts = pod["containers"][0]["volumeMounts"]
    return any(
        path.startswith(f"{mount['mountPath']}/") and not (written and mount.get("readOnly"))
        for mount in mounts
    )


# --- files ---------------------------------------------------------------------------------------


def test_every_manifest_says_what_it_is_and_names_are_unique():
    names = []
    for manifest in manifests():
        assert re.fullmatch(r"(v1|[a-z.]+/v1(beta1)?)", manifest["apiVersion"])
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", manifest["metadata"]["name"])
        names.append((manifest["kind"], manifest["metadata"]["name"]))
    assert len(set(names)) == len(names)
    assert {kind for kind, _ in names} == {
        *("Job", "Milvus", "PersistentVolumeClaim", "RayJob", "Service")
    }


def test_images_and_packages_are_pinned_and_ray_is_one_version():
    assert {container["image"] for container in containers()} == {OURS}
    milvus = find("Milvus", "tfclip")["spec"]["components"]["image"]
    assert re.fullmatch(r"milvusdb/milvus:v\d+\.\d+\.\d+", milvus)
    docker = (FOLDER / "Dockerfile").read_text()
    assert f"-t {OURS} ." in docker
    base = re.search(r"^FROM rayproject/ray:([\d.]+)-py\d+-gpu$", docker, re.M)
    assert base
    version = base[1]
    assert f"ray[data]=={version}" in docker
    assert find("RayJob", "tfclip-encode")["spec"]["rayClusterSpec"]["rayVersion"] == version
    project = (ROOT / "pyproject.toml").read_text()
    least = re.search(r"ray\[data\]>=([\d.]+)", project)
    assert least
    assert [int(n) for n in version.split(".")] >= [int(n) for n in least[1].split(".")]
    packages = yaml.safe_load((FOLDER / NO_MANIFEST).read_text())["pip"]
    assert all(re.fullmatch(r"[a-z0-9]+(\[[a-z,]+\])?==[\d.]+", name) for name in packages)
    assert f"tfclip[ray,table]=={tfclip.__version__}" in packages
    extras = re.search(r"/opt/tfclip\[([a-z,]+)\]", docker)
    assert extras
    assert all(re.search(rf"^{extra} = \[", project, re.M) for extra in extras[1].split(","))


# --- commands ------------------------------------------------------------------------------------


def test_the_job_of_ray_encodes_with_every_gpu_and_writes_where_it_lasts():
    job = find("RayJob", "tfclip-encode")["spec"]
    options = read(shlex.split(job["entrypoint"]))
    assert (options.ray, options.device) == ("auto", "cuda")
    head, workers = pods(find("RayJob", "tfclip-encode"))
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    gpus = [pod["containers"][0]["resources"]["limits"][GPU] for pod in (head, workers)]
    assert options.actors == gpus[0] + group["replicas"] * gpus[1]
    cores = {int(pod["containers"][0]["resources"]["limits"]["cpu"]) for pod in (head, workers)}
    assert cores == {options.workers}
    assert lies_in_a_volume(str(options.out), head, written=True)
    assert lies_in_a_volume(options.model, head, written=False)
    assert options.source.startswith("s3://")


def test_what_was_encoded_is_what_is_added_to_the_gallery_of_milvus():
    encode = read(shlex.split(find("RayJob", "tfclip-encode")["spec"]["entrypoint"]))
    (pod,) = pods(find("Job", "tfclip-load"))
    container = pod["containers"][0]
    options = read([*container["command"], *container["args"]])
    assert options.files == [encode.out]
    assert lies_in_a_volume(str(options.files[0]), pod, written=False)
    assert options.replace, "a job that is tried again must not stop at its own rows"
    service = f"{find('Milvus', 'tfclip')['metadata']['name']}-milvus"  # as the operator calls it
    assert options.gallery == f"http://{service}:19530"


def test_commands_in_comments_are_understood():
    for file in FOLDER.glob("*.yaml"):
        for named in re.findall(r"-f (\S+\.yaml)", file.read_text()):
            assert (FOLDER / named).exists()
    comment = re.sub(r"^#", "", (FOLDER / NO_MANIFEST).read_text(), flags=re.M)
    submit, _, command = comment.partition(" -- \\\n")
    assert f"--runtime-env {NO_MANIFEST}" in submit
    options = read(shlex.split(command.partition("\n\n")[0]))
    assert (options.ray, options.actors) == ("auto", 9)


def test_torchrun_and_the_training_script_understand_every_pod(monkeypatch):
    launcher = importlib.import_module("torch.distributed.run")
    monkeypatch.syspath_prepend(ROOT / "examples")
    train = importlib.import_module("train")
    job, (pod,) = find("Job", "tfclip-train"), pods(find("Job", "tfclip-train"))
    container = pod["containers"][0]
    assert container["command"] == ["torchrun"]
    nodes = job["spec"]["completions"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["parallelism"] == nodes, "all must run at once"
    for index in range(nodes):
        args = [arg.replace("$(JOB_COMPLETION_INDEX)", f"{index}") for arg in container["args"]]
        options = launcher.parse_args(args)
        assert (options.nnodes, options.node_rank) == (f"{nodes}", index)
        assert options.nproc_per_node == f"{container['resources']['limits'][GPU]}"
        # Pod 0 of an Indexed Job, in the domain of the headless service
        assert options.master_addr == f"{job['metadata']['name']}-0.{pod['subdomain']}"
        script = Path(options.training_script).relative_to("/opt/tfclip")
        assert (ROOT / script).is_file()
        assert "COPY --chown=ray . /opt/tfclip\n" in (FOLDER / "Dockerfile").read_text()
        training = train.parse(options.training_script_args)
        processes = nodes * int(options.nproc_per_node)
        recipe = train.Recipe(**training.settings["recipe"])
        assert recipe.identities_per_batch % processes == 0
        assert lies_in_a_volume(training.out, pod, written=True)
        assert lies_in_a_volume(training.root, pod, written=False)
        assert lies_in_a_volume(training.init, pod, written=False)


# --- agreement -----------------------------------------------------------------------------------


def test_every_container_asks_for_what_it_may_use():
    components = find("Milvus", "tfclip")["spec"]["components"].values()
    parts = [part for part in components if isinstance(part, dict)]
    assert len(parts) == 5
    for one in (*containers(), *parts):
        resources = one["resources"]
        assert resources["requests"] == resources["limits"]  # of GPUs Kubernetes wants it
        assert {"cpu", "memory"} <= resources["limits"].keys()


def test_query_nodes_hold_the_vectors_that_are_promised(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    plan = importlib.import_module("plan_scale")
    node = find("Milvus", "tfclip")["spec"]["components"]["queryNode"]
    ram = float(node["resources"]["limits"]["memory"].removesuffix("Gi"))
    promised = re.search(
        r"take HNSW of (\d+) million vectors", (FOLDER / "milvus.yaml").read_text()
    )
    assert promised
    inputs = plan.Inputs(ram=ram)
    count = int(promised[1]) * 10**6
    assert plan.machines(inputs, plan.hnsw_bytes(inputs, count)) == node["replicas"]


def test_services_lead_to_the_ports_of_their_pods():
    service, job = find("Service", "tfclip-train"), find("Job", "tfclip-train")
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    (pod,) = pods(job)
    assert pod["subdomain"] == service["metadata"]["name"]
    (port,) = service["spec"]["ports"]
    (opened,) = pod["containers"][0]["ports"]
    assert port["targetPort"] == opened["name"]
    assert port["port"] == opened["containerPort"]
    assert f"--master-port={port['port']}" in pod["containers"][0]["args"]


def test_every_mount_has_its_volume_and_every_claim_is_made():
    claims = {m["metadata"]["name"] for m in manifests() if m["kind"] == "PersistentVolumeClaim"}
    used = set()
    for manifest in manifests():
        for pod in pods(manifest):
            volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
            for container in pod["containers"]:
                mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
                assert mounts == volumes.keys()
            used |= {
                volume["persistentVolumeClaim"]["claimName"]
                for volume in volumes.values()
                if "persistentVolumeClaim" in volume
            }
    assert used == claims


# --- schemas -------------------------------------------------------------------------------------


def as_core_kinds(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what Kubernetes itself has schemas of: a manifest of its own, or pods of another's."""
    if "." not in manifest["apiVersion"].partition("/")[0]:
        yield manifest
    for pod in pods(manifest):
        about = {"metadata": {"name": "pod"}, "spec": pod}
        yield {"apiVersion": "v1", "kind": "Pod", **about}


@pytest.mark.slow
def test_core_kinds_fit_the_schemas_of_kubernetes():
    reason = "the schemas of Kubernetes are not installed"
    checker = pytest.importorskip("kubernetes_validate", reason=reason)
    checked = [core for manifest in manifests() for core in as_core_kinds(manifest)]
    assert len(checked) == 9  # 2 claims, 1 service, 2 jobs, and 4 pods
    version = checker.latest_version()
    for core in checked:
        checker.validate(core, version, strict=True)
    wrong = copy.deepcopy(find("Job", "tfclip-train"))
    wrong["spec"]["template"]["spec"]["restartPolicy"] = ["OnFailure"]
    with pytest.raises(checker.ValidationError):
        checker.validate(wrong, version, strict=True)


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")
def test_ray_accepts_the_environment_of_a_job():
    environments = pytest.importorskip("ray.runtime_env", reason="the extra 'ray' is missing")
    fields = yaml.safe_load((FOLDER / NO_MANIFEST).read_text())
    assert environments.RuntimeEnv(**fields)["pip"]["packages"] == fields["pip"]
    with pytest.raises(ValueError, match="pip"):
        environments.RuntimeEnv(**fields, conda="base")
