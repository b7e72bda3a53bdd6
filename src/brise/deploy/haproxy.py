"""The configuration of HAProxy in front of several servers.

    named    requests that name their conversation go to the server that has its prefix in the cache, by consistent
             hashing with bounded load: one server more or less moves only its share
    any      all others go to the one with the fewest connections
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from brise.deploy.options import ServerPlace
from brise.errors import UnsupportedError

HEAD_BYTES = 16 << 10
BUFFER_BYTES = 128 << 10  # HAProxy sends a request again only if all of it lies in its buffer
RESOLVERS = """
resolvers dns
    parse-resolv-conf
    hold valid 5s
"""
TEXT = """\
# HAProxy in front of brise: checked with haproxy -c -f FILE (2.6 and newer).

global
    maxconn 4096
    log stdout format raw local0 info
    # A request is sent again, after its server died, only if all of it lies in this buffer.
    tune.bufsize {buffer}

defaults
    mode http
    log global
    option httplog
    option dontlognull
    timeout connect 5s
    timeout http-request 30s
    timeout http-keep-alive 60s
    timeout client 10m
    timeout queue 30s
    # Streams may be silent: brise sends a comment line every 15 s.
    timeout server 10m
    timeout check 3s
    # Only before the first byte of an answer; x-request-id makes sure that it is written down once.
    retries 2
    option redispatch 1
    retry-on conn-failure empty-response 503

frontend brise
    bind {bind}
    unique-id-format %[uuid()]
    http-request set-header x-request-id %[unique-id] unless {{ req.hdr(x-request-id) -m found }}
    # Clients send head and body in two packets; what fits into the buffer is waited for, so that it can be sent again.
    http-request wait-for-body time 10s if {{ req.hdr_val(content-length) le {waited} }}
    use_backend named if {{ req.hdr(x-brise-conversation) -m found }}
    default_backend any

backend named
    balance hash req.hdr(x-brise-conversation)
    hash-type consistent sdbm avalanche
    hash-balance-factor 300
    option httpchk GET /readyz
    http-check expect status 200
    # A server that drains is not ready: its streams go on, and new requests go elsewhere.
    default-server check inter 1s fall 2 rise 1
    http-response set-header x-brise-replica %s
{named}

backend any
    balance leastconn
    http-response set-header x-brise-replica %s
{tracked}
"""


def configuration(servers: Sequence[ServerPlace], bind: str) -> str:
    """The file. Names, other than addresses, are looked up again and again: containers move."""
    if not servers:
        raise UnsupportedError("there is no server to balance", hint="--server a=HOST:PORT --server b=HOST:PORT; or "
                               "--store URL takes those that run")
    def line(server: ServerPlace, more: str = "") -> str:
        looked_up = " resolvers dns init-addr last,libc,none" if _is_name(server.host) else ""
        return f"    server {server.name} {server.address}{more}{looked_up}"

    text = TEXT.format(
        buffer=BUFFER_BYTES, waited=BUFFER_BYTES - HEAD_BYTES, bind=bind,
        named="\n".join(map(line, servers)),
        tracked="\n".join(line(server, f" track named/{server.name}") for server in servers))
    return text + (RESOLVERS if any(_is_name(server.host) for server in servers) else "")


def _is_name(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "localhost"
    return False
