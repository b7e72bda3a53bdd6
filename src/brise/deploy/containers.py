"""What compose and Kubernetes have in common: how a server runs in the image that `Containerfile` builds."""

from __future__ import annotations

from brise.deploy.options import CONTAINER_PORT, KEYS_MOUNT, DeployOptions

USER = 10001  # of the image
HAPROXY_IMAGE = "docker.io/library/haproxy:3.0-alpine"
BALANCER_PORT = 8000
STOP_SLACK_S = 15
# The master key has to lie in the data folder, for its owner only; a mounted secret cannot.
START = ("install -D -m 600 /run/secrets/brise/master.key \"$BRISE_HOME/gateway/keys/master.key\" && "
         "exec brise serve \"$@\"")


def command(options: DeployOptions) -> list[str]:
    """What runs in the container."""
    serve = options.serve
    keys = [] if serve.api_keys is None else ["--api-keys", KEYS_MOUNT]
    return ["sh", "-c", START, "brise", *serve.words, "--host", "0.0.0.0", "--port", str(CONTAINER_PORT),
            "--drain-seconds", f"{serve.drain_s:g}", *keys]


def stop_s(options: DeployOptions) -> int:
    """How long a container gets to end."""
    return round(options.serve.drain_s + STOP_SLACK_S)


def variables(options: DeployOptions) -> list[str]:
    """Variables of the environment that hold secrets."""
    return [*options.serve.variables, *(["PGPASSWORD"] if options.serve.is_shared else [])]
