# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-linux.sh: the SPIRE agent's program and the files from `register-workload`.
#
# The join token is a secret until the agent has used it, once. The agent reads the file at each
# start and refuses to start when it is missing or empty, so a used token is not removed but
# replaced by the word "spent". The copy in the host folder is removed as soon as it is installed.

agent_binary=/opt/spire/bin/spire-agent
agent_conf=/opt/spire/conf/agent.conf
agent_bundle=/opt/spire/conf/trust-bundle.pem
agent_token=/opt/spire/conf/join-token
agent_data=/opt/spire/data
agent_sockets=/opt/spire/sockets
agent_socket="$agent_sockets/agent.sock"
token_form='^[0-9A-Za-z-]{8,128}$'

# Sets $agent_managed when the agent is this script's business.
plan_agent() {
  agent_managed="" agent_changed=no new_token=no
  if [ -n "$agent_program$host_folder" ] || was_made file "$agent_binary"; then
    agent_managed=yes
  else
    note "no --spire-agent: an agent that is not this script's is expected at $agent_socket"
    return
  fi
  if [ -n "$agent_program" ]; then
    [ -f "$agent_program" ] && [ -x "$agent_program" ] ||
      fail "--spire-agent $agent_program: no program" "$(where_agents_are)"
    "$agent_program" --version >/dev/null 2>&1 ||
      fail "--spire-agent $agent_program does not run here ($(uname -m))" "$(where_agents_are)"
  elif [ ! -x "$(at "$agent_binary")" ]; then
    fail "no SPIRE agent at $(at "$agent_binary")" "--spire-agent PATH; $(where_agents_are)"
  fi
  plan_host_folder
}

where_agents_are() {
  echo "SPIRE's releases have one for Linux: github.com/spiffe/spire/releases"
}

plan_host_folder() {
  local conf name taken="$work/host-folder"
  if [ -z "$host_folder" ]; then
    [ -f "$(at "$agent_conf")" ] ||
      fail "there is no $(at "$agent_conf") yet" "--host-folder DIR, as register-workload writes it"
    return
  fi
  take_host_folder "$host_folder"
  conf="$taken/agent.conf"
  for name in agent.conf trust-bundle.pem; do
    [ -f "$taken/$name" ] ||
      fail "--host-folder $host_folder: no $name in it" "register-workload --host-folder writes it"
  done
  grep -q 'BEGIN CERTIFICATE' "$taken/trust-bundle.pem" ||
    fail "$host_folder/trust-bundle.pem holds no certificate" "register-workload --host-folder writes it"
  names "$conf" socket_path "$agent_socket"
  names "$conf" data_dir "$agent_data"
  names "$conf" trust_bundle_path "$agent_bundle"
  names "$conf" join_token_file "$agent_token"
  plan_token "$conf"
}

plan_token() { # CONF
  local token="$host_folder/join-token" there
  there="$(at "$agent_token")"
  if [ -f "$taken/join-token" ]; then
    [[ "$(cat "$taken/join-token")" =~ $token_form ]] ||
      fail "$token holds no join token" "register-workload --generate-token --host-folder writes one"
    if agent_healthy; then
      note "$token is not needed: the agent is attested. Remove that file."
    else
      new_token=yes
    fi
  elif grep -q '^[[:space:]]*join_token_file' "$1" && [ ! -f "$there" ]; then
    fail "$host_folder has no join-token, and agent.conf wants one" \
      "register-workload --generate-token --host-folder writes one"
  fi
}

# It opens its socket only when the SPIRE server has attested it.
agent_healthy() {
  [ -z "$root" ] && [ -x "$agent_binary" ] && [ -S "$agent_socket" ] &&
    "$agent_binary" healthcheck -socketPath "$agent_socket" >/dev/null 2>&1
}

install_agent() {
  if [ -n "$agent_program" ]; then
    place "$agent_program" "$agent_binary" root root 0755
    [ "$placed" = no ] || agent_changed=yes
    [ "$dry_run" = yes ] || label "$(at "$agent_binary")"
  fi
  [ -n "$host_folder" ] || return 0
  # Only its first contact with the server needs the bundle: no reason for a restart.
  place "$work/host-folder/trust-bundle.pem" "$agent_bundle" root root 0644
  place "$work/host-folder/agent.conf" "$agent_conf" root root 0644
  [ "$placed" = no ] || agent_changed=yes
  [ "$new_token" = yes ] || return 0
  place "$work/host-folder/join-token" "$agent_token" "$agent_user" "$agent_user" 0600
  [ "$placed" = no ] || agent_changed=yes
  change "remove $host_folder/join-token: it is installed" rm -f "$host_folder/join-token"
}

# To be called when the agent runs.
spend_token() {
  local there seconds
  there="$(at "$agent_token")"
  [ -f "$there" ] && [ "$(cat "$there")" != spent ] || return 0
  for ((seconds = 0; seconds < 30; seconds++)); do
    if agent_healthy; then
      echo spent >"$work/spent"
      change "write \"spent\" over the join token in $there: the agent has used it" \
        put "$work/spent" "$there" "$agent_user" "$agent_user" 0600
      return
    fi
    sleep 1
  done
  unwell "the SPIRE agent is not attested after 30 s; the join token stays in $there" \
    "journalctl -u spire-agent; a token that has expired: register-workload --generate-token"
}
