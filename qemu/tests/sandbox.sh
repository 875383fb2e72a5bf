# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What each test starts with: a clone that has the harness and nothing else, an
# empty cache, and a directory of commands that go before the real ones.

CLONE=$WORK/clone
CACHE=$WORK/cache
# Of the version that kernel_tree has
# shellcheck disable=SC2034
TREES=$CACHE/6.12.95/tree
# shellcheck disable=SC2034
BUILDS=$CACHE/6.12.95/build
COMMANDS=$WORK/bin
PATCHES=$CLONE/kernel-patches/linux-6.12
mkdir -p "$CLONE" "$COMMANDS" "$PATCHES"
cp -r "$SOURCE_ROOT/qemu" "$CLONE/"
cp "$SOURCE_ROOT"/kernel-patches/list "$CLONE/kernel-patches/"
echo 6.12.95 >"$CLONE/kernel-patches/tested"
echo 'Tester <tester@localhost>' >"$CLONE/kernel-patches/author"
export PATH=$COMMANDS:$PATH PACKET_TRAITS_CACHE=$CACHE
export GIT_AUTHOR_NAME=Tester GIT_AUTHOR_EMAIL=tester@localhost
export GIT_COMMITTER_NAME=Tester GIT_COMMITTER_EMAIL=tester@localhost

# replace COMMAND: standard input becomes a command that is found first
replace() {
	{
		echo '#!/bin/bash'
		cat
	} >"$COMMANDS/$1"
	chmod +x "$COMMANDS/$1"
}

# A machine that has what is needed, but no mirror
MACHINE=$WORK/machine
export PACKET_TRAITS_MACHINE=$MACHINE
mkdir -p "$MACHINE/etc" "$MACHINE/proc"
printf 'ID=debian\nVERSION_ID=12\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n' >"$MACHINE/etc/os-release"
printf 'MemAvailable: 8000000 kB\nSwapFree: 0 kB\n' >"$MACHINE/proc/meminfo"
replace apt-get <<<'exit 1'
replace apt-cache <<<'exit 1'

# Every package is installed, unless a test says otherwise
replace dpkg-query <<<'echo -n installed'

# QEMU accepts every card, unless a test says otherwise
replace qemu-system-x86_64 <<<'echo "QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds)"'

# vm ARGUMENTS...: run it; OUTPUT and STATUS are what came of it
vm() {
	STATUS=0
	OUTPUT=$("$CLONE/qemu/vm" "$@" 2>&1) || STATUS=$?
	printf '$ qemu/vm %s\n%s\n(status %s)\n' "$*" "$OUTPUT" "$STATUS"
}

# vm_unprivileged ARGUMENTS...: the same under the file permissions that hold for
# others than root, also if the tests run as root
vm_unprivileged() {
	local -a before=()
	[ "$(id -u)" != 0 ] || before=(setpriv --inh-caps=-all --bounding-set=-all)
	STATUS=0
	OUTPUT=$("${before[@]}" "$CLONE/qemu/vm" "$@" 2>&1) || STATUS=$?
	printf '$ qemu/vm %s\n%s\n(status %s)\n' "$*" "$OUTPUT" "$STATUS"
}

# says TEXT...: OUTPUT has each of them
says() {
	local text
	for text; do
		[[ $OUTPUT == *"$text"* ]] || {
			echo "does not say: $text"
			return 1
		}
	done
}

# says_not TEXT
says_not() {
	[[ $OUTPUT != *"$1"* ]] || {
		echo "says: $1"
		return 1
	}
}

# ends STATUS
ends() {
	[ "$STATUS" -eq "$1" ] || {
		echo "status $STATUS instead of $1"
		return 1
	}
}

# same WANTED GOT
same() {
	[ "$1" = "$2" ] || {
		printf 'wanted: %s\ngot:    %s\n' "$1" "$2"
		return 1
	}
}

