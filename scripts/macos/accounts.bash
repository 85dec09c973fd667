# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-macos.sh: the accounts of the services, hidden, without a home, shell or password.
#
# The uid of the sidecar's is what the SPIRE agent attests, so it is a number that the registration
# entry can name before the Mac has it. Below 500 no account shows up at login or in the settings;
# names of services begin with an underscore.

service_user=_spiffe-sidecar
service_group=_spiffe-sidecar
agent_user=_spire-agent
agent_group=_spire-agent
default_uid=451

# One value of a record; nothing if it is not there. Long ones are on a line of their own, and a
# key that Apple does not know has its type before it.
directory() { # RECORD KEY
  dscl . -read "$1" "$2" 2>/dev/null | tr '\n' ' ' | sed -n 's/^[^ ]*: *//p' | sed 's/ *$//' || true
}

holder_of() { # /Users|/Groups KEY NUMBER
  dscl . -list "$1" "$2" | awk -v number="$3" '$NF == number { print $1 }'
}

# The first number from N on that neither a user nor a group has.
free_number() { # N
  local number="$1"
  while [ "$number" = "$uid" ] || [ -n "$(holder_of /Users UniqueID "$number")" ] ||
    [ -n "$(holder_of /Groups PrimaryGroupID "$number")" ]; do
    number=$((number + 1))
  done
  [ "$number" -lt 500 ] || fail "no uid below 500 is free" "--uid N, and look at dscl . -list /Users UniqueID"
  echo "$number"
}

plan_accounts() {
  local there holder
  there="$(directory "/Users/$service_user" UniqueID)"
  uid="${uid:-${there:-$default_uid}}"
  if [ -n "$there" ] && [ "$uid" != "$there" ]; then
    fail "the account $service_user has uid $there, expected $uid" \
      "leave out --uid, or: $0 --uninstall --purge, and install again"
  fi
  holder="$(holder_of /Users UniqueID "$uid")"
  if [ -n "$holder" ] && [ "$holder" != "$service_user" ]; then
    fail "uid $uid belongs to $holder" \
      "choose another number: register-workload --uid N there, and --uid N here"
  fi
  agent_uid="$(directory "/Users/$agent_user" UniqueID)"
  [ -n "$agent_uid" ] || agent_uid="$(free_number "$default_uid")"
  [ "$uid" = "$default_uid" ] ||
    note "the registration entry needs the selector unix:uid:$uid (register-workload --uid $uid)"
}

make_accounts() {
  account "$service_user" "$service_group" "$uid" "spiffe-sidecar"
  [ -z "$agent_managed" ] || account "$agent_user" "$agent_group" "$agent_uid" "SPIRE agent"
}

account() { # NAME GROUP UID REAL-NAME
  local gid
  gid="$(directory "/Groups/$2" PrimaryGroupID)"
  if [ -z "$gid" ]; then
    gid="$3"
    # The same number as the user, if no group has it: nothing depends on that.
    [ -z "$(holder_of /Groups PrimaryGroupID "$gid")" ] || gid="$(free_number "$default_uid")"
    made group "$2"
    change "make group $2 (gid $gid)" make_group "$2" "$gid" "$4"
  fi
  if [ -z "$(directory "/Users/$1" UniqueID)" ]; then
    made user "$1"
    change "make account $1 (uid $3, hidden, cannot log in)" make_user "$1" "$3" "$gid" "$4"
  elif was_made user "$1" && ! is_whole "$1"; then
    change "complete account $1 (uid $3, hidden, cannot log in)" make_user "$1" "$3" "$gid" "$4"
  fi
}

make_group() { # NAME GID REAL-NAME
  dscl . -create "/Groups/$1"
  dscl . -create "/Groups/$1" RealName "$3"
  dscl . -create "/Groups/$1" Password '*'
  dscl . -create "/Groups/$1" PrimaryGroupID "$2"
}

# IsHidden comes last: with it the account is whole.
make_user() { # NAME UID GID REAL-NAME
  dscl . -create "/Users/$1"
  dscl . -create "/Users/$1" RealName "$4"
  dscl . -create "/Users/$1" Password '*'
  dscl . -create "/Users/$1" UserShell /usr/bin/false
  dscl . -create "/Users/$1" NFSHomeDirectory /var/empty
  dscl . -create "/Users/$1" PrimaryGroupID "$3"
  dscl . -create "/Users/$1" UniqueID "$2"
  dscl . -create "/Users/$1" IsHidden 1
}

is_whole() { # NAME
  [ "$(directory "/Users/$1" IsHidden)" = 1 ] &&
    [ "$(directory "/Users/$1" UserShell)" = /usr/bin/false ] &&
    [ "$(directory "/Users/$1" NFSHomeDirectory)" = /var/empty ]
}
