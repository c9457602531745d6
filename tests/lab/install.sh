#!/usr/bin/env bash
# Installs what is missing to build, test and run Cairn on one Debian 12 machine. Idempotent; quick when nothing is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }

# --- Debian packages -------------------------------------------------------------------------------------------------
mapfile -t wanted < <(grep -vE '^\s*(#|$)' ansible/files/apt-dev.txt)
missing=()
for package in "${wanted[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "these Debian packages are missing, and installing them needs root: ${missing[*]}" >&2
    exit 1
  fi
  say "installing ${#missing[@]} Debian packages"
  export DEBIAN_FRONTEND=noninteractive
  # No daemon may start by itself: the lab starts its own, in namespaces of its own.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  options=(-qq -y -o DPkg::Lock::Timeout=900 -o Acquire::Retries=3 --no-remove --no-install-recommends)
  apt-get -qq -o DPkg::Lock::Timeout=900 -o Acquire::Retries=3 update
  apt-get "${options[@]}" install "${missing[@]}" > /tmp/cairn-apt.log 2>&1 || { tail -n 30 /tmp/cairn-apt.log >&2; exit 1; }
fi

# --- Python ----------------------------------------------------------------------------------------------------------
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
if [ ! -x .venv/bin/python ]; then
  say "making .venv with $($python --version)"
  "$python" -m venv .venv
fi
stamp=.venv/.installed
digest=$(cat requirements.lock pyproject.toml | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$digest" ]; then
  say "installing Python packages"
  log=$(mktemp)
  { .venv/bin/pip install -q --disable-pip-version-check -r requirements.lock &&
    .venv/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .; } > "$log" 2>&1 ||
    { cat "$log" >&2; exit 1; }
  rm -f "$log"
  printf '%s' "$digest" > "$stamp"
fi
# libnftables' own Python module is a Debian package only; link just it, not all of dist-packages.
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
[ -e "$site/nftables" ] || { [ -d /usr/lib/python3/dist-packages/nftables ] && ln -s /usr/lib/python3/dist-packages/nftables "$site/nftables"; }

# --- One import name, many folders: what mypy and protoc follow ----------------------------------------------------------
mkdir -p .dev/cairn
for folder in proto controller agent storage net hardware; do ln -sfn "../../$folder" ".dev/cairn/$folder"; done
