# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-macos.sh: sidecar.toml and policy.toml, given or made out of conf/.
#
# One that is there is never overwritten: what would have been written is put beside it as .new,
# for a person to compare. Nothing is restarted before the configuration in force has been checked
# by the version that is going to read it.

# The name of the sockets in the property list.
activated_address=launchd:Listener

plan_configuration() {
  has_form --spiffe-id "$spiffe_id" "$id_form" "spiffe://TRUST-DOMAIN/PATH"
  has_form --traefik-id "$traefik_id" "$id_form" "spiffe://TRUST-DOMAIN/PATH"
  has_form --listen "$listen" "$listen_form" "ip:port or [ip]:port"
  has_form --backend "$backend" "$backend_form" "ip:port or unix:/path"
  planned_config="$work/sidecar.toml" planned_policy="$work/policy.toml"
  if [ -n "$config_file" ]; then
    given --config "$config_file" "$planned_config"
  elif [ ! -f "$(at "$config")" ] || [ -n "$spiffe_id$backend$listen" ]; then
    sidecar_toml >"$planned_config"
  fi
  if [ -n "$policy_file" ]; then
    given --policy "$policy_file" "$planned_policy"
  elif [ -n "$traefik_id" ]; then
    policy_toml >"$planned_policy"
  elif [ ! -f "$(at "$policy")" ] && [ -z "$config_file" ]; then
    fail "nobody would be allowed in: there is no $(at "$policy") yet" \
      "--traefik-id ID for the one peer, or --policy FILE"
  fi
  if [ -f "$(at "$config")" ]; then
    read_configuration "$(at "$config")"
  else
    read_configuration "$planned_config"
  fi
  if [ "$activation" = yes ] && [ "$activated" = no ]; then
    fail "--socket-activation, but $(at "$config") has [listener] address = $listens" \
      "set it to \"$activated_address\" there, and run this again"
  fi
}

# conf/sidecar.toml with the values of this Mac; the log is a
# file, because there is no journal and launchd's own files cannot be rotated.
sidecar_toml() {
  local address="${listen:-0.0.0.0:6701}"
  [ "$activation" = no ] || address="$activated_address"
  "$python" -I -c 'if True:
    import re, sys
    file, spiffe_id, listener, backend, log = sys.argv[1:]
    values = {
        ("workload_api", "spiffe_id"): spiffe_id,
        ("listener", "address"): listener,
        ("backend", "address"): backend,
        ("log", "file"): log,
    }
    table = ""
    for line in open(file, encoding="utf-8"):
        head = re.match(r"\[(\w+)\]", line)
        table = head[1] if head else table
        key = re.match(r"(\w+) = ", line)
        value = values.get((table, key[1])) if key else None
        if value is not None:
            line = f"{key[1]} = \"{value}\"\n"
        print(line, end="")
  ' "$source_root/conf/sidecar.toml" "$spiffe_id" "$address" "${backend:-127.0.0.1:11434}" \
    "$log_dir/sidecar.log"
}

policy_toml() {
  sed -e "s|^peers = .*|peers = [\"$traefik_id\"]|" "$source_root/conf/policy.toml"
}

# Of the configuration that will be in force: where it listens, who holds the socket, the backend,
# the log.
read_configuration() { # FILE
  listens="$(toml "$1" listener address)" ||
    fail "$1 is no TOML that can be read" "mend it: spiffe-sidecar check --config $1"
  backends="$(toml "$1" backend address)"
  logs="$(toml "$1" log file)"
  activated=no
  case "$listens" in *launchd:*) activated=yes ;; esac
  if [ "$activated" = yes ] && [ "$listens" != "$activated_address" ]; then
    fail "$1: [listener] address is $listens" "the property list knows \"$activated_address\" only"
  fi
}

toml() { # FILE TABLE KEY: its values, one a line
  "$python" -I -c 'if True:
    import sys, tomllib
    with open(sys.argv[1], "rb") as file:
        value = tomllib.load(file).get(sys.argv[2], {}).get(sys.argv[3], [])
    print(*([value] if isinstance(value, str) else value), sep="\n")
  ' "$@" 2>/dev/null
}

make_configuration() {
  [ ! -f "$planned_policy" ] || configure "$planned_policy" "$policy"
  [ ! -f "$planned_config" ] || configure "$planned_config" "$config"
  if [ -z "$logs" ]; then
    note "$config has no [log] file: the log goes to $log_dir/sidecar.err, which cannot be rotated while the sidecar runs"
  fi
}

configure() { # SOURCE PATH
  if [ ! -f "$(at "$2")" ]; then
    place "$1" "$2" root "$service_group" 0640 "$sidecar_label"
  elif ! cmp -s "$1" "$(at "$2")"; then
    place "$1" "$2.new" root "$service_group" 0640
    [ "$placed" = no ] || note "$2 stays as it is; compare it with $2.new"
  fi
}

check_configuration() {
  if [ "$dry_run" = yes ] && { [ ! -x "$(at "$venv")/bin/python" ] || [ ! -f "$(at "$config")" ]; }; then
    return 0
  fi
  heading check
  program check --config "$(at "$config")" ||
    fail "the configuration cannot be used, so nothing is started or restarted" \
      "mend $(at "$config") or its policy, and run this again"
}
