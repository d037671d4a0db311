"""Deterministic simulation: the three roles, their links and their disks under a seeded scheduler.

One process, one thread, no sockets, no sleeping. A schedule is a handful of operations of cashiers
together with everything that goes wrong meanwhile; its seed is all there is to it. While faults
last, anything may happen to any message, connection, clock or process; then they end, all is let
settle, and the judge reads what is left.

    world.py     nodes, their disks and clocks, the timeline
    network.py   links between roles: real codecs, simulated wires
    cashiers.py  people at terminals, and what they were told
    faults.py    what goes wrong, drawn from the seed
    judge.py     what must hold afterwards
    schedule.py  one schedule from its seed to its verdict, and the shortest one that still fails
    canaries.py  planted bugs, which all of this has to find

`make sim SEED=n SECONDS=n` runs schedules from that seed on.
"""
