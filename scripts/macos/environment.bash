# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-macos.sh: Python, and one virtual environment for each version.
#
#     /opt/spiffe-sidecar/venv -> venv-0.1.0-1f3a...    in use; replaced by one rename
#     /opt/spiffe-sidecar/venv.previous -> venv-...     the one before, for --rollback
#
# A version that runs keeps its own folder under its feet: programs in it name the folder and not
# the link. An environment is whole when .made-of is in it; without that it is made anew.

# python.org's first: it belongs to root, and nothing else upgrades or removes it.
find_python() {
  local candidate minor
  if [ -n "$python_wanted" ]; then
    is_new_enough "$python_wanted" ||
      fail "--python $python_wanted is no Python 3.11 or newer" "Apple's /usr/bin/python3 is 3.9"
    python="$python_wanted"
    usable_python
    return
  fi
  for minor in 14 13 12 11; do
    for candidate in \
      "/Library/Frameworks/Python.framework/Versions/3.$minor/bin/python3.$minor" \
      "/opt/homebrew/bin/python3.$minor" \
      "/usr/local/bin/python3.$minor"; do
      if is_new_enough "$(at "$candidate")"; then
        python="$(at "$candidate")"
        usable_python
        return
      fi
    done
  done
  fail "no Python 3.11 or newer found (python.org's, Homebrew's and /usr/local/bin); Apple's own is 3.9" \
    "install python.org's, or \`brew install python@3.13\`, or name one by --python PATH"
}

is_new_enough() {
  [ -x "$1" ] && "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

usable_python() {
  local base owner
  "$python" -I -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python cannot make a virtual environment" "take python.org's"
  base="$("$python" -I -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')"
  case "$base/" in
    /Users/* | /private/var/root/*)
      [ -n "$root" ] ||
        fail "$python lives in $base, below a home that the service may not enter" \
          "take python.org's or Homebrew's: --python PATH"
      ;;
  esac
  owner="$(attributes "$base")"
  case "$owner" in
    root:*) ;;
    *)
      note "$base belongs to ${owner%%:*}, who can change what the services run; python.org's Python belongs to root"
      ;;
  esac
}

# What an environment is made of, as a short name: the same name means that nothing is to do.
plan_environment() {
  if [ -n "$wheels" ]; then
    ls "$wheels"/*.whl >/dev/null 2>&1 ||
      fail "--wheels $wheels: no wheels in it" \
        "where there is a network: pip download --require-hashes -r requirements.txt -d DIR"
  fi
  made_of="$("$python" -I -c 'if True:
    import hashlib, pathlib, re, sys
    root = pathlib.Path(sys.argv[1])
    digest = hashlib.sha256()
    files = [root / "requirements.txt", root / "pyproject.toml"]
    files += sorted(one for one in (root / "sidecar").rglob("*") if one.is_file() and one.suffix != ".pyc")
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root)} {len(content)} ".encode() + content)
    init = (root / "sidecar/__init__.py").read_text()
    version = re.search("__version__ = \"(.+)\"", init)[1]
    print(version, sys.executable, *sys.version_info[:2], digest.hexdigest())
  ' "$source_root")"
  venv="$home/venv-${made_of%% *}-$(short "$made_of")"
}

short() { # TEXT: eight characters that stand for it
  "$python" -I -c 'import hashlib, sys; print(hashlib.sha256(sys.argv[1].encode()).hexdigest()[:8])' "$1"
}

make_environment() {
  local there
  there="$(at "$venv")"
  [ ! -f "$there/.made-of" ] || ! grep -qxF "$made_of" "$there/.made-of" || return 0
  made folder "$venv"
  change "make $there from requirements.txt, hashes checked${wheels:+, out of $wheels}" \
    build_environment "$there"
}

build_environment() { # FOLDER
  rm -rf "$1"
  (
    umask 022
    unset PYTHONPATH PYTHONHOME
    "$python" -I -m venv "$1"
    if [ -n "$wheels" ]; then
      pip_in "$1" --no-index --find-links "$wheels" --require-hashes --only-binary=:all: \
        -r "$source_root/requirements.txt"
    else
      pip_in "$1" --require-hashes --only-binary=:all: -r "$source_root/requirements.txt"
    fi
    # A wheel of this checkout, made in the environment itself.
    pip_in "$1" --no-index --no-deps --no-build-isolation "$source_root"
    echo "$made_of" >"$1/.made-of.setup"
  )
  mv "$1/.made-of.setup" "$1/.made-of"
}

pip_in() { # FOLDER ARGUMENTS...
  local folder="$1"
  shift
  # It compiles what it installs: the service cannot write there.
  "$folder/bin/python" -I -m pip install --quiet --disable-pip-version-check --no-input \
    --no-cache-dir --root-user-action=ignore "$@"
}

program() { # ARGUMENTS...: the sidecar of the planned version, as the service's account
  if [ -n "$root" ]; then
    "$(at "$venv")/bin/python" -I -m sidecar "$@"
  else
    (cd / && sudo -n -u "$service_user" -- "$venv/bin/python" -I -m sidecar "$@")
  fi
}

use_version() {
  local link now
  link="$(at "$venv_link")"
  now="$(readlink "$link" || true)"
  [ "$now" != "$(basename "$venv")" ] || return 0
  made link "$venv_link"
  made link "$previous_link"
  pending "$sidecar_label"
  change "use $(basename "$venv")${now:+ instead of $now} ($link)" switch "$link" "$now"
}

switch() { # LINK VERSION-OF-BEFORE
  [ -z "$2" ] || point "$(at "$previous_link")" "$2"
  point "$1" "$(basename "$venv")"
}

# Versions older than the one before, once nothing runs on them any more.
prune() {
  local folder kept now
  now="$(readlink "$(at "$venv_link")" || true)"
  kept=" $now $(readlink "$(at "$previous_link")" || true) "
  # A dry run has not switched: what is in use would be the one before.
  [ "$now" = "$(basename "$venv")" ] || kept=" $(basename "$venv") $now "
  for folder in "$(at "$home")"/venv-*; do
    [ -d "$folder" ] || continue
    case "$kept" in *" $(basename "$folder") "*) continue ;; esac
    change "remove the old version $folder" rm -rf "$folder"
  done
}

roll_back() {
  local now before
  now="$(readlink "$(at "$venv_link")" || true)"
  before="$(readlink "$(at "$previous_link")" || true)"
  [ -n "$before" ] && [ -f "$(at "$home/$before")/.made-of" ] ||
    fail "there is no version before ${now:-this one}" "an upgrade keeps one"
  venv="$home/$before"
  agent_managed="" service_group="$service_user"
  check_configuration
  step "version" use_version
  step "services" run_services
}
