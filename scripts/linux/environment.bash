# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-linux.sh: Python, and one virtual environment for each version.
#
#     /opt/spiffe-sidecar/venv -> venv-0.1.0-1f3a...    in use; replaced by one rename
#     /opt/spiffe-sidecar/venv.previous -> venv-...     the one before, for --rollback
#
# A version that runs keeps its own folder under its feet: programs in it name the folder and not
# the link. An environment is whole when .made-of is in it; without that it is made anew.

find_python() {
  local name
  for name in "$python_wanted" /usr/bin/python3 /usr/bin/python3.{14,13,12,11} /usr/local/bin/python3 \
    python3; do
    [ -z "$python_wanted" ] || [ "$name" = "$python_wanted" ] || break
    if [ -n "$name" ] && command -v "$name" >/dev/null 2>&1 && is_new_enough "$name"; then
      python="$(command -v "$name")"
      usable_python
      return
    fi
  done
  fail "no Python 3.11 or newer found (tried ${python_wanted:-/usr/bin/python3, /usr/bin/python3.14 ... 3.11, /usr/local/bin/python3, python3})" \
    "install one (Debian, Ubuntu: apt install python3 python3-venv; Fedora: dnf install python3), or --python PATH"
}

is_new_enough() {
  "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

usable_python() {
  local base
  pip_wheel="$(find_pip 2>/dev/null)" && [ -n "$pip_wheel" ] ||
    fail "$python cannot make a virtual environment" \
      "Debian, Ubuntu: apt install python3-venv; Fedora: dnf install python-pip-wheel"
  base="$("$python" -I -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')"
  case "$base/" in
    /root/* | /home/* | /run/user/*)
      [ -n "$root" ] ||
        fail "$python lives in $base, below a home that the service cannot see (ProtectHome=)" \
          "take one of the system: --python /usr/bin/python3"
      ;;
  esac
}

find_pip() {
  "$python" -I - <<'PYTHON'
import ensurepip, pathlib, sysconfig, venv

own = pathlib.Path(ensurepip.__file__).parent / "_bundled"
folders = [own, sysconfig.get_config_var("WHEEL_PKG_DIR") or own]
wheels = [wheel for folder in folders for wheel in sorted(pathlib.Path(folder).glob("pip-*.whl"))]
print(*wheels[:1])
PYTHON
}

# What an environment is made of, as a short name: the same name means that nothing is to do.
plan_environment() {
  [ -z "$wheels" ] || [ -n "$(find "$wheels" -maxdepth 1 -name '*.whl' -print -quit 2>/dev/null)" ] ||
    fail "--wheels $wheels: no wheels in it" \
      "where there is a network: pip download --require-hashes -r requirements.txt -d DIR"
  version="$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$source_root/sidecar/__init__.py")"
  made_of="$version $("$python" -I -c 'import sys; print(*sys.version_info[:2], sep=".")') $(content)"
  venv="$home/venv-$version-$(echo "$made_of" | sha256sum | cut -c1-8)"
}

content() {
  cd "$source_root" || return
  find requirements.txt pyproject.toml sidecar -type f -not -path '*/__pycache__/*' -print0 |
    LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1
}

make_environment() {
  local there
  there="$(at "$venv")"
  [ -f "$there/.made-of" ] && grep -qxF "$made_of" "$there/.made-of" && return
  made folder "$venv"
  change "make $there from requirements.txt, hashes checked${wheels:+, out of $wheels}" \
    build_environment "$there"
}

build_environment() { # FOLDER
  local from=()
  [ -z "$wheels" ] || from=(--no-index --find-links "$wheels")
  rm -rf "$1"
  (
    umask 022
    unset PYTHONPATH PYTHONHOME
    "$python" -I -m venv --without-pip "$1"
    "$python" -I -m zipfile -e "$pip_wheel" "$work/pip"
    pip_in "$1" --require-hashes --only-binary=:all: "${from[@]}" -r "$source_root/requirements.txt"
    # A wheel of this checkout, made in the environment itself.
    pip_in "$1" --no-index --no-deps --no-build-isolation "$source_root"
    # Below --root: as it will be called there.
    [ -z "$root" ] || grep -rlIF --null "$1" "$1/bin" "$1/pyvenv.cfg" |
      xargs -0 sed -i "s|$1|$venv|g"
    # Not by the service, which cannot write there; with the paths as they will be.
    "$1/bin/python" -I -m compileall -q -j 0 -s "$1" -p "$venv" "$1/lib" || true
    echo "$made_of" >"$1/.made-of.setup"
  )
  label "$1"
  sync -f "$1/.made-of.setup"
  mv "$1/.made-of.setup" "$1/.made-of"
}

# Out of the wheel that Python brings; so pip is not left in what serves.
pip_in() { # FOLDER ARGUMENTS...
  local folder="$1"
  shift
  "$folder/bin/python" -I "$work/pip/pip" install --quiet --disable-pip-version-check --no-input \
    --no-cache-dir --no-compile --root-user-action=ignore "$@"
}

# SELinux: as if it had always been there.
label() {
  [ -n "$root" ] || ! command -v restorecon >/dev/null || restorecon -R "$1" || true
}

program() { # ARGUMENTS...: the sidecar of the planned version, as the service's account
  local command=("$(at "$venv")/bin/python" -I -m sidecar "$@")
  if [ -n "$root" ]; then
    "${command[@]}"
  else
    (cd / && runuser -u "$service_user" -- "${command[@]}")
  fi
}

use_version() {
  local link now
  link="$(at "$venv_link")"
  now="$(readlink "$link" || true)"
  [ "$now" != "$(basename "$venv")" ] || return 0
  made link "$venv_link"
  made link "$previous_link"
  change "use $(basename "$venv")${now:+ instead of $now} ($link)" switch "$link" "$now"
}

switch() { # LINK VERSION-OF-BEFORE
  [ -z "$2" ] || point "$(at "$previous_link")" "$2"
  point "$1" "$(basename "$venv")"
}

# Versions older than the one before, once nothing runs on them any more.
prune() {
  local folder kept
  kept=" $(readlink "$(at "$venv_link")" || true) $(readlink "$(at "$previous_link")" || true) "
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
  venv="$home/$before" python="$(at "$home/$before")/bin/python"
  read_configuration "$(at "$config")"
  check_configuration
  step "version" use_version
  agent_managed=""
  step "services" run_services
}
