"""Writes the corpus of each fuzz target from the vectors."""

import base64
import hashlib
import json
import pathlib

HERE = pathlib.Path(__file__).parent
VECTORS = HERE.parent / "crates/celeriac/tests/vectors"
COMPRESSIONS = ["application/x-gzip", "application/x-bz2", "application/x-lzma", "application/zstd", "application/x-brotli"]


def put(target, data):
    data = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)


def walk(value):
    """What a decoded document holds, cut up for the targets that take parts."""
    if isinstance(value, dict):
        if set(value) == {"__type__", "__value__"}:
            put("extended", json.dumps(value))
        if "task" in value and "args" in value:
            put("signature", json.dumps(value))
        for item in value.values():
            walk(item)
    elif isinstance(value, list):
        for item in value:
            walk(item)
    elif isinstance(value, str):
        if value[4:5] == "-" and value[7:8] == "-":
            put("iso_date", value)
        text(value)


def text(value):
    """A string of the vectors that is a document itself."""
    if value[:1] not in ("{", "["):
        return
    put("json", value)
    try:
        document = json.loads(value)
    except ValueError:
        return
    if value.startswith('{"status"'):
        put("result_meta", value)
    if value.startswith('{"body"'):
        put("envelope", value)
        body(document)
    walk(document)


def body(envelope):
    try:
        data = base64.b64decode(envelope["body"], validate=True)
    except ValueError:
        return
    compression = envelope.get("headers") and envelope["headers"].get("compression")
    if compression in COMPRESSIONS:
        put("body_compressed", bytes([COMPRESSIONS.index(compression)]) + data)
        return
    for kind in ("json", "msgpack", "yaml"):
        if str(envelope.get("content-type")).endswith(kind):
            put("body_" + kind, data)
    if envelope.get("content-type") == "application/json":
        text(data.decode("utf-8", "replace"))


for path in sorted(VECTORS.glob("*.json")):
    vectors = json.loads(path.read_text())
    walk(vectors)
    for other in vectors.get("other_serializers", {}).values():
        value = other["value"]
        put("result_meta", value if isinstance(value, str) else base64.b64decode(value["base64"]))
