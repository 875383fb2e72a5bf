# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Checks the machine before anything is installed or downloaded. Reports all problems together, each
# with a remedy.

# The harness's own tests put another machine's files there
MACHINE=${PACKET_TRAITS_MACHINE:-}

# Debian 12 has these; older ones were not tested
DEBIAN_NEEDED=12
QEMU_NEEDED=7.2

# In MB. What a first run needs in the cache: the source as git objects, a worktree, and the
# room that the kernel's build asks for.
FIRST_RUN_SPACE_MB=$((2000 + BUILD_SPACE_MB))
PACKAGES_SPACE_MB=1000
CLONE_SPACE_MB=200
TEMPORARY_SPACE_MB=100

# Memory of the kernel's build, and what a guest takes beside its own
BUILD_MEMORY_MB=1500
GUEST_OVERHEAD_MB=512

# os_release FIELD: of /etc/os-release
os_release() {
	(
		# shellcheck source=/dev/null
		source "$MACHINE/etc/os-release" 2>/dev/null || source "$MACHINE/usr/lib/os-release" 2>/dev/null || true
		field=${!1:-}
		[ "$1:$field" != PRETTY_NAME: ] || field='this system'
		echo "$field"
	)
}

check_architecture() {
	local machine
	machine=$(uname -m)
	[ "$machine" = x86_64 ] ||
		fail "the harness needs an x86-64 host, and this machine is $machine" \
			"It builds an x86-64 kernel, and the guest runs this machine's programs." \
			"README.md says how to apply the patches by hand."
}

check_distribution() {
	local version
	if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
		fail "no dpkg-query and apt-get on PATH: $(os_release PRETTY_NAME) is not a Debian system" \
			"Debian $DEBIAN_NEEDED or newer is what the harness knows; it would install: ${PACKAGES[*]}"
	fi
	version=$(os_release VERSION_ID)
	[ "$(os_release ID)" != debian ] || [ -z "$version" ] || is_at_least "$version" $DEBIAN_NEEDED ||
		fail "$(os_release PRETTY_NAME) is too old: Debian $DEBIAN_NEEDED or newer is needed" \
			"https://www.debian.org/releases/stable/releasenotes says how to upgrade."
}

check_qemu() {
	local program version
	program=$(command -v qemu-system-x86_64) || {
		# Not 'grep -q': it ends early, and pipefail takes the broken pipe for a failure
		missing_packages | grep -x qemu-system-x86 >/dev/null ||
			fail "there is no qemu-system-x86_64 on PATH, although its package is installed" \
				"PATH is $PATH" "  apt-get install --reinstall qemu-system-x86"
		return 0
	}
	version=$(qemu_version) || version=''
	is_at_least "$version" $QEMU_NEEDED ||
		fail "QEMU is too old: $QEMU_NEEDED or newer is needed, $program is ${version:-of no known version}" \
			"Debian $DEBIAN_NEEDED has it: apt-get install qemu-system-x86. One that was installed otherwise must not be first on PATH."
}

