"""What no schema sees: names that lead nowhere, arguments that do not fit, patches that no pod can take."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from app.stages.status import WEBHOOK
from tests.cluster.argo import (
    ENDS,
    POOLS,
    UnknownTag,
    retries,
    substitute,
    tags,
    tasks_of,
    templates_of,
    workflow_parameters,
)
from tests.cluster.documents import ROOT, Document, StrictLoader, strict_json
from tests.cluster.schemas import kubernetes_problems

KEYS_OF_GROUP = {"group", "method", "seed", "pretrain", "trained", "frozen"}  # of groups.json, by `plan --out`
FILES_OF_PLAN = {"report", "run-id", "jobs-per-pod", "groups.json", "summary.json"}
READ_BY_CLIENT = {"report"}  # of the plan's outputs, by app/cluster/argo.py
READ_BY_WATCH = {"pending-minutes"}  # of the workflow's parameters, by app/stages/watch.py
FILES_OF_REPORT = {"index.html"}
GLOBALS = {"workflow.name", "workflow.namespace", "workflow.uid"}
IN_METRICS = {"status"}  # of the pod that has ended
PULL_POLICIES = {"Always", "IfNotPresent", "Never"}
RESOURCES = {"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu", "storage", "pods", "persistentvolumeclaims"}
# How a pod may end, as Argo words it, and whether another try is worth it: phase, message, exit code.
WORTH_A_TRY = {
    ("Error", "pod deleted", -1): True,
    ("Error", "", -1): True,
    ("Failed", "The node was low on resource: memory. Threshold quantity: 100Mi", 1): True,
    ("Failed", "Pod was terminated in response to imminent node shutdown.", 143): True,
    ("Failed", "Preempted in order to admit critical pod", 1): True,
    ("Failed", "Pod was evicted", 1): True,
    ("Failed", "Error (exit code 69)", 69): True,
    ("Failed", "Error (exit code 75)", 75): True,
    ("Failed", "Error (exit code 137)", 137): True,
    ("Failed", "Error (exit code 143)", 143): True,
    ("Failed", "OOMKilled (exit code 137)", 137): False,
    ("Failed", "Error (exit code 2)", 2): False,
    ("Failed", "Error (exit code 66)", 66): False,
    ("Failed", "Error (exit code 70)", 70): False,
    ("Failed", "Error (exit code 76)", 76): False,
    ("Failed", "Pod was active on the node longer than the specified deadline", -1): False,
    ("Failed", "Pod was active on the node longer than the specified deadline", 75): False,
    ("Error", 'pods "x" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation', -1): False,
    ("Error", 'Pod "x" is invalid: spec.containers[0].resources.requests: Invalid value: "3Gi"', -1): False,
    ("Error", "Error applying PodSpecPatch: invalid character", -1): False,
    ("Error", "Get https://10.96.0.1:443/api/v1/…: context deadline exceeded", -1): True,
}
WEBHOOK_SECRET = {"name": "byol-webhook", "key": "url", "optional": True}
QUANTITIES = ("requests", "limits", "default", "defaultRequest", "hard")
CLUSTER_WIDE = {"Namespace", "PriorityClass"}
NAMESPACES = {"kube-system", "argo"}
PLACES = ("/scratch", "/dev/shm")
RBAC = "rbac.authorization.k8s.io"
S3_VARIABLES = {
    *("AWS_REGION", "AWS_ENDPOINT_URL_S3", "AWS_STS_REGIONAL_ENDPOINTS", "AWS_REQUEST_CHECKSUM_CALCULATION"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
}
# Argo's artifact repository is YAML inside a ConfigMap, which no CRD describes.
REPOSITORY = {"archiveLogs", "s3"}
REPOSITORY_S3 = {
    *("bucket", "endpoint", "region", "insecure", "keyFormat", "useSDKCreds", "accessKeySecret", "secretKeySecret"),
}


class Cluster:
    """The objects of one overlay, by kind and name."""

    def __init__(self, objects: list[Document]) -> None:
        self.objects = objects
        self.by_kind: dict[str, dict[str, Document]] = {}
        for item in objects:
            self.by_kind.setdefault(item["kind"], {})[item["metadata"]["name"]] = item

    @functools.cached_property
    def text(self) -> str:
        """All objects as one string, to be compared."""
        return json.dumps(self.objects)

    def get(self, kind: str, name: str) -> Document | None:
        return self.by_kind.get(kind, {}).get(name)

    def data(self, kind: str, name: str) -> dict[str, str]:
        """Keys and values of a ConfigMap or Secret."""
        found = self.get(kind, name) or {}
        return {**found.get("data", {}), **found.get("stringData", {})}

    @property
    def config_maps(self) -> dict[str, dict[str, str]]:
        return {name: item.get("data", {}) for name, item in self.by_kind.get("ConfigMap", {}).items()}


def walk(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every node of a tree with its path."""
    yield path, tree
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from walk(value, (*path, key))


