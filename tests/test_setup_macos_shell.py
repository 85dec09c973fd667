"""`setup-macos.sh` says nothing that bash 3.2, or a program of macOS, would not understand.

A linter by forms, because no shell here is as old, and GNU's programs understand more than BSD's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_mac import CHECKOUT

FULL = pytest.mark.skipif(not os.environ.get("FULL"), reason="the longer form: FULL=1")

NOT_IN_BASH_3_2 = {
    r"\b(declare|local|typeset)\s+-[a-z]*[Anlu]": "associative arrays, references, case",
    r"\b(mapfile|readarray|coproc)\b": "mapfile, readarray, coproc",
    r"\$\{[A-Za-z_][A-Za-z0-9_]*(\[[^]]*\])?(,|\^|@)": "${x,,}, ${x^^}, ${x@Q}",
    r"&>>|\|&": "&>>, |&",
    r";;&|;&": "case that falls through",
    r"\bprintf\s+-v\b.*\[|%\([^)]*\)T": "printf %()T",
    r"\bwait\s+-n\b|\bshopt\s+-s\s+(globstar|lastpipe)\b": "wait -n, globstar, lastpipe",
    r"\[\[?\s+-v\s": "[ -v x ]",
    r"\$\{[A-Za-z_]+: -[0-9]|\$\{[A-Za-z_]+:[0-9]+:-[0-9]": "negative lengths",
    r"\{[0-9]+\.\.[0-9]+\.\.|\{0[0-9]+\.\.": "steps and zeros in braces",
    r"exec \{[a-z]+\}": "descriptors by name",
    r"\$(EPOCHSECONDS|EPOCHREALTIME|BASHPID|SRANDOM)\b": "variables of later versions",
}
# An empty array is unset for `set -u` there, whichever way it is written.
ARRAYS = r"\$\{[a-z_]+\[[@*]\]"
NOT_ON_MACOS = {
    r"\breadlink\s+-[a-z]*[fem]": "readlink -f",
    r"\bsed\s+(-[a-zE]+\s+)*-i": "sed -i takes an argument",
    r"\bstat\s+(-c|--)": "GNU's stat",
    r"\bgrep\s+-[a-zA-Z]*P": "grep -P",
    r"\bdate\s+(-d|--)": "GNU's date",
    r"\bmv\s+-[a-z]*T|\bln\s+-[a-z]*[nfT]": "ln -sfn is no rename; mv -T",
    r"\bsort\s+-[a-z]*[VzR]": "sort -V, -z",
    r"\bxargs\s+-[a-z]*r": "xargs -r",
    r"\bcp\s+-[a-z]*[aTu]": "GNU's cp",
    r"\bhead\s+-[nc]\s*-": "head -n -1",
    r"(?<![.\w])(tac|nproc|realpath|timeout|sha256sum|seq)\b": "GNU",
    r"(?<![.\w])(flock|getent|useradd|runuser)\b": "Linux",
    r"\bfind\b.*-(printf|quit|regextype)": "GNU's find",
    r"(?<![\w.-])systemctl\b|\bjournalctl\b": "systemd",
    # Not only there: what writes on ends by SIGPIPE, and so does the pipe (pipefail).
    r"\|\s*grep\s+-[a-zA-Z]*q": "a pipe into grep -q",
}
PARTS = [CHECKOUT / "scripts/setup-macos.sh", *sorted((CHECKOUT / "scripts/macos").glob("*.bash"))]


def found(text: str, forbidden: dict[str, str]) -> list[str]:
    code = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [
        f"{reason}: {line.strip()}"
        for line in code
        for form, reason in forbidden.items()
        if re.search(form, line)
    ]


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.name)
def test_script_has_nothing_that_a_mac_has_not(path: Path) -> None:
    text = path.read_text()
    assert found(text, NOT_IN_BASH_3_2 | {ARRAYS: "arrays"}) == []
    assert found(text, NOT_ON_MACOS) == []


@pytest.mark.parametrize(
    "line",
    [
        "declare -A x",
        "local -n y=$1",
        "mapfile -t x",
        'echo "${x,,}"',
        "a &>>b",
        "a |& b",
        "[[ -v x ]]",
        "readlink -f x",
        "sed -i s/a/b/ x",
        "ln -sfn a b",
        "mv -fT a b",
        "stat -c %u x",
        "launchctl print x | grep -q y",
    ],
)
def test_what_a_mac_has_not_is_found(line: str) -> None:
    assert found(line, NOT_IN_BASH_3_2 | NOT_ON_MACOS)


def test_shell_that_runs_these_tests_is_the_one_that_was_asked_for() -> None:
    shell = os.environ.get("BASH32")
    if not shell:
        pytest.skip("BASH32 names no bash 3.2: what is here ran everything above")
    said = subprocess.run([shell, "--version"], capture_output=True, text=True, check=True)
    assert "version 3.2" in said.stdout


@FULL
def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("no shellcheck here")
    done = subprocess.run(
        [shellcheck, "--external-sources", str(PARTS[0])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == ""