# kernel_tree DIRECTORY [VERSION PATCHLEVEL SUBLEVEL]: a tree that has what the
# harness asks of a kernel, and builds at once. Its make takes its behaviour from
# files: build.fail, config.drop (a symbol that never ends up set), and beside the build
# directories slow and FLAVOUR.slow, for whose end it waits.
kernel_tree() {
	local tree=$1
	mkdir -p "$tree/scripts/kconfig" "$tree/net/core" "$tree/include/linux"
	printf 'VERSION = %s\nPATCHLEVEL = %s\nSUBLEVEL = %s\nEXTRAVERSION =\n' "${2:-6}" "${3:-12}" "${4:-95}" >"$tree/Makefile"
	cat >>"$tree/Makefile" <<-'MAKE'
	.RECIPEPREFIX = >
	tinyconfig:
	> echo 'CONFIG_TINY=y' > $(O)/.config
	olddefconfig:
	> if [ -e config.drop ]; then sed -i "/$$(cat config.drop)=/d" $(O)/.config; fi
	bzImage:
	> mkdir -p $(O)/arch/x86/boot
	> if [ -e build.fail ]; then echo 'net/core/dev.c:7:1: error: no such luck'; exit 1; fi
	> echo partial > $(O)/dev.o
	> while [ -e $(O)/../slow ] || [ -e $(O).slow ]; do sleep 0.1; done
	> cp $(O)/.config $(O)/arch/x86/boot/bzImage
	modules:
	> touch $(O)/veth.ko
	modules_install:
	> mkdir -p $(INSTALL_MOD_PATH)/lib/modules/6.12.95
	> cp $(O)/veth.ko $(INSTALL_MOD_PATH)/lib/modules/6.12.95
	headers_install:
	> mkdir -p $(INSTALL_HDR_PATH)/include/linux
	%.o: %.c
	> mkdir -p $(O)/$(dir $@)
	> gcc -Wall -c $< -o $(O)/$@
	MAKE
	cat >"$tree/scripts/kconfig/merge_config.sh" <<-'MERGE'
	#!/bin/sh
	# -m -O OUTPUT BASE FRAGMENTS...
	shift 3
	base=$1
	shift
	cat "$@" >> "$base"
	# As the real one: of several settings of a symbol the last holds
	awk '{ symbol = $0; sub(/^# /, "", symbol); sub(/[= ].*/, "", symbol)
		if (symbol ~ /^CONFIG_/) last[symbol] = $0 }
		END { for (symbol in last) print last[symbol] }' "$base" | sort > "$base.merged"
	mv "$base.merged" "$base"
	MERGE
	chmod +x "$tree/scripts/kconfig/merge_config.sh"
	printf 'int device_one(void);\nint device_one(void)\n{\n\treturn 1;\n}\n' >"$tree/net/core/dev.c"
	seq 40 | sed 's/.*/# line &/' >"$tree/net/core/Kconfig"
	echo 'untouched' >"$tree/CREDITS"
	# The real checkpatch is not at hand without a kernel
	cat >"$tree/scripts/checkpatch.pl" <<-'PERL'
	my $bad = 0;
	open(my $patch, '<', $ARGV[-1]) or die;
	while (<$patch>) { if (/^\+.*[ \t]$/) { print "ERROR:TRAILING_WHITESPACE: trailing whitespace\n"; $bad = 1; } }
	exit $bad;
	PERL
}

# imported: the cache has a small tree as its source
imported() {
	kernel_tree "$WORK/linux"
	vm fetch --source "$WORK/linux" >/dev/null
	ends 0
}

# series_of_two: two patches for kernel_tree, exported from a tree of their own
series_of_two() {
	git init -q "$WORK/work"
	kernel_tree "$WORK/work"
	git -C "$WORK/work" add -A
	git -C "$WORK/work" commit -qm base
	git -C "$WORK/work" tag base
	sed -i 's/return 1/return 2/' "$WORK/work/net/core/dev.c"
	git -C "$WORK/work" commit -qam 'net: return two'
	sed -i 's/^# line 20$/# line twenty/' "$WORK/work/net/core/Kconfig"
	printf 'int traits;\n' >"$WORK/work/net/core/traits.c"
	git -C "$WORK/work" add -A
	git -C "$WORK/work" commit -qm 'net: add traits'
	printf 'net: two changes\n\nThey are for testing.\n' >"$PATCHES/cover-letter.txt"
	vm patch export --from "$WORK/work" --base base
	ends 0
}

# everything_but_the_guest: a source, a series, a Swift toolchain, the BPF programs'
# compiler, and a test bundle that only lists the tests in the file WORK/list. Standard input is what happens instead of a
# boot; RESULTS is the directory that the guest writes to.
# shellcheck disable=SC2016
everything_but_the_guest() {
	local vng=$CACHE/virtme-ng-1.42/bin/vng
	imported >/dev/null
	series_of_two >/dev/null
	printf '// swift-tools-version: 6.2\n' >"$CLONE/Package.swift"
	replace swift <<-'SWIFT'
	case $1 in
	--version) echo 'Swift version 6.3' ;;
	*)
		mkdir -p "$CLONE/.build/debug"
		printf '#!/bin/sh\ncat "$WORK/list"\n' >"$CLONE/.build/debug/packet-traitsPackageTests.xctest"
		chmod +x "$CLONE/.build/debug/packet-traitsPackageTests.xctest" ;;
	esac
	SWIFT
	printf '%s\n' 'GuestTests.Guest/T/good()' 'PacketTraitsTests.Host/good()' >"$WORK/list"
	replace clang <<<'touch "${!#}"'
	mkdir -p "$CLONE/Sources"
	cp -r "$SOURCE_ROOT/Sources/CTraits" "$CLONE/Sources/"
	mkdir -p "$(dirname "$vng")"
	touch "$CACHE/virtme-ng-1.42.ready"
	echo "$(cat /proc/sys/kernel/random/boot_id) fails" >"$CACHE/kvm"
	# The guest's scripts are not run: they would make this machine's allocations fail
	{
		echo '#!/bin/bash'
		echo 'echo "$*" >"$WORK/vng.arguments"'
		echo 'while [ $# -gt 0 ]; do [ "$1" != --rwdir ] || RESULTS=$2; shift; done'
		echo 'cp "$RESULTS/command" "$WORK/guest.command"'
		cat
	} >"$vng"
	chmod +x "$vng"
	export CLONE WORK
}
