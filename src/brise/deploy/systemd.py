"""A unit of systemd for several servers on one machine: brise@8080.service listens on port 8080."""

from __future__ import annotations

from brise.deploy.options import DeployOptions

DRAIN_SLACK_S = 15  # after the drain: captured traffic is written
MEMORY_SLACK = 1.1  # what --memory promises, and the interpreter's moods: the kernel kills what exceeds it
UNIT = """\
# brise@PORT.service: systemctl enable --now brise@8080 brise@8081
#
# Secrets are credentials, and stand in no file that others can read. Make them once on each machine:
#   systemd-creds encrypt --name=master.key MASTER.KEY /etc/credstore.encrypted/brise.master.key
{notes}
[Unit]
Description=brise serves small models, port %i
Documentation=https://github.com/brise-ai/brise
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
ExecStartPre=/usr/bin/install -D -m 600 %d/master.key %S/brise-%i/gateway/keys/master.key
ExecStart={program} serve {words}
{credentials}
Environment=BRISE_HOME=%S/brise-%i PYTHONUNBUFFERED=1
{environment}DynamicUser=yes
StateDirectory=brise-%i
StateDirectoryMode=0700
WorkingDirectory=%S/brise-%i
Restart=on-failure
RestartSec=2
KillSignal=SIGTERM
KillMode=mixed
TimeoutStopSec={stop_s:g}
LimitNOFILE=65536
{memory}
# What it may do: read its models, write its state, talk over IP.
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers=yes
PrivateIPC=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def unit(options: DeployOptions) -> str:
    """The file brise@.service."""
    serve = options.serve
    credentials = ["LoadCredentialEncrypted=master.key:/etc/credstore.encrypted/brise.master.key"]
    notes, environment = list[str](), list[str]()
    words = [*serve.words, "--host", "0.0.0.0" if serve.api_keys else "127.0.0.1", "--port", "%i",
             "--drain-seconds", f"{serve.drain_s:g}"]

    def credential(name: str, from_: str) -> None:
        place = f"/etc/credstore.encrypted/brise.{name}"
        credentials.append(f"LoadCredentialEncrypted={name}:{place}")
        notes.append(f"#   systemd-creds encrypt --name={name} {from_} {place}")

    if serve.api_keys is not None:
        credential("api-keys", str(serve.api_keys))
        words += ["--api-keys", "%d/api-keys"]
    if serve.is_shared:
        credential("pgpass", "~/.pgpass")
        environment.append("Environment=PGPASSFILE=%d/pgpass\n")
    if serve.variables:
        notes.append(f"# /etc/brise/environment (mode 600, root's) has {', '.join(serve.variables)}.")
        environment.append("EnvironmentFile=/etc/brise/environment\n")
    memory = "" if serve.memory_bytes is None else f"MemoryMax={round(serve.memory_bytes * MEMORY_SLACK)}\n"
    return UNIT.format(
        notes="\n".join(notes), program=options.program, words=" ".join(map(_word, words)),
        credentials="\n".join(credentials), environment="".join(environment),
        stop_s=serve.drain_s + DRAIN_SLACK_S, memory=memory)


def _word(word: str) -> str:
    """A word of ExecStart: `%` and `$` begin specifiers and variables, but for ours."""
    if word in ("%i", "%d/api-keys"):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    is_plain = escaped and not any(letter in escaped for letter in " \t\"'\\;")
    return escaped if is_plain else f'"{escaped}"'
