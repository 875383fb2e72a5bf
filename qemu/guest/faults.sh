# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced inside the guest: allocations that fail, by the kernel's fault injection.
# Nothing is printed for each failure: its trace would be taken for a report.

# shellcheck source=guest/outcome.sh
source "$(dirname "${BASH_SOURCE[0]}")/outcome.sh"

FAULTS=/sys/kernel/debug
SLAB=/sys/kernel/slab
SLAB_PAUSE=0.1

# The caches that stores outside of the headroom come from
STORE_CACHES=(skbuff_ext_cache skbuff_traits_cache)

# As many failures as are allowed, so that they can be counted
FAULT_SUPPLY=1000000000

faults_available() {
	local directory
	mountpoint -q $FAULTS || mount -t debugfs debugfs $FAULTS
	for directory in $FAULTS/failslab $FAULTS/fail_page_alloc; do
		[ -d "$directory" ] || {
			echo "$directory is missing: this kernel has no fault injection" >&2
			return 1
		}
	done
	for directory in "${STORE_CACHES[@]/#/$SLAB/}"; do
		[ -e "$directory/failslab" ] || {
			echo "$directory/failslab is missing: this kernel has no such cache, or it is merged" >&2
			return 1
		}
	done
}

# set_fault KIND PERCENT: of the allocations that KIND was told to look at
set_fault() {
	echo 0 >"$FAULTS/$1/verbose"
	echo $FAULT_SUPPLY >"$FAULTS/$1/times"
	echo "$2" >"$FAULTS/$1/probability"
}

no_faults() {
	echo 0 >$FAULTS/failslab/probability
	echo 0 >$FAULTS/fail_page_alloc/probability
}

# fail_stores PERCENT: so many of the allocations for stores, and no others. Those of
# sendmsg(), which may sleep, are among them.
fail_stores() {
	local cache
	no_faults
	echo $FAULT_SUPPLY >$FAULTS/fail_page_alloc/times
	for cache in "${STORE_CACHES[@]}"; do
		echo 1 >$SLAB/"$cache"/failslab
	done
	echo Y >$FAULTS/failslab/cache-filter
	echo N >$FAULTS/failslab/ignore-gfp-wait
	set_fault failslab "$1"
}

# fail_atomic PERCENT: so many of all allocations, slab objects and pages, that must not
# wait; programs and file systems seldom make one, packets do
fail_atomic() {
	local kind
	no_faults
	echo N >$FAULTS/failslab/cache-filter
	echo 0 >$FAULTS/fail_page_alloc/min-order
	for kind in failslab fail_page_alloc; do
		echo Y >$FAULTS/$kind/ignore-gfp-wait
		set_fault $kind "$1"
	done
}

# faults_injected: how many allocations failed since that was last asked for
faults_injected() {
	local kind left sum=0
	for kind in failslab fail_page_alloc; do
		read -r left <$FAULTS/$kind/times
		# Without limit, 1 at first: it was not told to fail yet
		[ "$left" -le 1 ] || sum=$((sum + FAULT_SUPPLY - left))
	done
	echo $sum
}

# stores_left [WANTED]: the objects that are allocated of each of these caches. What is
# freed with a delay is waited for, until there are as many as WANTED.
stores_left() {
	local cache objects now
	for _ in $(seq 50); do
		now=
		for cache in "${STORE_CACHES[@]}"; do
			echo 1 >"$SLAB/$cache/shrink"
			read -r objects _ <"$SLAB/$cache/objects"
			now+="${now:+, }$cache $objects"
		done
		[ "$now" != "${1-$now}" ] || break
		sleep "$SLAB_PAUSE"
	done
	echo "$now"
}

# judge_left NAME BEFORE: no store may be left behind, whatever failed
judge_left() {
	local left
	left=$(stores_left "$2")
	[ "$left" = "$2" ] || left="allocated although no packet is under way: $left; before: $2"
	outcome "$1" "${left#"$2"}"
}

# judge_injected NAME: where nothing failed nothing was tested
judge_injected() {
	local injected
	injected=$(faults_injected)
	if [ "$injected" -gt 0 ]; then
		outcome "$1" ''
	else
		outcome "$1" 'not one allocation failed'
	fi
}
