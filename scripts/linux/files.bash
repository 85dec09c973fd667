# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-linux.sh: folders and files, with owner and mode, and a record of what was made.
#
# What was there before is not recorded, and so not taken away by --uninstall. The record is
# written before the thing itself: an interruption in between leaves nothing that nobody knows of.
# No file is ever half there: it is written beside its place and renamed.

config_dir=/etc/spiffe-sidecar
config="$config_dir/sidecar.toml"
policy="$config_dir/policy.toml"
home=/opt/spiffe-sidecar
venv_link="$home/venv"
previous_link="$home/venv.previous"
certs="$home/certs"
state_dir=/var/lib/spiffe-sidecar
record="$state_dir/made-by-setup"

# Where a path of the host is: below --root if there is one.
at() {
  echo "$root$1"
}

# One at a time, without a file of our own.
alone() {
  exec 9<"$(at /etc)"
  flock --nonblock 9 || fail "setup-linux.sh is running already" "wait for it, or end it"
}

# What earlier runs have made, as "KIND NAME" lines.
recall() {
  work="$(mktemp -d)"
  made_before="$work/made"
  : >"$made_before"
  [ ! -f "$(at "$record")" ] || cat "$(at "$record")" >"$made_before"
}

was_made() { # KIND NAME
  grep -qxF -- "$1 $2" "$made_before"
}

made() { # KIND NAME
  [ "$dry_run" = no ] || return 0
  was_made "$1" "$2" && return 0
  install -d -m 0755 "$(at "$state_dir")"
  echo "$1 $2" >>"$(at "$record")"
  echo "$1 $2" >>"$made_before"
}

# OWNER:GROUP as numbers, of accounts in the tree; empty while one of them is missing.
numbers() { # OWNER GROUP
  local owner group
  owner="$(id_of passwd "$1")"
  group="$(id_of group "$2")"
  [ -z "$owner" ] || [ -z "$group" ] || echo "$owner:$group"
}

folder() { # PATH OWNER GROUP MODE
  local path owners
  path="$(at "$1")"
  if [ ! -e "$path" ]; then
    made folder "$1"
    change "make folder $path ($2:$3 $4)" make_folder "$path" "$2" "$3" "$4"
    return
  fi
  [ -d "$path" ] || fail "$path is no folder" "move it away"
  owners="$(numbers "$2" "$3")"
  if [ "$(stat -c '%u:%g' "$path")" != "$owners" ]; then
    # With all that is in it: its owner of before left it, such as an agent that ran as root.
    change "give $path to $2:$3" give "$path" "$2" "$3"
  fi
  if [ "$(stat -c '0%a' "$path")" != "$4" ]; then
    change "set the mode of $path to $4" chmod "$4" "$path"
  fi
}

make_folder() { # PATH OWNER GROUP MODE
  local owners
  owners="$(numbers "$2" "$3")"
  install -d -o "${owners%:*}" -g "${owners#*:}" -m "$4" "$1"
}

give() { # PATH OWNER GROUP
  chown -R --no-dereference "$(numbers "$2" "$3")" "$1"
}

# `place SOURCE PATH OWNER GROUP MODE`: nothing to do if content, owner and mode are so. Tells by
# $placed whether the content is new. What somebody else put there is kept beside it.
place() {
  local path owners
  path="$(at "$2")"
  owners="$(numbers "$3" "$4")"
  placed=no
  if [ -f "$path" ] && cmp -s "$1" "$path"; then
    [ "$(stat -c '%u:%g 0%a' "$path")" != "$owners $5" ] || return 0
    change "set owner and mode of $path ($3:$4 $5)" put "$1" "$path" "$3" "$4" "$5"
    return
  fi
  if [ -e "$path" ] && ! was_made file "$2"; then
    # Somebody else's, such as the unit of an agent that was there before.
    made kept "$2"
    change "keep $path as $path.before-setup" cp -a "$path" "$path.before-setup"
  fi
  made file "$2"
  placed=yes
  change "write $path ($3:$4 $5)" put "$1" "$path" "$3" "$4" "$5"
}

put() { # SOURCE PATH OWNER GROUP MODE
  local owners beside
  owners="$(numbers "$3" "$4")"
  beside="$(dirname "$2")/.$(basename "$2").setup"
  rm -f "$beside"
  install -o "${owners%:*}" -g "${owners#*:}" -m "$5" "$1" "$beside"
  sync "$beside"
  mv -fT "$beside" "$2"
}

# Point LINK to TARGET by one rename.
point() { # LINK TARGET
  ln -sfn "$2" "$1.setup"
  mv -fT "$1.setup" "$1"
}

# A file that was made here, away.
taken=()
take() { # PATH
  [ -e "$(at "$1")" ] || [ -L "$(at "$1")" ] || return 0
  taken+=("$1")
  change "remove $(at "$1")" rm -f "$(at "$1")"
  ! was_made kept "$1" || [ ! -e "$(at "$1").before-setup" ] ||
    change "put $(at "$1").before-setup back" mv -fT "$(at "$1").before-setup" "$(at "$1")"
}

# Whether it is gone, or would be after a dry run.
is_taken() { # PATH
  local path
  for path in "${taken[@]}"; do
    case "$1/" in "$path/"*) return 0 ;; esac
  done
  return 1
}

make_folders() {
  folder "$config_dir" root "$service_user" 0750
  folder "$home" root root 0755
  folder "$certs" "$service_user" "$service_user" 0755
  if [ -n "$agent_managed" ]; then
    folder /opt/spire root root 0755
    folder /opt/spire/bin root root 0755
    folder /opt/spire/conf root root 0755
    folder "$agent_data" "$agent_user" "$agent_user" 0700
    folder "$agent_sockets" "$agent_user" "$agent_user" 0755
  fi
}
