# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What packet traits cost: the store's functions, and a kernel in which nobody uses
# them. Both count instructions, which neither a busy host nor its processor changes.

BENCH_DIRECTORY=$ROOT/qemu/bench
BENCH_LIMIT=600

# As the kernel is compiled: no vector registers, the processor counts bits
BENCH_FLAGS=(-O2 -g -Wall -Werror -fno-strict-aliasing -mgeneral-regs-only -mpopcnt
	-fno-builtin-memmove -fno-tree-loop-distribute-patterns)

# bench_store: instructions and memory of the layouts in qemu/bench/store
bench_store() {
	local directory=$RESULTS/bench-store tree=$TREES/patched objects log source name
	local -a include measurements
	objects=$directory/objects
	log=$directory/build.log
	PACKAGES+=(valgrind)
	check_machine source
	install_packages
	lock_clone
	ensure_source
	ensure_patched
	rm -rf "$directory"
	mkdir -p "$objects"

	step "bench: compiling net/traits/store.c and what it is compared with"
	for source in "$BENCH_DIRECTORY"/store/*.c; do
		name=$(basename "$source" .c)
		include=()
		[ "$name" != traits ] || include=(-I "$BENCH_DIRECTORY/store/include" -I "$tree/tools/include"
			-I "$tree/tools/include/uapi" -I "$tree/net/traits")
		logged "$log" gcc "${BENCH_FLAGS[@]}" "${include[@]}" -c "$source" -o "$objects/$name.o"
	done
	# Static: nothing is looked up while it counts
	logged "$log" gcc -static -o "$objects/store" "$objects"/*.o

	step "bench: counting instructions with callgrind"
	if ! valgrind --tool=callgrind --collect-atstart=no --callgrind-out-file="$objects/callgrind.out" \
		"$objects/store" >"$objects/memory.tsv" 2>"$log" </dev/null; then
		tail -n 10 "$log" | quoted
		fail "the benchmark of the store failed under callgrind" "Log: $log"
	fi
	# The files' numbers are the order of the measurements
	mapfile -t measurements < <(find "$objects" -name 'callgrind.out.*' | sort -V)
	awk -f "$BENCH_DIRECTORY/store/report.awk" "$objects/memory.tsv" "${measurements[@]}" >"$directory/store.tsv"
	awk -f "$BENCH_DIRECTORY/store/table.awk" "$directory/store.tsv" | tee "$directory/table.txt"
	step "bench: done, in instructions ($directory/store.tsv)"
}

# boot_bench KERNEL NUMBER: one boot of KERNEL-bench; its figures go to boots.tsv
boot_bench() {
	local directory=$RESULTS/bench-unused status=0
	FLAVOUR=$1-bench
	IMAGE=$BUILDS/$FLAVOUR/arch/x86/boot/bzImage
	boot_guest "$directory/boot" $BENCH_LIMIT qemu/guest/bench "$GUEST_PROGRAMS/traffic" "$directory/boot" || status=$?
	[ $status -eq 0 ] || fail "the benchmark in the $1 kernel ended with status $status" \
		"Its output: $directory/boot/output.log" "The kernel's log: $directory/boot/console.log"
	awk -v OFS='\t' -v boot="$2" -v kernel="$1" '{ print boot, kernel, $0 }' "$directory/boot/traffic.tsv" >>"$directory/boots.tsv"
	detail "$(clock) boot $2, $1: $(awk '{ printf "%s%s %s", (NR > 1 ? ", " : ""), $1, $3 }' "$directory/boot/traffic.tsv")"
}

# bench_unused BOOTS: unpatched and patched kernel by turns
bench_unused() {
	local boots=$1 directory=$RESULTS/bench-unused flavour boot kernel
	check_machine source guest
	install_packages
	lock_clone
	for flavour in unpatched-bench patched-bench; do
		prepare_kernel $flavour
	done
	ensure_virtme
	build_guest_program "$BENCH_DIRECTORY/traffic.c"
	build_guest_program "$BENCH_DIRECTORY/branches.c"
	rm -rf "$directory"
	mkdir -p "$directory"

	step "bench: the instructions of both kernels"
	for kernel in unpatched patched; do
		objdump -d --no-show-raw-insn -j .text "$BUILDS/$kernel-bench/vmlinux" >"$directory/$kernel.disassembly"
		awk -f "$BENCH_DIRECTORY/functions.awk" "$directory/$kernel.disassembly" >"$directory/$kernel-functions.tsv"
		awk -f "$BENCH_DIRECTORY/instructions.awk" "$BENCH_DIRECTORY/paths" "$directory/$kernel.disassembly" |
			sort -s -t $'\t' -k 1,1 >"$directory/$kernel-instructions.tsv"
		rm "$directory/$kernel.disassembly"
	done
	# Status 1: they differ
	diff --unchanged-line-format= --old-line-format='- %L' --new-line-format='+ %L' \
		"$directory"/{unpatched,patched}-instructions.tsv >"$directory/instructions.diff" || [ $? -eq 1 ] ||
		fail "the instructions of both kernels cannot be compared"
	"$GUEST_PROGRAMS/branches" "$BUILDS/patched-bench/vmlinux" traits_enabled >"$directory/branches.tsv" ||
		fail "the patched kernel's static branches cannot be read"
	awk -v tsv="$directory/static.tsv" -v unpatched="$directory/unpatched-functions.tsv" \
		-v patched="$directory/patched-functions.tsv" -v branches="$directory/branches.tsv" \
		-f "$BENCH_DIRECTORY/difference.awk" "$BENCH_DIRECTORY/paths" | tee "$directory/static.txt"

	step "bench: $boots boots of each kernel, one processor that counts instructions"
	count_instructions
	printf 'boot\tkernel\tscenario\tpackets\tinstructions\tmean\n' >"$directory/boots.tsv"
	for ((boot = 1; boot <= boots; boot++)); do
		for kernel in unpatched patched; do
			boot_bench $kernel "$boot"
		done
	done
	awk -v tsv="$directory/unused.tsv" -f "$BENCH_DIRECTORY/median.awk" -f "$BENCH_DIRECTORY/interval.awk" \
		"$directory/boots.tsv" | tee "$directory/table.txt"
	step "bench: done, in instructions a packet ($directory/unused.tsv)"
}

# count_instructions: in guests from now on time is the number of instructions that were run.
# Only software emulation counts; sleep=off: while the guest idles, its time jumps.
count_instructions() {
	ACCELERATION=(--disable-kvm)
	GUEST_CPUS=1
	GUEST_ARGUMENTS=(--qemu-opts='-icount shift=0,sleep=off')
}

# bench_turns NAME WHAT EACH: qemu/guest/NAME runs NAME.c, whose variants take turns in one boot;
# EACH is what the table says of their last column
bench_turns() {
	local name=$1 what=$2 each=$3 directory=$RESULTS/bench-$1 status=0
	local -a libraries=()
	check_machine source swift guest
	install_packages
	lock_clone
	prepare_guest patched-bench
	swift_build "traitctl" --product traitctl
	build_bpf
	[ "$name" != merge ] || libraries=(-lbpf)
	build_guest_program "$BENCH_DIRECTORY/$name.c" "${libraries[@]}"
	rm -rf "$directory"
	mkdir -p "$directory"

	step "bench: $what, one processor that counts instructions"
	count_instructions
	boot_guest "$directory" $BENCH_LIMIT "qemu/guest/$name" "$GUEST_PROGRAMS/$name" "$ROOT/.build/debug/traitctl" \
		"$directory" || status=$?
	[ $status -eq 0 ] || fail "the benchmark ended with status $status" \
		"Its output: $directory/output.log" "The kernel's log: $directory/console.log"
	awk -v each="$each" -f "$BENCH_DIRECTORY/median.awk" -f "$BENCH_DIRECTORY/turns.awk" "$directory/$name.tsv" |
		tee "$directory/table.txt"
	step "bench: done, in instructions a packet ($directory/$name.tsv)"
}

help_bench() {
	cat <<-E
	Usage: qemu/vm bench store
	       qemu/vm bench unused [--boots N]
	       qemu/vm bench merge
	       qemu/vm bench stream

	Counts instructions. The figures do not depend on how fast or how busy the machine is, but on the
	compiler. Tables go to standard output, and with the figures that they were made from to
	.build-vm/results/bench-store, bench-unused, bench-merge and bench-stream.

	  store    set, get and delete of the series' store, beside a slot for each key and an earlier
	           layout, compiled as programs: takes seconds and builds no kernel. Installs valgrind.
	  unused   what the patches cost a kernel in which no key is registered: UDP and TCP on the
	           loopback device, forwarding between veth pairs; unpatched and patched kernel by
	           turns, always under software emulation. Two more kernels are built for it, once; a
	           boot takes half a minute.
	  merge    datagrams that GRO merges: all with equal traits, each with traits of its own, and
	           none with any, by turns in one boot of the kernel that unused has built.
	  stream   the segments of TCP streams on the loopback device: without traits, with one that is
	           sticky and with as many as a store has room for, and read or not; by turns in one
	           boot of the same kernel.

	  --boots N   of unused: boots of each kernel (default 9; at least 6, as fewer have no 95 %
	              interval)

	All need the kernel's source with the series, and get it if the cache does not have it.

	docs/performance.md tells how to read them.
	E
}

command_bench() {
	local what=${1:-} boots=9
	case $what in
	store | unused | merge | stream) shift ;;
	*) usage_error "bench: store, unused, merge or stream, not '$what'" bench ;;
	esac
	while [ $# -gt 0 ]; do
		case $what:$1 in
		unused:--boots)
			[[ ${2:-} =~ ^[1-9][0-9]{0,3}$ && $2 -ge 6 ]] ||
				usage_error "--boots needs a number of at least 6, not '${2:-}': fewer have no 95 % interval" bench
			boots=$2
			shift 2 ;;
		*) usage_error "bench $what: what is '$1'?" bench ;;
		esac
	done
	open_cache
	need_series bench
	case $what in
	store) bench_store ;;
	unused) bench_unused "$boots" ;;
	merge) bench_turns merge "datagrams that GRO merges" "datagrams of 40" ;;
	stream) bench_turns stream "segments of streams" "traits a read" ;;
	esac
}
