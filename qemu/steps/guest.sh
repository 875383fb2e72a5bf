# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The virtual machine: the kernel that was built, the host's user space, one
# command. virtme-ng, pinned, from an environment of its own.

VIRTME_NG=1.42

# Seconds that a guest may take to boot when hardware virtualisation works; a
# stock kernel needs 2
KVM_PROBE_LIMIT=25

GUEST_MEMORY=2G
GUEST_CPUS=2

# Pairs of network cards, by QEMU's models and in the order of Card in
# Tests/GuestTests/DriverTests.swift: the position of a pair says which Ethernet addresses it has.
CARDS=(
	virtio-net-pci
	# Small buffers are what virtio_net has without all that makes packets large
	virtio-net-pci,mrg_rxbuf=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off
	vmxnet3
	# Emulated from QEMU 8.0 on
	igb
)

# Those that the guest does without, and skips the tests of, if QEMU does not offer them
OPTIONAL_CARDS=(vmxnet3 igb)
GUEST_MISSING=

# Seconds that QEMU has to accept or refuse a card; it needs a fifth of one
CARD_PROBE_LIMIT=30

# card_pair NUMBER: QEMU's options for one of the pairs, counted from 0. A hub joins the two cards:
# what one sends the other receives, and no other card. Without ROMs to boot from, which would take
# time.
card_pair() {
	local model=${CARDS[$1]} first=$((2 * $1 + 1)) number bus
	for number in $first $((first + 1)); do
		bus=
		# The numbers of its virtual functions do not fit on the machine's first bus: from 10.0 on
		# QEMU refuses it there ("VF addr overflows"). Below a port of its own it has a whole bus.
		if [ "$model" = igb ]; then
			printf -- '-device pcie-root-port,id=port%d,chassis=%d,slot=%d ' $number $number $number
			bus=,bus=port$number
		fi
		printf -- '-netdev hubport,id=card%d,hubid=%d -device %s%s,netdev=card%d,mac=02:00:00:00:77:%02x,romfile= ' \
			$number $first "$model" "$bus" $number $number
	done
}

# guest_cards: QEMU's options for all pairs but those in GUEST_MISSING. The machine is the one that
# virtme-ng takes for software emulation; with hardware virtualisation it would have no PCI Express.
guest_cards() {
	local number
	printf -- '-machine q35 '
	for number in "${!CARDS[@]}"; do
		[[ " $GUEST_MISSING " == *" ${CARDS[number]} "* ]] || card_pair "$number"
	done
}

# qemu_version: such as 7.2.22; nothing if QEMU does not tell
qemu_version() {
	qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9.]*\).*/\1/p'
}

# try_card NUMBER: starts QEMU with one of the pairs, and ends it before the machine runs. Prints
# QEMU's error if there is one.
try_card() {
	local options status=0
	read -ra options < <(card_pair "$1"; echo)
	timeout --kill-after=5 "$CARD_PROBE_LIMIT" qemu-system-x86_64 -machine q35 -accel tcg -nodefaults -display none -S -monitor stdio \
		"${options[@]}" 2>&1 >/dev/null <<<quit || status=$?
	return $status
}

# probe_cards: sets GUEST_MISSING. QEMU is asked once per version; the cache keeps its answers, one
# line "MODEL<TAB>reason" for each card that is missing, behind a line that says what was asked.
probe_cards() {
	local answers=$CACHE/cards version question number model reason status missing='' keep=1
	version=$(qemu_version) || version=''
	question="QEMU $version: $(for number in "${!CARDS[@]}"; do card_pair "$number"; done)"
	if [ "$(head -n 1 "$answers" 2>/dev/null)" != "$question" ]; then
		for number in "${!CARDS[@]}"; do
			model=${CARDS[number]}
			[[ " ${OPTIONAL_CARDS[*]} " == *" $model "* ]] || continue
			status=0
			reason=$(try_card "$number") || status=$?
			[ $status -ne 0 ] || continue
			case $status:$reason in
			# A busy machine: ask again next time
			124:* | 137:*)
				keep=''
				reason="QEMU $version did not start with it within $CARD_PROBE_LIMIT s" ;;
			*"'$model' is not a valid device model name"*) reason="QEMU $version does not have it" ;;
			# Its error follows the option that it is about
			*) reason="QEMU $version refuses it: $(sed -E 's/^qemu-system-x86_64: (-[a-z]+ [^ ]+: )?//' <<<"${reason:-status $status}" | head -n 1)" ;;
			esac
			missing+="$model"$'\t'"$reason"$'\n'
		done
		printf '%s\n%s' "$question" "$missing" >"$answers.$$"
		mv "$answers.$$" "$answers"
	fi
	GUEST_MISSING=
	while IFS=$'\t' read -r model reason; do
		detail "guest: no $model card: $reason"
		GUEST_MISSING+=${GUEST_MISSING:+ }$model
	done < <(tail -n +2 "$answers")
	[ -n "$keep" ] || rm -f "$answers"
}

