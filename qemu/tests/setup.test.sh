# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What a machine lacks is told by name, with what would help.

# Package.swift's first line is where the needed version is read
package_needs() {
	printf '// swift-tools-version: %s\n' "$1" >"$CLONE/Package.swift"
	echo >"$PATCHES/0001-x.patch"
}

# these_packages_are_missing NAMES...
these_packages_are_missing() {
	replace dpkg-query <<<"case \" $* \" in *\" \${!#} \"*) exit 1 ;; *) echo -n installed ;; esac"
}

test_missing_packages_are_named_with_the_command_for_others_than_root() {
	replace id <<<'echo 1000'
	these_packages_are_missing flex pahole
	kernel_tree "$WORK/linux"
	vm fetch --source "$WORK/linux"
	ends 1
	says '2 packages are missing' 'flex pahole' 'sudo apt-get install --no-install-recommends flex pahole'
	[ ! -e "$CACHE/source" ]
}

test_root_installs_exactly_what_is_missing() {
	replace id <<<'echo 0'
	these_packages_are_missing flex
	replace apt-get <<<'echo "$*" >>"$WORK/apt-get.calls"; [ "${!#}" = update ] || exit 1'
	export WORK
	kernel_tree "$WORK/linux"
	vm fetch --source "$WORK/linux"
	ends 1
	says 'could not install: flex'
	grep -q 'install -y --no-install-recommends flex$' "$WORK/apt-get.calls"
}

test_a_system_without_dpkg_is_told() {
	rm "$COMMANDS/dpkg-query"
	# Everything but dpkg-query
	local name
	mkdir "$WORK/some"
	for name in bash dirname readlink mkdir mktemp id cat date awk sed basename env uname sort wc df tail cut grep; do
		ln -s "$(type -P $name)" "$WORK/some/$name"
	done
	PATH=$WORK/some vm fetch
	ends 1
	says 'no dpkg-query' 'is not a Debian system'
}

# One message has all of it, and nothing was installed
test_all_problems_are_told_at_once() {
	package_needs 6.2
	replace id <<<'echo 1000'
	replace uname <<<'echo aarch64'
	replace swift <<<'echo "Swift version 5.10.1 (swift-5.10.1-RELEASE)"'
	replace qemu-system-x86_64 <<<'echo "QEMU emulator version 5.2.0 (Debian)"'
	replace df <<<'printf "h\nx 1 1 1048576 1 /somewhere\n"'
	printf 'ID=debian\nVERSION_ID=11\nPRETTY_NAME="Debian GNU/Linux 11 (bullseye)"\n' >"$MACHINE/etc/os-release"
	printf 'MemAvailable: 1000000 kB\nSwapFree: 48576 kB\n' >"$MACHINE/proc/meminfo"
	these_packages_are_missing flex
	replace apt-get <<<'echo "$*" >>"$WORK/apt-get.calls"; exit 1'
	export WORK
	TMPDIR=$WORK/nowhere vm demo
	ends 1
	says 'needs an x86-64 host, and this machine is aarch64' \
		'Debian GNU/Linux 11 (bullseye) is too old: Debian 12 or newer' \
		'the Swift toolchain is too old: Swift 6.2 or newer' \
		"QEMU is too old: 7.2 or newer is needed, $COMMANDS/qemu-system-x86_64 is 5.2.0" \
		'1 package is missing' 'sudo apt-get install --no-install-recommends flex' \
		'no kernel source: Debian GNU/Linux 11 (bullseye) offers no linux-source-6.12' 'qemu/vm fetch --source PATH' \
		"the directory for temporary files, $WORK/nowhere, is not there" \
		'not enough room on /somewhere: 5200 MB are needed, 1024 MB are free' \
		"5000 MB for the kernel's source and build in $CACHE, 200 MB for the Swift package's build in $CLONE" \
		'not enough memory: a guest takes 2560 MB, 1024 MB are available' swapon \
		'9 problems. Nothing was installed.'
	! grep -q install "$WORK/apt-get.calls" || return 1
	# Each command asks for what it needs itself
	vm build
	ends 1
	says_not Swift
	says_not QEMU
	says "the kernel's build takes 1500 MB"
}

