# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests; nothing here needs an engine."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

settings.register_profile("sdeivirt", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sdeivirt")

# A shell's background job ignores SIGINT, and hands that down: tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
