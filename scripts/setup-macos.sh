#!/bin/bash
# Set up this Mac: the SPIRE agent and spiffe-sidecar as LaunchDaemons, each under an account of its
# own.
#
# Run it again at any time: it does what is missing, prints each change, and restarts nothing that
# has not changed. It never changes the model server, changes firewall and sleep only when told to,
# and never overwrites sidecar.toml or policy.toml. The parts are in scripts/macos/, one for each
# kind of thing. All of it is for bash 3.2, which is what macOS has.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail
umask 077

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source_root="$(dirname "$here")"
. "$here/say.bash"
. "$here/given.bash"
. "$here/macos/files.bash"
. "$here/macos/accounts.bash"
. "$here/macos/environment.bash"
. "$here/macos/configuration.bash"
. "$here/macos/agent.bash"
. "$here/macos/property_lists.bash"
. "$here/macos/services.bash"
. "$here/macos/host.bash"
. "$here/macos/uninstall.bash"

usage() {
  cat <<'TEXT'
usage: sudo scripts/setup-macos.sh --spire-agent PATH --host-folder DIR --traefik-id ID [options]
       sudo scripts/setup-macos.sh --upgrade [options]
       sudo scripts/setup-macos.sh --rollback
       sudo scripts/setup-macos.sh --uninstall [--purge]

The SPIRE agent (left out: one that is there already is used)
  --spire-agent PATH   its program. SPIRE publishes none for macOS; its own guide builds one:
                       https://spiffe.io/docs/latest/try/getting-started-linux-macos-x/
  --host-folder DIR    what `register-workload --host-folder DIR` wrote: agent.conf,
                       trust-bundle.pem, join-token

The configuration, when there is none yet
  --config FILE        sidecar.toml as you wrote it; or made of these:
  --spiffe-id ID       our own SPIFFE ID; left out: the first one that the agent issues
  --listen ADDRESS     where peers connect (0.0.0.0:6701)
  --backend ADDRESS    the model server, on loopback or unix:/path (127.0.0.1:11434)
  --policy FILE        policy.toml as you wrote it; or made of this:
  --traefik-id ID      the one peer that is allowed to use the model server

This Mac
  --no-sleep           never sleep on mains power (pmset -c sleep 0); --uninstall sets it back
  --allow-firewall     let our Python through the application firewall; --uninstall takes it back

Options
  --uid N              of the service account (451), below 500; the registration entry must have
                       unix:uid:N
  --socket-activation  launchd holds the port, and a restart loses no connection attempt
  --wheels DIR         no network: take the locked packages from this folder, which
                       `pip download --require-hashes -r requirements.txt -d DIR` fills
  --python PATH        Python 3.11 or newer; Apple's /usr/bin/python3 is older
  --new-token          install the join token although the agent is attested
  --no-start           install, start nothing
  --root DIR           below DIR, with stand-ins for launchctl, dscl and others in PATH; for tests
  --dry-run            print what would be changed, change nothing
  --upgrade            a new version of this checkout for what is installed
  --rollback           back to the version before, which an upgrade keeps
  --uninstall          take away what was installed; configuration, logs and accounts stay,
  --purge              with this, too, they go

Exit status: 0 done, 1 something failed (run it again: it continues), 2 wrong usage.
TEXT
}

action=install dry_run=no start=yes purge=no activation=no no_sleep=no allow_firewall=no
renew_token=no
root="" uid="" python_wanted="" wheels=""
agent_program="" host_folder="" config_file="" policy_file=""
spiffe_id="" traefik_id="" backend="" listen=""

read_options() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --dry-run) dry_run=yes ;;
      --no-start) start=no ;;
      --no-sleep) no_sleep=yes ;;
      --allow-firewall) allow_firewall=yes ;;
      --new-token) renew_token=yes ;;
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
        --backend | --listen | --uid | --wheels | --python | --root)
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
    --host-folder) host_folder="${2%/}" ;;
    --config) config_file="$2" ;;
    --policy) policy_file="$2" ;;
    --spiffe-id) spiffe_id="$2" ;;
    --traefik-id) traefik_id="$2" ;;
    --backend) backend="$2" ;;
    --listen) listen="$2" ;;
    --uid) uid="$2" ;;
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
  if [ -n "$uid" ] && ! { [[ "$uid" =~ ^[1-9][0-9]{0,2}$ ]] && [ "$uid" -lt 500 ]; }; then
    usage_error "--uid $uid: expected a number from 1 to 499; from 501 on they are people's"
  fi
}

# The system's own programs: with others first in PATH, GNU's stat for one, nothing here would work,
# and whoever may write to a folder of PATH would be root.
choose_programs() {
  if [ -z "$root" ]; then
    export PATH=/usr/bin:/bin:/usr/sbin:/sbin:/usr/libexec/ApplicationFirewall
    return
  fi
  [ -d "$root/etc" ] || usage_error "--root $root: expected the tree of a host, with an etc/"
  case "$(command -v launchctl) $(command -v dscl)" in
    /bin/* | */usr/bin/dscl)
      usage_error "--root is for tests, with stand-ins for launchctl and dscl first in PATH"
      ;;
  esac
  root="$(cd "$root" && pwd)"
}

# Everything that could be wrong is looked at before anything is changed.
preflight() {
  [ "$(uname -s)" = Darwin ] || fail "this is $(uname -s)" "on Linux: scripts/setup-linux.sh"
  # A dry run, too: without root much of what is there cannot be seen.
  [ "$(id -u)" = 0 ] || fail "needs root" "sudo $0 ..., also with --dry-run"
  alone
  recall
}

install_all() {
  look_at_macos
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
  step "property lists" place_property_lists
  step "sleep and firewall" change_this_mac
  step "services" run_services
  host_notes
  [ "$start" = no ] || [ "$dry_run" = yes ] || doctor
}

main() {
  read_options "$@"
  check_options
  choose_programs
  preflight
  case "$action" in
    install) install_all ;;
    upgrade)
      [ -L "$(at "$venv_link")" ] ||
        fail "nothing is installed at $(at "$venv_link")" "install it without --upgrade"
      install_all
      ;;
    rollback)
      find_python
      roll_back
      ;;
    uninstall) uninstall_all ;;
  esac
  summary
}

main "$@"
