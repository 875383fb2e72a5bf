# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# With a tree that builds at once: what is asked of make, and when.

image() {
	echo "$BUILDS/$1/arch/x86/boot/bzImage"
}

test_both_kernels_are_built_in_trees_of_their_own() {
	imported
	series_of_two
	vm build
	ends 0
	says "$(image patched)"
	grep -q CONFIG_NET_TRAITS=y "$(image patched)"
	[ -d "$BUILDS/patched/headers/include" ]
	vm build --unpatched
	ends 0
	! grep -q CONFIG_NET_TRAITS=y "$(image unpatched)" || return 1
	grep -q 'return 1' "$TREES/unpatched/net/core/dev.c"
}

test_an_unchanged_kernel_is_not_built_again() {
	local before
	imported
	vm build --unpatched
	before=$(stat -c %y "$(image unpatched)")
	vm build --unpatched
	ends 0
	says 'nothing changed'
	same "$before" "$(stat -c %y "$(image unpatched)")"
	# A changed fragment does count
	echo 'CONFIG_ONE_MORE=y' >>"$CLONE/qemu/config/network.config"
	vm build --unpatched
	ends 0
	grep -q CONFIG_ONE_MORE=y "$(image unpatched)"
}

test_an_unchanged_configuration_keeps_its_time() {
	local before
	imported
	vm build --unpatched
	before=$(stat -c %y "$BUILDS/unpatched/.config")
	echo '# a comment' >>"$CLONE/qemu/steps/kernel.sh"
	vm build --unpatched
	says_not 'nothing changed'
	same "$before" "$(stat -c %y "$BUILDS/unpatched/.config")"
}

test_symbols_that_do_not_end_up_set_are_named() {
	kernel_tree "$WORK/linux"
	echo CONFIG_VETH >"$WORK/linux/config.drop"
	vm fetch --source "$WORK/linux"
	vm build --unpatched
	ends 1
	says 'is not what qemu/config asks for' 'network.config:' "asks for 'CONFIG_VETH=y'"
	says_not CONFIG_DUMMY
}

test_a_build_that_fails_shows_the_error() {
	kernel_tree "$WORK/linux"
	touch "$WORK/linux/build.fail"
	vm fetch --source "$WORK/linux"
	vm build --unpatched
	ends 1
	says 'net/core/dev.c:7:1: error: no such luck' 'the unpatched kernel does not build' "$CACHE/6.12.95/log/build-unpatched.log"
}

test_an_interrupted_build_goes_on() {
	local pid status=0
	imported
	mkdir -p "$BUILDS"
	touch "$BUILDS/slow"
	setsid "$CLONE/qemu/vm" build --unpatched >"$WORK/output" 2>&1 &
	pid=$!
	for _ in $(seq 100); do
		[ ! -e "$BUILDS/unpatched/dev.o" ] || break
		sleep 0.1
	done
	kill -TERM $pid
	wait $pid || status=$?
	cat "$WORK/output"
	same 143 $status
	# Nothing goes on in the background
	sleep 1.5
	same '' "$(pgrep -a -g $pid)"
	grep -q 'ended from outside during: kernel: building' "$WORK/output"
	[ ! -e "$BUILDS/unpatched.stamp" ]
	rm "$BUILDS/slow"
	vm build --unpatched
	ends 0
	[ -e "$(image unpatched)" ]
}

test_a_disk_that_fills_up_during_the_build_is_told() {
	imported
	replace make <<<'case "$*" in *bzImage*) echo "as: No space left on device"; exit 2 ;; *) exec /usr/bin/make "$@" ;; esac'
	vm build --unpatched
	ends 1
	says 'the disk is full' 'kernel: building unpatched'
}

test_every_symbol_of_the_fragments_has_a_reason_above_it() {
	local fragment
	for fragment in "$CLONE"/qemu/config/*.config; do
		# One reason for all of it: it is compared, not booted
		[ "$(basename "$fragment")" != distribution.config ] || continue
		awk -v file="$(basename "$fragment")" '
			/^CONFIG_|^# CONFIG_.* is not set$/ { if (!reason) { print file ": no reason: " $0; bad = 1 } next }
			/^# / { reason = 1; next }
			/^$/ { reason = 0 }
			END { exit bad }' "$fragment"
	done
}

# layout PLACES: pahole prints a structure of these fields
layout() {
	{
		echo 'case $* in *sk_buff*) ;; *) echo v1.24; exit ;; esac'
		printf "echo '\t\tunion {\n'\n"
		printf "echo '\t\t%s; /* %s %s */'\n" "$@"
	} | replace pahole
}

test_a_kernel_in_which_the_two_bytes_move_a_field_is_refused() {
	imported
	series_of_two
	# The fake image stands for an ELF file
	sed -i 's,^> cp $(O)/.config .*,&\n> touch $(O)/vmlinux,' "$WORK/linux/Makefile"
	vm fetch --source "$WORK/linux"
	layout 'u16 alloc_cpu' 136 2 'u16 traits' 138 2 '__wsum csum' 140 4
	vm build
	ends 0
	rm "$BUILDS/patched.stamp"
	layout 'u16 alloc_cpu' 134 2 'u16 traits' 136 2 '__wsum csum' 140 4
	vm build
	ends 1
	says 'do not fit behind alloc_cpu: alloc_cpu 134 traits 136 csum 140'
	replace pahole <<<'case $* in *sk_buff*) exit 1 ;; *) echo v1.24 ;; esac'
	vm build
	ends 1
	says 'pahole finds no such structure'
}
