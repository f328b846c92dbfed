# SPDX-License-Identifier: Apache-2.0
"""TLS with certificates on both sides, in the directory that QEMU's `tls-creds-x509` reads.

    DIR/ca-cert.pem       who signs the certificates of both sides
    DIR/ca-crl.pem        which of them are revoked; may be missing
    DIR/server-cert.pem   DIR/server-key.pem   where a guest arrives
    DIR/client-cert.pem   DIR/client-key.pem   where it comes from

The client also checks that the server's certificate is made out to the host
that it connects to. In TLS 1.3 a client is done before the server has looked at
its certificate; so the server, once content, sends the byte WELCOME, and the
client takes nothing for a connection before that.
"""

from __future__ import annotations

import os
import re
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ...errors import UsageError
from ...files import open_regular, read_regular

__all__ = ["ALERT", "HANDSHAKE", "WELCOME", "TlsCredentials", "explain"]

WELCOME = b"\x06"
# The first byte of what a client says, if it speaks TLS; and a fatal alert, handshake_failure: RFC 8446 5.1, 6.2.
HANDSHAKE = b"\x16"
ALERT = b"\x15\x03\x03\x00\x02\x02\x28"

_LAYOUT = (
    "the directory holds ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem and client-key.pem, as QEMU's"
)
_LIMIT = 1 << 20

# X509_V_ERR_...: openssl-verification-options(1), x509_vfy.h.
_VERIFICATION = {
    3: "there is no ca-crl.pem entry of the CA that signed it",
    9: "it is not valid yet",
    10: "it has expired",
    12: "the list of revoked certificates, ca-crl.pem, has expired",
    18: "it is signed by itself, not by the CA in ca-cert.pem",
    19: "it is not signed by the CA in ca-cert.pem",
    20: "it is not signed by the CA in ca-cert.pem",
    21: "it is not signed by the CA in ca-cert.pem",
    23: "it has been revoked",
    26: "it is made out for the other role, server or client",
}
_NAME_CODES = (62, 64)
_ALERTS = {
    "UNKNOWN_CA": "it is not signed by the CA in the other side's ca-cert.pem",
    "CERTIFICATE_EXPIRED": "it has expired",
    "CERTIFICATE_REVOKED": "it has been revoked",
    "CERTIFICATE_REQUIRED": "there was none",
    "BAD_CERTIFICATE": "it does not suit",
    "CERTIFICATE_UNKNOWN": "it does not suit",
    "UNSUPPORTED_CERTIFICATE": "it is made out for the other role, server or client",
}
_NO_TLS = (
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "UNKNOWN_PROTOCOL",
    "RECORD_LAYER_FAILURE",
    "BAD_RECORD_TYPE",
    "PACKET_LENGTH_TOO_LONG",
    "UNEXPECTED_MESSAGE",
)


def explain(error: ssl.SSLError) -> str:
    """What an error of OpenSSL means, as half a sentence."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _NAME_CODES:
            return f"the other side's certificate is made out to another name: {error.verify_message}"
        return f"the other side's certificate is refused: {_VERIFICATION.get(error.verify_code, error.verify_message)}"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "the other side has closed the connection; it refuses us, or speaks no TLS"
    reason = error.reason or ""
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "the other side has shown no certificate"
    for alert, meaning in _ALERTS.items():
        if reason.endswith(f"ALERT_{alert}"):
            return f"the other side refuses our certificate: {meaning}"
    if reason in _NO_TLS:
        return "the other side speaks no TLS"
    if reason in ("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE"):
        return "the two sides have no version of TLS in common: at least 1.2 is needed"
    return reason.replace("_", " ").lower() or str(error)


@dataclass(frozen=True, slots=True)
class TlsCredentials:
    """Who we are, and whom we believe. Made by :meth:`load`."""

    context: ssl.SSLContext
    server: bool
    hostname: str

    @classmethod
    def load(cls, directory: Path, server: bool, hostname: str = "") -> TlsCredentials:
        """Read them as the server (where a guest arrives) or as the client.

        `hostname` is whom the server's certificate has to be made out to, in
        place of the host that a client connects to. Raises UsageError.
        """
        if not re.fullmatch(r"[\w.:-]*", hostname):
            raise UsageError(f"{hostname[:200]!r} cannot be the name of a host")
        role = "server" if server else "client"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        if server:
            context.num_tickets = 0  # nobody resumes a session
        _load_authority(context, directory / "ca-cert.pem", directory / "ca-crl.pem")
        _load_own(context, directory / f"{role}-cert.pem", directory / f"{role}-key.pem")
        return cls(context, server, hostname)


def _load_authority(context: ssl.SSLContext, path: Path, revoked: Path) -> None:
    _check_readable(path)
    try:
        context.load_verify_locations(path)
        if not context.cert_store_stats()["x509"]:
            raise UsageError(f"{path} has no certificate in it", _LAYOUT)
        if os.path.lexists(revoked):
            _check_readable(revoked)
            context.load_verify_locations(revoked)
            if not context.cert_store_stats()["crl"]:
                raise UsageError(f"{revoked} has no list of revoked certificates in it", _LAYOUT)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except ssl.SSLError as error:
        which = revoked if context.cert_store_stats()["x509"] else path
        raise UsageError(f"{which} cannot be read as PEM: {explain(error)}", _LAYOUT) from error


def _load_own(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    _check_readable(certificate)
    _check_private(key)
    try:
        context.load_cert_chain(certificate, key, lambda: _no_password(key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(f"{key} is not the key of {certificate}", _LAYOUT) from error
        raise UsageError(f"{certificate} and {key} cannot be read as PEM: {explain(error)}", _LAYOUT) from error


def _no_password(key: Path) -> NoReturn:
    raise UsageError(f"{key} has a password", f"take it away: openssl pkey -in {key} -out NEW")


def _check_readable(path: Path) -> None:
    # A FIFO would have OpenSSL wait.
    read_regular(path, _LIMIT, UsageError, _LAYOUT, _LAYOUT)


def _check_private(key: Path) -> None:
    with open_regular(key, UsageError, _LAYOUT) as file:
        status = os.fstat(file.fileno())
    if status.st_uid not in (os.geteuid(), 0):
        raise UsageError(f"{key} belongs to user {status.st_uid}", "use a key of your own")
    if status.st_mode & 0o077:
        raise UsageError(
            f"{key} is open to other users (mode {stat.S_IMODE(status.st_mode):04o})", f"run `chmod 600 {key}`"
        )
