# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The suite of the profile modules.

# suite_modules: its lines of tests.tsv are written in the guest
suite_modules() {
	local name=modules$SUFFIX directory=$RESULTS/modules$SUFFIX status=0
	step "$name: the demo and each module of the $FLAVOUR kernel (log: $directory/output.log)"
	boot_guest "$directory" "$GUEST_LIMIT" qemu/guest/modules "$directory" >/dev/null || status=$?
	end_of_guest "$name" $status
	# The last check
	[ $status -ne 0 ] || grep -q 'modules/traits-symbols' "$directory/tests.tsv" || status=1
	[ $status -eq 0 ] || [ "$(count failed "$directory/tests.tsv")" -gt 0 ] ||
		fail_suite "$name" "it did not come to its end: status $status, last step '$(cat "$directory/step" 2>/dev/null)' ($directory/output.log)"
}
