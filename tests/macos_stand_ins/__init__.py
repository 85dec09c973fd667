"""Stand-ins for the programs of macOS that `setup-macos.sh` calls, so that it can run whole here.

Each records its calls, keeps what they have made of this Mac, and answers as the real one does:
text, standard error and exit status are those of macOS 13 to 26. A call that the real one would
refuse is refused; one that is not known here ends with status 64, because a stand-in that says yes
to everything proves nothing.

    bin/dscl, ...    a line of shell each: asks over a socket, and does what the answer says
    server           hears the calls of one Mac, one after the other
    directory, services, files, host, programs      what each program answers, from `state`

A run makes hundreds of calls, and a Python for each would take longer than all the rest.
"""
