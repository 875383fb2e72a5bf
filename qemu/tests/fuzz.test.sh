# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# "fuzz": how long, with which seed, on which kernel; what comes of the calls, and the lines
# that they reach.

# What the guest leaves after two rounds
ROUNDS='printf "seed 7\nsendmsg 0 30\nsendmsg EPERM 10\nrecvmsg 0 5\nseed 8\n" >"$RESULTS/rounds.log"
printf "recvmsg\t0\t5\nsendmsg\t0\t30\nsendmsg\tEINVAL\t2\nsendmsg\tEPERM\t8\n" >"$RESULTS/calls.tsv"'

test_seed_minutes_and_profile_are_read() {
	vm fuzz --seed lucky
	ends 64
	says '--seed needs a number' "not 'lucky'"
	vm fuzz --seed=
	ends 64
	vm fuzz --minutes 0
	ends 64
	says '--minutes needs a number' "not '0'"
	vm fuzz --profile faults
	ends 64
	says 'plain, debug or coverage' "not 'faults'"
}

test_calls_are_made_for_that_long_from_that_seed_on() {
	everything_but_the_guest <<<"$ROUNDS; echo 0 >\"\$RESULTS/status\""
	vm fuzz --minutes 2 --seed 7
	ends 0
	grep -q "qemu/guest/fuzz .build/debug/traits-fuzz 120 7 $CLONE/.build-vm/results/fuzz " "$WORK/guest.command"
	grep -q 'PACKET_TRAITS_PROFILE=plain' "$WORK/guest.command"
	# What did what was asked of all, and the errors of the others
	says 'PACKET_TRAITS_SEED=7' '2 rounds, 45 calls'
	grep -qE '^sendmsg +40 calls, +30 succeeded, +75 %; failed: EINVAL 2 EPERM 8$' <<<"$OUTPUT"
	grep -qE '^recvmsg +5 calls, +5 succeeded, 100 %; failed: none$' <<<"$OUTPUT"
	PACKET_TRAITS_SEED=9 vm fuzz --profile debug
	ends 0
	grep -q "traits-fuzz 3600 9 $CLONE/.build-vm/results/fuzz-debug " "$WORK/guest.command"
	grep -q CONFIG_KASAN=y "$BUILDS/patched-debug/arch/x86/boot/bzImage"
}

test_a_call_that_did_something_else_fails_with_its_seed() {
	everything_but_the_guest <<<"$ROUNDS; echo 'wrong: seed 8, call 3: x' >>\"\$RESULTS/output.log\"; echo 1 >\"\$RESULTS/status\""
	vm fuzz --minutes 1
	ends 1
	says 'wrong: seed 8, call 3: x' "The last round's seed: 8"
}

test_a_report_during_the_calls_fails_them() {
	everything_but_the_guest <<<"$ROUNDS; echo '[    9.000000] BUG: KASAN: slab-use-after-free in x' >&2; echo 0 >\"\$RESULTS/status\""
	vm fuzz --minutes 1 --profile debug
	ends 1
	says 'slab-use-after-free' 'the kernel reported something'
}

test_a_guest_without_a_call_has_tested_nothing() {
	everything_but_the_guest <<<'echo 0 >"$RESULTS/status"'
	vm fuzz --minutes 1
	ends 1
	says 'without having called anything'
}

test_rounds_follow_each_other_with_the_next_seed_and_are_added_up() {
	cd "$CLONE" || return 1
	replace rounds <<-'PROGRAM'
	sleep 1
	echo "$*" >>"$WORK/arguments"
	printf 'seed %s\nsendmsg 0 30\nsendmsg EPERM 1\ncompared traits 9\n' "${!#}"
	PROGRAM
	export WORK
	mkdir "$WORK/results"
	# Longer than two rounds take on a busy machine
	qemu/guest/fuzz "$COMMANDS/rounds" 4 41 "$WORK/results"
	[ "$(wc -l <"$WORK/arguments")" -ge 2 ]
	grep -qE -e '--seconds [1-4] --seed 41$' "$WORK/arguments"
	grep -qe '--seed 42$' "$WORK/arguments"
	same "sendmsg 0 $((30 * $(wc -l <"$WORK/arguments")))" "$(grep -P '^sendmsg\t0\t' "$WORK/results/calls.tsv" | tr '\t' ' ')"
	! grep -q compared "$WORK/results/calls.tsv" || return 1
	[ ! -e "$WORK/results/counts" ]
	# The first that goes wrong is the last
	replace rounds <<<'echo "wrong: seed 5, call 1: y"; exit 1'
	! qemu/guest/fuzz "$COMMANDS/rounds" 60 5 "$WORK/results" >"$WORK/output" || return 1
	grep -q 'wrong: seed 5' "$WORK/output"
}

test_counted_lines_are_taken_out_of_the_guest() {
	cd "$CLONE" || return 1
	source qemu/guest/coverage.sh
	replace mountpoint <<<'exit 0'
	GCOV=$WORK/gcov
	! begin_counts >"$WORK/output" 2>&1 || return 1
	grep -q 'does not count lines' "$WORK/output"
	mkdir -p "$GCOV/build/net/traits"
	echo 1 >"$GCOV/reset"
	echo counts >"$GCOV/build/net/traits/sock.gcda"
	ln -s /nowhere "$GCOV/build/net/traits/sock.gcno"
	begin_counts
	same 0 "$(cat "$GCOV/reset")"
	take_counts "$WORK/taken"
	same counts "$(cat "$WORK/taken/build/net/traits/sock.gcda")"
	same 1 "$(find "$WORK/taken" -type f -o -type l | wc -l)"
}

