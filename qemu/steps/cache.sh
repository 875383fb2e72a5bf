# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The cache: everything that takes long to make and can be made again. It lies
# outside the clone, so that several clones, and a clone that is thrown away,
# share one kernel tree.
#
#   linux.git        the pristine sources that were imported, the applied series
#   tree/FLAVOUR     a worktree of it (patched, unpatched, check)
#   build/FLAVOUR    its objects (also: TREE-PROFILE, the same tree with the fragment
#                    PROFILE; kunit, kunit-debug)
#   download, apt    what was fetched, and apt's private state
#   virtme-ng-*      the private Python environment
#   log              output of the steps
#   lock             held while a run changes any of these

CACHE=${PACKET_TRAITS_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/packet-traits}

open_cache() {
	mkdir -p "$CACHE"/{tree,build,download,log} ||
		fail "cannot make the cache $CACHE" "PACKET_TRAITS_CACHE=DIR puts it elsewhere."
	# Absolute: worktrees and make's O= are told by full path
	CACHE=$(cd "$CACHE" && pwd -P)
}

# lock_cache: keep other runs out until this one, and every compiler that it
# started, has ended. The descriptor is inherited on purpose: after a killed run
# nobody may build into a directory that an orphaned make still writes to.
lock_cache() {
	[ -z "${CACHE_LOCKED:-}" ] || return 0
	exec 9>>"$CACHE/lock"
	if ! flock -n 9; then
		fail "the cache $CACHE is in use by another run: $(tail -n 1 "$CACHE/lock.holder" 2>/dev/null || echo unknown)" \
			"Wait for it to end, or give this run a cache of its own: PACKET_TRAITS_CACHE=DIR qemu/vm ..."
	fi
	CACHE_LOCKED=1
	echo "process $$, 'qemu/vm $SUBCOMMAND', begun $(date '+%F %T')" >"$CACHE/lock.holder"
}
