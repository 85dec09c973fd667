"""What `doctor` concludes: facts about a host, as values -> findings, each with a remedy.

    finding      one check's verdict, what was seen, what to do
    catalogue    the names of all checks, and which of them follow from others
    host_facts   what a host is, as values; permission: who may do what with a path
    issued       what an agent issued, without its keys
    agent, identity, files, policy, listener, backend, host
                 one group of checks each: its facts, and the judgement of them

Nothing is looked up here, so a Mac is judged on any system, from what its commands print.
"""