# The machine's files, as virtme-ng mounts them, but kept in the guest's memory once they were
# read (cache=loose): a guest starts thousands of programs, which takes half as long again otherwise. What
# changes on the host meanwhile the guest may not see, so a shell does without. What the guest
# writes (--rwdir) is a mount of its own.
GUEST_ROOT=rootflags=version=9p2000.L,trans=virtio,access=any,msize=512000,cache=loose

# What else virtme-ng is told
GUEST_ARGUMENTS=()

# ensure_virtme: the environment with virtme-ng, made once
ensure_virtme() {
	local venv=$CACHE/virtme-ng-$VIRTME_NG log=$CACHE/log/virtme-ng.log
	VNG=$venv/bin/vng
	[ -e "$venv.ready" ] && [ -x "$VNG" ] && return 0
	has_cache_lock || {
		with_cache_lock ensure_virtme
		return
	}
	step "guest: installing virtme-ng $VIRTME_NG into $venv"
	rm -rf "$venv"
	logged "$log" python3 -m venv "$venv"
	if ! "$venv/bin/pip" install --quiet "virtme-ng==$VIRTME_NG" >"$log" 2>&1 </dev/null; then
		explain_full_disk "$log"
		tail -n 5 "$log" | quoted
		fail "pip could not install virtme-ng $VIRTME_NG: is there a network?" "Log: $log"
	fi
	touch "$venv.ready"
}

# run_virtme DIRECTORY LIMIT ARGUMENTS...: one boot, in which guest/enter runs
# DIRECTORY/command; DIRECTORY is where the guest writes. Returns 124 at the limit;
# whatever else it returns says nothing, the guest's status is in a file.
run_virtme() {
	local directory=$1 limit=$2 status=0
	shift 2
	: >"$directory/console.log"
	# setsid: one process group, which is ended as a whole. A pipe for the console:
	# QEMU opens it by name, several times, which would truncate a plain file.
	# virtme-ng looks for its other half on PATH.
	PATH=$(dirname "$VNG"):$PATH without_locks setsid timeout --signal=TERM --kill-after=5 "$limit" \
		"$VNG" -r "$IMAGE" --disable-microvm --force-9p --user root --memory "$GUEST_MEMORY" --cpus "$GUEST_CPUS" \
		--verbose --append oops=panic --append "$GUEST_ROOT" --qemu-opts="$(guest_cards)" "${GUEST_ARGUMENTS[@]}" --rwdir "$directory" "$@" \
		--exec "$(printf 'bash %q %q' "$ROOT/qemu/guest/enter" "$directory")" \
		</dev/null >"$directory/virtme-ng.log" 2> >(without_locks cat >>"$directory/console.log") &
	CHILD_GROUP=$!
	wait $CHILD_GROUP || status=$?
	end_group $CHILD_GROUP
	CHILD_GROUP=
	return $status
}

# emulate: sets ACCELERATION for software emulation. QEMU before 8.1 reads instructions to translate
# without holding their page. One CPU can then translate, and keep, code that another CPU is
# replacing. It runs into the breakpoint of a static branch after the kernel has removed the
# handler: "Oops: int3". So such a QEMU emulates all CPUs in one thread.
emulate() {
	local version
	ACCELERATION=(--disable-kvm)
	version=$(qemu_version) || version=''
	is_at_least "$version" 8.1 || ACCELERATION+=(--qemu-opts='-accel tcg,thread=single')
}

# probe_kvm: sets ACCELERATION. That /dev/kvm can be opened says little: nested
# virtualisation may abort, or spin. So boot the kernel and wait for its answer;
# once per boot of this machine.
probe_kvm() {
	local boot answer=$CACHE/kvm directory=$CACHE/log/kvm-probe
	emulate
	if [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ]; then
		detail "guest: no /dev/kvm that can be used: software emulation"
		return 0
	fi
	boot=$(cat /proc/sys/kernel/random/boot_id)
	if [ "$(cut -d ' ' -f 1 "$answer" 2>/dev/null)" != "$boot" ]; then
		has_cache_lock || {
			with_cache_lock probe_kvm
			return
		}
		step "guest: does hardware virtualisation work? (at most $KVM_PROBE_LIMIT s, once per boot)"
		mkdir -p "$directory"
		rm -f "$directory/status"
		echo 'exit 0' >"$directory/command"
		if run_virtme "$directory" $KVM_PROBE_LIMIT && [ "$(cat "$directory/status" 2>/dev/null)" = 0 ]; then
			echo "$boot works" >"$answer"
		else
			echo "$boot fails" >"$answer"
		fi
	fi
	if [ "$(cut -d ' ' -f 2 "$answer")" = works ]; then
		detail "guest: hardware virtualisation"
		ACCELERATION=()
	else
		detail "guest: /dev/kvm is there, but a guest does not boot with it: software emulation"
	fi
}

