"""Two hosts on which every command of conf/runbook.md is run, in the order of the page.

`page` reads the page. `machine` is one host: a private view of this machine's files, processes and
network, in which nothing that a command does reaches the outside. `story` puts two of them
together, with a SPIRE server, Traefik and a model server, and stand-ins for what is not at hand.
"""
