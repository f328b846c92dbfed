# SPDX-License-Identifier: Apache-2.0
"""Random attacks on the service, every step of them compared with an independent oracle."""