def cache_folder() -> str:
    """Where the image keeps its caches."""
    [folder] = re.findall(r"\bXDG_CACHE_HOME=(\S+)", (ROOT / "Dockerfile").read_text("utf-8"))
    return str(folder)


# --- workflows --------------------------------------------------------------------------------------


def workflow_problems(document: Document, cluster: Cluster, known_parameters: set[str]) -> Iterator[str]:
    """Problems of a Workflow or WorkflowTemplate in a cluster.

    Args:
        document: the workflow.
        cluster: what is there beside it.
        known_parameters: keys of the ConfigMap with defaults that some overlay or component sets.
    """
    spec = document["spec"]
    templates = {template["name"]: template for template in templates_of(spec)}
    if len(templates) < len(spec["templates"]):
        yield "two templates have one name"
    parameters = {parameter["name"] for parameter in spec["arguments"]["parameters"]}
    yield from _namespace(document, cluster)
    yield from _parameter_problems(spec, cluster, known_parameters)
    yield from _account_problems(spec, cluster)
    for field in ("entrypoint", "onExit"):
        if spec.get(field) not in templates:
            yield f"{field}: no template {spec.get(field)!r}"
    used = {spec.get("entrypoint"), spec.get("onExit")}
    volumes = {volume["name"] for volume in spec["volumes"]}
    mounted = set()
    labels = spec.get("podMetadata", {}).get("labels", {})
    referred = {tag for text in (*labels, *labels.values()) for tag in tags(text)}
    yield from (
        f"podMetadata: {{{{{tag}}}}} is not defined"
        for tag in sorted(referred - {f"workflow.parameters.{parameter}" for parameter in parameters})
    )
    for name, template in templates.items():
        scope = GLOBALS | {f"workflow.parameters.{parameter}" for parameter in parameters}
        inputs = {parameter["name"] for parameter in template.get("inputs", {}).get("parameters", [])}
        scope |= {f"inputs.parameters.{parameter}" for parameter in inputs}
        if name == spec.get("onExit"):
            scope |= {"workflow.status", "workflow.failures"}
        body = {key: value for key, value in template.items() if key not in ("dag", "inputs", "metrics")}
        seen = {tag for _, node in walk(body) if isinstance(node, str) for tag in tags(node)}
        measured = {tag for _, node in walk(template.get("metrics")) if isinstance(node, str) for tag in tags(node)}
        yield from (f"{name}: metrics: {{{{{tag}}}}} is not defined" for tag in sorted(measured - scope - IN_METRICS))
        if "dag" in template:
            used |= {task.get("template") for task in template["dag"]["tasks"]}
            yield from (f"{name}: {line}" for line in _dag_problems(template["dag"], templates, scope))
            seen |= {tag for _, node in walk(template["dag"]) if isinstance(node, str) for tag in tags(node)}
        elif "suspend" in template:
            continue  # its inputs are what it shows
        else:
            # of the parameters of all pods, one that only GPU pods have is looked at in their branch alone
            known = scope | ({"inputs.parameters.gpus"} if _pools(template) == ("cpu",) else set())
            yield from (f"{name}: {{{{{tag}}}}} is not defined" for tag in sorted(seen - known))
            yield from (f"{name}: {line}" for line in _container_problems(template, spec, cluster))
            mounted |= {mount["name"] for mount in template["container"].get("volumeMounts", [])}
        referred |= seen
        yield from (f"{name}: input {i} is never used" for i in sorted(inputs) if f"inputs.parameters.{i}" not in seen)
    yield from (f"template {name} is never used" for name in sorted(templates.keys() - used))
    yield from (f"volume {name} is never mounted" for name in sorted(volumes - mounted))
    yield from (f"volume {name} does not exist" for name in sorted(mounted - volumes))
    for volume in spec["volumes"]:
        if "configMap" in volume and cluster.get("ConfigMap", volume["configMap"].get("name", "")) is None:
            yield f"volume {volume['name']}: no ConfigMap {volume['configMap']}"
    for parameter in sorted(parameters - READ_BY_WATCH):
        if f"workflow.parameters.{parameter}" not in referred:
            yield f"parameter {parameter} is never used"
    yield from _output_problems(templates, referred)
    job = {"app.kubernetes.io/component": "job"}
    if not job.items() <= spec.get("podMetadata", {}).get("labels", {}).items():
        yield f"podMetadata: without {job} no network policy lets the pods out"


