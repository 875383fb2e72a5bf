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
	says 'ended after 2 s' 'its last step: the guest suites' '| unfinished' 'the last words'
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
