# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The Swift package, the BPF programs of demo and tests, and programs in C that run in
# the guest.

BPF_SOURCES=$ROOT/qemu/bpf
BPF_DIRECTORY=$ROOT/.build-vm/bpf
GUEST_PROGRAMS=$ROOT/.build-vm/guest

# swift_build WHAT ARGUMENTS...: with the last line of its progress now and then
swift_build() {
	local log=$CLONE_LOGS/swift.log pid status=0 next=$((SECONDS + 20))
	step "package: building $1"
	shift
	setsid swift build --package-path "$ROOT" "$@" >"$log" 2>&1 </dev/null &
	pid=$!
	CHILD_GROUP=$pid
	while kill -0 $pid 2>/dev/null; do
		sleep 0.5
		[ $SECONDS -ge $next ] || continue
		next=$((SECONDS + 20))
		detail "$(clock) package: $(tail -c 400 "$log" | tr '\r' '\n' | sed '/^$/d' | tail -n 1 | cut -c 1-90)"
	done
	wait $pid || status=$?
	CHILD_GROUP=
	[ $status -eq 0 ] && return 0
	explain_full_disk "$log"
	{ grep -E 'error:' "$log" || tail -n 15 "$log"; } | head -n 20 | quoted || true
	fail "the Swift package does not build: 'swift build' ended with status $status" "Log: $log"
}

# build_bpf: NAME.bpf.c to NAME.bpf.o, again when the source is newer
build_bpf() {
	local source object log=$CLONE_LOGS/bpf.log
	local clang=$TOOLCHAIN/clang
	mkdir -p "$BPF_DIRECTORY"
	[ -x "$clang" ] || fail "the Swift toolchain has no clang: $clang" \
		"The BPF programs are compiled with the toolchain's own clang."
	step "package: BPF programs"
	for source in "$BPF_SOURCES"/*.bpf.c; do
		[ -e "$source" ] || fail "no BPF program in $BPF_SOURCES"
		object=$BPF_DIRECTORY/$(basename "${source%.c}").o
		# Everything else that lies there may be included
		[ ! -e "$object" ] || [ -n "$(find "$BPF_SOURCES" "$clang" -newer "$object" -print -quit)" ] || continue
		if ! "$clang" -target bpf -mcpu=v3 -O2 -g -Wall -Werror \
			-I"/usr/include/$(gcc -print-multiarch)" -c "$source" -o "$object.new" >"$log" 2>&1; then
			explain_full_disk "$log"
			head -n 20 "$log" | quoted
			fail "$(basename "$source") does not compile for BPF" "Log: $log"
		fi
		mv "$object.new" "$object"
	done
}

# build_guest_program SOURCE [LIBRARIES...]: GUEST_PROGRAMS/NAME of SOURCE, NAME.c;
# static, unless it needs libraries: those are the host's, and so are the guest's files
build_guest_program() {
	local source=$1 name link=-static
	shift
	name=$(basename "$source" .c)
	[ $# -eq 0 ] || link=
	mkdir -p "$GUEST_PROGRAMS"
	step "package: compiling $(basename "$source")"
	logged "$CLONE_LOGS/guest-program.log" gcc $link -O2 -Wall -Wextra -Wno-missing-field-initializers -Werror \
		-I "$ROOT/Sources/CTraits/include" "$source" -o "$GUEST_PROGRAMS/$name" "$@"
}
