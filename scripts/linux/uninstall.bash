# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-linux.sh: takes away what the record says that it made, and nothing else.
#
# Configuration, the agent's identity and the accounts stay unless --purge is given: files of an
# account that is gone would belong to whoever gets its number next.

uninstall_all() {
  if [ ! -s "$made_before" ]; then
    note "nothing was made here by setup-linux.sh"
    return
  fi
  step "services" stop_services
  step "units" remove_units
  step "program" remove_program
  if [ "$purge" = yes ]; then
    step "configuration and identity" remove_configuration
    step "accounts" remove_accounts
    step "record" remove_record
  else
    tell_what_stays
  fi
  note "the model server was not touched"
}

stop_services() {
  local unit
  for unit in "$socket_unit" "$sidecar_unit" "$agent_unit"; do
    was_made file "$unit_dir/$unit" && [ -e "$(at "$unit_dir/$unit")" ] || continue
    if systemd_runs; then
      change "stop and disable $unit" systemctl disable --quiet --now "$unit"
    else
      change "disable $unit" systemctl ${root:+--root "$root"} disable --quiet "$unit"
    fi
  done
}

remove_units() {
  local unit before=$changes
  for unit in "$activation_drop_in" "$listen_drop_in" "$unit_dir"/{$sidecar_unit,$socket_unit,$agent_unit}; do
    ! was_made file "$unit" || take "$unit"
  done
  take_folder "$(dirname "$activation_drop_in")"
  take_folder "$(dirname "$listen_drop_in")"
  if [ "$changes" -gt "$before" ] && systemd_runs; then
    change "systemctl daemon-reload" systemctl daemon-reload
    [ "$dry_run" = yes ] ||
      systemctl reset-failed "$sidecar_unit" "$socket_unit" "$agent_unit" 2>/dev/null || true
  fi
}

# A folder that was made here; with what is in it if that is the services' own.
take_folder() { # PATH [all]
  local path
  path="$(at "$1")"
  was_made folder "$1" && [ -d "$path" ] || return 0
  if [ "${2:-}" = all ]; then
    taken+=("$1")
    change "remove $path with all that is in it" rm -rf "$path"
  elif [ -z "$(others_in "$path")" ]; then
    taken+=("$1")
    change "remove folder $path" rmdir "$path"
  else
    note "$path stays: something is in it that is not from here"
  fi
}

# What is in a folder and was not made here.
others_in() { # FOLDER
  local path
  find "$1" -mindepth 1 | while read -r path; do
    is_ours "${path#"$root"}" || echo "$path"
  done
}

is_ours() { # PATH
  is_taken "$1" || was_made file "$1" || was_made link "$1" || was_made folder "$1"
}

remove_program() {
  local folder link
  for link in "$venv_link" "$previous_link"; do
    ! was_made link "$link" || take "$link"
  done
  for folder in "$(at "$home")"/venv-*; do
    folder="${folder#"$root"}"
    take_folder "$folder" all
  done
  take_folder "$certs" all
  take_folder "$home"
  ! was_made file "$agent_binary" || take "$agent_binary"
  take_folder /opt/spire/bin
  take_folder "$agent_sockets" all
  ! was_made file "$agent_token" || take "$agent_token"
}

remove_configuration() {
  local kind name
  while read -r kind name; do
    case "$kind $name" in "file $config_dir/"* | "file /opt/spire/conf/"*) take "$name" ;; esac
  done <"$made_before"
  take_folder "$config_dir"
  take_folder "$agent_data" all
  take_folder /opt/spire/conf
  take_folder /opt/spire
}

remove_accounts() {
  local name
  for name in "$service_user" "$agent_user"; do
    if was_made user "$name" && [ -n "$(entry passwd "$name")" ]; then
      change "remove account and group $name" remove_account "$name"
    fi
  done
}

remove_account() { # NAME
  local tree=()
  [ -z "$root" ] || tree=(--prefix "$root")
  userdel "${tree[@]}" "$1"
  # On most hosts it has taken the group of the same name along.
  [ -z "$(entry group "$1")" ] || ! was_made group "$1" || groupdel "${tree[@]}" "$1"
}

remove_record() {
  change "remove $(at "$state_dir")" rm -rf "$(at "$state_dir")"
}

tell_what_stays() {
  local kind name
  echo "== what stays (--uninstall --purge takes it away, too)"
  while read -r kind name; do
    ! is_taken "$name" || continue
    case "$kind" in
      file | folder) [ ! -e "$(at "$name")" ] || echo "  $kind $(at "$name")" ;;
      user) echo "  account $name" ;;
    esac
  done <"$made_before"
  echo "  file $(at "$record"), which knows this"
}
