# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-macos.sh: takes away what the record says that it made, and nothing else.
#
# Configuration, logs, the agent's identity and the accounts stay unless --purge is given: files of
# an account that is gone would belong to whoever gets its number next.

uninstall_all() {
  if [ ! -s "$made_before" ]; then
    note "nothing was made here by setup-macos.sh"
    return
  fi
  step "services" stop_services
  step "property lists" remove_property_lists
  step "sleep and firewall" change_back
  step "program" remove_program
  if [ "$purge" = yes ]; then
    step "configuration, logs and identity" remove_configuration
    step "accounts" remove_accounts
    step "record" remove_record
  else
    tell_what_stays
  fi
  note "the model server was not touched"
}

stop_services() {
  local label
  for label in "$sidecar_label" "$rotation_label" "$agent_label"; do
    if was_made file "$daemon_dir/$label.plist" && is_loaded "$label"; then
      change "stop $label" stop_service "$label"
    fi
  done
}

remove_property_lists() {
  local label
  for label in "$sidecar_label" "$rotation_label" "$agent_label"; do
    take "$daemon_dir/$label.plist"
  done
  # Before the accounts that it names.
  take "$rotation"
  [ ! -d "$(at "$pending_dir")" ] || change "remove $(at "$pending_dir")" rm -rf "$(at "$pending_dir")"
}

change_back() {
  local minutes program
  minutes="$(sed -n 's/^sleep //p' "$made_before")"
  if [ -n "$minutes" ] && [ "$(sleep_minutes)" = 0 ]; then
    change "sleep on mains power after $minutes min again (pmset -c sleep $minutes)" \
      pmset -c sleep "$minutes"
  fi
  # What somebody has changed since is left so.
  [ -z "$minutes" ] || forget sleep "$minutes"
  while read -r program; do
    [ -n "$program" ] || continue
    if [ "$(firewall_admits "$program")" = yes ]; then
      change "take $program out of the application firewall" close_firewall "$program"
    fi
    forget firewall "$program"
  done <<<"$(sed -n 's/^firewall //p' "$made_before")"
}

close_firewall() { # PROGRAM
  socketfilterfw --remove "$1" >/dev/null
}

# A file that was made here, and what an interruption has left beside it.
take() { # PATH
  local path beside
  path="$(at "$1")"
  beside="$(beside "$path")"
  was_made file "$1" && { [ -e "$path" ] || [ -e "$beside" ]; } || return 0
  change "remove $path" rm -f "$path" "$beside"
}

# A folder that was made here; with what is in it if that is the services' own.
take_folder() { # PATH [all]
  local path
  path="$(at "$1")"
  was_made folder "$1" && [ -d "$path" ] || return 0
  if [ "${2:-}" = all ]; then
    change "remove $path with all that is in it" rm -rf "$path"
  elif [ -z "$(others_in "$path")" ]; then
    change "remove folder $path" rmdir "$path"
  else
    note "$path stays: something is in it that is not from here"
  fi
}

others_in() { # FOLDER: what a dry run would still find there, because it removed nothing
  [ "$dry_run" = yes ] || ls -A "$1"
}

remove_program() {
  local folder link
  for link in "$venv_link" "$previous_link"; do
    ! was_made link "$link" || [ ! -L "$(at "$link")" ] ||
      change "remove $(at "$link")" rm -f "$(at "$link")"
  done
  for folder in "$(at "$home")"/venv-*; do
    take_folder "${folder#"$root"}" all
  done
  take_folder "$certs" all
  take_folder "$home"
  take "$agent_binary"
  take_folder /opt/spire/bin
  take_folder "$agent_sockets" all
  take "$agent_token"
}

remove_configuration() {
  local kind name
  while read -r kind name; do
    case "$kind $name" in
      "file $config_dir/"* | "file /opt/spire/conf/"*) take "$name" ;;
    esac
  done <"$made_before"
  take_folder "$config_dir"
  take_folder "$agent_data" all
  take_folder /opt/spire/conf
  take_folder /opt/spire
  take_folder "$log_dir" all
}

remove_accounts() {
  local name
  for name in "$service_user" "$agent_user"; do
    if was_made user "$name" && [ -n "$(directory "/Users/$name" RecordName)" ]; then
      change "remove account $name" dscl . -delete "/Users/$name"
    fi
    if was_made group "$name" && [ -n "$(directory "/Groups/$name" RecordName)" ]; then
      change "remove group $name" dscl . -delete "/Groups/$name"
    fi
  done
}

remove_record() {
  change "remove $(at "$state_dir")" rm -rf "$(at "$state_dir")"
}

tell_what_stays() {
  local kind name
  echo "== what stays (--uninstall --purge takes it away, too)"
  while read -r kind name; do
    case "$kind" in
      file | folder) [ ! -e "$(at "$name")" ] || echo "  $kind $(at "$name")" ;;
      user) echo "  account $name" ;;
    esac
  done <"$made_before"
  echo "  file $(at "$record"), which knows this"
}
