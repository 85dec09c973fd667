"""`doctor`: everything about this host that must be right, one named check each.

    subject     what is examined: the configuration as far as it can be read, the service user, the
                running daemon, and the commands that remedies are made of
    witness     a child process that asks the agent, and our own listener, as the service user
    agent, files, policy, listener, backend, host
                gather the facts of one group; `core.diagnosis` judges them
    examination all groups at the same time: one finding for each check
    screen      the findings for people, and as JSON

Changes nothing and asks nobody but this host. Every wait has a deadline, the groups are gathered
at the same time, and what cannot be found out is skipped with the reason.
"""
