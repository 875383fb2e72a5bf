# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# "test --profile modules": a kernel with modules, and what its guest does with them.

# A guest in which everything was loaded
LOADS='printf "passed\tmodules/%s\t\n" demo load/veth traits-symbols >>"$RESULTS/tests.tsv"; echo 0 >"$RESULTS/status"'

test_the_modules_are_built_and_the_guest_finds_them() {
	everything_but_the_guest <<<"$LOADS"
	vm test --profile modules
	ends 0
	same '3 passed, 0 failed, 0 skipped' "$(tail -n 1 <<<"$OUTPUT")"
	local build=$BUILDS/patched-modules
	[ -e "$build/installed/lib/modules/6.12.95/veth.ko" ]
	grep -q -e "mount --bind $build/installed/lib/modules /lib/modules" "$WORK/guest.command"
	# The last fragment is the one that counts
	grep -q CONFIG_VETH=m "$build/arch/x86/boot/bzImage"
	! grep -q CONFIG_VETH=y "$build/arch/x86/boot/bzImage" || return 1
	# What an earlier kernel left is not there for the next one
	touch "$build/installed/lib/modules/old.ko"
	echo 'CONFIG_ONE_MORE=m' >>"$CLONE/qemu/config/modules.config"
	vm test --profile modules
	[ ! -e "$build/installed/lib/modules/old.ko" ]
}

test_other_kernels_have_no_modules() {
	everything_but_the_guest <<<'echo 0 >"$RESULTS/status"'
	vm boot -- true
	ends 0
	[ ! -e "$BUILDS/patched/veth.ko" ]
	[ ! -e "$BUILDS/patched/installed" ]
	! grep -q /lib/modules "$WORK/guest.command" || return 1
	vm boot --profile modules -- true
	ends 0
	grep -q /lib/modules "$WORK/guest.command"
}

test_of_two_fragments_the_last_one_must_be_met() {
	kernel_tree "$WORK/linux"
	echo CONFIG_VETH >"$WORK/linux/config.drop"
	vm fetch --source "$WORK/linux" >/dev/null
	series_of_two >/dev/null
	# What comes before the boot needs none of them
	everything_installed
	vm test --profile modules
	ends 1
	says 'modules.config:' "asks for 'CONFIG_VETH=m'"
	says_not "asks for 'CONFIG_VETH=y'"
}

# everything_installed: a Swift toolchain that nobody runs
everything_installed() {
	printf '// swift-tools-version: 6.2\n' >"$CLONE/Package.swift"
	replace swift <<<'echo "Swift version 6.3"'
	replace clang <<<':'
}

test_modules_that_cannot_be_installed_end_the_run() {
	everything_but_the_guest <<<"$LOADS"
	replace make <<<'case "$*" in *modules_install*) echo "depmod: no such luck"; exit 2 ;; *) exec /usr/bin/make "$@" ;; esac'
	vm test --profile modules
	ends 1
	says 'depmod: no such luck'
	[ ! -e "$BUILDS/patched-modules.stamp" ]
}

test_a_module_that_does_not_load_fails_the_run() {
	everything_but_the_guest <<<'printf "passed\tmodules/demo\t\nfailed\tmodules/load/veth\tmodprobe: Unknown symbol\npassed\tmodules/traits-symbols\t\n" >>"$RESULTS/tests.tsv"; echo 0 >"$RESULTS/status"'
	vm test --profile modules
	ends 1
	says 'FAILED modules/load/veth: modprobe: Unknown symbol'
	same '2 passed, 1 failed, 0 skipped' "$(tail -n 1 <<<"$OUTPUT")"
}

test_modules_that_stop_half_way_have_failed() {
	everything_but_the_guest <<<'printf "passed\tmodules/demo\t\n" >>"$RESULTS/tests.tsv"; echo modules/load/tun >"$RESULTS/step"; echo 0 >"$RESULTS/status"'
	vm test --profile modules
	ends 1
	says 'it did not come to its end' "last step 'modules/load/tun'"
	same '1 passed, 1 failed, 0 skipped' "$(tail -n 1 <<<"$OUTPUT")"
}

test_a_report_while_modules_load_fails_the_run() {
	everything_but_the_guest <<<"echo '[    9.000000] WARNING: CPU: 0 PID: 1 at net/core/skbuff.c:1' >&2; $LOADS"
	vm test --profile modules
	ends 1
	says 'FAILED (modules-modules): the kernel' 'net/core/skbuff.c:1'
}

