"""`python -IS call.py PROGRAM ARGUMENTS...`: have the machine's service manager answer.

Whatever is in place of `systemctl`, `journalctl` and `launchctl` on a machine runs this.
"""

from __future__ import annotations

import json
import socket
import sys

SOCKET = "/run/service-manager"


def main() -> int:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(SOCKET)
        with sock.makefile("rw") as stream:
            stream.write(json.dumps(sys.argv[1:]) + "\n")
            stream.flush()
            status, out, error = json.loads(stream.readline())
    sys.stdout.write(out)
    sys.stderr.write(error)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
