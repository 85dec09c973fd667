"""What this host is: accounts, paths, processes, sockets, services, sleep, clock, firewalls.

    command        runs one program of the system, bounded in time; none of them changes anything
    accounts       accounts and groups, by name or number
    paths          a path and all folders on the way to it, with owners and modes
    processes      who is behind a Unix socket; a process by its number
    listening      the TCP sockets that listen, and whose they are
    addresses      the host's own IP addresses
    services       systemd and launchd: is it installed, enabled, running
    power          whether the host goes to sleep
    network_time   whether the clock is set from the network
    firewalls      whether peers are let in
    limits         descriptors, ports, disk

Gives values of `core.diagnosis.host_facts`, or `Unknown` with the reason: what this account may
not see is never guessed. Linux and macOS are twins, chosen by `platform` (as `sys.platform` has
it); what a command of the one prints can be read on the other, which is how it is tested.
"""
