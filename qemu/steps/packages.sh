# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The Debian packages that the steps need beyond a minimal system.

PACKAGES=(
	# the kernel's build
	bc bison build-essential flex git libelf-dev libssl-dev pahole perl rsync xz-utils
	# KUnit, virtme-ng, results
	jq python3 python3-venv
	# the machine that boots; the guest shares the host's user space
	file iproute2 kmod procps qemu-system-x86
	# what the guest's tests set up with tools of their own
	ethtool iptables nftables wireguard-tools
	# the kernel's own netlink client, which they run
	python3-jsonschema python3-yaml
	# the Swift package and the BPF programs
	libbpf-dev libmnl-dev linux-libc-dev pkg-config
	# the harness's own tests: of shell files, of the manual page
	shellcheck groff-base
)

# is_at_least VERSION NEEDED: an empty VERSION is older than all
is_at_least() {
	[ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# missing_packages: names, one a line
missing_packages() {
	local package
	for package in "${PACKAGES[@]}"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
			echo "$package"
	done
}

# install_packages: installs the missing packages. Without root, check_machine has ended the run.
install_packages() {
	local missing log=$CACHE/log/packages.log
	mapfile -t missing < <(missing_packages)
	[ ${#missing[@]} -gt 0 ] || return 0
	has_cache_lock || {
		with_cache_lock install_packages
		return
	}
	step "packages: installing ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	# A fresh system has no package lists, or old ones
	# What a package starts as a service must not keep a lock
	if ! { (without_locks apt-get -o Acquire::Retries=3 update) &&
		(without_locks apt-get -o Acquire::Retries=3 install -y --no-install-recommends "${missing[@]}"); } \
		>"$log" 2>&1 </dev/null; then
		explain_full_disk "$log"
		grep -E '^(E|W|Err)' "$log" | tail -n 8 | quoted || true
		fail "apt-get could not install: ${missing[*]}" \
			"Is there a network, and does 'apt-get update' work? Log: $log"
	fi
}
