# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-macos.sh: what is the owner's to decide: the model server's addresses, the
# application firewall, sleep. Looked at and told; firewall and sleep are changed when asked to,
# and the record keeps how they were.

look_at_macos() {
  local version files
  version="$(sw_vers -productVersion)"
  [ "${version%%.*}" -ge 12 ] ||
    warn "this is macOS $version; the packages that are installed are made for 12 and newer" "update macOS"
  files="$(sysctl -n kern.maxfilesperproc 2>/dev/null || echo 0)"
  [ "$files" -ge 16384 ] ||
    warn "a process may open $files files here, and 4096 connections need 16384 (kern.maxfilesperproc)" \
      "fewer are admitted: set [connections] maximum"
}

change_this_mac() {
  [ "$no_sleep" = no ] || stay_awake
  [ "$allow_firewall" = no ] || let_through
}

host_notes() {
  heading "this Mac"
  look_at_backend
  look_at_firewall
  look_at_sleep
}

# The model server on an address that is not loopback would be a way around the sidecar.
look_at_backend() {
  local port addresses open
  port="${backends##*:}"
  [[ "$port" =~ ^[0-9]+$ ]] || return 0
  addresses="$(lsof -nP -iTCP:"$port" -sTCP:LISTEN -Fn 2>/dev/null | sed -n 's/^n//p' || true)"
  open="$(echo "$addresses" | grep -vE '^(127\.|\[::1\]|\[::ffff:127\.|$)' | sort -u | tr '\n' ' ' || true)"
  if [ -n "$open" ]; then
    warn "the model server's port is open to the network: ${open% }" \
      "whoever reaches it needs no SPIFFE ID; for Ollama: launchctl setenv OLLAMA_HOST 127.0.0.1:$port, no \"Expose Ollama to the network\" in its settings, and start it again"
  elif [ -z "$addresses" ]; then
    note "nothing listens on the model server's port $port yet"
  else
    note "the model server listens on loopback only"
  fi
}

# The firewall knows programs and not ports: the one that runs is Python's, inside of its framework
# if it has one.
python_program() {
  "$python" -I -c 'if True:
    import os, sys
    app = os.path.join(sys.base_prefix, "Resources/Python.app/Contents/MacOS/Python")
    print(app if os.path.exists(app) else os.path.realpath(sys.executable))
  '
}

# off, all (everything is blocked), yes or no
firewall_admits() { # PROGRAM
  case "$(socketfilterfw --getglobalstate 2>/dev/null || true)" in
    *"State = 1"*) ;;
    *"State = 2"*)
      echo all
      return
      ;;
    *)
      echo off
      return
      ;;
  esac
  # "... state set to enabled.", "Block all ENABLED!", "is set to block all ..."
  case "$(socketfilterfw --getblockall 2>/dev/null || true)" in
    *[Ee]nabled* | *ENABLED* | *"set to block all"*)
      echo all
      return
      ;;
  esac
  case "$(socketfilterfw --getappblocked "$1" 2>/dev/null || true)" in
    *permitted*) echo yes ;;
    *) echo no ;;
  esac
}

let_through() {
  local program
  program="$(python_program)"
  [ "$(firewall_admits "$program")" = no ] || return 0
  made firewall "$program"
  change "let $program through the application firewall" open_firewall "$program"
}

open_firewall() { # PROGRAM
  socketfilterfw --add "$1" >/dev/null
  socketfilterfw --unblockapp "$1" >/dev/null
}

look_at_firewall() {
  local program
  program="$(python_program)"
  # The packet filter may have rules as well; they are nobody's by default.
  case "$(firewall_admits "$program")" in
    all) warn "the application firewall blocks all incoming connections" "System Settings, Network, Firewall, Options" ;;
    no)
      # A dry run would have let it through.
      [ "$allow_firewall" = no ] || return 0
      warn "the application firewall is on and does not name our Python; a daemon is never asked about" \
        "--allow-firewall does this: sudo socketfilterfw --add $program; sudo socketfilterfw --unblockapp $program (in /usr/libexec/ApplicationFirewall)"
      ;;
  esac
  # Local Network, the permission of macOS 15, is not needed: daemons of launchd have it.
}

# Minutes until it sleeps on mains power; 0: never. Nothing if pmset does not say.
sleep_minutes() {
  pmset -g custom 2>/dev/null |
    awk '/^[A-Z].*:$/ { mains = /^AC Power/ } mains && $1 == "sleep" { print $2 }' || true
}

stay_awake() {
  local minutes
  minutes="$(sleep_minutes)"
  [ -n "$minutes" ] && [ "$minutes" != 0 ] || return 0
  [ -n "$(sed -n 's/^sleep //p' "$made_before")" ] || made sleep "$minutes"
  change "never sleep on mains power (pmset -c sleep 0; it was $minutes min)" pmset -c sleep 0
}

look_at_sleep() {
  local minutes
  minutes="$(sleep_minutes)"
  if [ "$no_sleep" = no ] && [ -n "$minutes" ] && [ "$minutes" != 0 ]; then
    warn "this Mac sleeps after $minutes min, and serves nobody then; longer than the agent's SVID lives, and it needs a new join token" \
      "--no-sleep does this: sudo pmset -c sleep 0"
  fi
}
