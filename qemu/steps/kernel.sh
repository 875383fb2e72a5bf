# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# From fragments to a configuration, from a tree to a kernel image.

CONFIG_DIRECTORY=$ROOT/qemu/config

# Fragments of the guest's kernel. The unpatched one does not know traits.config.
FRAGMENTS=(machine userspace network bpf checks)

# Objects of a complete build, as counted when it was measured; replaced in the
# cache by the count of each build that ends
OBJECTS_MEASURED=1854

# Objects with debug information, beside the tree
BUILD_SPACE_MB=3000

# Whose lines the profile coverage counts: what sockets do with traits, and whatever of it is
# inline where they send and receive. The names are those of objects, in any directory.
COVERAGE_OBJECTS=(sock udp raw ping ip_output ip_sockglue ip6_output datagram af_packet
	stream tcp tcp_input tcp_output tcp_ipv4 tcp_ipv6 tcp_minisocks tcp_fastopen syncookies inet_connection_sock)

# tree_of FLAVOUR: the worktree that it is built from; what follows a hyphen is a
# profile, the same source with other checks
tree_of() {
	echo "${1%%-*}"
}

# kernel_make FLAVOUR TARGETS...: fixed stamps, for the same image from the same
# source; LOCALVERSION= keeps git's state out of the name
kernel_make() {
	local flavour=$1
	shift
	# In the background it is a process group, which can be ended as a whole
	local -a replace=() counted=()
	[ "$BASHPID" = $$ ] || replace=(exec setsid)
	# Told to make, so that the series has no part in it
	[[ $flavour != *-coverage ]] || counted=("${COVERAGE_OBJECTS[@]/%/.o=y}")
	"${replace[@]}" env KBUILD_BUILD_USER=packet-traits KBUILD_BUILD_HOST=localhost \
		KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' \
		make -C "$TREES/$(tree_of "$flavour")" O="$BUILDS/$flavour" ARCH=x86_64 LOCALVERSION= \
		-j "$(nproc)" "${counted[@]/#/GCOV_PROFILE_}" "$@"
}

# fragments_of FLAVOUR: paths, one a line
fragments_of() {
	local name
	for name in "${FRAGMENTS[@]}"; do
		[[ $name != checks || $1 != *-bench ]] || continue
		echo "$CONFIG_DIRECTORY/$name.config"
	done
	case $1 in
	patched | patched-* | mutated-guest) echo "$CONFIG_DIRECTORY/traits.config" ;;
	# Also what KUnit compiles, and what the guest has no use for; early patches of a
	# series do not know all of it
	check) printf '%s\n' "$CONFIG_DIRECTORY"/{traits,kunit,touched}.config ;;
	esac
	# The guest that "mutate" boots has no checks of its own
	[[ $1 != *-* || $1 = mutated-guest ]] || echo "$CONFIG_DIRECTORY/${1#*-}.config"
}

# unmet_symbols CONFIG FRAGMENTS...: what was asked for and did not end up so. If several
# fragments set a symbol, the last one counts, as for merge_config.sh.
unmet_symbols() {
	local config=$1 fragment name line number symbol now
	local -A setter=()
	shift
	for fragment; do
		while read -r symbol; do
			setter[$symbol]=$fragment
		done < <(sed -nE -e 's/^(CONFIG_\w+)=.*/\1/p' -e 's/^# (CONFIG_\w+) is not set$/\1/p' "$fragment")
	done
	for fragment; do
		number=0
		name=$(basename "$fragment")
		while IFS= read -r line; do
			number=$((number + 1))
			case $line in
			CONFIG_*=*) symbol=${line%%=*} ;;
			'# CONFIG_'*' is not set')
				symbol=${line#\# }
				symbol=${symbol% is not set} ;;
			*) continue ;;
			esac
			[ "${setter[$symbol]}" = "$fragment" ] || continue
			now=$(grep -E "^($symbol=|# $symbol is not set)" "$config") || now="$symbol is unknown here, or something it depends on is missing"
			# A symbol that is hidden is off as well
			case $line in
			'#'*) [[ $now == "$symbol="* ]] || continue ;;
			*) [ "$now" != "$line" ] || continue ;;
			esac
			echo "$name:$number asks for '$line', but: $now"
		done <"$fragment"
	done
}