test_the_suite_needs_its_profile() {
	vm test --only modules
	ends 64
	says 'the profile plain has the suites harness, host, kunit, guest' "not 'modules'"
	vm test --profile modules --only guest
	ends 64
	says 'the profile modules has the suites modules' "not 'guest'"
}

# a_guest: what guest/modules sees in the guest, with two modules and all that is right.
# modprobe loads what it is told to, except for $WORK/refused.
a_guest() {
	export MODULES=$WORK/modules SYSFS=$WORK/sys DEMO=$COMMANDS/demo WORK
	mkdir -p "$MODULES/kernel/net" "$SYSFS/kernel/btf" "$SYSFS/module/dummy" "$WORK/results"
	echo BTF | tee "$SYSFS/kernel/btf/vmlinux" "$SYSFS/kernel/btf/veth" >"$SYSFS/kernel/btf/xfrm_user"
	printf '%s\n' 'kernel/net/xfrm-user.ko:' 'kernel/net/veth.ko: kernel/net/xfrm-user.ko' >"$MODULES/modules.dep"
	replace modprobe <<'MODPROBE'
	case $1 in
	--dump-modversions) [[ $2 != */veth.ko ]] || printf '0x12\t__traits_evict\n0x13\tkfree\n'; exit ;;
	esac
	[ "$1" != "$(cat "$WORK/refused" 2>/dev/null)" ] || { echo "modprobe: ERROR: could not insert '$1': Unknown symbol"; exit 1; }
	mkdir -p "$SYSFS/module/$1"
	echo live >"$SYSFS/module/$1/initstate"
MODPROBE
	replace dmesg <<<'cat "$WORK/kernel.log" 2>/dev/null; exit 0'
	# The kernel loads veth for it
	replace demo <<<'exec modprobe veth'
}

# judged: what guest/modules wrote
judged() {
	rm -f "$WORK/results/tests.tsv"
	(cd "$CLONE" && qemu/guest/modules "$WORK/results") || return 1
	cat "$WORK/results/tests.tsv"
}

test_a_guest_with_all_modules() {
	a_guest
	judged
	same "$(printf 'passed\tmodules/%s\t\n' btf-of-the-kernel demo demo-loads-veth installed load/veth load/xfrm_user symbols traits-symbols)" \
		"$(cat "$WORK/results/tests.tsv")"
}

test_a_guest_in_which_a_module_is_refused() {
	a_guest
	echo xfrm_user >"$WORK/refused"
	echo '[    5.000000] xfrm_user: Unknown symbol __traits_evict (err -2)' >"$WORK/kernel.log"
	OUTPUT=$(judged)
	says "$(printf 'failed\tmodules/load/xfrm_user\tmodprobe: modprobe: ERROR')" "$(printf 'failed\tmodules/symbols\t[    5.000000] xfrm_user: Unknown symbol __traits_evict')" \
		"$(printf 'passed\tmodules/load/veth')"
}

test_a_guest_without_btf() {
	a_guest
	rm "$SYSFS/kernel/btf/vmlinux" "$SYSFS/kernel/btf/veth"
	OUTPUT=$(judged)
	says "$(printf 'failed\tmodules/btf-of-the-kernel\t')" "$(printf 'failed\tmodules/load/veth\tloaded, but')" \
		"$(printf 'passed\tmodules/load/xfrm_user')"
}

test_a_guest_in_which_the_demo_fails() {
	a_guest
	replace demo <<<'exit 69'
	OUTPUT=$(judged)
	says "$(printf 'failed\tmodules/demo\tthe demo ended with status 69')" \
		"$(printf 'failed\tmodules/demo-loads-veth\tthe module is not loaded after the demo')" "$(printf 'passed\tmodules/load/veth')"
}

test_a_guest_that_has_the_module_from_the_beginning() {
	a_guest
	modprobe veth
	OUTPUT=$(judged)
	says "$(printf 'failed\tmodules/demo-loads-veth\tthe module was loaded before the demo began')"
}

test_a_guest_whose_modules_use_no_traits() {
	a_guest
	echo 'kernel/net/xfrm-user.ko:' >"$MODULES/modules.dep"
	OUTPUT=$(judged)
	says "$(printf 'failed\tmodules/traits-symbols\tno module uses')"
	: >"$MODULES/modules.dep"
	OUTPUT=$(judged)
	says "$(printf 'failed\tmodules/installed\t')"
}
