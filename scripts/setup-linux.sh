#!/usr/bin/env bash
# Set up this Linux host: the SPIRE agent and spiffe-sidecar as systemd services, each under an
# account of its own.
#
# Run it again at any time: it does what is missing, prints each change, and restarts nothing that
# has not changed. It never changes the model server or a firewall, and never overwrites
# sidecar.toml or policy.toml. The parts are in scripts/linux/, one for each kind of thing.
#
# shellcheck source-path=SCRIPTDIR
set -euo pipefail
umask 077

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source_root="$(dirname "$here")"
. "$here/say.bash"
. "$here/given.bash"
. "$here/linux/files.bash"
. "$here/linux/accounts.bash"
. "$here/linux/environment.bash"
. "$here/linux/configuration.bash"
. "$here/linux/agent.bash"
. "$here/linux/units.bash"
. "$here/linux/services.bash"
. "$here/linux/host.bash"
. "$here/linux/uninstall.bash"

usage() {
  cat <<'TEXT'
usage: scripts/setup-linux.sh --spire-agent PATH --host-folder DIR --traefik-id ID [options]
       scripts/setup-linux.sh --upgrade [options]
       scripts/setup-linux.sh --rollback
       scripts/setup-linux.sh --uninstall [--purge]

The SPIRE agent (left out: one that is there already is used)
  --spire-agent PATH   its program; SPIRE's Linux releases have it (github.com/spiffe/spire)
  --host-folder DIR    what `register-workload --host-folder DIR` wrote: agent.conf,
                       trust-bundle.pem, join-token

The configuration, when there is none yet
  --config FILE        sidecar.toml as you wrote it; or made of these:
  --spiffe-id ID       our own SPIFFE ID; left out: the first one that the agent issues
  --listen ADDRESS     where peers connect (0.0.0.0:6701)
  --backend ADDRESS    the model server, on loopback or unix:/path (127.0.0.1:11434)
  --policy FILE        policy.toml as you wrote it; or made of this:
  --traefik-id ID      the one peer that is allowed to use the model server

Options
  --uid N              of the service account (451); the registration entry must have unix:uid:N
  --socket-activation  systemd holds the port, and a restart loses no connection attempt
  --traefik-address IP for the firewall lines that are printed at the end
  --wheels DIR         no network: take the locked packages from this folder, which
                       `pip download --require-hashes -r requirements.txt -d DIR` fills
  --python PATH        Python 3.11 or newer, with venv (/usr/bin/python3)
  --no-start           install and enable, start nothing
  --root DIR           install below DIR, for images; starts nothing
  --dry-run            print what would be changed, change nothing
  --upgrade            a new version of this checkout for what is installed
  --rollback           back to the version before, which an upgrade keeps
  --uninstall          take away what was installed; configuration and accounts stay,
  --purge              with this, too, they go

Exit status: 0 done, 1 something failed (run it again: it continues), 2 wrong usage.
TEXT
}

action=install dry_run=no start=yes purge=no activation=no
root="" uid="" python_wanted="" wheels="" traefik_address=""
agent_program="" host_folder="" config_file="" policy_file=""
spiffe_id="" traefik_id="" backend="" listen=""

read_options() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --dry-run) dry_run=yes ;;
      --no-start) start=no ;;
      --socket-activation) activation=yes ;;
      --purge) purge=yes ;;
      --upgrade | --rollback | --uninstall)
        [ "$action" = install ] || usage_error "--$action and $1 exclude each other"
        action="${1#--}"
        ;;
      --help | -h)
        usage
        exit 0
        ;;
      --spire-agent | --host-folder | --config | --policy | --spiffe-id | --traefik-id | \
        --backend | --listen | --uid | --traefik-address | --wheels | --python | --root)
        value "$1" $# "${2:-}"
        read_value "$1" "$2"
        shift
        ;;
      *) usage_error "unknown option $1" ;;
    esac
    shift
  done
}

read_value() { # OPTION VALUE
  case "$1" in
    --spire-agent) agent_program="$2" ;;
    --host-folder) host_folder="$2" ;;
    --config) config_file="$2" ;;
    --policy) policy_file="$2" ;;
    --spiffe-id) spiffe_id="$2" ;;
    --traefik-id) traefik_id="$2" ;;
    --backend) backend="$2" ;;
    --listen) listen="$2" ;;
    --uid) uid="$2" ;;
    --traefik-address) traefik_address="$2" ;;
    --wheels) wheels="$2" ;;
    --python) python_wanted="$2" ;;
    --root) root="${2%/}" ;;
  esac
}

check_options() {
  if [ "$purge" = yes ] && [ "$action" != uninstall ]; then
    usage_error "--purge goes with --uninstall"
  fi
  if [ -n "$config_file" ] && [ -n "$spiffe_id$backend$listen" ]; then
    usage_error "--config is a whole configuration: leave out --spiffe-id, --backend, --listen"
  fi
  if [ -n "$policy_file" ] && [ -n "$traefik_id" ]; then
    usage_error "--policy is a whole policy: leave out --traefik-id"
  fi
  if [ -n "$root" ]; then
    [ -d "$root/etc" ] || usage_error "--root $root: expected the tree of a host, with an etc/"
    root="$(cd "$root" && pwd)"
    start=no
  fi
  if [[ -n "$uid" && ! "$uid" =~ ^[1-9][0-9]{0,8}$ ]]; then
    usage_error "--uid $uid: expected a number above 0"
  fi
}

# Everything that could be wrong is looked at before anything is changed.
preflight() {
  [ "$(uname -s)" = Linux ] || fail "this is $(uname -s)" "on a Mac: scripts/setup-macos.sh"
  # A dry run, too: without root much of what is there cannot be seen.
  [ "$(id -u)" = 0 ] || fail "needs root" "sudo $0 ..., also with --dry-run"
  command -v systemctl >/dev/null || fail "no systemctl here" "this sets up hosts with systemd"
  alone
  recall
}

install_all() {
  find_python
  plan_accounts
  plan_agent
  plan_configuration
  plan_environment
  step "accounts" make_accounts
  step "folders" make_folders
  step "environment" make_environment
  step "configuration" make_configuration
  check_configuration
  step "version" use_version
  [ -z "$agent_managed" ] || step "SPIRE agent" install_agent
  step "units" place_units
  if [ "$start" = yes ] && ! systemd_runs; then
    echo "note: systemd is not running here: everything is installed, nothing is started"
    start=no
  fi
  step "services" run_services
  host_notes
  [ "$start" = no ] || [ "$dry_run" = yes ] || doctor
}

main() {
  read_options "$@"
  check_options
  preflight
  case "$action" in
    install) install_all ;;
    upgrade)
      [ -L "$(at "$venv_link")" ] ||
        fail "nothing is installed at $(at "$venv_link")" "install it without --upgrade"
      install_all
      ;;
    rollback) roll_back ;;
    uninstall) uninstall_all ;;
  esac
  summary
}

main "$@"