def _parameter_problems(spec: Document, cluster: Cluster, known: set[str]) -> Iterator[str]:
    names = [parameter["name"] for parameter in spec["arguments"]["parameters"]]
    yield from (f"parameter {name} is there twice" for name in sorted({n for n in names if names.count(n) > 1}))
    for parameter in spec["arguments"]["parameters"]:
        name = parameter["name"]
        if source := parameter.get("valueFrom", {}).get("configMapKeyRef"):
            config_map = cluster.get("ConfigMap", source["name"])
            label = "workflows.argoproj.io/configmap-type"
            if config_map is None or config_map["metadata"].get("labels", {}).get(label) != "Parameter":
                yield f"parameter {name}: no ConfigMap {source['name']} labelled {label}: Parameter"
            if source["key"] not in known:
                yield f"parameter {name}: no overlay has a key {source['key']}"
            if "default" not in parameter["valueFrom"]:
                yield f"parameter {name} has no default"
        elif "value" not in parameter:
            yield f"parameter {name} has no value"
        if "enum" in parameter and parameter.get("value") not in parameter["enum"]:
            yield f"parameter {name}: {parameter.get('value')} is none of its choices"


def _account_problems(spec: Document, cluster: Cluster) -> Iterator[str]:
    for account in (spec.get("serviceAccountName"), spec.get("executor", {}).get("serviceAccountName")):
        if cluster.get("ServiceAccount", str(account)) is None:
            yield f"no service account {account}"
    if cluster.get("Secret", f"{spec.get('executor', {}).get('serviceAccountName')}.service-account-token") is None:
        yield "the executor's service account has no token"
    if cluster.get("PriorityClass", str(spec.get("podPriorityClassName"))) is None:
        yield f"no priority class {spec.get('podPriorityClassName')}"
    reference = spec.get("artifactRepositoryRef", {})
    if reference.get("key") not in cluster.data("ConfigMap", str(reference.get("configMap"))):
        yield f"no artifact repository {reference}"


