# SPDX-License-Identifier: Apache-2.0
"""A running VM and the outside world: where it is found, and how it is talked to.

    runtime.py    the runtime directory; one private directory for each VM
    framing.py    a byte stream cut into JSON texts
    commands.py   the commands of the control socket
    server.py     the control socket: QMP framing, many clients, events
    notices.py    warnings, a few a second
    fifos.py      one FIFO per vCPU: `echo 0 > .../vcpu-1` injects event 0
    terminal.py   the guest's serial port on this process's terminal
    host.py       one machine run in the foreground with all of these
    batch.py      one machine run to its end, and what it printed
    client.py     the other end of the control socket

Everything a VM leaves in the file system is in its own directory, and a lock
in there tells a VM that lives from one that was killed.
"""
