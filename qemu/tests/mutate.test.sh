# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# "mutate": each guard is left out once, and the case that is named must fail.

# a_kernel_with_cases: a series, a list of sites, and a kunit.py for which mutant N ends
# as "$WORK/mutant.N" says, one line for each case, or as all is well
a_kernel_with_cases() {
	kernel_tree "$WORK/linux"
	mkdir -p "$WORK/linux/tools/testing/kunit" "$WORK/linux/net/traits"
	printf 'int store;\n' >"$WORK/linux/net/traits/store.c"
	cat >"$WORK/linux/tools/testing/kunit/kunit.py" <<-'KUNIT'
	#!/bin/bash
	[ "$1" != build ] || cp net/core/dev.c "$WORK/dev.built"
	number=$(sed -nE 's/.*traits_mutant=([0-9]+).*/\1/p' <<<"$*")
	while [ $# -gt 0 ]; do
		case $1 in --json=*) json=${1#--json=} ;; esac
		shift
	done
	[ -n "$number" ] || exit 0
	outcomes=$(cat "$WORK/mutant.$number" 2>/dev/null || printf '%s PASS\n' first second third)
	awk '{ cases = cases (NR > 1 ? ", " : "") "{\"name\": \"" ($2 ? $1 : "") "\", \"status\": \"" ($2 ? $2 : "ERROR") "\"}" }
		END { print "{\"sub_groups\": [{\"name\": \"traits\", \"test_cases\": [" cases "]}]}" }' <<<"$outcomes" >"$json"
	! grep -qv PASS <<<"$outcomes"
	KUNIT
	chmod +x "$WORK/linux/tools/testing/kunit/kunit.py"
	vm fetch --source "$WORK/linux" >/dev/null
	ends 0
	series_of_two >/dev/null
	export WORK
	{
		echo '# name | file | anchor | change | case'
		sed 's/$/ | net\/core\/dev.c | int device_one(void) | return 2; | second/'
	} >"$CLONE/qemu/mutations/kunit.sites"
	# The guest's are another matter, see below
	: >"$CLONE/qemu/mutations/guest.sites"
}

test_every_site_has_to_be_found_by_the_case_that_is_named() {
	a_kernel_with_cases <<<$'one guard\nanother guard'
	printf 'first PASS\nsecond FAIL\nthird PASS\n' >"$WORK/mutant.1"
	# It stopped in the second one
	printf 'first PASS\n-\n-\n' >"$WORK/mutant.2"
	vm mutate
	ends 0
	says '2 of 2 found, 0 not'
	same "$(printf '%s\t%s\tnet/core/dev.c\tsecond\n' failed 'one guard' crashed 'another guard')" \
		"$(cat "$CLONE/.build-vm/results/mutations/table.tsv")"
}

test_a_site_that_no_case_finds_is_told() {
	a_kernel_with_cases <<<'superfluous guard'
	vm mutate
	ends 1
	says 'NOT FOUND superfluous guard (net/core/dev.c): second: passed' '0 of 1 found, 1 not'
}

test_that_another_case_fails_is_not_enough() {
	a_kernel_with_cases <<<$'guard of others\nguard of the first'
	printf 'first PASS\nsecond PASS\nthird FAIL\n' >"$WORK/mutant.1"
	printf -- '-\n-\n-\n' >"$WORK/mutant.2"
	vm mutate
	ends 1
	says 'guard of others (net/core/dev.c): second: passed, third failed' \
		'guard of the first (net/core/dev.c): second: stopped in first' '0 of 2 found, 2 not'
}

test_cases_that_fail_with_nothing_left_out_prove_nothing() {
	a_kernel_with_cases <<<'one guard'
	printf 'first PASS\nsecond FAIL\nthird PASS\n' >"$WORK/mutant.0"
	vm mutate
	ends 1
	says 'the cases fail with nothing left out'
}

test_only_the_sites_that_were_asked_for() {
	a_kernel_with_cases <<<$'one guard\nanother guard'
	printf 'first PASS\nsecond FAIL\nthird PASS\n' >"$WORK/mutant.2"
	vm mutate other
	ends 0
	says '1 of 1 found'
	vm mutate nothing
	ends 1
	says "no site's name contains 'nothing'"
}

test_each_site_is_under_a_switch_of_its_own() {
	a_kernel_with_cases <<<'one guard'
	printf 'another | net/core/dev.c | int device_one(void) | return 2; => return 3; | second\n' >"$CLONE/qemu/mutations/kunit.sites"
	printf 'second FAIL\n' >"$WORK/mutant.1"
	vm mutate
	grep -q 'if (traits_mutant == 1) { return 3; } else { return 2; }' "$WORK/dev.built"
	grep -q 'core_param(traits_mutant' "$TREES/mutated/net/traits/store.c"
	# The series itself stays as it is
	! grep -q traits_mutant "$TREES/patched/net/core/dev.c" || return 1
	printf 'gone | net/core/dev.c | int device_one(void) | return 7; | second\n' >"$CLONE/qemu/mutations/kunit.sites"
	vm mutate
	ends 1
	says "gone: net/core/dev.c has no 'return 7;'" 'do not fit the series'
}

test_switches_are_not_in_the_way_of_another_series() {
	a_kernel_with_cases <<<'one guard'
	printf 'second FAIL\n' >"$WORK/mutant.1"
	vm mutate
	ends 0
	sed -i 's/return 2;/return 2; \/* two *\//' "$WORK/work/net/core/dev.c"
	git -C "$WORK/work" commit -qam 'net: say what two is'
	vm patch export --from "$WORK/work" --base base
	ends 0
	vm mutate
	ends 0
	# In braces: it may be all that stands between an if and its else
	grep -q '{ if (traits_mutant != 1) return 2; } /. two ./' "$WORK/dev.built"
}

# a_guest_with_tests: a guest for whose kernel mutant N ends as "$WORK/mutant.N" says, the
# status of the test, or "dies", or as all is well; and a bundle that the sites' tests are in
a_guest_with_tests() {
	local vng=$CACHE/virtme-ng-1.42/bin/vng
	a_kernel_with_cases <<<'a guard of KUnit'
	sed 's/$/ | net\/core\/dev.c | int device_one(void) | return 2; | Suite\/test : one case/' >"$CLONE/qemu/mutations/guest.sites"
	mkdir -p "$(dirname "$vng")" "$CLONE/.build/debug"
	touch "$CACHE/virtme-ng-1.42.ready" "$CLONE/.build/debug/packet-traitsPackageTests.xctest"
	echo "$(cat /proc/sys/kernel/random/boot_id) fails" >"$CACHE/kvm"
	cat >"$vng" <<-'VNG'
	#!/bin/bash
	while [ $# -gt 0 ]; do [ "$1" != --rwdir ] || results=$2; shift; done
	echo boot >>"$WORK/boots"
	while IFS=$'\t' read -r number test part; do
		echo "$number $test $part" >>"$WORK/runs"
		outcome=$(cat "$WORK/mutant.$number" 2>/dev/null || echo 0)
		[ "$outcome" != dies ] || exit 0
		echo '? Test "a test" started.' >"$results/$number.log"
		echo "$outcome" >"$results/$number.status"
	done <"$results/todo"
	echo 0 >"$results/status"
	VNG
	chmod +x "$vng"
	echo '// swift-tools-version: 6.2' >"$CLONE/Package.swift"
	replace swift <<<'echo "Swift version 6.2"'
	replace clang <<<'while [ $# -gt 0 ]; do [ "$1" != -o ] || touch "$2"; shift; done'
}

test_a_guest_goes_through_its_sites_and_another_one_on_behind_one_that_dies() {
	a_guest_with_tests <<<$'first guard\nsecond guard\nthird guard\nfourth guard'
	# The list of KUnit has number 1
	echo 1 >"$WORK/mutant.2"
	echo dies >"$WORK/mutant.3"
	echo 124 >"$WORK/mutant.4"
	echo 1 >"$WORK/mutant.5"
	vm mutate --only guest
	ends 0
	says '4 of 4 found, 0 not'
	same "$(printf '%s\t%s\tnet/core/dev.c\tSuite/test : one case\n' failed 'first guard' crashed 'second guard' \
		hung 'third guard' failed 'fourth guard')" "$(cat "$CLONE/.build-vm/results/mutations/table.tsv")"
	same "$(printf '%s\n' '0 Suite/test ' '2 Suite/test one case' '3 Suite/test one case' '4 Suite/test one case' \
		'5 Suite/test one case')" "$(cat "$WORK/runs")"
}

test_a_site_that_no_guest_test_finds_is_told() {
	a_guest_with_tests <<<'superfluous guard'
	vm mutate --only guest
	ends 1
	says 'NOT FOUND superfluous guard (net/core/dev.c): Suite/test : one case: passed'
}

test_guest_tests_that_fail_with_nothing_left_out_prove_nothing() {
	a_guest_with_tests <<<'one guard'
	echo 1 >"$WORK/mutant.0"
	vm mutate --only guest
	ends 1
	says 'tests fail with nothing left out'
}

test_there_are_two_lists() {
	a_kernel_with_cases <<<'one guard'
	vm mutate --only other
	ends 64
	says "kunit or guest, not 'other'"
	vm mutate --some
	ends 64
	says "what is '--some'?"
}

# sites LIST: file, the text to leave out, and the test, separated by tabs
sites() {
	awk -F ' [|] ' -v OFS='\t' '!/^#/ && NF { file = $2; text = $4; test = $5
		gsub(/ /, "", file); sub(/ => .*/, "", text); sub(/^ */, "", test); print file, text, test }' \
		"$SOURCE_ROOT/qemu/mutations/$1.sites"
}

test_every_site_of_the_lists_is_in_the_series() {
	local list file text test count=0 missing=0
	# What the series adds to each file: "file: line"
	awk '/^\+\+\+ b\// { file = substr($0, 7) } /^\+[^+]/ { print file ": " substr($0, 2) }' \
		"$SOURCE_ROOT"/kernel-patches/linux-6.12/*.patch >"$WORK/added"
	for list in kunit guest; do
		while IFS=$'\t' read -r file text test; do
			count=$((count + 1))
			grep -F "$file: " "$WORK/added" | grep -F -- "$text" >/dev/null || {
				missing=$((missing + 1))
				echo "$list.sites: the series does not add '$text' to $file"
			}
		done < <(sites $list)
	done
	echo "$count sites"
	[ "$count" -ge 100 ] && [ $missing -eq 0 ]
}

test_every_test_that_the_lists_name_exists() {
	local test missing=0
	while read -r test; do
		grep -qE "^\+static void $test\(struct kunit " "$SOURCE_ROOT"/kernel-patches/linux-6.12/*.patch || {
			missing=$((missing + 1))
			echo "kunit.sites names no case: $test"
		}
	done < <(sites kunit | cut -f 3 | sort -u)
	while IFS=/ read -r suite test; do
		grep -rlE "struct ${suite}[ :{]" "$SOURCE_ROOT/Tests/GuestTests" | xargs -r grep -hoE "func [A-Za-z0-9]+" |
			grep -xF "func $test" >/dev/null || {
			missing=$((missing + 1))
			echo "guest.sites names no test: $suite/$test"
		}
	done < <(sites guest | cut -f 3 | sed 's/ : .*//' | sort -u)
	[ $missing -eq 0 ]
}
