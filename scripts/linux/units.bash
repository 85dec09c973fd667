# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-linux.sh: the units of systemd/ and the drop-ins for socket activation.
#
# Whether systemd holds the port is decided by the configuration in force and by nothing else, so
# that unit and configuration cannot disagree. Drop-ins of other names are the operator's.

unit_dir=/etc/systemd/system
sidecar_unit=spiffe-sidecar.service
socket_unit=spiffe-sidecar.socket
agent_unit=spire-agent.service
activation_drop_in="$unit_dir/$sidecar_unit.d/50-socket.conf"
listen_drop_in="$unit_dir/$socket_unit.d/50-listen.conf"
# What has to be restarted, kept over an interruption, not over a boot.
pending_dir=/run/spiffe-sidecar-setup

place_units() {
  # There on every host with systemd; an image may get it later.
  [ -d "$(at "$unit_dir")" ] ||
    change "make folder $(at "$unit_dir")" install -d -m 0755 "$(at "$unit_dir")"
  unit "$sidecar_unit" "$sidecar_unit"
  [ -z "$agent_managed" ] || unit "$agent_unit" "$agent_unit"
  if [ "$activated" = yes ]; then
    place_activation
  else
    drop_activation
  fi
}

unit() { # NAME SERVICE-TO-RESTART
  place "$source_root/systemd/$1" "$unit_dir/$1" root root 0644
  [ "$placed" = no ] || pending "$2"
}

place_activation() {
  unit "$socket_unit" "$sidecar_unit"
  printf '%s\n' "# Made by setup-linux.sh: [listener] address is \"systemd\"." "[Unit]" \
    "Requires=$socket_unit" "After=$socket_unit" >"$work/activation"
  drop_in "$work/activation" "$activation_drop_in"
  [ -n "$listen" ] || return 0
  printf '%s\n' "# Made by setup-linux.sh --listen." "[Socket]" "ListenStream=" \
    "ListenStream=$listen" >"$work/listen"
  if [ "$listen" != 0.0.0.0:6701 ] || [ -f "$(at "$listen_drop_in")" ]; then
    drop_in "$work/listen" "$listen_drop_in"
  fi
}

drop_in() { # SOURCE PATH
  folder "$(dirname "$2")" root root 0755
  place "$1" "$2" root root 0644
  [ "$placed" = no ] || pending "$sidecar_unit"
}

drop_activation() {
  [ -f "$(at "$activation_drop_in")" ] || return 0
  pending "$sidecar_unit"
  [ -n "$root" ] || ! systemd_runs ||
    change "stop and disable $socket_unit" systemctl disable --quiet --now "$socket_unit"
  take "$activation_drop_in"
  take "$listen_drop_in"
  take "$unit_dir/$socket_unit"
}

pending() { # SERVICE
  [ "$1" != "$agent_unit" ] || agent_changed=yes
  [ "$dry_run" = yes ] || [ -n "$root" ] || {
    mkdir -p "$pending_dir"
    : >"$pending_dir/$1"
  }
}

is_pending() {
  [ -e "$pending_dir/$1" ]
}

settled() {
  rm -f "$pending_dir/$1"
  rmdir --ignore-fail-on-non-empty "$pending_dir" 2>/dev/null || true
}

systemd_runs() {
  [ -d /run/systemd/system ] && [ -z "$root" ]
}
