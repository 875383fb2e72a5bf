# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# guest/faults.sh, with a tree of files for the kernel's.

# a_kernel_with_faults: both kinds of failures, no store allocated
a_kernel_with_faults() {
	local kind cache file
	source "$CLONE/qemu/guest/faults.sh"
	FAULTS=$WORK/debug
	SLAB=$WORK/slab
	SLAB_PAUSE=0
	replace mountpoint <<<'exit 0'
	for kind in failslab fail_page_alloc; do
		mkdir -p "$FAULTS/$kind"
		for file in verbose probability cache-filter ignore-gfp-wait min-order; do
			echo untouched >"$FAULTS/$kind/$file"
		done
		echo 1 >"$FAULTS/$kind/times"
	done
	for cache in skbuff_ext_cache skbuff_traits_cache; do
		mkdir -p "$SLAB/$cache"
		echo 0 >"$SLAB/$cache/failslab"
		echo '0 N0=0' >"$SLAB/$cache/objects"
	done
}

test_only_stores_fail_if_only_they_shall() {
	a_kernel_with_faults
	faults_available
	fail_stores 50
	same '50 Y 1 1 0' "$(cat "$FAULTS/failslab/"{probability,cache-filter} "$SLAB"/*/failslab "$FAULTS/fail_page_alloc/probability" | paste -sd ' ')"
	# A trace for each failure would be taken for a report
	same 0 "$(cat "$FAULTS/failslab/verbose")"
	fail_atomic 5
	same '5 N Y 5 Y 0' "$(cat "$FAULTS/failslab/"{probability,cache-filter,ignore-gfp-wait} "$FAULTS/fail_page_alloc/"{probability,ignore-gfp-wait,min-order} | paste -sd ' ')"
	no_faults
	same '0 0' "$(cat "$FAULTS"/*/probability | paste -sd ' ')"
}

test_a_kernel_that_cannot_fail_is_told() {
	a_kernel_with_faults
	rm "$SLAB/skbuff_traits_cache/failslab"
	OUTPUT=$(faults_available 2>&1) && return 1
	says 'skbuff_traits_cache/failslab is missing'
}

test_a_run_in_which_nothing_failed_tested_nothing() {
	a_kernel_with_faults
	fail_stores 50
	same "$(printf 'failed\tguest/x\tnot one allocation failed')" "$(judge_injected guest/x)"
	echo $((FAULT_SUPPLY - 3)) >"$FAULTS/failslab/times"
	same 3 "$(faults_injected)"
	same "$(printf 'passed\tguest/x\t')" "$(judge_injected guest/x)"
}

test_a_store_that_is_left_behind_is_told() {
	local before
	a_kernel_with_faults
	before=$(stores_left)
	same "$(printf 'passed\tguest/x\t')" "$(judge_left guest/x "$before")"
	echo '7 N0=7' >"$SLAB/skbuff_traits_cache/objects"
	same "$(printf 'failed\tguest/x\tallocated although no packet is under way: skbuff_ext_cache 0, skbuff_traits_cache 7; before: skbuff_ext_cache 0, skbuff_traits_cache 0')" \
		"$(judge_left guest/x "$before")"
}

test_what_is_freed_late_is_not_left_behind() {
	local before
	a_kernel_with_faults
	before=$(stores_left)
	echo '7 N0=7' >"$SLAB/skbuff_traits_cache/objects"
	# While it waits
	replace sleep <<<"echo '0 N0=0' >'$SLAB/skbuff_traits_cache/objects'"
	same "$(printf 'passed\tguest/x\t')" "$(judge_left guest/x "$before")"
}