test_the_source_is_looked_for_before_packages_are_installed() {
	replace id <<<'echo 0'
	these_packages_are_missing flex
	replace apt-get <<<'echo "$*" >>"$WORK/apt-get.calls"; exit 1'
	printf 'ID=ubuntu\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04 LTS"\n' >"$MACHINE/etc/os-release"
	export WORK
	echo >"$PATCHES/0001-x.patch"
	vm build
	ends 1
	says 'Ubuntu 24.04 LTS offers no linux-source-6.12' 'qemu/vm fetch --source PATH'
	! grep -q install "$WORK/apt-get.calls" || return 1
	# With a tree at hand it goes on
	these_packages_are_missing none
	kernel_tree "$WORK/linux"
	vm fetch --source "$WORK/linux"
	ends 0
	these_packages_are_missing flex
	vm build --unpatched
	ends 1
	says 'could not install: flex'
}

test_a_guest_needs_more_memory_under_the_debug_profile() {
	package_needs 6.2
	printf 'MemAvailable: 3000000 kB\n' >"$MACHINE/proc/meminfo"
	vm test --profile debug --only guest
	ends 1
	says 'a guest takes 4608 MB, 2929 MB are available'
	vm test --only guest
	ends 1
	says_not 'not enough memory'
	# Nothing of it matters to these
	printf 'MemAvailable: 3000 kB\n' >"$MACHINE/proc/meminfo"
	kernel_tree "$WORK/linux"
	vm fetch --source "$WORK/linux"
	ends 0
}

