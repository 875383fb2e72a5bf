# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Several runs at once: what they share, what they wait for, and what they refuse.

# background LOG ARGUMENTS...: qemu/vm of CLONE in the background; PID is its process
background() {
	local log=$WORK/$1.out
	shift
	setsid "$CLONE/qemu/vm" "$@" >"$log" 2>&1 </dev/null 8>&- &
	PID=$!
}

# until_said LOG TEXT
until_said() {
	local _
	for _ in $(seq 200); do
		! grep -qF "$2" "$WORK/$1.out" || return 0
		sleep 0.1
	done
	cat "$WORK/$1.out"
	echo "$1 does not say: $2"
	return 1
}

# ended PID LOG STATUS
ended() {
	local status=0
	wait "$1" || status=$?
	cat "$WORK/$2.out"
	same "$3" "$status"
}

# another_clone: CLONE is one from now on
another_clone() {
	cp -r "$CLONE" "$WORK/another"
	CLONE=$WORK/another
	PATCHES=$CLONE/kernel-patches/linux-6.12
}

# A guest that lasts until WORK/guest.end is there
LASTS='touch "$WORK/guest.begun"; while [ ! -e "$WORK/guest.end" ]; do sleep 0.1; done; echo 0 >"$RESULTS/status"'

test_a_finished_kernel_boots_while_others_are_built() {
	local building
	everything_but_the_guest <<<'echo 0 >"$RESULTS/status"'
	kernel_tree "$WORK/newer" 6 12 117
	vm fetch --source "$WORK/newer"
	vm fetch --version 6.12.95
	vm boot -- true
	ends 0
	# Another flavour, another version, the same tree with another configuration
	mkdir -p "$CACHE/6.12.117/build"
	touch "$BUILDS/unpatched.slow" "$CACHE/6.12.117/build/patched.slow" "$BUILDS/patched-debug.slow"
	background unpatched build --unpatched
	building=$PID
	background newer build --kernel 6.12.117
	building+=" $PID"
	background debug test --profile debug --only guest
	building+=" $PID"
	until_said unpatched 'building unpatched'
	until_said newer 'building patched'
	until_said debug 'building patched-debug'
	vm boot -- true
	ends 0
	says 'patched is built, nothing changed'
	says_not 'waiting'
	another_clone
	vm boot -- true
	ends 0
	says_not 'waiting'
	# All three go on
	# shellcheck disable=SC2086
	kill -0 $building
	rm "$BUILDS"/*.slow "$CACHE/6.12.117/build/patched.slow"
	# shellcheck disable=SC2086
	wait $building || true
	grep -q "$CACHE/6.12.117/build/patched/arch/x86/boot/bzImage" "$WORK/newer.out"
	grep -q "$BUILDS/unpatched/arch/x86/boot/bzImage" "$WORK/unpatched.out"
	grep -q CONFIG_KASAN=y "$BUILDS/patched-debug/arch/x86/boot/bzImage"
}

test_a_kernel_that_another_run_builds_is_waited_for() {
	local first second
	imported
	mkdir -p "$BUILDS"
	touch "$BUILDS/unpatched.slow"
	background first build --unpatched
	first=$PID
	until_said first 'building unpatched'
	another_clone
	background second build --unpatched
	second=$PID
	until_said second "waiting for $BUILDS/unpatched, in use by another run: process $first, 'qemu/vm build'"
	# It can be interrupted meanwhile
	background third build --unpatched
	until_said third 'waiting for'
	kill -TERM "$PID"
	ended "$PID" third 143
	rm "$BUILDS/unpatched.slow"
	ended "$first" first 0
	ended "$second" second 0
	grep -q 'unpatched is built, nothing changed' "$WORK/second.out"
}

test_what_a_guest_runs_on_is_not_changed() {
	local booted
	everything_but_the_guest <<<"$LASTS"
	background boot boot -- true
	booted=$PID
	until_said boot 'guest: true'
	another_clone
	# Another configuration
	cp "$CLONE/qemu/config/network.config" "$WORK/network.config"
	printf '# Reason\nCONFIG_ONE_MORE=y\n' >>"$CLONE/qemu/config/network.config"
	vm build
	ends 1
	says "$BUILDS/patched is in use by another run: process $booted, 'qemu/vm boot'" 'Wait for it to end' 'PACKET_TRAITS_CACHE=DIR'
	! grep -q CONFIG_ONE_MORE "$BUILDS/patched/arch/x86/boot/bzImage" || return 1
	cp "$WORK/network.config" "$CLONE/qemu/config/network.config"
	# Another series
	rm "$PATCHES"/0002-*.patch
	vm patch apply
	ends 1
	says "$TREES/patched is in use by another run: process $booted, 'qemu/vm boot'"
	[ -e "$TREES/patched/net/core/traits.c" ]
	vm patch apply --force
	ends 1
	touch "$WORK/guest.end"
	ended "$booted" boot 0
	vm patch apply
	ends 0
	[ ! -e "$TREES/patched/net/core/traits.c" ]
}

test_two_tests_of_one_clone_are_refused() {
	local first
	everything_but_the_guest <<<"$LASTS"
	background first test --only guest
	first=$PID
	until_said first 'guest: the guest suites'
	vm test --only guest
	ends 1
	says "the clone $CLONE is in use by another run: process $first, 'qemu/vm test'" 'use another clone'
	vm demo
	ends 1
	says "process $first, 'qemu/vm test'"
	# Results of its own
	background boot boot -- true
	until_said boot 'guest: true'
	vm boot -- true
	ends 1
	says "process $PID, 'qemu/vm boot'"
	touch "$WORK/guest.end"
	ended "$PID" boot 0
	wait "$first" || true
	vm boot -- true
	ends 0
}

test_an_orphaned_make_keeps_its_directory() {
	local orphans
	imported
	mkdir -p "$BUILDS"
	touch "$BUILDS/unpatched.slow"
	background killed build --unpatched
	until_said killed 'building unpatched'
	for _ in $(seq 100); do
		[ ! -e "$BUILDS/unpatched/dev.o" ] || break
		sleep 0.1
	done
	kill -KILL "$PID"
	wait "$PID" || true
	background next build --unpatched
	until_said next "it has ended, but something that it started runs on"
	# Others are not in its way
	kernel_tree "$WORK/newer" 6 12 117
	vm fetch --source "$WORK/newer"
	ends 0
	vm build --unpatched
	ends 0
	rm "$BUILDS/unpatched.slow"
	ended "$PID" next 0
}

test_an_orphaned_guest_keeps_nothing() {
	everything_but_the_guest <<<"$LASTS"
	background killed boot -- true
	for _ in $(seq 200); do
		[ ! -e "$WORK/guest.begun" ] || break
		sleep 0.1
	done
	kill -KILL "$PID"
	wait "$PID" || true
	sleep 1
	rm "$PATCHES"/0002-*.patch
	vm patch apply
	ends 0
	says_not 'waiting'
	touch "$WORK/guest.end"
	vm boot -- true
	ends 0
}

test_a_source_that_another_run_fetches_is_waited_for() {
	kernel_tree "$WORK/linux"
	mkdir -p "$CACHE"
	echo "process 1, 'qemu/vm fetch'" >"$CACHE/lock.holder"
	exec 8>"$CACHE/lock"
	flock -n 8
	background fetch fetch --source "$WORK/linux"
	until_said fetch "waiting for $CACHE, in use by another run: process 1, 'qemu/vm fetch'"
	exec 8>&-
	ended "$PID" fetch 0
}
