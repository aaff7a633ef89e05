#!/usr/bin/env bash
# make_venv.sh FOLDER [PYTHON]: a virtual environment with a Python that jtok runs on.
set -eu
folder=$1
for python in ${2:-python3 python3.11 python3.12 python3.13 python3.14}; do
  command -v "$python" >/dev/null 2>&1 || continue
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
  found=$python
  if "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    echo "Making $folder with $("$python" --version)"
    exec "$python" -m venv "$folder"
  fi
done
if [ -n "${found:-}" ]; then
  echo "error: $found has no venv module. On Debian and Ubuntu it is in the package" \
    "python3-venv; then run make again." >&2
else
  echo "error: jtok needs Python >= 3.11 and found ${2:-none on the PATH}" \
    "($(python3 --version 2>&1 || true)). Install one, or say which:" \
    "make PYTHON=/path/to/python3.11 ..." >&2
fi
exit 1
