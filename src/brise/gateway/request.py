"""A client's request: what is sent upstream, and what its headers and its body say about it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from urllib.parse import quote, unquote

from brise.dialects import table
from brise.dialects.bodies import Body, Kind, person
from brise.dialects.dialect import Dialect
from brise.dialects.table import KnownPath
from brise.gateway import client_body
from brise.gateway.trace import RequestTrace
from brise.traffic import redact
from brise.traffic.records import new_id

Headers = Sequence[tuple[bytes, bytes]]  # as ASGI has them: names in lower case, in the order of the wire

OWN, LABEL = b"x-brise-", b"x-brise-label-"  # headers for the gateway: none of them goes upstream
KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")
NAME_HEADERS = (b"idempotency-key", b"x-request-id")  # of clients and balancers that send a request again
NAME_OF_REQUEST = re.compile(rb"[\x21-\x7e]{1,255}")
MAX_NAME, MAX_LABELS = 256, 32  # characters of a header's value or of a name, and labels, that are kept


@dataclass(frozen=True)
class ClientRequest:
    """One request. `fields` is its JSON body; None if the body is not a JSON object, or not read in its dialect.

    `model` is the one that the client asks for; body and target may have the name that its upstream knows it by.
    """

    id: str  # of its exchange
    method: str
    path: str  # in the usual spelling of its dialect
    target: bytes  # the same, percent-encoded, and the query with its question mark
    headers: Headers
    body: bytes
    fields: Body | None
    dialect: Dialect
    model: str  # "" if none is named
    task: str
    conversation: str | None = None  # as the client calls it
    subject: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    is_captured: bool = True
    secrets: Sequence[str] = field(default=(), repr=False)  # what must not be written down (traffic/redact.py)
    upstream: str = ""  # the name of the one that it is for
    named: Sequence[str] = ()  # every model that some server might take it to mean
    times_named: int = 0  # how often the body has the field `model`
    span: tuple[int, int] | None = None  # where the model's name stands in the body
    client: int = 0  # whoever sent it, as far as that can be told: address, key and subject
    deployment: str | None = None  # the model, if its path named it as Azure's do
    trace: RequestTrace | None = field(default=None, compare=False)  # None: nobody exports traces
    at_s: float = field(default_factory=time.time)
    started_s: float = field(default_factory=time.monotonic)

    @property
    def kind(self) -> Kind:
        """The name of the dialect."""
        return self.dialect.name

    @property
    def streams(self) -> bool:
        """Whether the client asked for a stream."""
        return self.fields is not None and self.fields.get("stream") is True

    @property
    def wire_model(self) -> str:
        """The model's name at its upstream."""
        name = self.fields.get("model") if self.fields is not None else None
        return name if isinstance(name, str) else self.model or self.path

    def header(self, name: bytes) -> str | None:
        """The value of a header; the first, if there are several."""
        return next((value.decode("latin-1") for known, value in self.headers if known == name), None)


def read(method: str, path: str, target: bytes, headers: Headers, body: bytes,
         secrets: Sequence[str] = (), address: str = "", id_key: bytes = b"") -> ClientRequest:
    """Never fails: a body that is not JSON is passed on all the same, and the upstream says what is wrong with it.

    `secrets` of the gateway itself are added to those that the request came with. `address` is the client's. With
    `id_key`, which all gateways of a store share, a request that is sent again has the id that it had.
    """
    known = table.locate(method, path)
    dialect = known.dialect
    content = client_body.read(body) if body else client_body.ReadBody()
    fields, model = content.fields if dialect.is_read else None, known.model or content.model
    if known.is_deployment and content.fields is not None and model:
        body = client_body.with_model(body, content.span, model)
        content = replace(content, span=client_body.read(body).span)
        fields = fields and {**fields, "model": model}
    own = {name.removeprefix(OWN).decode("latin-1"): _text(value) for name, value in headers if name.startswith(OWN)}
    labels = [(name.removeprefix("label-"), value) for name, value in own.items() if name.startswith("label-")]
    task = (own.get("task") or model or known.path)[:MAX_NAME]
    return ClientRequest(
        _id_of(id_key, known.path, headers, body) or new_id(), method, known.path, _target(known, target), headers,
        body, fields, dialect, model, task,
        own.get("conversation"), own.get("subject") or _person(fields), dict(labels[:MAX_LABELS]),
        own.get("capture", "on").lower() != "off", (*redact.secrets_of(headers, target, fields), *secrets),
        named=_named(known, target, headers, content, body), times_named=content.times, span=content.span,
        deployment=known.model if known.is_deployment else None,
        client=hash((address, own.get("subject") or _person(fields),
                     *(value for name, value in headers if name in KEY_HEADERS))))


