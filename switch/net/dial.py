"""Reaching a host: TCP, and TLS where it is configured; and how long the certificates are good.

A certificate that is expired, of another name or of an unknown authority ends the try; there is no
way around it. Ours is shown where the host asks for it (mutual TLS).
"""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from cryptography import x509

from switch.config import LinkTls, parse_address


class DialError(Exception):
    """The host was not reached; the text says why, for logs."""


class Dialer:
    """Opens connections to the addresses of one host.

    Args:
        tls: settings, or None for plain TCP.
        file: makes a path of one that is configured.

    Raises:
        OSError, ValueError: certificates or keys that cannot be read.
    """

    def __init__(self, tls: LinkTls | None, file: Callable[[str], Path]) -> None:
        self._tls = tls
        self._own_until_s: float | None = None
        self._host_until_s: float | None = None
        self._context = None if tls is None else _context(tls, file)
        if tls is not None and tls.cert:
            certificates = x509.load_pem_x509_certificates(file(tls.cert).read_bytes())
            self._own_until_s = min(c.not_valid_after_utc.timestamp() for c in certificates)

    @property
    def certificates_until_s(self) -> float | None:
        """When the first of our certificate and the host's last one expires, in seconds since 1970.

        None where there is none, or none was seen yet.
        """
        known = [s for s in (self._own_until_s, self._host_until_s) if s is not None]
        return min(known, default=None)

    async def open(self, address: str) -> trio.abc.Stream:
        """Connect to `HOST:PORT`. The caller limits the time.

        Raises:
            DialError: refused, unreachable, or a certificate that is not good.
        """
        where = parse_address(address)
        try:
            plain = await trio.open_tcp_stream(where.host, where.port)
        except OSError as error:
            raise DialError(_reason(error)) from error
        if self._context is None or self._tls is None:
            return plain
        name = self._tls.server_name or where.host
        stream = trio.SSLStream(plain, self._context, server_hostname=name)
        try:
            await stream.do_handshake()
        except BaseException as error:
            await trio.aclose_forcefully(plain)
            if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
                raise DialError(_tls_reason(error)) from error
            raise
        self._note_certificate(stream)
        return stream

    def _note_certificate(self, stream: "trio.SSLStream[Any]") -> None:
        found = stream.getpeercert()
        if found and isinstance(found.get("notAfter"), str):
            self._host_until_s = float(ssl.cert_time_to_seconds(found["notAfter"]))


def _context(tls: LinkTls, file: Callable[[str], Path]) -> ssl.SSLContext:
    for name in (tls.ca, tls.cert, tls.key):
        if name:
            file(name).open("rb").close()  # its error has the name of the file, OpenSSL's has not
    try:
        context = ssl.create_default_context(cafile=str(file(tls.ca)) if tls.ca else None)
    except ssl.SSLError as error:
        raise ValueError(f"no certificates in {file(tls.ca)}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.cert:
        try:
            context.load_cert_chain(file(tls.cert), file(tls.key) if tls.key else None)
        except ssl.SSLError as error:
            raise ValueError(f"no certificate and its key in {file(tls.cert)}") from error
    return context


def _reason(error: OSError) -> str:
    """What the last of the tries said: several addresses of a name make a group of errors."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        inner = cause.exceptions[-1] if isinstance(cause, BaseExceptionGroup) else cause.__cause__
        cause = inner
    return (cause.strerror if isinstance(cause, OSError) else None) or str(error)


def _tls_reason(error: BaseException) -> str:
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS: {cause.reason or 'failed'}"
    return "TLS: the host ended the handshake"
