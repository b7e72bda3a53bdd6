"""A compose file: several servers and HAProxy on one machine. The store runs elsewhere, or is added to it."""

from __future__ import annotations

from brise.deploy import containers, yaml_text
from brise.deploy.options import CONTAINER_PORT, DeployOptions, ServerPlace
from brise.deploy.yaml_text import Value

HEAD = """\
# docker compose up -d, or podman-compose: {count} servers and HAProxy at port {port}.
# secrets/ has master.key (64 hexadecimal digits, the same for all servers){keys}; mode 640, group {user}.
{env}
"""


def places(options: DeployOptions) -> list[ServerPlace]:
    """The servers, by their names in the network."""
    return [ServerPlace(f"brise-{number}", f"brise-{number}", CONTAINER_PORT)
            for number in range(1, options.count + 1)]


def compose_file(options: DeployOptions) -> str:
    """The file compose.yaml; haproxy.cfg lies beside it."""
    serve, services = options.serve, dict[str, Value]()
    secrets: dict[str, Value] = {"master-key": {"file": "./secrets/master.key"}}
    if serve.api_keys is not None:
        secrets["api-keys"] = {"file": "./secrets/api-keys"}
    for place in places(options):
        services[place.name] = _server(options, place.name)
    services["haproxy"] = {
        "image": containers.HAPROXY_IMAGE, "restart": "unless-stopped", "read_only": True,
        "ports": [f"{containers.BALANCER_PORT}:{containers.BALANCER_PORT}"],
        "volumes": ["./haproxy.cfg:/usr/local/etc/haproxy/haproxy.cfg:ro"],
        "security_opt": ["no-new-privileges:true"], "cap_drop": ["ALL"],
        "depends_on": {place.name: {"condition": "service_started"} for place in places(options)}}
    volumes: dict[str, Value] = {f"data-{place.name}": {} for place in places(options)}
    variables = containers.variables(options)
    env = f"# .env has {', '.join(variables)}." if variables else "#"
    head = HEAD.format(count=options.count, port=containers.BALANCER_PORT, user=containers.USER, env=env,
                       keys="" if serve.api_keys is None else " and api-keys (one a line)")
    return head + yaml_text.dump({"services": services, "secrets": secrets, "volumes": volumes})


def _server(options: DeployOptions, name: str) -> Value:
    serve = options.serve
    mounted: list[Value] = [{"source": "master-key", "target": "/run/secrets/brise/master.key"}]
    if serve.api_keys is not None:
        mounted.append({"source": "api-keys", "target": "/run/secrets/brise/api-keys"})
    # compose takes $ for the beginning of a variable
    command: list[Value] = [word.replace("$", "$$") for word in containers.command(options)]
    server: dict[str, Value] = {
        "image": options.image, "restart": "unless-stopped", "entrypoint": [], "command": command,
        "user": f"{containers.USER}:{containers.USER}", "read_only": True, "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"],
        "volumes": [f"data-{name}:/data"], "secrets": mounted,
        "stop_grace_period": f"{containers.stop_s(options)}s", "expose": [str(CONTAINER_PORT)],
        "healthcheck": {
            "test": ["CMD", "python", "-c", "import urllib.request as r; "
                     f"r.urlopen('http://127.0.0.1:{CONTAINER_PORT}/livez', timeout=4)"],
            "interval": "15s", "timeout": "5s", "retries": 3, "start_period": "5m"}}
    if variables := containers.variables(options):
        server["environment"] = {each: f"${{{each}:?}}" for each in variables}
    if serve.memory_bytes is not None:
        server["mem_limit"] = round(serve.memory_bytes * 1.1)
    return server
