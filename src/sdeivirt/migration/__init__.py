# SPDX-License-Identifier: Apache-2.0
"""Moving a guest: its state as a stream, to another process while it runs, or to a file.

sections.py   the parts of the state, each a record with a version
stream.py     frames: how sections and pages stand in a stream
ram.py        pages: which are zero or alike, compression, how they are put back
channel.py    where a stream goes and comes from: sockets, TLS, files
analysis.py   a stream told to people
"""
