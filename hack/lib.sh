# What the scripts in this folder share. It is sourced, with "set -euo pipefail"
# in force, from the project's root.
# shellcheck shell=bash

# Go needs a home for its caches, and a job that a service starts may have none.
if [[ -z ${HOME:-} ]]; then
	HOME=$(getent passwd "$(id -u)" | cut -d: -f6)
	export HOME
fi

# fail says what is wrong, and what to do, and ends the script.
fail() {
	echo "$(basename "$0"): $*" >&2
	exit 1
}

# have reports whether a program is there.
have() { command -v "$1" >/dev/null 2>&1; }

# need_go finds Go, also where its installer puts it without touching PATH.
need_go() {
	if ! have go && [[ -x /usr/local/go/bin/go ]]; then
		PATH=$PATH:/usr/local/go/bin
	fi
	have go || fail "Go is missing: install Go 1.26 or later from https://go.dev/dl"
}

# apt_install PROGRAM PACKAGE... installs packages for a program that is missing.
# It fails, with a word on why, where that cannot be done.
apt_install() {
	local program=$1
	shift
	have "$program" && return 0
	if [[ $(id -u) != 0 ]] || ! have apt-get; then
		echo "$program is missing, and only root on a Debian-like machine can install it here (package: $*)"
		return 1
	fi
	echo "installing $* for $program"
	if ! DEBIAN_FRONTEND=noninteractive timeout 120 apt-get -qq update >/dev/null 2>&1 ||
		! DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -qq install -y --no-install-recommends "$@" >/dev/null 2>&1; then
		echo "$program is missing, and apt-get could not install it (no network?)"
		return 1
	fi
}
