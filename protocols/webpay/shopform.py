"""What is posted to shops, and what their answer is worth."""

from collections.abc import Iterable
from typing import Final, Literal
from urllib.parse import quote_plus, urlsplit

from protocols.webpay.answer import Answer, parse_answer

ACCEPTED: Final = "ACEPTADO"
REJECTED: Final = "RECHAZADO"

Encoding = Literal["plain", "kcc"]
Rule = Literal["strict", "kcc"]
Verdict = Literal["ACCEPTED", "REJECTED", "INVALID", "NOT_ACCEPTED"]


def notification_body(wire: bytes, merchant: str) -> bytes:
    """The body for a kit: the sealed result and the merchant's code; line feeds as `%0a`."""
    return b"TBK_PARAM=" + _percent(wire) + b"&TBK_CODIGO_COMERCIO=" + merchant.encode("ascii")


def closing_body(
    pairs: Iterable[tuple[str, str]], mac: str, *, merchant: str = "", encoding: Encoding = "plain"
) -> bytes:
    """The body for a closing page: the result in order, the code if given, the MAC last.

    Args:
        encoding: `plain`: as browsers do; `kcc`: as the kit did, every byte as `%xx`, and CR LF
            behind the body, which its Content-Length does not count.
    """
    code = (("TBK_CODIGO_COMERCIO", merchant),) if merchant else ()
    whole = (*pairs, *code, ("TBK_MAC", mac))
    if encoding == "plain":
        return "&".join(f"{n}={quote_plus(v, encoding='latin-1')}" for n, v in whole).encode()
    parts = (_all_percent(name) + "=" + _all_percent(value) for name, value in whole)
    return ("&".join(parts) + "\r\n").encode("ascii")


def classify(raw: bytes, rule: Rule = "strict") -> Verdict:
    """What the whole answer of a closing page says.

    Args:
        rule: `strict`: status 200, and the text of the page is one of the two words. `kcc`: the
            word of acceptance anywhere among the bytes, as old kits looked for it.

    Returns:
        ACCEPTED, REJECTED or INVALID; by `kcc` ACCEPTED or NOT_ACCEPTED.
    """
    return verdict(parse_answer(raw), rule)


def verdict(answer: Answer, rule: Rule = "strict") -> Verdict:
    """As `classify`, of an answer that has ended."""
    if rule == "kcc":
        return "ACCEPTED" if ACCEPTED.encode() in answer.raw else "NOT_ACCEPTED"
    if answer.status != 200 or not answer.whole:
        return "INVALID"
    text = page_text(bytes(answer.body))
    if text == ACCEPTED:
        return "ACCEPTED"
    return "REJECTED" if text == REJECTED else "INVALID"


def page_text(body: bytes) -> str:
    """The text of a page: no byte order mark, comments or tags, and blanks collapsed."""
    text = body.decode("latin-1").removeprefix("\xef\xbb\xbf")
    parts: list[str] = []
    at = 0
    while (start := text.find("<", at)) >= 0:
        ends = "-->" if text.startswith("<!--", start) else ">"
        end = text.find(ends, start + (4 if len(ends) == 3 else 1))
        if end < 0:
            break  # not a tag then, so it stays
        parts.append(text[at:start])
        at = end + len(ends)
    parts.append(text[at:])
    return " ".join("".join(parts).split())


def _percent(data: bytes) -> bytes:
    """Letters and digits as they are, all else as `%xx`."""
    kept = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return b"".join(bytes((b,)) if b in kept else b"%%%02x" % b for b in data)


def _all_percent(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode("latin-1"))


# ---- whole requests


def notification_request(url: str, body: bytes, *, target: Literal["absolute", "origin"]) -> bytes:
    """The POST to a kit, head and body."""
    where = url if target == "absolute" else origin_form(url)
    return _head(f"POST {where} HTTP/1.1", url, len(body)) + body


def closing_request(url: str, body: bytes, *, encoding: Encoding = "plain") -> bytes:
    """The POST to a closing page; `kcc` is what the kit sent: HTTP/1.0 without Host."""
    if encoding == "plain":
        return _head(f"POST {origin_form(url)} HTTP/1.1", url, len(body)) + body
    length = len(body.removesuffix(b"\r\n"))
    head = (
        f"POST {url} HTTP/1.0\r\n"
        "Content-type: application/x-www-form-urlencoded\r\n"
        f"Content-length: {length}\r\n\r\n"
    )
    return head.encode("ascii") + body


def origin_form(url: str) -> str:
    """Path and query of an address, as a request target."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _head(line: str, url: str, length: int) -> bytes:
    return (
        f"{line}\r\n"
        f"Host: {urlsplit(url).netloc}\r\n"
        "User-Agent: troncal\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {length}\r\n"
        "Connection: close\r\n\r\n"
    ).encode("ascii")
