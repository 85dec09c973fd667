# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-linux.sh and setup-macos.sh: what is said, and what is done because of it.
#
# Every change goes through `change`, so that a dry run says the same and does nothing.

changes=0
doing="looking at this host"
failed=no
well=yes

usage_error() {
  echo "error: $1" >&2
  echo "hint: $0 --help" >&2
  failed=yes
  exit 2
}

fail() { # MESSAGE [HINT]
  echo "error: $1" >&2
  [ -z "${2:-}" ] || echo "hint: $2" >&2
  failed=yes
  exit 1
}

# What works, but not as it should; what does not work yet is `unwell`.
warn() { # MESSAGE [HINT]
  echo "warning: $1" >&2
  [ -z "${2:-}" ] || echo "hint: $2" >&2
}

unwell() { # MESSAGE [HINT]
  well=no
  warn "$@"
}

note() {
  echo "note: $1"
}

# `change TEXT COMMAND...`: say it, and do it unless this is a dry run.
change() {
  changes=$((changes + 1))
  echo "+ $1"
  shift
  [ "$dry_run" = yes ] || "$@"
}

heading() {
  doing="$1"
  echo "== $1"
}

# `step NAME FUNCTION`: one heading, and what was changed under it.
step() {
  local before=$changes
  heading "$1"
  "$2"
  [ "$changes" -gt "$before" ] || echo "  nothing to change"
}

summary() {
  local plural=s
  [ "$changes" -ne 1 ] || plural=""
  if [ "$dry_run" = yes ]; then
    echo "dry run: $changes change$plural would be made"
  elif [ "$changes" -eq 0 ]; then
    echo "no change: everything is in place"
  else
    echo "$changes change$plural"
  fi
  [ "$well" = yes ] || fail "it does not work yet" "see the warnings; then run this again"
}

on_exit() {
  local status=$?
  [ -z "${work:-}" ] || rm -rf "$work"
  [ -z "${lock:-}" ] || rm -f "$lock"
  if [ "$status" -ne 0 ] && [ "$failed" = no ]; then
    echo "error: stopped in step '$doing' (status $status)" >&2
    echo "hint: what was done stays; run it again, and it continues there" >&2
  fi
}

trap on_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
