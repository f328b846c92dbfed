# SPDX-License-Identifier: Apache-2.0
"""Moving a guest: its state as a stream, to another process while it runs, or to a file.

The two sides:

messages.py     what they say to each other
source.py       the one that a guest leaves
leaving.py      what its steps have in common
precopy.py      all of the guest on its way
passes.py       passes over RAM
convergence.py  when to stop the guest, and when to hold it up
handover.py     the word that lets it run there, and finding out whether it does
destination.py  the one that it comes to
receiving.py    all of the guest as it comes
takeover.py     whether it is to run here, and whether the source knows
door.py         who comes to a place that is taken
detour.py       injections that come in the midst of it
identity.py     which process the other side is, and whether it has ended
status.py       how far it has got

A guest that goes before its pages, which follow:

lacking.py      what is said of pages that are lacking
wants.py        which they are, and what to ask for next
pager.py        asks for them, and gives them to the machine
mouth.py        what it says meanwhile, and never waits for that
arriving.py     the destination
postcopy.py     the source
pageserver.py   sends them, those that are asked for first
pageframes.py   the frames of them
lazy.py         the same out of a file, or from who serves one
index.py        a file as a place to fetch single pages from
served.py       serves it
slow.py         a link that is slower than the one there is

The stream:

channel/        where it goes and comes from: sockets, TLS, files
wire.py         frames over a channel
frames.py       the kinds of frames
stream.py       frames made and read
sections.py     the parts of the state, each a record with a version
inventory.py    which of them follow
collector.py    what has come
description.py  what a machine is made of
pages.py        how pages stand in frames
ram.py          RAM into frames, and out of them

Looking at one:

analysis.py     what is in it
shown.py        sections for people and as JSON
histogram.py    which parts of RAM were sent
report.py       an analysis as text
"""
