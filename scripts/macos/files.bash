# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-macos.sh: folders and files, with owner and mode, and a record of what was made.
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
log_dir=/var/log/spiffe-sidecar
state_dir=/var/db/spiffe-sidecar
record="$state_dir/made-by-setup"

# Where a path of the host is: below --root if there is one.
at() {
  echo "$root$1"
}

# One at a time: a link that names the process, because macOS has no flock(1).
alone() {
  local holder path
  [ "$dry_run" = no ] || return 0
  path="$(at /var/run/spiffe-sidecar-setup.lock)"
  if ! ln -s "$$" "$path" 2>/dev/null; then
    holder="$(readlink "$path" || true)"
    ! kill -0 "$holder" 2>/dev/null ||
      fail "setup-macos.sh is running already, as process $holder" "wait for it, or end it"
    rm -f "$path"
    ln -s "$$" "$path" || fail "$path cannot be made"
  fi
  lock="$path"
}

# What earlier runs have made, as "KIND NAME" lines.
recall() {
  # Not in $TMPDIR, which under sudo may be a folder of somebody else.
  work="$(mktemp -d /tmp/spiffe-sidecar-setup.XXXXXX)"
  made_before="$work/made"
  : >"$made_before"
  [ ! -f "$(at "$record")" ] || cat "$(at "$record")" >"$made_before"
}

was_made() { # KIND NAME
  grep -qxF -- "$1 $2" "$made_before"
}

made() { # KIND NAME
  [ "$dry_run" = no ] || return 0
  ! was_made "$1" "$2" || return 0
  mkdir -p "$(at "$state_dir")"
  chmod 0755 "$(at "$state_dir")"
  echo "$1 $2" >>"$(at "$record")"
  echo "$1 $2" >>"$made_before"
}

forget() { # KIND NAME
  [ "$dry_run" = no ] || return 0
  grep -vxF -- "$1 $2" "$made_before" >"$work/left" || true
  cat "$work/left" >"$made_before"
  cat "$work/left" >"$(at "$record").setup"
  mv -f "$(at "$record").setup" "$(at "$record")"
}

# OWNER:GROUP MODE, as in `root:wheel 0755`.
attributes() { # PATH
  stat -f '%Su:%Sg 0%Lp' "$1"
}

folder() { # PATH OWNER GROUP MODE
  local path now
  path="$(at "$1")"
  if [ ! -e "$path" ] && [ ! -L "$path" ]; then
    made folder "$1"
    change "make folder $path ($2:$3 $4)" make_folder "$path" "$2" "$3" "$4"
    return
  fi
  [ -d "$path" ] && [ ! -L "$path" ] || fail "$path is no folder" "move it away"
  now="$(attributes "$path")"
  if [ "${now% *}" != "$2:$3" ]; then
    # With all that is in it: its owner of before left it, such as an agent that ran as root.
    change "give $path to $2:$3 (it is ${now% *}'s)" give "$path" "$2" "$3"
  fi
  if [ "${now#* }" != "$4" ]; then
    change "set the mode of $path to $4 (it is ${now#* })" chmod "$4" "$path"
  fi
}

make_folder() { # PATH OWNER GROUP MODE
  mkdir "$1"
  chown "$2:$3" "$1"
  chmod "$4" "$1"
}

# A folder of macOS itself: made if it is missing, and otherwise left as it is.
folder_of_the_system() { # PATH
  [ -d "$(at "$1")" ] || folder "$1" root wheel 0755
}

# No file with a second name: on macOS anybody can link to a file of somebody else.
give() { # PATH OWNER GROUP
  find "$1" -xdev \( -type d -o -type f -links 1 \) -exec chown -h "$2:$3" {} +
}

# `place SOURCE PATH OWNER GROUP MODE [SERVICE]`: nothing to do if content, owner and mode are so.
# Tells by $placed whether the content is new; then the service has to be started again.
place() {
  local path
  path="$(at "$2")"
  placed=no
  [ ! -L "$path" ] || fail "$path is a link, expected a file" "move it away"
  if [ -f "$path" ] && cmp -s "$1" "$path"; then
    [ "$(attributes "$path")" != "$3:$4 $5" ] || return 0
    change "set owner and mode of $path ($3:$4 $5)" put "$1" "$path" "$3" "$4" "$5"
    return
  fi
  [ -e "$path" ] || made file "$2"
  placed=yes
  [ -z "${6:-}" ] || pending "$6"
  change "write $path ($3:$4 $5)" put "$1" "$path" "$3" "$4" "$5"
}

# Where a file is written before it is in place; not as what launchd and newsyslog look for.
beside() { # PATH
  echo "$(dirname "$1")/.$(basename "$1").setup"
}

put() { # SOURCE PATH OWNER GROUP MODE
  local beside
  beside="$(beside "$2")"
  rm -f "$beside"
  # Not by cp: extended attributes, a quarantine for one, are not wanted.
  cat "$1" >"$beside"
  chown "$3:$4" "$beside"
  chmod "$5" "$beside"
  mv -f "$beside" "$2"
}

# An empty file, for an account that may not make one in its folder.
log_file() { # PATH OWNER
  local path
  path="$(at "$1")"
  if [ ! -e "$path" ]; then
    made file "$1"
    change "make $path ($2:admin 0640)" put /dev/null "$path" "$2" admin 0640
  elif [ "$(attributes "$path")" != "$2:admin 0640" ]; then
    change "set owner and mode of $path ($2:admin 0640)" own "$path" "$2:admin" 0640
  fi
}

own() { # PATH OWNER:GROUP MODE
  chown -h "$2" "$1"
  chmod "$3" "$1"
}

# Point LINK to TARGET by one rename; mv(1) would move into the folder that LINK points to.
point() { # LINK TARGET
  "$python" -I -c 'if True:
    import os, sys
    link, target = sys.argv[1:]
    beside = link + ".setup"
    if os.path.lexists(beside):
        os.unlink(beside)
    os.symlink(target, beside)
    os.replace(beside, link)
  ' "$1" "$2"
}

make_folders() {
  folder_of_the_system /opt
  folder "$config_dir" root "$service_group" 0750
  folder "$home" root wheel 0755
  folder "$certs" "$service_user" "$service_group" 0755
  if [ -n "$agent_managed" ]; then
    folder /opt/spire root wheel 0755
    folder /opt/spire/bin root wheel 0755
    folder /opt/spire/conf root wheel 0755
    folder "$agent_data" "$agent_user" "$agent_group" 0700
    folder "$agent_sockets" "$agent_user" "$agent_group" 0755
  fi
  # Root's alone: newsyslog renames and makes files here as root.
  folder "$log_dir" root wheel 0755
  log_file "$log_dir/sidecar.log" "$service_user"
  log_file "$log_dir/sidecar.err" "$service_user"
  [ -n "$agent_managed" ] || return 0
  log_file "$log_dir/spire-agent.log" "$agent_user"
  log_file "$log_dir/spire-agent.err" "$agent_user"
}
