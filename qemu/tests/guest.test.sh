# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The guest's ending, with a virtme-ng that plays one.

# guest: standard input is what happens instead of a boot; RESULTS is the directory
# that the guest writes to
guest() {
	local vng=$CACHE/virtme-ng-1.42/bin/vng
	imported >/dev/null
	vm build --unpatched >/dev/null
	ends 0
	mkdir -p "$(dirname "$vng")"
	touch "$CACHE/virtme-ng-1.42.ready"
	{
		echo '#!/bin/bash'
		echo 'while [ $# -gt 0 ]; do [ "$1" != --rwdir ] || RESULTS=$2; shift; done'
		echo 'console() { echo "[    1.000000] $*" >&2; }'
		cat
	} >"$vng"
	chmod +x "$vng"
	# Hardware virtualisation was probed already
	echo "$(cat /proc/sys/kernel/random/boot_id) fails" >"$CACHE/kvm"
}

test_output_and_status_come_through() {
	guest <<<'bash "$CLONE/qemu/guest/enter" "$RESULTS"'
	export CLONE
	vm boot --unpatched -- bash -c 'echo "it is  me"; exit 7'
	ends 7
	says 'it is  me' 'ended with status 7'
	grep -q 'it is  me' "$CLONE/.build-vm/results/boot/output.log"
}

test_the_command_runs_in_the_clone_with_the_environment() {
	guest <<<'bash "$CLONE/qemu/guest/enter" "$RESULTS"'
	export CLONE
	vm boot --unpatched -- bash -c 'echo "in $PWD, $PACKET_TRAITS_RESULTS, guest=$PACKET_TRAITS_GUEST"'
	ends 0
	says "in $CLONE, $CLONE/.build-vm/results/boot, guest="
	says_not 'guest=1'
}

test_the_guest_s_words_are_left_as_they_are() {
	guest <<<'bash "$CLONE/qemu/guest/enter" "$RESULTS"'
	export CLONE
	vm boot --unpatched --limit=60 -- echo --only=x -- --limit=y
	ends 0
	says '--only=x -- --limit=y'
}

test_a_hang_ends_at_the_limit_and_says_where() {
	guest <<<'console "the last words"; echo "the guest suites" >"$RESULTS/step"; echo unfinished >"$RESULTS/output.log"; sleep 60'
	vm boot --unpatched --limit 2 -- true
	ends 124
	says 'for at most 2 s' 'ended after 2 s' 'its last step: the guest suites' '| unfinished' 'the last words' \
		"'qemu/vm boot --limit SECONDS' gives a guest more time than 2 s"
}

test_a_guest_that_dies_without_a_status_is_told() {
	guest <<<'console "virtme: bye"; exit 0'
	vm boot --unpatched -- true
	ends 125
	says 'ended without a status' 'virtme: bye'
}

test_a_report_in_the_log_fails_a_run_that_succeeded() {
	guest <<<'console "all is well"; console "WARNING: CPU: 0 PID: 1 at net/core/skbuff.c:1 skb_x+0x1/0x2"; console "Call Trace:"; echo 0 >"$RESULTS/status"'
	vm boot --unpatched -- true
	ends 126
	says 'the kernel reported (from line 2' 'net/core/skbuff.c:1'
	says_not 'all is well'
}