# check_packages: root installs what is missing
check_packages() {
	local missing are='packages are'
	command -v dpkg-query >/dev/null || return 0
	mapfile -t missing < <(missing_packages)
	[ ${#missing[@]} -ne 1 ] || are='package is'
	[ ${#missing[@]} -eq 0 ] || [ "$(id -u)" -eq 0 ] ||
		fail "${#missing[@]} $are missing, and only root can install them: ${missing[*]}" \
			"Run this, then the same command again:" \
			"  sudo apt-get install --no-install-recommends ${missing[*]}"
}

check_temporary() {
	local directory=${TMPDIR:-/tmp}
	{ [ -d "$directory" ] && [ -w "$directory" ]; } ||
		fail "the directory for temporary files, $directory, is not there or cannot be written to by $(id -un)" \
			"TMPDIR=DIR qemu/vm ... uses another one."
}

# needed_space WANTS: "DIRECTORY MB PURPOSE" : the space that this run needs in each directory
needed_space() {
	local missing
	echo "${TMPDIR:-/tmp} $TEMPORARY_SPACE_MB temporary files"
	if [ -z "$(cached_source)" ]; then
		case $SUBCOMMAND in
		fetch | patch) echo "$CACHE $SOURCE_SPACE_MB the kernel's source" ;;
		*) [[ $1 != *' source '* ]] || echo "$CACHE $FIRST_RUN_SPACE_MB the kernel's source and build" ;;
		esac
	fi
	[[ $1 != *' swift '* ]] || [ -e "$ROOT/.build" ] || echo "$ROOT $CLONE_SPACE_MB the Swift package's build"
	missing=$({ command -v dpkg-query >/dev/null && missing_packages; } | wc -l)
	# All of them together take that much
	[ "$missing" -lt 10 ] || echo "/usr $PACKAGES_SPACE_MB $missing Debian packages"
}

# check_space WANTS: each file system has room for all that is to be put there
check_space() {
	local directory megabytes purpose mount free
	local -A sum=() left=() purposes=()
	while read -r directory megabytes purpose; do
		[ -d "$directory" ] || continue
		read -r mount free < <(df -kP "$directory" | awk 'NR == 2 { print $6, int($4 / 1024) }')
		sum[$mount]=$((${sum[$mount]:-0} + megabytes))
		left[$mount]=$free
		purposes[$mount]+=${purposes[$mount]:+, }"$megabytes MB for $purpose in $directory"
	done < <(needed_space "$1")
	for mount in "${!sum[@]}"; do
		[ "${left[$mount]}" -ge "${sum[$mount]}" ] ||
			fail "not enough room on $mount: ${sum[$mount]} MB are needed, ${left[$mount]} MB are free" \
				"${purposes[$mount]}" \
				"Free some space, or put the cache on another disk with PACKET_TRAITS_CACHE=DIR."
	done
}

# check_memory WANTS
check_memory() {
	local needed=$BUILD_MEMORY_MB for="the kernel's build takes" available guest=${GUEST_MEMORY%G}
	if [[ $1 = *' guest '* ]]; then
		needed=$((guest * 1024 + GUEST_OVERHEAD_MB))
		for="a guest takes"
	fi
	available=$(awk '$1 == "MemAvailable:" || $1 == "SwapFree:" { sum += $2 } END { print int(sum / 1024) }' "$MACHINE/proc/meminfo" 2>/dev/null) || return 0
	[ "$available" -ge $needed ] ||
		fail "not enough memory: $for $needed MB, $available MB are available, with swap" \
			"End other programs, or add swap space, as root:" \
			"  fallocate -l 4G /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile"
}

# collect COMMAND...: adds the error message of COMMAND to PROBLEMS instead of ending the run
collect() {
	local text
	text=$("$@" 2>&1 >/dev/null) || PROBLEMS+=("$text")
}

# check_machine WANTS...: checks what every command needs, and what WANTS names (source, swift,
# guest). Ends the run with all problems.
check_machine() {
	local wants=" $* "
	local -a PROBLEMS=()
	CURRENT_STEP="checking this machine"
	collect check_architecture
	collect check_distribution
	[[ $wants != *' swift '* ]] || collect find_toolchain
	[[ $wants != *' guest '* ]] || collect check_qemu
	collect check_packages
	if [[ $wants = *' source '* ]] && [ -z "$(cached_source)" ] && command -v apt-get >/dev/null; then
		with_cache_lock ask_mirrors
		collect find_offer
	fi
	collect check_temporary
	collect check_space "$wants"
	[[ $wants != *' source '* ]] || collect check_memory "$wants"
	if [ ${#PROBLEMS[@]} -gt 0 ]; then
		printf '%s\n' "${PROBLEMS[@]}" >&2
		[ ${#PROBLEMS[@]} -eq 1 ] || echo "qemu/vm: ${#PROBLEMS[@]} problems. Nothing was installed." >&2
		exit 1
	fi
	[[ $wants != *' swift '* ]] || find_toolchain
}
