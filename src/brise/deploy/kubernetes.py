"""Manifests for Kubernetes: servers that keep their names, HAProxy in front of them, and who may talk to whom.

Plain manifests with a kustomization: `kubectl apply -k FOLDER`. A Service cannot hash by a header, so HAProxy does.
"""

from __future__ import annotations

from collections.abc import Mapping

from brise.deploy import containers, haproxy, yaml_text
from brise.deploy.options import CONTAINER_PORT, DeployOptions, ServerPlace
from brise.deploy.yaml_text import Value

SERVERS, BALANCER = "brise", "brise-haproxy"
MEMORY_SLACK = 1.1
CONFIDED: Mapping[str, Value] = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                 "capabilities": {"drop": ["ALL"]}}


def manifests(options: DeployOptions) -> dict[str, str]:
    """The files by name."""
    places = [ServerPlace(f"{SERVERS}-{number}", f"{SERVERS}-{number}.{SERVERS}.{options.namespace}.svc",
                          CONTAINER_PORT) for number in range(options.count)]
    configuration = haproxy.configuration(places, f":{containers.BALANCER_PORT}")
    documents: dict[str, Value] = {
        "servers.yaml": _servers(options), "servers-service.yaml": _headless(options),
        "budget.yaml": _budget(options), "haproxy.yaml": _balancer(options),
        "haproxy-service.yaml": _service(options), "network.yaml": _network(options),
        "haproxy-config.yaml": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _about(options, BALANCER),
                                "data": {"haproxy.cfg": configuration}}}
    if options.count == 1:
        del documents["budget.yaml"]
    head = _secret_note(options)
    files = {name: (head if name == "servers.yaml" else "") + yaml_text.dump(document)
             for name, document in documents.items()}
    files["kustomization.yaml"] = yaml_text.dump({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": options.namespace,
        "resources": list(documents)})
    return files


def _secret_note(options: DeployOptions) -> str:
    keys = "" if options.serve.api_keys is None else f" --from-file=api-keys={options.serve.api_keys}"
    literals = "".join(f" --from-literal={name}=..." for name in containers.variables(options))
    return (f"# The secret, made once: kubectl -n {options.namespace} create secret generic {SERVERS} "
            f"--from-file=master.key{keys}{literals}\n")


def _about(options: DeployOptions, name: str) -> Value:
    return {"name": name, "namespace": options.namespace, "labels": _labels(name)}


def _labels(name: str) -> Value:
    return {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "brise"}


def _servers(options: DeployOptions) -> Value:
    template: Value = {
        "metadata": {"labels": _labels(SERVERS)},
        "spec": {
            "terminationGracePeriodSeconds": containers.stop_s(options) + 5,
            "automountServiceAccountToken": False, "enableServiceLinks": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": containers.USER, "runAsGroup": containers.USER,
                                "fsGroup": containers.USER, "seccompProfile": {"type": "RuntimeDefault"}},
            # Servers on several machines, where there are some.
            "topologySpreadConstraints": [{
                "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _labels(SERVERS)}}],
            "containers": [_container(options)],
            "volumes": [{"name": "tmp", "emptyDir": {}},
                        {"name": "secrets", "secret": {"secretName": SERVERS, "defaultMode": 0o440,
                                                       "items": _items(options)}}]}}
    return {
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": _about(options, SERVERS),
        "spec": {
            "replicas": options.count, "serviceName": SERVERS, "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": _labels(SERVERS)}, "template": template,
            "updateStrategy": {"type": "RollingUpdate"},
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}}]}}


def _items(options: DeployOptions) -> Value:
    names = ["master.key", *([] if options.serve.api_keys is None else ["api-keys"])]
    return [{"key": name, "path": name} for name in names]


def _container(options: DeployOptions) -> Value:
    serve = options.serve
    container: dict[str, Value] = {
        "name": SERVERS, "image": options.image, "command": list(containers.command(options)),
        "ports": [{"name": "http", "containerPort": CONTAINER_PORT}], "securityContext": CONFIDED,
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "tmp", "mountPath": "/tmp"},
                         {"name": "secrets", "mountPath": "/run/secrets/brise", "readOnly": True}],
        "env": [{"name": name, "valueFrom": {"secretKeyRef": {"name": SERVERS, "key": name}}}
                for name in containers.variables(options)],
        # A model of some gigabytes takes minutes to load, and the server listens afterwards.
        "startupProbe": {**_probe("/livez"), "failureThreshold": 180, "periodSeconds": 5},
        "livenessProbe": {**_probe("/livez"), "failureThreshold": 6, "periodSeconds": 10},
        "readinessProbe": {**_probe("/readyz"), "failureThreshold": 2, "periodSeconds": 2},
        # The endpoints forget the server while it still answers; then SIGTERM comes, and running requests finish.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}}}
    if serve.memory_bytes is not None:
        limit = str(round(serve.memory_bytes * MEMORY_SLACK))
        container["resources"] = {"requests": {"memory": limit}, "limits": {"memory": limit}}
    return container


def _probe(path: str) -> Mapping[str, Value]:
    return {"httpGet": {"path": path, "port": "http"}, "timeoutSeconds": 3}


def _headless(options: DeployOptions) -> Value:
    return {"apiVersion": "v1", "kind": "Service", "metadata": _about(options, SERVERS),
            "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": _labels(SERVERS),
                     "ports": [{"name": "http", "port": CONTAINER_PORT, "targetPort": "http"}]}}


def _budget(options: DeployOptions) -> Value:
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": _about(options, SERVERS),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": _labels(SERVERS)}}}


def _balancer(options: DeployOptions) -> Value:
    container: Value = {
        "name": "haproxy", "image": containers.HAPROXY_IMAGE, "securityContext": CONFIDED,
        "ports": [{"name": "http", "containerPort": containers.BALANCER_PORT}],
        "volumeMounts": [{"name": "config", "mountPath": "/usr/local/etc/haproxy", "readOnly": True}],
        "readinessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 2},
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}}
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": _about(options, BALANCER),
        "spec": {
            "replicas": 2, "selector": {"matchLabels": _labels(BALANCER)},
            "template": {
                "metadata": {"labels": _labels(BALANCER)},
                "spec": {
                    "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 60,
                    "securityContext": {"runAsNonRoot": True, "runAsUser": 99, "runAsGroup": 99,
                                        "seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [container],
                    "volumes": [{"name": "config", "configMap": {"name": BALANCER}}]}}}}


def _service(options: DeployOptions) -> Value:
    return {"apiVersion": "v1", "kind": "Service", "metadata": _about(options, BALANCER),
            "spec": {"type": "ClusterIP", "selector": _labels(BALANCER),
                     "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}}


def _network(options: DeployOptions) -> Value:
    """Only the balancer may talk to the servers; what they may reach depends on upstream and store, so it is open."""
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": _about(options, SERVERS),
            "spec": {"podSelector": {"matchLabels": _labels(SERVERS)}, "policyTypes": ["Ingress"],
                     "ingress": [{"from": [{"podSelector": {"matchLabels": _labels(BALANCER)}}],
                                  "ports": [{"port": "http"}]}]}}