test_reports_are_told_from_other_lines() {
	local line
	source "$CLONE/qemu/steps/guest.sh"
	while IFS= read -r line; do
		printf '[    2.345678] %s\r\n' "$line" >"$WORK/console"
		kernel_reports "$WORK/console" >/dev/null || {
			echo "not seen: $line"
			return 1
		}
	done <<-'REPORTS'
	WARNING: CPU: 1 PID: 77 at net/core/dev.c:10
	WARNING: possible circular locking dependency detected
	WARNING: suspicious RCU usage
	BUG: KASAN: slab-use-after-free in skb_release_data
	BUG: sleeping function called from invalid context
	BUG: unable to handle page fault for address: 0000000000000008
	kernel BUG at net/core/skbuff.c:100!
	Oops: 0000 [#1] PREEMPT SMP
	Oops: general protection fault, probably for non-canonical address
	INFO: task traits-demo:99 blocked for more than 120 seconds.
	INFO: rcu_preempt detected stalls on CPUs/tasks
	rcu: INFO: rcu_sched self-detected stall on CPU
	watchdog: BUG: soft lockup - CPU#0 stuck for 26s!
	Kernel panic - not syncing: Attempted to kill init!
	UBSAN: array-index-out-of-bounds in net/traits/store.c
	refcount_t: underflow; use-after-free.
	unregister_netdevice: waiting for lo to become free.
	------------[ cut here ]------------
	REPORTS
	while IFS= read -r line; do
		printf '[    2.345678] %s\r\n' "$line" >"$WORK/console"
		! kernel_reports "$WORK/console" || {
			echo "taken for a report: $line"
			return 1
		}
	done <<-'OTHERS'
	virtme-init: WARNING: failed to restore symlink
	systemd-udevd[7]: BUG: not the kernel's
	random: crng init done
	clocksource: Switched to clocksource tsc
	RAS: Correctable Errors collector initialized.
	rcu: Hierarchical RCU implementation.
	OTHERS
}

test_hardware_virtualisation_is_used_only_after_a_guest_booted_with_it() {
	[ -w /dev/kvm ] || {
		# Without the device there is nothing to choose
		guest <<<'bash "$CLONE/qemu/guest/enter" "$RESULTS"'
		export CLONE
		vm boot --unpatched -- true
		says 'software emulation'
		return 0
	}
	guest <<<'echo "$*" >>"$CACHE/boots"; bash "$CLONE/qemu/guest/enter" "$RESULTS"'
	export CLONE CACHE
	# The arguments as they came
	sed -i '2i all=$*' "$CACHE/virtme-ng-1.42/bin/vng"
	sed -i 's/echo "$\*" >>/echo "$all" >>/' "$CACHE/virtme-ng-1.42/bin/vng"
	rm "$CACHE/kvm"
	vm boot --unpatched -- true
	ends 0
	says 'guest: hardware virtualisation'
	same 2 "$(wc -l <"$CACHE/boots")"
	! grep -q disable-kvm "$CACHE/boots" || return 1
	# Once per boot of the machine
	vm boot --unpatched -- true
	same 3 "$(wc -l <"$CACHE/boots")"
	# And the other way round: the probe's guest dies
	rm "$CACHE/kvm" "$CACHE/boots"
	sed -i '/boots/a case $all in *disable-kvm*) ;; *) exit 1 ;; esac' "$CACHE/virtme-ng-1.42/bin/vng"
	vm boot --unpatched -- true
	ends 0
	says 'a guest does not boot with it: software emulation'
	same 1 "$(grep -c disable-kvm "$CACHE/boots")"
}

test_a_qemu_that_mixes_up_replaced_instructions_emulates_in_one_thread() {
	local version
	guest <<<'bash "$CLONE/qemu/guest/enter" "$RESULTS"'
	export CLONE CACHE
	sed -i '2i echo "$*" >>"$CACHE/boots"' "$CACHE/virtme-ng-1.42/bin/vng"
	# No probe: a guest does not boot with hardware virtualisation
	echo "$(cat /proc/sys/kernel/random/boot_id) fails" >"$CACHE/kvm"
	for version in 7.2.22 8.0.5 8.1.0 10.0.2; do
		printf '#!/bin/sh\necho "QEMU emulator version %s (Debian 1:%s)"\n' $version $version >"$COMMANDS/qemu-system-x86_64"
		chmod +x "$COMMANDS/qemu-system-x86_64"
		vm boot --unpatched -- true
		ends 0
	done
	same '1 1 0 0' "$(while read -r arguments; do
		case $arguments in *'-accel tcg,thread=single'*) echo 1 ;; *) echo 0 ;; esac
	done <"$CACHE/boots" | paste -sd ' ')"
}

# guests TEST...: a bundle with these tests of GuestTests, and guests that run what they are told.
# Standard input is what happens in a guest before that; NUMBER is which one it is.
guests() {
	everything_but_the_guest < <(
		cat <<-'GUEST'
		NUMBER=$(basename "$RESULTS")
		# tell KIND TEST SECONDS [ISSUE]: an event
		tell() {
			local issue=
			[ -z "${4:-}" ] || issue=',"issue":{"isKnown":false}'
			printf '{"kind":"event","payload":{"kind":"%s","testID":"%s/T.swift:1:2","instant":{"absolute":%s}%s,"messages":[{"text":"%s"}]}}\n' \
				"$1" "$2" "$3" "$issue" "${4:-}" >>"$RESULTS/events.json"
		}
		console() { echo "[    1.000000] $*" >&2; }
		plan() {
			printf '{"kind":"test","payload":{"id":"%s/T.swift:1:2","kind":"function"}}\n' "$1" >>"$RESULTS/events.json"
		}
		eval "set -- $(tail -n 1 "$RESULTS/command")"
		filter=$4
		# matching: its tests, as Swift Testing finds them
		matching() { sed 's|$|/T.swift:1:2|' "$WORK/list" | grep -P -- "$filter" | sed 's|/T.swift:1:2$||'; }
		pass() {
			for test; do plan "$test"; done
			for test; do tell testStarted "$test" 10; tell testEnded "$test" 12.25; done
		}
		GUEST
		cat
		echo 'pass $(matching); echo 0 >"$RESULTS/status"'
	)
	printf 'GuestTests.Guest/%s\n' "$@" >"$WORK/list"
	echo 'PacketTraitsTests.Host/good()' >>"$WORK/list"
	: >"$CLONE/qemu/guest/durations.tsv"
}

