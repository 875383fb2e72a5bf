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
#   *.lock, *.holder see below

CACHE=${PACKET_TRAITS_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/packet-traits}
# Absolute: it is printed, and worktrees and make's O= are told by full path
case $CACHE in
/*) ;;
*) CACHE=$PWD/$CACHE ;;
esac

# Output of what is built in the clone
CLONE_LOGS=$ROOT/.build-vm/log

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
	reason=$(mkdir -p "$RESULTS" "$CLONE_LOGS" 2>&1) ||
		fail "the clone $ROOT cannot be written to by $(id -un): $(head -n 1 <<<"${reason#mkdir: }")" "$advice"
	need_writable "the clone $ROOT" "$advice" "$ROOT" "$ROOT"/.build{,-vm} "$ROOT"/.build-vm/{bpf,guest,log,lock,boot.lock} "$RESULTS" "$RESULTS"/*
}

# Locks. A run takes a shared lock on what it reads and an exclusive lock on what it changes:
#
#   lock                        linux.git, downloads, apt, virtme-ng: alone, while they change
#   VERSION/tree/FLAVOUR.lock   shared while it is built from, alone while it is switched
#   VERSION/build/FLAVOUR.lock  shared while image and headers are used, alone while it is built
#   .build-vm/*.lock            of the clone: results and what Swift builds, alone
#
# While a run holds "lock" it waits for no other one, so no two runs wait for each other. A
# compiler inherits the descriptors on purpose: after a killed run nobody may build into a
# directory that an orphaned make still writes to. A guest does not inherit them.

# Descriptors by file
declare -A LOCKS=()

# living_holders LOCK: the lines of other runs that go on
living_holders() {
	local line
	while IFS= read -r line; do
		[[ $line =~ ^process\ ([0-9]+), ]] || continue
		[ "${BASH_REMATCH[1]}" = $$ ] || [ ! -e "/proc/${BASH_REMATCH[1]}" ] || echo "$line"
	done < <(cat "$1.holder" 2>/dev/null)
}

# holder LOCK: prints the runs that hold it, for messages
holder() {
	local living
	living=$(living_holders "$1" | paste -sd ';')
	if [ -n "$living" ]; then
		echo "$living"
	else
		echo "$(tail -n 1 "$1.holder" 2>/dev/null || echo unknown); it has ended, but something that it started runs on"
	fi
}

# locked_name LOCK: what it is the lock of
locked_name() {
	local name=${1%.lock}
	echo "${name%/lock}"
}

# try_lock -s|-x LOCK [SECONDS]: shared or exclusive. Drops the lock that this run held on the file, even if the call
# fails.
try_lock() {
	local mode=$1 file=$2 fd=${LOCKS[$2]:-} status
	if [ -z "$fd" ]; then
		exec {fd}>>"$file"
		LOCKS[$file]=$fd
	fi
	flock "$mode" -w "${3:-0}" "$fd" || {
		status=$?
		[ $status -ne 1 ] || return 1
		fail "cannot lock $file: flock ended with status $status" \
			"Does that file system have locks? PACKET_TRAITS_CACHE=DIR puts the cache elsewhere."
	}
	{
		[ "$mode" = -x ] || living_holders "$file"
		echo "process $$, 'qemu/vm $SUBCOMMAND', begun $(date '+%F %T')"
	} >"$file.holder.$$"
	mv "$file.holder.$$" "$file.holder"
}

# wait_lock -s|-x LOCK
wait_lock() {
	! try_lock "$1" "$2" || return 0
	detail "waiting for $(locked_name "$2"), in use by another run: $(holder "$2")"
	# By turns: a signal is heard in between
	until try_lock "$1" "$2" 2; do
		:
	done
}

# lock_shared LOCK: waits while another run changes what it is the lock of
lock_shared() {
	wait_lock -s "$1"
}

# lock_exclusive LOCK: the same, exclusively. Ends the run if others use it, which may take
# hours. Check again what the lock protects: another run may have changed it.
lock_exclusive() {
	while :; do
		wait_lock -s "$1"
		! try_lock -x "$1" 3 || return 0
		# Another run may have begun to change it
		try_lock -s "$1" || continue
		fail "$(locked_name "$1") is in use by another run: $(holder "$1")" \
			"Wait for it to end, or give this run a cache of its own: PACKET_TRAITS_CACHE=DIR qemu/vm ..."
	done
}

# unlock LOCK
unlock() {
	local fd=${LOCKS[$1]}
	exec {fd}>&-
	unset "LOCKS[$1]"
}

# with_cache_lock COMMAND...: runs COMMAND with the exclusive lock on what all versions share
with_cache_lock() {
	if has_cache_lock; then
		"$@"
		return
	fi
	wait_lock -x "$CACHE/lock"
	"$@"
	unlock "$CACHE/lock"
}

has_cache_lock() {
	[ -n "${LOCKS[$CACHE/lock]:-}" ]
}

# lock_clone [NAME]: the clone's results NAME, and without NAME also what is built into the
# clone, belong to this run alone
lock_clone() {
	local file=$ROOT/.build-vm/${1:+$1.}lock
	try_lock -x "$file" ||
		fail "the clone $ROOT is in use by another run: $(holder "$file")" \
			"Wait for it to end, or use another clone. Clones share the cache."
}

# without_locks COMMAND...: becomes COMMAND, which does not inherit them. In a subshell.
without_locks() {
	local fd
	for fd in "${LOCKS[@]}"; do
		exec {fd}>&-
	done
	exec "$@"
}
