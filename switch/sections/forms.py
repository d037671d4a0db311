"""What keys of the configuration are made of: kinds of text, ranges with their meaning."""

from typing import Annotated

from msgspec import Meta

Finding = tuple[tuple[str, ...], str, str]
"""(key, what is wrong, hint)."""

File = Annotated[str, Meta(min_length=1, max_length=4096)]
Url = Annotated[str, Meta(max_length=512)]


def says(text: str) -> Meta:
    """A key's meaning."""
    return Meta(description=text)


def span(low: float, high: float, text: str) -> Meta:
    """A key's range and meaning; of whole numbers, or of seconds."""
    return Meta(ge=low, le=high, description=text)