def _dag_problems(dag: Document, templates: Mapping[str, Document], scope: set[str]) -> Iterator[str]:
    tasks = {task["name"]: task for task in dag["tasks"]}
    if len(tasks) < len(dag["tasks"]):
        yield "two tasks have one name"
    before: dict[str, set[str]] = {}
    for name in tasks:  # ancestors, to a fixed point; a task that is its own ancestor is in a circle
        before[name] = tasks_of(tasks[name].get("depends", ""))
    for _ in tasks:
        before = {n: b | {far for near in b for far in before.get(near, ())} for n, b in before.items()}
    for name, task in tasks.items():
        ends = re.findall(r"[A-Za-z][\w-]*\.(\w+)", task.get("depends", ""))
        yield from (f"{name}: no task {other}" for other in sorted(before[name] - tasks.keys()))
        yield from (f"{name}: a task cannot end as {end}" for end in sorted(set(ends) - ENDS))
        if name in before[name]:
            yield f"{name} waits for itself"
        template = templates.get(str(task.get("template")))
        if template is None:
            yield f"{name}: no template {task.get('template')!r}"
            continue
        taken = {parameter["name"]: parameter for parameter in template.get("inputs", {}).get("parameters", [])}
        given = [parameter["name"] for parameter in task.get("arguments", {}).get("parameters", [])]
        yield from (f"{name}: {template['name']} takes no {extra}" for extra in sorted(set(given) - taken.keys()))
        needed = {key for key, parameter in taken.items() if "value" not in parameter}
        yield from (f"{name}: {template['name']} needs {lost}" for lost in sorted(needed - set(given)))
        if len(set(given)) < len(given):
            yield f"{name}: an argument is given twice"
        outputs = {
            f"tasks.{other}.outputs.parameters.{parameter['name']}"
            for other in before[name] & tasks.keys()
            for parameter in templates.get(tasks[other].get("template", ""), {})
            .get("outputs", {})
            .get("parameters", [])
        }
        visible = scope | outputs
        items = {f"item.{key}" for key in KEYS_OF_GROUP} if "withParam" in task else set()
        items |= {"item"} if "withSequence" in task else set()
        looked_at = (("withParam", visible), ("withSequence", visible), ("when", visible))
        for field, allowed in (("arguments", visible | items), *looked_at):
            for _, node in walk(task.get(field)):
                if isinstance(node, str):
                    yield from (f"{name}: {{{{{tag}}}}} is not defined" for tag in tags(node) if tag not in allowed)
        if items and not any(
            tag in items for _, node in walk(task.get("arguments")) if isinstance(node, str) for tag in tags(node)
        ):
            yield f"{name}: fans out, and all its pods do the same"


def _container_problems(template: Document, spec: Document, cluster: Cluster) -> Iterator[str]:
    container = template["container"]
    if container.get("imagePullPolicy") not in PULL_POLICIES:
        yield f"imagePullPolicy {container.get('imagePullPolicy')}"
    if container.get("command") != ["python", "-m", "app"]:
        yield f"command {container.get('command')}"
    for source in container.get("envFrom", []):
        for kind, field in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            if field in source:
                name, optional = source[field].get("name"), source[field].get("optional", False)
                if cluster.get(kind, str(name)) is None and not (optional and name == "byol-s3-credentials"):
                    yield f"no {kind} {name}"
    for variable in container.get("env", []):
        if (variable["name"], variable.get("valueFrom", {}).get("secretKeyRef")) != (WEBHOOK, WEBHOOK_SECRET):
            yield f"env {variable}"
    paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
    if len(set(paths)) < len(paths):
        yield "two volumes are mounted at one place"
    if not {*PLACES, cache_folder()} <= set(paths):
        yield f"{', '.join(PLACES)} and {cache_folder()} have to be mounts: the root file system is read-only"
    for ending, wanted in WORTH_A_TRY.items():
        try:
            if retries(template.get("retryStrategy", {}).get("expression", ""), *ending) != wanted:
                yield f"retryStrategy: {'no' if wanted else 'a'} try after {ending}"
        except UnknownTag as error:
            yield f"retryStrategy: Argo knows no {error}"
            break
    if (name := template.get("priorityClassName")) and cluster.get("PriorityClass", name) is None:
        yield f"no priority class {name}"
    yield from _lock_problems(template, spec, cluster)
    yield from _patch_problems(template, spec, cluster)


def _pools(template: Document) -> tuple[str, ...]:
    """The kinds of nodes that a template's pods may run on."""
    own = {p["name"]: p.get("value") for p in template.get("inputs", {}).get("parameters", [])}.get("pool")
    return POOLS if own is None else (own,)