# share GUEST: the tests that it was given, in order
share() {
	awk -F '\t' -v guest="$1" '$1 == guest { sub(/GuestTests.Guest\//, "", $2); print $2 }' \
		"$CLONE/.build-vm/results/guest/plan.tsv" | sort | paste -sd ' '
}

test_guests_share_the_suites_by_what_they_take() {
	local results=$CLONE/.build-vm/results/guest
	guests 'Stream/a()' 'Stream/b(x:y:)' 'StreamRead/c()' 'Send/d()' 'New/e()' <<<'echo "$filter" >"$RESULTS/filter"'
	printf '%s\tGuestTests.Guest/%s\n' 30 'Stream/a()' 30 'Stream/b(x:y:)' 50 'StreamRead/c()' 20 'Send/d()' \
		900 'Gone/f()' >"$CLONE/qemu/guest/durations.tsv"
	vm test --only guest --guests 2
	ends 0
	same '5 passed, 0 failed, 0 skipped' "$(tail -n 1 <<<"$OUTPUT")"
	says 'in 2 guest(s)' 'guest: guest 1 of 2 ended with status 0' 'guest: guest 2 of 2 ended with status 0'
	# The new test counts with the mean of all, 32.5 s
	same 'Send/d() Stream/a() Stream/b(x:y:)' "$(share 1)"
	same 'New/e() StreamRead/c()' "$(share 2)"
	# What is left of each
	[ -e "$results/1/console.log" ] && [ -e "$results/2/console.log" ] && [ -s "$results/1/events.json" ]
	same 3 "$(count_lines "$results/1/tests.tsv")"
	same 2 "$(count_lines "$results/2/tests.tsv")"
	# Each of 2.25 s, as durations are kept
	same '2.25 GuestTests.Guest/New/e()' "$(head -n 1 "$results/durations.tsv" | tr '\t' ' ')"
	same 5 "$(count_lines "$results/durations.tsv")"
}

count_lines() {
	grep -c . "$1"
}

test_a_suite_that_takes_longer_than_a_guest_s_share_is_divided() {
	guests 'Long/a()' 'Long/b()' 'Long/c()' 'Short/d()' <<<''
	printf '%s\tGuestTests.Guest/%s\n' 40 'Long/a()' 30 'Long/b()' 10 'Long/c()' 4 'Short/d()' >"$CLONE/qemu/guest/durations.tsv"
	vm test --only guest --guests=2
	ends 0
	same 'Long/a() Short/d()' "$(share 1)"
	same 'Long/b() Long/c()' "$(share 2)"
}

test_one_guest_takes_all_and_no_guest_none() {
	guests 'A/a()' 'B/b()' <<<'echo "$NUMBER" >>"$WORK/boots"'
	vm test --only guest --guests 1
	ends 0
	same 'A/a() B/b()' "$(share 1)"
	same 1 "$(count_lines "$WORK/boots")"
	rm "$WORK/boots"
	vm test --only guest --guests 64
	ends 0
	same '1 2' "$(sort "$WORK/boots" | paste -sd ' ')"
}

