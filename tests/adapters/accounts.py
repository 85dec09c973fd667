"""The account without rights that every system has, for tests that only root can do."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make this fault")

OWNER = {"owner": "nobody"}
GROUP = {"group": grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name}
# Somebody without rights; None if that is us.
NOBODY = "nobody" if os.geteuid() == 0 else None