def _lock_problems(template: Document, spec: Document, cluster: Cluster) -> Iterator[str]:
    """Every choice has a lock, and no pod takes two: a failed double lock stops a namespace (Argo 4.1)."""
    semaphores = template.get("synchronization", {}).get("semaphores", [])
    if len(semaphores) > 1:
        yield "two semaphores"
    enums = {p["name"]: p.get("enum", [p.get("value")]) for p in spec["arguments"]["parameters"]}
    for semaphore in semaphores:
        reference = semaphore["configMapKeyRef"]
        for pool, device, concurrency in itertools.product(_pools(template), enums["device"], enums["concurrency"]):
            values = workflow_parameters(
                spec, cluster.config_maps, {"device": device, "gpus": "1", "concurrency": concurrency}
            )
            try:
                key = substitute(reference["key"], values | {"inputs.parameters.pool": pool})
            except UnknownTag as error:
                yield f"semaphore: {error} is not defined"
                continue
            if not cluster.data("ConfigMap", reference["name"]).get(key, "").isdigit():
                yield f"semaphore: ConfigMap {reference['name']} has no number {key}"


def _patch_problems(template: Document, spec: Document, cluster: Cluster) -> Iterator[str]:
    """A pod that the patch is merged into must pass the strict schema, on any node, for a GPU by name and for any."""
    own = {p["name"]: str(p["value"]) for p in template.get("inputs", {}).get("parameters", []) if "value" in p}
    for product, pool in itertools.product(("", "NVIDIA-L4"), _pools(template)):
        values = workflow_parameters(spec, cluster.config_maps, {"gpu-product": product})
        try:
            inputs = {f"inputs.parameters.{key}": substitute(value, values) for key, value in own.items()}
            values |= inputs | {"inputs.parameters.pool": pool}
            patch = strict_json(substitute(template["podSpecPatch"], values))
        except (ValueError, UnknownTag, KeyError) as error:
            yield f"podSpecPatch: {error}"
            return
        containers = {c.get("name"): c for c in (*patch.get("initContainers", []), *patch.get("containers", []))}
        if containers.keys() != {"init", "wait", "main"}:
            yield f"podSpecPatch: the containers' names are {sorted(map(str, containers))}"
            return
        for name in ("init", "wait"):
            # what Pod Security `restricted` asks for, and Argo leaves out
            if containers[name].get("securityContext") != {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }:
                yield f"podSpecPatch: Pod Security refuses the container {name}"
        resources = containers["main"].get("resources", {})
        if not {"cpu", "memory", "ephemeral-storage"} <= resources.get("requests", {}).keys():
            yield "podSpecPatch: requests lack CPUs, memory or disk"
        for volume in patch.get("volumes", []):
            if volume.pop("$retainKeys", None) not in (None, list(volume)):
                yield "podSpecPatch: $retainKeys has to name the keys of the volume"
            if volume.get("name") not in {v["name"] for v in spec["volumes"]}:
                yield f"podSpecPatch: no volume {volume.get('name')}"
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and cluster.get("PersistentVolumeClaim", claim) is None:
                yield f"podSpecPatch: no claim {claim}"
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": patch}
        yield from (f"podSpecPatch: {line}" for line in kubernetes_problems(pod))
        yield from (f"podSpecPatch: {line}" for line in quantity_problems(pod))
        if not {"terminationGracePeriodSeconds", "nodeSelector", "tolerations"} <= patch.keys():
            yield "podSpecPatch: grace, node selector and tolerations belong there"
        elif not int(values["workflow.parameters.grace-seconds"]) < patch["terminationGracePeriodSeconds"]:
            yield "podSpecPatch: the pod is killed before its job has used up its grace"


