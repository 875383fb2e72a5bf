# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What a run says while it works, and how it ends when it cannot go on.
#
# Everything goes to standard error: standard output belongs to results, and to
# what a command in the guest prints.

RUN_STARTED=${RUN_STARTED:-$SECONDS}

# clock: minutes and seconds since the run began
clock() {
	local seconds=$((SECONDS - RUN_STARTED))
	printf '%2d:%02d' $((seconds / 60)) $((seconds % 60))
}

# step TEXT: a new step begins
step() {
	CURRENT_STEP=$*
	printf '[%s] %s\n' "$(clock)" "$*" >&2
}

# detail TEXT: more about the step that is under way
detail() {
	printf '        %s\n' "$*" >&2
}

# fail TEXT [MORE-LINES...]: end the run. The first line tells what is wrong and
# with which value, the others what would be right.
fail() {
	printf 'qemu/vm: %s\n' "$1" >&2
	shift
	local line
	for line; do
		[ -z "$line" ] || printf '         %s\n' "$line" >&2
	done
	exit 1
}

# usage_error TEXT: the command line is wrong (EX_USAGE)
usage_error() {
	printf 'qemu/vm: %s\n' "$1" >&2
	printf "         'qemu/vm %s--help' tells what can be given.\n" "${2:+$2 }" >&2
	exit 64
}

# quoted: standard input, as somebody else's words. Always succeeds, so that a
# search that found nothing does not end the run before its message.
quoted() {
	tr -d '\r' | sed 's/^/        | /' >&2 || true
}

# explain_full_disk LOG: if LOG shows that the disk is full, say so and end
explain_full_disk() {
	local log=$1 place
	grep -qsiE 'No space left on device|ENOSPC' "$log" || return 0
	place=$(df -hP "$CACHE" | awk 'NR == 2 { print $6 ": " $4 " left" }')
	fail "the disk is full: $CURRENT_STEP stopped with 'No space left on device' ($place)" \
		"Free some space and run the same command again: it goes on where it stopped." \
		"PACKET_TRAITS_CACHE=DIR puts the cache on another disk. Log: $log"
}

# logged LOG COMMAND...: run a step's command with its output in LOG; when it
# fails, show the end of LOG
logged() {
	local log=$1 status=0
	shift
	"$@" >"$log" 2>&1 </dev/null || status=$?
	[ "$status" -eq 0 ] && return 0
	explain_full_disk "$log"
	tail -n 20 "$log" | quoted
	fail "$CURRENT_STEP: '$(basename "$1")' ended with status $status" "Log: $log"
}

# need_space DIRECTORY MEGABYTES PURPOSE: refuse to begin what cannot be ended
need_space() {
	local free
	free=$(df -kP "$1" | awk 'NR == 2 { print int($4 / 1024) }')
	[ "$free" -ge "$2" ] ||
		fail "not enough room in $1: $3 needs $2 MB, $free MB are free" \
			"Free some space, or put the cache on another disk with PACKET_TRAITS_CACHE=DIR."
}

# end_group LEADER: a process group, politely first
end_group() {
	kill -TERM -- "-$1" 2>/dev/null || return 0
	sleep 1
	kill -KILL -- "-$1" 2>/dev/null || true
}

# await_group: waits for what was begun last in the background, a process group of its own, and
# returns its status. If the run ends meanwhile, the group is ended as well.
await_group() {
	local status=0
	CHILD_GROUP=$!
	wait "$CHILD_GROUP" || status=$?
	CHILD_GROUP=
	return $status
}

# end_children: everything that runs in the background. The subshells among it end their own.
end_children() {
	[ ${#CHILDREN[@]} -eq 0 ] || kill -TERM "${CHILDREN[@]}" 2>/dev/null || true
	[ -z "$CHILD_GROUP" ] || end_group "$CHILD_GROUP"
	[ ${#CHILDREN[@]} -eq 0 ] || wait "${CHILDREN[@]}" 2>/dev/null || true
}
