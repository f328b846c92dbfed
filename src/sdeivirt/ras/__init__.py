# SPDX-License-Identifier: Apache-2.0
"""Hardware errors that firmware reports and SDEI announces: ACPI's APEI, firmware first. No I/O here but in desk.py.

sources.py   what an error source is: an event, a version of GHES
window.py    the memory that a source shares with the guest: block, pointer, acknowledgement
desk.py      reports on their way: one at a time for each source, and what became of each
"""