test_the_number_of_guests_follows_processors_and_memory() {
	local case
	source "$CLONE/qemu/steps/progress.sh"
	source "$CLONE/qemu/steps/guest.sh"
	ROOT=$CLONE RESULTS=$WORK/results
	source "$CLONE/qemu/steps/suites.sh"
	MACHINE=$WORK/memory
	GUEST_OVERHEAD_MB=512
	mkdir -p "$MACHINE/proc"
	# Processors, memory in MB, hardware virtualisation or emulation: how hardware guests
	while read -r processors memory how wanted; do
		replace nproc <<<"echo $processors"
		echo "MemAvailable: $((memory * 1024)) kB" >"$MACHINE/proc/meminfo"
		ACCELERATION=()
		[ "$how" = hardware ] || ACCELERATION=(--disable-kvm)
		same "$processors $memory $how $wanted" "$processors $memory $how $(default_guests 2>/dev/null)"
	done <<-'CASES'
	1 16000 emulated 1
	2 16000 emulated 2
	16 64000 emulated 8
	2 16000 hardware 1
	1 16000 hardware 1
	4 16000 hardware 2
	16 64000 hardware 8
	4 6000 emulated 2
	4 1000 emulated 1
	CASES
	use_profile debug
	replace nproc <<<'echo 2'
	ACCELERATION=(--disable-kvm)
	echo 'MemAvailable: 6144000 kB' >"$MACHINE/proc/meminfo"
	OUTPUT=$(default_guests 2>&1)
	says '6000 MB of memory are free, and each guest takes 4608 MB'
	same 1 "$(tail -n 1 <<<"$OUTPUT")"
}

test_a_number_of_guests_that_is_none() {
	local value
	for value in 0 65 -1 two 100 1.5 '' 007; do
		vm test --guests "$value"
		ends 64
		says "test --guests: a number from 1 to 64, not '$value'"
	done
	vm test --guests
	ends 64
}

test_failures_of_each_guest_are_told() {
	guests 'A/a()' 'B/b()' <<-'GUEST'
	case $NUMBER in
	1) plan "$(matching)"; tell testStarted "$(matching)" 1; tell issueRecorded "$(matching)" 2 "1 is not 2"
		tell testEnded "$(matching)" 3; echo 1 >"$RESULTS/status"; exit ;;
	2) console 'BUG: KASAN: slab-use-after-free in x' ;;
	esac
	GUEST
	vm test --only guest --guests 2
	ends 1
	says 'guest 1 of 2 ended with status 1' 'FAILED GuestTests.Guest/A/a(): 1 is not 2' \
		'guest 2 of 2 ended with status 126' 'the kernel reported (from line 1' \
		"FAILED (guest/2): the kernel's log has a report" 'slab-use-after-free in x'
	same '1 passed, 2 failed, 0 skipped' "$(tail -n 1 <<<"$OUTPUT")"
}

test_a_guest_that_dies_fails_its_tests_and_not_those_of_others() {
	guests 'A/a()' 'A/b()' 'B/c()' 'B/d()' <<-'GUEST'
	if [ "$NUMBER" = 2 ]; then
		for test in $(matching); do plan "$test"; done
		tell testStarted "$(matching | head -n 1)" 1
		console 'the last words'
		exit
	fi
	GUEST
	vm test --only guest --guests 2
	ends 1
	says 'guest 2 of 2 ended with status 125' 'the last words' 'FAILED (guest/2): the guest ended without a status' \
		'FAILED GuestTests.Guest/B/c(): began or was planned, but never ended' \
		'FAILED GuestTests.Guest/B/d(): began or was planned, but never ended'
	same '2 passed, 3 failed, 0 skipped' "$(tail -n 1 <<<"$OUTPUT")"
}

test_a_guest_that_never_began_fails_its_tests() {
	guests 'A/a()' 'B/b()' 'B/c()' <<<'[ "$NUMBER" = 1 ] || exit 0'
	printf '%s\tGuestTests.Guest/%s\n' 9 'A/a()' 4 'B/b()' 4 'B/c()' >"$CLONE/qemu/guest/durations.tsv"
	vm test --only guest --guests 2
	ends 1
	says 'FAILED (guest/2): the guest ended without a status' \
		'FAILED GuestTests.Guest/B/b(): guest 2 was to run it, and did not begin to' \
		'FAILED GuestTests.Guest/B/c(): guest 2 was to run it, and did not begin to'
	same '1 passed, 3 failed, 0 skipped' "$(tail -n 1 <<<"$OUTPUT")"
}

test_what_ran_must_be_what_was_planned() {
	# A test that the filter did not reach, one that ran twice, one that is not on the list
	guests 'A/a()' 'A/b()' 'B/c()' <<-'GUEST'
	case $NUMBER in
	1) pass 'GuestTests.Guest/A/a()' 'GuestTests.Guest/B/c()' ;;
	2) pass 'GuestTests.Guest/B/c()' 'GuestTests.Guest/C/x()' ;;
	esac
	echo 0 >"$RESULTS/status"
	exit
	GUEST
	printf '%s\tGuestTests.Guest/%s\n' 2 'A/a()' 2 'A/b()' 3 'B/c()' >"$CLONE/qemu/guest/durations.tsv"
	vm test --only guest --guests 2
	ends 1
	says 'FAILED GuestTests.Guest/A/b(): guest 2 was to run it, and did not begin to' \
		'FAILED GuestTests.Guest/B/c(): ran more than once: in guests 1 and 2' \
		'FAILED GuestTests.Guest/C/x(): the bundle does not list it, but guest 2 ran it'
}