# a_kernel_that_counts: a series whose option code is of twelve lines, and a guest in which
# some of them are run: those for the numbers in CALLS
a_kernel_that_counts() {
	mkdir -p "$WORK/linux/net/traits" "$WORK/linux/include/net"
	cat >"$WORK/linux/include/net/traits.h" <<-'H'
	/* Somebody else's */
	static inline int packet_helper(int name)
	{
		return name + 1;
	}

	static inline int reqsk_helper(int name)
	{
		if (name > 5)
			return packet_helper(name);
		return 0;
	}
	H
	cat >"$WORK/linux/net/traits/sock.c" <<-'C'
	#include "../../include/net/traits.h"

	int written(int name);
	int option(int name)
	{
		if (name == 1)
			return written(name);
		return reqsk_helper(name);
	}

	int never(int name);
	int never(int name)
	{
		return name;
	}
	C
	printf 'int written(int name);\nint written(int name)\n{\n\treturn name;\n}\n' >"$WORK/linux/net/traits/stream.c"
	everything_but_the_guest <<-GUEST
	objects=$BUILDS/patched-coverage/net/traits
	mkdir -p "\$objects"
	gcc -O0 --coverage -c -o "\$objects/sock.o" "$TREES/patched/net/traits/sock.c"
	gcc -O0 --coverage -c -o "\$objects/stream.o" "$TREES/patched/net/traits/stream.c"
	printf 'int option(int);int main(){int n[]={$CALLS};for(int i=0;i<sizeof n/sizeof*n;i++)option(n[i]);}' >"$WORK/main.c"
	gcc --coverage -o "$WORK/calls" "\$objects"/{sock,stream}.o "$WORK/main.c"
	"$WORK/calls"
	mkdir -p "\$RESULTS/counts\$objects"
	mv "\$objects"/*.gcda "\$RESULTS/counts\$objects/"
	$ROUNDS
	echo 0 >"\$RESULTS/status"
	GUEST
}

test_lines_that_were_run_are_told_per_function() {
	CALLS='1,2,7'
	a_kernel_that_counts
	sed -i 's/^COVERAGE_GOAL=.*/COVERAGE_GOAL=75/' "$CLONE/qemu/steps/fuzz.sh"
	vm fuzz --profile coverage --minutes 1
	ends 0
	grep -qE '^  option +4 of +4 +100 %$' <<<"$OUTPUT"
	grep -qE '^  never +0 of +2 +0 % +not 12 14$' <<<"$OUTPUT"
	grep -qE '^net/traits/sock.c +4 of +6 +66 %$' <<<"$OUTPUT"
	grep -qE '^net/traits/stream.c +2 of +2 +100 %$' <<<"$OUTPUT"
	# Of the header only what sockets and requests call
	grep -qE '^include/net/traits.h +4 of +4 +100 %$' <<<"$OUTPUT"
	says_not packet_helper
	grep -qE '^option and message code +10 of +12 +83 %$' <<<"$OUTPUT"
	grep -qP '^net/traits/sock.c\tnever\t0\t2$' "$CLONE/.build-vm/results/fuzz-coverage/functions.tsv"
	grep -q CONFIG_GCOV_KERNEL=y "$BUILDS/patched-coverage/arch/x86/boot/bzImage"
	grep -q PACKET_TRAITS_PROFILE=coverage "$WORK/guest.command"
}

test_fewer_lines_than_the_goal_are_a_failure() {
	CALLS='1'
	a_kernel_that_counts
	vm fuzz --profile coverage --minutes 1
	ends 1
	says 'fewer than 85 % of the lines were run'
	grep -qE '^  reqsk_helper +0 of +4 +0 % +not 7 9 10 11$' <<<"$OUTPUT"
}

test_a_kernel_that_counted_nothing_has_failed() {
	everything_but_the_guest <<<"$ROUNDS; echo 0 >\"\$RESULTS/status\""
	vm fuzz --profile coverage --minutes 1
	ends 1
	says 'the kernel counted no lines'
}

test_make_is_told_what_to_count_for_that_profile_alone() {
	everything_but_the_guest <<<"$ROUNDS; echo 0 >\"\$RESULTS/status\""
	replace make <<-'MAKE'
	[[ " $* " != *' bzImage '* ]] || echo "$*" >>"$WORK/make.arguments"
	exec /usr/bin/make "$@"
	MAKE
	vm fuzz --profile debug --minutes 1
	! grep -q GCOV_PROFILE "$WORK/make.arguments" || return 1
	vm fuzz --profile coverage --minutes 1
	grep -q 'GCOV_PROFILE_sock.o=y GCOV_PROFILE_udp.o=y' "$WORK/make.arguments"
	grep -q ' GCOV_PROFILE_tcp_input.o=y' "$WORK/make.arguments"
}