# vm_without_qemu ARGUMENTS...: on a PATH that has everything but QEMU
vm_without_qemu() {
	local name
	rm -f "$COMMANDS/qemu-system-x86_64"
	if [ ! -e "$WORK/others" ]; then
		mkdir "$WORK/others"
		for name in /usr/bin/* /bin/*; do
			[ "$(basename "$name")" = qemu-system-x86_64 ] || ln -sf "$name" "$WORK/others/"
		done
	fi
	PATH=$COMMANDS:$WORK/others vm "$@"
}

test_a_qemu_that_is_not_on_path_is_told() {
	echo >"$PATCHES/0001-x.patch"
	vm_without_qemu boot -- true
	ends 1
	says 'there is no qemu-system-x86_64 on PATH, although its package is installed'
}

test_a_qemu_that_is_yet_to_be_installed_is_no_problem() {
	local try
	echo >"$PATCHES/0001-x.patch"
	# All packages are missing: more than the reader of a pipe waits for
	replace dpkg-query <<<'exit 1'
	for try in 1 2 3 4 5 6; do
		vm_without_qemu boot -- true
		says_not 'although its package is installed'
	done
}

test_a_missing_toolchain_is_told_with_the_version_needed() {
	package_needs 6.2
	vm demo
	ends 1
	says 'no Swift toolchain' 'Swift 6.2 or newer' "PATH is $PATH"
}

test_an_old_toolchain_is_told_with_both_versions() {
	package_needs 6.2
	replace swift <<<'echo "Swift version 5.10.1 (swift-5.10.1-RELEASE)"'
	vm demo
	ends 1
	says 'too old' 'Swift 6.2 or newer' 'is 5.10.1' "$COMMANDS/swift"
	# 6.10 is newer than 6.2 although a word comes before it in the dictionary
	replace swift <<<'echo "Swift version 6.10 (x)"'
	replace df <<<'printf "h\nx 1 1 1024 1 /somewhere\n"'
	vm demo
	says_not 'too old'
	says 'not enough room'
}

test_a_toolchain_that_does_not_run_is_told() {
	package_needs 6.2
	replace swift <<<'echo "cannot open libfoo" >&2; exit 127'
	vm test --only host
	ends 1
	says 'does not tell its version' 'cannot open libfoo'
}

test_no_network_and_empty_cache() {
	these_packages_are_missing flex
	replace apt-get <<<'case "$*" in indextargets*) echo "Debian http://mirror.invalid/debian/ bookworm" ;; *) echo "E: no route" >&2; exit 100 ;; esac'
	vm fetch
	ends 1
	says 'cannot get linux-source-6.12' 'the cache holds no kernel source' 'suites asked: bookworm bookworm-updates bookworm-backports trixie' \
		'no route' 'Is there a network' 'qemu/vm fetch --source PATH'
}

test_no_mirror_known() {
	replace apt-get <<<'exit 0'
	replace apt-cache <<<'exit 0'
	printf 'ID=ubuntu\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04 LTS"\n' >"$MACHINE/etc/os-release"
	vm fetch
	ends 1
	says 'Ubuntu 24.04 LTS offers no linux-source-6.12, apt knows no Debian mirror' 'qemu/vm fetch --source PATH'
	# Others have archives of their own, which may offer it
	replace apt-cache <<<'echo "linux-source-6.12 | 6.12.117-1 | http://other.invalid/ stable/main amd64 Packages"'
	vm fetch --version 6.12.95
	ends 1
	says 'Offered are: 6.12.117' 'suites asked: those of this system'
	kernel_tree "$WORK/linux"
	vm fetch --source "$WORK/linux"
	ends 0
}

test_a_full_disk_is_told_before_the_work_begins() {
	kernel_tree "$WORK/linux"
	replace df <<<'printf "Filesystem 1024-blocks Used Available Capacity Mounted\nx 9 9 102400 1%% /somewhere\n"'
	vm fetch --source "$WORK/linux"
	ends 1
	says 'not enough room on /somewhere: 4600 MB are needed, 100 MB are free' "4500 MB for the kernel's source in $CACHE" \
		'PACKET_TRAITS_CACHE=DIR'
}

test_a_disk_that_fills_up_during_the_work_is_told() {
	kernel_tree "$WORK/linux"
	replace cp <<<'echo "cp: error writing x: No space left on device" >&2; exit 1'
	vm fetch --source "$WORK/linux"
	ends 1
	says 'the disk is full' 'source: importing' 'it goes on where it stopped'
	rm "$COMMANDS/cp"
	vm fetch --source "$WORK/linux"
	ends 0
}

test_a_cache_that_cannot_be_made_is_told() {
	: >"$WORK/file"
	PACKET_TRAITS_CACHE=$WORK/file/cache vm fetch
	ends 1
	says "cannot make the cache $WORK/file/cache: cannot create directory" 'PACKET_TRAITS_CACHE=DIR'
	mkdir -m 555 "$WORK/closed"
	PACKET_TRAITS_CACHE=$WORK/closed/cache vm_unprivileged fetch
	ends 1
	says "cannot make the cache $WORK/closed/cache" 'Permission denied' 'PACKET_TRAITS_CACHE=DIR'
}

test_a_cache_that_cannot_be_written_to_is_told() {
	local path
	imported
	for path in . download log lock; do
		chmod a-w "$CACHE/$path"
		vm_unprivileged fetch
		ends 1
		says "the cache $CACHE cannot be written to by $(id -un): $CACHE" "belongs to $(id -un) (" 'PACKET_TRAITS_CACHE=DIR'
		says_not 'line '
		chmod u+w "$CACHE/$path"
	done
	vm_unprivileged fetch
	ends 0
}

test_a_cache_that_is_named_relatively_is_told_by_its_full_path() {
	cd "$WORK" || return 1
	unset PACKET_TRAITS_CACHE
	XDG_CACHE_HOME=here vm --help
	says "now $WORK/here/packet-traits"
	PACKET_TRAITS_CACHE=there XDG_CACHE_HOME=here vm --help
	says "now $WORK/there"
	XDG_CACHE_HOME=$WORK/absolute vm --help
	says "now $WORK/absolute/packet-traits"
	vm --help
	says "now $HOME/.cache/packet-traits"
}

test_a_clone_that_cannot_be_written_to_is_told() {
	local command path
	package_needs 6.2
	chmod a-w "$CLONE"
	for command in demo test 'test --only harness' 'boot -- true' 'bench store'; do
		# shellcheck disable=SC2086
		vm_unprivileged $command
		ends 1
		says "the clone $CLONE cannot be written to by $(id -un)" 'Permission denied' '.build-vm'
	done
	# It changes nothing in the clone
	kernel_tree "$WORK/linux"
	vm_unprivileged fetch --source "$WORK/linux"
	ends 0
	chmod u+w "$CLONE"
	# As it is after a run by somebody else
	mkdir -p "$CLONE/.build" "$CLONE/.build-vm/results/harness"
	for path in .build .build-vm .build-vm/results .build-vm/results/harness; do
		chmod a-w "$CLONE/$path"
		vm_unprivileged test --only harness
		ends 1
		says "the clone $CLONE cannot be written to by $(id -un): $CLONE/$path belongs to"
		chmod u+w "$CLONE/$path"
	done
}