# configure_kernel FLAVOUR: tinyconfig and the fragments. An unchanged outcome is
# not written again: make would take it for a change of every symbol.
configure_kernel() {
	local flavour=$1 build=$BUILDS/$1 scratch=$BUILDS/$1-config log=$LOGS/config-$1.log unmet tree
	local -a fragments
	mapfile -t fragments < <(fragments_of "$flavour")
	tree=$TREES/$(tree_of "$flavour")
	mkdir -p "$build" "$scratch"
	logged "$log" make -C "$tree" O="$scratch" ARCH=x86_64 tinyconfig
	ARCH=x86_64 logged "$log" "$tree/scripts/kconfig/merge_config.sh" -m -O "$scratch" \
		"$scratch/.config" "${fragments[@]}"
	logged "$log" make -C "$tree" O="$scratch" ARCH=x86_64 olddefconfig
	[ "$flavour" != check ] || fragments=("$CONFIG_DIRECTORY/touched.config")
	unmet=$(unmet_symbols "$scratch/.config" "${fragments[@]}")
	[ -z "$unmet" ] || fail "the kernel's configuration is not what qemu/config asks for:" "$unmet"
	cmp -s "$scratch/.config" "$build/.config" || cp "$scratch/.config" "$build/.config"
}

# build_stamp FLAVOUR: what the image depends on
build_stamp() {
	local -a fragments
	local tree
	tree=$(tree_of "$1")
	mapfile -t fragments < <(fragments_of "$1")
	{
		tree_git "$tree" rev-parse 'HEAD^{tree}'
		tree_git "$tree" diff HEAD
		cat "${fragments[@]}"
		gcc --version | head -n 1
		pahole --version
		# How this file calls make is part of it too
		cat "$ROOT/qemu/steps/kernel.sh"
	} | sha256sum
}

# count_objects DIRECTORY [TESTS...]: objects that are there. Directories may go while find
# looks at them, which is no failure.
count_objects() {
	local directory=$1
	shift
	{ find "$directory" -name '*.o' "$@" 2>/dev/null || true; } | wc -l
}

# watch_build FLAVOUR PID: progress of make, by the objects that are there
watch_build() {
	local build=$BUILDS/$1 pid=$2 total count since=$SECONDS every=15 next
	next=$((SECONDS + every))
	total=$(cat "$BUILDS/$1.objects" 2>/dev/null) || total=$OBJECTS_MEASURED
	while kill -0 "$pid" 2>/dev/null; do
		sleep 1
		[ $SECONDS -ge $next ] || continue
		next=$((SECONDS + every))
		if [ -e "$build/vmlinux" ]; then
			# How many of them a change reaches is not known before make has looked
			count=$(count_objects "$build" -newer "$BUILDS/$1.begun")
			detail "$(clock) kernel: $count objects compiled anew, $((SECONDS - since)) s"
		else
			count=$(count_objects "$build")
			if [ "$count" -lt "$total" ]; then
				detail "$(clock) kernel: $count of about $total objects, $((count * 100 / total)) %"
			else
				detail "$(clock) kernel: $count objects, linking and making BTF"
			fi
		fi
	done
}

# is_built FLAVOUR STAMP
is_built() {
	[ -e "$IMAGE" ] && [ "$(cat "$BUILDS/$1.stamp" 2>/dev/null)" = "$2" ]
}

# targets_of FLAVOUR: what make is to build
targets_of() {
	echo bzImage
	[[ $1 != *-modules ]] || echo modules
}

