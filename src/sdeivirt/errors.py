# SPDX-License-Identifier: Apache-2.0
"""The errors a *host* can make.

What a guest does is a value (a result code in x0), never an exception; what
the person or program on the host side does wrong is one of these:

    SdeivirtError                     every error below; has .hint and .exit_code
     +-- UsageError                   a wrong argument or configuration          (exit 2)
     |    +-- UnknownEventError       no such event number
     |    +-- UnknownVcpuError        no such vCPU index or affinity
     |    +-- ImageError              a file that cannot be loaded as a guest
     |    +-- EventFileError          a bad event definition
     |    +-- RegisterError           a register that is not there, or a value that it cannot have
     +-- StateError                   right question, wrong moment               (exit 1)
     |    +-- NotRegisteredError      the guest has no handler for the event
     |    +-- EventRunningError       cancel of an event whose handler runs
     |    +-- BusyError               the guest has not read the error that was reported before
     |    +-- FrozenError             a change that is refused after the first run
     |    +-- MovedError              the guest runs somewhere else by now
     +-- MigrationError               a guest could not be moved, saved or restored  (exit 1)
     |    +-- StreamError             a stream that is damaged, newer than we are, or no such stream
     |    +-- RefusedError            migration.wire: the other side has said why it does not go on
     |    +-- ChannelError            migration.channel: a connection or a file that fails
     |         +-- ChannelCutError        the other side is gone
     |         +-- ChannelStalledError    it is there, and takes or sends nothing
     |         +-- ChannelCancelledError  somebody here has ended it
     +-- EnvironmentUnavailableError  something on this host is missing          (exit 3)
     |    +-- UnknownVmError          no VM of that name is running
     |    +-- VmExistsError           a VM of that name is running already
     |    +-- RuntimeDirectoryError   a runtime directory that cannot be trusted
     +-- TimeLimitError               the guest took longer than allowed         (exit 124)
"""

from __future__ import annotations

__all__ = [
    "SdeivirtError",
    "UsageError",
    "UnknownEventError",
    "UnknownVcpuError",
    "ImageError",
    "EventFileError",
    "RegisterError",
    "StateError",
    "NotRegisteredError",
    "EventRunningError",
    "BusyError",
    "FrozenError",
    "MovedError",
    "MigrationError",
    "StreamError",
    "EnvironmentUnavailableError",
    "UnknownVmError",
    "VmExistsError",
    "RuntimeDirectoryError",
    "TimeLimitError",
]


class SdeivirtError(Exception):
    """One sentence for a person, a hint what to do next, and the CLI's exit code."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(SdeivirtError):
    """A wrong argument or configuration."""

    exit_code = 2


class UnknownEventError(UsageError):
    """No event of that number is defined."""


class UnknownVcpuError(UsageError):
    """No vCPU of that index or affinity exists."""


class ImageError(UsageError):
    """A file cannot be loaded as a guest."""


class EventFileError(UsageError):
    """An event definition is not acceptable."""


class RegisterError(UsageError):
    """A pseudo-firmware register does not exist, or cannot have that value."""


class StateError(SdeivirtError):
    """The request is sound, but not in the present state."""


class NotRegisteredError(StateError):
    """The guest has registered no handler for the event."""


class EventRunningError(StateError):
    """An event cannot be cancelled while its handler runs."""


class BusyError(StateError):
    """A source's report has not been acknowledged, and the caller did not want to wait."""


class FrozenError(StateError):
    """A setting cannot change after a vCPU has run."""


class MovedError(StateError):
    """The guest has moved to another process, and runs there."""


class MigrationError(SdeivirtError):
    """A guest could not be moved, saved or restored; it is where it was."""


class StreamError(MigrationError):
    """What was read is no state of a guest, is damaged, or is newer than this code."""


class EnvironmentUnavailableError(SdeivirtError):
    """Something this host must provide is missing."""

    exit_code = 3


class UnknownVmError(EnvironmentUnavailableError):
    """No VM of that name is running."""


class VmExistsError(EnvironmentUnavailableError):
    """A VM of that name is running already."""


class RuntimeDirectoryError(EnvironmentUnavailableError):
    """The runtime directory belongs to somebody else or cannot be made."""


class TimeLimitError(SdeivirtError):
    """The guest took longer than it was allowed to."""

    exit_code = 124
