# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The cache: everything that takes long to make and can be made again. It lies
# outside the clone, so that several clones, and a clone that is thrown away,
# share one kernel tree.
#
#   linux.git        the pristine sources that were imported, the applied series
#   source           the tag of the source in use
#   6.12.N/          what was made of one version:
#     source         the tag that was imported last
#     tree/FLAVOUR   a worktree of linux.git (patched, unpatched, check)
#     build/FLAVOUR  its objects (also: TREE-PROFILE, the same tree with the fragment
#                    PROFILE; kunit, kunit-debug)
#     log            output of the steps
#   download, apt    what is being fetched, and apt's private state
#   virtme-ng-*      the private Python environment
#   log              output of the steps that all versions share
#   lock             held while a run changes any of these

CACHE=${PACKET_TRAITS_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/packet-traits}
# Absolute: it is printed, and worktrees and make's O= are told by full path
case $CACHE in
/*) ;;
*) CACHE=$PWD/$CACHE ;;
esac

# need_writable NAME ADVICE PATHS...: all of them that are there can be written to.
# Else the run would end somewhere in the middle, with some other program's words.
need_writable() {
	local name=$1 advice=$2 path
	shift 2
	for path; do
		[ ! -e "$path" ] || [ -w "$path" ] ||
			fail "$name cannot be written to by $(id -un): $path belongs to $(stat -c '%U (%A)' "$path"), or is on a read-only file system" \
				"$advice"
	done
}

# open_cache: the cache is there; so is the directory for results, unless the command
# leaves none
open_cache() {
	local reason
	reason=$(mkdir -p "$CACHE"/{download,log} 2>&1) ||
		fail "cannot make the cache $CACHE: $(head -n 1 <<<"${reason#mkdir: }")" "PACKET_TRAITS_CACHE=DIR puts it elsewhere."
	CACHE=$(cd "$CACHE" && pwd -P)
	need_writable "the cache $CACHE" "PACKET_TRAITS_CACHE=DIR puts it elsewhere. After a run as root the cache is root's." \
		"$CACHE" "$CACHE"/{download,log,lock,lock.holder,linux.git,source} "$CACHE"/"$KERNEL_VERSION.$KERNEL_PATCHLEVEL".*{,/tree,/build,/log}
	case ${SUBCOMMAND:-} in
	fetch | patch | build) ;;
	*) open_results ;;
	esac
}

# open_results: RESULTS is there, and what is built can be put into the clone
open_results() {
	local reason advice="Results are kept in its .build-vm, and what is built in its .build. After a run as root these are root's."
	reason=$(mkdir -p "$RESULTS" 2>&1) ||
		fail "the clone $ROOT cannot be written to by $(id -un): $(head -n 1 <<<"${reason#mkdir: }")" "$advice"
	need_writable "the clone $ROOT" "$advice" "$ROOT" "$ROOT"/.build{,-vm} "$ROOT"/.build-vm/{bpf,guest} "$RESULTS" "$RESULTS"/*
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