# install_modules FLAVOUR DIRECTORY: what a machine has in /lib/modules goes to
# DIRECTORY/lib/modules. Without debug information, as distributions ship it: BTF stays.
install_modules() {
	rm -rf "$2"
	logged "$LOGS/modules-$1.log" kernel_make "$1" modules_install INSTALL_MOD_PATH="$2" INSTALL_MOD_STRIP=1
}

# ensure_kernel FLAVOUR: build/FLAVOUR has the image, and for a patched kernel the
# exported headers, of what tree/FLAVOUR holds
ensure_kernel() {
	local flavour=$1 build=$BUILDS/$1 stamp
	IMAGE=$build/arch/x86/boot/bzImage
	KERNEL_HEADERS=$build/headers/include
	KERNEL_MODULES=$build/installed/lib/modules
	lock_shared "$build.lock"
	stamp=$(build_stamp "$flavour")
	if is_built "$flavour" "$stamp"; then
		step "kernel: $flavour is built, nothing changed"
		return 0
	fi
	# Another run may build it first, or something else in between
	until is_built "$flavour" "$stamp"; do
		lock_exclusive "$build.lock"
		is_built "$flavour" "$stamp" || build_kernel "$flavour" "$stamp"
		lock_shared "$build.lock"
	done
	step "kernel: $IMAGE"
}

# build_kernel FLAVOUR STAMP
build_kernel() {
	local flavour=$1 stamp=$2 build=$BUILDS/$1 log=$LOGS/build-$1.log status=0 pid
	local -a targets
	mapfile -t targets < <(targets_of "$flavour")
	[ -e "$build/vmlinux" ] || need_space "$CACHE" $BUILD_SPACE_MB "the kernel's build"
	rm -f "$build.stamp"
	step "kernel: configuring $flavour"
	configure_kernel "$flavour"

	step "kernel: building $flavour with $(nproc) jobs (log: $log)"
	touch "$build.begun"
	kernel_make "$flavour" "${targets[@]}" >"$log" 2>&1 </dev/null &
	pid=$!
	CHILD_GROUP=$pid
	watch_build "$flavour" $pid &
	wait $pid || status=$?
	CHILD_GROUP=
	wait
	if [ $status -ne 0 ]; then
		explain_full_disk "$log"
		grep -nE '(error|Error)( [0-9]+)?:|\*\*\*|undefined reference' "$log" | head -n 15 | quoted || true
		fail "the $flavour kernel does not build: make ended with status $status" "Log: $log"
	fi
	count_objects "$build" >"$build.objects"
	if [ "$flavour" = patched ]; then
		logged "$LOGS/headers.log" kernel_make patched headers_install INSTALL_HDR_PATH="$build/headers"
	fi
	[[ $flavour != *-modules ]] || install_modules "$flavour" "$build/installed"
	[ ! -e "$build/vmlinux" ] || [ "$(tree_of "$flavour")" = unpatched ] || check_skbuff_hole "$build/vmlinux"
	echo "$stamp" >"$build.stamp"
}

# prepare_kernel FLAVOUR: source, series, image
prepare_kernel() {
	ensure_source
	case $(tree_of "$1") in
	patched) ensure_patched ;;
	unpatched) switch_tree unpatched "$SOURCE_TAG" ;;
	esac
	ensure_kernel "$1"
}

help_build() {
	cat <<-E
	Usage: qemu/vm build [--unpatched]

	Builds the kernel that the guest boots: tinyconfig with the fragments of qemu/config. Fetches the
	source and applies the series before, if that is not done yet. A symbol that a fragment asks for
	and that does not end up set is an error. Later runs compile what changed.

	  --unpatched   the same source without the series, in a tree of its own

	The cache: $CACHE
	E
}

command_build() {
	FLAVOUR=patched
	while [ $# -gt 0 ]; do
		case $1 in
		--unpatched) FLAVOUR=unpatched ;;
		*) usage_error "build: what is '$1'?" build ;;
		esac
		shift
	done
	open_cache
	[ $FLAVOUR = unpatched ] || need_series
	check_machine source
	install_packages
	prepare_kernel $FLAVOUR
	echo "$IMAGE"
}