def _output_problems(templates: Mapping[str, Document], referred: set[str]) -> Iterator[str]:
    for name, template in templates.items():
        outputs = template.get("outputs", {})
        [*folders] = [
            arg.removeprefix("--out=")
            for arg in template.get("container", {}).get("args", [])
            if arg.startswith("--out=")
        ]
        files = FILES_OF_PLAN if name == "plan" else FILES_OF_REPORT
        entries = [(entry["name"], entry.get("valueFrom", {}).get("path")) for entry in outputs.get("parameters", [])]
        for parameter, path in entries:
            read = any(tag.endswith(f".outputs.parameters.{parameter}") for tag in referred)
            if not read and (name != "plan" or parameter not in READ_BY_CLIENT):
                yield f"{name}: output {parameter} is never used"
            if "default" not in next(e for e in outputs["parameters"] if e["name"] == parameter)["valueFrom"]:
                yield f"{name}: output {parameter} has no default"
            if parameter not in str(path):
                yield f"{name}: output {parameter} is read from {path}"
        for artifact in outputs.get("artifacts", []):
            entries.append((artifact["name"], artifact.get("path")))
            if "workflow.name" not in set(tags(artifact.get("s3", {}).get("key", ""))):
                yield f"{name}: artifact {artifact['name']} of two workflows would share a key"
        for output, path in entries:
            folder, _, file = str(path).rpartition("/")
            if folder not in folders or file not in files:
                yield f"{name}: nothing writes {path} for the output {output}"


def cron_problems(document: Document, templates: Mapping[str, Document], cluster: Cluster) -> Iterator[str]:
    """Problems of a CronWorkflow that names a WorkflowTemplate."""
    yield from _namespace(document, cluster)
    spec = document["spec"]["workflowSpec"]
    template = templates.get(spec.get("workflowTemplateRef", {}).get("name"))
    if template is None:
        yield f"no WorkflowTemplate {spec.get('workflowTemplateRef')}"
        return
    known = {parameter["name"] for parameter in template["spec"]["arguments"]["parameters"]}
    for parameter in spec.get("arguments", {}).get("parameters", []):
        if parameter["name"] not in known:
            yield f"{template['metadata']['name']} has no parameter {parameter['name']}"


# --- Kubernetes objects -----------------------------------------------------------------------------


def _namespace(document: Document, cluster: Cluster) -> Iterator[str]:
    namespace = document["metadata"].get("namespace")
    if document["kind"] not in CLUSTER_WIDE and cluster.get("Namespace", str(namespace)) is None:
        yield f"{document['kind']} {document['metadata'].get('name')}: no namespace {namespace}"


def quantity_problems(tree: Any) -> Iterator[str]:
    """Names of resources that Kubernetes does not know."""
    for path, node in walk(tree):
        if path and path[-1] in QUANTITIES and isinstance(node, dict):
            names = {name.removeprefix("requests.").removeprefix("limits.") for name in node}
            yield from (f"{'.'.join(map(str, path))}: no resource {name}" for name in sorted(names - RESOURCES))


def cluster_problems(cluster: Cluster, read_parameters: set[str], job_labels: Mapping[str, str]) -> Iterator[str]:
    """Problems between the objects of one overlay.

    Args:
        cluster: the objects.
        read_parameters: keys of the ConfigMap byol-parameters that the workflows read.
        job_labels: labels of the workflows' pods.
    """
    identities = [(item["kind"], item["metadata"]["name"]) for item in cluster.objects]
    yield from (f"{kind} {name} is there twice" for kind, name in {i for i in identities if identities.count(i) > 1})
    pods = [dict(job_labels)]
    for item in (*cluster.by_kind.get("StatefulSet", {}).values(), *cluster.by_kind.get("Deployment", {}).values()):
        pods.append(item["spec"]["template"]["metadata"]["labels"])
    for item in cluster.objects:
        where = f"{item['kind']} {item['metadata']['name']}"
        yield from (f"{where}: {line}" for line in _namespace(item, cluster))
        yield from (f"{where}: {line}" for line in quantity_problems(item))
        check = {
            "RoleBinding": _binding_problems,
            "Secret": _secret_problems,
            "StatefulSet": _stateful_problems,
            "Service": _service_problems,
        }.get(item["kind"])
        if check is not None:
            yield from (f"{where}: {line}" for line in check(item, cluster))
        if item["kind"] == "NetworkPolicy":
            yield from (f"{where}: {line}" for line in _policy_problems(item, cluster, pods))
    for key in sorted(cluster.data("ConfigMap", "byol-parameters").keys() - read_parameters):
        yield f"ConfigMap byol-parameters: no workflow reads {key}"
    yield from _s3_problems(cluster)


