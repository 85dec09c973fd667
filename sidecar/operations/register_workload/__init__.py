"""`register-workload`: gives the sidecar's workload, and Traefik's, an entry on the SPIRE server.

    request     options -> Request, checked before any call
    plan        Request, what the server has -> Plan; changes nothing
    work        does the plan: entries, files for the other host, join token -> Outcome
    report      Outcome -> lines for a terminal, or JSON
    next_steps  Outcome -> what is to be done on the other host

Run again, it changes nothing. Joins hosts by token: `token generate -spiffeID` gives whichever
agent uses the token an alias, `spiffe://TRUST-DOMAIN/host/NAME`, and entries have the alias as
their parent, because an agent's own ID is a new one with each token.
"""
