# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests of TLS, made by the openssl program: authorities, and directories in QEMU's layout."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["Authority", "lock_key", "needs_openssl"]

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")

_CONFIGURATION = """\
[ca]
default_ca = authority
[authority]
dir = {directory}
database = $dir/index
new_certs_dir = $dir
certificate = $dir/ca-cert.pem
private_key = $dir/ca-key.pem
serial = $dir/serial
crlnumber = $dir/crlnumber
default_md = sha256
default_crl_days = 30
policy = anything
unique_subject = no
[anything]
commonName = supplied
[req]
distinguished_name = name
prompt = no
[name]
CN = {name}
[authority_extensions]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
"""
_EXTENSIONS = """\
[leaf]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = {usage}
subjectAltName = {names}
"""
_USAGE = {"server": "serverAuth", "client": "clientAuth"}


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"openssl {' '.join(map(str, arguments))}: {done.stderr}"


def _key(path: Path, *more: str) -> None:
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", *more, "-out", path)
    path.chmod(0o600)


class Authority:
    """Somebody who signs certificates, with a directory of its own."""

    def __init__(self, directory: Path, name: str = "Authority") -> None:
        directory.mkdir()
        self.directory = directory
        self._configuration = directory / "openssl.cnf"
        self._configuration.write_text(_CONFIGURATION.format(directory=directory, name=name))
        (directory / "index").touch()
        for number in ("serial", "crlnumber"):
            (directory / number).write_text("01\n")
        _key(directory / "ca-key.pem")
        self.certificate = directory / "ca-cert.pem"
        _openssl(
            *("req", "-x509", "-new", "-config", self._configuration, "-extensions", "authority_extensions"),
            *("-key", directory / "ca-key.pem", "-days", "30", "-out", self.certificate),
        )

    def credentials(
        self,
        directory: Path,
        *roles: str,
        names: str = "DNS:localhost,IP:127.0.0.1,IP:::1",
        start: str = "20200101000000Z",
        end: str = "20990101000000Z",
        usage: str | None = None,
    ) -> Path:
        """A directory for these roles, both if none is named."""
        directory.mkdir(exist_ok=True)
        shutil.copy(self.certificate, directory)
        for role in roles or ("server", "client"):
            key, request = directory / f"{role}-key.pem", directory / "request.pem"
            _key(key)
            extensions = directory / "extensions.cnf"
            extensions.write_text(_EXTENSIONS.format(usage=usage or _USAGE[role], names=names))
            _openssl(
                "req", "-new", "-config", self._configuration, "-key", key, "-subj", f"/CN={role}", "-out", request
            )
            _openssl(
                *("ca", "-batch", "-notext", "-config", self._configuration, "-in", request),
                *("-extfile", extensions, "-extensions", "leaf", "-startdate", start, "-enddate", end),
                *("-out", directory / f"{role}-cert.pem"),
            )
            request.unlink()
            extensions.unlink()
        return directory

    def revoke(self, certificate: Path) -> None:
        """Take a certificate back; :meth:`list_revoked` tells."""
        _openssl("ca", "-config", self._configuration, "-revoke", certificate)

    def list_revoked(self, path: Path) -> None:
        """Write the list of what was revoked."""
        _openssl("ca", "-config", self._configuration, "-gencrl", "-out", path)


def lock_key(key: Path) -> None:
    """Give a key a password."""
    locked = key.with_suffix(".locked")
    _openssl("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked)
    locked.replace(key)
    key.chmod(0o600)