def _binding_problems(item: Document, cluster: Cluster) -> Iterator[str]:
    role = item["roleRef"]
    if cluster.get(role.get("kind", ""), role.get("name", "")) is None or role.get("apiGroup") != RBAC:
        yield f"no {role}"
    for subject in item["subjects"]:
        if cluster.get(subject.get("kind", ""), subject.get("name", "")) is None:
            yield f"no {subject}"
        if subject.get("namespace") != item["metadata"].get("namespace"):
            yield f"{subject} is in another namespace"


def _secret_problems(item: Document, cluster: Cluster) -> Iterator[str]:
    if item["type"] == "kubernetes.io/service-account-token":
        account = item["metadata"].get("annotations", {}).get("kubernetes.io/service-account.name")
        if cluster.get("ServiceAccount", str(account)) is None:
            yield f"no service account {account}"
        if item["metadata"]["name"] != f"{account}.service-account-token":
            yield "Argo looks for <account>.service-account-token"
    elif unknown := {*item.get("data", {}), *item.get("stringData", {})} - S3_VARIABLES:
        yield f"boto3 reads no {sorted(unknown)}"


def _stateful_problems(item: Document, cluster: Cluster) -> Iterator[str]:
    spec, pod = item["spec"], item["spec"]["template"]["spec"]
    if cluster.get("Service", spec["serviceName"]) is None:
        yield f"no service {spec['serviceName']}"
    if cluster.get("ServiceAccount", pod.get("serviceAccountName", "default")) is None:
        yield f"no service account {pod.get('serviceAccountName')}"
    if not spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items():
        yield "the selector does not select its own pods"
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    volumes |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    for container in pod["containers"]:
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        yield from (f"no volume {name}" for name in sorted(mounted - volumes))
        yield from (f"volume {name} is never mounted" for name in sorted(volumes - mounted))
        for source in container.get("envFrom", []):
            if cluster.get("Secret", source.get("secretRef", {}).get("name", "")) is None:
                yield f"no secret {source}"
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("readinessProbe", "livenessProbe"):
            if container[probe]["httpGet"]["port"] not in ports:
                yield f"{probe}: no port {container[probe]['httpGet']['port']}"
            if container[probe]["httpGet"]["path"] != "/healthz":
                yield f"{probe}: SeaweedFS answers under /healthz"
        paths = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
        folders = {"/tmp", *(arg.removeprefix("-dir=") for arg in container["args"] if arg.startswith("-dir="))}
        if paths != folders:
            yield f"the server writes to {sorted(folders)}, and {sorted(paths)} are mounts"
        if f"-s3.port={ports.get('s3')}" not in container["args"]:
            yield "the server's port is another one than the container's"


def _service_problems(item: Document, cluster: Cluster) -> Iterator[str]:
    pods = [found["spec"]["template"] for found in cluster.by_kind.get("StatefulSet", {}).values()]
    chosen = [pod for pod in pods if item["spec"]["selector"].items() <= pod["metadata"]["labels"].items()]
    if not chosen:
        yield f"selects no pod: {item['spec']['selector']}"
    for port in item["spec"]["ports"]:
        named = {p["name"] for pod in chosen for c in pod["spec"]["containers"] for p in c["ports"]}
        if port.get("targetPort") not in named:
            yield f"no port {port.get('targetPort')}"


