"""All bytes that come from elsewhere come through here: ranged, resumable, verified.

``fetch`` brings a file; ``probe``, ``read_range``, ``get_bytes`` and ``get_json`` ask small things.
"""

from __future__ import annotations

from localllama.download.partial import discard
from localllama.download.small import RemoteHead, get_bytes, get_json, probe, read_range
from localllama.download.transfer import Fetched, fetch

__all__ = [
    "Fetched",
    "RemoteHead",
    "discard",
    "fetch",
    "get_bytes",
    "get_json",
    "probe",
    "read_range",
]
