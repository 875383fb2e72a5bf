# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The guest's network cards, with a QEMU that offers some of them.

# qemu VERSION: standard input is what QEMU does when it is started with a card. DEVICES are the
# options; each start is written down.
qemu() {
	{
		echo "[ \"\$1\" != --version ] || { echo 'QEMU emulator version $1 (Debian 1:$1+dfsg)'; exit 0; }"
		echo 'DEVICES=$*'
		echo "echo \"\$DEVICES\" >>'$WORK/starts'"
		echo 'refuse() { echo "qemu-system-x86_64: -device $1,netdev=card1: $2" >&2; exit 1; }'
		cat
	} | replace qemu-system-x86_64
	touch "$WORK/starts"
}

# guest_that_ends: a guest whose command succeeds
guest_that_ends() {
	everything_but_the_guest <<<'echo 0 >"$RESULTS/status"'
}

# booted: 'qemu/vm boot'; ARGUMENTS are what virtme-ng was started with
booted() {
	vm boot -- true
	ends 0
	ARGUMENTS=$(cat "$WORK/vng.arguments")
}

# has TEXT: it is among ARGUMENTS
has() {
	[[ $ARGUMENTS == *"$1"* ]] || {
		printf 'not among the arguments: %s\n%s\n' "$1" "$ARGUMENTS"
		return 1
	}
}

# has_not TEXT
has_not() {
	[[ $ARGUMENTS != *"$1"* ]] || {
		printf 'among the arguments: %s\n%s\n' "$1" "$ARGUMENTS"
		return 1
	}
}

test_a_guest_has_all_cards_that_qemu_offers() {
	local number
	guest_that_ends
	qemu 10.0.13 <<<'exit 0'
	booted
	says_not 'card:'
	for number in 1 2 3 4 5 6 7 8; do
		has "mac=02:00:00:00:77:0$number,"
	done
}

test_each_igb_card_is_below_a_port_of_its_own() {
	guest_that_ends
	qemu 10.0.13 <<<'exit 0'
	booted
	has '-machine q35'
	has '-device pcie-root-port,id=port7,chassis=7,slot=7'
	has '-device igb,bus=port7,netdev=card7,'
	has '-device pcie-root-port,id=port8,chassis=8,slot=8'
	has '-device igb,bus=port8,netdev=card8,'
	# It is tried where it will be
	grep -q 'q35 .*-device igb,bus=port7,' "$WORK/starts"
}

test_a_card_that_qemu_does_not_have_is_left_out_with_a_notice() {
	guest_that_ends
	qemu 7.2.22 <<-'QEMU'
	[[ $DEVICES != *'-device igb'* ]] || refuse igb "'igb' is not a valid device model name"
	QEMU
	booted
	says 'guest: no igb card: QEMU 7.2.22 does not have it'
	says_not 'no vmxnet3 card'
	has_not igb
	has_not pcie-root-port
	has '-device vmxnet3,netdev=card5,mac=02:00:00:00:77:05,'
}

test_a_card_that_qemu_refuses_is_left_out_with_its_words() {
	guest_that_ends
	qemu 10.0.13 <<<'[[ $DEVICES != *vmxnet3* ]] || refuse vmxnet3 "VF addr overflows"'
	booted
	says 'guest: no vmxnet3 card: QEMU 10.0.13 refuses it: VF addr overflows'
	has_not vmxnet3
	# The others keep their addresses: the tests know them by these
	has 'netdev=card4,mac=02:00:00:00:77:04,'
	has 'netdev=card7,mac=02:00:00:00:77:07,'
}

test_a_qemu_that_ends_without_a_word_is_told_with_its_status() {
	guest_that_ends
	qemu 10.0.13 <<<'[[ $DEVICES != *igb* ]] || exit 3'
	booted
	says 'guest: no igb card: QEMU 10.0.13 refuses it: status 3'
}

test_a_qemu_that_hangs_with_a_card_does_not_hold_the_run_up() {
	guest_that_ends
	sed -i 's/^CARD_PROBE_LIMIT=.*/CARD_PROBE_LIMIT=1/' "$CLONE/qemu/steps/guest.sh"
	qemu 10.0.13 <<<'[[ $DEVICES != *igb* ]] || exec sleep 60'
	booted
	says 'guest: no igb card: QEMU 10.0.13 did not start with it within 1 s'
	has_not igb
}

test_qemu_is_asked_about_cards_once_per_version() {
	local asked
	guest_that_ends
	qemu 10.0.13 <<<'[[ $DEVICES != *igb* ]] || refuse igb "VF addr overflows"'
	booted
	says 'no igb card: QEMU 10.0.13 refuses it: VF addr overflows'
	asked=$(wc -l <"$WORK/starts")
	[ "$asked" -gt 0 ]
	booted
	says 'no igb card: QEMU 10.0.13 refuses it: VF addr overflows'
	has_not igb
	same "$asked" "$(wc -l <"$WORK/starts")"
	# Another one may take it
	qemu 10.1.0 <<<'exit 0'
	booted
	says_not 'no igb card'
	has '-device igb'
	same $((2 * asked)) "$(wc -l <"$WORK/starts")"
}

test_the_cards_have_the_places_that_the_tests_know_them_by() {
	local cases
	source "$CLONE/qemu/steps/guest.sh"
	cases=$(sed -nE '/^enum Card:/,/^  var /s/^  case ([a-z0-9A-Z]+).*/\1/p' "$SOURCE_ROOT/Tests/GuestTests/DriverTests.swift" | paste -sd ' ')
	same 'virtio virtioSmall vmxnet3 igb' "$cases"
	same 'virtio-net-pci virtio-net-pci vmxnet3 igb' "${CARDS[*]%%,*}"
}
