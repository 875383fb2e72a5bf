# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# "test --profile": a kernel of its own from the same tree, results of their own.

# A guest in which one test of the bundle passed
PASSES='
printf "%s\n" "{\"kind\":\"test\",\"payload\":{\"id\":\"GuestTests.Guest/T/good()/T.swift:1:2\",\"kind\":\"function\"}}" \
	"{\"kind\":\"event\",\"payload\":{\"kind\":\"testEnded\",\"testID\":\"GuestTests.Guest/T/good()/T.swift:1:2\",\"messages\":[]}}" >"$RESULTS/events.json"
echo 0 >"$RESULTS/status"'

test_wrong_profiles_are_usage_errors() {
	vm test --profile fast
	ends 64
	says 'plain, debug, faults or modules' "'fast'"
	vm test --profile
	ends 64
	vm test --profile debug --profile faults
	ends 64
	says "one profile at a time, not 'debug' and 'faults'"
	vm test --profile debug --only host
	ends 64
	says 'the profile debug has the suites kunit, guest' "not 'host'"
	vm test --only traffic
	ends 64
	says 'the profile plain has the suites harness, host, kunit, guest' "not 'traffic'"
}

test_a_profile_has_a_kernel_and_results_of_its_own() {
	everything_but_the_guest <<<"$PASSES"
	vm test --profile debug --only guest
	ends 0
	same '1 passed, 0 failed, 0 skipped' "$(tail -n 1 <<<"$OUTPUT")"
	local image=$BUILDS/patched-debug/arch/x86/boot/bzImage
	grep -q CONFIG_KASAN=y "$image"
	grep -q CONFIG_PROVE_LOCKING=y "$image"
	grep -q CONFIG_NET_TRAITS=y "$image"
	# The same source, and the plain kernel is left alone
	[ ! -e "$TREES/patched-debug" ]
	[ ! -e "$BUILDS/patched" ]
	[ -s "$CLONE/.build-vm/results/guest-debug/tests.tsv" ]
	[ ! -e "$CLONE/.build-vm/results/guest" ]
	# A slow kernel is not a stuck one
	grep -q -e '--memory 4G' "$WORK/vng.arguments"
	grep -q -e '--append watchdog_thresh=' "$WORK/vng.arguments"
	grep -q 'PACKET_TRAITS_PROFILE=debug' "$WORK/guest.command"
	# A changed fragment counts, and only for its profile
	vm test --profile debug --only guest
	says 'patched-debug is built, nothing changed'
	printf '# Reason\nCONFIG_ONE_MORE=y\n' >>"$CLONE/qemu/config/debug.config"
	vm test --profile debug --only guest
	grep -q CONFIG_ONE_MORE=y "$image"
	vm build
	! grep -q -e CONFIG_ONE_MORE=y -e CONFIG_KASAN=y "$BUILDS/patched/arch/x86/boot/bzImage" || return 1
}

test_one_command_runs_under_a_profile() {
	everything_but_the_guest <<<'echo 0 >"$RESULTS/status"'
	vm boot --profile debug --long -- true
	ends 0
	grep -q CONFIG_KASAN=y "$BUILDS/patched-debug/arch/x86/boot/bzImage"
	[ ! -e "$BUILDS/patched" ]
	grep -q -e '--memory 4G' "$WORK/vng.arguments"
	grep -q 'PACKET_TRAITS_PROFILE=debug' "$WORK/guest.command"
	grep -q 'export PACKET_TRAITS_LONG=1' "$WORK/guest.command"
	vm boot --profile fast -- true
	ends 64
	says "plain, debug, faults or modules, not 'fast'"
	vm boot --unpatched --profile debug -- true
	ends 64
	says 'the unpatched kernel has no profile'
}

test_a_long_run_says_so_to_the_guest() {
	everything_but_the_guest <<<"$PASSES"
	vm test --only guest
	! grep -q PACKET_TRAITS_LONG "$WORK/guest.command" || return 1
	vm test --only guest --long
	ends 0
	grep -q 'export PACKET_TRAITS_LONG=1' "$WORK/guest.command"
}

test_a_long_run_of_kunit_can_be_repeated() {
	kunit_says '[    0.100000] all is well'
	PACKET_TRAITS_SEED=77 vm test --only kunit --long
	says 'PACKET_TRAITS_SEED=77'
	grep -q -e '--kernel_args skb_test.operations=10000000 --kernel_args skb_test.seed=77' "$WORK/kunit.arguments"
	vm test --only kunit
	! grep -q skb_test "$WORK/kunit.arguments" || return 1
}

test_the_plain_guest_is_told_so() {
	everything_but_the_guest <<<"$PASSES"
	vm test --only guest
	ends 0
	grep -q 'PACKET_TRAITS_PROFILE=plain' "$WORK/guest.command"
	grep -q -e '--memory 2G' "$WORK/vng.arguments"
}

test_faults_run_the_guest_suites_and_the_traffic() {
	everything_but_the_guest <<<"case \$(cat \"\$RESULTS/command\") in
	*guest/traffic*) printf 'passed\ttraffic/stores/x\t\nfailed\ttraffic/left-behind\t3 stores\n' >>\"\$RESULTS/tests.tsv\"; echo 0 >\"\$RESULTS/status\" ;;
	*) $PASSES
		printf 'passed\tguest/allocations-failed\t\nfailed\tguest/left-behind\t1 store\n' >\"\$RESULTS/conditions.tsv\" ;;
	esac"
	vm test --profile faults
	ends 1
	same '3 passed, 2 failed, 0 skipped' "$(tail -n 1 <<<"$OUTPUT")"
	says 'traffic-faults: 1 passed, 1 failed' 'FAILED traffic/left-behind: 3 stores' \
		'guest-faults: 2 passed, 1 failed' 'FAILED guest/1/left-behind: 1 store'
	grep -q CONFIG_FAILSLAB=y "$BUILDS/patched-faults/arch/x86/boot/bzImage"
	grep -q PACKET_TRAITS_PROFILE=faults "$WORK/guest.command"
}