def _policy_problems(item: Document, cluster: Cluster, pods: list[dict[str, str]]) -> Iterator[str]:
    selectors = [item["spec"]["podSelector"]]
    for direction in ("ingress", "egress"):
        for rule in item["spec"].get(direction, []):
            for peer in [*rule.get("from", []), *rule.get("to", [])]:
                selectors += [peer["podSelector"]] if "podSelector" in peer else []
                labels = peer.get("namespaceSelector", {}).get("matchLabels")
                if labels is not None and (
                    set(labels) != {"kubernetes.io/metadata.name"} or not set(labels.values()) <= NAMESPACES
                ):
                    yield f"no namespace {labels}"
                # a port beside a pod of ours must be a port of a service of ours
                if "podSelector" in peer:
                    known = {p["port"] for s in cluster.by_kind.get("Service", {}).values() for p in s["spec"]["ports"]}
                    yield from (f"no port {p.get('port')}" for p in rule["ports"] if p.get("port") not in known)
    for selector in selectors:
        labels = selector.get("matchLabels", {})
        if not any(labels.items() <= pod.items() for pod in pods):
            yield f"selects no pod: {labels}"
    directions = {"Ingress": "ingress", "Egress": "egress"}
    if missing := [
        d for d, field in directions.items() if field in item["spec"] and d not in item["spec"]["policyTypes"]
    ]:
        yield f"policyTypes lacks {missing}"


def _s3_problems(cluster: Cluster) -> Iterator[str]:
    settings = cluster.data("ConfigMap", "byol-s3")
    if unknown := settings.keys() - S3_VARIABLES:
        yield f"ConfigMap byol-s3: boto3 reads no {sorted(unknown)}"
    services = {
        f"{name}.{service['metadata'].get('namespace')}.svc.cluster.local:{port['port']}"
        for name, service in cluster.by_kind.get("Service", {}).items()
        for port in service["spec"]["ports"]
    }
    endpoints = [settings["AWS_ENDPOINT_URL_S3"].removeprefix("http://")] if "AWS_ENDPOINT_URL_S3" in settings else []
    artifacts = cluster.get("ConfigMap", "byol-artifacts")
    if artifacts is None:
        yield "no ConfigMap byol-artifacts"
        return
    default = artifacts["metadata"].get("annotations", {}).get("workflows.argoproj.io/default-artifact-repository")
    if default not in artifacts["data"]:
        yield f"ConfigMap byol-artifacts: no repository {default}"
    if problems := list(repository_problems(artifacts)):
        yield from problems
        return
    for text in artifacts["data"].values():
        s3 = yaml.load(text, StrictLoader)["s3"]
        endpoints += [s3["endpoint"]] if "svc.cluster.local" in s3["endpoint"] else []
        for field in ("accessKeySecret", "secretKeySecret"):
            if (reference := s3.get(field)) and reference["key"] not in cluster.data("Secret", reference["name"]):
                yield f"ConfigMap byol-artifacts: no {reference}"
    yield from (f"no service {endpoint}" for endpoint in endpoints if endpoint not in services)


def repository_problems(artifacts: Document) -> Iterator[str]:
    """Problems of the artifact repositories in a ConfigMap, whatever is around it."""
    for text in artifacts["data"].values():
        repository = yaml.load(text, StrictLoader)
        if set(repository) != REPOSITORY:
            yield f"ConfigMap byol-artifacts: has {sorted(repository)}, not {sorted(REPOSITORY)}"
            continue
        s3 = repository["s3"]
        if wrong := (s3.keys() - REPOSITORY_S3) | ({"bucket", "endpoint", "keyFormat"} - s3.keys()):
            yield f"ConfigMap byol-artifacts: unknown or missing {sorted(wrong)}"
            continue
        if unknown := set(tags(s3["keyFormat"])) - {"workflow.namespace", "workflow.name", "pod.name"}:
            yield f"ConfigMap byol-artifacts: Argo knows no {sorted(unknown)}"
        if "://" in s3["endpoint"]:
            yield "ConfigMap byol-artifacts: Argo wants an endpoint without a scheme"
        keys = [s3.get(field, {}) for field in ("accessKeySecret", "secretKeySecret")]
        if any(key and set(key) != {"name", "key"} for key in keys) or (keys != [{}, {}]) == ("useSDKCreds" in s3):
            yield "ConfigMap byol-artifacts: keys from a Secret, or the pod's own identity"
