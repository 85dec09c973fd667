# shellcheck shell=bash disable=SC2034,SC2154  # the parts share their variables
# Sourced by setup-linux.sh and setup-macos.sh: what a person gives, an option's value or a folder,
# before anything is done with it.

# SPIFFE IDs and addresses go into TOML as they are, so nothing else may be in them.
id_form='^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+$'
listen_form='^([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$'
backend_form='^(([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}|unix:/[0-9A-Za-z:./_-]+)$'

value() { # OPTION WORDS-LEFT VALUE
  [ "$2" -ge 2 ] && [ -n "$3" ] || usage_error "$1 needs a value"
  # The next option is none: a forgotten value would swallow --dry-run.
  case "$3" in -*) usage_error "$1 needs a value, found $3" ;; esac
}

has_form() { # OPTION VALUE FORM EXPECTED
  [ -z "$2" ] || [[ "$2" =~ $3 ]] || usage_error "$1 $2: expected $4"
}

# Whoever has the folder may be somebody else than root, who reads it: no links, which could lead to
# what root alone may read, and no pipes. From here on only the copies count, so that nothing is
# installed that was not looked at.
take_host_folder() { # FOLDER
  mkdir "$taken"
  "$python" -I -c 'if True:
    import os, stat, sys
    source, target, *names = sys.argv[1:]
    for name in names:
        path = os.path.join(source, name)
        try:
            before = os.lstat(path)
            if not stat.S_ISREG(before.st_mode) or before.st_nlink > 1:
                sys.exit(f"{path} is a link or no plain file")
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                found = os.fstat(file.fileno())
                if (found.st_dev, found.st_ino) != (before.st_dev, before.st_ino):
                    sys.exit(f"{path} has just become another file")
                content = file.read(1 << 20)
        except FileNotFoundError:
            continue
        except OSError as exc:
            sys.exit(f"{path}: {exc.strerror}")
        with open(os.path.join(target, name), "wb") as copy:
            copy.write(content)
  ' "$1" "$taken" agent.conf trust-bundle.pem join-token 2>"$work/said" ||
    fail "--host-folder $1: $(cat "$work/said")" "register-workload --host-folder writes plain files"
}

given() { # OPTION FILE COPY
  [ -f "$2" ] && [ -r "$2" ] || fail "$1 $2: no file that can be read"
  cat "$2" >"$3"
}

# The folders are made for these paths, and the units allow the agent no others. (A Linux path below
# /run could not even be made on a Mac.)
names() { # FILE KEY PATH
  local found
  found="$(sed -n "s|^[[:space:]]*$2[[:space:]]*=[[:space:]]*\"\([^\"]*\)\".*|\1|p" "$1")"
  [ -z "$found" ] || [ "$found" = "$3" ] ||
    fail "$host_folder/agent.conf: $2 is $found, expected $3" "register-workload --host-folder writes it so"
}
