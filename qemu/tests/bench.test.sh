# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Benchmarks: their arithmetic, and the order of the boots.

test_what_and_how_often_are_checked() {
	vm bench
	ends 64
	says "store, unused, merge or stream, not ''"
	vm bench everything
	ends 64
	says "'everything'"
	vm bench unused --boots 5
	ends 64
	says 'at least 6' "not '5'"
	vm bench unused --boots many
	ends 64
	vm bench store --boots 9
	ends 64
	says "what is '--boots'"
	vm bench merge --boots 9
	ends 64
	says "what is '--boots'"
	vm bench stream --boots 9
	ends 64
	says "what is '--boots'"
}

# turns_tsv SCENARIO VARIANT EACH INSTRUCTIONS...: a turn for each of them
turns_tsv() {
	local turn=0 scenario=$1 variant=$2 each=$3
	shift 3
	while [ $# -gt 0 ]; do
		turn=$((turn + 1))
		printf '%d\t%s\t%s\t40\t%s\t%s\n' $turn "$scenario" "$variant" "$1" "$each"
		shift
	done
}

test_variants_are_set_against_the_first_of_their_turn() {
	# The second costs 10 more each time, however much the first cost; one turn was disturbed
	{
		turns_tsv small without 0.00 1000 1001 1002 1003 1004 5000 1006 1007 1008
		turns_tsv small one 1.00 1010 1011 1012 1013 9000 1015 1016 1017 1018
		turns_tsv bulk without 0.00 200 200 200 200 200 200 200 200 200
		turns_tsv bulk one 1.00 190 191 192 193 194 195 196 197 198
	} >"$WORK/turns.tsv"
	same 'scenario    traits     instructions  difference                95 %             traits a read
small       without          1004.0                                             0.00
small       one              1015.0       +10.0      +10.0 .. +10.0   +1.00 %   1.00
bulk        without           200.0                                             0.00
bulk        one               194.0        -6.0        -9.0 .. -3.0   -3.00 %   1.00' \
		"$(awk -v each='traits a read' -f "$CLONE/qemu/bench/median.awk" -f "$CLONE/qemu/bench/turns.awk" "$WORK/turns.tsv")"
}

# boots_tsv UNPATCHED... -- PATCHED...: one scenario
boots_tsv() {
	local boot=0 kernel=unpatched
	printf 'boot\tkernel\tscenario\tpackets\tinstructions\tmean\n'
	while [ $# -gt 0 ]; do
		if [ "$1" = -- ]; then
			boot=0
			kernel=patched
		else
			boot=$((boot + 1))
			printf '%d\t%s\tudp\t100\t%s\t0\n' $boot $kernel "$1"
		fi
		shift
	done
}

# interval: unused.tsv of boots_tsv's output
interval() {
	awk -v tsv="$WORK/unused.tsv" -f "$CLONE/qemu/bench/median.awk" -f "$CLONE/qemu/bench/interval.awk" >"$WORK/table"
	tail -n 1 "$WORK/unused.tsv"
}

test_medians_and_their_intervals() {
	# 9: all but the lowest and the highest; 6: all
	same "$(printf 'udp\t5.00\t2.00\t8.00\t15.00\t12.00\t18.00\t10.00\t10.00\t10.00')" \
		"$(boots_tsv 9 1 8 2 7 3 6 4 5 -- 19 11 18 12 17 13 16 14 15 | interval)"
	same "$(printf 'udp\t3.50\t1.00\t6.00\t10.00\t10.00\t10.00\t6.50\t4.00\t9.00')" \
		"$(boots_tsv 1 2 3 4 5 6 -- 10 10 10 10 10 10 | interval)"
	grep -q 'at most 9.0 instructions a packet' "$WORK/table"
	# 12: two at each end
	boots_tsv 1 2 3 4 5 6 7 8 9 10 11 12 -- 1 2 3 4 5 6 7 8 9 10 11 12 | interval
	same '3.00 10.00' "$(awk -F '\t' 'NR == 2 { print $3, $4 }' "$WORK/unused.tsv")"
}

test_the_cost_of_calling_is_taken_off_the_stores_figures() {
	local layout
	printf 'nothing\t4\t16\t0\ntraits\t4\t16\t88\n' >"$WORK/memory.tsv"
	for layout in 'nothing 160' 'traits 480'; do
		printf 'part: 1\ndesc: Trigger: Client Request: %s 4 16 get\n\nevents: Ir\nsummary: %s\n' \
			"${layout% *}" "${layout#* }" >"$WORK/callgrind.out.${#layout}"
	done
	same "$(printf 'traits\t4\t16\tget\t20.0\t88')" \
		"$(awk -f "$CLONE/qemu/bench/store/report.awk" "$WORK/memory.tsv" "$WORK"/callgrind.out.* | tail -n +2)"
}

test_instructions_of_functions_are_counted_without_alignment() {
	printf '%s\n' \
		'ffffffff81000000 <skb_push.constprop.0>:' \
		$'ffffffff81000000:\tmov    %rdi,%rax' \
		$'ffffffff81000003:\tnopl   0x0(%rax,%rax,1)' \
		$'ffffffff81000008:\tret' \
		$'ffffffff81000009:\tnopl   0x0(%rax)' \
		$'ffffffff81000010:\tint3' \
		'' \
		'ffffffff81000020 <skb_push.cold>:' \
		$'ffffffff81000020:\tud2' >"$WORK/disassembly"
	same "$(printf 'skb_push\t3\t1')" "$(awk -f "$CLONE/qemu/bench/functions.awk" "$WORK/disassembly")"
}

test_the_same_code_elsewhere_is_the_same() {
	printf '%s\n' '# pushes' skb_push >"$WORK/paths"
	printf '%s\n' \
		'ffffffff81000000 <skb_push>:' \
		$'ffffffff81000000:\tmov    0x11b2(%rip),%rax        # ffffffff82000010 <init_net+0x10>' \
		$'ffffffff81000007:\tjmp    ffffffff81000010 <skb_push+0x10>' \
		$'ffffffff8100000c:\tmov    $0xffffffff8185c360,%rcx' \
		'' \
		'ffffffff81000020 <skb_pull>:' \
		$'ffffffff81000020:\tret' >"$WORK/one"
	printf '%s\n' \
		'ffffffff81000040 <skb_push.part.0>:' \
		$'ffffffff81000040:\tmov    -0x5(%rip),%rax        # ffffffff82000050 <init_net+0x10>' \
		$'ffffffff81000047:\tjmp    ffffffff81000058 <skb_push+0x18>' \
		$'ffffffff8100004a:\tmov    $0xffffffff8185d770,%rcx' \
		$'ffffffff8100004c:\tint3' >"$WORK/two"
	same "$(printf 'skb_push\tmov (%%rip),%%rax # init_net\nskb_push\tjmp skb_push\nskb_push\tmov $ADDRESS,%%rcx')" \
		"$(awk -f "$CLONE/qemu/bench/instructions.awk" "$WORK/paths" "$WORK/one")"
	same "$(awk -f "$CLONE/qemu/bench/instructions.awk" "$WORK/paths" "$WORK/one")" \
		"$(awk -f "$CLONE/qemu/bench/instructions.awk" "$WORK/paths" "$WORK/two")"
}

test_what_the_patches_add_to_functions() {
	printf 'skb_push\t10\t0\nsame\t5\t0\nelsewhere\t7\t1\n' >"$WORK/unpatched"
	printf 'skb_push\t18\t4\nsame\t5\t0\nelsewhere\t9\t1\nnew\t3\t0\n' >"$WORK/patched"
	printf 'skb_push.constprop.0\t1\nskb_push\t1\nskb_push.cold\t0\nnew\t1\n' >"$WORK/branches"
	printf '# pushes\nskb_push\nsame\ninlined\n' >"$WORK/paths"
	OUTPUT=$(awk -v tsv="$WORK/static.tsv" -v unpatched="$WORK/unpatched" -v patched="$WORK/patched" \
		-v branches="$WORK/branches" -f "$CLONE/qemu/bench/difference.awk" "$WORK/paths")
	echo "$OUTPUT"
	says 'inlined (in its callers)' '3 functions of the whole kernel differ or have a branch; they have 3 nops'
	same 'skb_push 10 18 +8 +4 2' "$(awk '$1 == "skb_push" { $1 = $1; print }' <<<"$OUTPUT")"
	same "$(printf 'elsewhere\t7\t9\t2\t0\t0')" "$(grep ^elsewhere "$WORK/static.tsv")"
	same '' "$(grep ^same "$WORK/static.tsv")"
}

test_both_kernels_boot_by_turns_with_one_processor_that_counts() {
	local vng=$CACHE/virtme-ng-1.42/bin/vng
	imported >/dev/null
	series_of_two >/dev/null
	# What is compiled, and the kernels, are no ELF files here
	replace gcc <<-'GCC'
	[ "$1" != --version ] || exec echo gcc
	while [ $# -gt 0 ]; do [ "$1" != -o ] || output=$2; shift; done
	printf '#!/bin/sh\n' >"$output"
	chmod +x "$output"
	GCC
	replace objdump <<-'OBJDUMP'
	printf '0 <skb_push>:\n0:\tpush   %%rbp\n'
	[[ $* != */patched-bench/* ]] || printf '1:\tnop\n'
	printf '2:\tret\n'
	OBJDUMP
	mkdir -p "$(dirname "$vng")"
	touch "$CACHE/virtme-ng-1.42.ready"
	cat >"$vng" <<-'VNG'
	#!/bin/bash
	echo "$*" >>"$WORK/boots"
	value=1010
	[[ $* != *unpatched-bench* ]] || value=1004
	while [ $# -gt 0 ]; do [ "$1" != --rwdir ] || RESULTS=$2; shift; done
	printf 'udp-ipv4\t5000\t%s\t%s\n' $value $value >"$RESULTS/traffic.tsv"
	echo 0 >"$RESULTS/status"
	VNG
	chmod +x "$vng"
	export WORK
	vm bench unused --boots 6
	ends 0
	says 'udp-ipv4' 'at most 6.0 instructions a packet'
	same $'+ skb_push\tnop' "$(cat "$CLONE/.build-vm/results/bench-unused/instructions.diff")"
	same 12 "$(wc -l <"$WORK/boots")"
	same 12 "$(grep -c -e '--cpus 1 .*-icount shift=0,sleep=off.*--disable-kvm' "$WORK/boots")"
	same "$(printf 'unpatched-bench\npatched-bench\n')" "$(grep -oE '(un)?patched-bench' "$WORK/boots" | head -n 2)"
	grep -q CONFIG_CC_OPTIMIZE_FOR_PERFORMANCE=y "$BUILDS/unpatched-bench/arch/x86/boot/bzImage"
	! grep -q CONFIG_NET_TRAITS=y "$BUILDS/unpatched-bench/arch/x86/boot/bzImage" || return 1
	grep -q CONFIG_NET_TRAITS=y "$BUILDS/patched-bench/arch/x86/boot/bzImage"
	# A check would be measured as well
	! grep -q CONFIG_DEBUG_NET=y "$BUILDS/patched-bench/arch/x86/boot/bzImage" || return 1
}

test_a_boot_that_fails_ends_the_benchmark() {
	test_both_kernels_boot_by_turns_with_one_processor_that_counts >/dev/null
	sed -i 's/echo 0 >/echo 3 >/' "$CACHE/virtme-ng-1.42/bin/vng"
	vm bench unused --boots 6
	ends 1
	says 'the benchmark in the unpatched kernel ended with status 3' 'output.log'
}

test_variants_take_their_turns_in_one_boot_with_one_processor_that_counts() {
	everything_but_the_guest <<-'GUEST'
	for ((turn = 1; turn <= 6; turn++)); do
		printf '%d\tapart\twithout\t160\t3000\t0.00\n%d\tapart\tfull\t160\t3030\t12.00\n' $turn $turn
	done >"$RESULTS/stream.tsv"
	echo 0 >"$RESULTS/status"
	GUEST
	vm bench stream
	ends 0
	grep -qE '^apart +full +3030.0 +\+30.0 +\+30.0 .. \+30.0 +\+1.00 % +12.00$' <<<"$OUTPUT"
	same "$(grep -E '^(scenario|apart)' <<<"$OUTPUT")" "$(cat "$CLONE/.build-vm/results/bench-stream/table.txt")"
	grep -q 'qemu/guest/stream .*/stream .*/.build/debug/traitctl .*/results/bench-stream ' "$WORK/guest.command"
	grep -q -e 'patched-bench.*--cpus 1 .*-icount shift=0,sleep=off.*--disable-kvm' "$WORK/vng.arguments"
	! grep -q CONFIG_DEBUG_NET=y "$BUILDS/patched-bench/arch/x86/boot/bzImage" || return 1
	sed -i 's/echo 0 >/echo 2 >/' "$CACHE/virtme-ng-1.42/bin/vng"
	vm bench stream
	ends 1
	says 'the benchmark ended with status 2' 'output.log'
}
