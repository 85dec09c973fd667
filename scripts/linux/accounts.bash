# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-linux.sh: the accounts of the services, without a home and without a shell.
#
# The uid of the sidecar's is what the SPIRE agent attests, so it is a number that the registration
# entry can name before the host has it. useradd is everywhere; adduser is Debian's.

service_user=spiffe-sidecar
agent_user=spire-agent
default_uid=451

# The line of an account, by name or number: of this host's directories, or of the tree's own file.
entry() { # passwd|group NAME-OR-NUMBER
  if [ -z "$root" ]; then
    getent "$1" "$2" || true
  elif [ -f "$root/etc/$1" ]; then
    awk -F: -v key="$2" '$1 == key || $3 == key { print; exit }' "$root/etc/$1"
  fi
}

id_of() { # passwd|group NAME
  if [ "$2" = root ]; then
    echo 0
    return
  fi
  entry "$1" "$2" | cut -d: -f3
}

plan_accounts() {
  local there holder
  command -v useradd >/dev/null ||
    fail "no useradd here" "install the package passwd, shadow or shadow-utils"
  there="$(id_of passwd "$service_user")"
  uid="${uid:-${there:+$there}}"
  if [ -n "$there" ] && [ "$uid" != "$there" ]; then
    fail "the account $service_user has uid $there, expected $uid" \
      "leave out --uid, or: userdel $service_user, and run this again"
  fi
  uid="${uid:-$default_uid}"
  holder="$(entry passwd "$uid" | cut -d: -f1)"
  if [ -n "$holder" ] && [ "$holder" != "$service_user" ]; then
    fail "uid $uid belongs to $holder" \
      "choose another number: register-workload --uid N there, and --uid N here"
  fi
  [ "$uid" = "$default_uid" ] ||
    note "the registration entry needs the selector unix:uid:$uid (register-workload --uid $uid)"
}

make_accounts() {
  account "$service_user" "$uid"
  [ -z "$agent_managed" ] || account "$agent_user" ""
}

account() { # NAME UID-OR-NOTHING
  local tree=() numbered=() group_numbered=() shell=/usr/sbin/nologin
  [ -z "$root" ] || tree=(--prefix "$root")
  [ -z "$2" ] || numbered=(--uid "$2")
  # The same number for the group, if nobody has it: nothing depends on that.
  [ -z "$2" ] || [ -n "$(entry group "$2")" ] || group_numbered=(--gid "$2")
  [ -e "$(at "$shell")" ] || shell=/sbin/nologin
  if [ -z "$(entry group "$1")" ]; then
    made group "$1"
    change "make group $1" groupadd --system "${tree[@]}" "${group_numbered[@]}" "$1"
  fi
  if [ -z "$(entry passwd "$1")" ]; then
    made user "$1"
    change "make account $1${2:+ (uid $2)}" useradd --system "${tree[@]}" "${numbered[@]}" \
      --gid "$1" --no-create-home --home-dir /nonexistent --shell "$shell" "$1"
  fi
}