# kernel_reports CONSOLE: lines of the guest's log that fail a run
kernel_reports() {
	# After the time stamp, so that a program's words do not match; the traces'
	# own beginnings besides
	grep -anE \
		-e '^\[ *[0-9]+\.[0-9]+\] (WARNING|BUG|INFO): ' \
		-e '^\[ *[0-9]+\.[0-9]+\] (rcu: INFO|watchdog: BUG|UBSAN|KFENCE|KCSAN|kmemleak: |refcount_t: |list_(add|del) corruption)' \
		-e '^\[ *[0-9]+\.[0-9]+\] (Oops|Kernel panic|general protection fault|kernel BUG at|traps: PANIC|double fault|stack segment)' \
		-e '^\[ *[0-9]+\.[0-9]+\] (unregister_netdevice: waiting|ODEBUG: |page_pool_release_retry|Call Trace:)' \
		-e '------------\[ cut here \]' \
		"$1" | tr -d '\r'
}

# running_tests EVENTS: tests that began and did not end
running_tests() {
	[ -s "$1" ] || return 0
	jq -rRs '[split("\n")[] | fromjson? | select(.kind == "event") | .payload]
		| (map(select(.kind == "testEnded").testID) | unique) as $ended
		| map(select(.kind == "testStarted").testID) - $ended | .[]' "$1" 2>/dev/null | tail -n 5
}

