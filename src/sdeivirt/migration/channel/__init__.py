# SPDX-License-Identifier: Apache-2.0
"""Where a stream goes and comes from.

uri.py        tcp:HOST:PORT, unix:PATH, file:PATH
base.py       what a channel is, its errors, and how another thread ends it
pace.py       how fast it may send
sockets.py    TCP, Unix sockets, TLS on top
tls.py        certificates, and what OpenSSL's errors mean
connect.py    one side of a connection, and whom both sides trust
listener.py   the other side
binding.py    its socket, and the file of a Unix socket
files.py      files
"""

from .base import (
    Channel,
    ChannelCancelledError,
    ChannelCutError,
    ChannelError,
    ChannelStalledError,
    Interrupt,
)
from .connect import connect
from .files import FileChannel, FileReader, FileWriter, create_file, open_file
from .listener import Listener
from .pace import Pace
from .sockets import SocketChannel
from .tls import TlsCredentials
from .uri import Uri, parse_uri

__all__ = [
    "Channel",
    "Listener",
    "connect",
    "create_file",
    "open_file",
    "Uri",
    "parse_uri",
    "TlsCredentials",
    "Pace",
    "Interrupt",
    "FileChannel",
    "FileReader",
    "FileWriter",
    "SocketChannel",
    "ChannelError",
    "ChannelCutError",
    "ChannelStalledError",
    "ChannelCancelledError",
]
