# Sourced by the scripts beside it: makes (once) and enters a virtual environment.
#
#   use_environment FOLDER REQUIREMENTS
#
# PYTHON chooses the interpreter; it must be Python 3.11 or newer.

use_environment() {
  local folder="$1" requirements="$2" python="${PYTHON:-python3}" stamp
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "needs Python 3.11 or newer; set PYTHON to one (found: $("$python" --version 2>&1))" >&2
    return 2
  }
  stamp="$(cat "$requirements" requirements.txt | cksum)"
  if [ "$(cat "$folder/.installed" 2>/dev/null)" != "$stamp" ]; then
    echo "installing $requirements into $folder"
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
    echo "$stamp" >"$folder/.installed"
  fi
  PATH="$PWD/$folder/bin:$PATH"
  export PATH
}