test_a_bundle_that_lists_no_guest_test_fails() {
	guests 'A/a()' <<<''
	echo 'PacketTraitsTests.Host/good()' >"$WORK/list"
	vm test --only guest
	ends 1
	says 'FAILED (guest): the bundle lists no guest test'
}

test_all_guests_end_with_the_run() {
	guests 'A/a()' 'B/b()' <<<'echo $$ >>"$WORK/pids"; sleep 300'
	: >"$WORK/pids"
	setsid "$CLONE/qemu/vm" test --only guest --guests 2 >"$WORK/output" 2>&1 &
	local run=$! pid
	while [ "$(wc -l <"$WORK/pids")" -lt 2 ]; do sleep 0.2; done
	kill -TERM $run
	wait $run || STATUS=$?
	ends 143
	while read -r pid; do
		! kill -0 "$pid" 2>/dev/null || return 1
	done <"$WORK/pids"
	# Nor does a guest that was ended from outside have a result
	! grep -q 'ended with status' "$WORK/output" || return 1
}

test_a_time_limit_ends_one_guest_alone() {
	guests 'A/a()' 'B/b()' <<-'GUEST'
	if [ "$NUMBER" = 1 ]; then plan "$(matching)"; tell testStarted "$(matching)" 1; sleep 100; fi
	GUEST
	sed -i 's/^GUEST_LIMIT=3600/GUEST_LIMIT=3/' "$CLONE/qemu/steps/suites.sh"
	vm test --only guest --guests 2
	ends 1
	says 'guest 1 of 2 ended with status 124' 'the guest was ended after 3 s' 'FAILED (guest/1): the guest did not end within 3 s' \
		'FAILED GuestTests.Guest/A/a(): began or was planned, but never ended' 'guest 2 of 2 ended with status 0'
	same '1 passed, 2 failed, 0 skipped' "$(tail -n 1 <<<"$OUTPUT")"
}

test_only_what_needs_a_missing_card_may_be_skipped() {
	# The reasons are as Swift Testing words them
	guests 'A/igb()' 'A/virtio()' 'A/igbx()' 'A/other()' 'A/fine()' <<-'GUEST'
	cp "$RESULTS/command" "$WORK/guest.command"
	for test in $(matching); do plan "$test"; done
	for test in $(matching); do
		case $test in
		*/igb*) reason='no igb: this QEMU refuses it' ;;
		*/virtio*) reason='no virtio: it is not there' ;;
		*/other*) reason='there is no igb: so it seems' ;;
		*/fine*) tell testEnded "$test" 3; continue ;;
		esac
		[[ $test != */igbx* ]] || reason='no igbx: another card'
		printf '{"kind":"event","payload":{"kind":"testSkipped","testID":"%s/T.swift:1:2","messages":[{"text":"Test \\"x\\" skipped: \\"%s\\""}]}}\n' \
			"$test" "$reason" >>"$RESULTS/events.json"
	done
	echo 0 >"$RESULTS/status"
	exit
	GUEST
	# As guest_cards finds out
	echo 'probe_cards() { GUEST_MISSING="igb e1000e"; }' >>"$CLONE/qemu/steps/guest.sh"
	sed -i "s/^guest_cards() {/&\n\treturn 0/" "$CLONE/qemu/steps/guest.sh"
	vm test --only guest --guests 1
	ends 1
	same '1 passed, 3 failed, 1 skipped' "$(tail -n 1 <<<"$OUTPUT")"
	says 'skipped GuestTests.Guest/A/igb(): no igb: this QEMU refuses it' \
		'FAILED GuestTests.Guest/A/igbx(): was skipped in the guest: no igbx: another card' \
		'FAILED GuestTests.Guest/A/virtio(): was skipped in the guest: no virtio: it is not there' \
		'FAILED GuestTests.Guest/A/other(): was skipped in the guest: there is no igb'
	grep -qF "export PACKET_TRAITS_MISSING=igb\\ e1000e" "$WORK/guest.command"
}
