# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The demo: from nothing to tagged packets that a Swift program reads.

DEMO_LIMIT=180

help_demo() {
	cat <<-E
	Usage: qemu/vm demo

	Builds the patched kernel, the Swift package and an XDP program, boots the kernel in QEMU and
	shows the whole path: the program tags packets, a Swift program reads the tags with recvmsg.
	Fetches and installs what is missing. Ends with status 0 if every packet came with the right
	values and payload. The first run takes 10 to 20 minutes on two processors, a later one less
	than a minute.
	E
}

command_demo() {
	[ $# -eq 0 ] || usage_error "demo takes no argument" demo
	local status=0
	open_cache
	need_series
	check_machine source swift guest
	install_packages
	lock_clone
	prepare_guest patched
	swift_build "the demo" --product traits-demo
	build_bpf
	step "demo: in the guest"
	boot_guest "$RESULTS/demo" $DEMO_LIMIT qemu/guest/demo || status=$?
	if [ $status -ne 0 ]; then
		fail "the demo failed with status $status" \
			"Its output: $RESULTS/demo/output.log" "The kernel's log: $RESULTS/demo/console.log"
	fi
	step "demo: done; the kernel's log has no report ($RESULTS/demo/console.log)"
}
