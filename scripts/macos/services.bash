# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-macos.sh: what launchd runs.
#
# A service is restarted only when something of it has changed, here or in a run before this one
# that was interrupted. It is stopped by `bootout`, because whatever is kept alive would come back
# after any other end. That asks it to end and may come back before it has: running answers finish
# first. Until then launchd takes no new one of that label (status 5 or 37).

stop_seconds=330 # more than ExitTimeOut in the property list
ready_seconds=60
agent_is_new=no

run_services() {
  [ "$start" = yes ] || return 0
  if [ -n "$agent_managed" ]; then
    run_service "$agent_label" always
    run_service "$rotation_label" "by the clock"
    spend_token
  fi
  run_service "$sidecar_label" always
  if [ "$dry_run" = no ]; then
    wait_until_ready
    wait_until_issued
  fi
  prune
}

run_service() { # LABEL WHEN
  if is_disabled "$1"; then
    change "enable $1" launchctl enable "system/$1"
  fi
  if ! is_loaded "$1"; then
    change "start $1" start_service "$1"
  elif is_pending "$1"; then
    change "restart $1" restart_service "$1"
  elif [ "$2" = always ] && ! is_running "$1"; then
    change "start $1" launchctl kickstart "system/$1"
  fi
}

# No pipe into grep -q: it goes when it has seen enough, and launchctl's end by SIGPIPE would be the
# end of the pipe (pipefail).
is_disabled() { # LABEL
  local said
  said="$(launchctl print-disabled system)"
  case "$said" in
    # Before macOS 13 it says true and false.
    *"\"$1\" => disabled"* | *"\"$1\" => true"*) return 0 ;;
    *) return 1 ;;
  esac
}

is_loaded() { # LABEL
  launchctl print "system/$1" >/dev/null 2>&1
}

is_running() { # LABEL
  local said
  said="$(launchctl print "system/$1" 2>/dev/null || true)"
  case "$said" in *"state = running"*) return 0 ;; *) return 1 ;; esac
}

# As root it sees more; what it asks the agent, it asks as the service's account.
examine() { # OPTIONS...
  "$(at "$venv")/bin/python" -I -m sidecar doctor --config "$(at "$config")" "$@"
}

restart_service() { # LABEL
  stop_service "$1"
  start_service "$1"
}

stop_service() { # LABEL
  local status=0 seconds=0
  launchctl bootout "system/$1" >"$work/said" 2>&1 || status=$?
  case "$status" in
    0 | 3 | 36 | 113) ;; # it has ended, it ends, or it was not there
    *)
      cat "$work/said" >&2
      fail "launchd does not stop $1 (status $status)" "launchctl print system/$1"
      ;;
  esac
  while is_loaded "$1"; do
    [ "$seconds" -lt "$stop_seconds" ] ||
      fail "$1 still runs after $stop_seconds s" "launchctl print system/$1"
    sleep 1
    seconds=$((seconds + 1))
  done
}

start_service() { # LABEL
  local status tries=0
  while true; do
    status=0
    launchctl bootstrap system "$(at "$daemon_dir/$1.plist")" >"$work/said" 2>&1 || status=$?
    if [ "$status" -eq 0 ] || is_loaded "$1"; then
      break
    fi
    case "$status $tries" in
      5\ [0-4] | 37\ [0-4]) ;;
      *)
        cat "$work/said" >&2
        fail "launchd does not start $1 (status $status)" \
          "plutil -lint $(at "$daemon_dir/$1.plist"); log show --last 5m --predicate 'process == \"launchd\"'"
        ;;
    esac
    sleep 1
    tries=$((tries + 1))
  done
  [ "$1" != "$agent_label" ] || agent_is_new=yes
  settled "$1"
}

# `status` says so by its exit status; a configuration without [admin] has nobody to ask (78).
wait_until_ready() {
  local status=1 seconds=0
  while [ "$seconds" -lt "$ready_seconds" ]; do
    status=0
    program status --config "$(at "$config")" >/dev/null 2>&1 || status=$?
    case "$status" in
      0) return ;;
      78) break ;;
    esac
    sleep 1
    seconds=$((seconds + 1))
  done
  if [ "$status" -eq 78 ] && is_running "$sidecar_label"; then
    return
  fi
  unwell "$sidecar_label is not ready after $ready_seconds s" \
    "sudo tail $log_dir/sidecar.log $log_dir/sidecar.err; no identity yet: register-workload --uid $(directory "/Users/$service_user" UniqueID)"
}

# An agent that was just started knows its entries some seconds later, and a sidecar that has an
# identity of before is ready without it.
wait_until_issued() {
  local tries=0
  [ "$agent_is_new" = yes ] || return 0
  until is_issued; do
    # Whatever it is by then, doctor names it.
    [ "$tries" -lt 10 ] || return 0
    sleep 3
    tries=$((tries + 1))
  done
}

# A check that cannot be made yet, without a socket for one, is skipped and fails nothing: only the
# verdict tells.
is_issued() {
  local said
  said="$(examine --only agent.registration --json 2>/dev/null || true)"
  case "$said" in *'"verdict": "ok"'*) return 0 ;; *) return 1 ;; esac
}

doctor() {
  heading doctor
  examine ||
    unwell "doctor found something" "its remedies stand beside; run it again: sudo $venv_link/bin/spiffe-sidecar doctor --config $config"
}
