"""Tells kombu of the transport ``celeriac``, which ``celeriac+http://…`` names.

kombu finds transports in a table alone, and has no entry points for them. It has some for serializers, and loads them when
it is imported: by that this module is found in every application of an environment that the package is installed in, and
``broker_url = "celeriac+http://…"`` is all that an application needs to say. The serializer is JSON under a second name.
"""

from __future__ import annotations

import json

from kombu.transport import TRANSPORT_ALIASES

TRANSPORT_ALIASES.setdefault("celeriac", "celeriac.transport:Transport")

#: As ``kombu.serialization.register`` takes it: encoder, decoder, content type, encoding.
SERIALIZER = (json.dumps, json.loads, "application/x-celeriac-json", "utf-8")
