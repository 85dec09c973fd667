# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-linux.sh: sidecar.toml and policy.toml, given or made out of conf/.
#
# One that is there is never overwritten: what would have been written is put beside it as .new,
# for a person to compare. Nothing is restarted before the configuration in force has been checked
# by the version that is going to read it.

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
  fi
  if [ -f "$(at "$config")" ]; then
    read_configuration "$(at "$config")"
  else
    read_configuration "$planned_config"
  fi
  # In helper mode there is none.
  if [ "$policy_name" = policy.toml ] && [ ! -f "$(at "$policy")" ] && [ ! -f "$planned_policy" ]; then
    fail "nobody would be allowed in: there is no $(at "$policy") yet" \
      "--traefik-id ID for the one peer, or --policy FILE"
  fi
  if [ "$activation" = yes ] && [ "$activated" = no ]; then
    fail "--socket-activation, but $(at "$config") has [listener] address = $listens" \
      'set it to "systemd" there, and run this again'
  fi
}

# conf/sidecar.toml with the values of this host.
sidecar_toml() {
  local address="${listen:-0.0.0.0:6701}"
  [ "$activation" = no ] || address=systemd
  sed -e "s|^spiffe_id = \"\"|spiffe_id = \"$spiffe_id\"|" \
    -e "/^\[listener\]/,/^\[/s|^address = .*|address = \"$address\"|" \
    -e "/^\[backend\]/,/^\[/s|^address = .*|address = \"${backend:-127.0.0.1:11434}\"|" \
    "$source_root/conf/sidecar.toml"
}

policy_toml() {
  sed -e "s|^peers = .*|peers = [\"$traefik_id\"]|" "$source_root/conf/policy.toml"
}

# Of the configuration that will be in force: where it listens, who holds the socket, the backend.
read_configuration() { # FILE
  listens="$(toml "$1" listener address)" ||
    fail "$1 is no TOML that can be read" "mend it: spiffe-sidecar check --config $1"
  backends="$(toml "$1" backend address)"
  policy_name="$(toml "$1" policy file)"
  activated=no
  ! grep -Eqx "systemd(:.+)?" <<<"$listens" || activated=yes
}

toml() { # FILE TABLE KEY: its values, one a line
  "$python" -I - "$@" <<'PYTHON' 2>/dev/null
import sys, tomllib

with open(sys.argv[1], "rb") as file:
    value = tomllib.load(file).get(sys.argv[2], {}).get(sys.argv[3], [])
print(*([value] if isinstance(value, str) else value), sep="\n")
PYTHON
}

make_configuration() {
  [ ! -f "$planned_policy" ] || configure "$planned_policy" "$policy"
  [ ! -f "$planned_config" ] || configure "$planned_config" "$config"
  readable "$config"
  readable "$policy"
}

configure() { # SOURCE PATH
  if [ ! -f "$(at "$2")" ]; then
    place "$1" "$2" root "$service_user" 0640
    return
  fi
  if ! cmp -s "$1" "$(at "$2")"; then
    place "$1" "$2.new" root "$service_user" 0640
    [ "$placed" = no ] || note "$2 stays as it is; compare it with $2.new"
  fi
}

# An editor may have made a new file of it, which the service cannot read.
readable() { # PATH
  local path
  path="$(at "$1")"
  [ ! -f "$path" ] || [ -L "$path" ] || place "$path" "$1" root "$service_user" 0640
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
