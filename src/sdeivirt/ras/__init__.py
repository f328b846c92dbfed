# SPDX-License-Identifier: Apache-2.0
"""Hardware errors that firmware reports and SDEI announces: ACPI's APEI, firmware first.

sources.py      what an error source is: an event, a version of GHES
definitions.py  how users define them
status_block.py a report as bytes, as far as one has to know it
window.py       the memory that a source shares with the guest: block, pointer, acknowledgement
desk.py         reports on their way: where a machine's sources are, and who reports
line.py         ... one source: one report at a time, and what becomes of each
slot.py         ... its block: whether it has been read, and if not, why
outcome.py      ... that, in words
processors.py   which processor a report is about
victims.py      processes in the guest that wait for an error in their memory
cper/           the records that say what is broken
"""
