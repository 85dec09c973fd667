"""Accounts of this host, by name or by number, as the system's own directory has them."""

from __future__ import annotations

import grp
import os
import pwd

from sidecar.core.diagnosis.host_facts import Account


def account_of(who: str | int) -> Account | None:
    """Give an account with its groups; a number without an account is one without a name."""
    try:
        entry = pwd.getpwnam(who) if isinstance(who, str) else pwd.getpwuid(who)
    except KeyError:
        return None if isinstance(who, str) else Account("", who, who)
    return Account(
        entry.pw_name,
        entry.pw_uid,
        entry.pw_gid,
        _groups(entry.pw_name, entry.pw_gid),
        _group_name(entry.pw_gid),
        entry.pw_shell,
        entry.pw_dir,
    )


def own_account() -> Account:
    """Give the account that this process runs as."""
    account = account_of(os.geteuid())
    assert account is not None
    return account


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _groups(name: str, gid: int) -> frozenset[int]:
    try:
        return frozenset(os.getgrouplist(name, gid))
    except OSError:
        return frozenset({gid})