test_guest_suites_that_do_not_tell_whether_allocations_failed() {
	everything_but_the_guest <<<"$PASSES"
	vm test --profile faults --only guest
	ends 1
	says 'FAILED (guest-faults): guest 1 did not come to tell whether allocations failed'
}

test_faults_of_several_guests_are_told_for_each() {
	# Two guests; in the first one no allocation failed, in the second one stores are left
	everything_but_the_guest <<<"
	eval \"set -- \$(tail -n 1 \"\$RESULTS/command\")\"
	test=\$(grep -P -- \"\${4%/\[*}\" \"\$WORK/list\")
	sed \"s|GuestTests.Guest/T/good()|\$test|g\" >\"\$RESULTS/events.json\" <<<'$(bash -c "RESULTS=$WORK; $PASSES"; cat "$WORK/events.json")'
	case \$RESULTS in
	*/1) printf 'failed\tguest/allocations-failed\tnot one allocation failed\npassed\tguest/left-behind\t\n' ;;
	*/2) printf '%s\tguest/allocations-failed\t%s\nfailed\tguest/left-behind\t1 store\n' \$(cat \$WORK/second) ;;
	esac >\"\$RESULTS/conditions.tsv\"
	echo 0 >\"\$RESULTS/status\""
	printf '%s\n' 'GuestTests.Guest/T/good()' 'GuestTests.Guest/U/good()' >"$WORK/list"
	echo 'passed ' >"$WORK/second"
	vm test --profile faults --only guest --guests 2
	same '4 passed, 1 failed, 0 skipped' "$(tail -n 1 <<<"$OUTPUT")"
	says 'FAILED guest/2/left-behind: 1 store'
	says_not 'not one allocation failed'
	grep -q $'^passed\tguest/1/left-behind' "$CLONE/.build-vm/results/guest-faults/tests.tsv"
	echo 'failed none-at-all' >"$WORK/second"
	vm test --profile faults --only guest --guests 2
	same '3 passed, 2 failed, 0 skipped' "$(tail -n 1 <<<"$OUTPUT")"
	says 'FAILED guest/allocations-failed: not one allocation failed'
}

test_traffic_that_stops_half_way_has_failed() {
	everything_but_the_guest <<<'printf "passed\ttraffic/before/x\t\n" >>"$RESULTS/tests.tsv"; echo "traffic/stores/x" >"$RESULTS/step"; echo 0 >"$RESULTS/status"'
	vm test --profile faults --only traffic
	ends 1
	says 'it did not come to its end' "last step 'traffic/stores/x'"
	same '1 passed, 1 failed, 0 skipped' "$(tail -n 1 <<<"$OUTPUT")"
}

test_a_report_during_the_traffic_fails_it() {
	everything_but_the_guest <<<'echo "[    9.000000] BUG: KASAN: slab-use-after-free in x" >&2; printf "passed\ttraffic/left-behind\t\n" >>"$RESULTS/tests.tsv"; echo 0 >"$RESULTS/status"'
	vm test --profile faults --only traffic
	ends 1
	says 'FAILED (traffic-faults): the kernel' 'slab-use-after-free'
}

# kunit_says LOG: kunit.py, all of whose cases pass, with a kernel that logs LOG
kunit_says() {
	kernel_tree "$WORK/linux"
	mkdir -p "$WORK/linux/tools/testing/kunit"
	cat >"$WORK/linux/tools/testing/kunit/kunit.py" <<-'KUNIT'
	#!/bin/bash
	echo "$*" >"$WORK/kunit.arguments"
	while [ $# -gt 0 ]; do
		case $1 in
		--json=*) echo '{"sub_groups": [{"name": "traits", "test_cases": [{"name": "good", "status": "PASS"}]}]}' >"${1#--json=}" ;;
		--build_dir) cp "$WORK/kunit.log" "$2/test.log" ;;
		esac
		shift
	done
	KUNIT
	chmod +x "$WORK/linux/tools/testing/kunit/kunit.py"
	printf '%s\n' "$1" >"$WORK/kunit.log"
	vm fetch --source "$WORK/linux" >/dev/null
	ends 0
	series_of_two >/dev/null
	export WORK
}

test_kunit_under_the_debug_profile() {
	kunit_says '[    0.100000] all is well'
	vm test --profile debug --only kunit
	ends 0
	same '1 passed, 0 failed, 0 skipped' "$(tail -n 1 <<<"$OUTPUT")"
	grep -q -e "--build_dir $BUILDS/kunit-debug " "$WORK/kunit.arguments"
	grep -q -e "--kunitconfig $CLONE/qemu/config/kunit.config --kunitconfig $CLONE/qemu/config/kunit-debug.config" "$WORK/kunit.arguments"
	vm test --only kunit
	ends 0
	grep -q -e "--build_dir $BUILDS/kunit " "$WORK/kunit.arguments"
	! grep -q kunit-debug "$WORK/kunit.arguments" || return 1
}

test_a_report_in_kunits_log_fails_the_debug_profile() {
	kunit_says '[    0.100000] BUG: KASAN: use-after-free in kunit'
	vm test --profile debug --only kunit
	ends 1
	says 'FAILED (kunit-debug): the kernel' 'use-after-free in kunit'
	same '1 passed, 1 failed, 0 skipped' "$(tail -n 1 <<<"$OUTPUT")"
}
