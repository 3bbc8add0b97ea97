"""Text as it may be shown or written down: without the passwords that the URI of a store may hold.

Every place that names a store, a setting or an error goes through here: errors when they are made, traces and logs when
they are told, recipes when they are recorded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Up to the last @ of a URI: a secret that was not quoted as it should be may hold /, # or @ itself. In the path alone,
# an @ without a colon before it belongs to a name.
# One slash is left of a URI that was taken for a path.
_CREDENTIALS = re.compile(r"""(?<=\w)(:/{1,2})(?:[^\s'"]*:[^\s'"]*@|[^\s'"/@]*@)""")
_IN_QUERY = re.compile(r"""(?<=[?&])([a-z_]*(?:secret|token|password|key)[a-z_]*)=[^\s'"&]*""", re.IGNORECASE)


def shown_text(text: str) -> str:
    """Return a text without the users, passwords and keys of the URIs in it."""
    return _IN_QUERY.sub(r"\1=...", _CREDENTIALS.sub(r"\1", text)) if ":/" in text else text


def shown_uri(uri: str) -> str:
    """Return a path or URI as it may be shown: without user, password and whatever follows the path."""
    return shown_text(uri).partition("?")[0] if "://" in uri else uri


def shown_values(value: Any) -> Any:
    """Return settings, or any other value of a JSON document, with every text as `shown_text` has it."""
    if isinstance(value, str):
        return shown_text(value)
    if isinstance(value, Mapping):
        return {name: shown_values(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown_values(item) for item in value]
    return value
