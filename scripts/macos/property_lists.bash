# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-macos.sh: the property lists of launchd/, the rotation of the logs, and what has
# to be started again because of a change.
#
# Whether launchd holds the port is decided by the configuration in force and by nothing else, so
# that property list and configuration cannot disagree.

daemon_dir=/Library/LaunchDaemons
sidecar_label=org.spiffe-sidecar.sidecar
agent_label=org.spiffe-sidecar.spire-agent
rotation_label=org.spiffe-sidecar.log-rotation
rotation=/etc/newsyslog.d/spiffe-sidecar.conf
# What has to be restarted, kept over an interruption, not over a boot.
pending_dir=/var/run/spiffe-sidecar-setup
is_pending_now=" "

place_property_lists() {
  folder_of_the_system "$daemon_dir"
  folder_of_the_system /etc/newsyslog.d
  if [ "$activated" = yes ]; then
    activated_list >"$work/$sidecar_label.plist"
    property_list "$work" "$sidecar_label"
  else
    property_list "$source_root/launchd" "$sidecar_label"
  fi
  if [ -n "$agent_managed" ]; then
    property_list "$source_root/launchd" "$agent_label"
    property_list "$source_root/launchd" "$rotation_label"
  fi
  # A line with an account that is not there would end all rotation on this Mac.
  if [ -n "$agent_managed" ]; then
    cat "$source_root/launchd/newsyslog.conf" >"$work/newsyslog.conf"
  else
    grep -v '^/.*spire-agent' "$source_root/launchd/newsyslog.conf" >"$work/newsyslog.conf"
  fi
  place "$work/newsyslog.conf" "$rotation" root wheel 0644
}

property_list() { # FOLDER LABEL
  plutil -lint "$1/$2.plist" >/dev/null || fail "$1/$2.plist is no property list" "is this checkout whole?"
  place "$1/$2.plist" "$daemon_dir/$2.plist" root wheel 0644 "$2"
}

# With the address of --listen, or the one that it had, or its own.
activated_list() {
  local address family=IPv4
  address="$listen"
  [ -n "$address" ] || address="$(held_address)"
  address="${address:-0.0.0.0:6701}"
  [[ "$address" =~ ^(\[[0-9A-Fa-f:.]+\]|[0-9.]+):[0-9]+$ ]] ||
    fail "--listen $address: expected ip:port or [ip]:port, which launchd can hold"
  case "$address" in "["*) family=IPv6 ;; esac
  sed -e "s|<string>IPv4</string>|<string>$family</string>|" \
    -e "s|<string>0.0.0.0</string>|<string>$(echo "${address%:*}" | tr -d '[]')</string>|" \
    -e "s|<string>6701</string>|<string>${address##*:}</string>|" \
    "$source_root/launchd/socket-activation/$sidecar_label.plist"
}

# What launchd holds now, as ip:port; nothing if it holds nothing.
held_address() {
  local list
  list="$(at "$daemon_dir/$sidecar_label.plist")"
  [ -f "$list" ] || return 0
  "$python" -I -c 'if True:
    import plistlib, sys
    with open(sys.argv[1], "rb") as file:
        held = plistlib.load(file).get("Sockets", {}).get("Listener")
    if held:
        node = held["SockNodeName"]
        print(f"[{node}]" if ":" in node else node, held["SockServiceName"], sep=":")
  ' "$list"
}

pending() { # LABEL
  is_pending_now="$is_pending_now$1 "
  [ "$dry_run" = no ] || return 0
  mkdir -p "$(at "$pending_dir")"
  : >"$(at "$pending_dir/$1")"
}

is_pending() { # LABEL
  [ ! -e "$(at "$pending_dir/$1")" ] || return 0
  case "$is_pending_now" in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

settled() { # LABEL
  rm -f "$(at "$pending_dir/$1")"
  rmdir "$(at "$pending_dir")" 2>/dev/null || true
  is_pending_now="${is_pending_now// $1 / }"
}
