# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-macos.sh: the SPIRE agent's program and the files from `register-workload`.
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
where_agents_are="SPIRE publishes none for macOS; its guide builds one: https://spiffe.io/docs/latest/try/getting-started-linux-macos-x/"

# Sets $agent_managed when the agent is this script's business.
plan_agent() {
  agent_managed="" new_token=no
  if [ -n "$agent_program$host_folder" ] || was_made file "$agent_binary"; then
    agent_managed=yes
  else
    note "no --spire-agent: an agent that is not this script's is expected at $agent_socket"
    return
  fi
  if [ -n "$agent_program" ]; then
    plan_agent_program
  elif [ ! -x "$(at "$agent_binary")" ]; then
    fail "no SPIRE agent at $(at "$agent_binary")" "--spire-agent PATH. $where_agents_are"
  fi
  plan_host_folder
}

plan_agent_program() {
  local kind arch=x86_64
  [ -f "$agent_program" ] && [ -x "$agent_program" ] ||
    fail "--spire-agent $agent_program: no program" "$where_agents_are"
  kind="$(file -b "$agent_program")"
  case "$kind" in
    *Mach-O*executable* | *Mach-O*universal*) ;;
    *) fail "--spire-agent $agent_program is no program for macOS: ${kind%%,*}" "$where_agents_are" ;;
  esac
  # Also under Rosetta, where uname says x86_64.
  [ "$(sysctl -n hw.optional.arm64 2>/dev/null || true)" != 1 ] || arch=arm64
  case "$kind" in
    *"$arch"*) ;;
    *arm64*) fail "--spire-agent $agent_program is for Apple silicon, and this Mac has an Intel processor" "build it here" ;;
    *) warn "$agent_program is for Intel processors and needs Rosetta here" "build it for arm64" ;;
  esac
  # The kernel of Apple silicon kills what has no signature at all; go build signs ad hoc, and
  # some tools that change a program afterwards (strip, lipo) take the signature off.
  if [ "$arch" = arm64 ] && ! codesign --verify "$agent_program" 2>/dev/null; then
    fail "--spire-agent $agent_program has no valid signature, and Apple silicon runs nothing without" \
      "if you trust it: codesign --force --sign - $agent_program"
  fi
  if xattr -p com.apple.quarantine "$agent_program" >/dev/null 2>&1; then
    warn "$agent_program came from the network and is in quarantine; its copy at $agent_binary is not" \
      "be sure where it is from, and compare its checksum"
  fi
}

plan_host_folder() {
  local conf name taken="$work/host-folder"
  if [ -z "$host_folder" ]; then
    [ -f "$(at "$agent_conf")" ] ||
      fail "there is no $(at "$agent_conf") yet" "--host-folder DIR, as register-workload writes it"
    return 0
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
    if [ "$renew_token" = no ] && agent_is_healthy; then
      note "$token is not needed: the agent is attested. Remove that file, or --new-token."
    else
      new_token=yes
    fi
  elif grep -q '^[[:space:]]*join_token_file' "$1" && [ ! -f "$there" ]; then
    fail "$host_folder has no join-token, and agent.conf wants one" \
      "register-workload --generate-token --host-folder writes one"
  fi
}

# It opens its socket only when the SPIRE server has attested it.
agent_is_healthy() {
  local binary
  binary="$(at "$agent_binary")"
  [ -x "$binary" ] && [ -S "$(at "$agent_socket")" ] &&
    "$binary" healthcheck -socketPath "$(at "$agent_socket")" >/dev/null 2>&1
}

install_agent() {
  [ -z "$agent_program" ] || place "$agent_program" "$agent_binary" root wheel 0755 "$agent_label"
  [ -n "$host_folder" ] || return 0
  # Only its first contact with the server needs the bundle: no reason for a restart.
  place "$work/host-folder/trust-bundle.pem" "$agent_bundle" root wheel 0644
  place "$work/host-folder/agent.conf" "$agent_conf" root wheel 0644 "$agent_label"
  [ "$new_token" = yes ] || return 0
  # With a token of its own the agent is admitted anew, instead of the identity that it had.
  place "$work/host-folder/join-token" "$agent_token" "$agent_user" "$agent_group" 0600 "$agent_label"
  change "remove $host_folder/join-token: it is installed" rm -f "$host_folder/join-token"
}

# To be called when the agent runs.
spend_token() {
  local there seconds=0
  there="$(at "$agent_token")"
  if [ "$dry_run" = yes ]; then
    if [ "$new_token" = yes ] || ! is_spent "$there"; then
      change "write $there: it is spent once the agent is attested"
    fi
    return
  fi
  ! is_spent "$there" || return 0
  while ! agent_is_healthy; do
    if [ "$seconds" -ge 30 ]; then
      unwell "the SPIRE agent is not attested after 30 s; the join token stays in $there" \
        "$log_dir/spire-agent.log says why; a token that has expired: register-workload --generate-token"
      return
    fi
    sleep 1
    seconds=$((seconds + 1))
  done
  echo spent >"$work/spent"
  change "write $there: it is spent once the agent is attested" \
    put "$work/spent" "$there" "$agent_user" "$agent_group" 0600
}

is_spent() { # PATH
  [ ! -f "$1" ] || [ "$(cat "$1")" = spent ]
}
