"""What must not be shown: keys and passwords that trackers read from the environment, and those inside addresses."""

import os
import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

NAMES = re.compile("KEY|TOKEN|PASSWORD|SECRET|CREDENTIAL|AUTH", re.IGNORECASE)
SHORTEST = 4
"""Characters; what is shorter stands in other words, too."""


def without_secrets(text: str) -> str:
    """The text without user and password in addresses, and without the values of variables that are keys, tokens or
    passwords by their names."""
    text = re.sub(r"(?<=://)[^/\s]*@", "", text)
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        found = [value] if NAMES.search(name) else []
        if "://" in value:
            try:
                password = urlsplit(value).password or ""
            except ValueError:
                continue
            found += [password, unquote(password)]
        yield from (secret for secret in found if len(secret) >= SHORTEST)