def _id_of(key: bytes, path: str, headers: Headers, body: bytes) -> str | None:
    """The id of a request that names itself, the same wherever it arrives; None if it has no name.

    The name alone would not do: some clients give one to all requests of a session. The digest is keyed, so that nobody
    finds a short body by trying.
    """
    sent = dict(headers)
    name = next((sent[header] for header in NAME_HEADERS if header in sent), b"")
    if not key or not NAME_OF_REQUEST.fullmatch(name):
        return None
    digest = blake2b(key=key, digest_size=16)
    for part in (name, path.encode(), *(sent.get(header, b"") for header in KEY_HEADERS), body):
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.hexdigest()


def with_model(request: ClientRequest, model: str) -> ClientRequest:
    """The same request under the name by which its upstream knows the model."""
    fields = request.fields and {**request.fields, client_body.FIELD: model}
    deployment = request.deployment and model
    path, slash, name = request.path.partition("/models/")
    if slash and name == request.model and not request.body:
        query = b"".join(request.target.partition(b"?")[1:])
        return replace(request, target=f"{path}/models/{quote(model, safe='')}".encode() + query)
    if request.span is None:
        return replace(request, fields=fields, deployment=deployment)
    return replace(request, fields=fields, deployment=deployment, span=None,
                   body=client_body.with_model(request.body, request.span, model))


def _target(known: KnownPath, target: bytes) -> bytes:
    """In its usual spelling if it has one; what is unknown stays as it came."""
    path, mark, query = target.partition(b"?")
    if known.dialect is not table.UNKNOWN or known.is_deployment:
        path = quote(known.path).encode() if known.is_ours else path
    elif known.is_ours:
        path = table.spelled(path.decode("latin-1")).encode("latin-1")
    return path + mark + query


def _named(known: KnownPath, target: bytes, headers: Headers, content: client_body.ReadBody,
           body: bytes) -> Sequence[str]:
    query = target.partition(b"?")[2]
    names = [*content.names, *client_body.query_names(query)]
    if known.model is not None:
        names.append(known.model)
    if not known.dialect.is_read:
        names += _of_path(known.path)
    if content.fields is not None and not (known.dialect.is_read and content.model):
        names += client_body.nested_names(body)
    names += [value.decode("latin-1").strip() for name, value in headers
              if name.endswith((b"model", b"deployment")) and not name.startswith(OWN)]
    return names


def _of_path(path: str) -> Sequence[str]:
    """The models that an unknown path may name: what stands behind such a word, to each of its ends."""
    names = list[str]()
    for spelled in dict.fromkeys((path, unquote(path))):  # some servers decode twice
        for word in ("deployments", "engines", "models", "model"):
            rest = spelled.partition(f"/{word}/")[2]
            ends = [at for at, letter in enumerate(rest[:MAX_NAME]) if letter in "/:"]
            names += [rest[:end] for end in (*ends, len(rest)) if rest]
    return names


def _person(fields: Body | None) -> str | None:
    name = person(fields) if fields is not None else None
    return name if name is None else name[:MAX_NAME]


def _text(value: bytes) -> str:
    """A header's value; clients percent-encode text that is not ASCII."""
    return unquote(value.decode("latin-1").strip())[:MAX_NAME]
