# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-linux.sh: what is a person's to change, looked at and told: the model server's
# addresses and the firewall.

host_notes() {
  heading "this host"
  look_at_backend
  tell_firewall
}

# The model server on an address that is not loopback would be a way around the sidecar.
look_at_backend() {
  local port open
  port="${backends##*:}"
  if [ -n "$root" ] || [[ ! "$port" =~ ^[0-9]+$ ]]; then
    return 0
  fi
  if ! command -v ss >/dev/null; then
    note "no \`ss\` here (package iproute2): look yourself that the model server is on loopback only"
    return
  fi
  open="$(ss --listening --tcp --numeric --no-header "sport = :$port" | awk '{print $4}' |
    grep -vE '^(127\.|\[::1\]|\[::ffff:127\.)' || true)"
  if [ -n "$open" ]; then
    warn "the model server's port is open to the network: ${open//$'\n'/, }" \
      "whoever reaches it needs no SPIFFE ID; for Ollama: OLLAMA_HOST=127.0.0.1:$port (systemctl edit ollama)"
  elif [ -z "$(ss --listening --tcp --numeric --no-header "sport = :$port")" ]; then
    note "nothing listens on the model server's port $port yet"
  else
    note "the model server listens on loopback only"
  fi
}

tell_firewall() {
  local from="${traefik_address:-TRAEFIK-ADDRESS}" port
  port="$(peers_port)"
  [ -n "$port" ] || return 0
  note "no firewall is changed; to let Traefik and nobody else reach port $port:"
  if runs ufw status; then
    echo "    ufw allow proto tcp from $from to any port $port"
  elif runs firewall-cmd --state; then
    echo "    firewall-cmd --permanent --add-rich-rule='rule family=\"$(family "$from")\" source address=\"$from\" port port=\"$port\" protocol=\"tcp\" accept'"
    echo "    firewall-cmd --reload"
  else
    echo "    nft add rule inet filter input tcp dport $port $(nft_family "$from") saddr != $from drop"
  fi
}

# Where peers connect: the socket unit's port when systemd holds it.
peers_port() {
  local address="${listens%%$'\n'*}" drop_in
  if [ "$activated" = yes ]; then
    drop_in="$(at "$listen_drop_in")"
    address="${listen:-0.0.0.0:6701}"
    [ ! -f "$drop_in" ] || address="$(sed -n 's/^ListenStream=\(..*\)/\1/p' "$drop_in")"
  fi
  echo "${address##*:}"
}

runs() { # COMMAND...: it is there, and says that it is in force
  command -v "$1" >/dev/null && LC_ALL=C "$@" 2>/dev/null | grep -qiE '^(status: active|running)'
}

family() {
  case "$1" in *:*) echo ipv6 ;; *) echo ipv4 ;; esac
}

nft_family() {
  case "$1" in *:*) echo ip6 ;; *) echo ip ;; esac
}
