# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-linux.sh: what is enabled, started and restarted.
#
# A service is restarted only when something of it has changed, here or in a run before this one
# that was interrupted. A restart of the sidecar lets running answers finish.

ready_seconds=60
agent_started=no

run_services() {
  reload_manager
  enable "$sidecar_unit"
  [ -z "$agent_managed" ] || enable "$agent_unit"
  [ "$activated" = no ] || enable "$socket_unit"
  # In a tree nothing runs on an old version.
  [ -z "$root" ] || prune
  [ "$start" = yes ] && systemd_runs || return 0
  if [ -n "$agent_managed" ]; then
    [ "$agent_changed" = no ] || pending "$agent_unit"
    run_service "$agent_unit" agent_is_new
    [ "$dry_run" = yes ] || spend_token
  fi
  [ "$activated" = no ] || open_socket
  run_service "$sidecar_unit" sidecar_is_new
  if [ "$dry_run" = no ]; then
    wait_until_ready
    wait_until_issued
  fi
  prune
}

reload_manager() {
  systemd_runs || return 0
  local unit
  for unit in "$sidecar_unit" "$agent_unit" "$socket_unit"; do
    if [ -e "$unit_dir/$unit" ] && needs_reload "$unit"; then
      change "systemctl daemon-reload" systemctl daemon-reload
      return
    fi
  done
}

needs_reload() { # UNIT
  [ "$(systemctl show --property NeedDaemonReload --value "$1")" = yes ] ||
    [ "$(systemctl show --property LoadState --value "$1")" = not-found ]
}

enable() { # UNIT
  local tree=()
  [ -z "$root" ] || tree=(--root "$root")
  if ! systemctl "${tree[@]}" is-enabled --quiet "$1" 2>/dev/null; then
    change "enable $1" systemctl "${tree[@]}" enable --quiet "$1"
  fi
}

run_service() { # UNIT IS-NEW
  if ! is_up "$1"; then
    change "start $1" start_service "$1"
  elif "$2"; then
    change "restart $1" restart_service "$1"
  fi
}

# Waiting for an identity is being up, too.
is_up() {
  case "$(systemctl show --property ActiveState --value "$1")" in
    active | activating | reloading) return 0 ;;
    *) return 1 ;;
  esac
}

start_service() {
  systemctl reset-failed "$1" 2>/dev/null || true
  systemctl start --no-block "$1"
  [ "$1" != "$agent_unit" ] || agent_started=yes
  settled "$1"
}

restart_service() {
  # Until the last answer has ended, or [connections] drain_seconds are over.
  systemctl stop "$1"
  start_service "$1"
}

agent_is_new() {
  is_pending "$agent_unit" || [ "$agent_changed" = yes ]
}

# By what runs: its command line names the folder of its version.
sidecar_is_new() {
  local pid
  is_pending "$sidecar_unit" && return 0
  pid="$(systemctl show --property MainPID --value "$sidecar_unit")"
  [ "$pid" -gt 0 ] 2>/dev/null || return 1
  ! tr '\0' '\n' <"/proc/$pid/cmdline" | grep -q "^$venv/"
}

open_socket() {
  systemctl is-active --quiet "$socket_unit" && ! is_pending "$sidecar_unit" && return 0
  if is_up "$sidecar_unit"; then
    # It holds the port itself, or an older socket.
    change "stop $sidecar_unit" systemctl stop "$sidecar_unit"
  fi
  change "open $socket_unit" systemctl restart "$socket_unit"
}

wait_until_ready() {
  local seconds state
  for ((seconds = 0; seconds < ready_seconds; seconds++)); do
    state="$(of_sidecar ActiveState)"
    [ "$state" != active ] || return 0
    [ "$state" != failed ] && [ "$(of_sidecar NRestarts)" -lt 3 ] || break
    sleep 1
  done
  unwell "$sidecar_unit is not ready: $state, $(of_sidecar Result), started again $(of_sidecar NRestarts) times" \
    "journalctl -u spiffe-sidecar; no identity yet: register-workload --uid $(id_of passwd "$service_user")"
}

of_sidecar() { # PROPERTY
  systemctl show --property "$1" --value "$sidecar_unit"
}

# An agent that was just started knows its entries some seconds later, and a sidecar that has an
# identity of before is ready without it.
wait_until_issued() {
  local tries
  [ "$agent_started" = yes ] || return 0
  for ((tries = 0; tries < 10; tries++)); do
    ! is_issued || return 0
    sleep 3
  done
  # Whatever it is by now, doctor names it.
}

# A check that cannot be made yet is skipped and fails nothing: only the verdict tells.
is_issued() {
  local said
  said="$(examine --only agent.registration --json 2>/dev/null || true)"
  case "$said" in *'"verdict": "ok"'*) return 0 ;; *) return 1 ;; esac
}

# As root: it sees more, and changes nothing.
examine() { # OPTIONS...
  "$venv_link/bin/spiffe-sidecar" doctor --config "$config" "$@"
}

doctor() {
  heading doctor
  examine ||
    unwell "doctor found something" "its remedies stand beside; run it again: sudo $venv_link/bin/spiffe-sidecar doctor --config $config"
}
