"""All bytes that come from elsewhere come through here: ranged, resumable, verified.

``fetch`` brings a file; ``probe``, ``read_range``, ``get_bytes`` and ``get_json`` ask small things.
"""

from __future__ import annotations

from localllama.download.partial import Partial, discard, list_partials
from localllama.download.small import RemoteHead, get_bytes, get_json, probe, read_range
from localllama.download.transfer import Fetched, fetch

__all__ = [
    "Fetched",
    "Partial",
    "RemoteHead",
    "discard",
    "fetch",
    "get_bytes",
    "get_json",
    "list_partials",
    "probe",
    "read_range",
]
