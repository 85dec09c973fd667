"""What `register-workload` asks of a SPIRE server, and what it says to that.

entries      registration entries, and the commands about them
plan         what is wanted and what is there -> what is to be done
answers      the server's JSON, and what of it is believed
faults       its refusals -> what a person can do
advice       what is legal and most likely not meant
agent_conf   the agent's configuration on the other host
"""