# boot_guest DIRECTORY LIMIT COMMAND...: run COMMAND in the guest as root, in the
# clone's directory. DIRECTORY gets output.log, console.log and status, and is
# the host's one place that the guest can write to. Returns the command's status; 124
# after the limit, 125 if the guest ended without a status, 126 if the kernel's
# log has a report. What the command prints goes to standard output.
boot_guest() {
	local directory=$1 limit=$2 status=0 reports follow begun=$SECONDS
	shift 2
	mkdir -p "$directory"
	rm -f "$directory"/{status,step,command,output.log,console.log}
	: >"$directory/output.log"
	{
		printf 'cd %q || exit 1\n' "$ROOT"
		printf 'export PACKET_TRAITS_GUEST=%q PACKET_TRAITS_BPF=%q PACKET_TRAITS_RESULTS=%q PACKET_TRAITS_PROFILE=%q\n' \
			"$([ "$(tree_of "${FLAVOUR:-patched}")" = unpatched ] || echo 1)" "$BPF_DIRECTORY" "$directory" "${PROFILE:-plain}"
		[ -z "${GUEST_MISSING:-}" ] || printf 'export PACKET_TRAITS_MISSING=%q\n' "$GUEST_MISSING"
		# The guest's own /lib is in memory. modprobe finds the modules, and so does the kernel,
		# which runs it.
		[ ! -d "${KERNEL_MODULES:-}" ] ||
			printf 'mkdir -p /lib/modules && mount --bind %q /lib/modules || exit 1\n' "$KERNEL_MODULES"
		[ -z "${LONG:-}" ] || echo 'export PACKET_TRAITS_LONG=1'
		printf 'export PACKET_TRAITS_TREE=%q\n' "$TREES/$(tree_of "${FLAVOUR:-patched}")"
		[ ! -d "${KERNEL_HEADERS:-}" ] || printf 'export PACKET_TRAITS_HEADERS=%q\n' "$KERNEL_HEADERS"
		printf '%q ' "$@"
		echo
	} >"$directory/command"

	tail -n +1 -f "$directory/output.log" --pid=$$ 2>/dev/null &
	follow=$!
	run_virtme "$directory" "$limit" "${ACCELERATION[@]}" || status=$?
	# Let what the guest printed last come through
	sleep 0.3
	kill $follow 2>/dev/null || true
	wait $follow 2>/dev/null || true

	reports=$(kernel_reports "$directory/console.log") || reports=''
	if [ -n "$reports" ]; then
		detail "the kernel reported (from line ${reports%%:*} of $directory/console.log):"
		tail -n "+${reports%%:*}" "$directory/console.log" | head -n 60 | quoted || true
		status=126
	elif [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
		status=124
		detail "the guest was ended after $limit s; its last step: $(cat "$directory/step" 2>/dev/null || echo 'it had not finished booting')"
		[ -z "$(running_tests "$directory/events.json")" ] ||
			detail "tests that had begun: $(running_tests "$directory/events.json" | paste -sd ' ')"
		detail "the end of $directory/output.log:"
		tail -n 5 "$directory/output.log" | quoted
		detail "the end of $directory/console.log:"
		tail -n 10 "$directory/console.log" | quoted
	elif [ ! -s "$directory/status" ]; then
		detail "the guest ended without a status; the end of $directory/console.log:"
		tail -n 15 "$directory/console.log" | quoted
		status=125
	else
		status=$(cat "$directory/status")
	fi
	GUEST_SECONDS=$((SECONDS - begun))
	return "$status"
}

# prepare_guest FLAVOUR: everything that a boot needs
prepare_guest() {
	FLAVOUR=$1
	prepare_kernel "$FLAVOUR"
	ensure_virtme
	probe_cards
	probe_kvm
}

# help_guest_files WHERE: what the guest can write to. virtme-ng chose the directories that
# are held in memory: look again with another VIRTME_NG.
help_guest_files() {
	cat <<-E
	The guest has the host's files. What it writes below /etc, /home, /lib, /opt, /srv, /tmp, /usr
	and /var, or to /run, is held in memory and gone when it ends. All else is read-only, except for
	$1, which is the host's.
	E
}

help_boot() {
	cat <<-E
	Usage: qemu/vm boot [--unpatched | --profile NAME] [--long] [--limit SECONDS] -- COMMAND [ARGUMENTS...]

	Boots the kernel, runs the command in the guest as root, in the clone's directory, and ends with
	its status. After 300 seconds the guest is ended: '--limit SECONDS' allows more.

	$(help_guest_files 'the directory in PACKET_TRAITS_RESULTS (.build-vm/results/boot)')

	  --unpatched      the kernel without the series
	  --profile NAME   the patched kernel of 'qemu/vm test --profile NAME'; no allocation is made to fail
	  --long           tests do as much as with 'qemu/vm test --long'
	  --limit SECONDS  end the guest after that time, boot included (default 300)

	Other statuses: 124 time limit, 125 the guest ended without a status, 126 the kernel's log has an
	oops, a warning, a lockdep or an RCU report. The output and the kernel's log are kept in
	.build-vm/results/boot.
	E
}

command_boot() {
	local limit=300 flavour=patched status=0
	while [ $# -gt 0 ]; do
		case $1 in
		--unpatched) flavour=unpatched ; shift ;;
		--long) LONG=1 ; shift ;;
		--profile)
			case ${2:-} in
			plain | debug | faults | modules) use_profile "$2" ;;
			*) usage_error "boot --profile: plain, debug, faults or modules, not '${2:-}'" boot ;;
			esac
			shift 2 ;;
		--limit)
			[[ ${2:-} =~ ^[1-9][0-9]*$ ]] || usage_error "--limit needs a number of seconds, not '${2:-}'" boot
			limit=$2
			shift 2 ;;
		--) shift ; break ;;
		*) usage_error "boot: what is '$1'? The command follows '--'" boot ;;
		esac
	done
	[ $# -gt 0 ] || usage_error "boot: there is no command: it follows '--', as in 'qemu/vm boot -- uname -r'" boot
	[ $flavour = patched ] || [ -z "$SUFFIX" ] || usage_error "boot: the unpatched kernel has no profile" boot
	open_cache
	[ $flavour = unpatched ] || need_series
	check_machine source guest
	install_packages
	lock_clone boot
	prepare_guest "$flavour$SUFFIX"
	step "guest: $* (for at most $limit s)"
	boot_guest "$RESULTS/boot" "$limit" "$@" || status=$?
	[ $status -ne 124 ] || detail "'qemu/vm boot --limit SECONDS' gives a guest more time than $limit s"
	step "guest: ended with status $status after $GUEST_SECONDS s (log: $RESULTS/boot/console.log)"
	return $status
}

help_shell() {
	cat <<-E
	Usage: qemu/vm shell [--unpatched]

	A root shell in the guest. Control-D ends it.

	$(help_guest_files '.build-vm/results/shell of the clone')

	  --unpatched   the kernel without the series
	E
}

command_shell() {
	local flavour=patched
	case "$#:${1:-}" in
	0:) ;;
	1:--unpatched) flavour=unpatched ;;
	*) usage_error "shell: what is '$*'?" shell ;;
	esac
	if [ ! -t 0 ] || [ ! -t 1 ]; then
		fail "shell needs a terminal" "For one command: qemu/vm boot -- COMMAND"
	fi
	open_cache
	[ $flavour = unpatched ] || need_series
	check_machine source guest
	install_packages
	prepare_guest $flavour
	mkdir -p "$RESULTS/shell"
	step "guest: a shell"
	(PATH=$(dirname "$VNG"):$PATH without_locks "$VNG" -r "$IMAGE" --disable-microvm --force-9p --user root \
		--memory "$GUEST_MEMORY" --cpus "$GUEST_CPUS" "${ACCELERATION[@]}" \
		--rwdir "$RESULTS/shell" --cwd "$ROOT")
}
