#!/bin/sh
# Makes the virtual environment $1 with the locked dependencies, using the uv release given as $2.
# Needs a Python of 3.11 or newer and nothing else; on a bare Debian it installs python3-venv where it may.
set -eu
venv=$1
uv=$2

python=
for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$name
        break
    fi
done
if [ -z "$python" ]; then
    echo "chandlery needs Python 3.11 or newer; none of python3, python3.11 ... python3.14 is. Set PYTHON=/path/to/it." >&2
    exit 1
fi

if ! [ -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            echo "installing python3-venv" >&2
            apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
        else
            echo "$python has no ensurepip; install it first (Debian and Ubuntu: apt install python3-venv)" >&2
            exit 1
        fi
    fi
    "$python" -m venv "$venv"
fi

"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$uv"
# --inexact leaves uv itself where it is; --frozen takes the versions of uv.lock as they are.
UV_PROJECT_ENVIRONMENT=$venv "$venv/bin/uv" sync --quiet --frozen --inexact --extra postgres
